"""A search: the same trials whenever it is stopped, and nothing of the test set."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tuning_recipes import RATE, recipe

from polyopt.backend.protocol import Backend
from polyopt.core.errors import BackendError, InputError
from polyopt.models import datasets
from polyopt.recipe import Recipe
from polyopt.recipe.sections import Data
from polyopt.testing import assert_close, assert_same_bits
from polyopt.training import Result, train
from polyopt.training.phase_runner import PhaseRunner
from polyopt.training.tuning import BEST, STUDY, Progress, Study, Trial, tune
from polyopt.training.tuning.picture import picture
from polyopt.training.tuning.run import validation


def without_times(study: Study) -> list[Any]:
    return [(t.number, t.state, t.value, dict(t.values), t.reports) for t in study.trials]


# What it is judged by


def test_the_test_samples_are_not_looked_at() -> None:
    found = recipe(validation_fraction=0.25)
    section = found.tune
    assert section is not None
    whole = datasets.load("breast_cancer", standardize=False)
    plain = Recipe.from_dict(found.to_dict() | {"data": {"name": "breast_cancer", "standardize": False}})
    split = validation(plain.data, section)
    assert len(split.x_test) == len(whole.x_train) // 4
    together = np.concatenate([split.x_train, split.x_test])
    assert_same_bits(together[np.lexsort(together.T)], whole.x_train[np.lexsort(whole.x_train.T)])
    scaled = validation(found.data, section)
    mean, deviation = split.x_train.mean(axis=0), split.x_train.std(axis=0)
    for x, raw in ((scaled.x_train, split.x_train), (scaled.x_test, split.x_test)):
        assert_close(x, (raw - mean) / deviation, atol=1e-10, because="float64, shifted and scaled twice")
    other = validation(found.data, section.model_copy(update={"seed": 1}))
    assert not np.array_equal(other.y_test, scaled.y_test[: len(other.y_test)])
    with pytest.raises(InputError, match=r"tune\.validation_fraction = 0\.001 leaves a side empty"):
        validation(found.data, section.model_copy(update={"validation_fraction": 0.001}))


# Searching


@pytest.mark.full_for("tensorflow", "jax")
def test_the_same_trials_on_every_backend(backend: Backend) -> None:
    """The first trials are drawn by the seed alone; their figures are those of the same arithmetic."""
    expected = tune(recipe(), backend="numpy", trials=3)
    found = tune(recipe(), backend=backend, trials=3)
    assert [t.values for t in found.trials] == [t.values for t in expected.trials]
    accuracies = [[t.value for t in study.trials] for study in (found, expected)]
    assert_close(accuracies[0], accuracies[1], atol=0.02, because="2 of 91 samples; float32 sums differ")


SPACE = {
    "optimizer.lr": {"low": 1e-3, "high": 2.0, "log": True},
    "optimizer.momentum": {"low": 0.0, "high": 0.9, "step": 0.3},
    "train.batch_size": {"choices": [16, 64, "full"]},
    "train.epochs": {"low": 3, "high": 5},
}


def test_stopped_and_gone_on_with_it_is_as_if_never_stopped(tmp_path: Path) -> None:
    whole = tune(recipe(SPACE), backend="numpy", out=tmp_path / "a", trials=14)
    assert {t.state for t in whole.trials} == {"complete", "pruned"}

    def stop(now: Progress) -> None:
        # In the middle of a trial.
        if now.number == 12 and now.ended is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(recipe(SPACE), backend="numpy", out=tmp_path / "b", trials=14, on_progress=stop)
    assert len(json.loads((tmp_path / "b" / STUDY).read_text())["trials"]) == 12
    again = tune(recipe(SPACE, trials=14), backend="numpy", out=tmp_path / "b", resume=True)
    assert without_times(again) == without_times(whole)
    assert (tmp_path / "a" / BEST).read_text() == (tmp_path / "b" / BEST).read_text()
    assert (
        tune(recipe(SPACE), backend="numpy", out=tmp_path / "b", resume=True, trials=3).trials == again.trials
    )
    assert without_times(tune(recipe(SPACE, seed=1), backend="numpy", trials=1)) != without_times(whole)[:1]


def test_values_lie_in_the_space_and_the_best_is_written(tmp_path: Path) -> None:
    seen: list[Progress] = []
    study = tune(recipe(SPACE), backend="numpy", out=tmp_path, trials=8, on_progress=seen.append)
    space = dict(study.section.space)
    for trial in study.trials:
        assert all(space[key].holds(value) for key, value in trial.values.items())
        assert round(trial.values["optimizer.momentum"] / 0.3, 9).is_integer()
        if trial.state == "complete":
            assert trial.reports[-1] == (trial.values["train.epochs"], trial.value)
    assert study.best is not None
    assert study.best.value == max(t.value for t in study.trials if t.state == "complete" and t.value)
    best = Recipe.load(tmp_path / BEST)
    assert best.tune is None
    assert best.name == "recipe-best"
    assert best.to_dict()["optimizer"]["lr"] == study.best.values["optimizer.lr"]
    assert [p.ended.number for p in seen if p.ended] == list(range(8))
    assert study.ranked()[0] == study.best


@pytest.mark.parametrize(
    ("key", "axis", "grid"),
    [
        ("train.epochs", {"low": 1, "high": 4, "step": 2}, {1, 3, 4}),
        ("optimizer.momentum", {"low": 0.1, "high": 0.9, "step": 0.3}, {0.1, 0.4, 0.7, 0.9}),
        ("optimizer.momentum", {"low": 0.0, "high": 0.9, "step": 0.3}, {0.0, 0.3, 0.6, 0.9}),
    ],
)
def test_both_ends_of_a_range_are_tried_whatever_the_step(
    key: str, axis: dict[str, Any], grid: set[float], tmp_path: Path
) -> None:
    """The documented values, all of them, and no warning of Optuna's; also when it is gone on with."""
    found = recipe({key: axis}, prune=False)
    tune(found, backend="numpy", out=tmp_path, trials=6)
    study = tune(found, backend="numpy", out=tmp_path, trials=24, resume=True)
    assert {trial.values[key] for trial in study.trials} == grid
    whole = tune(found, backend="numpy", trials=24)
    assert without_times(study) == without_times(whole)


def test_a_loss_is_made_small() -> None:
    study = tune(recipe(task="regression"), backend="numpy", trials=4)
    assert study.metric == "loss"
    done = [t.value for t in study.trials if t.value is not None]
    assert study.best is not None
    assert study.best.value == min(done)
    by_loss = tune(recipe(metric="loss"), backend="numpy", trials=2)
    assert by_loss.best is not None
    assert by_loss.best.value == min(t.value for t in by_loss.trials if t.value is not None)


def test_a_run_that_is_worse_than_the_median_is_given_up() -> None:
    space = {"optimizer.lr": {"choices": [0.1, 1e-7]}}
    study = tune(recipe(space), backend="numpy", trials=16)
    bad = [t for t in study.trials if t.values["optimizer.lr"] == 1e-7]
    states = [t.state for t in bad if t.number > 8]
    assert states
    assert set(states) == {"pruned"}
    assert all(t.reports[-1][0] == 2 for t in bad if t.state == "pruned")
    assert all(
        t.state == "complete" for t in tune(recipe(space, prune=False), backend="numpy", trials=9).trials
    )


def chain(space: dict[str, Any], **section: Any) -> Recipe:
    """A teacher, a student of it, and the student in four bits."""
    student = {"model": {"name": "mlp", "hidden": [4]}, "temperature": 2.0}
    train = {"epochs": 2, "batch_size": 91}
    table = recipe().to_dict() | {
        "train": train,
        "tune": {"space": space or {"optimizer.lr": RATE}} | section,
        "phase": [
            {"name": "student", "train": train, "distil": student},
            {"name": "int4", "quantize": {"bits": 4}},
        ],
    }
    return Recipe.from_dict(table)


IN_PHASES = {
    "phase.0.distil.temperature": {"low": 1.0, "high": 8.0},
    "phase.0.train.epochs": {"low": 1, "high": 3},
    "phase.1.quantize.bits": {"choices": [4, 8]},
}


def test_what_phases_do_is_looked_for_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher is trained once; a trial is judged by what the last phase left."""
    runs: list[tuple[str, ...]] = []
    made = PhaseRunner.run

    def counted(self: PhaseRunner, max_steps: int | None) -> Result:
        runs.append(tuple(task.name for task in self.tasks))
        return made(self, max_steps)

    monkeypatch.setattr(PhaseRunner, "run", counted)
    of = chain(IN_PHASES, prune=False)
    study = tune(of, backend="numpy", trials=3, out=tmp_path)
    assert runs == [("base",)] + [("student", "int4")] * 3
    first = study.trials[0]
    assert [epoch for epoch, _ in first.reports][-1] == first.values["phase.0.train.epochs"]
    section = of.tune
    assert section is not None
    datasets = validation(of.data, section)
    monkeypatch.setattr(Data, "load", lambda self: datasets)
    again = train(of.tuned(first.values), backend="numpy")
    assert again.test_accuracy == again.phases[-1].test_accuracy == first.value
    best = Recipe.load(tmp_path / BEST)
    assert study.best is not None
    assert best.phase[0].distil is not None
    assert best.phase[0].distil.temperature == study.best.values["phase.0.distil.temperature"]


def test_phases_are_left_out_where_nothing_of_them_is_looked_for() -> None:
    study = tune(chain({}), backend="numpy", trials=1)
    assert [epoch for epoch, _ in study.trials[0].reports] == [1, 2]


def test_a_chain_is_gone_on_with_as_if_never_stopped(tmp_path: Path) -> None:
    space = IN_PHASES | {"optimizer.lr": RATE}
    whole = tune(chain(space), backend="numpy", trials=9)
    tune(chain(space), backend="numpy", trials=4, out=tmp_path)
    parts = tune(chain(space), backend="numpy", trials=9, out=tmp_path, resume=True)
    assert without_times(parts) == without_times(whole)
    assert {t.state for t in whole.trials} == {"complete", "pruned"}


def test_a_run_that_diverges_has_failed_and_the_search_goes_on(tmp_path: Path) -> None:
    space = {"optimizer.lr": {"choices": [0.1, 1e30]}}
    study = tune(recipe(space, task="regression"), backend="numpy", out=tmp_path, trials=6)
    states = {t.values["optimizer.lr"]: t.state for t in study.trials}
    assert states == {0.1: "complete", 1e30: "failed"}
    assert study.best is not None
    assert study.best.values["optimizer.lr"] == 0.1
    again = tune(recipe(space, task="regression"), backend="numpy", out=tmp_path, trials=7, resume=True)
    assert without_times(again)[:6] == without_times(study)
    lost = tune(recipe({"optimizer.lr": {"choices": [1e30]}}, task="regression"), backend="numpy", trials=1)
    assert lost.best is None
    assert lost.best_recipe() is None


def test_values_that_do_not_go_together_have_failed(tmp_path: Path) -> None:
    space = {"train.batch_size": {"choices": [4096, 64]}}
    study = tune(recipe(space), backend="numpy", out=tmp_path, trials=5)
    assert {t.values["train.batch_size"]: t.state for t in study.trials} == {4096: "failed", 64: "complete"}
    reasons = {t.reason for t in study.trials if t.state == "failed"}
    assert len(reasons) == 1
    assert str(reasons.pop()).startswith("train.batch_size = 4096; expected at most the 365 training samples")
    again = tune(recipe(space), backend="numpy", out=tmp_path, trials=5, resume=True)
    assert again.trials == study.trials


# Refused


def test_bad_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Recipe.from_dict({k: v for k, v in recipe().to_dict().items() if k != "tune"})
    for call, message in (
        (lambda: tune(plain, backend="numpy"), r"tune: this table is missing; add \[tune\.space\]"),
        (lambda: tune(recipe(), backend="numpy", trials=0), "trials = 0; expected an integer >= 1"),
        (lambda: tune(recipe(), backend="numpy", resume=True), "resume: give the folder of the study as out"),
        (
            lambda: tune(recipe(), backend="numpy", resume=True, out=tmp_path / "none"),
            "no study to go on with; start without resume",
        ),
    ):
        with pytest.raises(InputError, match=message):
            call()
    masked = recipe().to_dict()
    masked["optimizer"] |= {"weight_decay": 0.1, "mask": "wieght$"}
    with pytest.raises(InputError, match=r"mask = 'wieght\$' matches no parameter"):
        tune(Recipe.from_dict(masked), backend="numpy", out=tmp_path / "x")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(BackendError, match=r'tuning needs Optuna .*: pip install "optuna>=4"'):
        tune(recipe(), backend="numpy", out=tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_another_study_is_not_gone_on_with(tmp_path: Path) -> None:
    tune(recipe(), backend="numpy", out=tmp_path, trials=1)
    before = (tmp_path / STUDY).read_bytes()
    for other, message in (
        (
            recipe({"optimizer.lr": RATE | {"high": 2.0}}),
            r"tune\.space\.optimizer\.lr\.high = 2\.0; the study in",
        ),
        (recipe(seed=4), r"tune\.seed = 4; .* began with 0: only tune\.trials may change"),
    ):
        with pytest.raises(InputError, match=message):
            tune(other, backend="numpy", out=tmp_path, resume=True)
    with pytest.raises(InputError, match="began on the backend 'numpy'; found 'torch'"):
        tune(recipe(), backend="torch", out=tmp_path, resume=True)
    assert (tmp_path / STUDY).read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        {"values": {"optimizer.lr": 7.0}},
        {"values": {}},
        {"state": "running"},
        {"state": "failed"},
        {"value": "high"},
        {"value": None},
        {"reports": [3]},
        {"seconds": "nan"},
        None,
    ],
    ids=str,
)
def test_a_study_that_was_not_written_here(change: Any, tmp_path: Path) -> None:
    tune(recipe(), backend="numpy", out=tmp_path, trials=1)
    table = json.loads((tmp_path / STUDY).read_text())
    table["trials"] = [table["trials"][0] | change] if change is not None else 3
    (tmp_path / STUDY).write_text(json.dumps(table))
    with pytest.raises(InputError, match=r"study\.json: not a study that was written here; remove it"):
        tune(recipe(), backend="numpy", out=tmp_path, resume=True)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "[" * 100_000, '{"backend": "numpy", "recipe": 3, "trials": []}']
)
def test_a_file_that_is_no_study(text: str, tmp_path: Path) -> None:
    (tmp_path / STUDY).write_text(text)
    with pytest.raises(InputError, match="not a study that was written here"):
        tune(recipe(), backend="numpy", out=tmp_path, resume=True)


# The picture


def test_the_picture(tmp_path: Path) -> None:
    space = {**SPACE, "optimizer.nesterov": {"choices": [True, False]}}
    found = recipe(space, task="regression")
    values = {"optimizer.lr": 0.1, "optimizer.momentum": 0.3, "train.batch_size": "full", "train.epochs": 3}
    values |= {"optimizer.nesterov": True}
    trials = [
        Trial(0, "complete", 0.5, values, ((3, 0.5),), 1.0),
        Trial(1, "pruned", 0.9, values | {"optimizer.nesterov": False}, ((2, 0.9),), 1.0),
        Trial(2, "failed", None, values, (), 1.0),
        Trial(3, "complete", 0.4, values, ((3, 0.4),), 1.0),
    ]
    picture(tmp_path / "tune.png", Study(found, "numpy", trials))
    assert (tmp_path / "tune.png").read_bytes().startswith(b"\x89PNG")
    picture(tmp_path / "given_up.png", Study(found, "numpy", trials[1:2]))
    assert (tmp_path / "given_up.png").stat().st_size > 10_000


AXES = [
    RATE,
    {"low": 1e-5, "high": 3e-1, "log": True},
    {"low": 1e-4, "high": 1e-3, "log": True},
    {"low": 0.011, "high": 0.013, "log": True},
    {"low": 1e-12, "high": 1e12, "log": True},
    {"low": 12345.0, "high": 23456.0},
    {"low": 0.00001, "high": 0.00009},
]


@pytest.mark.parametrize("axis", AXES)
def test_no_label_of_the_picture_lies_on_another_and_trials_are_whole(
    axis: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    space = {f"optimizer.{key}": axis for key in ("lr", "weight_decay", "dampening")}
    found = recipe({"optimizer.lr": axis})
    section = found.tune
    assert section is not None
    shown = tuple((key, dict(section.space)["optimizer.lr"]) for key in space)
    study = Study(found.model_copy(update={"tune": section.model_copy(update={"space": shown})}), "numpy")
    for i, x in enumerate((axis["low"], axis["high"])):
        study.trials.append(Trial(i, "complete", 0.5 + i, dict.fromkeys(space, x), ((3, 0.5),), 1.0))
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    picture(tmp_path / "tune.png", study)
    (figure,) = drawn
    figure.draw_without_rendering()
    history, *panels = figure.axes
    low, high = history.get_xlim()
    assert [x for x in history.get_xticks() if low <= x <= high] == [0, 1]
    assert len(panels) == 3
    boxes = []
    for panel in panels:
        left, right = panel.get_xlim()
        ticks = [*panel.xaxis.get_major_ticks(), *panel.xaxis.get_minor_ticks()]
        labels = [t.label1 for t in ticks if left <= t.get_loc() <= right and t.label1.get_text()]
        assert labels
        boxes += [label.get_window_extent() for label in labels]
    boxes.sort(key=lambda box: box.x0)
    for one, two in pairwise(boxes):
        assert one.x1 < two.x0
