"""Phases that prune: each criterion against its own reference, rewinding, and models that become smaller."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyopt import checkpoint, quantization
from polyopt.backend import registry
from polyopt.backend.gradients import value_and_grad
from polyopt.backend.protocol import Backend
from polyopt.core.errors import InputError
from polyopt.models.losses import cross_entropy
from polyopt.models.networks import MLP
from polyopt.recipe import Recipe
from polyopt.testing import assert_close, assert_same_bits
from polyopt.training import Result, train
from polyopt.training.objective import targets
from polyopt.training.phases.plan import tasks

TRAIN = {"steps": 4, "batch_size": "full"}
STILL = {"name": "sgd", "lr": 0.0}
"""Weights that don't move, so that all backends prune the same ones."""


def recipe(*phases: dict[str, Any], **changes: Any) -> Recipe:
    table: dict[str, Any] = {
        "seed": 1,
        "data": {"name": "digits"},
        "model": {"name": "mlp", "hidden": [16, 8]},
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
        "train": {"steps": 2, "batch_size": "full"},
        "phase": [{"name": chr(ord("a") + i)} | phase for i, phase in enumerate(phases)],
    }
    return Recipe.from_dict(table | changes)


def left(found: Result, phase: int) -> dict[str, Any]:
    """The leaves that a phase left."""
    path = found.phases[phase].model
    assert path is not None
    leaves: dict[str, Any] = quantization.load(path)
    return leaves


def gone(found: Result, phase: int = 1) -> dict[str, Any]:
    return {p: np.asarray(x) == 0 for p, x in left(found, phase).items() if p.endswith("weight")}


def weights(of: Recipe) -> tuple[Any, dict[str, Any], Any, Any]:
    """The model, its initial weights, and the training samples with their targets."""
    data = of.data.load()
    model = of.build_model(data)
    x, y = data.x_train.astype(of.dtype), targets(data.y_train, data.classes).astype(of.dtype)
    return model, model.init(of.seed, of.dtype), x, y


def lowest(scores: dict[str, Any], share: float) -> dict[str, Any]:
    """What goes of all together, by a plain sort."""
    flat = np.concatenate([x.ravel() for x in scores.values()])
    drop = np.zeros(flat.size, bool)
    drop[np.argsort(flat, kind="stable")[: round(share * flat.size)]] = True
    ends = np.cumsum([x.size for x in scores.values()])[:-1]
    parts = zip(scores.items(), np.split(drop, ends), strict=True)
    return {path: part.reshape(x.shape) for (path, x), part in parts}


def slopes(of: Recipe, rows: Any = slice(None)) -> tuple[dict[str, Any], dict[str, Any]]:
    """Initial weights and their gradients by hand: the backward pass of this network, in float64."""
    _, params, x, y = weights(of)
    layers = params["layers"]
    acts, x = [x[rows]], x[rows]
    for layer in layers[:-1]:
        x = np.maximum(x @ layer["weight"] + layer["bias"], 0)
        acts.append(x)
    logits = x @ layers[-1]["weight"] + layers[-1]["bias"]
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    delta = (e / e.sum(axis=1, keepdims=True) - y[rows]) / len(x)
    grads = {}
    for i in reversed(range(len(layers))):
        grads[f"layers.{i}.weight"] = acts[i].T @ delta
        delta = (delta @ layers[i]["weight"].T) * (acts[i] > 0)
    names = [f"layers.{i}.weight" for i in range(len(layers))]
    return {p: layers[i]["weight"] for i, p in enumerate(names)}, {p: grads[p] for p in names}


def test_snip_is_the_gradient_times_the_weight(tmp_path: Path) -> None:
    of = recipe(
        {"prune": {"criterion": "snip", "sparsity": 0.7, "samples": 1437}}, optimizer=STILL, dtype="float64"
    )
    w, g = slopes(of)
    expected = lowest({p: np.abs(w[p] * g[p]) for p in w}, 0.7)
    for path, dropped in gone(train(of, out=tmp_path / "all")).items():
        assert_same_bits(dropped, expected[path], what=path)
    few = train(
        recipe({"prune": {"criterion": "snip", "sparsity": 0.7}}, optimizer=STILL), out=tmp_path / "f"
    )
    assert any(not np.array_equal(x, expected[p]) for p, x in gone(few).items()), "of 128 samples alone"


def test_movement_is_what_the_steps_say(tmp_path: Path) -> None:
    """Weights that stay, the same batch twice: S = -2·w·g."""
    section = {"criterion": "movement", "sparsity": {"schedule": "one_shot", "sparsity": 0.6, "at": 2}}
    of = recipe({"prune": section | {"scope": "global"}, "train": TRAIN}, optimizer=STILL, dtype="float64")
    w, g = slopes(of)
    expected = lowest({p: -(w[p] * g[p]) for p in w}, 0.6)
    for path, dropped in gone(train(of, out=tmp_path)).items():
        assert_same_bits(dropped, expected[path], what=path)


def test_wanda_looks_at_each_neurons_inputs(tmp_path: Path) -> None:
    of = recipe({"prune": {"criterion": "wanda", "sparsity": 0.5, "samples": 1437}}, optimizer=STILL)
    _, params, x, _ = weights(of)
    inputs = x.astype(np.float64)
    dropped = gone(train(of, out=tmp_path))
    for i, layer in enumerate(params["layers"]):
        w = layer["weight"]
        scores = np.abs(w) * np.sqrt((inputs**2).sum(axis=0))[:, None]
        cut = np.sort(scores, axis=0)[len(w) // 2]
        found = dropped[f"layers.{i}.weight"]
        assert (found.sum(axis=0) == len(w) // 2).all()
        assert np.mean(found == (scores < cut)) > 0.99, "but for what is rounded otherwise"
        inputs = np.maximum(inputs @ w + layer["bias"], 0)


def test_two_of_four_inputs_stay(tmp_path: Path) -> None:
    first = {"prune": {"sparsity": 0.3}}
    found = train(recipe(first, {"prune": {"criterion": "n_of_m"}, "train": TRAIN}), out=tmp_path)
    assert [p.kind for p in found.phases] == ["train", "prune", "prune"]
    before, after = gone(found, 1), gone(found, 2)
    for path, dropped in after.items():
        assert dropped[before[path]].all(), "what is gone stays gone"
        counts = (~dropped).reshape(-1, 4, dropped.shape[1]).sum(axis=1)
        there = (~before[path]).reshape(-1, 4, dropped.shape[1]).sum(axis=1)
        assert_same_bits(counts, np.minimum(there, 2), what=path)


def test_thresholds_and_limits(tmp_path: Path) -> None:
    by_threshold = {"prune": {"criterion": "threshold", "magnitude": 0.1, "maximum": 0.3}}
    limits = {"clip_weights": {"minimum": -0.2, "maximum": 0.15}}
    found = train(recipe(by_threshold, limits), out=tmp_path)
    base = checkpoint.load(tmp_path / "checkpoint.safetensors").params
    for path, x in left(found, 1).items():
        w = base[path]
        kept = (np.abs(w) >= np.float32(0.1)) & (w <= np.float32(0.3)) if w.ndim == 2 else w == w
        assert_same_bits(x, np.where(kept, w, np.float32(0)), what=path)
        assert_same_bits(left(found, 2)[path], np.clip(x, np.float32(-0.2), np.float32(0.15)), what=path)
    assert found.phases[1].sparsity == found.phases[2].sparsity > 0


@pytest.mark.parametrize("rewind", ["start", "initial"])
def test_the_weights_that_stay_go_back(tmp_path: Path, rewind: str) -> None:
    """Two rounds of two updates, the last of which ends the phase: what is left is a ticket, untrained."""
    rounds = {"schedule": "iterative", "end": 0.75, "rounds": 2, "every": 2}
    of = recipe({"prune": {"sparsity": rounds, "rewind": rewind}, "train": TRAIN})
    found = train(of, out=tmp_path)
    base = checkpoint.load(tmp_path / "checkpoint.safetensors").params
    _, initial, _, _ = weights(of)
    start = (
        base
        if rewind == "start"
        else {f"layers.{i}.{k}": x for i, layer in enumerate(initial["layers"]) for k, x in layer.items()}
    )
    for path, x in left(found, 1).items():
        dropped = x == 0 if path.endswith("weight") else np.zeros(x.shape, bool)
        assert_same_bits(x, np.where(dropped, np.float32(0), start[path]), what=path)
        if path.endswith("weight"):
            assert dropped.sum() == round(0.75 * x.size)
    assert int(found.state["step"]) == 0, "the optimizer begins anew"
    trained = train(recipe({"prune": {"sparsity": rounds}, "train": TRAIN}))
    assert found.history.loss[:4] == trained.history.loss[:4], "the first round is plain training"
    assert found.history.loss[4] != trained.history.loss[4]


def test_a_smaller_model_that_computes_the_same(tmp_path: Path) -> None:
    gradual = {"schedule": "gradual", "end": 0.5, "steps": 4, "every": 2}
    section = {"criterion": "structured", "sparsity": gradual}
    later: list[dict[str, Any]] = [
        {"train": TRAIN},
        {"prune": {"sparsity": 0.5}},
        {"finetune": {"reinit": [r"^layers\.2"], "lora": {"rank": 1, "alpha": 1.0}}, "train": TRAIN},
        {"quantize": {"bits": 8}},
    ]
    whole = train(recipe({"prune": section, "train": TRAIN}), out=tmp_path / "whole")
    found = train(
        recipe({"prune": section | {"shrink": True}, "train": TRAIN}, *later),
        out=tmp_path / "s",
    )
    small, large = left(found, 1), left(whole, 1)
    assert [small[f"layers.{i}.weight"].shape for i in range(3)] == [(64, 8), (8, 4), (4, 10)]
    assert found.phases[1].sparsity == 0.0
    assert whole.phases[1].sparsity > 0.5
    assert found.phases[1].parameters == 64 * 8 + 8 + 8 * 4 + 4 + 4 * 10 + 10
    assert_close(
        [found.phases[1].test_loss], [whole.phases[1].test_loss], rtol=1e-5, because="sums of fewer terms"
    )
    _, _, x, _ = weights(recipe())
    outputs = []
    for leaves in (small, large):
        layers = [{k: leaves[f"layers.{i}.{k}"] for k in ("weight", "bias")} for i in range(3)]
        model = MLP(64, 10, None, None, hidden=())  # type: ignore[arg-type]
        outputs.append(model.apply(registry.by_name("numpy").ops, {"layers": layers}, x[:50]))
    assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5, because="sums of fewer terms in float32")
    assert found.phases[3].sparsity == 0.5, "masks of the small model"
    assert [p.kind for p in found.phases[2:]] == ["train", "prune", "finetune", "quantize"]


def test_neurons_that_are_gone_stay_gone(tmp_path: Path) -> None:
    """Also where others are 0 by chance, and with scattered zeros of an earlier phase."""
    section = {"criterion": "structured", "sparsity": 0.25, "select": r"^layers\.0"}
    more = section | {"sparsity": 0.4, "scope": "global", "select": r"^layers"}
    found = train(recipe({"prune": {"sparsity": 0.2}}, {"prune": section}, {"prune": more}), out=tmp_path)
    single, first, second = (gone(found, i) for i in (1, 2, 3))
    for path, dropped in first.items():
        assert dropped[single[path]].all()
        assert second[path][dropped].all()
    assert first["layers.0.weight"].all(axis=0).sum() == 4
    assert not first["layers.1.weight"].all(axis=0).any()
    both = second["layers.0.weight"].all(axis=0).sum() + second["layers.1.weight"].all(axis=0).sum()
    assert both == round(0.4 * 24)


@pytest.mark.full
def test_the_same_masks_on_every_backend(tmp_path: Path, backends: list[Backend]) -> None:
    """Of weights that don't move, one criterion of each kind after the other."""
    of = recipe(
        {"prune": {"criterion": "snip", "sparsity": 0.1}},
        {"prune": {"criterion": "n_of_m", "n": 1}},
        {"prune": {"criterion": "structured", "sparsity": 0.5, "shrink": True}},
        model={"name": "mlp", "hidden": [8]},
        optimizer=STILL,
        train={"steps": 1, "batch_size": "full"},
    )
    first, *others = [train(of, backend=b, out=tmp_path / b.name) for b in backends]
    assert [round(592 * (phase.sparsity or 0.0), 6) for phase in first.phases[:3]] == [0, 59, 444]
    for found in others:
        for phase in (1, 2, 3):
            for path, x in left(first, phase).items():
                assert_same_bits(left(found, phase)[path], x, what=f"{found.backend}, {phase}, {path}")
        assert [p.parameters for p in found.phases] == [p.parameters for p in first.phases]


def test_what_was_looked_at_is_the_models_loss() -> None:
    """The host's gradient, that SNIP takes, against each of this file's own."""
    of = recipe(dtype="float64")
    model, params, x, y = weights(of)
    _, found = value_and_grad(lambda xp, p, x, y: cross_entropy(xp, model.apply(xp, p, x), y))(params, x, y)
    _, g = slopes(of)
    for i, layer in enumerate(found["layers"]):
        assert_close(layer["weight"], g[f"layers.{i}.weight"], rtol=1e-10, atol=1e-14, because="float64")


@pytest.mark.parametrize("rewind", [None, "initial"])
def test_what_a_partition_freezes_is_pruned_and_stays_so(tmp_path: Path, rewind: str | None) -> None:
    rounds = {"schedule": "iterative", "end": 0.5, "rounds": 2, "every": 1}
    of = recipe(
        {"prune": {"sparsity": rounds, "rewind": rewind}, "train": TRAIN},
        {"finetune": {"lora": {"rank": 1, "alpha": 1.0}}, "train": TRAIN},
        partition=[{"pattern": r"layers\.0\.", "freeze": True}],
    )
    found = train(of, out=tmp_path)
    assert [phase.sparsity for phase in found.phases] == [0.0, 0.5, 0.5]
    for phase in (1, 2):
        assert gone(found, phase)["layers.0.weight"].sum() == 512
    assert not np.array_equal(left(found, 2)["layers.1.weight"], left(found, 1)["layers.1.weight"])


def test_neurons_of_a_frozen_layer_are_removed(tmp_path: Path) -> None:
    """Its biases, too, which are still at the 0 that they begin with."""
    gradual = {"schedule": "gradual", "end": 0.5, "steps": 2, "every": 1}
    of = recipe(
        {"prune": {"criterion": "structured", "sparsity": gradual, "shrink": True}, "train": TRAIN},
        partition=[{"pattern": r"layers\.0", "freeze": True}],
    )
    found = train(of, out=tmp_path)
    assert [left(found, 1)[f"layers.{i}.bias"].shape for i in (0, 1)] == [(8,), (4,)]
    assert found.phases[1].sparsity == 0.0


def test_movement_leaves_out_what_does_not_move(tmp_path: Path) -> None:
    section = {"criterion": "movement", "sparsity": {"schedule": "one_shot", "sparsity": 0.5, "at": 2}}
    frozen = [{"pattern": r"layers\.0", "freeze": True}]
    found = train(recipe({"prune": section, "train": TRAIN}, partition=frozen), out=tmp_path)
    assert [int(x.sum()) for x in gone(found).values()] == [0, 64, 40]
    of = recipe({"prune": section | {"select": r"layers\.0"}, "train": TRAIN}, partition=frozen)
    with pytest.raises(
        InputError, match=r"^phase 'a': prune\.criterion = 'movement': all that it would prune"
    ):
        tasks(of)


def test_a_schedule_that_the_phase_does_not_end_is_refused() -> None:
    late = {"schedule": "gradual", "end": 0.5, "steps": 3, "every": 1}
    accumulated = {"prune": {"sparsity": late}, "train": TRAIN | {"accumulate": 2}}
    with pytest.raises(
        InputError, match=r"^phase 'a': prune\.sparsity: .* last time after 3 updates, and the phase makes 2;"
    ):
        tasks(recipe(accumulated))
    assert len(tasks(recipe({"prune": {"sparsity": late | {"steps": 4}}, "train": TRAIN}))) == 2


def test_a_layer_that_would_be_empty_is_refused_before_training(tmp_path: Path) -> None:
    of = recipe({"prune": {"criterion": "structured", "sparsity": 0.95}})
    with pytest.raises(
        InputError, match=r"^phase 'a': structured_masks: .* all 8 units of 'layers\.1\.weight'"
    ):
        train(of, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert len(tasks(recipe())) == 1
