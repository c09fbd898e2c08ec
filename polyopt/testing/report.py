"""Report the kit's results: rows, counts, a matrix of checks and backends, data for ``--json``."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, TypeAlias

Outcome: TypeAlias = Literal["passed", "failed", "skipped", "missing"]
OUTCOMES: Final[tuple[Outcome, ...]] = ("passed", "failed", "skipped", "missing")
CHECKS: Final = {
    "backend": "loads, converts, differentiates, compiles, draws",
    "ops": "array operations against the standard",
    "kinks": "gradients at kinks, ties, zeros, infinities and what is left out",
    "reference": "algorithms against float64 references from the papers",
    "peer": "conventions against the framework's own optimizer",
    "bits": "the same bits as NumPy, eager and compiled",
    "properties": "caller's arrays, dtypes, order, absent gradients",
    "pruning": "masks, what they prune, and optimizers that respect them",
    "quantization": "codes, scales, fake quantization, integer products",
    "distillation": "losses and gradients against the published formulas",
    "finetuning": "rates by layer, L2-SP, LoRA, new layers, accumulated batches",
    "federated": "aggregates, the server's rules, the proximal term",
}
"""The groups of checks, in the order in which they run, with what each looks at."""


@dataclass(frozen=True)
class Row:
    """Tell how one case went on one backend.

    ``missing`` is something that has to be there and is not: a backend that is required, a check for an
    operation, a reference for an algorithm. It counts as a failure.

    Parameters
    ----------
    check
        The kind of check, as ``"ops"``.
    case
        The name of the case.
    backend
        The backend's name.
    outcome
        ``"passed"``, ``"failed"``, ``"skipped"`` or ``"missing"``.
    detail
        Why, on one line.
    seconds
        What it took.
    """

    check: str
    case: str
    backend: str
    outcome: Outcome
    detail: str = ""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Return True if it passed or was skipped."""
        return self.outcome in ("passed", "skipped")


@dataclass(frozen=True)
class Report:
    """Gather all rows of a run.

    Parameters
    ----------
    rows
        In the order in which they ran.
    seconds
        What the run took.

    Examples
    --------
    >>> report = Report((Row("ops", "add", "numpy", "passed"), Row("ops", "sqrt", "numpy", "failed", "why")))
    >>> report.counts
    {'passed': 1, 'failed': 1, 'skipped': 0, 'missing': 0}
    >>> report.ok
    False
    """

    rows: tuple[Row, ...]
    seconds: float = field(default=0.0, compare=False)

    @property
    def counts(self) -> dict[str, int]:
        """Return ``{"passed": n, "failed": n, "skipped": n, "missing": n}``."""
        found = Counter(row.outcome for row in self.rows)
        return {outcome: found[outcome] for outcome in OUTCOMES}

    @property
    def ok(self) -> bool:
        """Return True if nothing failed and nothing is missing, and something was checked at all."""
        return all(row.ok for row in self.rows) and any(row.outcome == "passed" for row in self.rows)

    @property
    def backends(self) -> tuple[str, ...]:
        """Return the backends' names, in the order of the rows."""
        return tuple(dict.fromkeys(row.backend for row in self.rows))

    @property
    def failures(self) -> tuple[Row, ...]:
        """Return the rows that failed or are missing."""
        return tuple(row for row in self.rows if not row.ok)

    def matrix(self) -> str:
        """Draw a text table, checks by backends.

        ``✓`` and how many passed, ``✗`` and how many of how many did not, ``–`` where nothing ran.

        Returns
        -------
        str
            Lines for ``print``.

        Examples
        --------
        >>> print(Report((Row("ops", "add", "numpy", "passed"),)).matrix())
        check  numpy
        ops    ✓ 1
        """
        checks = [c for c in CHECKS if any(row.check == c for row in self.rows)]
        lines = [["check", *self.backends]]
        lines += [[check, *(self._cell(check, backend) for backend in self.backends)] for check in checks]
        if len(checks) > 1:
            lines.append(["all", *(self._cell(None, backend) for backend in self.backends)])
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        return "\n".join(
            "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines
        )

    def _cell(self, check: str | None, backend: str) -> str:
        rows = [row for row in self.rows if row.backend == backend and check in (None, row.check)]
        found = Counter(row.outcome for row in rows)
        bad = found["failed"] + found["missing"]
        skipped = f" (–{found['skipped']})" if found["skipped"] else ""
        if bad:
            return f"✗ {bad}/{len(rows)}{skipped}"
        return f"✓ {found['passed']}{skipped}" if found["passed"] else "–" + skipped

    def to_json(self) -> dict[str, Any]:
        """Return plain data: the counts at the top, then ``ok``, ``seconds``, ``backends`` and every row.

        Returns
        -------
        dict
            For ``json.dump``.
        """
        return {
            **self.counts,
            "ok": self.ok,
            "seconds": round(self.seconds, 3),
            "backends": list(self.backends),
            "rows": [asdict(row) for row in self.rows],
        }
