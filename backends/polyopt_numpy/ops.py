"""Ops on NumPy: NumPy 2 follows the array API standard itself; what it lacks stands here.

That is: IEEE special values without warnings (1 / 0 is inf, as on every other backend); bfloat16, which is a
dtype of ml_dtypes that NumPy doesn't know, or widens; and sums of 16-bit floats, which it keeps in 16 bits.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import ml_dtypes
import numpy as np
from ml_dtypes import bfloat16 as bfloat16
from numpy import all as all
from numpy import any as any
from numpy import arange as arange
from numpy import argmax as argmax
from numpy import bool as bool
from numpy import broadcast_to as broadcast_to
from numpy import ceil as ceil
from numpy import float16 as float16
from numpy import float32 as float32
from numpy import float64 as float64
from numpy import floor as floor
from numpy import int8 as int8
from numpy import int16 as int16
from numpy import int32 as int32
from numpy import int64 as int64
from numpy import logical_and as logical_and
from numpy import logical_not as logical_not
from numpy import logical_or as logical_or
from numpy import matrix_transpose as matrix_transpose
from numpy import ones as ones
from numpy import ones_like as ones_like
from numpy import permute_dims as permute_dims
from numpy import reshape as reshape
from numpy import squeeze as squeeze
from numpy import stack as stack
from numpy import take as take
from numpy import take_along_axis as take_along_axis
from numpy import uint8 as uint8
from numpy import zeros as zeros
from numpy import zeros_like as zeros_like

_BFLOAT16 = np.dtype(bfloat16)
_HALF = (_BFLOAT16, np.dtype(np.float16))
_SCALARS = (builtins.bool, int, float)  # np.float64 is a float as well, but not weak: hence type(x) in …


def _quiet(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make of ``function`` one with the special values of IEEE 754 and no RuntimeWarning."""

    @wraps(function)
    def apply(*args: Any, **keywords: Any) -> Any:
        with np.errstate(all="ignore"):
            return function(*args, **keywords)

    return apply


def _pair(x1: Any, x2: Any) -> tuple[Any, Any]:
    """Take a Python scalar next to bfloat16 for bfloat16; NumPy takes it for a float64 or float32."""
    if type(x1) in _SCALARS and getattr(x2, "dtype", None) == _BFLOAT16:
        return bfloat16(x1), x2
    if type(x2) in _SCALARS and getattr(x1, "dtype", None) == _BFLOAT16:
        return x1, bfloat16(x2)
    return x1, x2


def _binary(function: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    @wraps(function)
    def apply(x1: Any, x2: Any, /) -> Any:
        with np.errstate(all="ignore"):
            return function(*_pair(x1, x2))

    return apply


abs = _quiet(np.abs)
cos = _quiet(np.cos)
exp = _quiet(np.exp)
expm1 = _quiet(np.expm1)
isfinite = _quiet(np.isfinite)
isinf = _quiet(np.isinf)
isnan = _quiet(np.isnan)
log = _quiet(np.log)
log1p = _quiet(np.log1p)
negative = _quiet(np.negative)
sqrt = _quiet(np.sqrt)
square = _quiet(np.square)
tanh = _quiet(np.tanh)
astype = _quiet(np.astype)
asarray = _quiet(np.asarray)
full = _quiet(np.full)
full_like = _quiet(np.full_like)
max = _quiet(np.max)
min = _quiet(np.min)

add = _binary(np.add)
divide = _binary(np.divide)
equal = _binary(np.equal)
greater = _binary(np.greater)
greater_equal = _binary(np.greater_equal)
less = _binary(np.less)
less_equal = _binary(np.less_equal)
maximum = _binary(np.maximum)
minimum = _binary(np.minimum)
multiply = _binary(np.multiply)
not_equal = _binary(np.not_equal)
pow = _binary(np.pow)
subtract = _binary(np.subtract)


def _dtype(x: Any) -> Any:
    return x.dtype if isinstance(x, np.ndarray | np.generic) else np.dtype(x)


def sign(x: Any, /) -> Any:
    """Return 1, -1, 0 or NaN; ml_dtypes' gives -0.0 for -0.0, where the standard has 0."""
    with np.errstate(all="ignore"):
        return np.sign(x) + x.dtype.type(0) if x.dtype == _BFLOAT16 else np.sign(x)


def round(x: Any, /) -> Any:
    """Round to the nearest integer, halves to the even one."""
    return np.rint(x) if x.dtype.kind in "fV" else np.round(x)


def clip(x: Any, /, min: Any = None, max: Any = None) -> Any:
    """Return the standard's maximum and minimum, in the dtype of ``x``.

    An infinite bound on integers is none.
    """
    dtype = x.dtype
    if dtype.kind in "iu":
        min, max = (None if isinstance(b, float) and math.isinf(b) else b for b in (min, max))
    if min is not None:
        x = maximum(x, min)
    if max is not None:
        x = minimum(x, max)
    return np.astype(x, dtype, copy=min is None and max is None)


def where(condition: Any, x1: Any, x2: Any, /) -> Any:
    return np.where(condition, *_pair(x1, x2))


def result_type(*arrays_and_dtypes: Any) -> Any:
    """Return the standard's promotion; float16 with bfloat16, which the standard doesn't know, is float32."""
    dtypes = [_dtype(x) for x in arrays_and_dtypes if type(x) not in _SCALARS]
    if _BFLOAT16 not in dtypes:
        return np.result_type(*arrays_and_dtypes)
    floating = [
        np.dtype(np.float32) if len(set(dtypes) & set(_HALF)) == 2 and d in _HALF else d for d in dtypes
    ]
    return np.result_type(*floating)


def finfo(type: Any, /) -> Any:
    dtype = _dtype(type)
    return ml_dtypes.finfo(dtype) if dtype == _BFLOAT16 else np.finfo(dtype)  # type: ignore[no-untyped-call]


def isdtype(dtype: Any, kind: Any) -> builtins.bool:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    dtype = np.dtype(dtype)
    if dtype == _BFLOAT16:
        real = ("real floating", "numeric")
        return builtins.any(k in real if isinstance(k, str) else np.dtype(k) == dtype for k in kinds)
    known = tuple(k for k in kinds if isinstance(k, str) or np.dtype(k) != _BFLOAT16)
    return builtins.bool(known) and np.isdtype(dtype, known)


def sum(x: Any, /, *, axis: Any = None, dtype: Any = None, keepdims: builtins.bool = False) -> Any:
    """Floats of 16 bits are summed in float32 and rounded once: 300 ones in bfloat16 would be 256."""
    wanted = np.dtype(x.dtype if dtype is None else dtype)
    with np.errstate(all="ignore"):
        if wanted in _HALF:
            total = np.sum(x, axis=axis, dtype=np.float32, keepdims=keepdims)
            return total.astype(wanted)
        return np.sum(x, axis=axis, dtype=dtype, keepdims=keepdims)


def mean(x: Any, /, *, axis: Any = None, keepdims: builtins.bool = False) -> Any:
    """Floats of 16 bits as in ``sum``; the mean of nothing is NaN."""
    with np.errstate(all="ignore"):
        if x.dtype in _HALF:
            return np.astype(mean(np.astype(x, np.float32), axis=axis, keepdims=keepdims), x.dtype)
        if x.size:
            return np.mean(x, axis=axis, keepdims=keepdims)
        return np.sum(x, axis=axis, keepdims=keepdims) / np.zeros((), x.dtype)  # NumPy would warn


def matmul(x1: Any, x2: Any, /) -> Any:
    """Products of 16-bit floats are summed in float32 and rounded once."""
    with np.errstate(all="ignore"):
        dtype = result_type(x1, x2)
        if dtype in _HALF:
            return np.matmul(np.astype(x1, np.float32), np.astype(x2, np.float32)).astype(dtype)
        return np.matmul(x1, x2)


def expand_dims(x: Any, /, *, axis: int = 0) -> Any:
    return np.expand_dims(x, axis)


def concat(arrays: Sequence[Any], /, *, axis: int | None = 0) -> Any:
    return np.concat(tuple(arrays), axis=axis)


# Beyond the standard (see polyopt.core.ops)


def repeat_until(times: int, function: Callable[[Any], Any], carry: Any) -> Any:
    for _ in range(times):
        if carry[0]:
            break
        carry = function(carry)
    return carry


def log_softmax(x: Any, /) -> Any:
    shifted = subtract(x, max(x, axis=-1, keepdims=True))
    return subtract(shifted, log(sum(exp(shifted), axis=-1, keepdims=True)))


def relu(x: Any, /) -> Any:
    return maximum(x, x.dtype.type(0))
