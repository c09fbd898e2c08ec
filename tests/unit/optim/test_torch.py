"""``convention="torch"`` against torch.optim, in float64, with the rate changed in mid-run."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.optim_runs import Switch, check, torch_run

from polyopt.optim import OPTIMIZERS

ROUNDING = "both round each operation once, in another order, over 70 steps"
PRODUCT = "torch keeps NAdam's running product of momenta in float32"
SHRINK = {"weight_decay": 0.05}
DECOUPLED = {"weight_decay": 0.05, "decay": "decoupled"}
THEIRS = {"weight_decay": 0.05, "decoupled_weight_decay": True}
RENAMED = {"initial_accumulator": "initial_accumulator_value"}

CASES: list[tuple[str, str, dict[str, Any], dict[str, Any] | None]] = [
    ("sgd", "SGD", {}, None),
    ("sgd", "SGD", SHRINK, None),
    ("sgd", "SGD", {"momentum": 0.9}, None),
    ("sgd", "SGD", {"momentum": 0.9, "dampening": 0.4, **SHRINK}, None),
    ("sgd", "SGD", {"momentum": 0.9, "nesterov": True, **SHRINK}, None),
    ("adagrad", "Adagrad", {}, None),
    ("adagrad", "Adagrad", {"lr_decay": 0.1, "initial_accumulator": 0.3, "eps": 1e-2, **SHRINK}, None),
    ("rmsprop", "RMSprop", {}, None),
    ("rmsprop", "RMSprop", {"eps": 1e-2, "alpha": 0.9, **SHRINK}, None),
    ("rmsprop", "RMSprop", {"centered": True, "momentum": 0.9}, None),
    ("rmsprop", "RMSprop", {"momentum": 0.8, **SHRINK}, None),
    ("adadelta", "Adadelta", {}, None),
    ("adadelta", "Adadelta", {"rho": 0.8, "eps": 1e-3, **SHRINK}, None),
    ("adam", "Adam", {}, None),
    ("adam", "Adam", {"eps": 1e-2, **SHRINK}, None),
    ("adam", "Adam", {"amsgrad": True, "eps": 1e-3}, None),
    ("adam", "Adam", DECOUPLED, THEIRS),
    ("adamw", "AdamW", {}, None),
    ("adamw", "AdamW", {"weight_decay": 0.3, "amsgrad": True, "eps": 1e-4}, None),
    ("adamax", "Adamax", {}, None),
    ("adamax", "Adamax", {"eps": 1e-1, **SHRINK}, None),
    ("nadam", "NAdam", {}, None),
    ("nadam", "NAdam", {"momentum_decay": 0.1, "eps": 1e-3, **SHRINK}, None),
    ("nadam", "NAdam", DECOUPLED, THEIRS),
    ("radam", "RAdam", {}, None),
    ("radam", "RAdam", {"eps": 1e-2, "b2": 0.99, **SHRINK}, None),
    ("radam", "RAdam", {**DECOUPLED, "b2": 0.9}, {**THEIRS, "betas": (0.9, 0.9)}),
]


def _theirs(settings: dict[str, Any]) -> dict[str, Any]:
    """Our settings under torch's names."""
    named = {RENAMED.get(k, k): v for k, v in settings.items() if k not in ("b1", "b2")}
    if "b2" in settings:
        named["betas"] = (0.9, settings["b2"])
    return named


@pytest.mark.parametrize(("name", "peer", "settings", "theirs"), CASES)
def test_same_as_torch(name: str, peer: str, settings: dict[str, Any], theirs: Any) -> None:
    import torch

    rates = Switch(0.5, 0.2) if name == "adadelta" else Switch(0.02, 0.003)
    kwargs = _theirs(settings) if theirs is None else theirs
    tolerance, because = (2e-9, PRODUCT) if name == "nadam" else (1e-13, ROUNDING)
    check(
        OPTIMIZERS[name](lr=rates, convention="torch", **settings),  # type: ignore[call-arg]
        lambda: torch_run(lambda ps: getattr(torch.optim, peer)(ps, lr=rates.first, **kwargs), rates),
        tolerance,
        because,
    )


@pytest.mark.parametrize("name", sorted({name for name, *_ in CASES}))
def test_torch_defaults(name: str) -> None:
    """Every default of the convention is the one in torch's own signature."""
    import inspect

    import torch

    rule = OPTIMIZERS[name](convention="torch")  # type: ignore[call-arg]
    peer = next(peer for n, peer, *_ in CASES if n == name)
    signature = inspect.signature(getattr(torch.optim, peer).__init__).parameters
    values = {k: v for k, v in rule.hyperparameters().items() if k not in ("b1", "b2")}
    if "b1" in rule.hyperparameters():
        values["betas"] = (rule.b1, rule.b2)  # type: ignore[attr-defined]
    if name == "adagrad":
        values["initial_accumulator"] = rule.initial_accumulator  # type: ignore[attr-defined]
    ours_alone = {"eps_root", "threshold"}
    for key in values.keys() - ours_alone:
        assert values[key] == signature[RENAMED.get(key, key)].default, key
