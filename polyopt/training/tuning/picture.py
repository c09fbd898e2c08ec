"""A picture of a study: what each trial came to, and how that goes with each hyperparameter."""

from __future__ import annotations

import io
import math
from itertools import accumulate
from pathlib import Path
from typing import Any

from polyopt.core.files import write_atomic
from polyopt.recipe.tuning import Axis, Choices, Range
from polyopt.training.plots import COLOURS, STYLE
from polyopt.training.tuning.study import Study, Trial

COLUMNS, MOST = 3, 9
"""Panels beside each other, and hyperparameters that are drawn at most."""


def picture(path: Path, study: Study) -> None:
    """Write a PNG of ``study``, which has a trial with a value.

    Above, each trial by its number, with the best so far as a line; below, a panel for each of up to nine
    hyperparameters. Trials that were given up are hollow, at the value where they were.

    Raises
    ------
    ModuleNotFoundError
        Where matplotlib is not installed.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    space = study.section.space[:MOST]
    rows = -(-len(space) // COLUMNS)
    columns = min(COLUMNS, len(space))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.0, 3.2 + 2.6 * rows), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(1 + rows, columns, height_ratios=[1.2] + [1.0] * rows)
        _history(figure.add_subplot(grid[0, :]), study)
        for i, (key, axis) in enumerate(space):
            panel = figure.add_subplot(grid[1 + i // columns, i % columns])
            _against(panel, study, key, axis)
            if i % columns == 0:
                panel.set_ylabel(f"validation {study.metric}")
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=130)
    write_atomic(path, [png.getvalue()])


def _history(panel: Any, study: Study) -> None:
    from matplotlib.ticker import MaxNLocator

    panel.set_title(f"{study.recipe.name} on {study.backend}: {len(study.trials)} trials")
    for state, label in (("complete", "complete"), ("pruned", "given up")):
        found = _of(study, state)
        if found:
            panel.plot([t.number for t in found], [t.value for t in found], label=label, **_mark(state))
    done = _of(study, "complete")
    if done:
        better = max if study.metric == "accuracy" else min
        best = list(accumulate((t.value or 0.0 for t in done), better))
        panel.step([t.number for t in done], best, where="post", color=COLOURS[1], label="best so far")
    # Trials are whole numbers: no tick lies between two.
    panel.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    panel.set_xlabel("trial")
    panel.set_ylabel(f"validation {study.metric}")
    panel.legend(loc="best")


def _against(panel: Any, study: Study, key: str, axis: Axis) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    for state in ("pruned", "complete"):
        found = _of(study, state)
        panel.plot([_place(axis, t.values[key]) for t in found], [t.value for t in found], **_mark(state))
    if study.best is not None:
        x = _place(axis, study.best.values[key])
        panel.plot([x], [study.best.value], "o", color=COLOURS[1], markersize=7)
    if isinstance(axis, Choices):
        panel.set_xticks(range(len(axis.values)), [str(_plain(v)) for v in axis.values])
        panel.set_xlim(-0.5, len(axis.values) - 0.5)
    else:
        panel.set_xscale("log" if axis.log else "linear")
        panel.xaxis.set_major_locator(FixedLocator(_ticks(*panel.get_xlim(), axis)))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    panel.set_xlabel(key)


def _ticks(low: float, high: float, axis: Range) -> list[float]:
    """Round numbers between the ends of a panel, so few that their labels don't lie on each other.

    >>> _ticks(8e-6, 0.4, Range(1e-5, 0.3, log=True)), _ticks(0.9, 4.1, Range(1, 4))
    ([1e-05, 0.001, 0.1], [2.0, 4.0])
    """
    from matplotlib.ticker import MaxNLocator

    if axis.log:
        powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
        if len(powers) > 1:
            return [float(f"1e{k}") for k in powers[:: -(-len(powers) // 3)]]
    places = MaxNLocator(3, integer=axis.whole, min_n_ticks=1).tick_values(low, high)
    return [float(x) for x in places if low <= x <= high]


def _of(study: Study, state: str) -> list[Trial]:
    return [t for t in study.trials if t.state == state and t.value is not None]


def _mark(state: str) -> dict[str, Any]:
    whole = state == "complete"
    fill = COLOURS[0] if whole else "none"
    return {"linestyle": "", "marker": "o", "markersize": 5, "color": COLOURS[0], "markerfacecolor": fill}


def _place(axis: Axis, value: Any) -> Any:
    """Return where a value lies: choices side by side, in their order."""
    if not isinstance(axis, Choices):
        return value
    return next(i for i, x in enumerate(axis.values) if type(x) is type(value) and x == value)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
