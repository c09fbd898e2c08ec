"""The training engine: the same run in one go, in two, after Ctrl-C and after kill -9."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyopt import checkpoint, training
from polyopt.backend.protocol import Backend
from polyopt.core import tree
from polyopt.core.errors import CheckpointError, InputError, NonFiniteError
from polyopt.recipe import Recipe
from polyopt.testing import assert_close, assert_same_bits
from polyopt.training import Event, History, Result, compare, train
from polyopt.training.compare import losses_apart, parameters_apart

DIGITS = Path(__file__).parents[3] / "recipes" / "digits.toml"


def small(**changes: Any) -> Recipe:
    """A short recipe with everything in it that has state: 5 batches to an epoch, the last one smaller."""
    table: dict[str, Any] = {
        "seed": 1,
        "data": {"name": "diabetes"},
        "model": {"name": "mlp", "hidden": [4]},
        "optimizer": {"name": "adamw", "lr": {"schedule": "plateau", "initial": 0.05, "patience": 0}},
        "clip": {"name": "clip_by_global_norm", "max_norm": 100.0},
        "ema": {"decay": 0.9},
        "train": {"epochs": 4, "batch_size": 80, "accumulate": 2},
    }
    for key, value in changes.items():
        section, name = key.split("__")
        table[section] = {**table[section], name: value}
    return Recipe.from_dict(table)


def same_run(a: Result, b: Result) -> None:
    """The same bits in everything that a run leaves."""
    assert a.steps == b.steps
    assert a.history.loss == b.history.loss
    assert (a.test_loss, a.test_accuracy) == (b.test_loss, b.test_accuracy)
    for x, y in ((a.params, b.params), (a.average, b.average), (tree.named(a.state), tree.named(b.state))):
        assert (x is None) == (y is None)
        assert list(x or {}) == list(y or {})
        for name, value in (x or {}).items():
            other = (y or {})[name]
            if hasattr(value, "shape"):
                assert_same_bits(other, value, what=name)
            else:
                assert other == value, name


@pytest.mark.parametrize("steps", [7, 10])
def test_resumed_is_the_same_run(tmp_path: Path, backend: Backend, steps: int) -> None:
    """In mid-epoch (7), with a gradient held back, and at an epoch's end (10)."""
    whole = train(small(), backend=backend, out=tmp_path / "whole")
    assert whole.steps == len(whole.history.loss) == 20
    first = train(small(), backend=backend, out=tmp_path / "parts", max_steps=steps)
    assert first.steps == steps
    second = train(small(), backend=backend, out=tmp_path / "parts", resume=True)
    same_run(whole, second)
    assert whole.history.evaluations == [e for e in second.history.evaluations if e.step != 7]


def test_extended_is_the_same_run(tmp_path: Path) -> None:
    """Also where it was to end in mid-epoch: the last test tells the plateau nothing."""
    train(small().replace(steps=7), out=tmp_path)
    train(small(), out=tmp_path, resume=True)
    again = train(small().replace(epochs=6), out=tmp_path, resume=True)
    same_run(train(small().replace(epochs=6)), again)
    assert Recipe.load(tmp_path / training.RECIPE) == small().replace(epochs=6)
    assert train(small().replace(epochs=6), out=tmp_path, resume=True).steps == 30
    with pytest.raises(InputError, match=r"is at step 30, beyond the recipe's 20; give more train\.epochs"):
        train(small(), out=tmp_path, resume=True)


def test_the_same_bits_to_begin_with_on_all_backends(backends: list[Backend]) -> None:
    firsts = [train(small(), backend=backend, max_steps=0) for backend in backends]
    for found in firsts[1:]:
        for name, value in firsts[0].params.items():
            assert_same_bits(found.params[name], value, what=name)


def test_four_backends_agree(backends: list[Backend]) -> None:
    found = compare(Recipe.load(DIGITS), backends, dtype="float64", steps=20)
    assert found.backends == ("numpy", "torch", "tensorflow", "jax")
    assert found.max_relative_loss_deviation < 1e-12
    assert found.max_relative_parameter_deviation < 1e-10
    assert len(found.pairs) == 6
    assert {len(x) for x in found.loss_deviation.values()} == {20}
    assert found.loss_deviation["numpy"] == [0.0] * 20
    assert [step for step, _ in found.parameter_deviation["jax"]] == list(range(1, 21))
    for name, curve in found.parameter_deviation.items():
        last = parameters_apart(found.results["numpy"].params, found.results[name].params)
        assert curve[-1] == (20, last), name


def test_compare_measures_deviations() -> None:
    def result(loss: list[float], w: list[float]) -> Result:
        return Result("x", "cpu", 1, History(loss), 0.0, None, 0.0, None, {"w": np.array(w)}, {})

    a, b = result([1.0, 2.0, 0.0], [4.0, 0.5]), result([1.0, 1.0, 0.0], [4.0, 0.75])
    assert losses_apart(a, b) == [0.0, 0.5, 0.0]
    assert parameters_apart(a.params, b.params) == 0.0625
    nan, inf = float("nan"), float("inf")
    a, b = result([nan, nan, inf, 0.0], [nan, 1.0]), result([nan, 1.0, inf, 1.0], [nan, 1.0])
    assert losses_apart(a, b) == [0.0, inf, 0.0, inf]
    assert parameters_apart(a.params, b.params) == 0.0
    assert parameters_apart(a.params, result([], [0.0, 1.0]).params) == inf
    with pytest.raises(InputError, match="'numpy' is given twice"):
        compare(small(), ["numpy", "numpy"], steps=1, on_event=lambda event: pytest.fail("it ran first"))


def test_a_mask_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    table = small().to_dict()
    table["optimizer"] = {"name": "adamw", "mask": "wieght$"}
    with pytest.raises(
        InputError, match=r"^AdamW: mask = 'wieght\$' matches no parameter; did you mean 'layers"
    ):
        train(Recipe.from_dict(table), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_events(tmp_path: Path) -> None:
    events: list[Event] = []
    result = train(small(), out=tmp_path, on_event=events.append, checkpoint_seconds=3600)
    kinds = [event.kind for event in events]
    assert kinds[0] == "started"
    assert kinds[:3] == ["started", "step", "checkpointed"], "a kill soon after the start loses nothing"
    assert kinds[-2:] == ["checkpointed", "finished"]
    assert (kinds.count("step"), kinds.count("evaluated"), kinds.count("checkpointed")) == (20, 4, 2)
    assert [e.step for e in events if e.kind == "step"] == list(range(1, 21))
    last = events[-1]
    assert (last.steps, last.epoch, last.epochs, last.backend) == (20, 4, 4, "numpy")
    assert last.loss == result.history.loss[-1]
    assert last.evaluation is not None
    assert last.evaluation.test_loss == result.test_loss
    assert events[-2].path == tmp_path / "checkpoint.safetensors"


def test_files_of_a_run(tmp_path: Path) -> None:
    result = train(small(), out=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoint.safetensors",
        "history.json",
        "recipe.toml",
    ]
    assert Recipe.load(tmp_path / "recipe.toml") == small()
    history = json.loads((tmp_path / "history.json").read_text())
    assert history["loss"] == result.history.loss
    assert len(history["evaluations"]) == 4
    found = checkpoint.load(tmp_path / "checkpoint.safetensors")
    assert found.meta["step"] == 20
    for name, value in result.params.items():
        assert_same_bits(found.params[name], value)


def test_averaged_weights_are_what_is_tested() -> None:
    result = train(small())
    assert result.average is not None
    assert list(result.average) == list(result.params)
    plain = train(Recipe.from_dict({k: v for k, v in small().to_dict().items() if k != "ema"}))
    for name, value in plain.params.items():
        assert_same_bits(result.params[name], value, what=name)
    assert plain.test_loss != result.test_loss
    assert plain.average is None


def test_a_plateau_hears_of_the_training_loss() -> None:
    table = small().to_dict()
    table["optimizer"]["lr"] |= {"initial": 0.0, "factor": 0.5}
    result = train(Recipe.from_dict(table))
    assert result.state["observed"]["1.lr"]["best"] == pytest.approx(np.mean(result.history.loss[:5]))


def test_batches_of_every_size() -> None:
    table = small(train__accumulate=1).to_dict()
    del table["train"]["epochs"]
    for size, per_epoch in (("full", 1), (1, 354), (100, 4)):
        table["train"] |= {"batch_size": size, "steps": 3, "shuffle": False}
        recipe = Recipe.from_dict(table)
        assert recipe.steps_per_epoch(354) == per_epoch
        assert train(recipe).steps == 3
    alone, together = (train(frozen(size)).history.loss for size in (1, "full"))
    assert (len(alone), len(together)) == (354, 1)
    assert_close(np.mean(alone), together[0], rtol=1e-5, because="float32 means in another order")


def frozen(size: int | str) -> Recipe:
    """An epoch in which nothing moves."""
    table = small(train__accumulate=1, optimizer__lr=0.0).to_dict()
    table["train"] |= {"batch_size": size, "epochs": 1}
    table["optimizer"] = {"name": "sgd", "lr": 0.0}
    return Recipe.from_dict(table)


def test_keeping_no_losses() -> None:
    result = train(small(), record="evaluation")
    assert result.history.loss == []
    same = train(small())
    assert result.history.evaluations == same.history.evaluations


@pytest.mark.parametrize("policy", ["raise", "propagate", "skip"])
def test_a_run_that_blows_up(tmp_path: Path, policy: str) -> None:
    recipe = small(train__nonfinite=policy, train__accumulate=1, optimizer__lr=1e30)
    if policy == "raise":
        with pytest.raises(NonFiniteError, match=r"gradient of 'layers\.\d\.\w+' holds inf or NaN"):
            train(recipe, out=tmp_path, checkpoint_seconds=0)
        assert checkpoint.load(tmp_path / "checkpoint.safetensors").meta["step"] >= 1
        return
    result = train(recipe, out=tmp_path)
    assert result.steps == 20
    finite = all(np.isfinite(x).all() for x in result.params.values())
    assert finite == (policy == "skip")
    text = (tmp_path / "history.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    same_run_text = train(recipe, out=tmp_path, resume=True)
    assert repr(same_run_text.history.loss) == repr(result.history.loss)


def test_an_interrupt_saves_the_last_finished_step(tmp_path: Path) -> None:
    """SIGINT in mid-step is held until the step is done; one raised by a listener comes between steps."""

    def kill(event: Event) -> None:
        if event.kind == "step" and event.step == 7:
            os.kill(os.getpid(), signal.SIGINT)

    def throw(event: Event) -> None:
        if event.kind == "step" and event.step == 7:
            raise KeyboardInterrupt

    whole = train(small())
    for name, listener in (("kill", kill), ("throw", throw)):
        with pytest.raises(KeyboardInterrupt):
            train(small(), out=tmp_path / name, on_event=listener)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert checkpoint.load(tmp_path / name / "checkpoint.safetensors").meta["step"] == 7
        same_run(whole, train(small(), out=tmp_path / name, resume=True))


LONG = """
import sys
from pathlib import Path
from polyopt.recipe import Recipe
from polyopt.training import train
train(Recipe.load(sys.argv[1]), backend="numpy", out=Path(sys.argv[2]), checkpoint_seconds=0)
"""


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    """kill -9 at moments that nobody chose, among them in mid-write: what is left is always whole."""
    recipe = small().replace(epochs=40)
    (tmp_path / "in.toml").write_text(recipe.to_toml())
    out = tmp_path / "out"
    whole = train(recipe)
    for pause in (0.0, 0.053):
        process = subprocess.Popen([sys.executable, "-c", LONG, str(tmp_path / "in.toml"), str(out)])
        try:
            deadline = time.monotonic() + 60
            while not (out / "checkpoint.safetensors").exists() and time.monotonic() < deadline:
                assert process.poll() is None, "it ended before it could be killed"
                time.sleep(0.005)
            time.sleep(pause)
        finally:
            process.kill()
            process.wait()
        at = checkpoint.load(out / "checkpoint.safetensors").meta["step"]
        assert 1 <= at < 200
        same_run(whole, train(recipe, out=out, resume=True))
        (out / "checkpoint.safetensors").unlink()


def test_another_recipe_is_not_resumed(tmp_path: Path) -> None:
    train(small(), out=tmp_path, max_steps=2)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for recipe, message in [
        (
            small(optimizer__b1=0.8),
            r"^optimizer\.b1 = 0\.8; the run in .* began with None: only train\.epochs",
        ),
        (small().replace(seed=2), r"^seed = 2; the run in .* began with 1"),
        (small(model__hidden=[5]), r"^model\.hidden = \[5\]; the run in .* began with \[4\]"),
        (small(train__batch_size=40), r"^train\.batch_size = 40; "),
    ]:
        with pytest.raises(InputError, match=message):
            train(recipe, out=tmp_path, resume=True)
    with pytest.raises(InputError, match="record = 'evaluation'; the run began with 'step'"):
        train(small(), out=tmp_path, resume=True, record="evaluation")
    with pytest.raises(InputError, match="no checkpoint to resume from"):
        train(small(), out=tmp_path / "none", resume=True)
    with pytest.raises(InputError, match="give the folder"):
        train(small(), resume=True)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_damaged_files_are_not_resumed(tmp_path: Path) -> None:
    train(small(), out=tmp_path, max_steps=2)
    history = (tmp_path / "history.json").read_bytes()
    for text in (b"{", b"[]", b'{"loss": 3, "evaluations": []}', b'{"loss": [1.0], "evaluations": []}'):
        (tmp_path / "history.json").write_bytes(text)
        with pytest.raises(InputError, match=r"history\.json"):
            train(small(), out=tmp_path, resume=True)
    (tmp_path / "history.json").write_bytes(history)
    data = (tmp_path / "checkpoint.safetensors").read_bytes()
    (tmp_path / "checkpoint.safetensors").write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match="not a sound checkpoint"):
        train(small(), out=tmp_path, resume=True)
    checkpoint.save(tmp_path / "checkpoint.safetensors", {"w": np.zeros(1)})
    with pytest.raises((InputError, CheckpointError)):
        train(small(), out=tmp_path, resume=True)


def test_a_resume_finds_leaves_that_differ(tmp_path: Path) -> None:
    train(small(), out=tmp_path, max_steps=2)
    found = checkpoint.load(tmp_path / "checkpoint.safetensors")
    params = dict(found.params)
    params["layers.0.weigth"] = params.pop("layers.0.weight")
    checkpoint.save(tmp_path / "checkpoint.safetensors", params, found.state, found.meta)
    with pytest.raises(
        CheckpointError, match=r"'layers\.0\.weight' is missing; did you mean 'layers\.0\.weigth'"
    ):
        train(small(), out=tmp_path, resume=True)


def test_a_full_disk_in_mid_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(small(), out=tmp_path, max_steps=2)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()

    def fail(event: Event) -> None:
        if event.kind == "step" and event.step == 3:
            monkeypatch.setattr(os, "fsync", full)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises((InputError, CheckpointError), match=r"can't write .*: no space left on device"):
        train(small(), out=tmp_path, resume=True, on_event=fail, checkpoint_seconds=0)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    monkeypatch.undo()
    same_run(train(small()), train(small(), out=tmp_path, resume=True))


def test_bad_input_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    recipe = small()
    lost = Recipe.from_dict(recipe.to_dict() | {"partition": [{"pattern": "layer9", "freeze": True}]})
    for bad, options in [
        (recipe, {"backend": "numpi"}),
        (recipe, {"backend": "numpy", "device": "cuda"}),
        (recipe, {"record": "steps"}),
        (recipe.replace(batch_size=10_000), {}),
        (lost, {}),
        (recipe, {"resume": True}),
    ]:
        with pytest.raises((InputError, ImportError)) as caught:
            train(bad, out=tmp_path / "out", **options)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="can't write"):
        train(recipe, out=tmp_path / "file" / "out")


def test_the_second_epoch_compiles_nothing() -> None:
    """Two shapes of batches, two compilations, however many epochs: counted as calls of the loss in JAX."""
    from polyopt.backend.registry import by_name
    from polyopt.training.run import prepare

    engine = prepare(small(), by_name("jax"), None, "step")
    traced = []
    model = engine.model

    class Counting:
        def apply(self, xp: Any, params: Any, x: Any) -> Any:
            traced.append(tuple(x.shape))
            return model.apply(xp, params, x)

    at = engine.start()
    engine.work = replace(engine.work, model=Counting())
    for _ in range(15):
        engine.advance(at)
    assert set(traced) == {(80, 10), (34, 10)}
    assert len(traced) == 2


TERMINATED = """
import os, signal, sys
from pathlib import Path
from polyopt.cli import main, train as command
from polyopt import training
plain = training.train
def killed(*args, on_event, **rest):
    def listener(event):
        on_event(event)
        if event.kind == "step" and event.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
    return plain(*args, on_event=listener, **rest)
training.train = killed
main(["train", sys.argv[1], "--backend", "numpy", "--out", sys.argv[2]])
"""


def test_sigterm_saves_as_ctrl_c_does(tmp_path: Path) -> None:
    (tmp_path / "in.toml").write_text(small().to_toml())
    out = tmp_path / "out"
    words = [sys.executable, "-c", TERMINATED, str(tmp_path / "in.toml"), str(out)]
    assert subprocess.run(words, check=False).returncode == 143
    assert checkpoint.load(out / "checkpoint.safetensors").meta["step"] == 7
    same_run(train(small()), train(small(), out=out, resume=True))


def accumulated(size: int, samples: int, accumulate: int, steps: int | None = None) -> Any:
    """Linear regression by plain descent, one pass over the data without shuffling."""
    return {
        "data": {"name": "diabetes"},
        "model": {"name": "linear"},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "train": {"epochs": 1, "batch_size": size, "accumulate": accumulate, "shuffle": False},
        "dtype": "float64",
    }


@pytest.mark.parametrize("accumulate", [4, 8])
def test_every_sample_of_an_accumulated_update_weighs_the_same(accumulate: int) -> None:
    """Also of a last batch that is smaller, and of a window that the run ends in: the full batch's step."""
    found = Recipe.from_dict(accumulated(100, 354, accumulate))
    whole = Recipe.from_dict(accumulated(10_000, 354, 1) | {"train": {"epochs": 1, "batch_size": "full"}})
    parts, one = (training.train(r, backend="numpy") for r in (found, whole))
    assert (parts.steps, parts.state["step"], one.state["step"]) == (4, 1, 1)
    for path, x in one.params.items():
        assert_close(parts.params[path], x, rtol=1e-12, atol=1e-14, because="sums in another order")
