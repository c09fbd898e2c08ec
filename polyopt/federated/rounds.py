"""The batches of federated training: round by round, one client after the other."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from polyopt.engine.batches import Buckets, IndexSampler
from polyopt.engine.batches.plan import BatchPlan, Cursor, FixedBatches
from polyopt.federated import participants


@dataclass(frozen=True)
class Local:
    """Amount of local training in a round: ``epochs`` passes over a client's samples or ``steps`` batches.

    ``size`` is that of a batch, ``None`` for all of a client's samples.
    """

    epochs: int | None = None
    steps: int | None = None
    size: int | None = None
    shuffle: bool = True
    drop_last: bool = False


@dataclass(frozen=True)
class Turn:
    """Whose batch it is, counted from 0; ``last`` where it is the client's last one in this round."""

    round: int
    client: int
    batch: int
    last: bool


class Rounds(BatchPlan):
    """Plan the batches of federated training: a round is what elsewhere is an epoch.

    All batches have one size, that of the largest: what lacks is padded with rows that don't count, so that
    one function is compiled for all clients.

    Parameters
    ----------
    rows
        Row numbers of each client's samples.
    local
        How each trains.
    fraction
        Of the clients that take part in a round.
    seed
        Decides which, and the order of their samples.

    Examples
    --------
    >>> import numpy as np
    >>> rounds = Rounds([np.array([4, 7]), np.array([1, 2, 3])], Local(epochs=1, size=2, shuffle=False))
    >>> rounds.steps(2), rounds.epochs(4), rounds.ended(Cursor(3)), rounds.ended(Cursor(4))
    (6, 2, 1, None)
    >>> [[x.tolist() for x in rounds.parts(rounds.rows(Cursor(step)))[0]] for step in range(3)]
    [[[4, 7], [1.0, 1.0]], [[1, 2], [1.0, 1.0]], [[3, 3], [1.0, 0.0]]]
    >>> rounds.turn(2)
    Turn(round=0, client=1, batch=1, last=True)
    """

    def __init__(self, rows: Sequence[Any], local: Local, fraction: float = 1.0, seed: int = 0) -> None:
        self.samples, self.local, self.fraction, self.seed = tuple(rows), local, fraction, seed
        self.batches = tuple(self._of(k, 0).steps(local.epochs or 1) for k in range(len(self.samples)))
        if local.steps is not None:
            self.batches = (local.steps,) * len(self.samples)
        largest = max(len(own) for own in self.samples)
        self._buckets = Buckets((min(local.size or largest, largest),))
        self._members: list[tuple[int, ...]] = []
        self._ends = [0]

    def steps(self, epochs: int) -> int:
        """Return how many steps the first ``epochs`` rounds have."""
        while len(self._ends) <= epochs:
            self._extend()
        return self._ends[epochs]

    def epochs(self, steps: int) -> int:
        """Return the number of rounds that are over, or being made, after ``steps``."""
        self._reach(steps)
        return bisect_left(self._ends, steps)

    def size_at(self, place: Cursor) -> int:
        """Return the size of the batches of the client whose turn it is."""
        turn = self.turn(place.step)
        return self._of(turn.client, turn.round).size

    def rows(self, place: Cursor) -> Any:
        """Return the numbers of the samples of the step at ``place``."""
        turn = self.turn(place.step)
        own = self._of(turn.client, turn.round)
        return self.samples[turn.client][own.rows(own.place(turn.batch))]

    def parts(self, rows: Any) -> list[tuple[Any, ...]]:
        """Pad a batch to the size of a bucket: one part."""
        return [self._buckets.pad(rows)]

    def epoch(self, place: Cursor) -> int:
        """Return the number of rounds that are over, or being made, at ``place``."""
        return self.epochs(place.step)

    def ended(self, place: Cursor) -> int | None:
        """Return the round that ends at ``place``, or None."""
        rounds = self.epochs(place.step)
        return rounds if self._ends[rounds] == place.step else None

    def turn(self, step: int) -> Turn:
        """Whose batch is the one after ``step`` batches."""
        self._reach(step + 1)
        round_ = bisect_right(self._ends, step) - 1
        members = self._members[round_]
        ends = list(accumulate(self.batches[k] for k in members))
        done = step - self._ends[round_]
        i = bisect_right(ends, done)
        client = members[i]
        return Turn(round_, client, done - ends[i] + self.batches[client], done + 1 == ends[i])

    def _of(self, client: int, round_: int) -> FixedBatches:
        """Return the batches of a client in a round, as places among its samples."""
        count, local = len(self.samples[client]), self.local
        feed = IndexSampler(count, self.seed, local.shuffle, f"client {client}, round {round_}")
        return FixedBatches(feed, min(local.size or count, count), local.drop_last)

    def _reach(self, step: int) -> None:
        while self._ends[-1] < step:
            self._extend()

    def _extend(self) -> None:
        members = participants(len(self.samples), self.fraction, len(self._members), seed=self.seed)
        self._members.append(members)
        self._ends.append(self._ends[-1] + sum(self.batches[k] for k in members))
