"""Results as plain data: rows, the JSON files that keep them, and how a new run is merged into an old one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from polyopt.core.errors import InputError
from polyopt.core.files import read_bounded, write_atomic

Row: TypeAlias = dict[str, Any]
"""``{case, optimizer, backend, peer, seconds, peer_seconds, ratio, floor_ratio, …}``: see ``timed_row``."""
Results: TypeAlias = dict[str, Any]
"""``{"machine": …, "versions": …, "rows": [Row], "memory": [Row], "growth": [Row]}``."""

LISTS = ("rows", "memory", "growth")
KEYS = {
    "rows": ("kind", "case", "optimizer", "backend", "ours", "peer"),
    "memory": ("case", "optimizer", "backend", "side"),
    "growth": ("backend",),
}
WIDE = 0.25
"""From which distance of its quartiles on, as a part of the ratio, a ratio is not to be trusted."""
DOUBT = " ?"
"""The mark of such a ratio wherever one is shown."""
EXPLANATION = (
    f"{DOUBT.strip()} marks a ratio whose quartiles lie more than {WIDE:.0%} of it apart: its spread is too "
    "wide to trust it. Measure it again on a quiet machine."
)
LIMIT = 16 << 20
"""Bytes of a file of results at the most."""


def empty(machine: Mapping[str, Any], versions: Mapping[str, str]) -> Results:
    """Results without a row."""
    return {"machine": dict(machine), "versions": dict(versions), **{name: [] for name in LISTS}}


def add(results: Results, what: str, row: Row) -> None:
    """Add ``row`` to the list ``what``, in the place of one of the same key if there is one.

    >>> found = empty({}, {})
    >>> for bytes in (1, 2):
    ...     add(found, "growth", {"backend": "numpy", "bytes": bytes})
    >>> found["growth"]
    [{'backend': 'numpy', 'bytes': 2}]
    """
    rows, key = results[what], KEYS[what]
    for i, old in enumerate(rows):
        if all(old.get(k) == row.get(k) for k in key):
            rows[i] = row
            return
    rows.append(row)


def doubt(row: Row, key: str = "ratio") -> str:
    """Return the mark of a ratio that spreads too widely from round to round, else nothing.

    >>> doubt({"ratio": 0.5, "quartiles": {"ratio": [0.45, 0.55]}})
    ''
    >>> doubt({"ratio": 0.5, "quartiles": {"ratio": [0.4, 0.6]}})
    ' ?'
    """
    value, quartiles = row[key], row["quartiles"][key]
    if value is None or quartiles is None:
        return ""
    return DOUBT if quartiles[1] - quartiles[0] > WIDE * value else ""


def merged(old: Results | None, new: Results) -> Results:
    """Return ``new`` and those rows of ``old`` that it has not measured again.

    Rows of another machine are dropped: one report is about one machine.
    """
    if old is None or old["machine"] != new["machine"]:
        return new
    both = empty(new["machine"], old["versions"] | new["versions"])
    for results in (old, new):
        for what in LISTS:
            for row in results[what]:
                add(both, what, row)
    return both


def save(results: Results, folder: Path) -> list[Path]:
    """Write one file a backend into ``folder``, merged with what is there; the files written."""
    old = load(folder)
    both = merged(old, results)
    written = []
    stale = {p.stem for p in folder.glob("*.json")} if folder.is_dir() and old is not None else set()
    for backend in sorted({row["backend"] for what in LISTS for row in both[what]}):
        part = {k: both[k] for k in ("machine", "versions")}
        part |= {what: [r for r in both[what] if r["backend"] == backend] for what in LISTS}
        path = folder / f"{backend}.json"
        text = json.dumps(part, allow_nan=False, indent=1) + "\n"
        write_atomic(path, [text.encode()])
        stale.discard(backend)
        written.append(path)
    for name in stale:
        (folder / f"{name}.json").unlink()
    return written


def load(folder: Path) -> Results | None:
    """Return what the files of ``folder`` hold together; ``None`` where there are none."""
    whole: Results | None = None
    for path in sorted(folder.glob("*.json")):
        part = _read(path)
        if whole is None:
            whole = empty(part["machine"], {})
        elif whole["machine"] != part["machine"]:
            raise InputError(f"{path}: its results are another machine's than those beside it; remove one")
        whole["versions"] |= part["versions"]
        for what in LISTS:
            whole[what] += part[what]
    return whole


def _read(path: Path) -> Results:
    try:
        found = json.loads(read_bounded(path, LIMIT, "file of results"))
    except ValueError as e:
        if isinstance(e, InputError):
            raise
        raise InputError(f"{path}: not JSON ({e}); remove it to measure anew") from None
    shaped = isinstance(found, dict) and all(isinstance(found.get(k), dict) for k in ("machine", "versions"))
    if not shaped or not all(_rows(found.get(what), KEYS[what]) for what in LISTS):
        raise InputError(f"{path}: not a file of results; remove it to measure anew")
    results: Results = found
    return results


def _rows(found: Any, keys: Iterable[str]) -> bool:
    if not isinstance(found, list):
        return False
    return all(isinstance(row, dict) and all(key in row for key in keys) for row in found)
