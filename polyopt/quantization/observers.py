"""Observe the range of activations over batches, which decides their quantization grid."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from polyopt.core.errors import InputError
from polyopt.core.rule import check_fields, hyper, static
from polyopt.quantization.scheme import Integer

HALF = 4096
"""Bins of a histogram on each side of 0."""


SMALLEST = -1000
"""Exponent of the narrowest histogram."""


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts in 2·4096 bins of one width over [-r, r), with the extrema and the number of elements.

    r is the least power of two above all magnitudes: bins that join as it doubles join exactly, two and two,
    so the counts don't depend on how the elements came in batches, or in what order.
    """

    low: float
    high: float
    exponent: int
    """r = 2**exponent."""
    counts: Any
    """int64 of (2·4096,)."""

    @property
    def width(self) -> float:
        """Return the width of a bin."""
        return math.ldexp(1.0 / HALF, self.exponent)

    def magnitudes(self) -> Any:
        """Return the counts of the magnitudes: (4096,), from 0 to r."""
        return self.counts[HALF:] + self.counts[:HALF][::-1]


def histogram(x: Any) -> Histogram:
    """Make the histogram of a host array of finite numbers, at least one.

    Examples
    --------
    >>> h = histogram(np.array([-0.5, 0.0, 3.0]))
    >>> h.low, h.high, 2.0**h.exponent, int(h.counts.sum())
    (-0.5, 3.0, 4.0, 3)
    """
    flat = np.asarray(x, np.float64).reshape(-1)
    low, high = float(flat.min()), float(flat.max())
    most = max(-low, high)
    # frexp: most < 2**exponent, and at least half of it.
    exponent = max(math.frexp(most)[1], SMALLEST) if most > 0 else SMALLEST
    position = np.floor(np.ldexp(flat, 12 - exponent)).astype(np.int64)
    # What is too small for a float beside the largest is still on its own side of 0.
    position = np.minimum(position, np.where(flat < 0, -1, HALF))
    counts = np.bincount(position + HALF, minlength=2 * HALF)
    return Histogram(low, high, exponent, counts)


def merged(a: Histogram, b: Histogram) -> Histogram:
    """Return the histogram of the elements of both."""
    exponent = max(a.exponent, b.exponent)
    counts = _widened(a, exponent) + _widened(b, exponent)
    return Histogram(min(a.low, b.low), max(a.high, b.high), exponent, counts)


def _widened(h: Histogram, exponent: int) -> Any:
    factor = 2 ** min(exponent - h.exponent, 13)
    if factor == 1:
        return h.counts
    out = np.zeros_like(h.counts)
    old = np.arange(2 * HALF) - HALF
    np.add.at(out, old // factor + HALF, h.counts)
    return out


@dataclass(frozen=True)
class Observer(ABC):
    """Find the interval that codes shall cover. Abstract."""

    def __post_init__(self) -> None:
        check_fields(self)

    CONVENTIONS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @abstractmethod
    def interval(self, seen: Histogram, scheme: Integer) -> tuple[float, float]:
        """Return the ends of what the grid covers; it is widened to hold 0 afterwards.

        Parameters
        ----------
        seen
            Histogram of the elements.
        scheme
            The grid's.

        Returns
        -------
        tuple
            ``(low, high)``.
        """


@dataclass(frozen=True)
class MinMax(Observer):
    """Cover all that was seen: torch's ``MinMaxObserver``.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt.quantization import calibrate
    >>> calibrate([{"x": np.float32([0.0, 2.55])}], MinMax())["x"].zero_point
    -128
    """

    def interval(self, seen: Histogram, scheme: Integer) -> tuple[float, float]:
        """Return the least and the largest element."""
        return seen.low, seen.high


@dataclass(frozen=True)
class Percentile(Observer):
    """Cover all but the largest magnitudes: ``percent`` of the elements lie within.

    For an affine scheme (100 - ``percent``)/2 are left out at each end. Ends are those of a histogram's bins:
    off by at most 1/2048 of the largest magnitude, and never beyond what was seen.

    Parameters
    ----------
    percent
        In [50, 100].

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt.quantization import calibrate
    >>> x = np.append(np.linspace(0.0, 1.0, 999), 100.0).astype(np.float32)
    >>> grid = calibrate([{"x": x}], Percentile(99.0))["x"]
    >>> grid.scale * 255 < 2
    True
    """

    percent: Any = hyper(99.99, low=50.0, high=100.0)

    def interval(self, seen: Histogram, scheme: Integer) -> tuple[float, float]:
        """Return the ends between which ``percent`` of the elements lie."""
        if scheme.symmetric:
            edge = (_reached(seen.magnitudes(), self.percent / 100) + 1) * seen.width
            edge = min(edge, max(-seen.low, seen.high))
            return -edge, edge
        tail = (100 - self.percent) / 200
        top = (_reached(seen.counts, 1 - tail) + 1 - HALF) * seen.width
        bottom = (HALF - (_reached(seen.counts[::-1], 1 - tail) + 1)) * seen.width
        return max(bottom, seen.low), min(top, seen.high)


@dataclass(frozen=True)
class MSE(Observer):
    """Cover the interval with the least mean squared error, clipping included.

    It is the best of ``steps`` intervals; the k-th is k/``steps`` times what was seen. The elements of a bin
    stand at its middle.

    Parameters
    ----------
    steps
        How many intervals are tried.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt.quantization import calibrate
    >>> x = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    >>> calibrate([{"x": x}], MSE())["x"].scale <= calibrate([{"x": x}], MinMax())["x"].scale
    True
    """

    steps: int = static(100)

    def __post_init__(self) -> None:
        if type(self.steps) is not int or self.steps < 1:
            raise InputError(f"MSE: steps = {self.steps!r}; expected an integer >= 1")

    def interval(self, seen: Histogram, scheme: Integer) -> tuple[float, float]:
        """Return the interval whose rounded elements are off least, in the mean of squares."""
        used = np.flatnonzero(seen.counts)
        x = (used - HALF + 0.5) * seen.width
        count = seen.counts[used]
        low, high = min(seen.low, 0.0), max(seen.high, 0.0)
        least, largest = scheme.range
        best, error = (low, high), math.inf
        for k in range(self.steps, 0, -1):
            a, b = low * k / self.steps, high * k / self.steps
            scale = max(-a, b) / largest if scheme.symmetric else (b - a) / (largest - least)
            if scale == 0:
                break
            zero = 0.0 if scheme.symmetric else np.clip(least - np.rint(a / scale), least, largest)
            q = (np.clip(np.rint(x / scale) + zero, least, largest) - zero) * scale
            this = float(np.sum(count * (q - x) ** 2))
            if this < error:
                best, error = (a, b), this
        return best


@dataclass(frozen=True)
class Entropy(Observer):
    """Cover what loses the least information: Migacz, "8-bit inference with TensorRT", 2017.

    Of 2048 bins of magnitudes and each i from the number of levels on: P is the first i bins with all beyond
    added to the last, Q the first i bins as they are, in as many levels as there are codes >= 0 (128 of 8
    bits, 8 of 4), spread evenly over each level's bins that are not empty; the threshold is the upper end of
    the i bins with the least KL(P ‖ Q). Deviations: the bins reach to the power of two above the largest
    magnitude, not to that itself; where P has something and Q nothing, Q has 1e-12 of the elements (the
    source doesn't say); and a threshold clips no more than half of the elements.
    An affine grid is held to the same threshold at both ends.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt.quantization import Integer, calibrate
    >>> x = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    >>> scheme = Integer(per="tensor")
    >>> grids = [calibrate([{"x": x}], observer, scheme)["x"] for observer in (Entropy(), MinMax())]
    >>> grids[0].scale <= grids[1].scale
    True
    """

    def interval(self, seen: Histogram, scheme: Integer) -> tuple[float, float]:
        """Return the interval whose rounded distribution diverges least from what was seen."""
        counts = seen.magnitudes().reshape(-1, 2).sum(1).astype(np.float64)
        levels = scheme.range[1] + 1
        most = max(-seen.low, seen.high)
        last = int(np.flatnonzero(counts)[-1]) + 1
        best, least = last, math.inf
        below = np.cumsum(counts)
        for i in range(min(levels, last), last + 1):
            if 2 * below[i - 1] < below[-1]:
                continue  # of data away from 0, a threshold below nearly all of it: P and Q are one bin
            divergence = _divergence(counts, i, levels)
            if divergence < least:
                best, least = i, divergence
        threshold = min(best * 2 * seen.width, most)
        return max(seen.low, -threshold), min(seen.high, threshold)


def _divergence(counts: Any, i: int, levels: int) -> float:
    """KL(P ‖ Q) of the first ``i`` bins against the same in ``levels``."""
    inside = counts[:i]
    p = inside.copy()
    p[-1] += counts[i:].sum()
    level = np.arange(i) * levels // i
    filled = inside > 0
    total = np.bincount(level, weights=inside, minlength=levels)
    bins = np.bincount(level, weights=filled, minlength=levels)
    mean = total / np.maximum(bins, 1)
    q = np.where(filled, mean[level], 0.0)
    if q.sum() == 0:
        return math.inf
    p, q = p / p.sum(), q / q.sum()
    some = p > 0
    return float(np.sum(p[some] * np.log(p[some] / np.maximum(q[some], 1e-12))))


def _reached(counts: Any, fraction: float) -> int:
    """Return the first bin at which the running count reaches that fraction of all."""
    running = np.cumsum(counts)
    return int(np.searchsorted(running, fraction * running[-1]))


OBSERVERS: dict[str, type[Observer]] = {
    "entropy": Entropy,
    "min_max": MinMax,
    "mse": MSE,
    "percentile": Percentile,
}
"""The names that recipes use."""
