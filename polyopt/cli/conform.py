"""``polyopt conform``: put backends through the conformance kit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from polyopt.cli import output


def conform(names: Sequence[str], required: Sequence[str], quick: bool, as_json: bool) -> int:
    """Check the backends ``names``, or all that are registered; 1 where anything failed or is missing."""
    from polyopt.backend import registry
    from polyopt.core.errors import BackendError, nearest
    from polyopt.testing import conform as check

    required = required or os.environ.get("POLYOPT_REQUIRED_BACKENDS", "").replace(",", " ").split()
    for option, given in (("--backend", names), ("--require", required)):
        for name in given:
            if name not in registry.names():
                raise BackendError(f"{option}: unknown backend {name!r}; {nearest(name, registry.names())}")
    for name in names:
        registry.by_name(name)  # asked for by name and not installed: an error that says what to install
    chosen = dict.fromkeys([*(names or registry.names()), *required])
    with _progress() as on_result:
        report = check(list(chosen), required=required, quick=quick, on_result=on_result)
    if as_json:
        output.emit(report.to_json())
        return 0 if report.ok else 1
    print(report.matrix())
    print()
    print(", ".join(f"{count} {outcome}" for outcome, count in report.counts.items()))
    for row in report.failures:
        output.say(f"{row.outcome}: {row.backend} {row.check} {row.case}: {row.detail}")
    return 0 if report.ok else 1


@contextmanager
def _progress() -> Iterator[Callable[[Any], None]]:
    """Draw a live line with what was checked last, on a terminal; elsewhere nothing."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn())
    with Progress(*columns, console=output.log(), disable=not output.on_terminal(), transient=True) as bar:
        task = bar.add_task("loading …", total=None)
        done = bad = 0

        def on_result(row: Any) -> None:
            nonlocal done, bad
            done, bad = done + 1, bad + (not row.ok)
            failed = f", {bad} failed" if bad else ""
            text = f"{done} checked{failed} · {row.backend} · {row.check} · {row.case}"
            bar.update(task, description=Text(text).plain.replace("[", r"\["))

        yield on_result
