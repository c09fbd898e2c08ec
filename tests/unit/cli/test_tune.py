"""``polyopt tune`` as a person meets it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers.cli_output import result

from polyopt.cli import tune as command
from polyopt.cli.app import run
from polyopt.core.errors import InputError
from polyopt.recipe import Recipe
from polyopt.training import train, tuning

TEXT = """
name = "search"

[data]
name = "breast_cancer"

[model]
name = "softmax"

[optimizer]
name = "sgd"
lr = 0.1

[train]
epochs = 3
batch_size = 64

[tune]
trials = 3

[tune.space]
"optimizer.lr" = {low = 1e-3, high = 1.0, log = true}
"train.batch_size" = {choices = [32, 64]}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In a folder of its own, where it runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "search.toml").write_text(TEXT)
    return Path("search.toml")


def request(recipe: Path, **changes: Any) -> command.TuneRequest:
    fields: dict[str, Any] = dict.fromkeys(("trials", "backend", "device", "out"))
    fields |= {"resume": False, "overwrite": False, "overrides": {}, "backend": "numpy"}
    return command.TuneRequest(recipe, **(fields | changes))


def test_a_table_a_picture_and_a_recipe_that_trains(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.tune(request(recipe), False) == 0
    printed = capsys.readouterr()
    out = Path("runs/search-tune-numpy")
    assert {p.name for p in out.iterdir()} == {tuning.STUDY, tuning.BEST, command.PICTURE}
    assert "search on numpy, 3 trials" in printed.out
    assert "validation accuracy" in printed.out
    assert f"polyopt train {out / tuning.BEST}" in printed.out
    assert printed.err.splitlines() == [f"search on numpy, into {out}"]
    assert (train(Recipe.load(out / tuning.BEST), backend="numpy").test_accuracy or 0.0) > 0.9


def test_json_and_going_on(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.tune(request(recipe, trials=2), True) == 0
    first = result(capsys)
    assert (first["metric"], len(first["trials"])) == ("accuracy", 2)
    with pytest.raises(InputError, match=r"study\.json of an earlier run is there; add --resume to go on"):
        command.tune(request(recipe), True)
    assert command.tune(request(recipe, resume=True), True) == 0
    found = result(capsys)
    assert found["trials"][:2] == first["trials"]
    assert len(found["trials"]) == 3
    assert found["best"]["value"] == max(t["value"] for t in found["trials"])
    assert command.tune(request(recipe, trials=1, overwrite=True), True) == 0
    assert len(result(capsys)["trials"]) == 1
    with pytest.raises(InputError, match="--trials 0: expected an integer >= 1"):
        command.tune(request(recipe, trials=0), True)


def test_interrupted_it_says_how_to_go_on(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def stopping(announcement: str) -> Iterator[Callable[[tuning.Progress], None]]:
        def show(now: tuning.Progress) -> None:
            if len(now.study.trials) == 2:
                raise KeyboardInterrupt

        yield show

    with monkeypatch.context() as patched:
        patched.setattr(command, "progress", stopping)
        assert command.tune(request(recipe), False) == 130
    said = capsys.readouterr()
    study = Path("runs/search-tune-numpy") / tuning.STUDY
    expected = f"{study} is saved: the same command with --resume goes on from there"
    assert said.err == f"error: interrupted after 2 trials; {expected}\n"
    assert command.tune(request(recipe, resume=True), True) == 0
    assert len(result(capsys)["trials"]) == 3


@pytest.mark.parametrize("moment", ["in a trial", "between two"])
def test_sigterm_saves_the_trials_that_are_done(
    moment: str, recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command.tune(request(recipe, out=Path("whole")), True) == 0
    whole = result(capsys)

    @contextmanager
    def terminating(announcement: str) -> Iterator[Callable[[tuning.Progress], None]]:
        def show(now: tuning.Progress) -> None:
            if now.number == 1 and (now.ended is not None) == (moment == "between two"):
                os.kill(os.getpid(), signal.SIGTERM)

        yield show

    with monkeypatch.context() as patched:
        patched.setattr(command, "progress", terminating)
        assert command.tune(request(recipe), False) == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    done = 1 if moment == "in a trial" else 2
    assert f"after {done} trial{'s' if done > 1 else ''}; " in capsys.readouterr().err
    assert command.tune(request(recipe, resume=True), True) == 0
    again = result(capsys)
    for trial in (*whole["trials"], *again["trials"]):
        del trial["seconds"]
    assert again["trials"] == whole["trials"]


@pytest.mark.parametrize("resume", [False, True])
def test_a_study_without_a_trial_needs_no_leave(
    resume: bool, recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended before its first trial had: it begins anew, also by a recipe that was changed since."""

    @contextmanager
    def stopping(announcement: str) -> Iterator[Callable[[tuning.Progress], None]]:
        def show(now: tuning.Progress) -> None:
            raise KeyboardInterrupt

        yield show

    with monkeypatch.context() as patched:
        patched.setattr(command, "progress", stopping)
        assert command.tune(request(recipe), False) == 130
    assert "nothing was saved" in capsys.readouterr().err
    recipe.write_text(TEXT.replace("epochs = 3", "epochs = 2"))
    assert command.tune(request(recipe, resume=resume, trials=1), True) == 0
    said = capsys.readouterr()
    assert ("it begins anew" in said.err) == resume


def test_a_search_in_which_nothing_ends_well(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = TEXT.replace("breast_cancer", "diabetes").replace("softmax", "linear")
    recipe.write_text(text.replace("low = 1e-3, high = 1.0", "low = 1e30, high = 1e31"))
    assert command.tune(request(recipe, trials=2), False) == 1
    printed = capsys.readouterr()
    assert "2 trials, 2 failed" in printed.out
    said = printed.err.splitlines()
    assert said[-1].startswith("error: no trial came to an end; trial 0: numpy, step ")
    assert "no picture: no trial has a value" in said
    assert not (Path("runs/search-tune-numpy") / tuning.BEST).exists()


def test_help_keeps_its_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tune", "--help"]) == 0
    assert "[tune]" in capsys.readouterr().out
