"""Find out if arrays that are written to share memory with others."""

from __future__ import annotations

from typing import Any

import numpy as np

from polyopt.backend.host.array_table import ADDRESS, SIZE


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

    def __call__(self, facts: Any) -> bool:
        """Look at the addresses in ``facts``."""
        starts = facts[self._rows, :, ADDRESS]
        mine, theirs = starts[: self._wrote], starts[self._wrote :]
        if self._last is None or not np.array_equal(mine, self._last):
            self._last = mine
            self._intervals = Intervals(mine.ravel(), (mine + self._bytes[: self._wrote]).ravel())
        return self._intervals.apart and not self._intervals.meet(theirs, theirs + self._bytes[self._wrote :])
