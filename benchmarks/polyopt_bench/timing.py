"""Interleaved timing: everyone's turn comes again and again, so what slows the machine slows all alike."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from time import perf_counter

TURN = 5e-3
"""Seconds that one turn should take at the least: a short step is made several times in a row."""
LONG = 20e-3
"""Seconds from which on a step needs no untimed one before it: it has outgrown every cache."""


@dataclass(frozen=True)
class Effort:
    """Limit a measurement: ``rounds`` of turns, but no fewer than ``least`` once ``seconds`` are over."""

    rounds: int = 21
    least: int = 9
    seconds: float = 2.5


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of some values, at least one.

        Examples
        --------
        >>> Spread.of([3.0, 1.0, 2.0])
        Spread(median=2.0, low=1.5, high=2.5)
        """
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, _, high = quantiles(values, n=4, method="inclusive")
        return cls(median(values), low, high)


def interleaved(
    steps: Mapping[str, Callable[[], object]],
    effort: Effort,
    clock: Callable[[], float] = perf_counter,
) -> dict[str, list[float]]:
    """Seconds a step, for each of ``steps`` one value a round.

    Every step is first made twice untimed. Who begins changes from round to round. A turn begins with an
    untimed step where steps are short, because the one before has filled the caches with its own arrays.
    """
    repeats: dict[str, int] = {}
    warmed: dict[str, bool] = {}
    for name, step in steps.items():
        step()
        start = clock()
        step()
        once = max(clock() - start, 1e-9)
        repeats[name] = max(1, min(200, math.ceil(TURN / once)))
        warmed[name] = once < LONG
    samples: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        begun = clock()
        for turn in range(effort.rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                step = steps[name]
                if warmed[name]:
                    step()
                start = clock()
                for _ in range(repeats[name]):
                    step()
                samples[name].append((clock() - start) / repeats[name])
            if turn + 1 >= effort.least and clock() - begun > effort.seconds:
                break
    finally:
        if enabled:
            gc.enable()
    return samples


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Return the spread of the ratios of each round: what changes between rounds cancels out.

    Examples
    --------
    >>> ratio([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]).median
    0.5
    """
    return Spread.of([a / b for a, b in zip(ours, theirs, strict=True)])
