"""The optimizers' switches: weight decay and its masks, slots, zero and NaN gradients, traced steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.optim_runs import Switch, gradients, ours, parameters

from polyopt import (
    SGD,
    AdaGrad,
    Adam,
    AdamW,
    AddDecayedWeights,
    DecoupledWeightDecay,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
    chain,
)
from polyopt.core.errors import InputError
from polyopt.optim import OPTIMIZERS
from polyopt.optim.base import Descent
from polyopt.schedules import Exponential
from polyopt.testing import assert_close, assert_same_bits

EACH = [(n, c) for n, kind in OPTIMIZERS.items() if n != "gradient_descent" for c in kind.CONVENTIONS]
RATES = Switch(0.02, 0.003)
ROUNDING = "one rounding an operation, in another order"


def build(name: str, convention: str, **settings: Any) -> Descent:
    rule = OPTIMIZERS[name](convention=convention, **settings)  # type: ignore[call-arg]
    assert isinstance(rule, Descent)
    return rule


def same(a: dict[str, Any], b: dict[str, Any], tolerance: float = 1e-13) -> None:
    for name in a:
        assert_close(a[name], b[name], atol=tolerance, rtol=tolerance, because=ROUNDING)


def apart(a: dict[str, Any], b: dict[str, Any]) -> float:
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


# Weight decay


@pytest.mark.parametrize(("name", "convention"), EACH)
def test_l2_is_a_stage_before(name: str, convention: str) -> None:
    fused = build(name, convention, lr=RATES, weight_decay=0.1, decay="l2", mask="^[ab]$")
    plain = build(name, convention, lr=RATES, weight_decay=0.0)
    staged = ours(chain(AddDecayedWeights(0.1, mask=lambda path: path != "c"), plain))
    for leaf, value in ours(fused).items():
        assert_same_bits(value, staged[leaf])


@pytest.mark.parametrize(("name", "convention"), EACH)
def test_decoupled_is_a_stage_after(name: str, convention: str) -> None:
    fused = build(name, convention, lr=RATES, weight_decay=0.1, decay="decoupled", mask="c")
    plain = build(name, convention, lr=RATES, weight_decay=0.0)
    staged = ours(chain(plain, DecoupledWeightDecay(0.1, lr=RATES, mask="c")))
    for leaf, value in ours(fused).items():
        assert_same_bits(value, staged[leaf])


def test_independent_decay_does_not_know_the_rate() -> None:
    staged = chain(Adam(lr=RATES), DecoupledWeightDecay(0.01))
    same(ours(AdamW(lr=RATES, weight_decay=0.01, decay="independent")), ours(staged), 0.0)


def test_weight_decay_can_be_scheduled() -> None:
    decays = Exponential(0.1, 0.5, 20)
    fused = ours(AdamW(lr=RATES, weight_decay=decays))
    same(fused, ours(chain(Adam(lr=RATES), DecoupledWeightDecay(decays, lr=RATES))), 0.0)
    assert apart(fused, ours(AdamW(lr=RATES, weight_decay=0.1))) > 1e-3


@pytest.mark.parametrize(("name", "convention"), EACH)
def test_mask_keeps_the_slots(name: str, convention: str) -> None:
    rule = build(name, convention, weight_decay=0.1, decay="l2", mask="weight$", lr=0.1)
    assert rule.at("layer.weight") is rule
    bias = rule.at("layer.bias")
    assert bias.weight_decay == 0.0
    assert bias.slots() == rule.slots()
    settings = bias.hyperparameters() | {"weight_decay": 0.1}
    assert settings == rule.hyperparameters()


def test_mask_of_convention_without_decay() -> None:
    rule = SGD(mask="weight", convention="optax")
    assert rule.at("bias") is rule


# Slots


@pytest.mark.parametrize(
    ("rule", "slots"),
    [
        (SGD(), []),
        (SGD(momentum=0.9), ["momentum_buffer"]),
        (SGD(momentum=Exponential(0.9, 0.5, 10)), ["momentum_buffer"]),
        (AdaGrad(), ["sum"]),
        (RMSprop(), ["square_avg"]),
        (RMSprop(centered=True), ["square_avg", "grad_avg"]),
        (Adam(), ["exp_avg", "exp_avg_sq"]),
        (Adam(amsgrad=True), ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]),
        (NAdam(), ["exp_avg", "exp_avg_sq", "mu_product"]),
        (NAdam(convention="optax"), ["exp_avg", "exp_avg_sq"]),
    ],
)
def test_no_slot_that_is_not_needed(rule: Descent, slots: list[str]) -> None:
    assert [s.name for s in rule.slots()] == slots


def test_running_product_of_nadam() -> None:
    optimizer, p = Optimizer(NAdam(convention="torch")), np.ones(2)
    state = optimizer.init(p)
    for _ in range(3):
        p, state = optimizer.step(p, np.ones(2), state)
    mus = [0.9 * (1 - 0.5 * 0.96 ** (0.004 * t)) for t in (1, 2, 3)]
    assert_close(
        state["slots"]["mu_product"]["param"], mus[0] * mus[1] * mus[2], rtol=1e-15, because=ROUNDING
    )


# Gradients that are zero, NaN or constant


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "convention"), EACH)
def test_zero_gradient_moves_nothing(name: str, convention: str, dtype: str) -> None:
    eps = [{}] if name == "sgd" else [{}, {"eps": 0.0}]
    for settings in eps:
        optimizer = Optimizer(build(name, convention, weight_decay=0.0, **settings), compiled=False)
        params = start = np.array([1.5, -0.0, 3e-3], dtype)
        state = optimizer.init(params)
        for _ in range(7):
            params, state = optimizer.step(params, np.zeros(3, dtype), state)
        assert_same_bits(params + 0.0, start + 0.0)


@pytest.mark.parametrize("eps", [0.0, 1e-8])
@pytest.mark.parametrize("name", sorted({n for n, _ in EACH} - {"sgd"}))
def test_nan_is_not_hidden(name: str, eps: float) -> None:
    optimizer, p = Optimizer(build(name, "paper", eps=eps)), np.ones(2)
    p, _ = optimizer.step(p, np.array([np.nan, 1.0]), optimizer.init(p))
    assert np.isnan(p).tolist() == [True, False]


@pytest.mark.parametrize("convention", ["paper", "torch", "optax", "keras"])
def test_centered_rmsprop_survives_a_constant_gradient(convention: str) -> None:
    """v - a² rounds below zero there; torch.optim's is NaN after a while."""
    optimizer = Optimizer(RMSprop(lr=1e-12, alpha=0.5, centered=True, convention=convention))
    p = np.linspace(0.1, 3.0, 50)
    state, g = optimizer.init(p), np.linspace(100.1, 3000.0, 50)
    for _ in range(200):
        p, state = optimizer.step(p, g, state)
    variance = state["slots"]["square_avg"]["param"] - state["slots"]["grad_avg"]["param"] ** 2
    assert float(variance.min()) < 0, "the case that this test is about did not come up"
    assert bool(np.isfinite(p).all())


# Conventions


def test_keras_momentum_is_torchs_at_a_constant_rate_alone() -> None:
    for nesterov in (False, True):
        both = [
            [SGD(lr=lr, momentum=0.9, nesterov=nesterov, convention=c) for c in ("torch", "keras")]
            for lr in (0.01, RATES)
        ]
        same(*(ours(rule) for rule in both[0]))
        assert apart(*(ours(rule) for rule in both[1])) > 1e-3


def test_dampening_equal_to_momentum_is_the_averaged_form() -> None:
    damped = SGD(lr=RATES, momentum=0.8, dampening=0.8)
    averaged = SGD(lr=RATES, momentum=0.8, form="averaged")
    same(ours(damped), ours(averaged))
    undamped = SGD(lr=RATES, momentum=0.8, dampening=0.8, convention="torch")
    assert apart(ours(undamped), ours(averaged)) > 1e-3


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (Adam(lr=RATES, eps=1e-2, convention="torch"), Adam(lr=RATES, eps=1e-2, convention="keras")),
        (Adam(lr=RATES, amsgrad=True), Adam(lr=RATES, amsgrad=True, convention="optax")),
        (AdaGrad(lr=RATES, eps=1e-2), AdaGrad(lr=RATES, eps=1e-2, eps_placement="inside")),
        (
            RMSprop(lr=RATES, momentum=0.9, eps=1e-2),
            RMSprop(lr=RATES, momentum=0.9, eps=1e-2, form="heavy_ball"),
        ),
        (NAdam(lr=RATES, b1=0.9), NAdam(lr=RATES, b1=0.9, convention="torch")),
        (NAdam(lr=RATES, convention="optax"), NAdam(lr=RATES, convention="torch")),
        (RAdam(lr=RATES), RAdam(lr=RATES, convention="torch")),
    ],
)
def test_conventions_differ(a: Descent, b: Descent) -> None:
    assert apart(ours(a), ours(b)) > 1e-5


def test_explicit_values_win() -> None:
    rule = Adam(convention="keras", eps=1e-3, eps_placement="outside")
    assert (rule.eps, rule.eps_placement, rule.decay) == (1e-3, "outside", "decoupled")


# References written from the papers


def test_adamax_of_the_paper() -> None:
    same(ours(OPTIMIZERS["adamax"](lr=RATES)), _by_hand(_adamax))  # type: ignore[call-arg]


def test_nadam_of_the_paper() -> None:
    same(ours(NAdam(lr=RATES)), _by_hand(_nadam))


def test_radam_of_the_paper() -> None:
    same(ours(RAdam(lr=RATES)), _by_hand(_radam), 1e-11)


def test_rmsprop_of_the_paper() -> None:
    same(ours(RMSprop(lr=RATES, momentum=0.9)), _by_hand(_rmsprop))


def _by_hand(step: Any) -> dict[str, Any]:
    params: dict[str, Any] = parameters()
    memory: dict[str, dict[str, Any]] = {n: {"m": 0.0, "v": 0.0, "product": 1.0} for n in params}
    with np.errstate(invalid="ignore"):
        for t, g in enumerate(gradients(), 1):
            for name, p in params.items():
                params[name] = p + step(t, RATES(t - 1), g[name], memory[name])
    return params


def _adamax(t: int, lr: float, g: Any, s: dict[str, Any]) -> Any:
    s["m"] = 0.9 * s["m"] + 0.1 * g
    s["v"] = np.maximum(0.999 * s["v"], np.abs(g))
    return -lr / (1 - 0.9**t) * np.nan_to_num(s["m"] / s["v"])


def _nadam(t: int, lr: float, g: Any, s: dict[str, Any]) -> Any:
    mu, after = (0.99 * (1 - 0.5 * 0.96 ** (k / 250)) for k in (t, t + 1))
    s["product"] *= mu
    s["m"] = mu * s["m"] + (1 - mu) * g
    s["v"] = 0.999 * s["v"] + 0.001 * g**2
    m = after * s["m"] / (1 - s["product"] * after) + (1 - mu) * g / (1 - s["product"])
    return -lr * m / (np.sqrt(0.999 * s["v"] / (1 - 0.999**t)) + 1e-8)


def _radam(t: int, lr: float, g: Any, s: dict[str, Any]) -> Any:
    s["m"] = 0.9 * s["m"] + 0.1 * g
    s["v"] = 0.999 * s["v"] + 0.001 * g**2
    m = s["m"] / (1 - 0.9**t)
    last = 2 / (1 - 0.999) - 1
    rho = last - 2 * t * 0.999**t / (1 - 0.999**t)
    if rho <= 4:
        return -lr * m
    r = np.sqrt((rho - 4) * (rho - 2) * last / ((last - 4) * (last - 2) * rho))
    return -lr * r * m * np.sqrt(1 - 0.999**t) / (np.sqrt(s["v"]) + 1e-8)


def _rmsprop(t: int, lr: float, g: Any, s: dict[str, Any]) -> Any:
    s["v"] = 0.9 * s["v"] + 0.1 * g**2
    s["m"] = 0.9 * s["m"] - lr * g / (np.sqrt(s["v"]) + 1e-8)
    return s["m"]


# Where the step is traced


@pytest.mark.parametrize(("name", "convention"), EACH)
def test_traced_step(name: str, convention: str) -> None:
    """Inside the user's own jit the scalars are the framework's."""
    import jax
    import jax.numpy as jnp

    settings: dict[str, Any] = {"momentum": 0.9} if name == "sgd" else {}
    optimizer = Optimizer(build(name, convention, lr=RATES, **settings))
    with jax.enable_x64(True):
        params = {"b": jnp.asarray(parameters()["b"])}
        state: Any = optimizer.init(params) | {"step": jnp.asarray(0)}
        for path in state["slots"].get("mu_product", {}):
            state["slots"]["mu_product"][path] = jnp.asarray(1.0)
        step = jax.jit(optimizer.step)
        for g in gradients(40):
            params, state = step(params, {"b": jnp.asarray(g["b"])}, state)
        found = np.asarray(params["b"])
    because = "the framework's log and expm1 of a traced step, at most an ulp or two off"
    assert_close(
        found, ours(build(name, convention, lr=RATES, **settings), 40)["b"], atol=1e-11, because=because
    )


# Refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RAdam(convention="keras"), "known: 'optax', 'paper', 'torch'"),
        (lambda: Adam(convention="pytorch"), "did you mean 'torch'"),
        (lambda: SGD(weight_decay=0.1, convention="optax"), "optax has no weight decay here"),
        (lambda: SGD(nesterov=True), "momentum = 0"),
        (lambda: SGD(momentum=0.9, nesterov=True, dampening=0.1), "only the heavy ball"),
        (lambda: SGD(lr=-1.0), r"lr = -1.0; expected a finite number in \[0.0, inf\]"),
        (lambda: SGD(lr="fast"), "expected a number or a schedule"),
        (lambda: Adam(b1=1.0), "b1 = 1.0"),
        (lambda: Adam(amsgrad=True, amsgrad_max="corrected", eps_placement="hat"), 'expected "outside"'),
        (lambda: Adam(decay="l1"), "known: 'decoupled', 'independent', 'l2', 'none'"),
        (lambda: AdaGrad(initial_accumulator=-1.0), "initial_accumulator = -1.0"),
        (lambda: AdamW(mask="("), "not a regular expression"),
        (lambda: AddDecayedWeights(0.1, mask="["), "not a regular expression"),
        (lambda: RAdam(threshold=3.0), "threshold = 3.0"),
    ],
)
def test_refusals(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
