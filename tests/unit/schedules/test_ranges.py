"""Scheduled hyperparameters stay in their field's range; scheduled betas correct by their product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyopt import (
    SGD,
    Adam,
    Adamax,
    AdamW,
    Cosine,
    Exponential,
    Joined,
    MultiStep,
    NAdam,
    OneCycle,
    Optimizer,
    Piecewise,
    Plateau,
    Polynomial,
    RAdam,
    Schedule,
    Step,
    WarmRestarts,
    Warmup,
    WarmupStableDecay,
)
from polyopt.backend.protocol import Backend
from polyopt.core.errors import InputError
from polyopt.core.rule import inside
from polyopt.core.schedule import number
from polyopt.schedules import Constant
from polyopt.testing import assert_close

REFUSED: dict[str, tuple[Any, str]] = {
    "an open end that is reached": (
        lambda: Adam(b1=Polynomial(0.9, 2, end=1.0)),
        r"b1.end = 1.0; .*1.0\)",
    ),
    "a negative rate": (lambda: SGD(lr=Cosine(1e-3, 10, alpha=-1.0)), "lr.alpha = -0.001"),
    "growth": (
        lambda: Adam(b1=Exponential(0.9, rate=1.01)),
        r"b1.rate grows without bound: 1.0\d* at step 11",
    ),
    "growth by steps": (lambda: Adam(b2=Step(0.999, steps=3, rate=2.0)), "b2.rate grows .*: 1.998 at step 3"),
    "milestones": (lambda: AdamW(b1=MultiStep(0.9, [4], rate=2.0)), "b1.rate = 1.8"),
    "inside of another": (
        lambda: Adam(b1=Joined([Constant(0.9), Exponential(0.9, rate=1.5)], [10])),
        r"b1.schedules\[1\].rate grows without bound",
    ),
    "a start above the peak": (lambda: Adam(b1=OneCycle(0.9, steps=10, div=0.5)), "b1.div = 1.8"),
    "a fraction above 1": (
        lambda: Adam(b1=Warmup(Constant(0.9), steps=5, initial=2.0, clock="shared")),
        "b1.initial times then.initial = 1.8",
    ),
    "restarts that rise": (
        lambda: Adam(b1=WarmRestarts(0.5, steps=4, peak_factor=1.5)),
        "b1.peak_factor grows",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_leave_the_range_is_refused_beforehand(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        make()


def test_an_open_end_may_be_approached() -> None:
    Adam(b1=Exponential(0.9, rate=1.2, end=0.99))
    SGD(lr=Exponential(0.1, rate=1.01))


@dataclass(frozen=True)
class Sawtooth(Schedule):
    """A schedule of a user's own, which says nothing of where it will be."""

    steps: int = number(10, whole=True)

    def value(self, xp: Any, t: Any) -> Any:
        return 0.9 + 0.01 * t


def test_a_strangers_schedule_is_held_to_the_range_at_the_step(backend: Backend) -> None:
    optimizer = Optimizer(Adam(lr=0.1, b1=Sawtooth()))
    params = {"w": backend.from_numpy(np.ones(3, np.float32))}
    state = optimizer.init(params)
    for _ in range(9):
        params, state = optimizer.step(params, params, state, donate=backend.name in ("numpy", "torch"))
    params, state = optimizer.step(params, params, state)
    before = np.array(backend.to_numpy(params["w"]))
    with pytest.raises(InputError, match=r"Adam: b1 = .* at step 10, by Sawtooth\(steps=10\)"):
        optimizer.step(params, params, state)
    assert (np.asarray(backend.to_numpy(params["w"])) == before).all()


numbers = st.floats(-2.0, 2.0)
shares = st.floats(0.0, 3.0)
SCHEDULES = st.one_of(
    st.builds(lambda a, b: Polynomial(a, 7, end=b), numbers, numbers),
    st.builds(lambda a, b: Cosine(a, 7, alpha=b), numbers, numbers),
    st.builds(lambda a, b: Exponential(a, rate=b + 0.01, steps=3), numbers, shares),
    st.builds(lambda a, b: Step(a, steps=2, rate=b), numbers, shares),
    st.builds(lambda a, b: MultiStep(a, [2, 5], rate=b), numbers, shares),
    st.builds(lambda a, b: Piecewise([a, b], [4], shape="linear"), numbers, numbers),
    st.builds(lambda a, b: WarmRestarts(a, steps=3, peak_factor=b), numbers, shares),
    st.builds(lambda a, b: OneCycle(a, steps=9, div=b + 0.1), numbers, shares),
    st.builds(lambda a, b: Warmup(Constant(a), 4, b, clock="shared"), numbers, numbers),
    st.builds(lambda a, b, c: WarmupStableDecay(a, 3, 3, 3, b, c), numbers, numbers, numbers),
)
FIELDS = [(Adam, "b1"), (Adam, "lr"), (Adam, "eps"), (NAdam, "b2"), (RAdam, "threshold"), (SGD, "momentum")]


@given(schedule=SCHEDULES, which=st.sampled_from(FIELDS))
@settings(deadline=None, max_examples=300)
def test_what_is_accepted_never_leaves_the_range(schedule: Schedule, which: tuple[Any, str]) -> None:
    """Every schedule on every kind of range: refused, or inside of it at each of 60 steps."""
    kind, name = which
    try:
        rule = kind(**{name: schedule})
    except InputError:
        return
    field = kind.__dataclass_fields__[name]
    for step in range(60):
        assert inside(field, schedule(step), reached=False), (rule, step, schedule(step))


@pytest.mark.parametrize("kind", [Adam, AdamW, Adamax, RAdam, NAdam])
def test_scheduled_betas_are_corrected_by_their_product(backend: Backend, kind: Any) -> None:
    """With a gradient of 1 a corrected average of gradients is 1, whatever the betas were."""
    if kind is NAdam:
        rule = NAdam(lr=1.0, b2=Piecewise([0.9, 0.999], [5]), convention="optax", eps=0.0)
    elif kind is Adamax:
        rule = Adamax(lr=1.0, b1=Piecewise([0.9, 0.999], [5]), eps=0.0)
    else:
        betas = {"b1": Piecewise([0.9, 0.999], [5]), "b2": Piecewise([0.99, 0.9999], [5])}
        rule = kind(lr=1.0, **betas, **({} if kind is RAdam else {"eps": 0.0, "weight_decay": 0.0}))
    optimizer = Optimizer(rule)
    params = {"w": backend.from_numpy(np.zeros(2))}
    ones = {"w": backend.from_numpy(np.ones(2))}
    state = optimizer.init(params)
    for step in range(12):
        updates, state = optimizer.update(ones, state, params)
        moved = np.asarray(backend.to_numpy(updates["w"]))
        if kind in (Adam, AdamW, Adamax):
            assert_close(moved, -np.ones(2), rtol=1e-12, because="products in double precision")
        else:
            assert np.isfinite(moved).all(), step
            assert (np.abs(moved) < 3).all(), step


def test_the_convention_of_torch_keeps_the_power() -> None:
    rule = Adam(lr=1.0, b1=Piecewise([0.9, 0.999], [50]), convention="torch")
    assert [slot.name for slot in rule.slots()] == ["exp_avg", "exp_avg_sq"]
    assert [slot.name for slot in Adam(b1=0.9).slots()] == ["exp_avg", "exp_avg_sq"]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_plateau_below_zero_is_measured_by_its_size(mode: str) -> None:
    schedule = Plateau(1.0, patience=1, factor=0.5, mode=mode)
    state, sign = schedule.initial_state(), -1.0 if mode == "min" else 1.0
    for i in range(6):
        # Improvements of 2e-5 of the best, where 1e-4 counts.
        state = schedule.observe(state, sign * 5.0 - 0.0001 * i * -sign)
    assert schedule.current(state) < 1.0


LONG = 2**31 + 8
MANY_STEPS = {
    "cosine": Cosine(0.5, steps=LONG),
    "cycle": Cosine(0.5, steps=LONG, after="cycle"),
    "polynomial": Polynomial(0.5, LONG),
    "exponential": Exponential(0.5, rate=0.5, steps=LONG),
    "step": Step(0.5, steps=LONG),
    "milestones": MultiStep(0.5, [LONG]),
    "piecewise": Piecewise([0.5, 0.1], [LONG]),
    "joined": Joined([Constant(0.5), Cosine(0.1, 5)], [LONG]),
    "warm-up": Warmup(Cosine(0.5, LONG), 0),
    "stable": WarmupStableDecay(0.5, 0, LONG, LONG),
    "restarts": WarmRestarts(0.5, steps=LONG, factor=2),
}


@pytest.mark.parametrize("name", MANY_STEPS)
def test_more_steps_than_an_int32_counts_inside_a_jit(name: str) -> None:
    jax = pytest.importorskip("jax")
    optimizer = Optimizer(SGD(lr=MANY_STEPS[name]))
    params = {"w": jax.numpy.ones(2, "float32")}

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        return optimizer.step(params, params, state)

    with jax.enable_x64(False):
        params, _ = step(params, optimizer.init(params))
    assert_close(params["w"], np.full(2, 0.5), rtol=1e-6, because="a cosine in float32")
