"""Reductions, searching, products of matrices and changes of shape, as in the array API standard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import tensorflow as tf

from polyopt.core.ops import Axis
from polyopt_tensorflow.dtypes import DEFAULT_INT, common, promoted

_HALF = (tf.float16, tf.bfloat16)


def all(x: Any, /, *, axis: Axis = None, keepdims: bool = False) -> Any:
    return tf.reduce_all(tf.cast(x, tf.bool), axis=axis, keepdims=keepdims)


def any(x: Any, /, *, axis: Axis = None, keepdims: bool = False) -> Any:
    return tf.reduce_any(tf.cast(x, tf.bool), axis=axis, keepdims=keepdims)


def argmax(x: Any, /, *, axis: int | None = None, keepdims: bool = False) -> Any:
    rank = len(x.shape)
    if axis is None:
        found = argmax(tf.reshape(x, (-1,)), axis=0)
        return tf.reshape(found, (1,) * rank) if keepdims else found
    found = tf.argmax(tf.cast(x, tf.int8) if x.dtype == tf.bool else x, axis=axis)
    if x.dtype.is_floating:
        # NaN counts as the largest, as in max; tf.argmax passes over it.
        nan = tf.math.is_nan(x)
        found = tf.where(tf.reduce_any(nan, axis=axis), tf.argmax(tf.cast(nan, tf.int8), axis=axis), found)
    return tf.expand_dims(found, axis) if keepdims else found


def _not_empty(x: Any, axis: Axis, name: str) -> None:
    dims = x.shape if axis is None else [x.shape[a] for a in ((axis,) if isinstance(axis, int) else axis)]
    if 0 in list(dims):
        raise ValueError(f"{name} over no elements: shape {tuple(x.shape)}, axis {axis}")


def max(x: Any, /, *, axis: Axis = None, keepdims: bool = False) -> Any:
    _not_empty(x, axis, "max")
    return tf.reduce_max(x, axis=axis, keepdims=keepdims)


def min(x: Any, /, *, axis: Axis = None, keepdims: bool = False) -> Any:
    _not_empty(x, axis, "min")
    return tf.reduce_min(x, axis=axis, keepdims=keepdims)


def mean(x: Any, /, *, axis: Axis = None, keepdims: bool = False) -> Any:
    # TensorFlow accumulates float16 and bfloat16 in their own precision; NumPy and JAX in float32.
    wide = tf.cast(x, tf.float32) if x.dtype in _HALF else x
    return tf.cast(tf.reduce_mean(wide, axis=axis, keepdims=keepdims), x.dtype)


def sum(x: Any, /, *, axis: Axis = None, dtype: Any = None, keepdims: bool = False) -> Any:
    if dtype is None:
        unsigned = x.dtype.is_integer and x.dtype.is_unsigned
        small = x.dtype == tf.bool or (x.dtype.is_integer and x.dtype.size < DEFAULT_INT.size)
        dtype = (tf.uint64 if unsigned else DEFAULT_INT) if small else x.dtype
    wide = tf.cast(x, tf.float32 if dtype in _HALF else dtype)
    return tf.cast(tf.reduce_sum(wide, axis=axis, keepdims=keepdims), dtype)


def matmul(x1: Any, x2: Any, /) -> Any:
    x1, x2 = promoted(x1, x2)
    if x1.dtype.is_integer and x1.dtype.size < 4:
        return tf.cast(matmul(tf.cast(x1, tf.int32), tf.cast(x2, tf.int32)), x1.dtype)
    row, column = len(x1.shape) == 1, len(x2.shape) == 1
    y = tf.linalg.matmul(x1[None, :] if row else x1, x2[:, None] if column else x2)
    return tf.squeeze(y, [-2] * row + [-1] * column) if row or column else y


def matrix_transpose(x: Any, /) -> Any:
    return tf.linalg.matrix_transpose(x)


def broadcast_to(x: Any, /, shape: tuple[int, ...]) -> Any:
    return tf.broadcast_to(x, shape)


def _alike(arrays: Sequence[Any]) -> list[Any]:
    dtype = reduce(common, (x.dtype for x in arrays))
    return [tf.cast(x, dtype) for x in arrays]


def concat(arrays: Sequence[Any], /, *, axis: int | None = 0) -> Any:
    if axis is None:
        return tf.concat([tf.reshape(x, (-1,)) for x in _alike(arrays)], 0)
    return tf.concat(_alike(arrays), axis)


def stack(arrays: Sequence[Any], /, *, axis: int = 0) -> Any:
    return tf.stack(_alike(arrays), axis)


def expand_dims(x: Any, /, *, axis: int = 0) -> Any:
    rank = len(x.shape)
    if not -rank - 1 <= axis <= rank:
        raise IndexError(f"expand_dims: axis {axis} is out of range for {rank} dimensions")
    return tf.expand_dims(x, axis)


def permute_dims(x: Any, /, axes: tuple[int, ...]) -> Any:
    return tf.transpose(x, axes)


def reshape(x: Any, /, shape: tuple[int, ...], *, copy: bool | None = None) -> Any:
    return tf.reshape(x, shape)


def squeeze(x: Any, /, axis: int | tuple[int, ...]) -> Any:
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    if [a for a in axes if x.shape[a] != 1]:
        raise ValueError(f"squeeze: shape {tuple(x.shape)} has not size 1 along axis {axis}")
    return tf.squeeze(x, axes) if axes else tf.convert_to_tensor(x)


def take(x: Any, indices: Any, /, *, axis: int | None = None) -> Any:
    if axis is None and len(x.shape) > 1:
        raise ValueError(f"take: axis is needed for an array of {len(x.shape)} dimensions")
    axis = axis or 0
    axis %= len(x.shape)
    chosen = _wrapped("take", indices, x.shape[axis])
    found = tf.gather(x, chosen, axis=axis)
    lead = (1,) * (len(x.shape) - axis - 1)
    return _or_nan(found, tf.reshape(chosen, (*chosen.shape, *lead)), x.shape[axis])


def take_along_axis(x: Any, indices: Any, /, *, axis: int = -1) -> Any:
    rank = len(x.shape)
    axis %= rank
    order = [*(i for i in range(rank) if i != axis), axis]
    back = [order.index(i) for i in range(rank)]
    chosen = _wrapped("take_along_axis", indices, x.shape[axis])
    rows, picks = tf.transpose(x, order), tf.transpose(chosen, order)
    lead = tf.broadcast_static_shape(rows.shape[:-1], picks.shape[:-1])
    rows = tf.broadcast_to(rows, [*lead, rows.shape[-1]])
    picks = tf.broadcast_to(picks, [*lead, picks.shape[-1]])
    found = _or_nan(tf.gather(rows, picks, batch_dims=rank - 1, axis=-1), picks, x.shape[axis])
    return tf.transpose(found, back)


def repeat_until(times: int, function: Callable[[Any], Any], carry: Any) -> Any:
    for i in range(times):
        if tf.is_symbolic_tensor(carry[0]):
            return tf.while_loop(
                lambda *c: tf.logical_not(c[0]),
                lambda *c: tuple(function(c)),
                tuple(carry),
                maximum_iterations=times - i,
            )
        if carry[0]:
            break
        carry = function(carry)
    return carry


def _wrapped(name: str, indices: Any, n: int) -> Any:
    """Count negative indices from the end, which tf.gather refuses; refuse what is out of range."""
    indices = tf.cast(indices, tf.int64)
    wrapped = tf.where(indices < 0, indices + n, indices)
    if tf.executing_eagerly() and bool(tf.reduce_any((wrapped < 0) | (wrapped >= n))):
        raise IndexError(f"{name}: an index is out of range for an axis of length {n}")
    return wrapped


def _or_nan(found: Any, chosen: Any, n: int) -> Any:
    """Return ``found``, NaN where a traced index is out of range: XLA takes the last element instead."""
    if tf.executing_eagerly() or not found.dtype.is_floating:
        return found
    nan = tf.constant(float("nan"), found.dtype)
    return tf.where((chosen < 0) | (chosen >= n), nan, found)
