"""Find arrays that share memory: by their bounds, and element for element where the bounds meet."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from polyopt.backend.host.array_table import ADDRESS, SIZE


class Extent(NamedTuple):
    """Bounds of an array's memory, first byte and the one after the last, and why it can't be written."""

    start: int
    stop: int
    fault: str = ""
    fixed: bool = False
    """True if it is read-only: it is never written, a new array takes its place."""


FOLDED = "has elements that share their memory (it is expanded, or a window over another array)"
"""A fault."""


class _Placed:
    """Describe an address, a shape and strides to NumPy, which makes an array of them without reading it."""

    def __init__(self, address: int, shape: Sequence[int], strides: Sequence[int], itemsize: int) -> None:
        self.__array_interface__ = {
            "version": 3,
            "shape": tuple(shape),
            "strides": tuple(strides),
            "typestr": f"|V{itemsize}",
            "data": (address, False),
        }


def placed(address: int, shape: Sequence[int], strides: Sequence[int], itemsize: int) -> Any:
    """Stand in for an array of any device: a host array with its elements at these addresses, never read."""
    return np.asarray(_Placed(address, shape, strides, itemsize))


def folds(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> bool:
    """Return True if two elements share a byte; ``strides`` are in bytes.

    >>> folds((3,), (0,), 4), folds((2, 3), (12, 4), 4), folds((4, 2), (4, 4), 4)
    (True, False, True)
    """
    if 0 in shape:
        return False
    axes = sorted((abs(stride), n) for n, stride in zip(shape, strides, strict=True) if n > 1)
    reach = itemsize  # bytes from the first element's beginning to the last one's end, so far
    apart = True
    for stride, n in axes:
        apart = apart and stride >= reach
        reach += stride * (n - 1)
    if apart:
        return False
    if math.prod(shape) * itemsize > reach:
        return True
    places = np.zeros(1, np.int64)
    for stride, n in axes:
        places = np.add.outer(places, stride * np.arange(n)).ravel()
    return bool((np.diff(np.sort(places)) < itemsize).any())


class Intervals:
    """Hold intervals ``[start, stop)`` of addresses, sorted, without those that are empty."""

    def __init__(self, starts: Any, stops: Any) -> None:
        some = np.argsort(starts)
        some = some[starts[some] < stops[some]]
        self._starts, stops = starts[some], stops[some]
        self.apart = not (self._starts[1:] < stops[:-1]).any()
        """True if no two of them meet."""
        self._stops = np.concatenate([[np.iinfo(np.int64).min], stops])

    def meet(self, starts: Any, stops: Any) -> bool:
        """Return True if one of these meets one of the others, which are ``apart``."""
        before = self._starts.searchsorted(stops)  # how many start before each one ends
        return bool(((self._stops[before] > starts) & (stops > starts)).any())


def disjoint(targets: Any, others: Any) -> bool:
    """Return True if no interval ``[start, stop)`` of ``targets`` meets another one or one of ``others``.

    >>> disjoint([(0, 4), (8, 12)], [(4, 8)]), disjoint([(0, 4)], [(3, 5)])
    (True, False)
    """
    mine, theirs = (np.array(x, np.int64).reshape(-1, 2).T for x in (targets, others))
    intervals = Intervals(*mine)
    return intervals.apart and not intervals.meet(*theirs)


def apart(extents: Sequence[Extent] | None, written: int) -> bool:
    """Return True if the first ``written`` arrays meet no other and have no fault."""
    if extents is None:
        return True
    if any(x.fault for x in extents[:written]):
        return False
    bounds = [(x.start, x.stop) for x in extents]
    return disjoint(bounds[:written], bounds[written:])


class NoOverlap:
    """True if arrays that are written share memory with no other; they are mostly where they were before.

    For tables of arrays of the same sizes.

    Parameters
    ----------
    written, read
        Pairs: a row in the table, and the bytes of an element.
    facts
        The table.
    """

    def __init__(self, written: list[tuple[int, int]], read: list[tuple[int, int]], facts: Any) -> None:
        rows, widths = np.array([*written, *read], np.int64).reshape(-1, 2).T
        self._rows, self._wrote = rows, len(written)
        self._bytes = facts[rows, :, SIZE] * widths[:, None]
        self._last: Any = None
        self._joined = False

    @staticmethod
    def join(several: Sequence[NoOverlap]) -> None:
        """Hold what each reads against what any of them writes.

        They are apart as they are now. Where what is written lies elsewhere at a later call, it is ``False``.
        """
        bounds = [(x._last.ravel(), (x._last + x._bytes[: x._wrote]).ravel()) for x in several]
        starts, stops = (np.concatenate(x) for x in zip(*bounds, strict=True))
        together = Intervals(starts, stops)
        for x in several:
            x._intervals, x._joined = together, True

    def __call__(self, facts: Any) -> bool:
        """Return True if what is written meets nothing else, by the addresses in ``facts``."""
        starts = facts[self._rows, :, ADDRESS]
        mine, theirs = starts[: self._wrote], starts[self._wrote :]
        if self._last is None or not np.array_equal(mine, self._last):
            if self._joined:
                return False
            self._last = mine
            self._intervals = Intervals(mine.ravel(), (mine + self._bytes[: self._wrote]).ravel())
        return self._intervals.apart and not self._intervals.meet(theirs, theirs + self._bytes[self._wrote :])


def meeting(extents: Sequence[Extent], written: int) -> Iterator[tuple[int, int]]:
    """Give the pairs whose bounds meet, of which one is among the first ``written``; the smaller index first.

    >>> list(meeting([Extent(0, 8), Extent(8, 16), Extent(4, 9), Extent(5, 6)], 2))
    [(0, 2), (0, 3), (1, 2)]
    """
    if disjoint([x[:2] for x in extents[:written]], [x[:2] for x in extents[written:]]):
        return
    order = sorted((x.start, x.stop, i) for i, x in enumerate(extents) if x.start < x.stop)
    found: list[tuple[int, int]] = []
    open_: list[tuple[int, int]] = []
    for start, stop, i in order:
        open_ = [(end, j) for end, j in open_ if end > start]
        found += [(min(i, j), max(i, j)) for _, j in open_ if min(i, j) < written]
        open_.append((stop, i))
    yield from sorted(found)


def share(x: Any, y: Any) -> bool:
    """Return True if an element of ``x`` has a byte of ``y``, or if that is too hard to tell."""
    try:
        return bool(np.shares_memory(x, y, max_work=1 << 20))  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True
