"""The whole of a transformer in a recipe: on a small one, of the published names and heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_pretrained import WIDTH, small

from polyopt import checkpoint, quantization
from polyopt.backend import Backend
from polyopt.data import Dataset
from polyopt.errors import InputError
from polyopt.pretrained import minilm
from polyopt.quantization.record import Quantized
from polyopt.recipe import Recipe, datasets
from polyopt.testing import assert_close, assert_same_bits
from polyopt.training import train
from polyopt.training.tasks import tasks

RECIPE = Path(__file__).parents[2] / "recipes" / "minilm_whole.toml"


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
    table["phase"] = [{"name": "a", "prune": {"criterion": "wanda", "sparsity": 0.5, "samples": 9}}]
    with pytest.raises(InputError, match=r"^phase 'a': prune\.criterion = 'wanda': the layers of this model"):
        tasks(Recipe.from_dict(table))


def test_its_layers_one_by_one(reviews: None, tmp_path: Path) -> None:
    """GPTQ finds them, however their axes lie; embeddings are rounded to nearest."""
    table = Recipe.load(RECIPE).replace(steps=2).to_dict()
    quantized = {"bits": 4, "method": "gptq", "samples": 60, "activations": {"samples": 60}}
    table["phase"] = [{"name": "a", "quantize": quantized}]
    found = train(Recipe.from_dict(table), backend="numpy", out=tmp_path)
    path = found.phases[1].model
    assert path is not None
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
    assert leaves["head.weight"].scheme.layout == "in_out"
    assert leaves["head.weight"].scale.shape == (1, 2), "one for each output"
    words = "body.embeddings.word_embeddings.weight"
    rounded = quantization.quantize(before[words], quantization.Integer(4, layout="out_in"))
    assert_same_bits(leaves[words].codes, rounded.codes)
    assert found.test_accuracy is not None


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
