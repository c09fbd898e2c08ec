"""``convention="optax"`` against optax, in float64, with the rate changed in mid-run."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from helpers.optim_runs import Switch, check, optax_run

from polyopt.core.rule import chain
from polyopt.optim import OPTIMIZERS
from polyopt.optim.decay import AddDecayedWeights

ROUNDING = "both round each operation once, in another order, over 70 steps"
SHRINK = {"weight_decay": 0.05}

CASES: list[tuple[str, str, dict[str, Any], dict[str, Any] | None]] = [
    ("sgd", "sgd", {}, None),
    ("sgd", "sgd", {"momentum": 0.9}, None),
    ("sgd", "sgd", {"momentum": 0.9, "nesterov": True}, None),
    ("adagrad", "adagrad", {}, None),
    ("adagrad", "adagrad", {"eps": 1e-2, "initial_accumulator": 0.3}, None),
    ("rmsprop", "rmsprop", {}, None),
    ("rmsprop", "rmsprop", {"eps": 1e-2, "alpha": 0.99}, None),
    ("rmsprop", "rmsprop", {"centered": True, "momentum": 0.9}, None),
    ("rmsprop", "rmsprop", {"momentum": 0.8, "eps": 1e-3}, None),
    ("rmsprop", "rmsprop", {"eps_placement": "outside", "eps": 1e-2}, {"eps_in_sqrt": False, "eps": 1e-2}),
    ("adadelta", "adadelta", {}, None),
    ("adadelta", "adadelta", {"rho": 0.8, "eps": 1e-3, **SHRINK}, None),
    ("adam", "adam", {}, None),
    ("adam", "adam", {"eps": 1e-2, "eps_root": 1e-2}, None),
    ("adam", "amsgrad", {"amsgrad": True, "eps": 1e-3, "eps_root": 1e-3}, {"eps": 1e-3, "eps_root": 1e-3}),
    ("adamw", "adamw", {}, None),
    ("adamw", "adamw", {"weight_decay": 0.3, "eps": 1e-4}, None),
    ("adamax", "adamax", {}, None),
    ("adamax", "adamax", {"eps": 1e-1}, None),
    ("adamax", "adamaxw", {"decay": "decoupled", **SHRINK}, SHRINK),
    ("nadam", "nadam", {}, None),
    ("nadam", "nadamw", {"decay": "decoupled", "eps": 1e-3, "eps_root": 1e-2, **SHRINK}, None),
    ("radam", "radam", {}, None),
    ("radam", "radam", {"eps": 1e-2, "b2": 0.99, "eps_root": 1e-2, "threshold": 6.0}, None),
]
NAMES = {"alpha": "decay", "initial_accumulator": "initial_accumulator_value"}
SWITCHES = ("decay", "amsgrad")


def _theirs(settings: dict[str, Any]) -> dict[str, Any]:
    """Our settings under optax' names."""
    return {NAMES.get(k, k): v for k, v in settings.items() if k not in SWITCHES}


@pytest.mark.parametrize(("name", "peer", "settings", "theirs"), CASES)
def test_same_as_optax(name: str, peer: str, settings: dict[str, Any], theirs: Any) -> None:
    import optax

    rates = Switch(0.5, 0.2) if name == "adadelta" else Switch(0.02, 0.003)
    kwargs = _theirs(settings) if theirs is None else theirs
    check(
        OPTIMIZERS[name](lr=rates, convention="optax", **settings),  # type: ignore[call-arg]
        lambda: optax_run(lambda lr: getattr(optax, peer)(lr, **kwargs), rates),
        1e-13,
        ROUNDING,
    )


def test_decay_as_a_stage_is_optax_chain() -> None:
    import optax

    rates = Switch(0.02, 0.003)
    rule = chain(
        AddDecayedWeights(0.05, mask="^[ab]$"),
        OPTIMIZERS["sgd"](lr=rates, momentum=0.9, convention="optax"),  # type: ignore[call-arg]
    )

    def theirs(lr: Any) -> Any:
        decay = optax.add_decayed_weights(0.05, mask={"a": True, "b": True, "c": False})
        return optax.chain(decay, optax.sgd(lr, momentum=0.9))

    check(rule, lambda: optax_run(theirs, rates), 1e-13, ROUNDING)


@pytest.mark.parametrize("name", sorted({name for name, *_ in CASES}))
def test_optax_defaults(name: str) -> None:
    """Every default of the convention that optax has is the one in its own signature."""
    import optax

    rule = OPTIMIZERS[name](convention="optax")  # type: ignore[call-arg]
    peer = next(peer for n, peer, *_ in CASES if n == name)
    signature = inspect.signature(getattr(optax, peer)).parameters
    found = 0
    for key, value in rule.hyperparameters().items():
        parameter = signature.get(NAMES.get(key, key))
        if parameter is not None and parameter.default is not None:
            assert value == parameter.default, key
            found += 1
    assert found > 0 or name == "sgd", "no default was compared"
