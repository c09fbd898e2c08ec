"""A fence that keeps XLA from rounding otherwise than one IEEE operation after the other.

XLA contracts ``a * b + c`` to one fused multiply-add, and rewrites ``a / sqrt(b)`` to ``a * rsqrt(b)``,
``(a / b) / c`` to ``a / (b * c)``, and may divide by one number for all elements by multiplying with its
reciprocal. Subtracting 0.0 stops that, which changes no number, provided that the compiler can't know that it
is 0.0: so it is made of an argument of the compiled function. It costs next to nothing: ``fma(a, b, -0.0)``
is the product, rounded once. (Adding -0.0 is the same to IEEE, but XLA takes a constant 0.0 before a sum for
nothing, and begins an empty sum at what is added to it.) A half-precision result gets an exclusive or of its
bits with an integer zero instead, because XLA subtracts in float32 and then drops the rounding in between.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from polyopt.backend.fencing import Fencing
from polyopt_tensorflow import ops
from polyopt_tensorflow.dtypes import promoted

_BITS = {1: tf.int8, 2: tf.int16, 4: tf.int32, 8: tf.int64}
_WIDE = (tf.float32, tf.float64)
"""Dtypes in which XLA computes."""


class Fenced(Fencing):
    """The operations of ``polyopt_tensorflow.ops``, each rounded by itself when compiled.

    ``zero`` is a 0-d integer zero, symbolic.
    """

    def __init__(self, zero: Any) -> None:
        super().__init__(ops)
        self._zeros = {bits: tf.cast(zero, bits) for bits in _BITS.values()}
        self._floating = {kind: tf.bitcast(self._zeros[_BITS[kind.size]], kind) for kind in _WIDE}

    def divide(self, x1: Any, x2: Any, /) -> Any:
        """Divide so that XLA doesn't multiply by a reciprocal."""
        constant = not tf.is_tensor(x2)
        x1, x2 = promoted(x1, x2)
        if x1.dtype.is_floating and (constant or x1.shape != x2.shape):
            # The divisor takes its zero from every element of x1, so that XLA no longer sees one number.
            bits = _BITS[x1.dtype.size]
            zero = tf.bitwise.bitwise_and(tf.bitcast(x1, bits), self._zeros[bits])
            x2 = tf.bitcast(tf.bitwise.bitwise_xor(tf.bitcast(x2, bits), zero), x2.dtype)
        return self.fence(ops.divide(x1, x2))

    def settled(self, x: Any) -> Any:
        """Return ``x``."""
        return x

    def fence(self, x: Any) -> Any:
        """Return ``x``, rounded by itself: the compiler can't contract it with what follows."""
        if not x.dtype.is_floating:
            return x
        if x.dtype in self._floating:
            return x - self._floating[x.dtype]
        bits = _BITS[x.dtype.size]
        return tf.bitcast(tf.bitwise.bitwise_xor(tf.bitcast(x, bits), self._zeros[bits]), x.dtype)
