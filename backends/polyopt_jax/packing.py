"""Small leaves of many shapes as one flat leaf, so that XLA compiles one kernel for all of them.

XLA on a CPU compiles a tenth of a second for every shape: a thousand small leaves of two hundred shapes took
most of a minute. Joined and cut by XLA, each leaf's copy would be compiled; host memory is copied by NumPy.
A later step takes two to three times as long so (0.1 s for those thousand).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from polyopt.backend.protocol import Arrays

SMALL = 1 << 15
"""Elements from which on a leaf is not copied."""
SHAPES = 64
"""Most shapes that are compiled one by one."""


def joinable(arrays: Arrays) -> bool:
    """Return True if these leaves lie in host memory, and each name's are of one dtype."""
    if jax.default_backend() != "cpu" or jax.local_device_count() > 1:
        return False
    return all(len({x.dtype for x in group}) == 1 for group in arrays.values())


def over_flat(
    call: Callable[[dict[str, list[Any]]], Mapping[str, Sequence[Any]]], arrays: Arrays
) -> dict[str, list[Any]]:
    """Return the outputs of ``call``, which gets one flat leaf, for each leaf of ``arrays``."""
    shapes = [x.shape for x in arrays["p"]]
    ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
    flat = {n: [np.concatenate([np.asarray(x).reshape(-1) for x in xs])] for n, xs in arrays.items()}
    found: dict[str, list[Any]] = {}
    for name, (x,) in call(flat).items():
        parts = np.split(np.asarray(x), ends)
        found[name] = _arrays([p.reshape(s) for p, s in zip(parts, shapes, strict=True)])
    return found


@jax.jit
def _arrays(parts: list[Any]) -> list[Any]:
    """Return host arrays as JAX' own, in half the time of ``jax.device_put``."""
    return parts
