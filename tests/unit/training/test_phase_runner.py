"""Phases: each goes on where the one before left off, on four backends, in one go or in many."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.cli_output import error, result

from polyopt import checkpoint, quantization, training
from polyopt.backend.protocol import Backend
from polyopt.cli.app import run
from polyopt.core import tree
from polyopt.core.errors import InputError, NonFiniteError
from polyopt.quantization import Cast, dequantize
from polyopt.quantization.record import Quantized
from polyopt.recipe import Recipe
from polyopt.testing import assert_close, assert_same_bits
from polyopt.training import Event, Result, train
from polyopt.training.phase_runner import stored_bytes

# Half of the samples each time: one shape to compile for.
TRAIN = {"epochs": 6, "batch_size": 719}
GRADUAL = {"schedule": "gradual", "end": 0.8, "steps": 8, "every": 4}


def small(**changes: Any) -> Recipe:
    """All kinds of phases, in 12 steps each."""
    table: dict[str, Any] = {
        "name": "small",
        "seed": 1,
        "data": {"name": "digits"},
        "model": {"name": "mlp", "hidden": [16, 8]},
        "optimizer": {"name": "adam", "lr": 0.02},
        "train": TRAIN,
        "phase": [
            {
                "name": "turned",
                "data": {"shift": "rotated"},
                "finetune": {"freeze": [r"^layers\.0\."], "reinit": [r"^layers\.2\."], "decay": 0.5},
                "train": TRAIN,
            },
            {"name": "sparse", "prune": {"sparsity": GRADUAL, "scope": "global"}, "train": TRAIN},
            {"name": "int8", "quantize": {"bits": 8}},
            {
                "name": "student",
                "distil": {"teacher": "int8", "model": {"name": "mlp", "hidden": [4]}},
                "train": TRAIN,
            },
            {"name": "int4", "quantize": {"bits": 4, "group_size": 2, "select": r"weight$"}},
        ],
    }
    return Recipe.from_dict(table | changes)


def only(*phases: dict[str, Any], **changes: Any) -> Recipe:
    """These phases alone."""
    return small(phase=[{"name": chr(ord("a") + i)} | phase for i, phase in enumerate(phases)], **changes)


def model(result: Result, name: str = "") -> dict[str, Any]:
    """The leaves that a phase left, quantized ones as such."""
    found = {phase.name: phase.model for phase in result.phases}
    path = found[name] if name else result.model
    assert path is not None
    leaves: dict[str, Any] = quantization.load(path)
    return leaves


@pytest.mark.full_for("tensorflow", "jax")
def test_phases_in_a_row(tmp_path: Path, backend: Backend) -> None:
    events: list[Event] = []
    found = train(small(), backend=backend, out=tmp_path, on_event=events.append)
    names = ["base", "turned", "sparse", "int8", "student", "int4"]
    kinds = ["train", "finetune", "prune", "quantize", "distil", "quantize"]
    assert [p.name for p in found.phases] == names
    assert [p.kind for p in found.phases] == kinds
    assert [p.steps for p in found.phases] == [12, 12, 12, 0, 12, 0]
    assert found.steps == len(found.history.loss) == 48
    assert [e.phase for e in events if e.kind == "finished"] == ["", *names[1:]]
    assert [e.phase for e in events if e.kind == "step"] == [
        n for n in ["", *names[1:3], "student"] for _ in range(12)
    ]

    base, turned = checkpoint.load(tmp_path / "checkpoint.safetensors").params, model(found, "turned")
    for path in ("layers.0.weight", "layers.0.bias"):
        assert_same_bits(turned[path], base[path], what=path)
    assert not np.array_equal(turned["layers.2.weight"], base["layers.2.weight"])

    sparse = model(found, "sparse")
    weights = np.concatenate([x.ravel() for path, x in sparse.items() if path.endswith("weight")])
    assert np.count_nonzero(weights) == weights.size - round(0.8 * weights.size)
    assert found.phases[2].sparsity == 1 - np.count_nonzero(weights) / weights.size

    eight = model(found, "int8")
    for path, x in sparse.items():
        if path.endswith("weight"):
            assert eight[path].codes.dtype == np.int8
            assert not dequantize(eight[path])[x == 0].any(), "0 is a point of the grid"
        else:
            assert_same_bits(eight[path], x)
    assert found.phases[3].bytes == weights.size + 4 * (16 + 8 + 10) * 2

    final = model(found)
    assert isinstance(final["layers.0.weight"], Quantized)
    assert (
        stored_bytes(final)
        == found.phases[-1].bytes
        == (64 * 4 + 4 * 10) // 2 + 4 * (32 * 4 + 2 * 10) + 4 * 14
    )
    for path, x in found.params.items():
        assert_same_bits(np.asarray(x), np.asarray(dequantize({"x": final[path]})["x"]), what=path)
    assert found.test_accuracy == found.phases[-1].test_accuracy


def test_the_same_masks_and_codes_from_the_same_weights(tmp_path: Path, backends: list[Backend]) -> None:
    """A run that moves nothing: what follows is bit for bit the same."""
    recipe = only(
        {"prune": {"sparsity": 0.8, "scope": "global"}},
        {"quantize": {"bits": 8, "symmetric": False, "activations": {"observer": "entropy"}}},
        {
            "quantize": {
                "bits": 4,
                "group_size": 4,
                "select": r"layers.[01].weight$",
                "method": "gptq",
                "activations": {"bits": 4, "observer": "percentile", "percent": 99.0},
            }
        },
        optimizer={"name": "sgd", "lr": 0.0},
    )
    runs = [train(recipe, backend=b, out=tmp_path / b.name) for b in backends]
    for name in ("a", "b", "c"):
        arrays = [quantization.to_arrays(model(found, name))[0] for found in runs]
        for found in arrays[1:]:
            assert list(found) == list(arrays[0])
            for key, x in found.items():
                assert_same_bits(x, arrays[0][key], what=key)
        grids = [
            quantization.load_grids(phase.model or "")
            for r in runs
            for phase in r.phases
            if phase.name == name
        ]
        assert grids == [grids[0]] * 4
        assert len(grids[0]) == {"a": 0, "b": 3, "c": 2}[name]
    for phases in zip(*(found.phases for found in runs), strict=True):
        first = phases[0]
        assert {(p.test_accuracy, p.sparsity) for p in phases} == {(first.test_accuracy, first.sparsity)}
        losses = [p.test_loss for p in phases]
        assert_close(losses, [losses[0]] * 4, rtol=1e-4, because="float32; no code is on an edge")
    assert runs[0].phases[-1].sparsity == runs[0].phases[1].sparsity > 0.79


@pytest.mark.full_for("12", "24", "41")
@pytest.mark.parametrize("steps", [5, 12, 17, 24, 30, 41])
def test_resumed_is_the_same_run(tmp_path: Path, steps: int) -> None:
    """In the run, between phases, in fine-tuning, between two prunings, and in distilling."""
    recipe = small(ema={"decay": 0.9}, clip={"name": "clip_by_global_norm", "max_norm": 1.0})
    whole = train(recipe, out=tmp_path / "whole")
    first = train(recipe, out=tmp_path / "parts", max_steps=steps)
    assert first.steps == steps
    assert first.model is None
    second = train(recipe, out=tmp_path / "parts", resume=True)
    assert second.history.loss == whole.history.loss
    for a, b in zip(whole.phases, second.phases, strict=True):
        assert (a.name, a.steps, a.test_loss, a.sparsity) == (b.name, b.steps, b.test_loss, b.sparsity)
        for path, x in quantization.to_arrays(model(whole, a.name) if a.model else {})[0].items():
            assert_same_bits(quantization.to_arrays(model(second, a.name))[0][path], x, what=path)


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    whole = train(small(), out=tmp_path)
    events: list[Event] = []
    again = train(small(), out=tmp_path, resume=True, on_event=events.append)
    assert not [e for e in events if e.kind == "step"]
    trained = [p.name for p in whole.phases if p.steps]
    before, after = ({p.name: p.seconds for p in r.phases if p.name in trained} for r in (whole, again))
    assert before == after, "the time that it took, not that of reading it"
    assert json.loads((tmp_path / "phases.json").read_text())[-1]["name"] == "int4"


def test_ctrl_c_in_a_phase(tmp_path: Path) -> None:
    def interrupt(event: Event) -> None:
        if event.phase == "sparse" and event.kind == "step" and event.step == 7:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(small(), out=tmp_path / "parts", on_event=interrupt)
    assert checkpoint.load(tmp_path / "parts/phases/2-sparse/checkpoint.safetensors").meta["step"] == 7
    second = train(small(), out=tmp_path / "parts", resume=True)
    assert second.history.loss == train(small()).history.loss


def test_a_new_run_does_not_go_on_from_an_old_ones_phases(tmp_path: Path) -> None:
    train(small(), out=tmp_path)
    other = small(seed=2)
    train(other, out=tmp_path, max_steps=12)
    assert not (tmp_path / "model.safetensors").exists()
    found = train(other, out=tmp_path, resume=True)
    assert found.history.loss == train(other).history.loss
    phases = small(seed=2).to_dict()["phase"]
    phases[1]["prune"]["scope"] = "leaf"
    with pytest.raises(InputError, match=r"^phase\.1\.prune\.scope = 'leaf'; the run in .* nothing may"):
        train(small(seed=2, phase=phases), out=tmp_path, resume=True)
    with pytest.raises(InputError, match=r"^train\.epochs = 3; .* nothing may change"):
        train(other.replace(epochs=3), out=tmp_path, resume=True)


@pytest.mark.full_for("tensorflow", "jax")
def test_masks_stay_in_the_phases_after(tmp_path: Path, backend: Backend) -> None:
    """In fine-tuning, with a frozen layer too, and where the averaged weights are what is kept."""
    recipe = only(
        {"prune": {"sparsity": 0.5}},
        {"finetune": {"freeze": [r"^layers\.0"], "reinit": [r"^layers\.2"]}, "train": TRAIN},
        {"quantize": {"aware": True, "activations": {"observer": "mse"}}, "train": TRAIN},
        ema={"decay": 0.9},
        optimizer={"name": "adamw", "lr": 0.02, "weight_decay": 0.1},
    )
    found = train(recipe, backend=backend, out=tmp_path)
    first, second, third = (model(found, name) for name in "abc")
    for i in (0, 1):
        zero = first[f"layers.{i}.weight"] == 0
        assert zero.mean() == 0.5
        assert not second[f"layers.{i}.weight"][zero].any()
        assert not dequantize(third[f"layers.{i}.weight"])[zero].any()
    assert (second["layers.2.weight"] != 0).all(), "drawn anew, it is whole again"
    assert_same_bits(second["layers.0.weight"], first["layers.0.weight"])
    assert not np.array_equal(second["layers.1.weight"], first["layers.1.weight"])
    assert [phase.sparsity for phase in found.phases] == [0.0, 0.5, 0.5, 0.5]
    assert list(found.grids) == [f"layers.{i}.weight" for i in range(3)]


def test_a_student_without_a_teacher_is_a_plain_run(tmp_path: Path) -> None:
    """alpha = 0: the labels alone, from the same weights in the same order of samples."""
    student = {"alpha": 0.0, "model": {"name": "mlp", "hidden": [4]}}
    recipe = only({"distil": student, "train": TRAIN}, loss={"label_smoothing": 0.1})
    alone = train(recipe.of_phase(1)).history.loss
    assert_close(train(recipe).history.loss[12:], alone, rtol=1e-5, because="float32, summed otherwise")
    taught = only({"distil": student | {"alpha": 0.9}, "train": TRAIN})
    assert train(taught).history.loss[12:] != alone


def test_other_classes_need_another_head(tmp_path: Path) -> None:
    recipe = only(
        {
            "data": {"labels": [1, 7]},
            "finetune": {"reinit": [r"^layers\.2"]},
            "train": {"epochs": 12, "batch_size": "full"},
        },
        {"quantize": {"dtype": "bfloat16"}},
    )
    found = train(recipe, out=tmp_path)
    assert found.params["layers.2.weight"].shape == (8, 2)
    assert found.test_accuracy is not None
    assert found.test_accuracy > 0.9
    assert model(found)["layers.2.weight"].scheme == Cast("bfloat16")


def test_what_does_not_fit_writes_nothing(tmp_path: Path) -> None:
    recipe = only({"prune": {"sparsity": 0.5, "select": "wieght"}})
    with pytest.raises(InputError, match=r"^phase 'a': .* matches no parameter"):
        train(recipe, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_error_says_which_phase(tmp_path: Path) -> None:
    recipe = only({"optimizer": {"name": "sgd", "lr": 1e30}, "train": TRAIN})
    with pytest.raises(NonFiniteError, match=r"^numpy, phase 'a', step \d+: "):
        train(recipe)


def test_a_recipe_without_phases_leaves_what_it_did(tmp_path: Path) -> None:
    plain, phased = small(phase=[]), small()
    found = train(plain, out=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoint.safetensors",
        "history.json",
        "recipe.toml",
    ]
    assert (found.phases, found.model) == ((), None)
    train(phased, out=tmp_path / "phased")
    base = checkpoint.load(tmp_path / "phased/checkpoint.safetensors")
    for path, x in found.params.items():
        assert_same_bits(base.params[path], x, what=path)
    assert training.compare(phased, ["numpy"]).losses["numpy"] == found.history.loss
    assert tree.named(found.state).keys() == tree.named(train(plain).state).keys()


def test_the_command_shows_each_phase(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "small.toml"
    path.write_text(small().to_toml())
    assert run(["train", str(path), "--out", str(tmp_path / "run"), "--json"]) == 0
    found = result(capsys)
    assert [p["name"] for p in found["phases"]] == ["base", "turned", "sparse", "int8", "student", "int4"]
    assert Path(found["model"]).exists()
    assert run(["train", str(path), "--out", str(tmp_path / "run")]) == 2
    assert "add --resume" in error(capsys)
    assert run(["train", str(path), "--out", str(tmp_path / "run"), "--resume"]) == 0
    printed = capsys.readouterr()
    for word in ("phase", "sparsity", "bytes", "turned", "80.0%", "model.safetensors"):
        assert word in printed.out
    assert (
        run(["compare", str(path), "--backends", "numpy", "--steps", "2", "--out", str(tmp_path / "c")]) == 0
    )
    assert "the phases are left out" in capsys.readouterr().err
