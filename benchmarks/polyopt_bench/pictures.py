"""The report's pictures, as small SVG files (the extra ``plot``)."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from polyopt.core.files import write_atomic
from polyopt.training.plots import COLOURS, STYLE
from polyopt_bench.cases import BACKENDS, FLOOR_BOUND, TASKS
from polyopt_bench.results import Results, Row, doubt
from polyopt_bench.workload import NETS

COLOUR = dict(zip(BACKENDS, COLOURS, strict=False))
LABEL = {"numpy": "NumPy", "torch": "PyTorch", "jax": "JAX", "tensorflow": "TensorFlow"}
Picture = Callable[[Path, Sequence[Row]], bool]


def draw(results: Results, folder: Path) -> dict[str, Path]:
    """Draw into ``folder`` what there are rows for: ``{name: file}``.

    Raises
    ------
    ModuleNotFoundError
        Where matplotlib is not installed.
    """
    drawn = {}
    for name, picture in PICTURES.items():
        path = folder / f"{name}.svg"
        if picture(path, results["rows"]):
            drawn[name] = path
    return drawn


def standard(rows: Sequence[Row], kind: str) -> list[Row]:
    """Return of each case the first row: polyopt's standard way beside its first peer."""
    found: dict[tuple[str, ...], Row] = {}
    for row in rows:
        if row["kind"] == kind:
            found.setdefault((row["case"], row["optimizer"], row["backend"]), row)
    return list(found.values())


def update(path: Path, rows: Sequence[Row]) -> bool:
    """Adam's update on every parameter set, as a multiple of its first peer's time."""
    mine = [r for r in standard(rows, "update") if r["optimizer"] == "adam" and r["case"] in TASKS]
    return _ratios(path, mine, TASKS, "Adam's update: time as a multiple of the framework's own")


def train(path: Path, rows: Sequence[Row]) -> bool:
    """Whole training steps as multiples of the hand-written native loop."""
    tasks = (*NETS, *TASKS)
    mine = [r for r in standard(rows, "train") if r["case"] in tasks]
    return _ratios(path, mine, tasks, "A whole training step: time as a multiple of the native loop")


def _ratios(path: Path, rows: Sequence[Row], tasks: Sequence[str], title: str) -> bool:
    rows = [r for r in rows if r["ratio"] is not None]
    shown = [task for task in tasks if any(r["case"] == task for r in rows)]
    if not rows:
        return False
    with _figure(path, (7.2, 0.5 + 0.85 * len(shown)), title) as axis:
        backends = [b for b in BACKENDS if any(r["backend"] == b for r in rows)]
        height = 0.8 / len(backends)
        for k, backend in enumerate(backends):
            mine = {r["case"]: r for r in rows if r["backend"] == backend}
            at = [i + (k - (len(backends) - 1) / 2) * height for i, t in enumerate(shown) if t in mine]
            bars = [mine[t] for t in shown if t in mine]
            values = [r["ratio"] for r in bars]
            low, high = zip(*(r["quartiles"]["ratio"] for r in bars), strict=True)
            reach = [
                [max(0.0, v - q) for v, q in zip(values, low, strict=True)],
                [max(0.0, q - v) for v, q in zip(values, high, strict=True)],
            ]
            axis.barh(at, values, height * 0.9, xerr=reach, color=COLOUR[backend], label=LABEL[backend])
            for y, row in zip(at, bars, strict=True):
                if row["bound"] is not None:
                    mark = [row["bound"]] * 2
                    axis.plot(mark, [y - height / 2, y + height / 2], color="black", linewidth=1.2)
        axis.axvline(1.0, color="#555555", linewidth=0.8, linestyle="--")
        axis.set_xscale("log")
        axis.set_yticks(range(len(shown)), shown)
        axis.invert_yaxis()
        axis.grid(axis="y", visible=False)
        axis.set_xlabel("shorter is faster; quartiles as whiskers; black: what must be reached")
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08 - 0.35 / len(shown)), ncols=4)
    return True


def floor(path: Path, rows: Sequence[Row]) -> bool:
    """Every optimizer on ResNet-50's shapes as a multiple of the floor of its own bytes."""
    mine = [r for r in standard(rows, "update") if r["case"] == "resnet50" and r["floor_ratio"]]
    names = list(dict.fromkeys(r["optimizer"] for r in mine))
    if not mine:
        return False
    title = "ResNet-50's shapes: time as a multiple of the bandwidth floor"
    with _figure(path, (7.2, 0.8 + 0.3 * len(names)), title) as axis:
        for backend in BACKENDS:
            own = [r for r in mine if r["backend"] == backend]
            for hollow in (False, True):
                found = [r for r in own if bool(doubt(r, "floor_ratio")) == hollow]
                at = [names.index(r["optimizer"]) for r in found]
                values = [r["floor_ratio"] for r in found]
                look: dict[str, Any] = {"color": COLOUR[backend], "alpha": 0.85}
                look |= {"markerfacecolor": "none"} if hollow else {"label": LABEL[backend]}
                axis.plot(values, at, "o", **look)
        axis.axvline(FLOOR_BOUND, color="black", linewidth=1.2)
        axis.axvline(1.0, color="#555555", linewidth=0.8, linestyle="--")
        axis.set_yticks(range(len(names)), names)
        axis.invert_yaxis()
        axis.set_xlabel("black: what must be reached; hollow: the spread is too wide to trust")
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return True


def by_parameters(path: Path, rows: Sequence[Row]) -> bool:
    """Adam in one leaf of 10^3 to 10^8 parameters."""
    mine = [r for r in standard(rows, "scale") if r["leaves"] == 1]
    return _scaling(path, mine, "parameters", "Adam's update of one leaf")


def by_leaves(path: Path, rows: Sequence[Row]) -> bool:
    """Adam over a million parameters in 1 to 10^4 leaves."""
    mine = [r for r in standard(rows, "scale") if r["parameters"] == 10**6]
    return _scaling(path, mine, "leaves", "Adam's update of a million parameters")


def _scaling(path: Path, rows: Sequence[Row], along: str, title: str) -> bool:
    if not rows:
        return False
    with _figure(path, (7.2, 4.2), title) as axis:
        for backend in BACKENDS:
            mine = sorted((r for r in rows if r["backend"] == backend), key=lambda r: int(r[along]))
            if not mine:
                continue
            colour, at = COLOUR[backend], [r[along] for r in mine]
            axis.plot(
                at, [r["seconds"] for r in mine], "o-", color=colour, label=LABEL[backend], markersize=4
            )
            theirs = [(r[along], r["peer_seconds"]) for r in mine if r["peer_seconds"] is not None]
            if theirs:
                axis.plot(*zip(*theirs, strict=True), ":", color=colour, label=mine[0]["peer"])
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel(along)
        axis.set_ylabel("seconds a step")
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return True


PICTURES: Mapping[str, Picture] = {
    "update": update,
    "floor": floor,
    "train": train,
    "parameters": by_parameters,
    "leaves": by_leaves,
}


@contextmanager
def _figure(path: Path, size: tuple[float, float], title: str) -> Iterator[Any]:
    """Axes; the file is written whole, and is the same bytes for the same rows."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # Text stays text, and names come from a fixed salt, not from a clock.
    with matplotlib.rc_context({**STYLE, "svg.fonttype": "none", "svg.hashsalt": "polyopt"}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        axis = figure.subplots()
        axis.set_title(title)
        yield axis
        svg = io.BytesIO()
        # A white ground: the page may be dark.
        figure.savefig(svg, format="svg", metadata={"Date": None}, facecolor="white")
    write_atomic(path, [svg.getvalue()])
