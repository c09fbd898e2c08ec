"""Plan the batches of a run: the samples and arrays of each, and the position in the data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from polyopt.engine.batches import Batches, BatchSize, Buckets, DynamicSize, IndexSampler, Norms


@dataclass(frozen=True)
class Cursor:
    """Position of a run in its data: plain numbers, all of which a checkpoint has.

    ``step`` counts batches, ``position`` samples since the beginning, those that were left out too. ``noise``
    is the state of a ``DynamicSize``, empty where the size doesn't follow the noise.
    """

    step: int = 0
    position: int = 0
    noise: Mapping[str, float] = field(default_factory=dict)


class BatchPlan(ABC):
    """Plan the batches of a run.

    A plan says how large the batch at a place is and how many there are; the base class takes the samples in
    turn.
    """

    feed: IndexSampler

    @property
    def micro(self) -> int | None:
        """Return the number of samples in a micro-batch; ``None`` where a batch is one array."""
        return None

    @abstractmethod
    def size_at(self, place: Cursor) -> int:
        """Return the number of samples that the coming batch asks for; the end of a pass may cut it."""

    @abstractmethod
    def steps(self, epochs: int) -> int | None:
        """Return the number of batches in ``epochs`` passes; ``None`` where only the run will know."""

    @abstractmethod
    def epochs(self, steps: int) -> int | None:
        """Return the number of passes that ``steps`` batches begin; ``None`` likewise."""

    @abstractmethod
    def parts(self, rows: Any) -> list[tuple[Any, ...]]:
        """Cut a batch's rows into the arrays of its micro-batches, or into one.

        Each is ``(int32 row numbers,)`` where all count, else with float32 weights of 1 and 0 beside them.
        """

    def start(self) -> Cursor:
        """Return the beginning."""
        return Cursor()

    def rows(self, place: Cursor) -> Any:
        """Return the row numbers of the coming batch: a host array."""
        return self.feed.take(place.position, self.size_at(place))

    def after(self, place: Cursor, taken: int, norms: Norms | None = None) -> Cursor:
        """Return the place behind a batch of ``taken`` samples, whose gradients had ``norms``."""
        return Cursor(place.step + 1, place.position + taken)

    def epoch(self, place: Cursor) -> int:
        """Return the number of passes begun."""
        return -(-place.position // self.feed.samples)

    def ended(self, place: Cursor) -> int | None:
        """Return the number of passes done where the last batch ended one, else ``None``."""
        epochs, rest = divmod(place.position, self.feed.samples)
        return None if rest else epochs


@dataclass(frozen=True)
class FixedBatches(BatchPlan):
    """Batches of one size; the last one of a pass is smaller, or left out.

    >>> even = FixedBatches(IndexSampler(5, shuffle=False), 2)
    >>> even.steps(3), even.epochs(4), even.rows(Cursor(2, 4)).tolist(), even.after(Cursor(2, 4), 1).position
    (9, 2, [4], 5)
    >>> FixedBatches(IndexSampler(5), 2, drop_last=True).after(Cursor(1, 2), 2).position
    5
    """

    feed: IndexSampler
    size: int
    drop_last: bool = False

    @property
    def per_epoch(self) -> int:
        """Return the number of batches in an epoch."""
        n = self.feed.samples
        return n // self.size if self.drop_last else -(-n // self.size)

    def steps(self, epochs: int) -> int:
        """Return the number of batches in so many epochs."""
        return epochs * self.per_epoch

    def epochs(self, steps: int) -> int:
        """Return the number of epochs that so many batches begin."""
        return -(-steps // self.per_epoch)

    def size_at(self, place: Cursor) -> int:
        """Return the size, the same everywhere."""
        return self.size

    def parts(self, rows: Any) -> list[tuple[Any, ...]]:
        """Return the batch as one part."""
        # int32: a backend may have no int64 (JAX by default).
        return [(rows.astype("int32"),)]

    def after(self, place: Cursor, taken: int, norms: Norms | None = None) -> Cursor:
        """Return the next place, past what is too little for a batch where that is dropped."""
        position = place.position + taken
        left = -position % self.feed.samples
        return Cursor(place.step + 1, position + left if self.drop_last and left < self.size else position)

    def place(self, step: int) -> Cursor:
        """Return where the first ``step`` batches lead to."""
        epochs, i = divmod(step, self.per_epoch)
        return Cursor(step, epochs * self.feed.samples + i * self.size)

    def share(self, count: int, first: int, last: int) -> float:
        """Return ``count`` over the mean size of the batches from ``first`` up to, but without, ``last``."""
        n = self.feed.samples
        sizes = [min(self.size, n - self.place(step).position % n) for step in range(first, last)]
        return count * len(sizes) / sum(sizes)


@dataclass(frozen=True)
class ScheduledBatches(BatchPlan):
    """Batches whose sizes follow a schedule, padded to buckets, or made of micro-batches.

    >>> from polyopt.engine.batches import BatchSize
    >>> from polyopt.schedules import Step
    >>> feed, size = IndexSampler(7, shuffle=False), BatchSize(Step(2, steps=1, rate=2.0))
    >>> uneven = ScheduledBatches(feed, size, Buckets((4, 7)))
    >>> uneven.steps(2), uneven.epochs(4)
    (4, 2)
    >>> [x.tolist() for x in uneven.parts(uneven.rows(Cursor()))[0]]
    [[0, 1, 1, 1], [1.0, 1.0, 0.0, 0.0]]
    >>> by_three = ScheduledBatches(feed, size, Buckets((3,)), micro=3)
    >>> [counted.tolist() for _, counted in by_three.parts(by_three.rows(Cursor(1, 2)))]
    [[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]
    """

    feed: IndexSampler
    size: BatchSize
    buckets: Buckets
    micro: int | None = None

    def steps(self, epochs: int) -> int:
        """Return the number of batches in so many epochs."""
        return Batches(self.feed, self.size).steps(epochs)

    def epochs(self, steps: int) -> int:
        """Return the number of epochs that so many batches begin."""
        return -(-Batches(self.feed, self.size).position(steps) // self.feed.samples)

    def size_at(self, place: Cursor) -> int:
        """Return the size that the schedule has there."""
        return self.size(place.step)

    def parts(self, rows: Any) -> list[tuple[Any, ...]]:
        """Pad the batch to the size of a bucket."""
        return _padded(self.buckets, rows)


@dataclass(frozen=True)
class NoiseScaledBatches(BatchPlan):
    """Batches whose sizes follow the gradient noise scale, made of micro-batches.

    >>> size = DynamicSize(4, micro=2, maximum=16, decay=0.0)
    >>> adaptive = NoiseScaledBatches(IndexSampler(20, shuffle=False), size)
    >>> place = adaptive.after(adaptive.start(), 4, Norms(small=31.0, large=16.0, few=2, many=4))
    >>> place.step, place.position, adaptive.rows(place).tolist()
    (1, 4, [4, 5, 6, 7, 8, 9, 10, 11])
    >>> adaptive.steps(2) is None
    True
    """

    feed: IndexSampler
    size: DynamicSize

    @property
    def micro(self) -> int:
        """Return the size of a micro-batch."""
        return self.size.micro

    def steps(self, epochs: int) -> None:
        """Return None: only the run will know."""

    def epochs(self, steps: int) -> None:
        """Return None: only the run will know."""

    def start(self) -> Cursor:
        """Return the place before the first batch."""
        return Cursor(noise=self.size.init())

    def size_at(self, place: Cursor) -> int:
        """Return the size by the noise that was seen so far."""
        return self.size.value(place.noise)

    def parts(self, rows: Any) -> list[tuple[Any, ...]]:
        """Cut the batch into padded micro-batches."""
        return _padded(Buckets((self.micro,)), rows)

    def after(self, place: Cursor, taken: int, norms: Norms | None = None) -> Cursor:
        """Return the next place, with the noise that ``norms`` show."""
        return Cursor(place.step + 1, place.position + taken, self.size.observe(place.noise, norms))


def _padded(buckets: Buckets, rows: Any) -> list[tuple[Any, ...]]:
    """Pad the rows to the next bucket; more than the largest holds, one after the other."""
    most = buckets.sizes[-1]
    return [buckets.pad(rows[start : start + most]) for start in range(0, len(rows), most)]
