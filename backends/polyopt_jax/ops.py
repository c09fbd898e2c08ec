"""Ops on JAX: ``jax.numpy``, with corrections where it leaves the array API standard.

- 64-bit dtypes are refused where ``jax_enable_x64`` is off; jax.numpy narrows them with a warning at best
  (https://github.com/jax-ml/jax/issues/22688).
- Arrays of two dtypes promote as in the standard also under ``jax_numpy_dtype_promotion="strict"``.
- ``divide`` by an array of fewer dimensions is a division: XLA turns ``x / broadcast(s)`` into
  ``x * (1 / s)``, which rounds twice (AlgebraicSimplifier::HandleDivide).
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.numpy import abs as abs
from jax.numpy import all as all
from jax.numpy import any as any
from jax.numpy import argmax as argmax
from jax.numpy import bfloat16 as bfloat16
from jax.numpy import bool as bool
from jax.numpy import broadcast_to as broadcast_to
from jax.numpy import cos as cos
from jax.numpy import exp as exp
from jax.numpy import expm1 as expm1
from jax.numpy import finfo as finfo
from jax.numpy import float16 as float16
from jax.numpy import float32 as float32
from jax.numpy import float64 as float64
from jax.numpy import int8 as int8
from jax.numpy import int16 as int16
from jax.numpy import int32 as int32
from jax.numpy import int64 as int64
from jax.numpy import isdtype as isdtype
from jax.numpy import isfinite as isfinite
from jax.numpy import isinf as isinf
from jax.numpy import isnan as isnan
from jax.numpy import log as log
from jax.numpy import log1p as log1p
from jax.numpy import logical_and as logical_and
from jax.numpy import logical_not as logical_not
from jax.numpy import logical_or as logical_or
from jax.numpy import matrix_transpose as matrix_transpose
from jax.numpy import max as max
from jax.numpy import mean as mean
from jax.numpy import min as min
from jax.numpy import negative as negative
from jax.numpy import reshape as reshape
from jax.numpy import round as round
from jax.numpy import sqrt as sqrt
from jax.numpy import square as square
from jax.numpy import squeeze as squeeze
from jax.numpy import tanh as tanh
from jax.numpy import uint8 as uint8

from polyopt.core.ops import Axis, Shape
from polyopt_jax.dtypes import allowed, common

# Data types


def astype(x: Any, dtype: Any, /, *, copy: Any = True) -> Any:
    return jnp.astype(x, allowed(dtype), copy=copy)


def result_type(*arrays_and_dtypes: Any) -> Any:
    return common(tuple(getattr(x, "dtype", x) for x in arrays_and_dtypes))


def _promoted(*arrays: Any) -> tuple[Any, ...]:
    """Bring the arrays to their common dtype; a Python scalar among them follows them, as in JAX itself.

    Their ranks are made equal where the user has JAX refuse others.
    """
    if jax.config.jax_numpy_rank_promotion != "allow":  # type: ignore[attr-defined]
        most = builtins.max(getattr(x, "ndim", 0) for x in arrays)
        arrays = tuple(
            jnp.reshape(x, (1,) * (most - x.ndim) + x.shape) if 0 < getattr(x, "ndim", 0) < most else x
            for x in arrays
        )
    dtypes = {x.dtype for x in arrays if hasattr(x, "dtype")}
    if len(dtypes) < 2:
        return arrays
    dtype = common(tuple(dtypes))
    return tuple(jnp.astype(x, dtype) if hasattr(x, "dtype") else x for x in arrays)


# Creation

SMALL = 1 << 15
"""Elements up to which an array is made in host memory and copied."""


def asarray(obj: Any, /, *, dtype: Any = None, device: Any = None, copy: Any = None) -> Any:
    if dtype is None and isinstance(obj, np.ndarray):
        allowed(obj.dtype)
    return jnp.asarray(obj, dtype=allowed(dtype), device=device, copy=copy)


def arange(start: Any, /, stop: Any = None, step: Any = 1, *, dtype: Any = None, device: Any = None) -> Any:
    return jnp.arange(start, stop, step, dtype=allowed(dtype), device=device)


def zeros(shape: Shape, *, dtype: Any = None, device: Any = None) -> Any:
    return jnp.zeros(shape, dtype=allowed(dtype), device=device)


def ones(shape: Shape, *, dtype: Any = None, device: Any = None) -> Any:
    return jnp.ones(shape, dtype=allowed(dtype), device=device)


def full(shape: Shape, fill_value: Any, *, dtype: Any = None, device: Any = None) -> Any:
    return jnp.full(shape, fill_value, dtype=allowed(dtype), device=device)


def zeros_like(x: Any, /, *, dtype: Any = None, device: Any = None) -> Any:
    return jnp.zeros_like(x, dtype=allowed(dtype), device=device)


def ones_like(x: Any, /, *, dtype: Any = None, device: Any = None) -> Any:
    return jnp.ones_like(x, dtype=allowed(dtype), device=device)


def full_like(x: Any, /, fill_value: Any, *, dtype: Any = None, device: Any = None) -> Any:
    if isinstance(fill_value, float | int) and x.size < SMALL and _here(x):
        # Not by JAX, which compiles a function for every shape.
        where = x.sharding if device is None and x.committed else device
        return jax.device_put(np.full(x.shape, fill_value, allowed(dtype) or x.dtype), where)
    return jnp.full_like(x, fill_value, dtype=allowed(dtype), device=device)


def _here(x: Any) -> builtins.bool:
    """Return True if ``x`` has values, and this process has all of them."""
    return isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer) and x.is_fully_addressable


# Elementwise


def add(x1: Any, x2: Any, /) -> Any:
    return jnp.add(*_promoted(x1, x2))


def ceil(x: Any, /) -> Any:
    return x if jnp.issubdtype(x.dtype, jnp.integer) else jnp.ceil(x)


def clip(x: Any, /, min: Any = None, max: Any = None) -> Any:
    return jnp.clip(
        x, *(m if m is None or not hasattr(m, "dtype") else m.astype(x.dtype) for m in (min, max))
    )


def divide(x1: Any, x2: Any, /) -> Any:
    x1, x2 = _promoted(x1, x2)
    if getattr(x2, "shape", ()) != getattr(x1, "shape", ()) and not isinstance(x2, jax.core.Tracer):
        shape = np.broadcast_shapes(np.shape(x1), np.shape(x2))
        x2 = jnp.broadcast_to(x2 if hasattr(x2, "dtype") else jnp.asarray(x2, dtype=x1.dtype), shape)
    return jnp.divide(x1, x2)


def equal(x1: Any, x2: Any, /) -> Any:
    return jnp.equal(*_promoted(x1, x2))


def floor(x: Any, /) -> Any:
    return x if jnp.issubdtype(x.dtype, jnp.integer) else jnp.floor(x)


def greater(x1: Any, x2: Any, /) -> Any:
    return jnp.greater(*_promoted(x1, x2))


def greater_equal(x1: Any, x2: Any, /) -> Any:
    return jnp.greater_equal(*_promoted(x1, x2))


def less(x1: Any, x2: Any, /) -> Any:
    return jnp.less(*_promoted(x1, x2))


def less_equal(x1: Any, x2: Any, /) -> Any:
    return jnp.less_equal(*_promoted(x1, x2))


def maximum(x1: Any, x2: Any, /) -> Any:
    return jnp.maximum(*_promoted(x1, x2))


def minimum(x1: Any, x2: Any, /) -> Any:
    return jnp.minimum(*_promoted(x1, x2))


def multiply(x1: Any, x2: Any, /) -> Any:
    return jnp.multiply(*_promoted(x1, x2))


def not_equal(x1: Any, x2: Any, /) -> Any:
    return jnp.not_equal(*_promoted(x1, x2))


def pow(x1: Any, x2: Any, /) -> Any:
    return jnp.pow(*_promoted(x1, x2))


def sign(x: Any, /) -> Any:
    """Return +0.0 for both zeros; JAX' own is -0.0 for -0.0."""
    return jnp.where(x == 0, jnp.zeros_like(x), jnp.sign(x))


def subtract(x1: Any, x2: Any, /) -> Any:
    return jnp.subtract(*_promoted(x1, x2))


def where(condition: Any, x1: Any, x2: Any, /) -> Any:
    return jnp.where(condition, *_promoted(x1, x2))


# Reduction, linear algebra and shape


def sum(x: Any, /, *, axis: Axis = None, dtype: Any = None, keepdims: Any = False) -> Any:
    return jnp.sum(x, axis=axis, dtype=allowed(dtype), keepdims=keepdims)


def matmul(x1: Any, x2: Any, /) -> Any:
    return jnp.matmul(*_promoted(x1, x2))


def concat(arrays: Sequence[Any], /, *, axis: int | None = 0) -> Any:
    return jnp.concat(_promoted(*arrays), axis=axis)


def expand_dims(x: Any, /, *, axis: int = 0) -> Any:
    if not -x.ndim - 1 <= axis <= x.ndim:
        raise IndexError(f"expand_dims: axis {axis} is out of range for {x.ndim} dimensions")
    return jnp.expand_dims(x, axis)


def permute_dims(x: Any, /, axes: tuple[int, ...]) -> Any:
    return jnp.permute_dims(x, tuple(a + x.ndim if a < 0 else a for a in axes))


def stack(arrays: Sequence[Any], /, *, axis: int = 0) -> Any:
    return jnp.stack(_promoted(*arrays), axis=axis)


def _inside(name: str, indices: Any, length: int) -> None:
    """Refuse indices that are out of range, where they have values; traced ones give NaN."""
    if isinstance(indices, jax.core.Tracer):
        return
    host = np.asarray(indices)
    if host.size and not (-length <= host.min() and host.max() < length):
        worst = host.min() if host.min() < -length else host.max()
        raise IndexError(f"{name}: index {worst} is out of range for an axis of length {length}")


def take(x: Any, indices: Any, /, *, axis: int | None = None) -> Any:
    _inside("take", indices, x.size if axis is None else x.shape[axis])
    return jnp.take(x, indices, axis=axis)


def take_along_axis(x: Any, indices: Any, /, *, axis: int = -1) -> Any:
    _inside("take_along_axis", indices, x.shape[axis])
    return jnp.take_along_axis(x, indices, axis=axis)


# Beyond the standard (see polyopt.core.ops)


def repeat_until(times: int, function: Callable[[Any], Any], carry: Any) -> Any:
    for i in range(times):
        if isinstance(carry[0], jax.core.Tracer):
            # Not a while loop, through which JAX can't differentiate backwards.
            def step(_: Any, c: Any) -> Any:
                return jax.lax.cond(c[0], lambda c: c, function, c)

            return jax.lax.fori_loop(i, times, step, carry)
        if carry[0]:
            break
        carry = function(carry)
    return carry
