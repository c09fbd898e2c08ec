"""Find arrays that share memory: by their bounds, and element for element where the bounds meet."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np


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
    """What NumPy makes an array of that is never read."""

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


def disjoint(targets: Any, others: Any) -> bool:
    """Return True if no interval ``[start, stop)`` of ``targets`` meets another one or one of ``others``.

    >>> disjoint([(0, 4), (8, 12)], [(4, 8)]), disjoint([(0, 4)], [(3, 5)])
    (True, False)
    """
    mine, theirs = (np.array(x, np.int64).reshape(-1, 2) for x in (targets, others))
    mine = mine[mine[:, 0] < mine[:, 1]]
    theirs = theirs[theirs[:, 0] < theirs[:, 1]]
    mine = mine[np.argsort(mine[:, 0])]
    if (mine[1:, 0] < mine[:-1, 1]).any():
        return False
    before = np.searchsorted(mine[:, 0], theirs[:, 1])  # the targets that start before each one ends
    return not (mine[before - 1, 1] > theirs[:, 0])[before > 0].any() if len(mine) else True


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
