"""Test the names that come from other libraries: each leads to something that is there."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import pytest

import polyopt
from polyopt import SGD, Adam, Cosine, LoRA, NAdam, Optimizer, Plateau, RMSprop, SoftTargets, TrainStep
from polyopt.core.aliases import ABSENT, FIELDS, NAMES
from polyopt.core.errors import (
    BackendError,
    CheckpointError,
    InputError,
    NonFiniteError,
    PolyoptError,
    RuleError,
)
from polyopt.core.rule import Elementwise, hyper

KEYWORDS = [
    (Adam, "betas", "'b1' and 'b2'"),
    (Adam, "beta_1", "'b1'"),
    (SGD, "beta1", "'momentum'"),
    (Adam, "learning_rate", "'lr'"),
    (Adam, "wd", "'weight_decay'"),
    (Adam, "epsilon", "'eps'"),
    (RMSprop, "rho", "'alpha'"),
    (RMSprop, "learningRate", "'lr'"),
    (Adam, "nesterov", "NAdam"),
    (SGD, "clipnorm", "ClipByNorm"),
    (SGD, "maximize", "the other sign"),
    (SGD, "params", "Optimizer(rule).init"),
    (Cosine, "T_max", "'steps'"),
    (Cosine, "eta_min", "'end'"),
    (Plateau, "min_lr", "'minimum'"),
    (Optimizer, "gradient_accumulation_steps", "'accumulate'"),
    (Optimizer, "lr", "belongs to a rule"),
    (TrainStep, "opt", "'optimizer'"),
    (LoRA, "r", "'rank'"),
    (SoftTargets, "T", "'temperature'"),
]


@pytest.mark.parametrize(("kind", "name", "hint"), KEYWORDS, ids=lambda x: getattr(x, "__name__", x))
def test_an_argument_by_another_librarys_name_is_told_the_name_here(kind: type, name: str, hint: str) -> None:
    with pytest.raises(InputError, match=f"{kind.__name__} has no {name!r}; ") as e:
        kind(**{name: 1})
    assert hint in str(e.value)


def test_known_arguments_are_fields_alone() -> None:
    with pytest.raises(InputError, match="known: 'amsgrad'") as e:
        Adam(zzz=1)
    assert "CONVENTIONS" not in str(e.value)
    assert "(12 in all)" not in str(e.value)


ATTRIBUTES = {
    "ReduceLROnPlateau": "'Plateau'",
    "CosineAnnealingLR": "'Cosine'",
    "adam": "'Adam'",
    "Plateu": "'Plateau'",
    "cross_entropy": "'polyopt.models.losses.cross_entropy'",
    "Lion": "docs/rules.md",
    "zzz": "(54 in all)",
}


@pytest.mark.parametrize(("name", "hint"), ATTRIBUTES.items())
def test_an_attribute_that_is_not_there_is_told_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(AttributeError, match=f"polyopt has no {name!r}; ") as e:
        getattr(polyopt, name)
    assert hint.replace("54", str(len(polyopt.__all__))) in str(e.value)


@pytest.mark.parametrize("name", sorted(set(NAMES.values())))
def test_every_name_that_is_given_as_a_hint_is_there(name: str) -> None:
    if name.startswith("polyopt."):
        home, _, last = name.rpartition(".")
        module = import_module(home)
        assert hasattr(module, last) or import_module(name)
    else:
        assert hasattr(polyopt, name)


def test_no_foreign_name_is_one_of_ours() -> None:
    assert not set(NAMES) & set(polyopt.__all__)
    assert not ABSENT & set(polyopt.__all__)


def test_every_field_that_is_given_as_a_hint_is_one_of_something() -> None:
    known = {"optimizer", "loss", "accumulate"}
    for name in polyopt.__all__:
        known |= set(getattr(getattr(polyopt, name), "__dataclass_fields__", {}))
    assert {x for fields in FIELDS.values() for field in fields for x in field.split()} <= known


@pytest.mark.parametrize(
    "kind", [InputError, RuleError, BackendError, CheckpointError, NonFiniteError], ids=lambda x: x.__name__
)
def test_messages_are_of_a_readable_length(kind: type[PolyoptError]) -> None:
    error = pickle.loads(pickle.dumps(kind(f"name = {'x' * 3000!r}; expected {[1.0] * 3000}; got it")))
    assert type(error) is kind
    assert len(str(error)) <= 800
    assert str(error).startswith("name = 'xxx")
    assert str(error).endswith("; got it")
    lines = kind("\n".join(f"mistake {i}" for i in range(300)))
    assert len(str(lines).split("\n")) == 300


def test_a_long_value_is_cut_wherever_it_is_given() -> None:
    @dataclass(frozen=True)
    class Any_(Elementwise):
        lr: Any = hyper(0.1)

        def leaf(self, xp: Any, g: Any, p: Any, slots: Any, c: Any) -> tuple[Any, dict[str, Any]]:
            return -(c.lr * g), {}

    long = "x" * 3000
    for call in (
        lambda: Any_(lr=long),
        lambda: Adam(convention=long),
        lambda: Adam(**{long: 1}),
        lambda: Optimizer(long),
        lambda: polyopt.get_backend(long),
        lambda: Cosine(long, steps=3),
        lambda: NAdam(mask=f"({long}"),
    ):
        with pytest.raises(PolyoptError) as e:
            call()
        assert 30 < len(str(e.value)) <= 900
    with pytest.raises(AttributeError) as missing:
        getattr(polyopt, long)
    assert len(str(missing.value)) <= 800
