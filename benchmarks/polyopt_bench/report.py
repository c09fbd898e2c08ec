"""The report: Markdown tables from the rows, with the pictures beside them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from polyopt.core.files import write_atomic
from polyopt.core.install import pip_install
from polyopt_bench import pictures
from polyopt_bench.cases import BACKENDS, FLOOR_BOUND, MAIN, TASKS
from polyopt_bench.pictures import LABEL, standard
from polyopt_bench.results import DOUBT, EXPLANATION, Results, Row, doubt
from polyopt_bench.sets import shapes, size
from polyopt_bench.workload import BATCH, NETS

PAGE, FOLDER, NOTES = "benchmarks.md", "benchmarks", "notes.md"

HEAD = """\
# Benchmarks

<!-- Written by `polyopt bench --results benchmarks/results --out docs`; what stands here is overwritten. -->

polyopt beside each framework's own optimizers, float32, on one machine: {machine}. {versions}.

```console
make bench              # everything, from a bare clone: about ten minutes
polyopt bench --quick   # Adam on two parameter sets, under a minute
```

Both sides of a ratio are measured in one process and one run: they take turns, the first of a round
changes, each has had its warm-up, and a step is over when its arrays are there. Every figure is a median of
at least nine rounds; a *ratio* is the median of the rounds' own ratios, polyopt's time over the other's,
with its quartiles in brackets: below 1 polyopt is faster. All have the same cores. The *floor* is a
threaded loop, in the same rounds, that reads and writes as many bytes as the optimizer's program has to (28
a parameter for Adam) and computes next to nothing; from 2^25 parameters on it is measured on so many and
multiplied. No test passes or fails by any of these.
"""


def write(results: Results, out: Path, notes: str = "") -> tuple[list[Path], str | None]:
    """Write the page and its pictures into ``out``: the files, and a remark where no picture can be drawn."""
    remark = None
    try:
        drawn = pictures.draw(results, out / FOLDER)
    except ModuleNotFoundError as e:
        if (e.name or "").split(".")[0] != "matplotlib":
            raise
        drawn, remark = {}, f"no pictures: matplotlib is missing: {pip_install('plot')}"
    page = out / PAGE
    write_atomic(
        page, [markdown(results, {n: f"{FOLDER}/{p.name}" for n, p in drawn.items()}, notes).encode()]
    )
    return [page, *drawn.values()], remark


def markdown(results: Results, drawn: Mapping[str, str], notes: str = "") -> str:
    """Write the page.

    ``drawn`` names the pictures' files as seen from it, ``notes`` come at its end.
    """
    rows = results["rows"]
    parts = [
        HEAD.format(machine=_machine(results["machine"]), versions=_versions(results["versions"])),
        *_section("What must be reached", _demanded(rows), _picture(drawn, "update", "Adam's update")),
        *_section("Adam and AdamW beside every peer", _peers(rows), ""),
        *_section("Every optimizer", _optimizers(rows), _picture(drawn, "floor", "multiples of the floor")),
        *_section("Whole training steps", _training(rows), _picture(drawn, "train", "training steps")),
        *_section("Time to the first step", _first(rows), ""),
        *_section("Peak memory", _memory(results["memory"]), ""),
        *_section("Growth", _growth(results["growth"]), ""),
        *_section(
            "Scaling",
            _picture(drawn, "parameters", "seconds by parameters"),
            _picture(drawn, "leaves", "seconds by leaves"),
        ),
        *_section("Not reached", _missed(results), notes.strip()),
        *_section("Parameter sets", _sets(), LEFT_OUT),
    ]
    return "\n".join(parts).rstrip() + "\n"


LEFT_OUT = """\
`pytorch_optimizer` has no row: it is a peer for optimizers that polyopt does not have yet. `torch.compile`
over `torch.optim` compiles for the better part of a minute on 161 leaves, so it is measured on request:
`polyopt bench --all --only update/mlp/adam/torch`. `--all` has every optimizer on every set, with Keras on
JAX and on PyTorch too."""


def _section(title: str, *bodies: str) -> Iterator[str]:
    found = [body for body in bodies if body]
    if found:
        yield f"## {title}\n"
        for body in found:
            yield body + "\n"


def _demanded(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        if row["kind"] == "update" and row["bound"] is not None:
            floor = _floor(row)
            if row["floor_bound"] is not None:
                floor = _verdict(row["floor_ratio"], row["floor_bound"], doubt(row, "floor_ratio"))
            verdict = _verdict(row["ratio"], row["bound"], doubt(row))
            cells = [row["case"], row["optimizer"], LABEL[row["backend"]], f"{row['ours']} / {row['peer']}"]
            lines.append([*cells, _ms(row["seconds"]), _ms(row["peer_seconds"]), verdict, floor])
    head = ["set", "optimizer", "backend", "measured", "ms", "peer's ms", "ratio (must reach)", "× floor"]
    return _table(head, lines, numbers=4)


def _peers(rows: Sequence[Row]) -> str:
    lines = []
    for task in TASKS:
        for row in rows:
            main = row["kind"] == "update" and row["optimizer"] in MAIN
            if main and row["case"] == task and row["peer"]:
                way = row["ours"].removeprefix("polyopt, ").replace("polyopt", "in place")
                names = [task, row["optimizer"], LABEL[row["backend"]], way, row["peer"]]
                times = [_ms(row["seconds"]), _ms(row["peer_seconds"])]
                lines.append([*names, *times, _ratio(row), _floor(row)])
    head = ["set", "optimizer", "backend", "polyopt", "peer", "ms", "peer's ms", "ratio", "× floor"]
    return _table(head, lines, numbers=4)


def _optimizers(rows: Sequence[Row]) -> str:
    found = [r for r in standard(rows, "update") if r["case"] == "resnet50"]
    names = list(dict.fromkeys(r["optimizer"] for r in found))
    lines = []
    for name in names:
        by = {r["backend"]: r for r in found if r["optimizer"] == name}
        cells = [
            f"{_floor(r)} ({_number(r['ratio'])}{doubt(r)})" if r else "–" for r in map(by.get, BACKENDS)
        ]
        lines.append([name, str(next(iter(by.values()))["bytes_per_parameter"]), *cells])
    text = (
        "ResNet-50's shapes: the time as a multiple of the floor of the optimizer's own bytes (at most "
        f"{FLOOR_BOUND:g} is to be reached), and in brackets of the first peer's.\n\n"
    )
    head = ["optimizer", "bytes a parameter", *(LABEL[b] for b in BACKENDS)]
    return text + _table(head, lines, numbers=5) if lines else ""


def _training(rows: Sequence[Row]) -> str:
    lines = []
    for task in (*NETS, *TASKS):
        for row in standard(rows, "train"):
            if row["case"] == task:
                cells = [task, LABEL[row["backend"]], row["peer"] or "–", _ms(row["seconds"])]
                bound = _verdict(row["ratio"], row["bound"], doubt(row))
                lines.append([*cells, _ms(row["peer_seconds"]), bound])
    text = (
        "Forward, backward and Adam, by `polyopt.TrainStep` and by hand. The networks are perceptrons on "
        f"{BATCH} samples ({'; '.join('-'.join(map(str, w)) for w in NETS.values())}); "
        "each parameter set is under ½ Σ (p - c)².\n\n"
    )
    head = ["trained", "backend", "native loop", "ms", "its ms", "ratio (must reach)"]
    return text + _table(head, lines, numbers=3) if lines else ""


def _first(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        if row["kind"] == "first":
            bound = row.get("seconds_bound")
            mine = _seconds(row["seconds"])
            mine = mine if bound is None else f"{mine} ({bound:g}{_mark(row['seconds'], bound)})"
            cells = [
                row["case"],
                LABEL[row["backend"]],
                row["ours"],
                mine,
                _seconds(row["seconds_with_import"]),
            ]
            theirs = [_seconds(row["peer_seconds"]), _seconds(row["peer_seconds_with_import"])]
            lines.append([*cells, row["peer"], *theirs])
    text = (
        "Fresh processes, Adam: seconds from the end of the imports, compiling included, and from the start "
        "of the process.\n\n"
    )
    head = ["set", "backend", "polyopt", "s (must reach)", "with import", "peer", "s", "with import"]
    return text + _table(head, lines, numbers=0) if lines else ""


def _memory(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        over = _times(row["overhead"])
        if row["bound"] is not None:
            over = _verdict(row["overhead"], row["bound"])
        mib = [f"{row[k] / 2**20:.0f}" for k in ("needed_bytes", "peak_bytes", "peak_with_start_bytes")]
        lines.append([row["case"], LABEL[row["backend"]], row["side"], *mib, over])
    text = (
        "Fresh processes, Adam: the most that a process held in its steps, and from its start on, above what "
        "it held before there was any array but when all was imported and compiled; needed are parameters, "
        "gradients and slots.\n\n"
    )
    head = ["set", "backend", "", "needed MiB", "peak MiB", "with the start", "peak / needed (must reach)"]
    return text + _table(head, lines, numbers=4) if lines else ""


def _growth(rows: Sequence[Row]) -> str:
    lines = [
        [
            LABEL[row["backend"]],
            f"{row['steps']:,}",
            f"{row['seconds'] * 1e6:.1f}",
            f"{row['growth_bytes'] / 1024:,.0f}",
        ]
        for row in rows
    ]
    text = (
        "Adam on 72 parameters in two leaves: how much more memory the process holds at the end than after "
        "the first tenth of the steps (`polyopt bench --growth`).\n\n"
    )
    head = ["backend", "steps", "µs a step", "growth in KiB"]
    return text + _table(head, lines, numbers=3) if lines else ""


def missed(results: Results) -> list[str]:
    """Write one line for each figure that is above what is demanded."""
    found = []
    for row in results["rows"]:
        name = f"{row['kind']} {row['case']} {row['optimizer']}, {LABEL[row['backend']]}, {row['ours']}"
        for key, limits, what in (
            ("ratio", "bound", f"of {row['peer']}"),
            ("floor_ratio", "floor_bound", "of the floor"),
        ):
            value, bound = row[key], row[limits]
            if value is not None and bound is not None and value > bound:
                found.append(f"{name}: {_number(value)}{doubt(row, key)} {what}, {bound:g} demanded")
        limit = row.get("seconds_bound")
        if limit is not None and row["seconds"] > limit:
            found.append(f"{name}: {_seconds(row['seconds'])} s, {limit:g} demanded")
    for row in results["memory"]:
        if row["bound"] is not None and row["overhead"] > row["bound"]:
            name = f"memory {row['case']} {row['optimizer']}, {LABEL[row['backend']]}"
            found.append(f"{name}: {_number(row['overhead'])} of what is needed, {row['bound']:g} demanded")
    return list(dict.fromkeys(found))


def _missed(results: Results) -> str:
    return _explained("\n".join(f"- {line}" for line in missed(results)))


def _sets() -> str:
    lines = [[name, f"{len(shapes(name)):,}", f"{size(shapes(name)):,}"] for name in TASKS]
    return _table(["set", "leaves", "parameters"], lines, numbers=2)


def _picture(drawn: Mapping[str, str], name: str, text: str) -> str:
    return f"![{text}]({drawn[name]})" if name in drawn else ""


def _table(head: Sequence[str], lines: Iterable[Sequence[str]], *, numbers: int) -> str:
    found = [list(line) for line in lines]
    if not found:
        return ""
    rules = ["---"] * (len(head) - numbers) + ["---:"] * numbers
    return _explained("\n".join("| " + " | ".join(cells) + " |" for cells in (list(head), rules, *found)))


def _explained(text: str) -> str:
    """Add what the mark of a doubtful ratio means, if ``text`` has one."""
    return f"{text}\n\n{EXPLANATION}" if DOUBT in text else text


def _machine(machine: Mapping[str, Any]) -> str:
    return (
        f"{machine.get('processor', 'unknown')}, {machine.get('threads')} of {machine.get('cores')} cores, "
        f"{machine.get('memory_gib')} GiB, {machine.get('system')} {machine.get('architecture')}, "
        f"Python {machine.get('python')}"
    )


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _floor(row: Row) -> str:
    return _times(row["floor_ratio"]) + doubt(row, "floor_ratio")


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1e3 * seconds:.3g}"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _ratio(row: Row) -> str:
    spread = row["quartiles"]["ratio"]
    return (
        f"{_number(row['ratio'])}{doubt(row)} ({_number(spread[0])}–{_number(spread[1])})" if spread else "–"
    )


def _mark(value: float, bound: float) -> str:
    return " ✓" if value <= bound else " ✗"


def _verdict(value: float | None, bound: float | None, doubtful: str = "") -> str:
    if value is None or bound is None:
        return _number(value) + doubtful
    return f"{_number(value)}{doubtful} ({bound:g}{_mark(value, bound)})"
