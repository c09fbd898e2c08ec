"""Print results for all commands: one JSON object, one-line errors, tables, progress on a terminal."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def screen() -> Console:
    """Return where results go: standard output, wide enough for any table where that is not a terminal."""
    return Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 200)


def log() -> Console:
    """Return where progress and remarks go: standard error, so that ``--json`` stays one object."""
    return Console(file=sys.stderr, highlight=False, width=None if sys.stderr.isatty() else 10_000)


def on_terminal() -> bool:
    """Return True if a person is watching: then, and only then, a progress bar moves."""
    return sys.stdout.isatty() and sys.stderr.isatty()


def say(message: str) -> None:
    """Print one remark on standard error."""
    log().print(Text(message))


def complain(message: str) -> None:
    """Return ``error: …`` on standard error, always on one line."""
    print("error: " + " ".join(message.split()), file=sys.stderr)


def emit(result: Mapping[str, Any]) -> None:
    """Print ``result`` as the one JSON object on standard output."""
    print(json.dumps(plain(result), allow_nan=False, indent=2))


def plain(value: Any) -> Any:
    """Return ``value`` as JSON has it: inf and NaN become ``null``, 0-d arrays numbers, paths strings.

    >>> plain({"loss": float("nan"), "steps": (1, 2)})
    {'loss': None, 'steps': [1, 2]}
    """
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Iterable):
        return [plain(v) for v in value]
    number = float(value)
    return number if math.isfinite(number) else None


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: int = 0) -> Table:
    """Make a table with its last ``numbers`` columns aligned to the right."""
    drawn = Table(title=title or None, title_justify="left", title_style="bold")
    for i, name in enumerate(columns):
        # Headings may wrap: where one may not, rich takes the room that lacks from the first column.
        drawn.add_column(name, justify="right" if i >= len(columns) - numbers else "left")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    return drawn


def number(value: float | None, digits: int = 4) -> str:
    """Write a measured figure for a table; a dash where there is none.

    Examples
    --------
    >>> number(0.97222), number(None), number(3.2e-15)
    ('0.9722', '–', '3.2e-15')
    """
    if value is None:
        return "–"
    if value != 0 and math.isfinite(value) and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.{max(digits - 3, 1)}e}"
    return f"{value:.{digits}f}"


def epoch(done: int, of: int | None, unit: str = "epoch") -> str:
    """Return how far a run is; ``of`` is ``None`` where nobody knows yet.

    >>> epoch(3, 20), epoch(3, None)
    ('epoch 3/20', 'epoch 3')
    """
    return f"{unit} {done}" if of is None else f"{unit} {done}/{of}"
