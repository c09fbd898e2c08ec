"""Pictures of runs, drawn by matplotlib without a display (the extra ``plot``)."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate, cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyopt.core.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterator

Series = Sequence[tuple[int, float]]
"""``[(step, value)]`` with rising steps."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe & Ito (2008), *Color Universal Design*: told apart with any common colour vision."""
STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "legend.frameon": False,
    "font.size": 10,
    "lines.linewidth": 1.8,
}


def training_curve(
    path: Path,
    loss: Series,
    *,
    title: str,
    metric: Series = (),
    metric_name: str = "test accuracy",
) -> None:
    """Write a PNG of one run: the loss of every step, raw and smoothed, and what was measured on test data.

    Parameters
    ----------
    path
        The file to write; it is replaced as a whole.
    loss
        ``[(step, training loss)]``; values that are not finite are left out.
    title
        What was run, on what.
    metric, metric_name
        ``[(step, value)]`` of the test accuracy or loss, and its name; without it there is one panel.

    Raises
    ------
    ModuleNotFoundError
        Where matplotlib is not installed.
    """
    with _figure(path, 2 if metric else 1, title) as axes:
        steps, values = _finite(loss)
        smooth = smoothed(values)
        top = axes[0]
        if smooth == values:
            top.plot(steps, values, color=COLOURS[0], label="training loss")
        else:
            top.plot(steps, values, color=COLOURS[0], alpha=0.3, linewidth=0.8, label="each step")
            top.plot(steps, smooth, color=COLOURS[0], label="smoothed")
            top.legend(loc="upper right")
        top.set_ylabel("training loss")
        _logarithmic_if_wide(top, values)
        if metric:
            steps, values = _finite(metric)
            marker = "o" if len(steps) <= 60 else ""
            axes[1].plot(steps, values, color=COLOURS[1], marker=marker, markersize=3.5)
            axes[1].set_ylabel(metric_name)
            if steps:
                _label_last(axes[1], steps[-1], values[-1])
        axes[-1].set_xlabel("step")


def comparison(
    path: Path,
    losses: Mapping[str, Series],
    deviations: Mapping[str, Series],
    parameters: Mapping[str, Series],
    *,
    reference: str,
    title: str,
    resolution: float,
) -> None:
    """Write a PNG of one recipe on several backends.

    Parameters
    ----------
    path
        The file to write; it is replaced as a whole.
    losses
        For each backend ``[(step, training loss)]``.
    deviations
        For each backend but the reference, the relative deviation of its loss from the reference's at each
        step. Drawn is the largest so far; zero lies on the axis' floor.
    parameters
        For each of them the largest relative deviation of its parameters, likewise.
    reference
        The backend that the others are held against.
    title
        What was run.
    resolution
        The relative spacing of numbers in the run's dtype (2.2e-16 for float64): drawn as a line.
    """
    with _figure(path, 2, title) as axes:
        colours = dict(zip(losses, cycle(COLOURS), strict=False))
        for i, (name, series) in enumerate(losses.items()):
            # Curves that agree lie on top of each other: narrower ones let those beneath show.
            width = 1.2 + 1.8 * (len(losses) - 1 - i)
            axes[0].plot(*_finite(series), color=colours[name], linewidth=width, label=name)
        axes[0].set_ylabel("training loss")
        axes[0].legend(loc="upper right")
        _logarithmic_if_wide(axes[0], [v for s in losses.values() for v in _finite(s)[1]])
        floor = resolution / 10
        for drawn, style in ((deviations, "-"), (parameters, "--")):
            for name, series in drawn.items():
                steps, values = _finite(series)
                largest = list(accumulate((max(v, floor) for v in values), max))
                axes[1].plot(steps, largest, style, color=colours[name])
        _key(axes[1], resolution)
        axes[1].set_yscale("log")
        axes[1].set_ylim(bottom=floor / 1.5)
        axes[1].set_ylabel(f"relative deviation from {reference}")
        axes[1].set_xlabel("step")


def smoothed(values: Sequence[float]) -> list[float]:
    """Return the mean over a window of about a thirtieth of the run around each step, narrower at the ends.

    Centred, so that it does not lag behind. A short run is left as it is.

    Examples
    --------
    >>> smoothed([3.0, 2.0, 1.0])
    [3.0, 2.0, 1.0]
    >>> smoothed([float(i) for i in range(100)])[50]
    50.0
    """
    half = len(values) // 60
    if half == 0:
        return list(values)
    sums = [0.0, *accumulate(values)]
    reach = [min(half, i) for i in range(len(values))]
    ends = [min(i + r, len(values) - 1) for i, r in enumerate(reach)]
    starts = [i - r for i, r in enumerate(reach)]
    return [(sums[e + 1] - sums[s]) / (e + 1 - s) for s, e in zip(starts, ends, strict=True)]


@contextmanager
def _figure(path: Path, panels: int, title: str) -> Iterator[list[Any]]:
    """Axes above each other with one step axis; the file is written whole, when the body is done."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context(STYLE):
        # Not pyplot: it would choose a display and keep the figure alive.
        figure = Figure(figsize=(8.0, 3.0 * panels + 0.6), layout="constrained")
        FigureCanvasAgg(figure)
        axes = list(figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0])
        axes[0].set_title(title)
        yield axes
        if axes[-1].get_xscale() == "linear":
            # Steps are whole: a short run's axis has no half ones.
            axes[-1].xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=130)
    write_atomic(path, [png.getvalue()])


def _finite(series: Series) -> tuple[list[int], list[float]]:
    pairs = [(s, float(v)) for s, v in series if math.isfinite(v)]
    return [s for s, _ in pairs], [v for _, v in pairs]


def _logarithmic_if_wide(axis: Any, values: Sequence[float]) -> None:
    """Make the axis logarithmic where a loss falls by orders of magnitude."""
    if values and min(values) > 0 and max(values) > 20 * min(values):
        axis.set_yscale("log")


def _key(axis: Any, resolution: float) -> None:
    """Draw what lines and marks mean (the colours are those above), and how much one rounding is."""
    grey = "#555555"
    axis.plot([], [], color=grey, label="loss, the largest so far")
    axis.plot([], [], "--", color=grey, label="parameters, likewise")
    axis.legend(loc="lower right")
    axis.axhline(resolution, color=grey, linewidth=0.8)
    axis.annotate(
        "one rounding",
        (1, resolution),
        xycoords=("axes fraction", "data"),
        xytext=(-3, 3),
        textcoords="offset points",
        ha="right",
        fontsize="small",
        color=grey,
    )


def _label_last(axis: Any, step: int, value: float) -> None:
    axis.annotate(
        f"{value:.4g}",
        (step, value),
        xytext=(0, -14),
        textcoords="offset points",
        ha="right",
        fontsize="small",
        color=COLOURS[1],
    )
