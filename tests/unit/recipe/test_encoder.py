"""The whole of a transformer in a recipe: on a small one, of the published names and heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.nn.functional as F
from helpers.transformers import WIDTH, reference, small, tensors

import polyopt_numpy.ops as nops
from polyopt import checkpoint, quantization
from polyopt.backend.protocol import Backend
from polyopt.core.errors import InputError
from polyopt.models.datasets import Dataset
from polyopt.models.pretrained import Bert, minilm
from polyopt.quantization.record import Quantized
from polyopt.recipe import Recipe, datasets
from polyopt.testing import assert_close, assert_same_bits
from polyopt.training import train
from polyopt.training.phases import structure
from polyopt.training.phases.plan import tasks
from polyopt.training.phases.setup import ModelState

RECIPE = Path(__file__).parents[3] / "recipes" / "minilm_whole.toml"


@pytest.fixture
def reviews(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers of twelve numbers, and texts of up to nine tokens: good where the first is an even one."""
    draw = np.random.default_rng(0)
    x = draw.integers(1, 30, size=(120, 9)).astype(np.int32)
    x[np.arange(9) >= draw.integers(1, 10, size=(120, 1))] = 0
    y = (x[:, 0] % 2).astype(np.int64)
    data = Dataset("vader_tokens", "classification", 2, x[:80], y[:80], x[80:], y[80:])
    monkeypatch.setattr(datasets, "_tokens", lambda test, split_seed: data)
    monkeypatch.setattr(minilm, "load", lambda backend, dtype: small(dtype))
    monkeypatch.setattr(minilm, "WIDTH", WIDTH)


def test_the_whole_encoder_is_trained(reviews: None, tmp_path: Path, backend: Backend) -> None:
    of = Recipe.load(RECIPE).replace(steps=4)
    found = train(of, backend=backend, out=tmp_path)
    saved = checkpoint.load(tmp_path / "checkpoint.safetensors")
    start = of.build_model(of.data.load()).init(0, "float32")
    assert_same_bits(
        saved.params["body.embeddings.word_embeddings.weight"],
        start["body"]["embeddings"]["word_embeddings"]["weight"],
    )
    for layer in (0, 1):
        before = start["body"]["encoder"]["layer"][layer]["output"]["dense"]["weight"]
        after = saved.params[f"body.encoder.layer.{layer}.output.dense.weight"]
        assert 0 < np.abs(after - before).max() < 0.01
    assert saved.state is not None
    assert not [path for path in saved.state["slots"]["exp_avg"] if "embeddings" in path]
    assert np.isfinite(found.history.loss).all()
    path = found.phases[1].model
    assert path is not None
    eight = quantization.load(path)["body.encoder.layer.0.intermediate.dense.weight"]
    assert isinstance(eight, Quantized)
    assert eight.scale is not None
    assert eight.scale.size == 20, "one for each output"
    numpy = train(of, backend="numpy").history.loss
    assert_close(found.history.loss, numpy, rtol=1e-4, because="float32 through two layers, summed otherwise")


def test_other_phases_of_it(reviews: None) -> None:
    """Which axes count inputs is the model's to say."""
    table = Recipe.load(RECIPE).replace(steps=2).to_dict()
    table["optimizer"], table["partition"] = {"name": "adam", "lr": 1e-3}, []
    inner = r"^body\.encoder.*intermediate\.dense\.weight$"
    short = {"steps": 2, "batch_size": 16}
    table["phase"] = [
        {"name": "a", "prune": {"criterion": "n_of_m", "select": inner}},
        {
            "name": "b",
            "finetune": {"lora": {"rank": 2, "alpha": 4.0, "pattern": "query.weight"}},
            "train": short,
        },
        {
            "name": "c",
            "finetune": {"unfreeze": {"steps": 1, "layers": [r"layer\.0", r"layer\.1"]}},
            "train": short,
        },
    ]
    found = train(Recipe.from_dict(table), backend="numpy")
    weight = found.params["body.encoder.layer.0.intermediate.dense.weight"].reshape(-1, 4)
    assert (np.count_nonzero(weight, axis=1) <= 2).all()


def phases(*of: dict[str, Any], steps: int = 1) -> Recipe:
    table = Recipe.load(RECIPE).replace(steps=steps).to_dict()
    table["phase"] = [{"name": chr(ord("a") + i)} | phase for i, phase in enumerate(of)]
    return Recipe.from_dict(table)


AT = "body.encoder.layer"


def test_whole_heads_and_neurons_go(reviews: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left computes the same, trains on, and is pruned further."""
    monkeypatch.setattr(minilm, "MINILM", Bert(heads=4))
    section = {"criterion": "structured", "sparsity": 0.5}
    short = {"steps": 2, "batch_size": 16}
    whole = train(phases({"prune": section}), out=tmp_path / "whole")
    of = phases(
        {"prune": section | {"shrink": True}},
        {"finetune": {"reinit": ["^head"]}, "train": short},
        {"prune": {"criterion": "structured", "sparsity": 0.5, "select": "attention", "shrink": True}},
        {"prune": {"criterion": "wanda", "sparsity": 0.5, "samples": 9}},
    )
    found = train(of, out=tmp_path / "small")
    models = [phase.model for phase in (whole.phases[1], *found.phases[1:])]
    masked, small, anew, less, sparse = ({} if path is None else quantization.load(path) for path in models)
    for i in (0, 1):
        for name in ("query", "key", "value"):
            rows = np.abs(masked[f"{AT}.{i}.attention.self.{name}.weight"]).reshape(4, -1).max(axis=1)
            assert np.count_nonzero(rows) == 2, "heads of three rows each"
            assert small[f"{AT}.{i}.attention.self.{name}.weight"].shape == (6, WIDTH)
            assert small[f"{AT}.{i}.attention.self.{name}.bias"].shape == (6,)
            assert less[f"{AT}.{i}.attention.self.{name}.weight"].shape == (3, WIDTH)
        assert small[f"{AT}.{i}.attention.output.dense.weight"].shape == (WIDTH, 6)
        assert small[f"{AT}.{i}.intermediate.dense.weight"].shape == (10, WIDTH)
        assert less[f"{AT}.{i}.intermediate.dense.weight"].shape == (10, WIDTH)
        assert small[f"{AT}.{i}.output.dense.weight"].shape == (WIDTH, 10)
        assert not np.array_equal(
            anew[f"{AT}.{i}.output.dense.weight"], small[f"{AT}.{i}.output.dense.weight"]
        )
    assert whole.phases[1].sparsity > 0.4
    assert found.phases[1].sparsity == 0.0
    assert found.phases[1].parameters < whole.phases[0].parameters
    assert_close(
        [found.phases[1].test_loss], [whole.phases[1].test_loss], rtol=1e-5, because="sums of fewer terms"
    )
    kept = sparse[f"{AT}.0.output.dense.weight"] != 0
    assert (kept.sum(axis=1) == 5).all(), "of ten inputs of each output"
    assert ((sparse["head.weight"] != 0).sum(axis=0) == 6).all()
    again = train(of, out=tmp_path / "small", resume=True)
    assert [p.test_loss for p in again.phases] == [p.test_loss for p in found.phases]


def test_heads_are_ranked_among_heads(reviews: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "MINILM", Bert(heads=4))
    section = {"criterion": "structured", "sparsity": 0.25, "scope": "global"}
    params = train(phases({"prune": section})).params
    heads = [params[f"{AT}.{i}.attention.self.query.weight"].reshape(4, -1).any(axis=1) for i in (0, 1)]
    neurons = [params[f"{AT}.{i}.intermediate.dense.weight"].any(axis=1) for i in (0, 1)]
    assert [int(np.sum(x)) for x in (heads, neurons)] == [6, 30], "a quarter of 8 and of 40"
    alone = train(phases({"prune": section | {"select": r"layer\.1\.intermediate"}})).params
    assert alone[f"{AT}.1.intermediate.dense.weight"].any(axis=1).sum() == 15
    assert np.count_nonzero(alone[f"{AT}.0.intermediate.dense.weight"]) == 20 * WIDTH
    with pytest.raises(
        InputError, match=r"^phase 'a': pattern 'embeddings' matches no parameter; known: 'body"
    ):
        tasks(phases({"prune": section | {"select": "embeddings"}}))
    with pytest.raises(
        InputError, match=r"^phase 'a': structured_masks: .* all 4 units of 'body.*attention'"
    ):
        tasks(phases({"prune": section | {"sparsity": 0.9, "scope": "leaf"}}))


def test_wanda_looks_at_what_each_matrix_reads(reviews: None) -> None:
    """Against the activations of torch's own functions, of tokens that are no padding."""
    of = phases({"prune": {"criterion": "wanda", "sparsity": 0.5, "samples": 80}}, steps=1)
    sparsifier = tasks(of)[1]._sparsifier(of.build_model(of.data.load()))
    params = of.build_model(of.data.load()).init(0, "float64")
    ids, named = sparsifier.x, tensors(params["body"])
    read, linear = dict[str, Any](), F.linear

    def dense(x: Any, weight: Any, bias: Any) -> Any:
        read[next(path for path, w in named.items() if w is weight)] = x[ids > 0].numpy()
        return linear(x, weight, bias)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "linear", dense)
        pooled = reference(named, ids, ids > 0, heads=12, eps=1e-12).numpy()
    norms = structure.input_norms(sparsifier.objective.model, params, ids)
    assert len(read) == 12
    for path, x in read.items():
        expected = np.sqrt(np.square(x).sum(axis=0))
        assert_close(norms[f"body.{path}"], expected, rtol=1e-9, because="float64 through two layers")
    expected = np.sqrt(np.square(pooled).sum(axis=0))
    assert_close(norms["head.weight"], expected, rtol=1e-9, because="float64 through two layers")
    masks = sparsifier.masks(params, 0.5, 0, {})
    assert sorted(masks) == sorted(norms)
    path = f"{AT}.1.intermediate.dense.weight"
    scores = np.abs(params["body"]["encoder"]["layer"][1]["intermediate"]["dense"]["weight"]) * norms[path]
    assert_same_bits(masks[path], scores > np.sort(scores, axis=1)[:, [WIDTH // 2 - 1]])


def test_its_layers_one_by_one(reviews: None, tmp_path: Path) -> None:
    """GPTQ finds them, however their axes lie; embeddings are rounded to nearest."""
    table = Recipe.load(RECIPE).replace(steps=2).to_dict()
    quantized = {"bits": 4, "method": "gptq", "samples": 60, "activations": {"samples": 60}}
    table["phase"] = [{"name": "a", "quantize": quantized}, {"name": "b", "quantize": {"bits": 8}}]
    found = train(Recipe.from_dict(table), backend="numpy", out=tmp_path)
    path, last = found.phases[1].model, found.model
    assert path is not None
    assert last is not None
    leaves, grids = quantization.load(path), quantization.load_grids(path)
    before = checkpoint.load(tmp_path / "checkpoint.safetensors").params
    parts = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
    dense = [*parts, "intermediate.dense", "output.dense"]
    layers = [f"body.encoder.layer.{i}.{part}.weight" for i in (0, 1) for part in dense]
    assert set(grids) == {*layers, "head.weight"}
    nearest = {p: quantization.quantize(before[p], quantization.Integer(4, layout="out_in")) for p in layers}
    assert any(not np.array_equal(leaves[p].codes, nearest[p].codes) for p in layers)
    for p in layers:
        assert leaves[p].scheme == nearest[p].scheme
        assert_same_bits(leaves[p].scale, nearest[p].scale, what=p)
    for stored in (leaves, quantization.load(last)):
        assert stored["head.weight"].scheme.layout == "in_out"
        assert stored["head.weight"].scale.shape == (1, 2), "one for each output"
    words = "body.embeddings.word_embeddings.weight"
    rounded = quantization.quantize(before[words], quantization.Integer(4, layout="out_in"))
    assert_same_bits(leaves[words].codes, rounded.codes)
    assert found.test_accuracy is not None


def test_its_layers_are_the_tables_the_encoders_and_the_head(reviews: None) -> None:
    of = phases({"finetune": {"decay": 0.5}, "train": {"steps": 1, "batch_size": 16}})
    table = of.to_dict() | {"partition": [], "optimizer": {"name": "sgd", "lr": 0.8}, "clip": None}
    of = Recipe.from_dict({key: value for key, value in table.items() if value is not None})
    task = tasks(of)[1]
    params = task.model.init(0, "float32")
    rates = [
        r"^body\.embeddings",
        *(rf"^(?:body\.encoder\.layer\.){i}(?![0-9])" for i in (0, 1)),
        "^head",
    ]
    assert list(structure.layers(task.model, params)) == rates
    assert len(structure.layers(task.model, {"head": params["head"]})) == 1
    start = {"base": ModelState(task.model, params, params, {})}
    by_layer = task.work(start).optimizer(task.recipe)
    assert {by_layer.hyperparameters({"step": 0})[f"{i}.lr"] for i in range(4)} == {0.1, 0.2, 0.4, 0.8}
    assert np.isfinite(train(of).history.loss).all()


def test_one_teaches_another(reviews: None) -> None:
    """What lies inside of it: attention to tokens, hidden states, and the mean of them."""
    table = Recipe.load(RECIPE).replace(steps=2).to_dict()
    table["optimizer"], table["partition"] = {"name": "adam", "lr": 1e-3}, []
    inner = ["body.encoder.layer.0", "body.encoder.layer.1"]
    terms = {
        "attention": {"weight": 1000.0, "student": inner, "teacher": inner, "convention": "torch"},
        "hint": {"student": inner[0], "teacher": inner[1]},
        "distance": {"student": "pooled", "teacher": "pooled"},
    }
    distil = {"model": {"name": "minilm"}, "teacher": "base"}
    phase = {"name": "a", "distil": distil | terms, "train": {"steps": 2, "batch_size": 16}}
    of = Recipe.from_dict(table | {"phase": [phase]})
    model, data = of.build_model(of.data.load()), of.data.load()
    params = model.init(0, "float32")
    features = model.features(nops, params, data.x_test)
    assert list(features) == [*inner, "pooled", "output"]
    assert_same_bits(features["output"], model.apply(nops, params, data.x_test))
    assert not features[inner[1]][data.x_test == 0].any(), "padding says nothing"
    assert features[inner[1]].shape == (40, 9, WIDTH)
    found = train(of, backend="numpy")
    assert np.isfinite(found.history.loss).all()
    for key, layers, message in (
        (
            "distance",
            (inner[0], "pooled"),
            r"student = '.*layer\.0' gives \(n, 9, 12\); expected a layer that",
        ),
        (
            "hint",
            (inner[0], "pooled"),
            r": the student's '.*\.0' gives \(n, 9, 12\), .* 'pooled' \(n, 12\); exp",
        ),
        ("attention", (inner[0], "pooled"), r"teacher = 'pooled' gives \(n, 12\): a vector has no places"),
    ):
        phase["distil"] = distil | {key: dict(zip(("student", "teacher"), layers, strict=True))}
        with pytest.raises(InputError, match=rf"^phase 'a': distil\.{key}\.?{message}"):
            tasks(Recipe.from_dict(table | {"phase": [phase]}))


def test_tokens_are_for_it_alone() -> None:
    def table(data: str, model: str) -> dict[str, Any]:
        found = Recipe.load(RECIPE).to_dict()
        return found | {"data": {"name": data}, "model": {"name": model}, "phase": []}

    with pytest.raises(InputError, match=r"^model\.name = 'softmax' can't read 'vader_tokens'; .* 'minilm'$"):
        Recipe.from_dict(table("vader_tokens", "softmax"))
    with pytest.raises(
        InputError, match=r"^model\.name = 'minilm' can't read 'digits'; .* 'mlp', 'softmax'$"
    ):
        Recipe.from_dict(table("digits", "minilm"))
    with pytest.raises(InputError, match=r"^shift = 'rotated': 'vader_tokens' has none of it; leave it out$"):
        Recipe.from_dict(
            table("vader_tokens", "minilm") | {"data": {"name": "vader_tokens", "shift": "rotated"}}
        ).data.load()
