"""Dtypes in JAX: no silent narrowing where x64 is off, and the standard's promotion in strict mode too."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from polyopt.core.errors import InputError

WIDE = ("float64", "int64", "uint64", "complex128")


def wide_enabled() -> bool:
    """Return True if 64-bit dtypes exist in this process."""
    return bool(jax.dtypes.canonicalize_dtype(np.float64) == np.float64)


def allowed(dtype: Any) -> Any:
    """Return ``dtype``, refused where JAX would quietly take one of half the width instead."""
    if dtype is None or wide_enabled():
        return dtype
    name = np.dtype(dtype).name
    if name in WIDE:
        raise InputError(
            f"dtype {name}: JAX would silently narrow it, because its 64-bit types are off; turn them on by "
            "backend.enable_float64(), which is jax.config.update('jax_enable_x64', True), "
            f"or ask for {name.replace('64', '32').replace('128', '64')}"
        )
    return dtype


@lru_cache(maxsize=1024)
def common(dtypes: tuple[Any, ...]) -> Any:
    """Return the dtype that arrays of ``dtypes`` are promoted to, also where JAX refuses to promote."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*dtypes)
