"""``explain``: the text is the formula that runs."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import polyopt.core.scalars as scalar
from polyopt import (
    SGD,
    AdaGrad,
    Adam,
    Adamax,
    AdamW,
    AddDecayedWeights,
    ClipByGlobalNorm,
    DecoupledWeightDecay,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
    chain,
    partition,
)
from polyopt.core.errors import InputError
from polyopt.core.rule import Elementwise, Leafwise, Rule, Slot
from polyopt.optim import OPTIMIZERS
from polyopt.optim.explain import explain
from polyopt.schedules import Exponential
from polyopt.testing import assert_close

ROUNDING = "the text says 1 - b**t where -expm1(t*log(b)) runs, which cancels"
GRADIENT = st.floats(-1e3, 1e3).filter(lambda g: g == 0 or abs(g) > 1e-6)
SWITCHED: list[Rule] = [
    SGD(momentum=0.9, dampening=0.3, weight_decay=0.1, convention="torch"),
    SGD(momentum=0.9, nesterov=True, weight_decay=0.1),
    SGD(momentum=0.9, nesterov=True, form="averaged", weight_decay=0.1, decay="independent"),
    SGD(momentum=0.9, nesterov=True, convention="keras", weight_decay=0.1),
    AdaGrad(lr_decay=0.1, weight_decay=0.1),
    AdaGrad(eps=0.0),
    RMSprop(centered=True, momentum=0.9, convention="torch", weight_decay=0.1),
    RMSprop(centered=True, momentum=0.9, convention="optax"),
    Adam(amsgrad=True, eps_root=1e-3, weight_decay=0.1),
    Adam(amsgrad=True, eps_root=1e-3, convention="optax"),
    Adam(amsgrad=True, convention="keras", weight_decay=0.1),
    Adamax(weight_decay=0.1),
    NAdam(eps_root=1e-3, convention="keras"),
    RAdam(b2=0.9, eps_root=1e-3, weight_decay=0.1, decay="l2", convention="optax"),
]
RULES = [
    *(kind(convention=c) for kind in OPTIMIZERS.values() for c in kind.CONVENTIONS),  # type: ignore[call-arg]
    *SWITCHED,
]


def body(text: str) -> str:
    """The text below the settings."""
    return text.partition("\n\n")[2]


def by_text(rule: Rule, gradients: list[float], p: float) -> list[float]:
    """The parameter after each step, from the printed Python."""
    code = compile(explain(rule, ascii=True), "<formula>", "exec")
    space: dict[str, Any] = {n: getattr(scalar, n) for n in ("sqrt", "exp", "expm1", "log", "pow")}
    space |= {s.name: s.init for s in rule.slots()} | {"t": 0, "p": p}
    found = []
    for g in gradients:
        space["g"] = g
        exec(code, space)
        found.append(float(space["p"]))
    return found


def by_rule(rule: Rule, gradients: list[float], p: float) -> list[float]:
    optimizer, params = Optimizer(rule), np.array([p])
    state, found = optimizer.init(params), []
    for g in gradients:
        params, state = optimizer.step(params, np.array([g]), state)
        found.append(float(params[0]))
    return found


@pytest.mark.parametrize("rule", RULES, ids=lambda r: f"{type(r).__name__}-{r.convention}")
def test_printed_python_gives_the_rules_numbers(rule: Rule) -> None:
    gradients = [0.0, 0.3, -1.7, 2.2, 0.0, 0.01, -5.0, 0.4, 1.1, -0.2]
    assert_close(by_text(rule, gradients, 0.8), by_rule(rule, gradients, 0.8), atol=1e-11, because=ROUNDING)


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(sorted(OPTIMIZERS)),
    pick=st.integers(0, 3),
    lr=st.floats(0.0, 1.0),
    weight_decay=st.floats(0.0, 0.5),
    decay=st.sampled_from(["l2", "decoupled", "independent"]),
    eps=st.sampled_from([0.0, 1e-8, 1e-2]),
    gradients=st.lists(
        st.floats(-1e3, 1e3).filter(lambda g: g == 0 or abs(g) > 1e-6), min_size=1, max_size=8
    ),
)
def test_any_hyperparameters(
    kind: str, pick: int, lr: float, weight_decay: float, decay: str, eps: float, gradients: list[float]
) -> None:
    conventions = sorted(OPTIMIZERS[kind].CONVENTIONS)
    convention = conventions[pick % len(conventions)]
    more: dict[str, Any] = {} if OPTIMIZERS[kind] is SGD else {"eps": eps}
    rule = OPTIMIZERS[kind](  # type: ignore[call-arg]
        lr=lr, weight_decay=weight_decay, decay=decay, convention=convention, **more
    )
    expected = by_rule(rule, gradients, 0.5)
    scale = max(1.0, *(abs(x) for x in expected))
    assert_close(by_text(rule, gradients, 0.5), expected, atol=1e-9 * scale, because=ROUNDING)


def test_text_of_adam() -> None:
    assert body(explain(Adam())).splitlines() == [
        "1 - b^t is computed as -expm1(t·log(b)), without cancellation",
        "t ← t + 1",
        "bc1 = 1 - b1^t",
        "bc2 = 1 - b2^t",
        "scale = -lr·√bc2/bc1",
        "eps_t = eps·√bc2",
        "exp_avg ← b1·exp_avg + (1 - b1)·g",
        "exp_avg_sq ← b2·exp_avg_sq + (1 - b2)·g²",
        "update = scale·(exp_avg/(√exp_avg_sq + eps_t))",
        "p ← p + update",
    ]


def test_settings_are_listed() -> None:
    text = explain(AdamW(convention="keras", lr=3e-4))
    for line in ("convention = 'keras'", "lr = 0.0003", "eps = 1e-07", "weight_decay = 0.004", "b1 = 0.9"):
        assert line in text.splitlines()
    assert "Loshchilov & Hutter, 2019" in text.splitlines()[0]


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        (AdaGrad(convention="torch"), "update = -lr·(g/(√sum + eps))"),
        (AdaGrad(convention="keras"), "update = -lr·(g/√(sum + eps))"),
        (RMSprop(convention="torch"), "update = -lr·(g/(√square_avg + eps))"),
        (RMSprop(convention="optax"), "update = -lr·(g/√(square_avg + eps))"),
        (Adam(convention="keras"), "update = scale·(exp_avg/(√exp_avg_sq + eps))"),
        (Adam(convention="torch", weight_decay=0.1), "g ← g + weight_decay·p"),
        (
            Adam(convention="keras", weight_decay=0.1),
            "update = scale·(exp_avg/(√exp_avg_sq + eps)) - lr·weight_decay·p",
        ),
        (Adam(amsgrad=True, convention="torch"), "max_exp_avg_sq ← max(max_exp_avg_sq, exp_avg_sq)"),
        (Adam(amsgrad=True, convention="optax"), "max_exp_avg_sq ← max(max_exp_avg_sq, exp_avg_sq/bc2)"),
        (Adamax(convention="torch"), "exp_inf ← max(b2·exp_inf, |g| + eps)"),
        (Adamax(convention="keras"), "update = scale·(exp_avg/(exp_inf + eps))"),
        (SGD(momentum=0.9, convention="torch"), "update = -lr·momentum_buffer"),
        (SGD(momentum=0.9, convention="keras"), "momentum_buffer ← momentum·momentum_buffer - lr·g"),
        (RAdam(convention="torch"), "rectified = 1 if rho > threshold else 0"),
        (RAdam(convention="optax"), "rectified = 1 if rho >= threshold else 0"),
        (NAdam(convention="torch"), "exp_avg ← b1·exp_avg + (1 - b1)·g"),
        (NAdam(convention="paper"), "exp_avg ← mu·exp_avg + (1 - mu)·g"),
    ],
)
def test_conventions_are_told_apart(rule: Rule, line: str) -> None:
    assert line in body(explain(rule)).splitlines()


def test_schedule_is_shown_as_a_function_of_t() -> None:
    text = explain(SGD(lr=Exponential(0.1, 0.5, 10), mask="weight", weight_decay=0.1))
    assert "lr(t) = Exponential(initial=0.1" in text
    assert "weight_decay is 0 where the mask does not match" in text
    assert body(text).splitlines()[:2] == ["t ← t + 1", "update = -lr(t)·(g + weight_decay·p)"]


def test_printed_schedule_can_be_called() -> None:
    schedule = Exponential(0.1, 0.5, 2)
    rule = SGD(lr=schedule)
    space: dict[str, Any] = {"t": 0, "g": 1.0, "p": 1.0, "lr": lambda t: schedule(t - 1)}
    for _ in range(3):
        exec(explain(rule, ascii=True), space)
    assert_close(space["p"], by_rule(rule, [1.0] * 3, 1.0)[-1], atol=1e-15, because="one rounding a step")


def test_chain_and_partition() -> None:
    rule = chain(
        ClipByGlobalNorm(1.0),
        partition({"bias$": SGD(lr=0.1), "^frozen": None, ".*": Adam()}),
        DecoupledWeightDecay(0.1),
    )
    text = explain(rule)
    assert text.splitlines()[0] == "Stage 0"
    assert "Measured over all leaves: " in text
    assert "Parameters that match 'bias$':" in text
    assert "Parameters that match '^frozen' and nothing above:\n  frozen" in text
    assert "  update = -lr·g\n  g ← update" in text
    assert text.splitlines()[-2:] == ["update = g - lr·weight_decay·p", "p ← p + update"]
    assert text.count("p ← p + update") == 1


def test_chain_as_python() -> None:
    rule = chain(AddDecayedWeights(0.5), SGD(lr=0.25, momentum=0.5))
    space: dict[str, Any] = {"g": 1.0, "p": 2.0, "momentum_buffer": 0.0}
    exec(explain(rule, ascii=True), space)
    params = np.array([2.0])
    optimizer = Optimizer(rule)
    params, _ = optimizer.step(params, np.array([1.0]), optimizer.init(params))
    assert space["p"] == float(params[0]) == 1.5


class Swap(Elementwise):
    """Each slot takes the other's old value, so one must be kept aside."""

    def slots(self) -> tuple[Slot, ...]:
        return (Slot("a", 1.0), Slot("b", 2.0))

    def leaf(self, xp: Any, g: Any, p: Any, slots: Any, c: Any) -> Any:
        a, b = slots["a"] + g, slots["b"] * g
        return -(slots["a"] - (slots["b"] - g)), {"a": b * 2.0, "b": a * 3.0}


def test_new_values_never_stand_in_for_old_ones() -> None:
    gradients = [0.5, -1.5, 2.0]
    assert by_text(Swap(), gradients, 1.0) == by_rule(Swap(), gradients, 1.0)


class Odd(Elementwise):
    """Signs, powers and nested conditions."""

    def leaf(self, xp: Any, g: Any, p: Any, slots: Any, c: Any) -> Any:
        low = xp.where(g < 0.0, xp.where(p > 1.0, g, -p), g - (p - g))
        high = xp.exp(-(g * g)) / (2.0 / (p * (g / 3.0))) + xp.pow(-(p + 1.0), 2.0)
        return low * -high - xp.minimum(xp.abs(g), -1.5) * (low + high), {}


@given(g=st.floats(0.1, 3.0), p=st.floats(0.5, 2.0), sign=st.sampled_from([-1.0, 1.0]))
@settings(deadline=None, max_examples=30)
def test_parentheses(g: float, p: float, sign: float) -> None:
    (expected,) = by_rule(Odd(), [sign * g], p)
    (found,) = by_text(Odd(), [sign * g], p)
    assert math.isfinite(expected)
    assert_close(found, expected, rtol=1e-14, atol=1e-14, because="exp of two libraries")


class Whole(Leafwise):
    """Reads its leaf's shape."""

    def leaf(self, xp: Any, g: Any, p: Any, slots: Any, c: Any) -> Any:
        return -xp.sum(g), {}


def test_a_rule_that_is_not_elementwise_says_so() -> None:
    assert "not elementwise" in explain(Whole())


def test_refusal() -> None:
    with pytest.raises(InputError, match="expected a rule, a chain or a partition, found 'adam'"):
        explain("adam")  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class Smooth(Elementwise):
    """Move by the sign, smoothed."""

    def leaf(self, xp: Any, g: Any, p: Any, slots: Any, c: Any) -> Any:
        return -xp.tanh(xp.exp(g)), {}


def test_it_says_what_no_kernel_is_generated_for() -> None:
    line = (
        "Slower on NumPy and PyTorch, one pass for each operation: no kernel can be generated for exp, tanh"
    )
    assert line in explain(Smooth()).splitlines()
    assert f"# {line}" in explain(Smooth(), ascii=True).splitlines()
    assert not [kind for kind in OPTIMIZERS.values() if "Slower" in explain(kind())]
