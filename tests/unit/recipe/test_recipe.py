"""Recipes: exact both ways, and one line for whatever is wrong with one."""

from __future__ import annotations

import copy
import json
import os
import re
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from polyopt.core import tree
from polyopt.core.errors import InputError
from polyopt.core.rule import Chain, Partition
from polyopt.models.datasets import DATASETS
from polyopt.models.initializers import INITIALIZERS
from polyopt.optim import OPTIMIZERS, AdamW
from polyopt.optim.averaging import AVERAGING
from polyopt.optim.clipping import CLIPPING
from polyopt.recipe import Recipe
from polyopt.recipe.text import MAX_BYTES, parse, to_toml
from polyopt.schedules import SCHEDULES, Cosine, Warmup

RECIPES = sorted((Path(__file__).parents[3] / "recipes").glob("*.toml"))


def base(**changes: Any) -> dict[str, Any]:
    """A sound recipe; ``optimizer__lr=…`` sets a key of a section, ``optimizer__lr=None`` takes it out."""
    table: dict[str, Any] = {
        "seed": 3,
        "data": {"name": "digits"},
        "model": {"name": "mlp", "hidden": [8]},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "train": {"epochs": 2, "batch_size": 16},
    }
    for key, value in changes.items():
        *section, last = key.split("__")
        target = table
        for name in section:
            target = target.setdefault(name, {})
        if value is None:
            del target[last]
        else:
            target[last] = value
    return table


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"trian": {}}, r"^trian: unknown key; did you mean 'train'\?$"),
    ({"train__epoch": 3}, r"^train\.epoch: unknown key; did you mean 'epochs'\?$"),
    ({"train__epochs": "3"}, r"^train\.epochs = '3'; expected an? ?integer \(write 3 without quotes\)$"),
    ({"train__epochs": 0}, r"^train\.epochs = 0; expected greater than or equal to 1$"),
    ({"train__epochs": True}, r"^train\.epochs = True; expected an? ?integer"),
    ({"train__epochs": 2.0}, r"^train\.epochs = 2\.0; expected an? ?integer"),
    ({"train__epochs": None}, r"^train\.epochs: this key is missing; add it, or train\.steps$"),
    ({"train__steps": 4}, r"^train\.steps = 4 and epochs = 2; expected one of the two$"),
    ({"train__batch_size": "32"}, r"^train\.batch_size = '32'; expected an integer >= 1"),
    ({"train__batch_size": -1}, r"^train\.batch_size = -1"),
    ({"train__shuffle": 1}, r"^train\.shuffle = 1; expected a boolean"),
    ({"train__shuffle": "true"}, r"^train\.shuffle = 'true'; .*without quotes"),
    ({"train__nonfinite": "skp"}, r"^train\.nonfinite = 'skp'; did you mean 'skip'\?$"),
    ({"train": None}, r"^train: this key is missing; add it$"),
    ({"train": 3}, r"^train = 3; expected a table$"),
    ({"seed": "0"}, r"^seed = '0'"),
    ({"seed": -1}, r"^seed = -1"),
    ({"dtype": "float31"}, r"^dtype = 'float31'; did you mean 'float32'\?$"),
    ({"data__name": "digit"}, r"^data\.name = 'digit': unknown data set; did you mean 'digits'\?$"),
    ({"data__name": ["digits"]}, r"^data\.name = \['digits'\]: unknown data set"),
    ({"data__test_fraction": 1.0}, r"^data\.test_fraction = 1\.0; expected less than 1"),
    ({"data__test_fraction": float("nan")}, r"^data\.test_fraction = nan; expected"),
    ({"model__name": "mpl"}, r"^model\.name = 'mpl': unknown model; did you mean 'mlp'\?$"),
    ({"model__hidden": [8, "9"]}, r"^model\.hidden\.1 = '9'"),
    (
        {"model__activation": "rely"},
        r"^model\.activation = 'rely': unknown activation; did you mean 'relu'\?$",
    ),
    ({"model": {"name": "softmax", "hidden": [3]}}, r"^model\.hidden: a 'softmax' model has none"),
    ({"model": {"name": "linear"}}, r"^model\.name = 'linear' does no classification, which 'digits' is for"),
    (
        {"model__init": "glorto"},
        r"^model\.init\.name = 'glorto': unknown initializer; did you mean 'glorot'",
    ),
    ({"loss__name": "mean_squared_error"}, r"^loss\.name = 'mean_squared_error' is not for classification"),
    ({"loss__label_smoothing": 1.0}, r"^loss\.label_smoothing = 1\.0; expected less than 1"),
    ({"optimizer__name": "admw"}, r"^optimizer\.name = 'admw': unknown optimizer; did you mean 'adamw'\?$"),
    ({"optimizer__name": "os.system"}, r"^optimizer\.name = 'os\.system': unknown optimizer"),
    ({"optimizer__name": None}, r"^optimizer\.name: this key is missing"),
    ({"optimizer": None}, r"^optimizer: this key is missing; add it$"),
    ({"optimizer": None, "optimiser": {}}, r"^optimiser: unknown key; did you mean 'optimizer'\?$"),
    ({"optimizer__lrr": 1.0}, r"^optimizer\.lrr: 'adamw' has no such hyperparameter; did you mean 'lr'\?$"),
    ({"optimizer__lr": "0.1"}, r"^optimizer\.lr = '0\.1'; expected a number or a schedule"),
    ({"optimizer__lr": -0.1}, r"^optimizer\.lr = -0\.1; expected a finite number in \[0\.0, inf\]$"),
    ({"optimizer__lr": float("inf")}, r"^optimizer\.lr = inf; expected a finite number"),
    ({"optimizer__lr": True}, r"^optimizer\.lr = True; expected a number or a schedule"),
    ({"optimizer__lr": [0.1]}, r"^optimizer\.lr = \(0\.1,\); expected a number or a schedule"),
    ({"optimizer__lr": 1 << 5000}, r"^optimizer\.lr: an integer of 5001 bits; expected at most 4096$"),
    ({"optimizer__lr": 10**400}, r"^optimizer\.lr = 10*…0+; expected a finite number"),
    ({"optimizer__b1": 1.0}, r"^optimizer\.b1 = 1\.0; expected"),
    ({"optimizer__amsgrad": 1}, r"^optimizer\.amsgrad = 1; expected one of false, true$"),
    ({"optimizer__convention": "kers"}, r"^optimizer\.convention = 'kers'.*did you mean 'keras'\?$"),
    ({"optimizer__mask": "("}, r"^optimizer\.mask: '\(' is not a regular expression"),
    ({"optimizer__mask": 3}, r"^optimizer\.mask = 3; expected a string$"),
    (
        {"optimizer__lr": {"schedule": "cosin", "initial": 0.1, "steps": 3}},
        r"^optimizer\.lr\.schedule = 'cosin': unknown schedule; did you",
    ),
    ({"optimizer__lr": {"steps": 3}}, r"^optimizer\.lr\.schedule: this key is missing"),
    (
        {"optimizer__lr": {"schedule": "cosine", "initial": 0.1, "stps": 3}},
        r"^optimizer\.lr\.stps: 'cosine' has no such hyperparameter; did you mean 'steps'\?$",
    ),
    (
        {"optimizer__lr": {"schedule": "cosine", "initial": 0.1}},
        r"^optimizer\.lr\.steps: this key is missing",
    ),
    (
        {"optimizer__lr": {"schedule": "cosine", "initial": "0.1", "steps": 3}},
        r"^optimizer\.lr\.initial = '0\.1'; expected a finite number",
    ),
    (
        {"optimizer__lr": {"schedule": "cosine", "initial": -0.1, "steps": 3}},
        r"^optimizer\.lr\.initial = -0\.1; expected a finite number in \[0\.0, inf\]$",
    ),
    (
        {"optimizer__lr": {"schedule": "piecewise", "values": [0.1, -0.1], "boundaries": [3]}},
        r"^optimizer\.lr\.values\.1 = -0\.1; expected a finite number",
    ),
    (
        {"optimizer__b1": {"schedule": "warmup", "steps": 3, "then": {"schedule": "constant", "initial": 2}}},
        r"^optimizer\.b1\.then\.initial = 2; expected a finite number in \[0\.0, 1\.0\)$",
    ),
    (
        {"optimizer__lr": {"schedule": "constant", "initial": 10**400}},
        r"^optimizer\.lr\.initial = 10*…0+; expected a finite number",
    ),
    (
        {"optimizer__lr": {"schedule": "warmup", "steps": 3, "then": {"schedule": "constant", "vale": 1}}},
        r"^optimizer\.lr\.then\.vale: 'constant' has no such",
    ),
    (
        {"clip": {"name": "clip_by_norms", "max_norm": 1.0}},
        r"^clip\.name = 'clip_by_norms': unknown clipping; did you mean",
    ),
    ({"clip": {"name": "clip_by_norm", "max_norm": 0}}, r"^clip\.max_norm = 0; expected"),
    ({"ema": {"decay": 1.0}}, r"^ema\.decay = 1\.0; expected"),
    ({"partition": [{"pattern": "(", "freeze": True}]}, r"^partition\.0\.pattern: '\(' is not a regular"),
    ({"partition": [{"pattern": "x"}]}, r"^partition\.0: expected either an optimizer or freeze = true$"),
    (
        {"partition": [{"patern": "x", "freeze": True}]},
        r"^partition\.0\.(patern: unknown key|pattern: this key)",
    ),
    ({"partition": {"pattern": "x"}}, r"^partition = .*; expected"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[str(c)[:60] for c, _ in WRONG])
def test_what_is_wrong_is_said_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Recipe.from_dict(base(**changes))
    assert "\n" not in str(caught.value)


SEVERAL: list[tuple[dict[str, Any], list[str]]] = [
    (
        {"data__name": "digit", "optimizer__lrr": 0.1, "optimizer__b1": 1.0, "train__epoch": 3, "seed": "0"},
        [
            "train.epoch: unknown key; did you mean 'epochs'?",
            "seed = '0'; expected an integer (write 0 without quotes)",
            "data.name = 'digit': unknown data set; did you mean 'digits'?",
            "optimizer.lrr: 'adamw' has no such hyperparameter; did you mean 'lr'?",
            "optimizer.b1 = 1.0; expected a finite number in [0.0, 1.0)",
        ],
    ),
    # What is checked only once each table is sound by itself.
    (
        {
            "optimiser": {"name": "sgd"},
            "optimizer": None,
            "train__steps": 3,
            "loss__name": "mean_squared_error",
        },
        [
            "optimiser: unknown key; did you mean 'optimizer'?",
            "train.steps = 3 and epochs = 2; expected one of the two",
            "loss.name = 'mean_squared_error' is not for classification; expected 'cross_entropy', or "
            "leave it out",
        ],
    ),
    (
        {
            "phase": [
                {"name": "a", "quantize": {"bits": 4}, "train": {"epochs": 1}},
                {"name": "b", "train": {"epochs": 1}, "optimizer": {"name": "smg"}},
            ],
            "tune__space": {"optimizer.lr": {"low": -1.0, "high": 1.0}, "train.epoch": {"low": 1, "high": 2}},
        },
        [
            "phase.0.train: nothing is trained here; leave it out, or add quantize.aware = true",
            "phase.1.optimizer.name = 'smg': unknown optimizer; did you mean 'sgd'?",
            "tune.space.optimizer.lr: optimizer.lr = -1.0; expected a finite number in [0.0, inf]",
            "tune.space.train.epoch: train.epoch: unknown key; did you mean 'epochs'?",
        ],
    ),
]


@pytest.mark.parametrize(("changes", "mistakes"), SEVERAL)
def test_all_mistakes_are_told_at_once(changes: dict[str, Any], mistakes: list[str]) -> None:
    table = base(**changes)
    before = copy.deepcopy(table)
    with pytest.raises(InputError) as caught:
        Recipe.from_dict(table)
    told = str(caught.value)
    assert told.startswith(f"{len(mistakes)} mistakes: (1) ")
    assert re.split(r" ?\(\d+\) ", told)[1:] == mistakes
    assert table == before


def test_very_many_mistakes_are_counted() -> None:
    with pytest.raises(InputError, match=r"^30 mistakes: .* \(20\) \w+: unknown key; .* and 10 more$"):
        Recipe.from_dict(base(**{f"key{i}": 1 for i in range(30)}))


def test_it_can_not_be_changed() -> None:
    recipe = Recipe.from_dict(base())
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 1
    with pytest.raises(ValueError, match="frozen"):
        recipe.train.epochs = 1
    with pytest.raises(AttributeError):
        recipe.optimizer.name = "sgd"  # type: ignore[misc]
    assert hash(recipe) == hash(Recipe.from_dict(base()))


def test_the_callers_dict_stays() -> None:
    table = base(partition=[{"pattern": "bias", "freeze": True}], ema={"decay": 0.5})
    before = copy.deepcopy(table)
    Recipe.from_dict(table)
    assert table == before


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipes_that_are_shipped(path: Path) -> None:
    recipe = Recipe.load(path)
    assert recipe.name == path.stem
    check_round_trips(recipe)
    recipe.build_optimizer()


def check_round_trips(recipe: Recipe) -> None:
    table = recipe.to_dict()
    assert Recipe.from_dict(table) == recipe
    assert Recipe.parse(recipe.to_toml(), "toml") == recipe
    assert Recipe.parse(recipe.to_json(), "json") == recipe
    assert Recipe.parse(recipe.to_toml()).to_dict() == table == json.loads(recipe.to_json())


rates = st.floats(0.0, 1e300) | st.integers(0, 10**6)
numbers = st.recursive(
    rates,
    lambda inner: st.one_of(
        st.builds(
            lambda i, n: {"schedule": "cosine", "initial": i, "steps": n}, rates, st.integers(1, 10**9)
        ),
        st.builds(
            lambda i, m: {"schedule": "multi_step", "initial": i, "milestones": sorted(m)},
            rates,
            st.lists(st.integers(0, 1000), max_size=3),
        ),
        st.builds(
            lambda then, n: {"schedule": "warmup", "then": then, "steps": n},
            inner.filter(lambda x: isinstance(x, dict)) | st.just({"schedule": "constant", "initial": 1.0}),
            st.integers(0, 99),
        ),
    ),
    max_leaves=3,
)
optimizers = st.builds(
    lambda name, lr, decay, more: {"name": name, "lr": lr, "weight_decay": decay} | more,
    st.sampled_from(["adam", "adamw", "sgd", "rmsprop"]),
    numbers,
    st.floats(0.0, 1.0),
    st.sampled_from([{}, {"convention": "torch"}, {"mask": 'we"i\\.ght$'}]),
)
patterns = st.text(string.ascii_letters + " \"'\\#.é\U0001f600\t\x7f", max_size=6).filter(
    lambda s: "\\" not in s
)
tables = st.fixed_dictionaries(
    {
        "data": st.just({"name": "digits", "test_fraction": 0.25}),
        "model": st.sampled_from(
            [{"name": "softmax"}, {"name": "mlp", "hidden": [3, 4], "init": "orthogonal"}]
        ),
        "optimizer": optimizers,
        "train": st.sampled_from([{"epochs": 3, "batch_size": "full"}, {"steps": 7, "batch_size": 1}]),
    },
    optional={
        "name": st.text(max_size=20).filter(lambda s: not any("\ud800" <= c <= "\udfff" for c in s)),
        "seed": st.integers(0, 2**63 - 1),
        "dtype": st.sampled_from(["float32", "float64"]),
        "loss": st.builds(lambda x: {"label_smoothing": x}, st.floats(0.0, 0.99)),
        "partition": st.lists(
            st.builds(lambda p, o: {"pattern": p, "optimizer": o}, patterns, optimizers)
            | st.builds(lambda p: {"pattern": p, "freeze": True}, patterns),
            max_size=3,
        ),
        "clip": st.builds(lambda n: {"name": "clip_by_global_norm", "max_norm": n}, st.floats(1e-300, 1e300)),
        "ema": st.builds(lambda d: {"decay": d}, st.floats(0.0, 0.999)),
    },
)


@settings(max_examples=80, deadline=None)
@given(tables)
def test_round_trips_are_exact(table: dict[str, Any]) -> None:
    check_round_trips(Recipe.from_dict(table))


plain = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(max_size=5), plain, max_size=4))
def test_the_toml_writer_is_exact(table: dict[str, Any]) -> None:
    assert repr_sorted(parse(to_toml(table), "toml")) == repr_sorted(table)


def repr_sorted(value: Any) -> str:
    """A form in which 1 and 1.0, 0.0 and -0.0 differ, whatever the order of keys."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{k!r}:{repr_sorted(v)}" for k, v in sorted(value.items())) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(repr_sorted, value)) + "]"
    return repr(value)


@settings(max_examples=80, deadline=None)
@example({"\n": False})
@given(st.one_of(plain, st.fixed_dictionaries(dict.fromkeys(base(), plain))))
def test_junk_is_refused_in_one_line(table: Any) -> None:
    with pytest.raises(InputError) as caught:
        Recipe.from_dict(table if isinstance(table, dict) else {"data": table})
    assert "\n" not in str(caught.value)


FILES: dict[str, tuple[str, bytes, str]] = {
    "suffix": ("x.yaml", b"a: 1", "a recipe is a .toml or .json file"),
    "utf8": ("x.toml", b'name = "\xff"', "not UTF-8 at byte 8"),
    "toml": ("x.toml", b"name = = 3", "not valid TOML"),
    "json": ("x.json", b"{", "not valid JSON"),
    "twice": ("x.json", b'{"seed": 1, "seed": 2}', "seed: this key stands twice"),
    "twice in TOML": ("x.toml", b"seed = 1\nseed = 2", "not valid TOML: Cannot overwrite a value"),
    "list": ("x.json", b"[1]", "expected a table, found list"),
    "deep": ("x.json", b"[" * 100_000 + b"]" * 100_000, "nested"),
    "deep TOML": ("x.toml", b"a = " + b"[" * 5_000 + b"]" * 5_000, "nested"),
    "large": ("x.toml", b"#" * (MAX_BYTES + 1), "larger than a recipe may be"),
    "surrogate": ("x.json", b'{"name": "\\ud800"}', "lone surrogate"),
    "NaN": ("x.json", b'{"seed": NaN}', "seed = nan"),
    "integer": ("x.json", b'{"seed": ' + b"9" * 5000 + b"}", "not valid JSON"),
}


@pytest.mark.parametrize("case", FILES)
def test_files_that_are_no_recipes(tmp_path: Path, case: str) -> None:
    name, content, message = FILES[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        Recipe.load(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


def test_places_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "directory.toml").mkdir()
    os.mkfifo(tmp_path / "fifo.toml")
    for name in ("none.toml", "directory.toml", "fifo.toml", "a\0.toml"):
        with pytest.raises(InputError):
            Recipe.load(tmp_path / name)


def test_replace() -> None:
    recipe = Recipe.from_dict(base())
    assert recipe.replace(seed=7, dtype="float64", epochs=None).to_dict() == recipe.to_dict() | {
        "seed": 7,
        "dtype": "float64",
    }
    assert recipe.replace(steps=5).train.epochs is None
    assert recipe.replace(steps=5).replace(epochs=4).train.steps is None
    assert recipe.replace(batch_size="full").train.epochs == 2
    with pytest.raises(InputError, match="did you mean 'seed'"):
        recipe.replace(sed=3)
    with pytest.raises(InputError, match=r"train\.steps = 0"):
        recipe.replace(steps=0)


def test_steps() -> None:
    recipe = Recipe.from_dict(base())
    assert [recipe.total_steps(n) for n in (16, 17, 32, 33)] == [2, 4, 4, 6]
    assert Recipe.from_dict(base(train__drop_last=True)).total_steps(33) == 4
    assert recipe.replace(batch_size="full").total_steps(1000) == 2
    assert recipe.replace(batch_size=1).total_steps(10) == 20
    with pytest.raises(InputError, match=r"train\.batch_size = 16; expected at most the 15 training samples"):
        recipe.total_steps(15)


def test_the_optimizer_that_it_builds() -> None:
    schedule = {"schedule": "cosine", "initial": 0.1, "steps": 9}
    table = base(
        optimizer__lr={"schedule": "warmup", "steps": 2, "then": schedule},
        optimizer__convention="keras",
        clip={"name": "clip_by_global_norm", "max_norm": 1.0},
        ema={"decay": 0.9},
        partition=[
            {"pattern": "bias$", "optimizer": {"name": "sgd", "lr": 1.0}},
            {"pattern": "0", "freeze": True},
        ],
        train__accumulate=2,
        train__nonfinite="skip",
    )
    optimizer = Recipe.from_dict(table).build_optimizer()
    assert (optimizer.accumulate, optimizer.nonfinite, optimizer.reduce) == (2, "skip", "mean")
    assert isinstance(optimizer.rule, Chain)
    clip, parts, average = optimizer.rule.stages
    assert (type(clip).__name__, type(average).__name__) == ("ClipByGlobalNorm", "EMA")
    assert isinstance(parts, Partition)
    assert parts.members[1] == ("0", None)
    assert parts.members[2] == (".*", AdamW(lr=Warmup(Cosine(0.1, 9), 2), convention="keras"))
    params = {"layers": [{"weight": np.ones((2, 2)), "bias": np.zeros(2)} for _ in range(2)]}
    new, _ = optimizer.step(params, params, optimizer.init(params))
    assert tree.flatten(new).paths == tree.flatten(params).paths


def test_a_bare_name_will_do() -> None:
    assert Recipe.from_dict(base(optimizer="adamw")) == Recipe.from_dict(base(optimizer={"name": "adamw"}))


def test_all_names_are_known() -> None:
    """What a recipe may name is what the registries hold."""
    for name in OPTIMIZERS:
        Recipe.from_dict(base(optimizer={"name": name}))
    assert {"he", "glorot", "zeros"} <= set(INITIALIZERS)
    assert "ema" in AVERAGING
    assert "cosine" in SCHEDULES
    assert "clip_by_global_norm" in CLIPPING
    assert set(DATASETS) == {"digits", "diabetes", "breast_cancer"}
