"""``polyopt tune``: looking for the hyperparameters that a recipe's ``[tune]`` names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from polyopt.cli import folder, output
from polyopt.cli.start import RunRequest, bar
from polyopt.core.errors import InputError

if TYPE_CHECKING:
    from polyopt.training import tuning

PICTURE = "tune.png"
SHOWN = 10
"""Trials in the table: the best."""


@dataclass(frozen=True)
class TuneRequest(RunRequest):
    """Hold the options of the command as they were given."""

    trials: int | None


def tune(request: TuneRequest, as_json: bool) -> int:
    """Search, draw and show; 1 where no trial came to an end."""
    from polyopt.training import tuning
    from polyopt.training.loop import Terminated, terminable
    from polyopt.training.tuning.sampling import optuna

    optuna()
    if request.trials is not None and request.trials < 1:
        raise InputError(f"--trials {request.trials}: expected an integer >= 1")
    files = (tuning.STUDY, tuning.BEST, PICTURE)
    recipe, backend, out, goes_on = request.start(files, tuning.storage.stillborn, "-tune")
    ended = 0
    try:
        with terminable(), progress(f"{recipe.name} on {backend}, into {out}") as show:

            def on_progress(now: tuning.Progress) -> None:
                nonlocal ended
                ended = len(now.study.trials)
                show(now)

            study = tuning.tune(
                recipe,
                backend=backend,
                device=request.device,
                out=out,
                trials=request.trials,
                resume=goes_on,
                on_progress=on_progress,
            )
    except KeyboardInterrupt as e:
        output.complain(_interrupted(out / tuning.STUDY, ended))
        return 143 if isinstance(e, Terminated) else 130
    remark = _draw(out / PICTURE, study)
    if remark:
        output.say(remark)
    drawn = None if remark else out / PICTURE
    if as_json:
        output.emit(summary(study, out) | {"picture": drawn})
    else:
        _show(study, out, drawn)
    if study.best is None:
        output.complain(_lost(study))
        return 1
    return 0


def summary(study: tuning.Study, out: Path) -> dict[str, Any]:
    """Gather a study's figures, under the names that ``--json`` has."""
    from polyopt.training.tuning import BEST, STUDY

    best = study.best
    return {
        "recipe": study.recipe.name,
        "backend": study.backend,
        "metric": study.metric,
        "best": None if best is None else {"trial": best.number, "value": best.value, "values": best.values},
        "trials": [
            {
                "trial": t.number,
                "state": t.state,
                "value": t.value,
                "values": t.values,
                "seconds": t.seconds,
                "reason": t.reason,
            }
            for t in study.trials
        ],
        "seconds": sum(t.seconds for t in study.trials),
        "study": out / STUDY,
        "best_recipe": None if best is None else out / BEST,
    }


@contextmanager
def progress(announcement: str) -> Iterator[Callable[[tuning.Progress], None]]:
    """Draw a bar over the trials with the best value, on a terminal; elsewhere print the announcement."""
    with bar() as drawn:
        task = drawn.add_task("trials", total=None, figures="starting …")
        announced = False

        def show(now: tuning.Progress) -> None:
            nonlocal announced
            if not announced:
                drawn.console.print(Text(announcement))
                announced = True
            drawn.update(task, total=now.trials, completed=len(now.study.trials), figures=_figures(now))

        yield show


def _figures(now: tuning.Progress) -> str:
    parts = [f"trial {now.number}: {output.epoch(now.epoch, now.epochs)}"]
    best = now.study.best
    if best is not None:
        parts.append(f"best {now.study.metric} {_value(now.study.metric, best.value)} (trial {best.number})")
    return " · ".join(parts)


def _draw(path: Path, study: tuning.Study) -> str | None:
    from polyopt.training.tuning.picture import picture

    if not any(t.value is not None for t in study.trials):
        return "no picture: no trial has a value"
    return folder.draw(picture, path, study)


def _show(study: tuning.Study, out: Path, drawn: Path | None) -> None:
    from polyopt.training.tuning import BEST, STUDY

    keys = [key for key, _ in study.section.space]
    rows = [
        (
            str(t.number),
            t.state,
            str(t.reports[-1][0] if t.reports else 0),
            *(_short(t.values[key]) for key in keys),
            output.number(t.seconds, 2),
            _value(study.metric, t.value),
        )
        for t in study.ranked()[:SHOWN]
    ]
    columns = ("trial", "", "epochs", *keys, "seconds", f"validation {study.metric}")
    counts = {state: sum(t.state == state for t in study.trials) for state in ("pruned", "failed")}
    title = f"{study.recipe.name} on {study.backend}, {len(study.trials)} trials"
    title += "".join(f", {count} {state}" for state, count in counts.items() if count)
    output.screen().print(output.table(title, columns, rows, numbers=len(keys) + 3))
    failed = next((t for t in study.trials if t.state == "failed"), None)
    if failed is not None and study.best is not None:
        output.say(f"trial {failed.number} failed: {failed.reason}")
    if study.best is not None:
        print(f"best       {out / BEST}: polyopt train {out / BEST}")
    print(f"study      {out / STUDY}")
    if drawn:
        print(f"picture    {drawn}")


def _value(metric: str, value: float | None) -> str:
    return f"{value:.2%}" if metric == "accuracy" and value is not None else output.number(value)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(list(value) if isinstance(value, tuple) else value)


def _lost(study: tuning.Study) -> str:
    """Why there is no best trial."""
    failed = next((t for t in study.trials if t.state == "failed"), None)
    said = "" if failed is None else f"; trial {failed.number}: {failed.reason}"
    return f"no trial came to an end{said}"


def _interrupted(study: Path, ended: int) -> str:
    from polyopt.training.tuning.storage import stillborn

    if not study.exists() or stillborn(study.parent):
        return "interrupted before the first trial was over; nothing was saved"
    after = f" after {ended} trial{'s' if ended > 1 else ''}" if ended else ""
    return f"interrupted{after}; {study} is saved: the same command with --resume goes on from there"
