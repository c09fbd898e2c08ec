"""Keras 3 as a peer, on the one framework that ``KERAS_BACKEND`` gives it in this process."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from polyopt_bench.algorithms import ANNEALED, LR, MAX_NORM, Algorithm
from polyopt_bench.contender import Step
from polyopt_bench.sets import Arrays, Shapes, arrays


def load(backend: str) -> None:
    """Import Keras on ``backend``."""
    os.environ["KERAS_BACKEND"] = backend
    import keras

    if keras.backend.backend() != backend:
        raise RuntimeError(f"Keras runs on {keras.backend.backend()} in this process; expected {backend}")


def optimizer(way: Algorithm) -> Any:
    """Keras' own, as a user would make it."""
    import keras

    assert way.keras is not None
    name, settings = way.keras
    clip = {"global_clipnorm": MAX_NORM} if way.clips else {}
    rate = keras.optimizers.schedules.CosineDecay(LR, ANNEALED) if way.anneals else LR
    return getattr(keras.optimizers, name)(rate, **settings, **clip)


def variables(host: Arrays) -> dict[str, Any]:
    """Keras variables."""
    import keras

    return {name: keras.Variable(x, name=name.replace(".", "_")) for name, x in host.items()}


def tensorflow_step(of: Shapes, way: Algorithm) -> Step:
    """Return ``apply`` inside a ``tf.function``."""
    import tensorflow as tf

    params = list(variables(arrays(of, 0)).values())
    grads = [tf.constant(g) for g in arrays(of, 1).values()]
    keras = optimizer(way)
    keras.build(params)

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def advance() -> None:
        keras.apply(grads, params)

    def step() -> None:
        advance()

    return step


def jax_step(of: Shapes, way: Algorithm) -> Step:
    """Return ``stateless_apply``, jitted and donated."""
    import jax
    import jax.numpy as jnp

    keras = optimizer(way)
    owned = list(variables(arrays(of, 0)).values())
    keras.build(owned)
    params = [v.value for v in owned]
    state = [v.value for v in keras.variables]
    grads = [jnp.array(g) for g in arrays(of, 1).values()]

    @partial(jax.jit, donate_argnums=(0, 2))
    def advance(state: Any, grads: Any, params: Any) -> Any:
        return keras.stateless_apply(state, grads, params)

    def step() -> None:
        nonlocal params, state
        params, state = advance(state, grads, params)
        jax.block_until_ready(params)  # type: ignore[no-untyped-call]

    return step


def torch_step(of: Shapes, way: Algorithm) -> Step:
    """Return ``apply`` without gradients recorded."""
    import torch

    params = list(variables(arrays(of, 0)).values())
    grads = [torch.from_numpy(g) for g in arrays(of, 1).values()]
    keras = optimizer(way)
    keras.build(params)

    def step() -> None:
        with torch.no_grad():
            keras.apply(grads, params)

    return step
