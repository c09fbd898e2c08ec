"""Averages of the weights against torch, optax and their definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from polyopt import EMA, SGD, Adam, Optimizer, PolyakAverage, averaged, chain, partition
from polyopt.backend.protocol import Backend
from polyopt.core.errors import InputError
from polyopt.schedules import Polynomial
from polyopt.testing import assert_close, assert_same_bits
from polyopt.testing.compare import host


def run(backend: Backend, stage: Any, steps: int = 20, dtype: str = "float64") -> Any:
    """The parameters after each update, and the average after the last."""
    rng = np.random.default_rng(0)
    opt = Optimizer(chain(SGD(lr=0.1), stage))
    params = {"w": backend.from_numpy(rng.normal(size=(2, 3)), dtype=dtype)}
    state = opt.init(params)
    track = [np.array(host(params["w"])).astype(np.float64)]
    for _ in range(steps):
        g = {"w": backend.from_numpy(rng.normal(size=(2, 3)), dtype=dtype)}
        params, state = opt.step(params, g, state)
        track.append(np.array(host(params["w"])).astype(np.float64))
    return track, averaged(state, params)["w"], params


def test_torchs_ema(backend: Backend) -> None:
    import torch

    track, ours, _ = run(backend, EMA(0.9))
    model = torch.nn.Linear(3, 2, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(track[0]))
        peer = torch.optim.swa_utils.AveragedModel(
            model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
        )
        # Its first call only copies; the average starts at the initial parameters.
        peer.update_parameters(model)
        for p in track[1:]:
            model.weight.copy_(torch.from_numpy(p))
            peer.update_parameters(model)
    assert_close(ours, peer.module.weight.detach().numpy(), rtol=1e-13, because="lerp in float64")


def test_torchs_mean(backend: Backend) -> None:
    import torch

    track, ours, _ = run(backend, PolyakAverage())
    assert_close(ours, np.mean(track[1:], axis=0), rtol=1e-12, because="a running mean of 20")
    model = torch.nn.Linear(3, 2, bias=False, dtype=torch.float64)
    peer = torch.optim.swa_utils.AveragedModel(model)
    with torch.no_grad():
        for p in track[1:]:
            model.weight.copy_(torch.from_numpy(p))
            peer.update_parameters(model)
    assert_close(ours, peer.module.weight.detach().numpy(), rtol=1e-13, because="the same recurrence")


def test_a_mean_that_starts_later(backend: Backend) -> None:
    track, ours, _ = run(backend, PolyakAverage(start=15))
    assert_close(ours, np.mean(track[16:], axis=0), rtol=1e-12, because="a running mean of 5")
    track, ours, params = run(backend, PolyakAverage(start=20))
    assert_close(ours, host(params["w"]), rtol=1e-12, because="not started: the parameters")


def test_optax_debiased(backend: Backend) -> None:
    import jax
    import jax.numpy as jnp
    import optax

    track, ours, _ = run(backend, EMA(0.9, debias=True), steps=7)
    peer = optax.ema(0.9, debias=True)
    with jax.numpy_dtype_promotion("standard"):
        state = peer.init(jnp.zeros((2, 3), jnp.float32))
        for p in track[1:]:
            expected, state = peer.update(jnp.asarray(p, jnp.float32), state)
    assert_close(ours, np.asarray(expected), rtol=2e-5, atol=1e-6, because="optax in float32")


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("debias", [False, True])
def test_a_scheduled_decay(backend: Backend, warmup: bool, debias: bool) -> None:
    decay = Polynomial(0.99, 10, end=0.5)
    track, ours, _ = run(backend, EMA(decay, debias=debias, warmup=warmup))
    average, weight = np.zeros_like(track[0]) if debias else track[0], 1.0
    for t, p in enumerate(track[1:]):
        d = min(decay(t), (2 + t) / (11 + t)) if warmup else decay(t)
        average, weight = d * average + (1 - d) * p, weight * d
    expected = average / (1 - weight) if debias else average
    assert_close(ours, expected, rtol=1e-13, atol=1e-15, because="20 steps in float64")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtypes(backend: Backend, dtype: str) -> None:
    track, ours, _ = run(backend, EMA(0.5), dtype=dtype)
    assert backend.dtype_name(ours) == dtype
    assert_close(ours, track[-1], atol=0.5, because="near the last weights")


@pytest.mark.parametrize("stage", [EMA(0.9), EMA(0.9, debias=True), PolyakAverage()])
def test_it_does_not_change_the_training(stage: Any) -> None:
    results = []
    for rule in (Adam(lr=0.1), chain(Adam(lr=0.1), stage)):
        opt = Optimizer(rule)
        params = {"w": np.ones(3, np.float32)}
        state = opt.init(params)
        for t in range(5):
            params, state = opt.step(params, {"w": np.float32([t, 1.0, -2.0])}, state)
        results.append(params["w"])
    assert_same_bits(results[1], results[0])


def test_before_the_first_step_and_frozen_leaves() -> None:
    opt = Optimizer(partition({"b": None, "w": chain(SGD(lr=1.0), EMA(0.9, debias=True))}))
    params = {"w": np.ones(2), "b": np.ones(1)}
    state = opt.init(params)
    first = averaged(state, params)
    assert_same_bits(first["w"], params["w"])
    params, state = opt.step(params, {"w": np.ones(2), "b": None}, state)
    later = averaged(state, params)
    assert later["b"] is params["b"]
    assert_close(later["w"], [0.0, 0.0], because="the only weights so far")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EMA(1.0), "EMA: decay = 1.0"),
        (lambda: PolyakAverage(start=-1), "start = -1"),
        (lambda: averaged(Optimizer(SGD(lr=1.0)).init([np.ones(1)]), [np.ones(1)]), "0 averages"),
        (lambda: averaged(Optimizer(chain(EMA(), EMA())).init([np.ones(1)]), [np.ones(1)]), "2 averages"),
    ],
)
def test_errors(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
