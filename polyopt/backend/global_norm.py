"""Measure the joint 2-norm of all leaves of a tree, in the same bits on every backend."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from polyopt.backend import registry
from polyopt.backend.evaluate import cast
from polyopt.backend.protocol import Backend
from polyopt.core import tree
from polyopt.core.errors import InputError
from polyopt.core.ops import FLOATING, Array
from polyopt.core.reductions import root_sum_squares


def global_norm(leaves: Any) -> Array:
    """Return the joint 2-norm of all leaves of a tree.

    It overflows only where the norm itself does; the bits are the same on every backend.

    Parameters
    ----------
    leaves
        A tree of floating arrays of one framework; ``None`` leaves are left out.

    Returns
    -------
    Array
        0-d, float32, or float64 where a leaf is.

    Examples
    --------
    >>> import numpy as np
    >>> float(global_norm({"a": np.float16([3e4, 0.0]), "b": [np.float16([4e4])]}))
    50000.0
    """
    named = tree.named(leaves)
    backend = registry.of(*named.values())
    for path, x in named.items():
        if backend.dtype_name(x) not in FLOATING:
            raise InputError(
                f"global_norm: leaf {path!r} has dtype {backend.dtype_name(x)}; "
                f"expected one of {', '.join(FLOATING)}"
            )
    wide = "float64" if any(backend.dtype_name(x) == "float64" for x in named.values()) else "float32"
    if not named:
        return backend.ops.zeros((), dtype=backend.dtype(wide))
    return _norm(backend, wide)(list(named.values()))


@lru_cache(maxsize=16)
def _norm(backend: Backend, dtype: str) -> Any:
    def norm(xp: Any, leaves: Sequence[Array]) -> Array:
        root, scale = root_sum_squares(xp, [cast(backend, x, dtype) for x in leaves])
        return xp.divide(root, scale)

    return backend.compile(norm, exact=True)
