"""One picture: what each phase left, in size and accuracy, on every backend."""

from __future__ import annotations

import io
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

from polyopt.core.files import write_atomic
from polyopt.training.plots import COLOURS, STYLE

MARKERS = ("o", "s", "^", "D")


def picture(path: Path, found: Mapping[str, Any]) -> None:
    """Write an SVG; raises ModuleNotFoundError where matplotlib is not installed."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # Text as text, and the same bytes for the same figures.
    with matplotlib.rc_context({**STYLE, "svg.fonttype": "none", "svg.hashsalt": "polyopt"}):
        figure = Figure(figsize=(9.0, 3.8), layout="constrained")
        FigureCanvasSVG(figure)
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        _phases(left, found.get("chains", {}).get("digits_compress", {}))
        _students(right, found.get("students", {}))
        drawn = io.BytesIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    write_atomic(path, [drawn.getvalue()])


def _phases(axis: Any, chain: Mapping[str, Any]) -> None:
    """Accuracy phase by phase, a mark for each backend (means over the seeds), and each one's size."""
    axis.set_title("One recipe, phase by phase")
    for (backend, runs), colour, marker in zip(chain.items(), cycle(COLOURS), cycle(MARKERS), strict=False):
        places = range(len(runs[0]))
        means = [100 * sum(run[i]["test_accuracy"] for run in runs) / len(runs) for i in places]
        axis.plot(places, means, marker, color=colour, markersize=6, alpha=0.75, label=backend)
        axis.set_xticks(
            places, [f"{p['name']}\n{p['bytes'] / 1000:.1f} kB" for p in runs[0]], fontsize="small"
        )
    axis.margins(0.08, 0.15)
    axis.set_ylabel("test accuracy, %")
    if chain:
        axis.legend(loc="best", fontsize="small")


def _students(axis: Any, students: Mapping[str, Any]) -> None:
    """Draw each seed's student, with its teacher over without it."""
    axis.set_title("A student: taught or alone")
    for (backend, rows), colour, marker in zip(
        students.items(), cycle(COLOURS), cycle(MARKERS), strict=False
    ):
        points = [[100 * row[key] for row in rows] for key in ("alone", "taught")]
        axis.plot(*points, marker, color=colour, markersize=5, alpha=0.75, label=backend)
    both = [100 * row[key] for rows in students.values() for row in rows for key in ("alone", "taught")]
    if both:
        ends = [min(both) - 0.5, max(both) + 0.5]
        axis.plot(ends, ends, color="#999999", linewidth=0.8)
    axis.set_xlabel("alone, %")
    axis.set_ylabel("taught, %")
