"""Loss, gradients and update as one XLA computation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from polyopt.backend.gradients import check_loss
from polyopt.backend.protocol import LossFunction, Update, WholeStep
from polyopt_jax import differentiable
from polyopt_jax.fence import Fenced
from polyopt_jax.grad import check

_UNSIGNED = {"float32": jnp.uint32, "float64": jnp.uint64}


def whole(loss: LossFunction, update: Update) -> WholeStep:
    """Donate the arrays that are given up: their memory becomes the result's."""

    @partial(jax.jit, donate_argnums=(0,))
    def run(arrays: Any, vectors: Any, args: Any) -> tuple[Any, Any]:
        params = arrays["params"]
        check(params)

        def checked(p: Any) -> Any:
            return check_loss(loss(differentiable.xp, p, *args), jax.Array)

        value, gradients = jax.value_and_grad(checked)(params)
        kind, vector = next(iter(vectors.items()))
        zero = lax.bitcast_convert_type(vector[-1], _UNSIGNED[kind])
        if not _factors_alone(loss, params, args):
            # The zero waits for the loss, and all of the update for the zero: else XLA copies every
            # parameter that it is about to overwrite, because the loss could still have to be computed
            # from it. Where matrices are multiplied it has an order without that, and waiting costs time.
            known = lax.bitcast_convert_type(value.astype(kind), _UNSIGNED[kind])
            zero = lax.bitwise_or(zero, lax.bitwise_and(known, zero))
        xp = Fenced(zero)
        rounded = jax.tree.map(lambda g: xp.astype(g, g.dtype), gradients)
        return value, update(xp, arrays, rounded, vectors)

    compiled: Callable[..., tuple[Any, Any]] = run
    return compiled


LARGE = 1 << 15
"""Elements from which on a parameter's copy would be noticed."""
_PRODUCTS = frozenset(("dot_general", "conv_general_dilated"))
_VIEWS = frozenset(("transpose", "reshape", "convert_element_type", "copy"))


def _factors_alone(loss: LossFunction, params: Any, args: Any) -> bool:
    """Return True if the loss uses large parameters in matrix products and convolutions alone."""
    traced = jax.make_jaxpr(lambda p, a: loss(differentiable.xp, p, *a))(params, args).jaxpr
    own = traced.invars[: len(jax.tree.leaves(params))]
    return _multiplied(traced, {id(x) for x in own if x.aval.size >= LARGE})


def _multiplied(traced: Any, large: set[int]) -> bool:
    for equation in traced.eqns:
        used = [i for i, x in enumerate(equation.invars) if id(x) in large]
        name, inner = equation.primitive.name, equation.params.get("jaxpr")
        if not used or name in _PRODUCTS:
            continue
        if name in _VIEWS:
            large |= {id(x) for x in equation.outvars}
        elif name in ("pjit", "jit", "custom_jvp_call") and inner is not None:
            inside = getattr(inner, "jaxpr", inner)
            if not _multiplied(inside, {id(inside.invars[i]) for i in used}):
                return False
        else:
            return False
    return True
