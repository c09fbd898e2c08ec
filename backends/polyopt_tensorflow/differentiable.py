"""The ``xp`` of a loss on TensorFlow: its operations, with all backends' gradients at kinks, ties and NaN.

TensorFlow's own differ from other frameworks': all of a tie's gradient goes to the first operand of
``maximum``, and ``pow(0, 0)`` has the slope NaN. The values are those of ``polyopt_tensorflow.ops``.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import tensorflow as tf

from polyopt_tensorflow import ops
from polyopt_tensorflow.dtypes import promoted


def _alike(x1: Any, x2: Any) -> tuple[Any, Any]:
    """Both as tensors of one dtype and shape."""
    x1, x2 = promoted(x1, x2)
    if x1.shape.is_fully_defined() and x1.shape == x2.shape:
        return x1, x2
    shape = tf.broadcast_dynamic_shape(tf.shape(x1), tf.shape(x2))
    return tf.broadcast_to(x1, shape), tf.broadcast_to(x2, shape)


@tf.custom_gradient  # type: ignore[untyped-decorator]
def _abs(x: Any) -> Any:
    return tf.abs(x), lambda g: g * (tf.cast(x > 0, x.dtype) - tf.cast(x < 0, x.dtype))


def abs(x: Any, /) -> Any:
    """Return the magnitude, with the slope 0 at 0 and for NaN."""
    return _abs(x) if x.dtype.is_floating else ops.abs(x)


def _extremum(function: Callable[[Any, Any], Any], lost: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """Make of ``function`` one whose gradient is halved between equal operands, and goes to both for NaN."""

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def chosen(x: Any, y: Any) -> Any:
        def slopes(g: Any) -> tuple[Any, Any]:
            tied, none = tf.where(tf.equal(x, y), g * 0.5, g), tf.zeros_like(g)
            return tf.where(lost(x, y), none, tied), tf.where(lost(y, x), none, tied)

        return function(x, y), slopes

    def apply(x1: Any, x2: Any, /) -> Any:
        x1, x2 = _alike(x1, x2)
        return chosen(x1, x2) if x1.dtype.is_floating else function(x1, x2)

    return apply


maximum = _extremum(ops.maximum, tf.less)
minimum = _extremum(ops.minimum, tf.greater)


def clip(x: Any, /, min: Any = None, max: Any = None) -> Any:
    """At a bound, half of the gradient goes through."""
    if not x.dtype.is_floating:
        return ops.clip(x, min, max)
    dtype = x.dtype
    if min is not None:
        x = maximum(x, tf.cast(min, dtype))
    return tf.convert_to_tensor(x) if max is None else minimum(x, tf.cast(max, dtype))


@tf.custom_gradient  # type: ignore[untyped-decorator]
def _pow(x: Any, y: Any) -> Any:
    power = tf.pow(x, y)

    def slopes(g: Any) -> tuple[Any, Any]:
        one, constant = tf.ones_like(x), tf.equal(y, 0.0)
        by_base = tf.where(constant, tf.zeros_like(x), y * tf.pow(x, tf.where(constant, one, y - one)))
        by_exponent = power * tf.math.log(tf.where(tf.equal(x, 0.0), one, x))
        return g * by_base, g * by_exponent

    return power, slopes


def pow(x1: Any, x2: Any, /) -> Any:
    """Return ``x1`` to the power of ``x2``, with finite slopes at 0.

    The slope by the base is 0 where the exponent is 0; that by the exponent has 0·log 0 = 0.
    """
    if not hasattr(x2, "dtype"):
        return ops.pow(x1 if x2 else tf.stop_gradient(x1), x2)
    x1, x2 = _alike(x1, x2)
    return _pow(x1, x2) if x1.dtype.is_floating else ops.pow(x1, x2)


xp: Any = SimpleNamespace(
    **vars(ops) | {"abs": abs, "maximum": maximum, "minimum": minimum, "clip": clip, "pow": pow}
)
"""The operations of a loss."""
