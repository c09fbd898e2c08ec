"""The ``xp`` of a loss on JAX: its operations, with all backends' gradients at kinks, ties and NaN.

JAX' own differ from other frameworks': the slope of ``abs`` at 0 is 1, none of two NaN operands of
``maximum`` gets a gradient, and ``pow(0, 0)`` has the slope NaN. The values are those of ``polyopt_jax.ops``.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from polyopt_jax import ops


def _floating(*arrays: Any) -> bool:
    return all(jnp.issubdtype(x.dtype, jnp.floating) for x in arrays)


def _alike(x1: Any, x2: Any) -> tuple[Any, Any]:
    """Both as arrays of one dtype and shape."""
    dtype = ops.result_type(*(x for x in (x1, x2) if hasattr(x, "dtype")))
    shape = np.broadcast_shapes(np.shape(x1), np.shape(x2))
    return tuple(jnp.broadcast_to(jnp.asarray(x, dtype), shape) for x in (x1, x2))  # type: ignore[return-value]


@jax.custom_jvp
def _abs(x: Any) -> Any:
    return jnp.abs(x)


@_abs.defjvp
def _abs_slope(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    (x,), (t,) = primals, tangents
    return _abs(x), t * ((x > 0).astype(x.dtype) - (x < 0).astype(x.dtype))


def abs(x: Any, /) -> Any:
    """Return the magnitude, with the slope 0 at 0 and for NaN."""
    return _abs(x) if _floating(x) else jnp.abs(x)


def _extremum(function: Callable[[Any, Any], Any], lost: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """Make of ``function`` one whose gradient is halved between equal operands, and goes to both for NaN."""

    @jax.custom_jvp
    def chosen(x: Any, y: Any) -> Any:
        return function(x, y)

    @chosen.defjvp
    def slope(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
        (x, y), (tx, ty) = primals, tangents
        tied = jnp.where(x == y, jnp.asarray(0.5, x.dtype), jnp.asarray(1.0, x.dtype))
        none = jnp.zeros_like(tied)
        return chosen(x, y), tx * jnp.where(lost(x, y), none, tied) + ty * jnp.where(lost(y, x), none, tied)

    def apply(x1: Any, x2: Any, /) -> Any:
        x1, x2 = _alike(x1, x2)
        return chosen(x1, x2) if _floating(x1) else function(x1, x2)

    return apply


maximum = _extremum(ops.maximum, jnp.less)
minimum = _extremum(ops.minimum, jnp.greater)


def clip(x: Any, /, min: Any = None, max: Any = None) -> Any:
    """At a bound, half of the gradient goes through."""
    if not _floating(x):
        return ops.clip(x, min, max)
    dtype = x.dtype
    if min is not None:
        x = maximum(x, jnp.asarray(min, dtype))
    return x if max is None else minimum(x, jnp.asarray(max, dtype))


@jax.custom_jvp
def _pow(x: Any, y: Any) -> Any:
    return jnp.pow(x, y)


@_pow.defjvp
def _pow_slope(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
    (x, y), (tx, ty) = primals, tangents
    power, one = _pow(x, y), jnp.ones_like(x)
    by_base = jnp.where(y == 0, jnp.zeros_like(x), y * _pow(x, jnp.where(y == 0, one, y - one)))
    by_exponent = power * jnp.log(jnp.where(x == 0, one, x))
    return power, tx * by_base + ty * by_exponent


def pow(x1: Any, x2: Any, /) -> Any:
    """Return ``x1`` to the power of ``x2``, with finite slopes at 0.

    The slope by the base is 0 where the exponent is 0; that by the exponent has 0·log 0 = 0.
    """
    if not hasattr(x2, "dtype"):
        return ops.pow(x1 if x2 else jax.lax.stop_gradient(x1), x2)
    x1, x2 = _alike(x1, x2)
    return _pow(x1, x2) if _floating(x1) else ops.pow(x1, x2)


xp: Any = SimpleNamespace(
    **vars(ops) | {"abs": abs, "maximum": maximum, "minimum": minimum, "clip": clip, "pow": pow}
)
"""The operations of a loss."""
