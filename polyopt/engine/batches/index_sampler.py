"""Choose the samples of each update from the seed and the position alone.

Each epoch takes every sample once, in an order of its own; its last batch is short rather than dropped.
Nothing is kept that a run would have to save but a number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from polyopt.core import random
from polyopt.core.errors import InputError
from polyopt.engine.batches.sizes import BatchSize


@dataclass(frozen=True)
class IndexSampler:
    """Line up samples without end, epoch after epoch, from which batches of any size are taken.

    A *position* is the number of samples taken since the beginning: all that a run must save.

    Parameters
    ----------
    samples
        Number of samples in the data set.
    seed
        Of the orders; epoch e has that of ``polyopt.core.random.permutation(samples, seed, name, e)``.
    shuffle
        ``False`` takes them as they stand.
    name
        Of the draws, where one seed serves several feeds.

    Examples
    --------
    >>> feed = IndexSampler(5, shuffle=False)
    >>> feed.take(0, 3).tolist(), feed.take(3, 3).tolist(), feed.take(5, 3).tolist()
    ([0, 1, 2], [3, 4], [0, 1, 2])
    >>> sorted(int(i) for position in (0, 2, 4) for i in IndexSampler(5, seed=1).take(position, 2))
    [0, 1, 2, 3, 4]
    """

    samples: int
    seed: int = 0
    shuffle: bool = True
    name: str = "shuffle"

    def __post_init__(self) -> None:
        if isinstance(self.samples, bool) or not isinstance(self.samples, int) or self.samples < 1:
            raise InputError(f"Feed: samples = {self.samples!r}; expected an integer >= 1")

    def take(self, position: int, size: int) -> Any:
        """Return the indices from ``position`` on: ``size`` of them, or as many as the epoch has left.

        The next position is ``position + len(indices)``.

        Parameters
        ----------
        position
            The samples taken so far, in all epochs.
        size
            How many, at least 1.

        Returns
        -------
        array
            int64, on the host.
        """
        if position < 0 or size < 1:
            raise InputError(f"Feed: position = {position!r}, size = {size!r}; expected >= 0 and >= 1")
        epoch, start = divmod(position, self.samples)
        order = _order(self.samples, self.seed, self.name, epoch if self.shuffle else -1)
        return order[start : start + size].copy()

    def epoch(self, position: int) -> int:
        """Return the epoch, from 0, that ``position`` lies in.

        Parameters
        ----------
        position
            The samples taken so far, in all epochs.

        Returns
        -------
        int
            The epoch.
        """
        return position // self.samples


@dataclass(frozen=True)
class Batches:
    """Make index batches whose sizes follow a schedule: a pure function of (seed, step).

    Parameters
    ----------
    feed
        Where the samples come from.
    size
        How many an update takes; the last batch of an epoch may have fewer.

    Examples
    --------
    >>> from polyopt.schedules import Step
    >>> batches = Batches(IndexSampler(10, shuffle=False), BatchSize(Step(2, steps=2, rate=2.0)))
    >>> [batch.tolist() for _, batch in zip(range(4), batches.start())]
    [[0, 1], [2, 3], [4, 5, 6, 7], [8, 9]]
    >>> batches.batch(2).tolist(), next(batches.start(2)).tolist()
    ([4, 5, 6, 7], [4, 5, 6, 7])
    >>> batches.steps(epochs=1), batches.position(4), batches.epoch(4)
    (4, 10, 1)
    """

    feed: IndexSampler
    size: BatchSize

    def start(self, step: int = 0) -> Iterator[Any]:
        """Yield the batches from ``step`` on, without end.

        Parameters
        ----------
        step
            The number of updates made.

        Yields
        ------
        array
            int64, on the host, of shape (size,).
        """
        position = self.position(step)
        while True:
            batch = self.feed.take(position, self.size(step))
            yield batch
            position, step = position + len(batch), step + 1

    def batch(self, step: int) -> Any:
        """Return the batch of the update after ``step`` were made.

        Parameters
        ----------
        step
            The number of updates made.

        Returns
        -------
        array
            int64, on the host, of shape (size,).
        """
        return self.feed.take(self.position(step), self.size(step))

    def position(self, step: int) -> int:
        """Return how many samples the first ``step`` updates take.

        It counts them, in time proportional to step.

        Parameters
        ----------
        step
            The number of updates.

        Returns
        -------
        int
            The number of samples.
        """
        if step < 0:
            raise InputError(f"Batches: step = {step!r}; expected an integer >= 0")
        position = 0
        for t in range(step):
            position = self.after(position, t)
        return position

    def after(self, position: int, step: int) -> int:
        """Return the position behind the batch at ``position`` that is taken after ``step`` updates.

        Parameters
        ----------
        position
            The samples taken so far.
        step
            The number of updates made.

        Returns
        -------
        int
            The next position.
        """
        return position + min(self.size(step), self.feed.samples - position % self.feed.samples)

    def epoch(self, step: int) -> int:
        """Return the epoch, from 0, that the update after ``step`` were made belongs to.

        Parameters
        ----------
        step
            The number of updates made.

        Returns
        -------
        int
            The epoch.
        """
        return self.feed.epoch(self.position(step))

    def steps(self, epochs: int) -> int:
        """Return how many updates the first ``epochs`` take: what schedules of the rate want to know.

        Parameters
        ----------
        epochs
            The number of epochs.

        Returns
        -------
        int
            The number of updates.
        """
        position = step = 0
        while position < epochs * self.feed.samples:
            position, step = self.after(position, step), step + 1
        return step


@lru_cache(maxsize=4)
def _order(samples: int, seed: int, name: str, epoch: int) -> Any:
    """Return the order of an epoch, not to be changed; -1: as they stand."""
    import numpy as np

    order = np.arange(samples) if epoch < 0 else random.permutation(samples, seed, name, epoch)
    order.setflags(write=False)
    return order
