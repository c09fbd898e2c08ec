"""``polyopt train``: a recipe on one backend."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from polyopt.cli import folder, output
from polyopt.cli.start import RunRequest, bar

if TYPE_CHECKING:
    from polyopt.recipe import Recipe
    from polyopt.training import Event, Result

PICTURE = "curve.png"


def train(request: RunRequest, as_json: bool) -> int:
    """Train, draw the curve and show what came out, phase by phase; 1 where the loss ends in NaN or inf."""
    from polyopt import training
    from polyopt.training.loop import Terminated, terminable

    files = (training.CHECKPOINT, training.HISTORY, training.RECIPE, training.MODEL, PICTURE)
    recipe, backend, out, goes_on = request.start(files, training.run_folder.stillborn)
    made = 0
    try:
        with terminable(), progress(f"{recipe.name} on {backend}, into {out}") as show:

            def on_event(event: Event) -> None:
                nonlocal made
                made += event.kind == "step"
                show(event)

            result = training.train(
                recipe,
                backend=backend,
                device=request.device,
                out=out,
                resume=goes_on,
                on_event=on_event,
            )
    except KeyboardInterrupt as e:
        output.complain(_interrupted(out / training.CHECKPOINT))
        return 143 if isinstance(e, Terminated) else 130
    remark = folder.draw(_curve, out / PICTURE, recipe, result)
    if remark:
        output.say(remark)
    found = summary(recipe, result, result.steps - made) | {"picture": None if remark else out / PICTURE}
    if as_json:
        output.emit(found)
    else:
        _show(found)
    if not math.isfinite(result.test_loss):
        output.complain(f"the test loss ended as {result.test_loss}; try a smaller learning rate or clipping")
        return 1
    return 0


def summary(recipe: Recipe, result: Result, begun: int) -> dict[str, Any]:
    """Gather a run's figures, under the names that ``--json`` has.

    ``begun`` is the step that it was resumed at.
    """
    steps = result.steps - begun
    found = {
        "recipe": recipe.name,
        "backend": result.backend,
        "device": result.device,
        "dtype": recipe.dtype,
        "steps": result.steps,
        "train_loss": result.history.loss[-1] if result.history.loss else None,
        "test_loss": result.test_loss,
        "test_accuracy": result.test_accuracy,
        "seconds": result.seconds,
        "ms_per_step": 1000 * result.step_seconds if steps else None,
        "checkpoint": result.checkpoint,
    }
    if recipe.phase:
        found |= {"phases": [asdict(phase) for phase in result.phases], "model": result.model}
    return {key: value for key, value in found.items() if key != "test_accuracy" or value is not None}


@contextmanager
def progress(announcement: str = "") -> Iterator[Callable[[Event], None]]:
    """Draw a bar with the loss and the last test, on a terminal; elsewhere print the announcement alone."""
    with bar() as drawn:
        task = drawn.add_task("", total=None, figures="starting …")

        def show(event: Event) -> None:
            # Only now: what was refused before the first step has written nothing, and says one line.
            if event.kind == "started" and (event.phase or announcement):
                drawn.console.print(Text(f"phase {event.phase}" if event.phase else announcement))
            by_step = event.steps is not None
            drawn.update(
                task,
                description=f"{event.backend}: {event.phase}" if event.phase else event.backend,
                total=event.steps if by_step else event.total_samples,
                completed=event.step if by_step else event.samples,
                figures=_figures(event),
            )

        yield show


def _figures(event: Event) -> str:
    parts = [output.epoch(event.epoch, event.epochs, event.unit)]
    if event.loss is not None:
        parts.append(f"loss {output.number(event.loss)}")
    if event.evaluation and event.evaluation.test_accuracy is not None:
        parts.append(f"test accuracy {event.evaluation.test_accuracy:.2%}")
    elif event.evaluation:
        parts.append(f"test loss {output.number(event.evaluation.test_loss)}")
    return " · ".join(parts)


def _curve(picture: Path, recipe: Recipe, result: Result) -> None:
    from polyopt.training.plots import training_curve

    tests = result.history.evaluations
    accuracy = [(e.step, e.test_accuracy) for e in tests if e.test_accuracy is not None]
    training_curve(
        picture,
        list(enumerate(result.history.loss, 1)),
        title=f"{recipe.name} on {result.backend} ({result.device}, {recipe.dtype})",
        metric=accuracy or [(e.step, e.test_loss) for e in tests],
        metric_name="test accuracy" if accuracy else "test loss",
    )


def _show(found: Mapping[str, Any]) -> None:
    rows = [
        ("backend", f"{found['backend']} ({found['device']}, {found['dtype']})"),
        ("steps", str(found["steps"])),
        ("train loss", output.number(found["train_loss"])),
        ("test loss", output.number(found["test_loss"])),
    ]
    if "test_accuracy" in found:
        rows.append(("test accuracy", f"{found['test_accuracy']:.2%}"))
    rows += [
        ("ms/step", output.number(found["ms_per_step"], 3)),
        ("seconds in all", output.number(found["seconds"], 2)),
    ]
    screen = output.screen()
    screen.print(output.table(found["recipe"], ("", "result"), rows, numbers=1))
    if found.get("phases"):
        screen.print(_phases(found["phases"]))
    for what in ("checkpoint", "model", "picture"):
        if found.get(what):
            print(f"{what:10s} {found[what]}")


def _phases(results: Sequence[Mapping[str, Any]]) -> Table:
    """Make a row for each phase, the run before them first."""
    rows = [
        (
            phase["name"],
            phase["kind"],
            str(phase["steps"]),
            output.number(phase["test_loss"]),
            "–" if phase["test_accuracy"] is None else f"{phase['test_accuracy']:.2%}",
            f"{phase['sparsity']:.1%}",
            str(phase["bytes"]),
            output.number(phase["seconds"], 2),
        )
        for phase in results
    ]
    columns = ("phase", "", "steps", "test loss", "test accuracy", "sparsity", "bytes", "seconds")
    return output.table("", columns, rows, numbers=6)


def _interrupted(checkpoint: Path) -> str:
    if not checkpoint.exists():
        return "interrupted before the first step; nothing was saved"
    return f"interrupted; {checkpoint} is saved: the same command with --resume goes on from there"
