"""Gradients of a loss that is written once."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from polyopt.backend import registry
from polyopt.backend.protocol import Backend, LossFunction
from polyopt.core import tree
from polyopt.core.ops import Array


def value_and_grad(
    loss: LossFunction, *, compiled: bool = True, pure: bool = False
) -> Callable[..., tuple[Array, Any]]:
    """``f(params, *args) -> (loss, gradients)`` on whatever framework ``params`` are of.

    Parameters
    ----------
    loss
        ``loss(xp, params, *args)``, a 0-d array, computed with ``xp``'s operations and operators.
    compiled
        Compile it where the framework compiles (JAX, TensorFlow).
    pure
        Promise that the loss depends on its arguments alone, not on a variable or random state that changes
        between calls. NumPy then records its calls once for each set of shapes and replays them, with the
        same bits in a fraction of the time (see ``docs/speed.md``); ``TrainStep`` always promises it.

    Examples
    --------
    >>> import numpy as np
    >>> f = value_and_grad(lambda xp, params, x: xp.sum(params["w"] * x))
    >>> value, grads = f({"w": np.array([1.0, 2.0])}, np.array([3.0, 4.0]))
    >>> float(value), grads["w"].tolist()
    (11.0, [3.0, 4.0])
    """

    @lru_cache(maxsize=8)
    def on(backend: Backend) -> Callable[..., tuple[Array, Any]]:
        return gradient_on(backend, loss, compiled=compiled, pure=pure)

    def run(params: Any, *args: Any) -> tuple[Array, Any]:
        leaves = (x for x in tree.flatten(params).leaves if x is not None)
        return on(registry.of(*leaves))(params, *args)

    return run


def gradient_on(
    backend: Backend, loss: LossFunction, *, compiled: bool, pure: bool
) -> Callable[..., tuple[Array, Any]]:
    """Differentiate ``loss``; a pure one by the backend's ``pure_gradient``, where it has one."""
    own = getattr(backend, "pure_gradient", None) if compiled and pure else None
    made: Callable[..., tuple[Array, Any]]
    made = backend.value_and_grad(loss, compiled=compiled) if own is None else own(loss)
    return made
