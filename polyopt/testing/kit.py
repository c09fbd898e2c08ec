"""Run the kit: every case on every backend, a row each, whatever happens inside a case."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from polyopt.backend import registry
from polyopt.backend.protocol import Backend
from polyopt.core.errors import PolyoptError
from polyopt.testing.case import Case, Context, hypothesis, one_line, run_case
from polyopt.testing.report import CHECKS, Report, Row


def all_cases(backend_name: str) -> Iterator[Case]:
    """Yield every case of the kit for a backend of that name, in the order of ``CHECKS``."""
    from polyopt.testing import (
        backend_checks,
        bits,
        distillation_checks,
        federated_checks,
        finetuning_checks,
        kinks,
        ops_checks,
        peers,
        properties,
        pruning_checks,
        quantization_checks,
        rules_checks,
    )

    yield from backend_checks.cases()
    yield from ops_checks.cases()
    yield from kinks.cases()
    yield from rules_checks.cases()
    yield from peers.cases(backend_name)
    yield from bits.cases()
    yield from properties.cases()
    yield from pruning_checks.cases()
    yield from quantization_checks.cases()
    yield from distillation_checks.cases()
    yield from finetuning_checks.cases()
    yield from federated_checks.cases()


def conform(
    backends: str | Backend | Iterable[str | Backend],
    *,
    required: Iterable[str] = (),
    quick: bool = False,
    checks: Iterable[str] | None = None,
    on_result: Callable[[Row], None] | None = None,
) -> Report:
    """Put ``backends`` through the conformance kit.

    Parameters
    ----------
    backends
        A name that is registered, a ``Backend`` object (registered or not), or several.
    required
        Names that have to load, and whose own optimizers have to be there: what is absent is ``missing``,
        never ``skipped``.
    quick
        Fewer examples, and 20 steps instead of 200.
    checks
        Names of ``CHECKS`` to run; all by default.
    on_result
        Called with every ``Row`` as it comes.

    Returns
    -------
    Report
        One row for every case and backend. An exception inside a case is a row that failed.

    Examples
    --------
    >>> report = conform("numpy", quick=True, checks=["ops"])
    >>> report.ok, report.counts["failed"]
    (True, 0)
    """
    hypothesis()
    wanted = set(CHECKS if checks is None else checks)
    if unknown := wanted - set(CHECKS):
        raise ValueError(f"unknown checks {sorted(unknown)}; known: {list(CHECKS)}")
    start = time.perf_counter()
    several = (
        [backends] if isinstance(backends, str) or not isinstance(backends, Iterable) else list(backends)
    )
    rows: list[Row] = []
    for entry in several:
        for row in _rows(entry, frozenset(required), quick, wanted):
            rows.append(row)
            if on_result is not None:
                on_result(row)
    _forget()
    return Report(tuple(rows), time.perf_counter() - start)


def _rows(entry: str | Backend, required: frozenset[str], quick: bool, wanted: set[str]) -> Iterator[Row]:
    loaded = load(entry, required)
    if isinstance(loaded, Row):
        yield loaded
        return
    context = Context(loaded, quick, required=required)
    for case in all_cases(loaded.name):
        if case.check in wanted:
            yield run_case(case, context)


def load(entry: str | Backend, required: Iterable[str] = ()) -> Backend | Row:
    """Load the backend, able to do float64; or return the row that says why there is none."""
    name = entry if isinstance(entry, str) else str(getattr(entry, "name", entry))
    try:
        backend = registry.by_name(entry) if isinstance(entry, str) else entry
        backend.enable_float64()
    except Exception as e:
        absent = isinstance(e, PolyoptError) and name not in set(required)
        outcome = "skipped" if absent else "missing" if isinstance(e, PolyoptError) else "failed"
        return Row("backend", "loads", name, outcome, one_line(e))  # type: ignore[arg-type]
    return backend


def _forget() -> None:
    from polyopt.testing import trajectories

    trajectories.forget()
