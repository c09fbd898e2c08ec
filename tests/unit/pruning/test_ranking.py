"""Exactly the lowest so many are found, whatever the values, the ties and the sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyopt.backend.host.threads import BLOCK
from polyopt.pruning.ranking import SAMPLE, keep_highest, keep_highest_in_rows
from polyopt.testing import assert_same_bits

SPECIAL = [0.0, -0.0, 1.0, np.inf, -np.inf]


def reference(values: list[Any], count: int) -> list[Any]:
    """Masks that prune the ``count`` lowest by a stable sort."""
    whole = np.concatenate([x.astype(np.float64) + 0.0 for x in values])
    keep = np.ones(whole.size, bool)
    keep[np.argsort(whole, kind="stable")[:count]] = False
    return np.split(keep, np.cumsum([x.size for x in values])[:-1])


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.lists(
            st.floats(-4, 4, width=16) | st.sampled_from([0.0, -0.0, 1.0, np.inf, -np.inf]), max_size=30
        ),
        min_size=1,
        max_size=4,
    ),
    st.floats(0, 1),
    st.sampled_from(["float32", "float64"]),
    st.booleans(),
)
def test_exactly_the_lowest_are_pruned(
    values: list[list[float]], share: float, dtype: str, magnitude: bool
) -> None:
    leaves = [np.array(x, dtype) for x in values]
    count = int(share * sum(x.size for x in leaves))
    found = keep_highest(leaves, count, [str(i) for i in range(len(leaves))], magnitude=magnitude)
    expected = reference([np.abs(x) for x in leaves] if magnitude else leaves, count)
    for a, b in zip(found, expected, strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("kind", ["normal", "ties", "sorted", "constant", "zeros"])
@pytest.mark.parametrize("share", [0.0, 0.003, 0.5, 0.95])
def test_many_elements_go_through_a_sample_and_come_out_exact(kind: str, share: float) -> None:
    random = np.random.default_rng(5)
    n = 4 * SAMPLE + 3 * BLOCK + 17
    x = random.normal(size=n).astype("float32")
    x = {
        "normal": x,
        "ties": np.round(x * 2) / 2,
        "sorted": np.sort(x),
        "constant": np.full(n, np.float32(3)),
        "zeros": np.where(random.random(n) < 0.7, np.float32(0), x),
    }[kind]
    leaves = [x[:1000], x[1000 : 3 * BLOCK], x[3 * BLOCK :]]
    count = int(share * n)
    found = keep_highest(leaves, count, "abc", magnitude=True)
    for a, b in zip(found, reference([np.abs(x) for x in leaves], count), strict=True):
        assert_same_bits(a, b)


def test_a_sample_that_misleads_costs_time_alone() -> None:
    n = 8 * SAMPLE
    x = np.zeros(n, np.float32)
    x[::8] = np.arange(n // 8)  # all that the sample sees
    x[1::8] = -5.0
    found = keep_highest([x], n // 3, "x")
    assert_same_bits(found[0], reference([x], n // 3)[0])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(1, 12), st.data())
def test_rows_are_ranked_one_by_one(rows: int, columns: int, data: st.DataObject) -> None:
    numbers = st.lists(st.integers(-3, 3), min_size=rows * columns, max_size=rows * columns)
    x = np.array(data.draw(numbers), np.float32).reshape(rows, columns)
    count = data.draw(st.integers(0, columns))
    found = keep_highest_in_rows(x, count, "x")
    for a, row in zip(found, x, strict=True):
        assert_same_bits(a, reference([row], count)[0])
