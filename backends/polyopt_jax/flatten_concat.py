"""Arrays one after the other in a flat one, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


@jax.jit
def join(arrays: Sequence[Any]) -> Any:
    """Put the elements of ``arrays`` one after the other."""
    return jnp.concatenate([x.reshape(-1) for x in arrays])


def split(x: Any, shapes: Sequence[tuple[int, ...]]) -> list[Any]:
    """Inside a compiled function as one operation, whose gradient is a concatenation.

    Arrays with values are cut at once where they have one shape: a computation that gives a thousand of
    them takes XLA most of a minute to compile.
    """
    if isinstance(x, jax.core.Tracer):
        parts = lax.split(x, [math.prod(shape) for shape in shapes])
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
    found: list[Any] = []
    start = 0
    for shape, alike in groupby(shapes):
        number = len(list(alike))
        end = start + number * math.prod(shape)
        stacked = x[start:end].reshape(number, *shape)
        found += list(stacked)
        start = end
    return found
