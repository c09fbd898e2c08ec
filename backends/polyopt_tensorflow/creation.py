"""Making tensors, by the names of the array API standard. The default dtypes are float32 and int64."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import tensorflow as tf

from polyopt.core.ops import Shape
from polyopt_tensorflow.dtypes import DEFAULT_FLOAT, DEFAULT_INT


def _on(device: Any) -> Any:
    return nullcontext() if device is None else tf.device(device)


def _shape(shape: Shape) -> tuple[int, ...]:
    return (shape,) if isinstance(shape, int) else tuple(shape)


def _dims(x: Any) -> Any:
    """Return the shape of ``x``: known, or (in a graph over unknown sizes) as a tensor."""
    return x.shape if x.shape.is_fully_defined() else tf.shape(x)


def _holds_tensor(obj: Any) -> bool:
    if isinstance(obj, list | tuple):
        return any(_holds_tensor(x) for x in obj)
    return bool(tf.is_tensor(obj))


def asarray(obj: Any, /, *, dtype: Any = None, device: Any = None, copy: bool | None = None) -> Any:
    with _on(device):
        if tf.is_tensor(obj):
            x = tf.convert_to_tensor(obj) if dtype is None else tf.cast(obj, dtype)
            return x if device is None else tf.identity(x)
        if isinstance(obj, list | tuple) and _holds_tensor(obj):
            return tf.stack([asarray(x, dtype=dtype) for x in obj])
        # A copy, because TensorFlow may share the memory of a host array, which its owner can change.
        host = np.array(obj)
        if dtype is None and not hasattr(obj, "dtype") and host.dtype == np.float64:
            dtype = DEFAULT_FLOAT
        if dtype is not None:
            host = host.astype(tf.as_dtype(dtype).as_numpy_dtype)
        return tf.constant(host)


def arange(
    start: float,
    /,
    stop: float | None = None,
    step: float = 1,
    *,
    dtype: Any = None,
    device: Any = None,
) -> Any:
    first, last = (0, start) if stop is None else (start, stop)
    if dtype is None:
        integral = all(isinstance(x, int) for x in (first, last, step))
        dtype = DEFAULT_INT if integral else DEFAULT_FLOAT
    with _on(device):
        return tf.constant(np.arange(first, last, step, dtype=tf.as_dtype(dtype).as_numpy_dtype))


def zeros(shape: Shape, *, dtype: Any = None, device: Any = None) -> Any:
    with _on(device):
        return tf.zeros(_shape(shape), dtype or DEFAULT_FLOAT)


def ones(shape: Shape, *, dtype: Any = None, device: Any = None) -> Any:
    with _on(device):
        return tf.ones(_shape(shape), dtype or DEFAULT_FLOAT)


def full(shape: Shape, fill_value: Any, *, dtype: Any = None, device: Any = None) -> Any:
    with _on(device):
        return tf.fill(_shape(shape), asarray(fill_value, dtype=dtype))


def zeros_like(x: Any, /, *, dtype: Any = None, device: Any = None) -> Any:
    with _on(device):
        return tf.zeros_like(x, dtype=dtype)


def ones_like(x: Any, /, *, dtype: Any = None, device: Any = None) -> Any:
    with _on(device):
        return tf.ones_like(x, dtype=dtype)


def full_like(x: Any, /, fill_value: Any, *, dtype: Any = None, device: Any = None) -> Any:
    with _on(device):
        return tf.fill(_dims(x), asarray(fill_value, dtype=dtype or x.dtype))
