"""``polyopt bench``: polyopt beside each framework's own optimizers, as ratios."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from polyopt.cli import folder, output
from polyopt.core.errors import BackendError, InputError, nearest

INTERRUPTED = 130


@dataclass(frozen=True)
class Request:
    """Hold the options of the command as they were given."""

    backends: Sequence[str]
    only: str | None
    quick: bool
    everything: bool
    growth: bool
    steps: int
    render: bool
    results: Path | None
    out: Path | None


def bench(request: Request, as_json: bool) -> int:
    """Measure, keep, draw and show; 1 where something could not be measured."""
    _check(request)
    machine, results = _part("machine"), _part("results")
    found = results.empty(machine.machine(), machine.versions())
    failed: list[str] = []
    interrupted = False
    events, total = _events(request)
    for given in (request.results, request.out):
        _make(given)  # found unwritable now, not after ten minutes
    if not request.render:
        with _progress(total) as show:
            try:
                for event in events:
                    if event.kind == "row":
                        results.add(found, event.what, event.row)
                    elif event.kind in ("failed", "remark"):
                        output.say(f"{event.kind}: {event.text}")
                        failed += [event.text] if event.kind == "failed" else []
                    show(event)
            except KeyboardInterrupt:
                interrupted = True
            finally:
                events.close()
    whole = found
    if request.results is not None:
        if any(found[what] for what in results.LISTS):
            results.save(found, request.results)
        whole = results.load(request.results) or found
    written = _report(whole, request)
    if as_json:
        more = {"failed": failed, "interrupted": interrupted, "written": written}
        output.emit((whole if request.render else found) | more)
    else:
        _show(whole if request.render else found, written)
    if interrupted:
        output.complain("interrupted; what was measured before is shown and kept")
        return INTERRUPTED
    return 1 if failed else 0


def _check(request: Request) -> None:
    for name, given in (("--out", request.out), ("--results", request.results)):
        if given is not None:
            try:
                folder.check(given, (), overwrite=True)
            except InputError as e:
                raise InputError(str(e).replace("--out", name, 1)) from None
    if request.steps < 1:
        raise InputError(f"--steps {request.steps}: expected a number of steps, at least 1")
    if request.render and (request.results is None or request.out is None):
        raise InputError("--render: add --results DIR to draw from and --out DIR to draw into")
    if request.growth and (request.quick or request.only is not None or request.everything):
        raise InputError("--growth: leave out --quick, --only and --all; choose with --backend and --steps")


def _events(request: Request) -> tuple[Any, int]:
    """Return the events, as an iterator that must be closed, and the number of cases."""
    suite, cases = _part("suite"), _part("cases")
    if request.render:
        return iter(()), 0
    backends = _backends(request.backends, cases.BACKENDS)
    if request.growth:
        return suite.growth(backends, request.steps), len(backends)
    chosen = cases.select(backends, request.only, quick=request.quick, everything=request.everything)
    return suite.run(suite.Plan(chosen, request.quick, request.everything)), len(chosen)


def _make(given: Path | None) -> None:
    if given is None:
        return
    try:
        given.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=given):
            pass
    except OSError as e:
        reason = (e.strerror or str(e)).lower()
        raise InputError(f"can't write in {given}: {reason}; give another folder") from None


def _backends(asked: Sequence[str], known: Sequence[str]) -> list[str]:
    """Those asked for, or all that are installed; which are is seen without importing them."""
    from importlib.util import find_spec

    for name in asked:
        if name not in known:
            raise BackendError(f"--backend: no benchmark for backend {name!r}; {nearest(name, known)}")
        if find_spec(name) is None:
            from polyopt.backend import registry

            registry.by_name(name)  # its error says what to install
    missing = [name for name in known if find_spec(name) is None]
    if missing and not asked:
        output.say(f"remark: not installed and left out: {', '.join(missing)}")
    return list(dict.fromkeys(asked)) or [name for name in known if name not in missing]


def _part(name: str) -> Any:
    """Import a module of the suite, which polyopt itself does not depend on."""
    try:
        return import_module(f"polyopt_bench.{name}")
    except ModuleNotFoundError as e:
        root = (e.name or "").split(".")[0]
        if root == "polyopt_bench":
            raise BackendError(
                "polyopt bench needs the package polyopt_bench, which comes with polyopt: reinstall it "
                "from where you have it (pip install --force-reinstall --no-deps FOLDER)"
            ) from None
        raise BackendError(f"polyopt bench needs {root}: pip install {root}") from None


def _report(results: Any, request: Request) -> list[Path]:
    if request.out is None:
        return []
    report = _part("report")
    notes = request.results / report.NOTES if request.results is not None else None
    text = notes.read_text("utf-8") if notes is not None and notes.is_file() else ""
    written, remark = report.write(results, request.out, text)
    if remark:
        output.say(remark)
    return list(written)


def _show(results: Any, written: Sequence[Path]) -> None:
    screen = output.screen()
    if rows := [_cells(row) for row in results["rows"]]:
        marked = any(_part("results").DOUBT in cell for cells in rows for cell in cells[-2:])
        columns = ["case", "backend", "polyopt / peer", "", "ms", "peer's ms", "ratio", "× floor"]
        screen.print(output.table("", columns, rows, numbers=4))
        if marked:
            print(_part("results").EXPLANATION)
    if results["memory"]:
        columns = ["case", "backend", "side", "needed MiB", "peak MiB", "peak / needed"]
        rows = [
            [f"memory/{r['case']}", r["backend"], r["side"]]
            + [f"{r[k] / 2**20:.0f}" for k in ("needed_bytes", "peak_bytes")]
            + [f"{r['overhead']:.3f}"]
            for r in results["memory"]
        ]
        screen.print(output.table("", columns, rows, numbers=3))
    for row in results["growth"]:
        print(
            f"{row['backend']}: {row['steps']} steps, {1e6 * row['seconds']:.1f} µs each: "
            f"memory grew by {row['growth_bytes']} bytes"
        )
    for path in written[:1]:
        print(path)


def _cells(row: dict[str, Any]) -> list[str]:
    doubt = _part("results").doubt
    ratio, floor = row["ratio"], row["floor_ratio"]
    seconds = [row["seconds"], row["peer_seconds"]]
    return [
        f"{row['kind']}/{row['case']}/{row['optimizer']}",
        row["backend"],
        f"{row['ours']} / {row['peer'] or '–'}",
        bar(ratio),
        *("–" if s is None else f"{1e3 * s:.3f}" for s in seconds),
        "–" if ratio is None else f"{ratio:.3f}{doubt(row)}",
        "–" if floor is None else f"{floor:.2f}{doubt(row, 'floor_ratio')}",
    ]


def bar(ratio: float | None, whole: int = 10) -> str:
    """Draw a ratio as a bar with a mark where 1 is; half as long again is as long as it gets.

    Examples
    --------
    >>> bar(0.5), bar(7.0)
    ('█████     ┃     ', '██████████┃█████▶')
    """
    if ratio is None:
        return ""
    most = whole + whole // 2
    filled = "█" * min(most, max(1, round(ratio * whole)))
    filled = filled.ljust(most)
    return f"{filled[:whole]}┃{filled[whole:]}{'▶' if ratio > most / whole else ''}"


@contextmanager
def _progress(total: int) -> Iterator[Callable[[Any], None]]:
    """Draw a live line with what is measured, on a terminal; elsewhere nothing."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=output.log(), disable=not output.on_terminal(), transient=True) as live:
        task = live.add_task("starting …", total=total)

        def show(event: Any) -> None:
            if event.kind == "begin":
                live.update(task, description=Text(event.text).plain.replace("[", r"\["))
            elif event.kind == "end":
                live.advance(task)

        yield show
