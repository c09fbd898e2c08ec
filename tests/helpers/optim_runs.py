"""Runs of a rule and of a framework's own optimizer over the same gradients, for the tests of parity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyopt import Optimizer
from polyopt.core.rule import Stage
from polyopt.schedules import Schedule
from polyopt.testing import assert_close

SHAPES = {"a": (7,), "b": (3, 4), "c": (2, 3, 2, 2)}
STEPS = 70
CHANGE = 33
"""The number of updates after which the rate changes: a constant rate hides half of the differences."""


@dataclass(frozen=True)
class Switch(Schedule):
    """``first`` for the first ``CHANGE`` updates, then ``then``."""

    first: float
    then: float

    def value(self, xp: Any, t: Any) -> Any:
        return xp.where(t < CHANGE, self.first, self.then)


def parameters(seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {name: random.normal(size=shape) for name, shape in SHAPES.items()}


def gradients(steps: int = STEPS, seed: int = 1) -> list[dict[str, Any]]:
    """Gradients of several magnitudes; ``a`` has zeros at first and now and then."""
    random = np.random.default_rng(seed)
    found = []
    for i in range(steps):
        g = {n: random.normal(size=s) * 10.0 ** random.integers(-3, 2) for n, s in SHAPES.items()}
        if i % 11 == 0:
            g["a"] = np.zeros_like(g["a"])
        g["b"][0, 0] = 0.0
        found.append(g)
    return found


def ours(rule: Stage, steps: int = STEPS) -> dict[str, Any]:
    """The parameters after ``steps`` updates on NumPy, op by op.

    A kernel takes a second to compile, and there are hundreds of settings. That it has the bits of this is
    what ``test_bits`` and the conformance kit are about.
    """
    optimizer = Optimizer(rule, compiled=False)
    params = parameters()
    state = optimizer.init(params)
    for g in gradients(steps):
        params, state = optimizer.step(params, g, state)
    return params


def check(rule: Stage, peer: Callable[[], dict[str, Any]], tolerance: float, because: str) -> None:
    """The rule and its peer end at the same parameters, relative to the largest of each leaf."""
    expected = peer()
    for name, value in ours(rule).items():
        scale = float(np.abs(expected[name]).max())
        assert_close(value, expected[name], atol=tolerance * scale, because=because)


def torch_run(make: Callable[[Sequence[Any]], Any], rates: Switch) -> dict[str, Any]:
    """``make(parameters)`` is a ``torch.optim`` optimizer."""
    import torch

    params = {n: torch.tensor(x, requires_grad=True) for n, x in parameters().items()}
    optimizer = make(list(params.values()))
    for i, g in enumerate(gradients()):
        for group in optimizer.param_groups:
            group["lr"] = rates(i)
        for n, p in params.items():
            p.grad = torch.tensor(g[n])
        optimizer.step()
    return {n: p.detach().numpy() for n, p in params.items()}


def optax_run(make: Callable[[Any], Any], rates: Switch) -> dict[str, Any]:
    """``make(schedule)`` is an optax transformation."""
    import jax
    import jax.numpy as jnp
    import optax

    with jax.enable_x64(True):
        transformation = make(lambda count: jnp.where(count < CHANGE, rates.first, rates.then))
        params = {n: jnp.asarray(x) for n, x in parameters().items()}
        state = transformation.init(params)

        @jax.jit
        def step(params: Any, g: Any, state: Any) -> Any:
            updates, state = transformation.update(g, state, params)
            return optax.apply_updates(params, updates), state

        for g in gradients():
            params, state = step(params, {n: jnp.asarray(x) for n, x in g.items()}, state)
        return {n: np.asarray(p) for n, p in params.items()}


def keras_run(make: Callable[[float], Any], rates: Switch) -> dict[str, Any]:
    """``make(rate)`` is a Keras optimizer, on its TensorFlow backend."""
    import keras
    import tensorflow as tf

    optimizer = make(rates.first)
    params = {n: keras.Variable(x, dtype="float64", name=n) for n, x in parameters().items()}
    variables = list(params.values())
    for i, g in enumerate(gradients()):
        optimizer.learning_rate = rates(i)
        optimizer.apply([tf.constant(g[n]) for n in params], variables)
    return {n: np.asarray(p.value) for n, p in params.items()}
