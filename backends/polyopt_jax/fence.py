"""A fence that keeps XLA from rounding otherwise than one IEEE operation after the other.

XLA contracts ``a * b + c`` to one fused multiply-add, and rewrites ``a / sqrt(b)`` to ``a * rsqrt(b)``,
``(a / b) / c`` to ``a / (b * c)``, and ``a / s`` with one divisor for all elements to ``a * (1 / s)``.
Neither ``optimization_barrier`` nor ``reduce_precision`` nor a bit-cast round trip stops it on a CPU.
Subtracting 0.0 does, which changes no number, provided that the compiler can't know that it is 0.0: so it is
made of an argument of the compiled function. It costs next to nothing: ``fma(a, b, -0.0)`` is the product,
rounded once. (Adding -0.0 is the same to IEEE, but XLA takes a constant 0.0 before a sum for nothing, and
begins an empty sum at what is added to it.) A half-precision result gets an exclusive or of its bits with an
integer zero instead, because XLA subtracts in float32 and then drops the rounding in between.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from polyopt.backend.fencing import Fencing
from polyopt_jax import ops
from polyopt_jax.dtypes import WIDE, wide_enabled

_BITS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}
_WIDE = ("float32", "float64")
"""Dtypes in which XLA computes."""


class Fenced(Fencing):
    """The operations of ``polyopt_jax.ops``, each rounded by itself when compiled.

    ``zero`` is a 0-d unsigned integer zero, traced.
    """

    def __init__(self, zero: Any) -> None:
        super().__init__(ops)
        self._zero = zero
        self._floating = {kind: _floating(zero, kind) for kind in _WIDE if kind not in WIDE or wide_enabled()}

    def divide(self, x1: Any, x2: Any, /) -> Any:
        """Divide so that XLA doesn't multiply by a reciprocal."""
        shape, other = jnp.shape(x1), jnp.shape(x2)
        smaller = other != shape and jnp.broadcast_shapes(shape, other) == shape
        if smaller or not hasattr(x2, "dtype"):
            x2 = self._spread(x2, x1)
        return self.fence(ops.divide(x1, x2))

    def settled(self, x: Any) -> Any:
        """Return ``x``, computed before what follows."""
        return lax.optimization_barrier(x)  # type: ignore[no-untyped-call]

    def fence(self, x: Any) -> Any:
        """Return ``x``, rounded by itself: the compiler can't contract it with what follows."""
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        if x.dtype.name in self._floating:
            return lax.sub(x, jnp.full_like(x, self._floating[x.dtype.name]))
        zero = jnp.full_like(x, self._zero, dtype=_BITS[x.dtype.itemsize])
        return lax.bitcast_convert_type(lax.bitwise_xor(_raw(x), zero), x.dtype)

    def _spread(self, divisor: Any, x: Any) -> Any:
        """Return ``divisor`` for every element of ``x``, so that XLA no longer sees that it is one number."""
        dtype = ops.result_type(x, divisor) if hasattr(divisor, "dtype") else x.dtype
        if not (jnp.issubdtype(dtype, jnp.floating) and jnp.issubdtype(x.dtype, jnp.floating)):
            return divisor
        full = jnp.broadcast_to(jnp.asarray(divisor, dtype=dtype), x.shape)
        own = _raw(x.astype(dtype))
        zero = lax.bitwise_and(own, jnp.full_like(own, self._zero))
        return lax.bitcast_convert_type(lax.bitwise_xor(_raw(full), zero), dtype)


def _raw(x: Any) -> Any:
    return lax.bitcast_convert_type(x, _BITS[x.dtype.itemsize])


def _floating(zero: Any, kind: str) -> Any:
    """Return 0.0 of dtype ``kind``, which the compiler doesn't know."""
    return lax.bitcast_convert_type(jnp.asarray(zero, _BITS[np.dtype(kind).itemsize]), np.dtype(kind))
