"""Plan the batches of a run: the samples and arrays of each, and the position in the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from polyopt.engine.batches import Batches, Buckets, DynamicSize, IndexSampler, Norms


@dataclass(frozen=True)
class Cursor:
    """Position of a run in its data: plain numbers, all of which a checkpoint has.

    ``step`` counts batches, ``position`` samples since the beginning, those that were left out too. ``noise``
    is the state of a ``DynamicSize``, empty where the size doesn't follow the noise.
    """

    step: int = 0
    position: int = 0
    noise: Mapping[str, float] = field(default_factory=dict)


class BatchPlan(Protocol):
    """The batches of a run."""

    @property
    def micro(self) -> int | None:
        """Samples in a micro-batch; ``None`` where a batch is one array."""

    def steps(self, epochs: int) -> int | None:
        """Batches in ``epochs`` passes; ``None`` where only the run will know."""

    def epochs(self, steps: int) -> int | None:
        """Passes that ``steps`` batches begin; ``None`` likewise."""

    def start(self) -> Cursor:
        """The beginning."""

    def rows(self, place: Cursor) -> Any:
        """Row numbers of the coming batch: a host array."""

    def parts(self, rows: Any) -> list[tuple[Any, ...]]:
        """Those of a batch as its arrays have them, one after the other where there are micro-batches.

        Each is ``(int32 row numbers,)`` where all count, else with float32 weights of 1 and 0 beside them.
        """

    def after(self, place: Cursor, taken: int, norms: Norms | None = None) -> Cursor:
        """The place behind a batch of ``taken`` samples, whose gradients had ``norms``."""

    def epoch(self, place: Cursor) -> int:
        """Passes begun."""

    def ended(self, place: Cursor) -> int | None:
        """Passes done, where the last batch ended one."""


@dataclass(frozen=True)
class FixedBatches:
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
    def micro(self) -> None:
        return None

    @property
    def per_epoch(self) -> int:
        n = self.feed.samples
        return n // self.size if self.drop_last else -(-n // self.size)

    def steps(self, epochs: int) -> int:
        return epochs * self.per_epoch

    def epochs(self, steps: int) -> int:
        return -(-steps // self.per_epoch)

    def start(self) -> Cursor:
        return Cursor()

    def rows(self, place: Cursor) -> Any:
        return self.feed.take(place.position, self.size)

    def parts(self, rows: Any) -> list[tuple[Any, ...]]:
        # int32: a backend may have no int64 (JAX by default).
        return [(rows.astype("int32"),)]

    def after(self, place: Cursor, taken: int, norms: Norms | None = None) -> Cursor:
        position = place.position + taken
        left = -position % self.feed.samples
        return Cursor(place.step + 1, position + left if self.drop_last and left < self.size else position)

    def place(self, step: int) -> Cursor:
        """Return where the first ``step`` batches lead to."""
        epochs, i = divmod(step, self.per_epoch)
        return Cursor(step, epochs * self.feed.samples + i * self.size)

    def epoch(self, place: Cursor) -> int:
        return _begun(self.feed, place)

    def ended(self, place: Cursor) -> int | None:
        return _done(self.feed, place)


@dataclass(frozen=True)
class ScheduledBatches:
    """Batches whose sizes follow a schedule, padded to buckets, or made of micro-batches.

    >>> from polyopt.engine.batches import BatchSize
    >>> from polyopt.schedules import Step
    >>> batches = Batches(IndexSampler(7, shuffle=False), BatchSize(Step(2, steps=1, rate=2.0)))
    >>> uneven = ScheduledBatches(batches, Buckets((4, 7)))
    >>> uneven.steps(2), uneven.epochs(4)
    (4, 2)
    >>> [x.tolist() for x in uneven.parts(uneven.rows(Cursor()))[0]]
    [[0, 1, 1, 1], [1.0, 1.0, 0.0, 0.0]]
    >>> by_three = ScheduledBatches(batches, Buckets((3,)), micro=3)
    >>> [counted.tolist() for _, counted in by_three.parts(by_three.rows(Cursor(1, 2)))]
    [[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]
    """

    batches: Batches
    buckets: Buckets
    micro: int | None = None

    @property
    def feed(self) -> IndexSampler:
        return self.batches.feed

    def steps(self, epochs: int) -> int:
        return self.batches.steps(epochs)

    def epochs(self, steps: int) -> int:
        return -(-self.batches.position(steps) // self.feed.samples)

    def start(self) -> Cursor:
        return Cursor()

    def rows(self, place: Cursor) -> Any:
        return self.feed.take(place.position, self.batches.size(place.step))

    def parts(self, rows: Any) -> list[tuple[Any, ...]]:
        return _padded(self.buckets, rows)

    def after(self, place: Cursor, taken: int, norms: Norms | None = None) -> Cursor:
        return Cursor(place.step + 1, place.position + taken)

    def epoch(self, place: Cursor) -> int:
        return _begun(self.feed, place)

    def ended(self, place: Cursor) -> int | None:
        return _done(self.feed, place)


@dataclass(frozen=True)
class NoiseScaledBatches:
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
        return self.size.micro

    def steps(self, epochs: int) -> None:
        return None

    def epochs(self, steps: int) -> None:
        return None

    def start(self) -> Cursor:
        return Cursor(noise=self.size.init())

    def rows(self, place: Cursor) -> Any:
        return self.feed.take(place.position, self.size.value(place.noise))

    def parts(self, rows: Any) -> list[tuple[Any, ...]]:
        return _padded(Buckets((self.micro,)), rows)

    def after(self, place: Cursor, taken: int, norms: Norms | None = None) -> Cursor:
        return Cursor(place.step + 1, place.position + taken, self.size.observe(place.noise, norms))

    def epoch(self, place: Cursor) -> int:
        return _begun(self.feed, place)

    def ended(self, place: Cursor) -> int | None:
        return _done(self.feed, place)


def _begun(feed: IndexSampler, place: Cursor) -> int:
    return -(-place.position // feed.samples)


def _done(feed: IndexSampler, place: Cursor) -> int | None:
    epochs, rest = divmod(place.position, feed.samples)
    return None if rest else epochs


def _padded(buckets: Buckets, rows: Any) -> list[tuple[Any, ...]]:
    """The rows padded to the next bucket; more than the largest holds, one after the other."""
    most = buckets.sizes[-1]
    return [buckets.pad(rows[start : start + most]) for start in range(0, len(rows), most)]
