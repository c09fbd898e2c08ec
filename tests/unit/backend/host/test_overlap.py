"""What is written to is held against all else that shares memory with it, and nothing more."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from polyopt.backend.host.array_table import ADDRESS, FIELDS, SIZE
from polyopt.backend.host.overlap import NoOverlap, disjoint


def meets(intervals: list[tuple[int, int]], first: int) -> bool:
    """By the bytes themselves; the ``first`` ones are written."""
    used = [set(range(a, b)) for a, b in intervals]
    return any(used[i] & used[j] for i in range(first) for j in range(len(used)) if i != j)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 6)), max_size=8), st.integers(0, 8))
@settings(deadline=None)
def test_disjoint_is_what_it_says(spans: list[tuple[int, int]], cut: int) -> None:
    intervals = [(a, a + n) for a, n in spans]
    targets, others = intervals[:cut], intervals[cut:]
    assert disjoint(targets, others) == (not meets(intervals, len(targets)))


@given(
    st.lists(st.tuples(*[st.integers(0, 200)] * 6), min_size=2, max_size=4),
    st.tuples(*[st.integers(0, 9)] * 2),
)
@settings(deadline=None)
def test_a_table_is_looked_at_again_as_it_changes(
    places: list[tuple[int, ...]], sizes: tuple[int, ...]
) -> None:
    """Three columns of two leaves, of which two are written; elements of 8, 4 and 4 bytes."""
    widths = (8, 4, 4)
    facts: Any = np.zeros((3, 2, FIELDS), np.int64)
    facts[:, :, SIZE] = sizes
    apart = NoOverlap([(2, widths[2]), (0, widths[0])], [(1, widths[1])], facts)
    for place in places:
        facts[:, :, ADDRESS] = np.reshape(place, (3, 2))
        spans = [
            (int(facts[k, i, ADDRESS]), int(facts[k, i, ADDRESS]) + sizes[i] * widths[k])
            for k in (2, 0, 1)
            for i in range(2)
        ]
        assert apart(facts) == (not meets(spans, 4))
