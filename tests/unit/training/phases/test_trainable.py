"""Phases that train a part: adapters, layers that thaw, weights that are drawn to their start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polyopt as po
from polyopt import checkpoint, finetuning, quantization
from polyopt.backend import registry
from polyopt.core import tree
from polyopt.core.errors import InputError
from polyopt.models.networks import MLP
from polyopt.recipe import Recipe
from polyopt.testing import assert_close, assert_same_bits
from polyopt.training import Result, train
from polyopt.training.objective import Objective, targets
from polyopt.training.phases.plan import tasks

TRAIN = {"steps": 6, "batch_size": 256}
ADAM = {"name": "adam", "lr": 0.02}


def recipe(*phases: dict[str, Any], **changes: Any) -> Recipe:
    table: dict[str, Any] = {
        "seed": 1,
        "data": {"name": "digits"},
        "model": {"name": "mlp", "hidden": [16, 8]},
        "optimizer": ADAM,
        "train": {"steps": 2, "batch_size": 256},
        "phase": [{"name": chr(ord("a") + i)} | phase for i, phase in enumerate(phases)],
    }
    return Recipe.from_dict(table | changes)


def left(found: Result, phase: int = 1) -> dict[str, Any]:
    path = found.phases[phase].model
    assert path is not None
    leaves: dict[str, Any] = quantization.load(path)
    return leaves


def base(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = checkpoint.load(out / "checkpoint.safetensors").params
    return found


def test_lora_trains_its_adapters_alone(tmp_path: Path) -> None:
    section = {"rank": 2, "alpha": 4.0, "pattern": r"layers\.[01]\.weight"}
    found = train(recipe({"finetune": {"lora": section}, "train": TRAIN}), out=tmp_path)
    before, after = base(tmp_path), left(found)
    saved = checkpoint.load(tmp_path / "phases/1-a/checkpoint.safetensors")
    assert sorted(saved.params) == [f"layers.{i}.weight.{k}" for i in (0, 1) for k in "AB"]
    for path, x in after.items():
        if path in ("layers.0.weight", "layers.1.weight"):
            a, b = (saved.params[f"{path}.{k}"].astype(np.float64) for k in "AB")
            assert_same_bits(
                x, (before[path].astype(np.float64) + 2.0 * (a @ b)).astype(np.float32), what=path
            )
            assert np.linalg.matrix_rank(x.astype(np.float64) - before[path], tol=1e-4) == 2
        else:
            assert_same_bits(x, before[path], what=path)
    assert found.history.loss[-1] < found.history.loss[2]
    assert_close(
        [found.phases[1].test_loss],
        [found.history.evaluations[-1].test_loss],
        rtol=0,
        because="what is tested in the phase is what it leaves",
    )


def test_lora_beside_a_new_head_and_pruned_weights(tmp_path: Path) -> None:
    tuned = {"lora": {"rank": 1, "alpha": 2.0, "scaling": "rank_stabilized"}, "reinit": [r"^layers\.2"]}
    of = recipe(
        {"prune": {"sparsity": 0.5}},
        {"data": {"labels": [3, 5, 8]}, "finetune": tuned, "train": TRAIN},
        ema={"decay": 0.5},
    )
    found = train(of, out=tmp_path)
    before, after = left(found, 1), left(found, 2)
    saved = checkpoint.load(tmp_path / "phases/2-b/checkpoint.safetensors")
    adapted = [f"layers.{i}.weight.{k}" for i in (0, 1) for k in "AB"]
    assert sorted(saved.params) == [*adapted, "layers.2.bias", "layers.2.weight"]
    assert after["layers.2.weight"].shape == (8, 3)
    for i in (0, 1):
        zero = before[f"layers.{i}.weight"] == 0
        assert zero.mean() == 0.5
        assert not after[f"layers.{i}.weight"][zero].any()
        assert (after[f"layers.{i}.weight"][~zero] != before[f"layers.{i}.weight"][~zero]).any()
        assert_same_bits(after[f"layers.{i}.bias"], before[f"layers.{i}.bias"])
    assert found.phases[2].sparsity == 0.5


def test_layers_thaw_and_the_others_keep_their_slots(tmp_path: Path) -> None:
    """Against a loop that the library's own parts make."""
    of = recipe({"finetune": {"unfreeze": {"steps": [2, 3]}}, "train": TRAIN})
    found = train(of, out=tmp_path)

    own, data = of.of_phase(1), of.data.load()
    host = registry.by_name("numpy")
    model = own.build_model(data)
    assert isinstance(model, MLP)
    flat = tree.flatten(model.init(0, "float32"))
    params = flat.unflatten(base(tmp_path)[path] for path in flat.paths)
    plan = finetuning.GradualUnfreezing(po.Adam(lr=0.02), finetuning.numbered_layers(params), (2, 3))
    gradient = po.value_and_grad(finetuning.trainable(Objective(model, 10, 0.0)))
    x, y = data.x_train.astype("float32"), targets(data.y_train, 10).astype("float32")
    course, losses = own.course(len(x)), []
    place = course.start()
    optimizer = plan.optimizer(0)
    state = optimizer.init(params)
    for t in range(6):
        if plan.changes(t):
            state, optimizer = plan.advance(state, params), plan.optimizer(t)
        rows = course.rows(place)
        place = course.after(place, len(rows))
        trained, frozen = plan.split(params, t)
        value, grads = gradient(trained, frozen, x[rows], y[rows])
        trained, state = optimizer.step(trained, grads, state)
        params = finetuning.merge(trained, frozen)
        losses.append(float(host.to_numpy(value)))
    assert_close(found.history.loss[2:], losses, rtol=1e-5, because="float32, summed otherwise")
    for path, value in tree.named(params).items():
        assert_close(
            left(found)[path], value, rtol=1e-3, atol=1e-5, because="float32 through Adam's division"
        )
    missed = {f"layers.{i}.{k}": n for i, n in ((0, 3), (1, 2)) for k in ("bias", "weight")}
    assert {path: int(n) for path, n in found.state["missed"].items()} == missed


def test_a_layer_that_is_not_there_is_refused_before_training() -> None:
    """Also the top one, which is never frozen."""
    of = recipe({"finetune": {"unfreeze": {"steps": 1, "layers": [r"^layers\.1", r"^head"]}}, "train": TRAIN})
    with pytest.raises(InputError, match=r"^phase 'a': pattern '\^head' matches no parameter"):
        tasks(of)


def test_what_has_not_thawed_is_not_touched(tmp_path: Path) -> None:
    tuned = {"unfreeze": {"steps": 3}, "freeze": ["bias$"]}
    of = recipe(
        {"prune": {"sparsity": 0.5}},
        {"finetune": tuned, "train": TRAIN | {"accumulate": 2, "steps": 8}},
        ema={"decay": 0.9},
    )
    found = train(of, out=tmp_path)
    before, after = left(found, 1), left(found, 2)
    for path, x in after.items():
        if path.endswith("bias") or "layers.0" in path:
            assert_same_bits(x, before[path], what=path)
        else:
            assert not np.array_equal(x, before[path])
            assert not x[before[path] == 0].any(), "what thaws is still pruned"
    saved = checkpoint.load(tmp_path / "phases/2-b/checkpoint.safetensors").state
    assert saved is not None
    assert sorted(saved["slots"]["exp_avg"]) == ["layers.1.weight", "layers.2.weight"]


def test_weights_are_drawn_to_their_start(tmp_path: Path) -> None:
    def moved(**section: float) -> tuple[float, float]:
        tuned = {"reinit": [r"^layers\.2"]} | ({"l2sp": section} if section else {})
        phase = {"finetune": tuned, "train": TRAIN, "optimizer": {"name": "sgd", "lr": 0.05}}
        of = recipe(phase, clip={"name": "clip_by_global_norm", "max_norm": 100.0})
        out = tmp_path / str(sorted(section.items()))
        found = train(of, out=out)
        after, before = left(found), base(out)
        old = float(np.linalg.norm(after["layers.0.weight"] - before["layers.0.weight"]))
        return old, float(np.linalg.norm(after["layers.2.weight"]))

    free, held = moved(), moved(alpha=5.0, beta=5.0)
    assert held[0] < 0.7 * free[0], "closer to where it started"
    assert held[1] < 0.7 * free[1], "what is new, closer to 0"
    assert moved(alpha=0.0) == free


def test_drawing_anew_needs_no_training(tmp_path: Path) -> None:
    of = recipe({"finetune": {"reinit": ["."]}, "seed": 1}, {"prune": {"criterion": "snip", "sparsity": 0.9}})
    found = train(of, out=tmp_path)
    assert found.steps == 2
    initial = of.build_model(of.data.load()).init(1, "float32")
    for path, x in tree.named(initial).items():
        assert_same_bits(left(found)[path], x, what=path)


@pytest.mark.parametrize("scaling", ["paper", "rank_stabilized"])
def test_adapters_begin_at_the_weights(scaling: str) -> None:
    tuned = {"lora": {"rank": 2, "alpha": 3.0, "scaling": scaling}}
    of = recipe({"finetune": tuned, "train": TRAIN | {"steps": 1}, "optimizer": {"name": "sgd", "lr": 0.0}})
    found = train(of)
    assert found.phases[0].test_loss == found.phases[1].test_loss


def test_a_model_of_one_layer_has_one_rate(tmp_path: Path) -> None:
    """Layer-wise decay and thawing of a linear model: the top layer is all there is."""
    losses = [
        train(recipe({"finetune": tuned, "train": TRAIN}, model={"name": "softmax"})).history.loss
        for tuned in ({"decay": 0.5}, {"unfreeze": {"steps": 2}}, {"rates": {".": 1.0}})
    ]
    assert losses[0] == losses[1] == losses[2]
    with pytest.raises(
        InputError, match=r"^phase 'a': GradualUnfreezing: 1 steps and 0 layers below the top"
    ):
        tasks(recipe({"finetune": {"unfreeze": {"steps": [2]}}, "train": TRAIN}, model={"name": "softmax"}))
