"""The conformance kit: put any backend through the same checks that polyopt's own pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polyopt.testing.compare import assert_close as assert_close
from polyopt.testing.compare import assert_same_bits as assert_same_bits
from polyopt.testing.report import Report as Report
from polyopt.testing.report import Row as Row

if TYPE_CHECKING:
    from polyopt.testing.kit import conform as conform


def __getattr__(name: str) -> Any:
    # The kit needs hypothesis and all of polyopt; the two comparisons need neither.
    if name != "conform":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from polyopt.testing.kit import conform

    return conform
