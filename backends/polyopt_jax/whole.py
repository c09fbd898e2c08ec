"""Loss, gradients and update as one XLA computation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from polyopt.backend import LossFunction, Update, WholeStep
from polyopt.errors import InputError
from polyopt.trace import Program
from polyopt_jax import native, ops
from polyopt_jax.fence import Fenced
from polyopt_jax.grad import check

_UNSIGNED = {"float32": jnp.uint32, "float64": jnp.uint64}


def whole(loss: LossFunction, update: Update) -> WholeStep:
    """The arrays that are given up are donated: their memory becomes the result's."""

    @partial(jax.jit, donate_argnums=(0,))
    def run(arrays: Any, vectors: Any, args: Any) -> tuple[Any, Any]:
        params = arrays["params"]
        check(params)
        value, gradients = jax.value_and_grad(lambda p: _scalar(loss(ops, p, *args)))(params)
        kind, vector = next(iter(vectors.items()))
        xp = _InPlace(lax.bitcast_convert_type(vector[-1], _UNSIGNED[kind]), value)
        rounded = jax.tree.map(lambda g: xp.astype(g, g.dtype), gradients)
        return value, update(xp, arrays, rounded, vectors)

    compiled: Callable[..., tuple[Any, Any]] = run
    return compiled


class _InPlace(Fenced):
    """The exact operations, and programs over large leaves in place, once the loss is known."""

    def __init__(self, zero: Any, loss: Any) -> None:
        super().__init__(zero)
        self._loss = loss

    def run_program(
        self, program: Program, arrays: Mapping[str, Any], values: Mapping[str, Any], dtype: str
    ) -> dict[str, Any] | None:
        if not native.runs(program, arrays):
            return None
        return native.run(program, arrays, values, dtype, in_place=True, after=(self._loss,))


def _scalar(value: Any) -> Any:
    if jnp.shape(value) != ():
        raise InputError(f"the loss has shape {tuple(jnp.shape(value))}; expected a 0-d array")
    return value
