"""A fence that keeps XLA from rounding otherwise than one IEEE operation after the other.

XLA contracts ``a * b + c`` to one fused multiply-add, and rewrites ``a / sqrt(b)`` to ``a * rsqrt(b)``,
``(a / b) / c`` to ``a / (b * c)``, and may divide by one number for all elements by multiplying with its
reciprocal. An exclusive or of the result's bits with an integer zero stops that, provided that the compiler
can't know that it is zero: so it is an argument of the compiled function.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from polyopt_tensorflow import ops
from polyopt_tensorflow.dtypes import promoted

_BITS = {1: tf.int8, 2: tf.int16, 4: tf.int32, 8: tf.int64}


class Fenced:
    """The operations of :mod:`polyopt_tensorflow.ops`, each rounded by itself when compiled.

    ``zero`` is a 0-d integer zero, symbolic. Operators between tensors are not fenced: code that wants
    NumPy's bits calls ``xp.multiply``, ``xp.divide``, ``xp.sqrt`` and so on.
    """

    def __init__(self, zero: Any) -> None:
        self._zeros = {bits: tf.cast(zero, bits) for bits in _BITS.values()}

    def __getattr__(self, name: str) -> Any:
        return getattr(ops, name)

    def multiply(self, x1: Any, x2: Any, /) -> Any:
        return self._fence(ops.multiply(x1, x2))

    def square(self, x: Any, /) -> Any:
        return self._fence(ops.square(x))

    def sqrt(self, x: Any, /) -> Any:
        return self._fence(ops.sqrt(x))

    def divide(self, x1: Any, x2: Any, /) -> Any:
        constant = not tf.is_tensor(x2)
        x1, x2 = promoted(x1, x2)
        if x1.dtype.is_floating and (constant or x1.shape != x2.shape):
            # The divisor takes its zero from every element of x1, so that XLA no longer sees one number.
            bits = _BITS[x1.dtype.size]
            zero = tf.bitwise.bitwise_and(tf.bitcast(x1, bits), self._zeros[bits])
            x2 = tf.bitcast(tf.bitwise.bitwise_xor(tf.bitcast(x2, bits), zero), x2.dtype)
        return self._fence(ops.divide(x1, x2))

    def pow(self, x1: Any, x2: Any, /) -> Any:
        return self._fence(ops.pow(x1, x2))

    def matmul(self, x1: Any, x2: Any, /) -> Any:
        return self._fence(ops.matmul(x1, x2))

    def mean(self, x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Any:
        return self._fence(ops.mean(x, axis=axis, keepdims=keepdims))

    def astype(self, x: Any, dtype: Any, /, *, copy: bool = True) -> Any:
        # Fenced, because XLA drops a narrowing that is followed by a widening (simplify-fp-conversions).
        return self._fence(ops.astype(x, dtype))

    def settled(self, x: Any) -> Any:
        return x

    def _fence(self, x: Any) -> Any:
        if not x.dtype.is_floating:
            return x
        bits = _BITS[x.dtype.size]
        return tf.bitcast(tf.bitwise.bitwise_xor(tf.bitcast(x, bits), self._zeros[bits]), x.dtype)
