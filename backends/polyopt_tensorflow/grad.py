"""Gradients on TensorFlow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from polyopt.backend.gradients import check_loss
from polyopt.backend.protocol import LossFunction
from polyopt.core import tree
from polyopt.core.errors import InputError
from polyopt_tensorflow.compiling import Trees, tensors
from polyopt_tensorflow.differentiable import xp


def value_and_grad(
    loss: LossFunction, compiled: bool, *, by_xla: bool = False
) -> Callable[..., tuple[Any, Any]]:
    """Return ``f(params, *args) -> (loss, gradients)``; a parameter that the loss does not use gets zeros."""

    def run(params: Any, *args: Any) -> tuple[Any, list[Any]]:
        flat = tree.flatten(params)
        leaves = tensors(flat.leaves)
        present = [x for x in leaves if x is not None]
        check(flat.paths, leaves)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(present)
            value = check_loss(loss(xp, flat.unflatten(leaves), *args), (tf.Tensor, tf.Variable))
        found = tape.gradient(value, present, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        # The gradient of a gather is IndexedSlices: made dense, repeated rows are added.
        return value, [tf.convert_to_tensor(x) for x in found]

    traced = Trees(run, jit_compile=by_xla) if compiled else run

    def call(params: Any, *args: Any) -> tuple[Any, Any]:
        value, found = traced(params, *args)
        flat = tree.flatten(params)
        gradients = iter(found)
        return value, flat.unflatten(None if x is None else next(gradients) for x in flat.leaves)

    return call


def check(paths: tuple[str, ...], leaves: list[Any]) -> None:
    """Refuse parameters that are not floating-point, by path."""
    for path, x in zip(paths, leaves, strict=True):
        if x is not None and not x.dtype.is_floating:
            raise InputError(
                f"parameter {path!r} has dtype {x.dtype.name}; expected a floating one: "
                "it can't be differentiated by (pass it among the other arguments)"
            )
