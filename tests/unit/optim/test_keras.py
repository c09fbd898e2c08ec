"""``convention="keras"`` against Keras on TensorFlow, float64 variables, with the rate changed in mid-run."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from helpers.optim_runs import Switch, check, keras_run

from polyopt.optim import OPTIMIZERS

FLOOR = "Keras keeps its rate and coefficients in float32, even for float64 variables"
SHRINK = {"weight_decay": 0.05}

CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("sgd", "SGD", {}),
    ("sgd", "SGD", SHRINK),
    ("sgd", "SGD", {"momentum": 0.9, **SHRINK}),
    ("sgd", "SGD", {"momentum": 0.9, "nesterov": True}),
    ("adagrad", "Adagrad", SHRINK),
    ("adagrad", "Adagrad", {"eps": 1e-2, "initial_accumulator": 0.3}),
    ("rmsprop", "RMSprop", SHRINK),
    ("rmsprop", "RMSprop", {"eps": 1e-2, "alpha": 0.99}),
    ("rmsprop", "RMSprop", {"eps": 1e-3, "centered": True, "momentum": 0.9}),
    ("rmsprop", "RMSprop", {"momentum": 0.8, "eps": 1e-3}),
    ("adadelta", "Adadelta", SHRINK),
    ("adadelta", "Adadelta", {"rho": 0.8, "eps": 1e-3}),
    ("adam", "Adam", SHRINK),
    ("adam", "Adam", {"eps": 1e-2}),
    ("adam", "Adam", {"amsgrad": True, "eps": 1e-3}),
    ("adamw", "AdamW", {}),
    ("adamw", "AdamW", {"weight_decay": 0.3, "amsgrad": True, "eps": 1e-4}),
    ("adamax", "Adamax", SHRINK),
    ("adamax", "Adamax", {"eps": 1e-1}),
    ("nadam", "Nadam", SHRINK),
    ("nadam", "Nadam", {"eps": 1e-3, "b1": 0.8}),
]
NAMES = {
    "alpha": "rho",
    "b1": "beta_1",
    "b2": "beta_2",
    "eps": "epsilon",
    "initial_accumulator": "initial_accumulator_value",
    "lr": "learning_rate",
}


@pytest.mark.parametrize(("name", "peer", "settings"), CASES)
def test_same_as_keras(name: str, peer: str, settings: dict[str, Any]) -> None:
    import keras

    rates = Switch(0.5, 0.2) if name == "adadelta" else Switch(0.02, 0.003)
    kwargs = {NAMES.get(k, k): v for k, v in settings.items()}
    check(
        OPTIMIZERS[name](lr=rates, convention="keras", **settings),  # type: ignore[call-arg]
        lambda: keras_run(lambda lr: getattr(keras.optimizers, peer)(lr, **kwargs), rates),
        1e-5,
        FLOOR,
    )


@pytest.mark.parametrize("name", sorted({name for name, *_ in CASES}))
def test_keras_defaults(name: str) -> None:
    """Every default of the convention is the one in Keras' own signature."""
    import keras

    rule = OPTIMIZERS[name](convention="keras")  # type: ignore[call-arg]
    peer = next(peer for n, peer, *_ in CASES if n == name)
    signature = inspect.signature(getattr(keras.optimizers, peer).__init__).parameters
    ours_alone = {"dampening", "lr_decay", "eps_root", "momentum_decay"}
    values = {k: v for k, v in rule.hyperparameters().items() if k not in ours_alone}
    if name == "adagrad":
        values["initial_accumulator"] = rule.initial_accumulator  # type: ignore[attr-defined]
    for key, value in values.items():
        default = signature[NAMES.get(key, key)].default
        assert value == (0.0 if default is None else default), key
