"""The conformance kit on the four backends: one test for every check, case and backend."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from conftest import ALL, REQUIRED
from polyopt.testing import trajectories
from polyopt.testing.case import Case, Context, run_case
from polyopt.testing.kit import all_cases, load
from polyopt.testing.report import Row

# XLA compiles every setting of every algorithm, about a second each. `polyopt conform` runs them all.
# Runs of 60 steps: those are what the reference is compared with; test_bits goes on to 200.
STEPS = None if os.environ.get("POLYOPT_CONFORMANCE") == "full" else 60
SPARSE = () if os.environ.get("POLYOPT_CONFORMANCE") == "full" else ("jax", "tensorflow")
TABLE = [(name, case) for name in ALL for case in all_cases(name)]


@pytest.fixture(scope="module", autouse=True)
def _forget() -> Iterator[None]:
    yield
    trajectories.forget()


@pytest.mark.full_for("jax-quantization", "jax-distillation")
@pytest.mark.parametrize(
    ("name", "case"),
    TABLE,
    ids=[f"{name}-{case.check}-{case.name}".replace(" ", "_") for name, case in TABLE],
)
def test_conforms(name: str, case: Case) -> None:
    backend = load(name, REQUIRED)
    if isinstance(backend, Row):
        if backend.outcome == "skipped":
            pytest.skip(backend.detail)
        pytest.fail(f"{backend.outcome}: {backend.detail}")
    context = Context(backend, sparse=name in SPARSE, required=frozenset(REQUIRED), steps=STEPS)
    row = run_case(case, context)
    if row.outcome == "skipped":
        pytest.skip(row.detail)
    assert row.ok, f"{row.outcome}: {row.detail}"
