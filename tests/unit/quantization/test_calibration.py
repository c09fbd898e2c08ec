"""Observers: against slow references, however the elements come in batches, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyopt.backend.protocol import Backend
from polyopt.core.errors import InputError
from polyopt.quantization import (
    MSE,
    Calibration,
    Cast,
    Entropy,
    Grid,
    Integer,
    MinMax,
    Observer,
    Percentile,
    calibrate,
)
from polyopt.quantization.observers import HALF, OBSERVERS, histogram, merged
from polyopt.testing import assert_close, assert_same_bits

SYMMETRIC = Integer(per="tensor")
AFFINE = Integer(per="tensor", symmetric=False)
OBSERVE: list[Observer] = [MinMax(), Percentile(99.0), MSE(), Entropy()]


def activations(seed: int = 0, n: int = 20_000) -> Any:
    """Bell-shaped, with a few far out."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal(n)
    x[:5] = 30.0 * generator.random(5) + 10.0
    return x.astype(np.float32)


def test_every_one_has_a_recipe_name() -> None:
    assert {type(x) for x in OBSERVE} == set(OBSERVERS.values())


@pytest.mark.parametrize("scheme", [SYMMETRIC, AFFINE, Integer(bits=4, per="tensor")], ids=repr)
@pytest.mark.parametrize("observer", OBSERVE, ids=repr)
def test_batches_and_their_order_make_no_difference(observer: Observer, scheme: Integer) -> None:
    x = activations()
    whole = calibrate([{"x": x}], observer, scheme)
    parts = [{"x": p.reshape(-1, 1)} for p in np.split(x, [1, 2, 700, 701, 15_000])]
    assert calibrate(parts, observer, scheme) == whole
    assert calibrate(parts[::-1], observer, scheme) == whole


@given(
    st.lists(st.floats(-(2.0**80), 2.0**80, width=32), min_size=1, max_size=20),
    st.lists(st.floats(-(2.0**-80), 2.0**-80), min_size=1, max_size=20),
)
@settings(max_examples=60, deadline=None)
def test_histograms_join_exactly(a: list[float], b: list[float]) -> None:
    both, joined = histogram(np.array(a + b)), merged(histogram(np.array(a)), histogram(np.array(b)))
    assert_same_bits(joined.counts, both.counts)
    assert (joined.low, joined.high, joined.exponent) == (both.low, both.high, both.exponent)


def test_bins() -> None:
    x = activations()
    h = histogram(x)
    edges = (np.arange(2 * HALF + 1) - HALF) * h.width
    assert_same_bits(h.counts, np.histogram(x.astype(np.float64), edges)[0].astype(np.int64))
    assert 2 ** (h.exponent - 1) <= max(-h.low, h.high) < 2**h.exponent


def test_the_same_grids_everywhere(backend: Backend) -> None:
    for observer in OBSERVE:
        got = calibrate([{"x": backend.from_numpy(activations(i))} for i in range(2)], observer)
        assert got == calibrate([{"x": activations(i)} for i in range(2)], observer)


def test_min_max_is_that_of_weights() -> None:
    x = activations()
    for scheme in (SYMMETRIC, AFFINE, Integer(per="tensor", convention="torch", symmetric=False)):
        from polyopt.quantization import quantize

        grid, q = calibrate([x], MinMax(), scheme)["param"], quantize(x, scheme, select="")
        assert_same_bits(np.float32(grid.scale), np.asarray(q.scale)[()])
        assert grid.zero_point == (0 if q.zero_point is None else int(q.zero_point))


@pytest.mark.parametrize("percent", [50.0, 90.0, 99.9, 100.0])
def test_percentiles(percent: float) -> None:
    x = activations()
    h = histogram(x)
    inverted = {"method": "inverted_cdf"}
    low, high = Percentile(percent).interval(h, SYMMETRIC)
    expected = np.percentile(np.abs(x), percent, **inverted)
    assert low == -high
    assert_close(high, np.float64(expected), atol=h.width, because="the width of a bin")
    low, high = Percentile(percent).interval(h, AFFINE)
    tail = (100 - percent) / 2
    assert_close(high, np.percentile(x, 100 - tail, **inverted), atol=h.width, because="the width of a bin")
    assert_close(low, np.percentile(x, tail, **inverted), atol=h.width, because="the width of a bin")


@pytest.mark.parametrize(
    "scheme", [Integer(bits=4, per="tensor"), Integer(bits=4, per="tensor", symmetric=False)]
)
def test_mse_is_the_best_of_the_shrunken_intervals(scheme: Integer) -> None:
    x = activations().astype(np.float64)
    low, high = scheme.range

    def error(a: float, b: float) -> float:
        s = max(-a, b) / high if scheme.symmetric else (b - a) / (high - low)
        z = 0.0 if scheme.symmetric else min(max(low - np.rint(a / s), low), high)
        return float(np.mean(((np.clip(np.rint(x / s) + z, low, high) - z) * s - x) ** 2))

    errors = [error(x.min() * k / 100, x.max() * k / 100) for k in range(1, 101)]
    chosen = error(*MSE().interval(histogram(x), scheme))
    assert_close(chosen, min(errors), rtol=0.01, because="elements stand at the middle of their bins")
    assert chosen < errors[-1] / 2


def slow_entropy(x: Any, levels: int) -> float:
    """The source's pseudocode, bin by bin."""
    r = 2.0 ** math.frexp(np.abs(x).max())[1]
    edges = np.arange(2049) * r / 2048
    bins = np.histogram(np.abs(x), edges)[0].astype(float)
    best, where = math.inf, 0
    for i in range(levels, int(np.flatnonzero(bins)[-1]) + 2):
        p = bins[:i].copy()
        p[i - 1] += bins[i:].sum()
        q = np.zeros(i)
        for j in range(levels):
            first, last = -(-j * i // levels), -(-(j + 1) * i // levels)
            filled = bins[first:last] > 0
            if filled.any():
                q[first:last] = np.where(filled, bins[first:last].sum() / filled.sum(), 0.0)
        if q.sum() == 0:
            continue
        p, q = p / p.sum(), q / q.sum()
        kl = sum(a * math.log(a / max(b, 1e-12)) for a, b in zip(p, q, strict=True) if a > 0)
        if kl < best:
            best, where = kl, i
    return min(where * r / 2048, np.abs(x).max())


def test_entropy_is_the_sources_algorithm() -> None:
    # Not on an edge, where the sides of 0 differ.
    x = np.float32(0.001) + np.abs(activations(3, 4000)) / 7
    for bits, levels in ((4, 8), (8, 128)):
        low, high = Entropy().interval(histogram(x), Integer(bits=bits, per="tensor"))
        assert_close(high, slow_entropy(x.astype(np.float64), levels), because="the same bins", rtol=1e-12)
        assert high < x.max()
        assert low >= 0


def test_entropy_cuts_outliers_off() -> None:
    x = activations()
    cut = calibrate([x], Entropy(), SYMMETRIC)["param"].scale * 127
    assert 2.0 < cut < 10.0 < np.abs(x).max()


def test_constant_and_zero_batches() -> None:
    for observer in OBSERVE:
        assert calibrate([np.zeros(3)], observer)["param"] == Grid(1.0, -128, -128, 127)
        grid = calibrate([np.full(3, 2.0)], observer, SYMMETRIC)["param"]
        assert_close(grid.scale * 127, np.float64(2.0), rtol=2e-3, because="within a bin of what was seen")


def test_what_is_refused() -> None:
    good, bad = np.ones((2, 2)), np.array([[1.0, np.inf]])
    with pytest.raises(InputError, match="the calibration set is empty"):
        calibrate([])
    with pytest.raises(
        InputError, match=r"batch 1, leaf 'x': the element at \(0, 1\) is inf; expected finite"
    ):
        calibrate([{"x": good}, {"x": bad}])
    with pytest.raises(InputError, match=r"batch 0, leaf 'x' is empty: shape \(0, 3\)"):
        calibrate([{"x": np.zeros((0, 3))}])
    with pytest.raises(InputError, match="batch 0, leaf 'x': dtype int64"):
        calibrate([{"x": np.ones(3, np.int64)}])
    with pytest.raises(InputError, match="batch 0 has no array"):
        calibrate([{}])
    with pytest.raises(InputError, match="leaf 'y' is new in calibration batch 1"):
        calibrate([{"x": good}, {"x": good, "y": good}])
    with pytest.raises(InputError, match="leaf 'x' is missing from calibration batch 1"):
        calibrate([{"x": good, "y": good}, {"y": good}])
    with pytest.raises(InputError, match='expected per="tensor"'):
        calibrate([good], MinMax(), Integer())
    with pytest.raises(InputError, match="expected an observer such as"):
        calibrate([good], MinMax)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected an Integer"):
        calibrate([good], MinMax(), Cast())  # type: ignore[arg-type]
    for make in (lambda: MSE(steps=0), lambda: Percentile(101.0), lambda: Percentile(20.0)):
        with pytest.raises(InputError):
            make()
    seen = Calibration().observe({"x": good})
    with pytest.raises(InputError):
        seen.observe({"x": bad})
    assert seen.batches == 1
    assert seen.grids(scheme=SYMMETRIC)["x"].scale == float(np.float32(1) / np.float32(127))


def test_entropy_of_data_away_from_0_keeps_it() -> None:
    """A threshold below nearly all of it makes P and Q the same one bin, whose divergence is 0."""
    x = (10 + np.random.default_rng(0).normal(size=4096)).astype(np.float32)
    low, high = Entropy().interval(histogram(x), Integer(per="tensor"))
    assert 0.9 * x.max() <= high <= x.max()
    assert low <= x.min()
