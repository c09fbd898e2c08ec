"""``polyopt compare``: one recipe on several backends, from the same bits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyopt.cli import folder, output
from polyopt.cli.start import Request
from polyopt.cli.train import progress
from polyopt.core.errors import BackendError, InputError, nearest

if TYPE_CHECKING:
    from polyopt.recipe import Recipe
    from polyopt.training import Comparison, Pair

PICTURE = "compare.png"
RESOLUTION = {"float32": 2.0**-23, "float64": 2.0**-52}
"""The spacing of the numbers around 1."""


@dataclass(frozen=True)
class CompareRequest(Request):
    """Hold the options of the command as they were given."""

    backends: Sequence[str] | None
    steps: int
    tolerance: float | None


def compare(request: CompareRequest, as_json: bool) -> int:
    """Run, draw and show; 1 where a deviation is above the tolerance."""
    from polyopt import training
    from polyopt.backend import registry

    if request.tolerance is not None and not request.tolerance >= 0:
        raise InputError(f"--tolerance {request.tolerance}: expected a number >= 0")
    recipe = request.load()
    if recipe.phase:
        output.say("the phases are left out: polyopt train goes through them")
    if request.backends is not None and not request.backends:
        raise InputError(f"--backends: name at least one; known: {', '.join(registry.names())}")
    for name in request.backends or ():
        if name not in registry.names():
            raise BackendError(f"--backends: unknown backend {name!r}; {nearest(name, registry.names())}")
    out = request.folder(f"{recipe.name}-compare")
    folder.check(out, (PICTURE,), overwrite=True)
    try:
        with progress() as show:
            found = training.compare(recipe, request.backends, dtype=None, steps=request.steps, on_event=show)
    except KeyboardInterrupt:
        output.complain("interrupted; nothing was written")
        return 130
    remark = folder.draw(_picture, out / PICTURE, recipe, found)
    if remark:
        output.say(remark)
    picture = None if remark else out / PICTURE
    if as_json:
        output.emit(_summary(recipe, found) | {"picture": picture})
    else:
        _show(recipe, found, picture)
    return _verdict(found, request.tolerance)


def _summary(recipe: Recipe, found: Comparison) -> dict[str, Any]:
    return {
        "recipe": recipe.name,
        "backends": found.backends,
        "dtype": found.dtype,
        "steps": found.steps,
        "max_relative_loss_deviation": found.max_relative_loss_deviation,
        "max_relative_parameter_deviation": found.max_relative_parameter_deviation,
        "pairs": [
            {
                "backends": (pair.first, pair.second),
                "loss_deviation": pair.loss_deviation,
                "parameter_deviation": pair.parameter_deviation,
            }
            for pair in found.pairs
        ],
        "results": {
            name: {
                "train_loss": result.history.loss[-1] if result.history.loss else None,
                "test_loss": result.test_loss,
                "test_accuracy": result.test_accuracy,
                "seconds": result.seconds,
            }
            for name, result in found.results.items()
        },
    }


def _show(recipe: Recipe, found: Comparison, picture: Path | None) -> None:
    reference = found.backends[0]
    apart = _from_reference(found)
    rows = []
    for name, result in found.results.items():
        pair = apart.get(name)
        accuracy = result.test_accuracy
        rows.append(
            (
                name,
                output.number(result.history.loss[-1] if result.history.loss else None, 6),
                "–" if accuracy is None else f"{accuracy:.2%}",
                output.number(result.seconds, 2),
                "–" if pair is None else _deviation(pair.loss_deviation),
                "–" if pair is None else _deviation(pair.parameter_deviation),
            )
        )
    columns = ("backend", "train loss", "test accuracy", "seconds", "loss deviation", "parameter deviation")
    title = f"{recipe.name}, {found.dtype}, {found.steps} steps; relative deviations from {reference}"
    output.screen().print(output.table(title, columns, rows, numbers=5))
    print(f"largest of any pair: loss {_deviation(found.max_relative_loss_deviation)}, ", end="")
    print(f"parameters {_deviation(found.max_relative_parameter_deviation)}")
    if picture:
        print(f"picture {picture}")


def _verdict(found: Comparison, tolerance: float | None) -> int:
    if len(found.backends) < 2:
        output.say("one backend alone: nothing to compare it with (see polyopt backends)")
    largest = max(found.max_relative_loss_deviation, found.max_relative_parameter_deviation)
    if tolerance is not None and not largest <= tolerance:
        output.complain(f"the largest relative deviation is {_deviation(largest)}; allowed is {tolerance:g}")
        return 1
    return 0


def _picture(picture: Path, recipe: Recipe, found: Comparison) -> None:
    from polyopt.training.plots import comparison

    pairs = _from_reference(found)
    comparison(
        picture,
        {name: list(enumerate(losses, 1)) for name, losses in found.losses.items()},
        {name: list(enumerate(found.loss_deviation[name], 1)) for name in pairs},
        {name: found.parameter_deviation[name] for name in pairs},
        reference=found.backends[0],
        title=f"{recipe.name}, {found.dtype}, {found.steps} steps",
        resolution=RESOLUTION[found.dtype],
    )


def _from_reference(found: Comparison) -> dict[str, Pair]:
    """Return how far each backend is from the first one."""
    return {pair.second: pair for pair in found.pairs if pair.first == found.backends[0]}


def _deviation(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}" if math.isfinite(value) else "infinite"
