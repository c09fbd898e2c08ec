"""Loss, gradients and update as one XLA computation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from polyopt.backend import LossFunction, Update, WholeStep
from polyopt.errors import InputError
from polyopt_jax import ops
from polyopt_jax.fence import Fenced
from polyopt_jax.grad import check

_UNSIGNED = {"float32": jnp.uint32, "float64": jnp.uint64}


def whole(loss: LossFunction, update: Update) -> WholeStep:
    """The arrays that are given up are donated: their memory becomes the result's.

    Large leaves do not go through :mod:`polyopt_jax.native` here: its gradients would have to be in memory,
    where XLA computes a cheap one as it is needed.
    """

    @partial(jax.jit, donate_argnums=(0,))
    def run(arrays: Any, vectors: Any, args: Any) -> tuple[Any, Any]:
        params = arrays["params"]
        check(params)
        value, gradients = jax.value_and_grad(lambda p: _scalar(loss(ops, p, *args)))(params)
        kind, vector = next(iter(vectors.items()))
        zero = lax.bitcast_convert_type(vector[-1], _UNSIGNED[kind])
        # The zero waits for the loss, and all of the update for the zero: else XLA copies every parameter
        # that it is about to overwrite, because the loss could still have to be computed from it.
        known = lax.bitcast_convert_type(value.astype(kind), _UNSIGNED[kind])
        xp = Fenced(lax.bitwise_or(zero, lax.bitwise_and(known, zero)))
        rounded = jax.tree.map(lambda g: xp.astype(g, g.dtype), gradients)
        return value, update(xp, arrays, rounded, vectors)

    compiled: Callable[..., tuple[Any, Any]] = run
    return compiled


def _scalar(value: Any) -> Any:
    if jnp.shape(value) != ():
        raise InputError(f"the loss has shape {tuple(jnp.shape(value))}; expected a 0-d array")
    return value
