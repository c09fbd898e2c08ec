"""Which samples each batch of a run takes, and where passes over the data end."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any, Protocol

from polyopt.batch_size import Batches, Buckets, Feed


class Course(Protocol):
    """The batches of a run: a function of the recipe and the number of samples alone."""

    def steps(self, epochs: int) -> int:
        """Batches in ``epochs`` passes."""

    def epoch(self, step: int) -> int:
        """Passes that the first ``step`` batches have begun."""

    def ended(self, step: int) -> int | None:
        """Passes done after ``step`` batches, where the last of them ended one."""

    def rows(self, step: int) -> tuple[Any, Any]:
        """Row numbers of the batch after ``step``, an int32 host array, and what counts of them.

        ``None`` where all do, else float32 weights of 1 and 0, of that shape.
        """


@dataclass(frozen=True)
class Even:
    """Batches of one size; the last one of a pass is smaller, or left out.

    >>> even = Even(Feed(5, shuffle=False), 2)
    >>> even.steps(3), even.epoch(4), even.ended(6), even.rows(2)[0].tolist()
    (9, 2, 2, [4])
    """

    feed: Feed
    size: int
    drop_last: bool = False

    @property
    def per_epoch(self) -> int:
        n = self.feed.samples
        return n // self.size if self.drop_last else -(-n // self.size)

    def steps(self, epochs: int) -> int:
        return epochs * self.per_epoch

    def epoch(self, step: int) -> int:
        return -(-step // self.per_epoch)

    def ended(self, step: int) -> int | None:
        epochs, rest = divmod(step, self.per_epoch)
        return None if rest else epochs

    def rows(self, step: int) -> tuple[Any, Any]:
        epoch, i = divmod(step, self.per_epoch)
        # int32: a backend may have no int64 (JAX by default).
        return self.feed.take(epoch * self.feed.samples + i * self.size, self.size).astype("int32"), None


class Uneven:
    """Batches whose sizes follow a schedule, padded to buckets.

    >>> from polyopt.batch_size import BatchSize
    >>> from polyopt.schedules import Step
    >>> size = BatchSize(Step(2, steps=1, rate=2.0))
    >>> uneven = Uneven(Batches(Feed(7, shuffle=False), size), Buckets((4, 7)))
    >>> uneven.steps(2), uneven.epoch(4), uneven.ended(3), uneven.ended(1)
    (4, 2, 1, None)
    >>> [x.tolist() for x in uneven.rows(0)]
    [[0, 1, 1, 1], [1.0, 1.0, 0.0, 0.0]]
    """

    def __init__(self, batches: Batches, buckets: Buckets) -> None:
        self.batches, self.buckets = batches, buckets
        # Samples taken before each batch, as far as was asked for: each anew it would take a pass over all.
        self._positions = [0]

    def steps(self, epochs: int) -> int:
        end = epochs * self.batches.feed.samples
        while self._positions[-1] < end:
            self._extend()
        return bisect_left(self._positions, end)

    def epoch(self, step: int) -> int:
        return -(-self._position(step) // self.batches.feed.samples)

    def ended(self, step: int) -> int | None:
        epochs, rest = divmod(self._position(step), self.batches.feed.samples)
        return None if rest else epochs

    def rows(self, step: int) -> tuple[Any, Any]:
        return self.buckets.pad(self.batches.feed.take(self._position(step), self.batches.size(step)))

    def _position(self, step: int) -> int:
        while len(self._positions) <= step:
            self._extend()
        return self._positions[step]

    def _extend(self) -> None:
        known = self._positions
        known.append(self.batches.after(known[-1], len(known) - 1))
