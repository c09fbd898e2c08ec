"""Elementwise operations, by the names, promotion and special values of the array API standard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from polyopt_tensorflow.dtypes import promoted, to


def astype(x: Any, dtype: Any, /, *, copy: bool = True) -> Any:
    return tf.convert_to_tensor(tf.cast(x, dtype))


def _integral(x: Any) -> bool:
    return bool(x.dtype.is_integer)


def _through(function: Callable[..., Any], dtype: Any, *arrays: Any) -> Any:
    """Compute ``function`` in ``dtype``, for a dtype of which TensorFlow has no kernel."""
    return tf.cast(function(*(tf.cast(x, dtype) for x in arrays)), arrays[0].dtype)


def abs(x: Any, /) -> Any:
    return tf.convert_to_tensor(x) if x.dtype == tf.uint8 else tf.abs(x)


def add(x1: Any, x2: Any, /) -> Any:
    return tf.add(*promoted(x1, x2))


def ceil(x: Any, /) -> Any:
    return tf.convert_to_tensor(x) if _integral(x) else tf.math.ceil(x)


def clip(x: Any, /, min: Any = None, max: Any = None) -> Any:
    if min is not None:
        x = _with_nan(tf.maximum, x, to(min, x.dtype))
    return tf.convert_to_tensor(x) if max is None else _with_nan(tf.minimum, x, to(max, x.dtype))


def cos(x: Any, /) -> Any:
    return tf.cos(x)


def divide(x1: Any, x2: Any, /) -> Any:
    return tf.divide(*promoted(x1, x2))


def equal(x1: Any, x2: Any, /) -> Any:
    return tf.equal(*promoted(x1, x2))


def exp(x: Any, /) -> Any:
    return tf.exp(x)


def expm1(x: Any, /) -> Any:
    return tf.math.expm1(x)


def floor(x: Any, /) -> Any:
    return tf.convert_to_tensor(x) if _integral(x) else tf.floor(x)


def greater(x1: Any, x2: Any, /) -> Any:
    return tf.greater(*promoted(x1, x2))


def greater_equal(x1: Any, x2: Any, /) -> Any:
    return tf.greater_equal(*promoted(x1, x2))


def isfinite(x: Any, /) -> Any:
    return tf.math.is_finite(x) if x.dtype.is_floating else tf.ones_like(x, dtype=tf.bool)


def isinf(x: Any, /) -> Any:
    return tf.math.is_inf(x) if x.dtype.is_floating else tf.zeros_like(x, dtype=tf.bool)


def isnan(x: Any, /) -> Any:
    return tf.math.is_nan(x) if x.dtype.is_floating else tf.zeros_like(x, dtype=tf.bool)


def less(x1: Any, x2: Any, /) -> Any:
    return tf.less(*promoted(x1, x2))


def less_equal(x1: Any, x2: Any, /) -> Any:
    return tf.less_equal(*promoted(x1, x2))


def log(x: Any, /) -> Any:
    return tf.math.log(x)


def log1p(x: Any, /) -> Any:
    return tf.math.log1p(x)


def logical_and(x1: Any, x2: Any, /) -> Any:
    return tf.logical_and(x1, x2)


def logical_not(x: Any, /) -> Any:
    return tf.logical_not(x)


def logical_or(x1: Any, x2: Any, /) -> Any:
    return tf.logical_or(x1, x2)


def maximum(x1: Any, x2: Any, /) -> Any:
    return _with_nan(tf.maximum, *promoted(x1, x2))


def minimum(x1: Any, x2: Any, /) -> Any:
    return _with_nan(tf.minimum, *promoted(x1, x2))


def _with_nan(function: Callable[..., Any], x1: Any, x2: Any) -> Any:
    """Return ``function``, NaN where the second operand is: compiled by XLA for a CPU, it gives the first."""
    if tf.executing_eagerly() or not x2.dtype.is_floating:
        return function(x1, x2)
    return tf.where(tf.math.is_nan(x2), x2, function(x1, x2))


def multiply(x1: Any, x2: Any, /) -> Any:
    return tf.multiply(*promoted(x1, x2))


def negative(x: Any, /) -> Any:
    return tf.zeros_like(x) - x if x.dtype == tf.uint8 else tf.negative(x)


def not_equal(x1: Any, x2: Any, /) -> Any:
    return tf.not_equal(*promoted(x1, x2))


def pow(x1: Any, x2: Any, /) -> Any:
    x1, x2 = promoted(x1, x2)
    return _through(tf.pow, tf.int32, x1, x2) if x1.dtype == tf.uint8 else tf.pow(x1, x2)


def round(x: Any, /) -> Any:
    return tf.round(x)


def sign(x: Any, /) -> Any:
    """Return +0.0 for both zeros; TensorFlow's own, compiled, is -0.0 for -0.0."""
    if x.dtype == tf.uint8:
        return tf.cast(tf.not_equal(x, 0), x.dtype)
    if tf.executing_eagerly() or not x.dtype.is_floating:
        return tf.sign(x)
    return tf.where(tf.equal(x, 0), tf.zeros_like(x), tf.sign(x))


def sqrt(x: Any, /) -> Any:
    return tf.sqrt(x)


def square(x: Any, /) -> Any:
    return tf.square(x)


def subtract(x1: Any, x2: Any, /) -> Any:
    return tf.subtract(*promoted(x1, x2))


def tanh(x: Any, /) -> Any:
    return tf.tanh(x)


def where(condition: Any, x1: Any, x2: Any, /) -> Any:
    return tf.where(condition, *promoted(x1, x2))
