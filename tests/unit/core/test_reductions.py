"""Sums in a fixed order: the same bits on every backend, eager and compiled, and accurate."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyopt.backend.protocol import Backend
from polyopt.core import reductions
from polyopt.testing import assert_close, assert_same_bits
from polyopt.testing.compare import host
from polyopt_numpy import ops as NUMPY

SIZES = [0, 1, 2, 3, 1025, 5000, 33_000, 70_001]


def values(n: int, dtype: str, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=n) * 10.0 ** rng.integers(-3, 4, size=n)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_same_bits_everywhere(backend: Backend, dtype: str) -> None:
    arrays = [values(n, dtype, n) for n in SIZES]
    expected = {
        "sum": reductions.ordered_sum(NUMPY, arrays[-1]),
        "root": reductions.root_sum_squares(NUMPY, arrays)[0],
    }

    def both(xp: Any, given: Any) -> Any:
        return {
            "sum": reductions.ordered_sum(xp, given[-1]),
            "root": reductions.root_sum_squares(xp, given)[0],
        }

    native = [backend.from_numpy(x) for x in arrays]
    compiled = backend.compile(both, exact=True)(native)
    for name in expected:
        assert_same_bits(compiled[name], expected[name], what=f"{name}, compiled")
    # Op by op XLA compiles every operation for every size: one for each way through the sum.
    few = [SIZES.index(n) for n in (0, 1, 3, 5000)]
    eager = both(backend.ops, [native[i] for i in few])
    for name, x in both(NUMPY, [arrays[i] for i in few]).items():
        assert_same_bits(eager[name], x, what=f"{name}, eager")


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (64, 3), (3, 100), (0, 4), (4, 0)])
def test_rows_and_columns(backend: Backend, axis: int, shape: tuple[int, int]) -> None:
    x = values(math.prod(shape), "float32").reshape(shape)

    def norms(xp: Any, x: Any) -> Any:
        root, scale = reductions.axis_root_sum_squares(xp, x, axis)
        return xp.divide(root, scale)

    ours = backend.compile(norms, exact=True)(backend.from_numpy(x))
    assert_same_bits(ours, norms(NUMPY, x))
    expected = np.sqrt((x.astype(np.float64) ** 2).sum(axis=axis, keepdims=True))
    assert_close(ours, expected, rtol=1e-6, because="a few float32 roundings")


@settings(deadline=None, max_examples=40)
@given(n=st.integers(0, 5000), seed=st.integers(0, 99))
def test_any_size_is_summed_once(n: int, seed: int) -> None:
    """Whole numbers add exactly in any order, so a lost or doubled element shows."""
    x = np.random.default_rng(seed).integers(-1000, 1000, size=n).astype(np.float64)
    assert float(reductions.ordered_sum(NUMPY, x)) == x.sum()


def test_a_million_small_terms() -> None:
    """A running float32 sum stops growing at 2^24 ulps; this one is right to two roundings."""
    x = np.full(3_000_001, np.float32(1e-4))
    x[0] = 1e4
    exact = math.fsum(x.astype(np.float64))
    ours = reductions.ordered_sum(NUMPY, x)
    assert_close(ours, np.float64(exact), rtol=3e-7, because="22 levels of additions in float32")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_magnitude_has_a_scale(backend: Backend, dtype: str) -> None:
    """A power of two that brings a number where its square is neither infinite nor lost."""
    low, high = (-126, 127) if dtype == "float32" else (-1022, 1023)
    largest = np.array([2.0**e for e in range(low, high + 1)] + [0.0], dtype)
    scale = np.asarray(host(reductions.power_of_two(backend.ops, backend.from_numpy(largest))))
    assert scale.dtype == dtype
    mantissa, _ = np.frexp(scale)
    assert (mantissa == 0.5).all(), "not a power of two"
    scaled = (largest * scale)[:-1].astype(np.float64)
    most = 2.0**50 if dtype == "float32" else 2.0**100
    assert scaled.max() <= most
    assert scaled.min() >= 1 / most
