"""One thing to check on one backend, and how its outcome becomes a row."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyopt.backend import registry
from polyopt.backend.protocol import Backend
from polyopt.core.errors import BackendError
from polyopt.core.install import pip_install
from polyopt.testing.report import Outcome, Row

STEPS, STEPS_QUICK = 200, 20
LAYOUTS = ("contiguous", "transposed", "strided")


class Skip(Exception):
    """Tell that the case can't run here, and need not: the message says why."""


class Missing(Exception):
    """Something that has to be there is not: the message says what."""


@dataclass(frozen=True)
class Context:
    """Give a case its backend, how thorough to be, and the names that must not be skipped.

    ``quick``: fewer examples, 20 steps instead of 200. ``sparse`` (``quick`` implies it), for backends that
    compile slowly: an algorithm's defaults in every convention, but each of its other settings in one
    convention alone, in turn; and fewer drawn shapes of elementwise operations. ``steps``: of a run of an
    algorithm, by default 200.
    """

    backend: Backend
    quick: bool = False
    sparse: bool = False
    required: frozenset[str] = frozenset()
    steps: int | None = None

    @property
    def layouts(self) -> tuple[str, ...]:
        """Return the layouts of arrays; ``sparse``, contiguous ones alone: XLA has no others."""
        return LAYOUTS[:1] if self.sparse else LAYOUTS

    @property
    def updates(self) -> int:
        """Return how many of a run of an algorithm are made."""
        return self.steps or (STEPS_QUICK if self.quick else STEPS)


@dataclass(frozen=True)
class Case:
    """``run`` raises AssertionError, ``Skip``, ``Missing`` or anything else, or gives a remark."""

    check: str
    name: str
    run: Callable[[Context], str | None]


def run_case(case: Case, context: Context) -> Row:
    """Run ``case``; nothing that happens inside it stops the run."""
    start = time.perf_counter()
    outcome: Outcome = "passed"
    try:
        with registry.forced(context.backend), np.errstate(all="ignore"), warnings.catch_warnings():
            # Frameworks warn of NaN and overflow, which are what many of the cases are about.
            warnings.simplefilter("ignore")
            detail = case.run(context) or ""
    except Skip as e:
        outcome, detail = "skipped", str(e)
    except Missing as e:
        outcome, detail = "missing", str(e)
    except Exception as e:
        outcome, detail = "failed", one_line(e)
    seconds = time.perf_counter() - start
    return Row(case.check, case.name, context.backend.name, outcome, detail, seconds)


def one_line(e: BaseException, limit: int = 400) -> str:
    """Return the message of ``e`` on one line, with its type where it is no failed assertion."""
    text = " ".join(str(e).split())
    text = text if isinstance(e, AssertionError) else f"{type(e).__name__}: {text}"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def hypothesis() -> Any:
    """Return the hypothesis library, or raise an error that names the extra."""
    try:
        import hypothesis
    except ImportError as e:
        raise BackendError(
            f"the conformance kit needs hypothesis, which can't be imported ({e}): {pip_install('testing')}"
        ) from e
    return hypothesis


def for_all(check: Callable[..., None], examples: int, **strategies: Any) -> None:
    """Call ``check`` with ``examples`` drawn values of each strategy, the same ones in every run."""
    h = hypothesis()
    settings = h.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(h.HealthCheck),
        phases=(h.Phase.generate, h.Phase.shrink),
    )

    def run(**values: Any) -> None:
        check(**values)

    settings(h.given(**strategies)(run))()
