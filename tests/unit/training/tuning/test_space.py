"""A search space as it stands in a recipe: read back as it was, and one line for whatever is wrong."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from helpers.tuning_recipes import RATE, recipe
from hypothesis import given, settings
from hypothesis import strategies as st

from polyopt.core.errors import InputError
from polyopt.recipe import Recipe
from polyopt.recipe.tuning import Choices, Range, assigned


def tuned(found: Recipe) -> Any:
    assert found.tune is not None
    return found.tune


AXES: dict[str, tuple[str, Any, str]] = {
    "no such key": (
        "optimizer.lrr",
        RATE,
        r"optimizer\.lrr: 'sgd' has no such hyperparameter; did you mean 'lr'",
    ),
    "no such table": ("optimzer.lr", RATE, r"not in a table that can be tuned; did you mean 'optimizer'\?"),
    "the data": ("data.name", {"choices": ["digits"]}, "not in a table that can be tuned; known: 'clip'"),
    "out of range": ("optimizer.lr", {"low": -1.0, "high": 1.0}, r"optimizer\.lr = -1\.0; expected a finite"),
    "empty": ("optimizer.lr", {"low": 0.1, "high": 0.1}, r"\.high = 0\.1; expected more than low = 0\.1"),
    "turned round": (
        "optimizer.lr",
        {"low": 0.2, "high": 0.1},
        r"\.high = 0\.1; expected more than low = 0\.2",
    ),
    "log of 0": (
        "optimizer.lr",
        {"low": 0.0, "high": 1.0, "log": True},
        r"\.low = 0\.0; expected a number above 0",
    ),
    "log by steps": ("optimizer.lr", RATE | {"step": 0.1}, r"\.step = 0\.1; expected none where log = true"),
    "log": ("optimizer.lr", RATE | {"log": 1}, r"\.log = 1; expected true or false"),
    "step": ("train.epochs", {"low": 1, "high": 5, "step": 0.5}, r"\.step = 0\.5; expected an integer"),
    "large step": (
        "train.epochs",
        {"low": 1, "high": 5, "step": 5},
        r"\.step = 5; expected more than 0 and at",
    ),
    "tiny step": (
        "optimizer.lr",
        {"low": 0.0, "high": 1.0, "step": 1e-300},
        r"\.step = 1e-300; expected at most 1e\+15 steps from low to high",
    ),
    "no low": ("optimizer.lr", {"high": 5.0}, r"\.low: this key is missing; add it, or give choices"),
    "text": ("optimizer.lr", {"low": "1", "high": 5.0}, r"\.low = '1'; expected a number"),
    "nan": ("optimizer.lr", {"low": math.nan, "high": 5.0}, r"\.low = nan; expected a finite number"),
    "unknown": ("optimizer.lr", RATE | {"hgih": 3}, r"\.hgih: unknown key; did you mean 'high'\?"),
    "both": ("optimizer.lr", RATE | {"choices": [0.1]}, r"\.low: unknown key; known: 'choices'"),
    "no table": ("optimizer.lr", 0.1, r"= 0\.1; expected \{low = …, high = …\} or \{choices = \[…\]\}"),
    "no choices": (
        "train.batch_size",
        {"choices": []},
        r"\.choices = \[\]; expected a list of 1 to 1000 values",
    ),
    "twice": ("train.batch_size", {"choices": [8, 8]}, r"\.choices\.1 = 8: this choice stands there twice"),
    "bad choice": (
        "train.batch_size",
        {"choices": [8, 0]},
        r"train\.batch_size = 0; expected an integer >= 1",
    ),
    "table": (
        "optimizer.lr",
        {"choices": [{"a": 1}]},
        r"\.choices\.0 = \{'a': 1\}; expected a number, a string",
    ),
    "float of a count": ("train.epochs", {"low": 1.0, "high": 3.0}, r"train\.epochs = 1\.0; expected an"),
    "no phases": ("phase.0.train.epochs", {"low": 1, "high": 3}, "the recipe has no 'phase', of which this"),
    "no number": (
        "phase.first.train.epochs",
        RATE,
        "expected the number of a phase, from 0 on, such as phase",
    ),
    "a phase's data": ("phase.0.data.shift", {"choices": ["rotated"]}, "can be tuned; known: 'clip_weights'"),
    "no quotes": (
        "optimizer",
        {"lr": {"initial": RATE}},
        r'dots stands in quotes: "optimizer\.lr\.initial" =',
    ),
    "no list there": ("model.hidden.0", {"low": 1, "high": 3}, r"model\.hidden"),
    "no table there": ("train.epochs.x", {"low": 1, "high": 3}, r"'x' can't be set in 4, which is no table"),
}


@pytest.mark.parametrize("case", AXES)
def test_what_is_wrong_with_a_space_is_said_in_one_line(case: str) -> None:
    key, axis, message = AXES[case]
    with pytest.raises(InputError, match=message) as caught:
        recipe({key: axis})
    assert f"tune.space.{key}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_wrong_with_the_section_is_said() -> None:
    for section, message in (
        ({"space": {}}, r"^tune\.space = \{\}; expected a table with a key for each hyperparameter$"),
        ({"metrc": "loss"}, r"^tune\.metrc: unknown key; did you mean 'metric'\?$"),
        ({"metric": "acuracy"}, r"^tune\.metric = 'acuracy'; did you mean 'accuracy'\?$"),
        ({"trials": 0}, r"^tune\.trials = 0; expected greater than or equal to 1$"),
        ({"validation_fraction": 1.0}, r"^tune\.validation_fraction = 1\.0; expected less than 1"),
    ):
        with pytest.raises(InputError, match=message):
            recipe(**section)
    with pytest.raises(
        InputError, match=r"^tune\.metric = 'accuracy': a regression has none; expected 'loss'$"
    ):
        recipe(task="regression", metric="accuracy")


numbers = st.floats(1e-6, 1e3) | st.integers(1, 10**6)
axes = st.one_of(
    st.builds(
        lambda low, more, log: {"low": low, "high": low + more, "log": log}, numbers, numbers, st.booleans()
    ),
    st.builds(
        lambda low, n, step: {"low": low, "high": low + n * step, "step": step},
        st.integers(0, 99), st.integers(1, 9), st.integers(1, 9),
    ),
    st.lists(st.floats(0, 9) | st.integers(0, 9), min_size=1, max_size=4, unique=True).map(
        lambda values: {"choices": values}
    ),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(axes)
def test_a_recipe_with_a_space_reads_back_as_it_was(axis: dict[str, Any]) -> None:
    found = recipe({"optimizer.lr": axis, "train.batch_size": {"choices": [8, "full"]}})
    table = found.to_dict()
    assert Recipe.parse(found.to_toml()) == Recipe.parse(found.to_json(), "json") == found
    assert Recipe.parse(found.to_toml()).to_dict() == table == json.loads(found.to_json())
    assert hash(found) == hash(Recipe.from_dict(table))


def test_kinds_of_axes() -> None:
    assert dict(tuned(recipe({"train.epochs": {"low": 1, "high": 5}})).space) == {"train.epochs": Range(1, 5)}
    mixed = tuned(recipe({"optimizer.lr": {"low": 0, "high": 0.5}})).space[0][1]
    assert (mixed, mixed.whole) == (Range(0.0, 0.5), False)
    choices = tuned(recipe({"train.shuffle": {"choices": [True, False]}})).space[0][1]
    assert isinstance(choices, Choices)
    assert not choices.holds(1)
    assert not Range(1, 5).holds(2.0)


def test_values_are_put_at_their_keys() -> None:
    found = recipe().tuned({"optimizer.lr": 0.5, "optimizer.momentum": 0.9, "train.epochs": 2})
    assert found.tune is None
    assert found.to_dict()["optimizer"] == {"name": "sgd", "lr": 0.5, "momentum": 0.9}
    table = {"a": [{"b": 1}, 2]}
    assert assigned(table, "a.0.b", 3) == {"a": [{"b": 3}, 2]}
    assert table == {"a": [{"b": 1}, 2]}
    with pytest.raises(InputError, match="'2' is no place in a list of 2"):
        assigned(table, "a.2", 3)


def test_a_value_may_need_another_of_the_space() -> None:
    nesterov = {"optimizer.nesterov": {"choices": [True, False]}}
    found = recipe(nesterov | {"optimizer.momentum": {"low": 0.1, "high": 0.9}})
    assert len(tuned(found).space) == 2
    with pytest.raises(
        InputError, match=r"^tune\.space\.optimizer\.nesterov: .*; expected a momentum above 0$"
    ):
        recipe(nesterov)
