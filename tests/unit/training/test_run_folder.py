"""Ctrl-C in every kind of phase, on every backend: what is resumed ends in the same bits."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from polyopt import quantization
from polyopt.backend.protocol import Backend
from polyopt.recipe import Recipe
from polyopt.testing import assert_close, assert_same_bits
from polyopt.training import Event, Result, train

# Half of the samples each time: one shape to compile for.
TRAIN = {"steps": 4, "batch_size": 719}
ROUNDS = {"schedule": "iterative", "end": 0.4, "rounds": 2, "every": 1}
GRADUAL = {"schedule": "gradual", "end": 0.5, "steps": 3, "every": 1}
PHASES: list[dict[str, Any]] = [
    {"name": "movement", "prune": {"criterion": "movement", "sparsity": ROUNDS}},
    {"name": "lottery", "prune": {"sparsity": ROUNDS | {"end": 0.5}, "rewind": "start"}},
    {"name": "neurons", "prune": {"criterion": "structured", "sparsity": GRADUAL, "shrink": True}},
    {"name": "thaw", "finetune": {"unfreeze": {"steps": 2}}},
    {"name": "adapters", "finetune": {"lora": {"rank": 1, "alpha": 2.0}}},
]
FEW: list[dict[str, Any]] = [
    {"name": "snip", "prune": {"criterion": "snip", "sparsity": GRADUAL | {"end": 0.3}}},
    {"name": "wanda", "prune": {"criterion": "wanda", "sparsity": GRADUAL | {"end": 0.4}}},
    {"name": "two of four", "prune": {"criterion": "n_of_m"}},
    {"name": "start", "finetune": {"l2sp": {"alpha": 0.1}}},
    {"name": "new head", "finetune": {"lora": {"rank": 1, "alpha": 2.0}, "reinit": [r"^layers\.1"]}},
    {"name": "initial", "prune": {"sparsity": ROUNDS | {"end": 0.6}, "rewind": "initial"}},
    {"name": "clipped", "clip_weights": {"minimum": -0.3, "maximum": 0.3}},
]


def recipe(phases: list[dict[str, Any]], **changes: Any) -> Recipe:
    table: dict[str, Any] = {
        "data": {"name": "digits"},
        "model": {"name": "mlp", "hidden": [8]},
        "optimizer": {"name": "adam", "lr": 0.01},
        "train": {"steps": 1, "batch_size": 719},
        "phase": [{"train": TRAIN} | phase for phase in phases],
    }
    return Recipe.from_dict(table | changes)


def stopped_in_each(of: Recipe, backend: Any, out: Path) -> Result:
    """Ctrl-C in the middle of each phase, and the rest of it in one go after the last."""
    for i, phase in enumerate(of.phase):

        def interrupt(event: Event, name: str = phase.name) -> None:
            if event.phase == name and event.kind == "step" and event.step == 2:
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            train(of, backend=backend, out=out, resume=i > 0, on_event=interrupt)
    return train(of, backend=backend, out=out, resume=True)


def check(whole: Result, parts: Result) -> None:
    assert parts.history.loss == whole.history.loss
    for a, b in zip(whole.phases, parts.phases, strict=True):
        assert (a.name, a.steps, a.test_loss, a.test_accuracy) == (
            b.name,
            b.steps,
            b.test_loss,
            b.test_accuracy,
        )
        assert (a.sparsity, a.parameters, a.bytes) == (b.sparsity, b.parameters, b.bytes)
        if a.model is not None:
            assert b.model is not None
            found = quantization.load(b.model)
            for path, x in quantization.load(a.model).items():
                assert_same_bits(found[path], x, what=f"{a.name}: {path}")


@pytest.mark.full_for("tensorflow", "jax")
def test_on_every_backend(tmp_path: Path, backend: Backend) -> None:
    of = recipe(PHASES)
    whole = train(of, backend=backend, out=tmp_path / "whole")
    check(whole, stopped_in_each(of, backend, tmp_path / "parts"))
    reference = train(of, backend="numpy")
    assert_close(whole.history.loss, reference.history.loss, rtol=1e-3, because="float32, summed otherwise")
    assert [p.sparsity for p in whole.phases] == [p.sparsity for p in reference.phases]


def test_the_other_kinds(tmp_path: Path) -> None:
    """With averaged weights and clipping, on one backend."""
    of = recipe(
        FEW,
        ema={"decay": 0.5},
        clip={"name": "clip_by_global_norm", "max_norm": 1.0},
    )
    check(train(of, out=tmp_path / "whole"), stopped_in_each(of, "numpy", tmp_path / "parts"))


@pytest.mark.full_for("tensorflow", "jax")
def test_other_slots_and_parts_on_every_backend(tmp_path: Path, backend: Backend) -> None:
    """Anchors, and a new head beside adapters. All else of the other kinds is worked out on the host."""
    of = recipe([phase for phase in FEW if phase["name"] in ("start", "new head")])
    whole = train(of, backend=backend, out=tmp_path / "whole")
    check(whole, stopped_in_each(of, backend, tmp_path / "parts"))


def test_between_two_updates(tmp_path: Path) -> None:
    """Of two batches each: a layer thaws, and weights go, at updates alone."""
    twice = {"train": TRAIN | {"accumulate": 2, "steps": 8}}
    of = recipe([phase | twice for phase in PHASES], ema={"decay": 0.5})
    check(train(of, out=tmp_path / "whole"), stopped_in_each(of, "numpy", tmp_path / "parts"))
    odd = tmp_path / "odd"
    train(of, out=odd, max_steps=4)
    check(train(of, out=tmp_path / "again"), train(of, out=odd, resume=True))


def test_a_resume_removes_what_a_kill_left(tmp_path: Path) -> None:
    of = recipe([])
    train(of, backend="numpy", out=tmp_path)
    before = sorted(os.listdir(tmp_path))
    for name in before:
        (tmp_path / f".{name}.0123456789abcdef.tmp").write_bytes(b"half of it")
    train(of, backend="numpy", out=tmp_path, resume=True)
    assert sorted(os.listdir(tmp_path)) == before
