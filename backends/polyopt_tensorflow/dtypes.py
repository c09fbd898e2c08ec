"""Dtypes in TensorFlow, with the array API standard's promotion, which TensorFlow leaves to the caller."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np
import tensorflow as tf

from polyopt.core.ops import FLOATING

DEFAULT_FLOAT = tf.float32
DEFAULT_INT = tf.int64
_KINDS = {
    "bool": "b",
    "signed integer": "i",
    "unsigned integer": "u",
    "integral": "iu",
    "real floating": "f",
    "complex floating": "c",
    "numeric": "iufc",
}


@lru_cache(maxsize=256)
def isdtype(dtype: Any, kind: Any) -> Any:
    dtype = tf.as_dtype(dtype)
    if isinstance(kind, tuple):
        return any(isdtype(dtype, k) for k in kind)
    if isinstance(kind, str) and kind in _KINDS:
        return _kind(dtype) in _KINDS[kind]
    if isinstance(kind, str):
        raise ValueError(f"dtype kind {kind!r}; expected one of {', '.join(_KINDS)}")
    return dtype == tf.as_dtype(kind)


def _kind(dtype: Any) -> str:
    return "f" if dtype.name in FLOATING else str(np.dtype(dtype.as_numpy_dtype).kind)


def finfo(type: Any, /) -> Any:
    return ml_dtypes.finfo(tf.as_dtype(getattr(type, "dtype", type)).as_numpy_dtype)  # type: ignore[no-untyped-call]


@lru_cache(maxsize=256)
def common(a: Any, b: Any) -> Any:
    """Return the common dtype: a floating one wins over an integer; of float16 and bfloat16 it is float32."""
    if a == b:
        return a
    kinds = _kind(a), _kind(b)
    if "f" in kinds and kinds != ("f", "f"):
        return a if kinds[0] == "f" else b
    if {a.name, b.name} == {"float16", "bfloat16"}:
        return tf.float32
    if tf.bfloat16 in (a, b):
        return a if b == tf.bfloat16 else b
    return tf.as_dtype(np.promote_types(a.as_numpy_dtype, b.as_numpy_dtype))


def result_type(*arrays_and_dtypes: Any) -> Any:
    dtypes = [
        tf.as_dtype(getattr(x, "dtype", x)) for x in arrays_and_dtypes if not isinstance(x, int | float)
    ]
    result = dtypes[0]
    for dtype in dtypes[1:]:
        result = common(result, dtype)
    for x in arrays_and_dtypes:
        if isinstance(x, int | float):
            result = scalar_dtype(x, result)
    return result


def scalar_dtype(value: Any, dtype: Any) -> Any:
    """Return what an array of ``dtype`` becomes when a Python scalar meets it.

    Itself, unless it can't hold it.
    """
    kind = _kind(dtype)
    if isinstance(value, bool) or kind == "f" or (isinstance(value, int) and kind != "b"):
        return dtype
    return DEFAULT_INT if isinstance(value, int) else DEFAULT_FLOAT


def promoted(x1: Any, x2: Any) -> tuple[Any, Any]:
    """Two operands as tensors of one dtype; a Python scalar follows the other operand."""
    d1, d2 = getattr(x1, "dtype", None), getattr(x2, "dtype", None)
    if d1 is d2 and d1 is not None and isinstance(d1, tf.DType):
        return x1, x2
    if d1 is None and d2 is None:
        dtype = result_type(tf.as_dtype(np.asarray(x1).dtype), tf.as_dtype(np.asarray(x2).dtype))
    elif d1 is None:
        dtype = scalar_dtype(x1, tf.as_dtype(d2))
    elif d2 is None:
        dtype = scalar_dtype(x2, tf.as_dtype(d1))
    else:
        dtype = common(tf.as_dtype(d1), tf.as_dtype(d2))
    return to(x1, dtype), to(x2, dtype)


def to(x: Any, dtype: Any) -> Any:
    """Return a tensor of ``dtype`` with the value of ``x``."""
    if isinstance(x, int | float):
        return tf.constant(x, dtype)
    return tf.convert_to_tensor(x) if tf.as_dtype(x.dtype) == dtype else tf.cast(x, dtype)
