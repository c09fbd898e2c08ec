"""Schedules against torch, optax, Keras and closed forms; their range, joints, clocks and errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyopt import SGD, Adam, Optimizer
from polyopt.backend.protocol import Backend
from polyopt.core.errors import InputError
from polyopt.engine.lift import TracedScalars
from polyopt.schedules import (
    SCHEDULES,
    Constant,
    Cosine,
    Exponential,
    InverseTime,
    Joined,
    MultiStep,
    OneCycle,
    Piecewise,
    Plateau,
    Polynomial,
    Schedule,
    Step,
    WarmRestarts,
    Warmup,
    WarmupCosine,
    WarmupStableDecay,
)
from polyopt.testing import assert_close
from polyopt.testing.compare import host

STEPS = 400


def ours(schedule: Schedule, steps: int = STEPS) -> list[float]:
    return [schedule(t) for t in range(steps)]


def torch_values(make: Callable[[Any], Any], lr: float = 0.1, steps: int = STEPS) -> list[float]:
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = make(optimizer)
    values = []
    for _ in range(steps):
        values.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return values


def torch_lr(name: str, **options: Any) -> Callable[[Any], Any]:
    import torch

    return lambda optimizer: getattr(torch.optim.lr_scheduler, name)(optimizer, **options)


TORCH = {
    "exponential": (Exponential(0.1, rate=0.97), "ExponentialLR", {"gamma": 0.97}),
    "step": (Step(0.1, steps=30, rate=0.5), "StepLR", {"step_size": 30, "gamma": 0.5}),
    "multi_step": (
        MultiStep(0.1, milestones=[7, 50, 50, 120], rate=0.3),
        "MultiStepLR",
        {"milestones": [7, 50, 50, 120], "gamma": 0.3},
    ),
    "polynomial": (Polynomial(0.1, 150, power=2.5), "PolynomialLR", {"total_iters": 150, "power": 2.5}),
    "cosine": (
        Cosine(0.1, 70, end=0.01, after="cycle"),
        "CosineAnnealingLR",
        {"T_max": 70, "eta_min": 0.01},
    ),
    "restarts": (WarmRestarts(0.1, 60), "CosineAnnealingWarmRestarts", {"T_0": 60}),
    "restarts grow": (
        WarmRestarts(0.1, 10, factor=2, end=0.02),
        "CosineAnnealingWarmRestarts",
        {"T_0": 10, "T_mult": 2, "eta_min": 0.02},
    ),
    "restarts by 3": (
        WarmRestarts(0.1, 7, factor=3),
        "CosineAnnealingWarmRestarts",
        {"T_0": 7, "T_mult": 3},
    ),
}


@pytest.mark.parametrize("name", TORCH)
def test_torch(name: str) -> None:
    schedule, peer, options = TORCH[name]
    assert_close(
        ours(schedule),
        torch_values(torch_lr(peer, **options)),
        rtol=2e-12,
        atol=1e-15,
        because="torch multiplies its previous value on, one rounding a step over 400 steps",
    )


@pytest.mark.parametrize("shape", ["cosine", "linear"])
@pytest.mark.parametrize("phases", [2, 3])
@pytest.mark.parametrize("pct_start", [0.3, 0.25, 0.17])
def test_torch_one_cycle(shape: str, phases: int, pct_start: float) -> None:
    schedule = OneCycle(0.5, 300, pct_start=pct_start, shape=shape, phases=phases)
    peer = torch_lr(
        "OneCycleLR",
        max_lr=0.5,
        total_steps=300,
        pct_start=pct_start,
        anneal_strategy="cos" if shape == "cosine" else "linear",
        three_phase=phases == 3,
        cycle_momentum=False,
    )
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = peer(optimizer)
    theirs = [optimizer.param_groups[0]["lr"]]
    for _ in range(299):
        optimizer.step()
        scheduler.step()
        theirs.append(optimizer.param_groups[0]["lr"])
    assert_close(ours(schedule, 300), theirs, rtol=1e-12, atol=1e-14, because="the same formula in doubles")
    assert schedule(1000) == schedule(299)


def test_torch_warmup_then_cosine() -> None:
    import torch

    def make(optimizer: Any) -> Any:
        lr = torch.optim.lr_scheduler
        return lr.ChainedScheduler(
            [
                lr.LinearLR(optimizer, start_factor=0.1, total_iters=20),
                lr.ExponentialLR(optimizer, gamma=0.99),
            ]
        )

    schedule = Warmup(Exponential(0.1, rate=0.99), steps=20, initial=0.1, clock="shared")
    assert_close(
        ours(schedule), torch_values(make), rtol=2e-12, because="torch multiplies its previous value on"
    )


OPTAX: dict[str, tuple[Schedule, Callable[[Any], Any]]] = {
    "constant": (Constant(0.3), lambda o: o.constant_schedule(0.3)),
    "exponential": (Exponential(0.1, rate=0.5, steps=50), lambda o: o.exponential_decay(0.1, 50, 0.5)),
    "staircase": (
        Exponential(0.1, rate=0.5, steps=50, staircase=True, end=0.01),
        lambda o: o.exponential_decay(0.1, 50, 0.5, staircase=True, end_value=0.01),
    ),
    "growing": (
        Exponential(0.1, rate=1.5, steps=50, end=0.4),
        lambda o: o.exponential_decay(0.1, 50, 1.5, end_value=0.4),
    ),
    "polynomial": (
        Polynomial(0.1, 200, power=3.0, end=0.02),
        lambda o: o.polynomial_schedule(0.1, 0.02, 3.0, 200),
    ),
    "cosine": (
        Cosine(0.1, 150, alpha=0.1, exponent=2.0),
        lambda o: o.cosine_decay_schedule(0.1, 150, alpha=0.1, exponent=2.0),
    ),
    "one cycle": (OneCycle(0.1, 300, convention="optax"), lambda o: o.cosine_onecycle_schedule(300, 0.1)),
    "one cycle, linear": (
        OneCycle(0.1, 300, shape="linear", phases=3, convention="optax"),
        lambda o: o.linear_onecycle_schedule(300, 0.1),
    ),
    "piecewise": (
        Piecewise([1.0, 0.5, 0.05], [30, 200]),
        lambda o: o.piecewise_constant_schedule(1.0, {30: 0.5, 200: 0.1}),
    ),
    "piecewise, linear": (
        Piecewise([1.0, 0.5, 0.05], [30, 200], shape="linear"),
        lambda o: o.piecewise_interpolate_schedule("linear", 1.0, {30: 0.5, 200: 0.1}),
    ),
    "warm-up cosine": (
        WarmupCosine(0.1, steps=200, warmup=40, initial=0.01, end=0.001),
        lambda o: o.warmup_cosine_decay_schedule(0.01, 0.1, 40, 200, 0.001),
    ),
    "joined": (
        Joined([Polynomial(0.0, 10, end=1.0), Exponential(1.0, 0.9), Constant(0.5)], [10, 90]),
        lambda o: o.join_schedules(
            [o.linear_schedule(0.0, 1.0, 10), o.exponential_decay(1.0, 1, 0.9), o.constant_schedule(0.5)],
            [10, 90],
        ),
    ),
}


@pytest.mark.parametrize("name", OPTAX)
def test_optax(name: str) -> None:
    import jax
    import jax.numpy as jnp
    import optax

    schedule, make = OPTAX[name]
    with jax.numpy_dtype_promotion("standard"):
        theirs = np.asarray(jax.vmap(make(optax))(jnp.arange(STEPS))).astype(np.float64)
    assert_close(
        ours(schedule),
        np.broadcast_to(theirs, (STEPS,)),
        rtol=3e-6,
        atol=3e-8,
        because="optax computes in float32, the cosine's 1 + cos cancelling there",
    )


KERAS: dict[str, tuple[Schedule, Callable[[Any], Any]]] = {
    "exponential": (Exponential(0.1, rate=0.5, steps=50), lambda k: k.ExponentialDecay(0.1, 50, 0.5)),
    "staircase": (
        Exponential(0.1, rate=0.5, steps=50, staircase=True),
        lambda k: k.ExponentialDecay(0.1, 50, 0.5, staircase=True),
    ),
    "inverse time": (InverseTime(0.1, rate=0.5, steps=10), lambda k: k.InverseTimeDecay(0.1, 10, 0.5)),
    "inverse time, staircase": (
        InverseTime(0.1, rate=0.5, steps=10, staircase=True),
        lambda k: k.InverseTimeDecay(0.1, 10, 0.5, staircase=True),
    ),
    "polynomial": (
        Polynomial(0.1, 200, power=0.5, end=0.001),
        lambda k: k.PolynomialDecay(0.1, 200, 0.001, power=0.5),
    ),
    "piecewise": (
        Piecewise([1.0, 0.5, 0.05], [30, 200], convention="keras"),
        lambda k: k.PiecewiseConstantDecay([30, 200], [1.0, 0.5, 0.05]),
    ),
    "cosine": (Cosine(0.1, 150, alpha=0.2), lambda k: k.CosineDecay(0.1, 150, alpha=0.2)),
    "warm-up cosine": (
        WarmupCosine(0.1, steps=200, warmup=40, initial=0.01, end=0.001, convention="keras"),
        lambda k: k.CosineDecay(0.01, 200, alpha=0.01, warmup_target=0.1, warmup_steps=40),
    ),
    # Keras finds a restart by a float32 logarithm, which misses some by a step; factor 1 it gets right.
    "restarts": (
        WarmRestarts(0.1, 64, end=0.02, peak_factor=0.75),
        lambda k: k.CosineDecayRestarts(0.1, 64, t_mul=1.0, m_mul=0.75, alpha=0.2),
    ),
}


@pytest.mark.parametrize("name", KERAS)
def test_keras(name: str) -> None:
    import keras

    schedule, make = KERAS[name]
    peer = make(keras.optimizers.schedules)
    steps = range(0, STEPS, 5)
    expected = [float(np.asarray(peer(t))) for t in steps]
    assert_close(
        [schedule(t) for t in steps], expected, rtol=1e-5, atol=1e-7, because="Keras computes in float32"
    )


# Closed forms, clocks and edges


@pytest.mark.parametrize("schedule", [Cosine(0.3, 10), Polynomial(0.3, 10), WarmRestarts(0.3, 10)])
def test_starts_exactly(schedule: Schedule) -> None:
    assert schedule(0) == 0.3


@pytest.mark.parametrize("t", [2**24 + 1, 2**31, 2**31 + 7])
def test_large_steps_are_exact(t: int) -> None:
    assert Step(1.0, steps=2**20, rate=0.999)(t) == math.pow(0.999, t // 2**20)
    assert InverseTime(1.0, rate=1.0)(t) == 1.0 / (1.0 + t)
    assert MultiStep(1.0, [t], rate=0.5)(t) == 0.5
    assert MultiStep(1.0, [t], rate=0.5)(t - 1) == 1.0
    assert Polynomial(1.0, 2 * t)(t) == 0.5
    cycle = Cosine(1.0, 1000, after="cycle")
    assert cycle(t) == cycle(t % 2000)
    restarts = WarmRestarts(1.0, 1000)
    assert restarts(t) == restarts(t % 1000)
    assert Joined([Constant(1.0), Polynomial(1.0, 4)], [t])(t + 1) == 0.75


@pytest.mark.parametrize("factor", [2, 3, 5, 7, 10, 1.5])
@pytest.mark.parametrize("first", [1, 3, 10, 1000])
def test_restarts_at_their_very_step(factor: float, first: int) -> None:
    schedule = WarmRestarts(1.0, first, factor=factor)
    start, length = 0.0, float(first)
    while start + length < 2**40:
        if start == int(start):
            t = int(start)
            assert schedule(t) == 1.0, f"the cycle from step {t} on does not begin there"
            if length > factor and t > 0:
                assert schedule(t - 1) < 1.0
        start, length = start + length, length * factor


def test_ends() -> None:
    assert Polynomial(1.0, 10, end=0.25)(11) == 0.25
    assert Cosine(1.0, 10, end=0.25)(10) == 0.25
    assert WarmupStableDecay(1.0, 3, 4, 0, end=0.5)(7) == 0.5
    assert WarmupStableDecay(1.0, 0, 4, 4, shape="sqrt")(5) == 0.5
    assert Warmup(Constant(2.0), steps=0)(0) == 2.0
    assert Piecewise([1.0, 2.0, 3.0], [5, 5], shape="linear")(5) == 3.0
    assert OneCycle(1.0, 2, pct_start=0.0)(0) < 1.0


@settings(deadline=None, max_examples=60)
@given(
    high=st.floats(1e-6, 1e3),
    low=st.floats(0.0, 1.0),
    steps=st.integers(1, 200),
    power=st.floats(0.1, 5.0),
)
def test_decays_fall_and_stay_in_range(high: float, low: float, steps: int, power: float) -> None:
    end = high * low
    for schedule in (
        Cosine(high, steps, end=end),
        Polynomial(high, steps, power=power, end=end),
        Exponential(high, rate=0.9, steps=steps, end=end),
        InverseTime(high, rate=power, steps=steps),
        WarmupStableDecay(high, 0, steps, steps, end=end, shape="cosine"),
    ):
        values = np.array(ours(schedule, steps + 20))
        slack = 4e-16 * high
        assert (np.diff(values) <= slack).all(), f"{schedule} rises"
        floor = 0.0 if isinstance(schedule, InverseTime) else end
        assert values.max() <= high + slack
        assert values.min() >= floor - slack


@settings(deadline=None, max_examples=60)
@given(
    warmup=st.integers(0, 50), stable=st.integers(0, 50), decay=st.integers(1, 50), peak=st.floats(1e-6, 10)
)
def test_joints_are_continuous(warmup: int, stable: int, decay: int, peak: float) -> None:
    wsd = WarmupStableDecay(peak, warmup, stable, decay)
    assert wsd(warmup) == peak
    assert wsd(warmup + stable) == peak
    assert wsd(warmup + stable + decay) == 0.0
    warm = Warmup(Cosine(peak, decay), warmup)
    assert warm(warmup) == peak
    for schedule in (wsd, warm):
        steps = np.abs(np.diff(ours(schedule, 160)))
        fastest = peak * max(1 / max(warmup, 1), math.pi / 2 / decay)
        assert steps.max() <= fastest * (1 + 1e-9), "a jump"


# The metric's schedule


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
@pytest.mark.parametrize("cooldown", [0, 3])
def test_plateau_is_torchs(mode: str, threshold_mode: str, cooldown: int) -> None:
    import torch

    options = {"mode": mode, "factor": 0.5, "patience": 2, "threshold": 0.02, "cooldown": cooldown}
    schedule = Plateau(1.0, threshold_mode=threshold_mode, minimum=0.01, **options)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    peer = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, threshold_mode=threshold_mode, min_lr=0.01, **options
    )
    state = schedule.initial_state()
    metrics = np.cumsum(np.random.default_rng(3).normal(size=120) * 0.1) + 1.0
    worst = math.inf if mode == "min" else -math.inf
    metrics[:4] = [worst, math.nan, -1.0, math.nan]
    ours, theirs = [], []
    for metric in metrics:
        peer.step(float(metric))
        state = schedule.observe(state, float(metric))
        ours.append(schedule.current(state))
        theirs.append(optimizer.param_groups[0]["lr"])
    assert_close(ours, theirs, because="the same arithmetic")
    assert ours[-1] == 0.01
    assert all(math.isfinite(x) for x in state.values())


def test_plateau_needs_its_metric() -> None:
    with pytest.raises(TypeError, match="Plateau depends on a metric"):
        Plateau(1.0)(3)


# In an optimizer, for any hyperparameter


def test_any_hyperparameter_on_every_backend(backend: Backend) -> None:
    lr, b1, b2 = Cosine(0.1, 20), Polynomial(0.9, 10, end=0.5), Exponential(0.99, rate=0.99)
    opt = Optimizer(Adam(lr=lr, b1=b1, b2=b2))
    rng = np.random.default_rng(0)
    p = rng.normal(size=(5, 3))
    params = {"w": backend.from_numpy(p)}
    state = opt.init(params)
    m, v = np.zeros_like(p), np.zeros_like(p)
    left = [1.0, 1.0]  # what the averages lack of their full weight: the products of the betas
    for t in range(30):
        g = rng.normal(size=p.shape)
        params, state = opt.step(params, {"w": backend.from_numpy(g)}, state)
        m = b1(t) * m + (1 - b1(t)) * g
        v = b2(t) * v + (1 - b2(t)) * g**2
        left = [left[0] * b1(t), left[1] * b2(t)]
        m_hat, v_hat = m / (1 - left[0]), v / (1 - left[1])
        p = p - lr(t) * m_hat / (np.sqrt(v_hat) + 1e-8)
        assert opt.hyperparameters(state)["lr"] == lr(t + 1)
    assert_close(params["w"], p, rtol=1e-11, atol=1e-13, because="30 steps in float64, sums in another order")


def test_traced_steps(backend: Backend) -> None:
    """The same formulas on 0-d arrays: none branches on the step or calls what the framework lacks."""
    xp = TracedScalars(backend, "float64")
    for schedule in EXAMPLES:
        for t in (0, 1, 7, 10, 30, 70, 1000):
            traced = schedule.value(xp, backend.from_numpy(np.float64(t)))
            assert_close(
                host(traced) if backend.is_array(traced) else traced,
                schedule(t),
                rtol=1e-13,
                atol=1e-15,
                because=f"{schedule} at {t}: the framework's own pow, log and cos",
            )


EXAMPLES = [
    *(s for s, *_ in (*TORCH.values(), *OPTAX.values(), *KERAS.values())),
    OneCycle(1.0, 100, phases=3),
    WarmRestarts(1.0, 10, factor=1.5),
    WarmupStableDecay(1.0, 10, 20, 30, shape="sqrt"),
    Warmup(Exponential(0.1, rate=0.99), steps=20, initial=0.1, clock="shared"),
]


def test_every_schedule_has_a_recipe_name_and_an_example() -> None:
    tried = {type(s) for s in EXAMPLES} | {Plateau}
    assert set(SCHEDULES.values()) == tried


# Errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cosine(0.1, 0), r"Cosine: steps = 0; expected a finite number in \(0.0"),
        (lambda: Cosine("0.1", 10), "Cosine: initial = '0.1'; expected a finite number"),  # type: ignore[arg-type]
        (lambda: Cosine(math.nan, 10), "Cosine: initial = nan"),
        (lambda: Cosine(0.1, 10, after="cylce"), "after = 'cylce'; did you mean 'cycle'?"),
        (lambda: Cosine(0.1, 10, end=0.1, alpha=0.1), "end = 0.1 and alpha = 0.1"),
        (lambda: Step(0.1, steps=2.5), "Step: steps = 2.5; expected an integer"),  # type: ignore[arg-type]
        (lambda: Step(True, steps=2), "Step: initial = True"),
        (lambda: MultiStep(0.1, [5, 3]), r"milestones\[1\] = 3 is below milestones\[0\] = 5"),
        (lambda: MultiStep(0.1, [1, "a"]), r"milestones\[1\] = 'a'"),  # type: ignore[list-item]
        (lambda: MultiStep(0.1, 3), "milestones = 3; expected a sequence"),  # type: ignore[arg-type]
        (lambda: Piecewise([1.0], [1]), "1 values and 1 boundaries"),
        (lambda: Joined([Constant(1.0)], [3]), "1 schedules and 1 boundaries"),
        (lambda: Joined([Constant(1.0), 3.0], [3]), r"schedules\[1\] = 3.0"),  # type: ignore[list-item]
        (lambda: Warmup(Plateau(1.0), 3), "then = Plateau.*depends on the step alone"),
        (lambda: WarmupCosine(0.1, steps=5, warmup=5), "steps = 5 includes warmup = 5"),
        (lambda: OneCycle(0.1, 10, pct_start=0.9, phases=3), "pct_start = 0.9"),
        (lambda: Plateau(0.1, factor=1.5), "Plateau: factor = 1.5"),
        (lambda: Exponential(0.1, rate=-1.0), "Exponential: rate = -1.0"),
    ],
)
def test_errors_name_the_field(make: Callable[[], Schedule], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_numpy_scalars_do_not_lower_the_precision() -> None:
    assert Polynomial(np.float32(0.5), np.int64(3), end=0.1)(1) == Polynomial(0.5, 3, end=0.1)(1)  # type: ignore[arg-type]


def test_plateau_in_an_optimizer() -> None:
    opt = Optimizer(SGD(lr=Plateau(0.5, factor=0.1, patience=0)))
    params = {"w": np.ones(2)}
    state = opt.init(params)
    before = state
    for metric in (1.0, 2.0):
        state = opt.observe(state, metric)
    assert opt.hyperparameters(before)["lr"] == 0.5
    assert opt.hyperparameters(state)["lr"] == 0.05
    params, state = opt.step(params, {"w": np.ones(2)}, state)
    assert_close(params["w"], [0.95, 0.95], because="one exact step")
