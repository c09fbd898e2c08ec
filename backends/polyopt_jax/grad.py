"""Gradients on JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from polyopt.backend.gradients import check_loss
from polyopt.backend.protocol import LossFunction
from polyopt.core import tree
from polyopt.core.errors import InputError
from polyopt_jax.differentiable import xp


def value_and_grad(loss: LossFunction, compiled: bool) -> Callable[..., tuple[Any, Any]]:
    """Return ``f(params, *args) -> (loss, gradients)``; compiled, once for each set of shapes and dtypes."""

    def run(params: Any, *args: Any) -> tuple[Any, Any]:
        check(params)
        return jax.value_and_grad(lambda p: check_loss(loss(xp, p, *args), jax.Array))(params)

    return jax.jit(run) if compiled else run


def check(params: Any) -> None:
    """Refuse parameters that are not floating-point, by path."""
    for path, leaf in tree.named(params).items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise InputError(
                f"parameter {path!r} has dtype {leaf.dtype.name}; expected a floating one: "
                "it can't be differentiated by (pass it among the other arguments)"
            )
