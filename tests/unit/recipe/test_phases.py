"""``[[phase]]``: exact both ways, and one line for whatever is wrong with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.recipes import check_round_trips
from hypothesis import given, settings
from hypothesis import strategies as st

from polyopt.core.errors import InputError
from polyopt.models import datasets
from polyopt.pruning import Gradual, OneShot
from polyopt.quantization import Cast, Integer
from polyopt.recipe import Recipe
from polyopt.recipe import datasets as named_datasets
from polyopt.testing import assert_same_bits
from polyopt.training.phases.plan import tasks

RECIPES = Path(__file__).parents[3] / "recipes"
EPOCH = {"epochs": 1}
STUDENT = {"model": {"name": "softmax"}}


def recipe(*phases: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A sound run with these phases, called ``a``, ``b``, … where they have no name."""
    named = [{"name": chr(ord("a") + i)} | phase for i, phase in enumerate(phases)]
    table: dict[str, Any] = {
        "data": {"name": "digits"},
        "model": {"name": "mlp", "hidden": [8]},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "train": {"epochs": 1},
        "phase": named,
    }
    return table | changes


WRONG: list[tuple[dict[str, Any], str]] = [
    (recipe({"prun": {}}), r"^phase\.0\.prun: unknown key; did you mean 'prune'\?$"),
    (recipe({"prune": {"sparsty": 0.5}}), r"^phase\.0\.prune\.sparsty: unknown key; did you mean 'sparsity'"),
    (
        recipe({"prune": {"sparsity": 1.0}}),
        r"^phase\.0\.prune\.sparsity = 1\.0; expected a number in \[0, 1\)",
    ),
    (recipe({"prune": {"sparsity": -0.1}}), r"^phase\.0\.prune\.sparsity = -0\.1; expected"),
    (recipe({"prune": {"sparsity": float("nan")}}), r"^phase\.0\.prune\.sparsity = nan; expected"),
    (recipe({"prune": {"sparsity": True}}), r"^phase\.0\.prune\.sparsity = True; expected"),
    (
        recipe({"prune": {"sparsity": {"schedule": "gradul", "end": 0.8, "steps": 3}}, "train": EPOCH}),
        r"^phase\.0\.prune\.sparsity\.schedule = 'gradul': unknown sparsity; did you mean 'gradual'\?$",
    ),
    (
        recipe({"prune": {"sparsity": {"schedule": "gradual", "end": 1.0, "steps": 4}}, "train": EPOCH}),
        r"^phase\.0\.prune\.sparsity\.end = 1\.0; expected a number in \[0, 1\)$",
    ),
    (
        recipe({"prune": {"sparsity": {"schedule": "gradual", "end": 0.5, "steps": 4}}}),
        r"^phase\.0\.train: this key is missing",
    ),
    (recipe({"prune": {"sparsity": 0.5, "select": "("}}), r"^phase\.0\.prune\.select: '\(' is not a regular"),
    (recipe({"quantize": {"bits": 5}}), r"^phase\.0\.quantize\.bits = 5; expected 4 or 8$"),
    (recipe({"quantize": {"bits": "8"}}), r"\.bits = '8'; expected 4 or 8 \(without quotes\)$"),
    (recipe({"quantize": {"method": 3}}), r"\.method = 3; expected 'nearest' or 'gptq'$"),
    (recipe({"quantize": {"per": "group"}}), r"^phase\.0\.quantize: per = 'group' with group_size = None"),
    (
        recipe({"quantize": {"dtype": "bfloat16", "bits": 8}}),
        r"^phase\.0\.quantize\.bits: dtype = 'bfloat16'",
    ),
    (recipe({"quantize": {"dtype": "bfloat61"}}), r"^phase\.0\.quantize\.dtype = 'bfloat61'; did you mean"),
    (recipe({"quantize": {}, "train": EPOCH}), r"^phase\.0\.train: nothing is trained here"),
    (recipe({"quantize": {"aware": True}}), r"^phase\.0\.train: this key is missing"),
    (
        recipe({"quantize": {"method": "gtpq"}}),
        r"^phase\.0\.quantize\.method = 'gtpq'; did you mean 'gptq'\?$",
    ),
    (
        recipe({"quantize": {"damping": 0.1}}),
        r"^phase\.0\.quantize\.damping: only for method = 'gptq'; found 'nearest'$",
    ),
    (
        recipe({"quantize": {"method": "gptq", "damping": -0.1}}),
        r"^phase\.0\.quantize\.damping = -0\.1; expected",
    ),
    (
        recipe({"quantize": {"method": "gptq", "dtype": "float16"}}),
        r"^phase\.0\.quantize\.dtype: method = 'gptq' gives integers; give one of the two$",
    ),
    (
        recipe({"quantize": {"method": "gptq", "aware": True}, "train": EPOCH}),
        r"^phase\.0\.quantize\.aware = True: training goes through rounding to nearest, and method = 'gptq'",
    ),
    (
        recipe({"quantize": {"activations": {"observer": "minmax"}}}),
        r"^phase\.0\.quantize\.activations\.observer = 'minmax'; did you mean 'min_max'\?$",
    ),
    (
        recipe({"quantize": {"activations": {"percent": 99.0}}}),
        r"^phase\.0\.quantize\.activations\.percent: only for observer = 'percentile'; found 'min_max'$",
    ),
    (
        recipe({"quantize": {"activations": {"observer": "percentile", "percent": 20.0}}}),
        r"^phase\.0\.quantize\.activations\.percent = 20\.0; expected greater than or equal to 50$",
    ),
    (
        recipe({"quantize": {"activations": {"sample": 9}}}),
        r"^phase\.0\.quantize\.activations\.sample: unknown key; did you mean 'samples'\?$",
    ),
    (
        recipe({"quantize": {"activations": {"samples": 0}}}),
        r"^phase\.0\.quantize\.activations\.samples = 0; expected greater than or equal to 1$",
    ),
    (
        recipe({"quantize": {"dtype": "float16", "activations": {}}}),
        r"^phase\.0\.quantize\.activations: dtype = 'float16' has none; give one of the two$",
    ),
    (recipe({"finetune": {}}), r"^phase\.0\.train: this key is missing"),
    (recipe({"finetune": {"decay": 0.0}, "train": EPOCH}), r"^phase\.0\.finetune\.decay = 0\.0; expected"),
    (
        recipe({"finetune": {"rates": {"x": -1}}, "train": EPOCH}),
        r"^phase\.0\.finetune\.rates\.x = -1; expected a finite number >= 0$",
    ),
    (
        recipe({"prune": {"sparsity": 0.5}, "quantize": {}}),
        r"^phase\.0\.quantize: this phase has 'prune' too; expected one of them in a phase$",
    ),
    (recipe({"distil": {}, "train": EPOCH}), r"^phase\.0\.distil\.model: this key is missing"),
    (
        recipe({"distil": STUDENT | {"temperature": 0.0}, "train": EPOCH}),
        r"^phase\.0\.distil\.temperature = 0\.0; expected",
    ),
    (
        recipe({"name": "big", "train": EPOCH}, {"distil": STUDENT | {"teacher": "bgi"}, "train": EPOCH}),
        r"^phase\.1\.distil\.teacher = 'bgi': no earlier phase; did you mean 'big'\?$",
    ),
    (
        recipe({"distil": STUDENT | {"teacher": "a"}, "train": EPOCH}),
        r"^phase\.0\.distil\.teacher = 'a': no earlier phase; known: 'base', 'previous'$",
    ),
    (
        recipe({"name": "x", "train": EPOCH}, {"name": "x", "train": EPOCH}),
        r"^phase\.1\.name = 'x': an earlier phase has this name$",
    ),
    (recipe({"name": "base", "train": EPOCH}), r"^phase\.0\.name = 'base'; expected another one"),
    (
        recipe({"data": {"shift": "rotatd"}, "train": EPOCH}),
        r"^phase\.0\.data\.shift = 'rotatd': unknown shift",
    ),
    (recipe({"data": {"labels": [1]}, "train": EPOCH}), r"^phase\.0\.data\.labels"),
    (
        recipe({"data": {"name": "diabetes"}, "train": EPOCH}),
        r"^phase\.0: loss\.name = 'cross_entropy' is not for regression",
    ),
    (
        recipe({"prune": {"criterion": "magnitud", "sparsity": 0.5}}),
        r"^phase\.0\.prune\.criterion = 'magnitud'; did you mean 'magnitude'\?$",
    ),
    (recipe({"prune": {"criterion": "snip"}}), r"^phase\.0\.prune\.sparsity: this key is missing; add it$"),
    (
        recipe({"prune": {"criterion": "n_of_m", "sparsity": 0.5}}),
        r"^phase\.0\.prune\.sparsity: 'n_of_m' has none; leave it out$",
    ),
    (recipe({"prune": {"criterion": "n_of_m", "n": 5}}), r"^phase\.0\.prune\.n = 5; expected at most m = 4$"),
    (
        recipe({"prune": {"sparsity": 0.5, "shrink": True}}),
        r"^phase\.0\.prune\.shrink: only for criterion = 'structured'; found 'magnitude'$",
    ),
    (
        recipe({"prune": {"criterion": "wanda", "sparsity": 0.5, "sample": 3}}),
        r"^phase\.0\.prune\.sample: unknown key; did you mean 'samples'\?$",
    ),
    (
        recipe({"prune": {"sparsity": 0.5, "scope": "row"}}),
        r"^phase\.0\.prune\.scope = 'row', for criterion = 'magnitude'; known: 'global', 'leaf'$",
    ),
    (
        recipe({"prune": {"sparsity": 0.5, "rewind": "strat"}}),
        r"^phase\.0\.prune\.rewind = 'strat'; did you mean 'start'\?$",
    ),
    (
        recipe({"prune": {"criterion": "movement", "sparsity": 0.5}}),
        r"^phase\.0\.prune\.sparsity = 0\.5: movement is seen in training; expected a schedule",
    ),
    (recipe({"prune": {"criterion": "threshold"}}), r"^phase\.0\.prune: no limit; expected minimum, maximum"),
    (recipe({"clip_weights": {}}), r"^phase\.0\.clip_weights: no limit; expected minimum or maximum$"),
    (
        recipe({"clip_weights": {"minimum": 1.0, "maximum": -1.0}}),
        r"^phase\.0\.clip_weights\.minimum = 1\.0 is above maximum = -1\.0$",
    ),
    (
        recipe({"finetune": {"lora": {"rnk": 2, "alpha": 1.0}}, "train": EPOCH}),
        r"^phase\.0\.finetune\.lora\.rnk: unknown key; did you mean 'rank'\?$",
    ),
    (
        recipe({"finetune": {"lora": {"rank": 0, "alpha": 1.0}}, "train": EPOCH}),
        r"^phase\.0\.finetune\.lora\.rank = 0; expected greater than or equal to 1$",
    ),
    (
        recipe({"finetune": {"lora": {"rank": 2, "alpha": 0.0}}, "train": EPOCH}),
        r"^phase\.0\.finetune\.lora\.alpha = 0\.0; expected greater than 0$",
    ),
    (
        recipe({"finetune": {"lora": {"rank": 2, "alpha": 1.0}, "freeze": ["bias"]}, "train": EPOCH}),
        r"^phase\.0\.finetune\.freeze: lora trains its adapters alone; give one of the two$",
    ),
    (recipe({"finetune": {"lora": {"rank": 2, "alpha": 1.0}}}), r"^phase\.0\.train: this key is missing"),
    (
        recipe({"finetune": {"unfreez": {"steps": 2}}, "train": EPOCH}),
        r"^phase\.0\.finetune\.unfreez: unknown key; did you mean 'unfreeze'\?$",
    ),
    (
        recipe({"finetune": {"unfreeze": {"steps": [4, 2]}}, "train": EPOCH}),
        r"^phase\.0\.finetune\.unfreeze\.steps = \[4, 2\]; expected them in order, each once$",
    ),
    (
        recipe({"finetune": {"unfreeze": {"steps": 0}}, "train": EPOCH}),
        r"^phase\.0\.finetune\.unfreeze\.steps = 0; expected an integer >= 1, or a list of them$",
    ),
    (
        recipe({"finetune": {"l2sp": {}}, "train": EPOCH}),
        r"^phase\.0\.finetune\.l2sp\.alpha: this key is missing; add it$",
    ),
]


@pytest.mark.parametrize(("table", "message"), WRONG, ids=[m[:50] for _, m in WRONG])
def test_what_is_wrong_is_said_in_one_line(table: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Recipe.from_dict(table)
    assert "\n" not in str(caught.value)


UNFIT: list[tuple[dict[str, Any], str]] = [
    (
        recipe({"name": "few", "prune": {"sparsity": 0.5, "select": "layer.1.wieght$"}}),
        r"^phase 'few': magnitude_masks: select = .* matches no .*; did you mean 'layers\.1\.weight'\?$",
    ),
    (
        recipe({"finetune": {"freeze": ["^body"]}, "train": EPOCH}),
        r"^phase 'a': pattern '\^body' matches no parameter; known: 'layers\.0\.bias'",
    ),
    (recipe({"finetune": {"reinit": ["^body"]}, "train": EPOCH}), r"^phase 'a': pattern '\^body' matches no"),
    (recipe({"finetune": {"rates": {"^body": 2}}, "train": EPOCH}), r"^phase 'a': .*'\^body' matches no"),
    (
        recipe({"quantize": {"bits": 4, "group_size": 7}}),
        r"^phase 'a': leaf 'layers\.0\.weight': group_size = 7 does not divide axis 0",
    ),
    (
        recipe({"quantize": {"select": "^body"}}),
        r"^phase 'a': quantize: select = '\^body' matches no parameter",
    ),
    (
        recipe({"data": {"labels": [0, 1, 2]}, "train": EPOCH}),
        r"^phase 'a': parameter 'layers\.1\.bias' has shape \(10,\), and these data need \(3,\): add "
        r"a pattern that matches it to finetune\.reinit$",
    ),
    (
        recipe({"data": {"labels": [0, 1]}, "distil": STUDENT, "train": EPOCH}),
        r"^phase 'a': distil\.teacher = 'previous' has 10 classes; the student's data have 2: expected",
    ),
    (
        recipe({"data": {"labels": [0, 11]}, "train": EPOCH}),
        r"^phase 'a': labels = \[0, 11\]; expected two or",
    ),
    (
        recipe({"data": {"shift": "rotated"}, "train": EPOCH}, data={"name": "breast_cancer"}),
        r"^phase 'a': shift = 'rotated': the 30 features of 'breast_cancer' are no square image$",
    ),
    (
        recipe({"train": EPOCH | {"batch_size": 4000}}),
        r"^phase 'a': train\.batch_size = 4000; expected at most the 1438 training samples",
    ),
    (
        recipe({"train": EPOCH, "optimizer": {"name": "adamw", "mask": "wieght"}}),
        r"^phase 'a': AdamW: mask = 'wieght' matches no parameter",
    ),
    (
        recipe({"prune": {"criterion": "structured", "sparsity": 0.5}}, model={"name": "softmax"}),
        r"^phase 'a': prune\.criterion = 'structured': this model has no hidden neurons$",
    ),
    (
        recipe({"prune": {"criterion": "structured", "sparsity": 0.5, "select": "layers.1"}}),
        r"^phase 'a': pattern 'layers\.1' matches no parameter; did you mean 'layers\.0\.weight'",
    ),
    (
        recipe({"prune": {"criterion": "structured", "sparsity": 0.99}}),
        r"^phase 'a': structured_masks: a sparsity of 0\.99 would prune all 8 units of 'layers\.0\.weight'",
    ),
    (
        recipe({"prune": {"criterion": "n_of_m", "m": 5}}),
        r"^phase 'a': n_of_m_masks: leaf 'layers\.0\.weight' has shape \(64, 8\); expected a multiple of 5",
    ),
    (
        recipe({"prune": {"criterion": "snip", "sparsity": 0.5, "samples": 9999}}),
        r"^phase 'a': prune\.samples = 9999; expected at most the 1438 training samples$",
    ),
    (
        recipe({"finetune": {"lora": {"rank": 9, "alpha": 1.0}}, "train": EPOCH}),
        r"^phase 'a': LoRA: rank = 9 for leaf 'layers\.0\.weight' of shape \(64, 8\)",
    ),
    (
        recipe({"finetune": {"lora": {"rank": 1, "alpha": 1.0, "pattern": "wieght"}}, "train": EPOCH}),
        r"^phase 'a': pattern 'wieght' matches no parameter",
    ),
    (
        recipe({"finetune": {"lora": {"rank": 1, "alpha": 1.0}, "reinit": ["weight"]}, "train": EPOCH}),
        r"^phase 'a': finetune\.lora: no weight is left to adapt, all that match are drawn anew$",
    ),
    (
        recipe(
            {"finetune": {"lora": {"rank": 1, "alpha": 1.0}}, "train": EPOCH},
            optimizer={"name": "adamw", "mask": "bias$"},
        ),
        r"^phase 'a': AdamW: mask = 'bias\$' matches no parameter",
    ),
    (
        recipe({"finetune": {"unfreeze": {"steps": 2, "layers": ["^lyers", "x"]}}, "train": EPOCH}),
        r"^phase 'a': pattern '\^lyers' matches no parameter",
    ),
    (
        recipe({"finetune": {"unfreeze": {"steps": [1, 2, 3]}}, "train": EPOCH}),
        r"^phase 'a': GradualUnfreezing: 3 steps and 1 layers below the top",
    ),
    (
        recipe({"finetune": {"freeze": ["layers"]}, "train": EPOCH}),
        r"^phase 'a': finetune: every parameter is frozen; expected one that is trained$",
    ),
    (
        recipe({"clip_weights": {"minimum": 0.0, "select": "^body"}}),
        r"^phase 'a': clip_weights: select = '\^body' matches no parameter",
    ),
]


@pytest.mark.parametrize(("table", "message"), UNFIT, ids=[m[:50] for _, m in UNFIT])
def test_what_does_not_fit_is_said_before_anything_is_trained(table: dict[str, Any], message: str) -> None:
    found = Recipe.from_dict(table)
    with pytest.raises(InputError, match=message) as caught:
        tasks(found)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changes", [{"shift": "inverted"}, {"labels": [0, 1]}, {"standardize": False}])
def test_embeddings_are_what_they_are(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"'vader' has none of it; leave it out"):
        Recipe.from_dict(recipe(data={"name": "vader"} | changes, phase=[])).data.load()


numbers = st.floats(0.0, 0.99)
fines = st.fixed_dictionaries(
    {},
    optional={
        "freeze": st.lists(st.sampled_from(["^layers", 'bi"as', r"\.0\."]), max_size=2),
        "reinit": st.lists(st.sampled_from(["^layers", "weight$"]), max_size=2),
        "rates": st.dictionaries(
            st.sampled_from(["a.b", r"\d$", "x"]), st.integers(0, 9) | numbers, max_size=2
        ),
        "weight_decay": st.dictionaries(st.sampled_from(["a.b", "é"]), numbers, max_size=2),
        "decay": st.floats(0.1, 1.0),
        "unfreeze": st.sampled_from([{"steps": 3}, {"steps": [1, 5], "layers": ["a", "b", "c"]}]),
        "l2sp": st.sampled_from([{"alpha": 0.1}, {"alpha": 1, "beta": 0.5}]),
    },
)
adapters = st.fixed_dictionaries(
    {"rank": st.integers(1, 9), "alpha": st.floats(0.5, 9.0)},
    optional={"pattern": st.just(r"\.0\."), "scaling": st.just("rank_stabilized")},
)
sparsities = numbers | st.builds(
    lambda end, n: {"schedule": "gradual", "end": end, "steps": 3 * n, "every": 3},
    numbers,
    st.integers(1, 99),
)
prunes = st.fixed_dictionaries(
    {"sparsity": sparsities},
    optional={"criterion": st.just("random"), "scope": st.just("global"), "select": st.just("weight$")},
)
criteria = st.sampled_from(
    [
        {"criterion": "n_of_m", "n": 1},
        {"criterion": "wanda", "sparsity": 0.5},
        {"criterion": "snip", "sparsity": 0.5, "samples": 7, "scope": "leaf"},
        {"criterion": "structured", "sparsity": 0.5, "norm": 1, "shrink": True, "scope": "global"},
        {"criterion": "threshold", "magnitude": 0.1, "select": "weight$"},
        {"sparsity": {"schedule": "iterative", "end": 0.5, "rounds": 2}, "rewind": "initial"},
        {"criterion": "movement", "sparsity": {"schedule": "iterative", "end": 0.5, "rounds": 2}},
    ]
)
quantizations = st.sampled_from(
    [
        {},
        {"bits": 4, "group_size": 8},
        {"dtype": "float16"},
        {"per": "tensor", "symmetric": False},
        {"method": "gptq", "bits": 4, "order": "activation"},
        {"activations": {}},
        {"method": "gptq", "activations": {"observer": "percentile", "bits": 4}, "samples": 9},
    ]
)
LAYERS = {"student": ["layers.0", "output"], "teacher": ["layers.0", "output"], "weight": 2}
students = st.builds(
    lambda t, a, more: STUDENT | {"temperature": t, "alpha": a} | more,
    st.floats(0.1, 9),
    numbers,
    st.sampled_from(
        [
            {},
            {"loss": "decoupled", "beta": 2, "standardize": True},
            {"teacher": ["base", "previous"], "weights": [1, 2.5], "hint": LAYERS},
            {"distance": LAYERS | {"convention": "torch"}, "attention": LAYERS | {"power": 4}},
        ]
    ),
)
phases = st.one_of(
    st.builds(lambda x: {"finetune": x, "train": EPOCH}, fines),
    st.builds(lambda x: {"prune": x, "train": {"steps": 3, "batch_size": "full"}}, prunes),
    st.builds(lambda x: {"prune": x, "train": EPOCH}, criteria),
    st.builds(lambda x: {"finetune": {"lora": x}, "train": EPOCH}, adapters),
    st.builds(lambda x: {"clip_weights": {"minimum": -x, "share": 0.5}}, numbers),
    st.builds(lambda x: {"quantize": x}, quantizations),
    st.builds(lambda x: {"distil": x, "train": EPOCH, "optimizer": {"name": "sgd", "lr": 0.1}}, students),
    st.builds(
        lambda x: {"data": {"shift": x}, "train": EPOCH, "seed": 7}, st.sampled_from(sorted(datasets.SHIFTS))
    ),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(phases, max_size=4))
def test_round_trips_are_exact(found: list[dict[str, Any]]) -> None:
    check_round_trips(Recipe.from_dict(recipe(*found)))


@pytest.mark.parametrize(
    "path",
    [
        path for path in sorted(RECIPES.glob("*.toml")) if path.stem != "minilm_whole"
    ],  # test_recipe_encoder.py
    ids=lambda p: p.stem,
)
def test_recipes_that_are_shipped_fit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # In the place of a minute's work of a transformer: data of that shape.
    draw = np.random.default_rng(0).normal(size=(20, 384))
    zeros = np.zeros(10, np.int64)
    fake = datasets.Dataset(
        "vader", "classification", 2, draw[:10].repeat(9, 0), zeros.repeat(9), draw[10:], zeros
    )
    monkeypatch.setattr(named_datasets, "_snippets", lambda test, split_seed: fake)
    found = Recipe.load(path)
    assert len(tasks(found)) == 1 + len(found.phase)


def test_a_phase_is_a_recipe_with_what_changed() -> None:
    found = Recipe.from_dict(
        recipe(
            {"data": {"shift": "inverted"}, "train": {"steps": 5}, "optimizer": {"name": "sgd", "lr": 0.5}},
            {"distil": {"model": {"name": "mlp", "hidden": [3]}}, "train": EPOCH, "seed": 9},
            {"quantize": {"bits": 4}},
            seed=4,
        )
    )
    base, first, second, third = (found.of_phase(i) for i in range(4))
    assert base == Recipe.from_dict({k: v for k, v in found.to_dict().items() if k != "phase"})
    assert (first.data.shift, first.optimizer.name, first.train.steps, first.seed) == (
        "inverted",
        "sgd",
        5,
        5,
    )
    assert (second.data.shift, second.optimizer.name, second.model.hidden) == ("inverted", "adamw", (3,))
    assert (second.seed, third.seed, third.model.hidden) == (9, 7, (3,))


def test_sections_say_what_the_library_takes() -> None:
    gradual = {"schedule": "gradual", "end": 0.8, "steps": 10, "every": 5}
    found = Recipe.from_dict(
        recipe(
            {"prune": {"sparsity": gradual}, "train": EPOCH},
            {"prune": {"sparsity": 0.5}},
            {"quantize": {"bits": 4, "group_size": 8}},
            {"quantize": {"dtype": "bfloat16"}},
            {"quantize": {"convention": "torch"}},
        )
    )
    first, second = (phase.prune for phase in found.phase[:2])
    assert first is not None
    assert second is not None
    assert (first.schedule(), second.schedule()) == (Gradual(0.8, steps=10, every=5), OneShot(0.5))
    schemes = [phase.quantize.scheme() for phase in found.phase[2:] if phase.quantize is not None]
    assert schemes[:2] == [Integer(bits=4, per="group", group_size=8, layout="in_out"), Cast("bfloat16")]
    assert schemes[2] == Integer(convention="torch", layout="in_out")


def test_shifts_of_the_data() -> None:
    plain = datasets.load("digits", standardize=False)
    image = plain.x_train[0].reshape(8, 8)
    turned = datasets.load("digits", standardize=False, shift="rotated")
    assert_same_bits(turned.x_train[0].reshape(8, 8), np.rot90(image))
    assert_same_bits(
        datasets.load("digits", standardize=False, shift="inverted").x_train, 16.0 - plain.x_train
    )
    mixed = datasets.load("digits", standardize=False, shift="permuted")
    assert not np.array_equal(mixed.x_train, plain.x_train)
    assert_same_bits(np.sort(mixed.x_train, axis=1), np.sort(plain.x_train, axis=1))
    few = datasets.load("digits", standardize=False, labels=[7, 2])
    assert few.classes == 2
    whole = datasets.load("digits", standardize=False, split_seed=3)
    counts = [int((np.r_[whole.y_train, whole.y_test] == digit).sum()) for digit in (7, 2)]
    assert np.bincount(np.r_[few.y_train, few.y_test]).tolist() == counts
    for labels in ([1], [1, 1], [0, 10]):
        with pytest.raises(InputError, match=r"expected two or more of \[0, 1, 2"):
            datasets.load("digits", labels=labels)
    with pytest.raises(InputError, match=r"'diabetes' is a regression"):
        datasets.load("diabetes", labels=[0, 1])
    with pytest.raises(InputError, match=r"unknown shift 'invert'; did you mean 'inverted'"):
        datasets.load("digits", shift="invert")
