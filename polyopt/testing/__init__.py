"""The conformance kit: put any backend through the same checks that polyopt's own pass."""

from __future__ import annotations

from polyopt.testing.compare import assert_close as assert_close
from polyopt.testing.compare import assert_same_bits as assert_same_bits
