"""Inputs for the checks of array operations: dtypes, special values, shapes and memory layouts."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Final

import ml_dtypes
import numpy as np

from polyopt.backend.protocol import Backend
from polyopt.core.errors import InputError
from polyopt.core.ops import FLOATING, INTEGER

NUMERIC: Final = (*FLOATING, *INTEGER)
SIGNED: Final = (*FLOATING, "int8", "int16", "int32", "int64")
REQUIRED_DTYPES: Final = ("float32", "float64", *INTEGER, "bool")
"""float16 and bfloat16 are beyond the standard: a framework may do without."""

SHAPES: Final = ((), (1,), (5,), (0,), (0, 3), (2, 3), (3, 1), (2, 1, 3))
PAIRS: Final = (
    ((), ()),
    ((5,), (5,)),
    ((5,), ()),
    ((), (2, 3)),
    ((2, 3), (3,)),
    ((2, 3), (2, 1)),
    ((2, 1, 3), (2, 3)),
    ((0, 3), (0, 3)),
    ((0, 3), (1,)),
    ((3, 1), (2, 3)[1:]),
)


def host_dtype(name: str) -> Any:
    """Return the NumPy dtype of that name, bfloat16 too."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def info(name: str) -> Any:
    """Return ``finfo`` of a floating dtype, bfloat16 as well."""
    return ml_dtypes.finfo(host_dtype(name))  # type: ignore[no-untyped-call]


def tiny(name: str) -> float:
    """Return the smallest normal number."""
    return float(info(name).smallest_normal)


@lru_cache(maxsize=64)
def dtypes_of(backend: Backend, allowed: tuple[str, ...]) -> tuple[str, ...]:
    """Those of ``allowed`` that the backend has; the standard's own it must have."""
    found = []
    for name in allowed:
        try:
            backend.dtype(name)
        except InputError:
            if name in REQUIRED_DTYPES:
                raise
            continue
        found.append(name)
    return tuple(found)


@lru_cache(maxsize=64)
def specials(dtype: str) -> Any:
    """Return the values at which implementations differ; no subnormals (XLA, TensorFlow may flush them)."""
    if dtype == "bool":
        return np.array([False, True])
    if dtype in INTEGER:
        limits = np.iinfo(dtype)
        whole = [0, 1, 2, 3, 7, limits.max, limits.max - 1]
        if limits.min < 0:
            whole += [-1, -2, -7, limits.min, limits.min + 1]
        return np.array(whole, dtype=dtype)
    f = info(dtype)
    largest, eps = float(f.max), float(f.eps)
    values = [0.0, 0.5, 1.0, 1.5, 2.5, 3.0, 0.1, math.pi, 100.0, 1 + eps, 1 - eps / 2, tiny(dtype), largest]
    values += [largest / 4, math.inf]
    return np.array([*values, *(-v for v in values), math.nan], dtype=np.float64).astype(host_dtype(dtype))


def sample(seed: int, dtype: str, shape: tuple[int, ...], spread: float = 3.0) -> Any:
    """Draw a host array of ordinary values over many magnitudes, with a special value here and there."""
    rng = np.random.default_rng(seed)
    if dtype == "bool":
        return rng.random(shape) < 0.5
    if dtype in INTEGER:
        low = 0 if dtype == "uint8" else -11
        return rng.integers(low, 12, size=shape).astype(dtype)
    x = rng.normal(size=shape) * 10.0 ** rng.uniform(-spread, spread, size=shape)
    pool = specials(dtype)
    mask = rng.random(shape) < 0.15
    return np.where(mask, rng.choice(pool.astype(np.float64), size=shape), x).astype(host_dtype(dtype))


def finite(seed: int, dtype: str, shape: tuple[int, ...]) -> Any:
    """Draw a host array of moderate values, for what may add and multiply them: no NaN, no overflow."""
    rng = np.random.default_rng(seed)
    if dtype == "bool" or dtype in INTEGER:
        return sample(seed, dtype, shape)
    return rng.normal(size=shape).astype(host_dtype(dtype))


def lay(backend: Backend, x: Any, layout: str) -> Any:
    """Return ``x`` as an array of the backend, contiguous in its framework's memory or not."""
    xp = backend.ops
    if layout == "transposed" and x.ndim >= 2:
        axes = tuple(reversed(range(x.ndim)))
        return xp.permute_dims(backend.from_numpy(np.ascontiguousarray(np.transpose(x, axes))), axes)
    if layout == "strided" and x.ndim >= 1:
        return backend.from_numpy(np.repeat(x, 2, axis=-1))[..., ::2]
    return backend.from_numpy(np.array(x))


def rounded(value: float, dtype: str) -> Any:
    """Round a double (or integer, or bool) once, to even, to a host scalar of ``dtype``."""
    kind = host_dtype(dtype)
    if dtype != "bfloat16":
        return np.asarray(value).astype(kind)[()]
    # ml_dtypes goes by float32 and would round twice: round to odd there, which keeps what was cut off.
    near = np.float32(value)
    if math.isfinite(value) and math.isfinite(near) and float(near) != value:
        even = not int(near.view(np.uint32)) & 1
        if even:
            near = np.nextafter(near, np.float32(math.inf if value > float(near) else -math.inf))
    return near.astype(kind)
