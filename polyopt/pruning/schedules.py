"""Sparsity over time: at once, gradually, or round by round.

A ``SparsitySchedule`` is a ``Schedule`` of the number of updates made, which
also says after which of them weights are pruned.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from polyopt.core.errors import InputError
from polyopt.core.schedule import level, number
from polyopt.schedules import Polynomial, Schedule


@dataclass(frozen=True)
class SparsitySchedule(Schedule):
    """Give a sparsity in [0, 1) for every step, and the steps at which it is brought about: abstract."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, x in self.levels():
            if x >= 1:
                raise InputError(f"{type(self).__name__}: {name} = {x!r}; expected a number in [0, 1)")

    @abstractmethod
    def due(self, step: int) -> bool:
        """Return True if weights are pruned after ``step`` updates (0: before the first).

        Parameters
        ----------
        step
            The number of updates made.

        Returns
        -------
        bool
            True at the steps at which ``prune`` does something.
        """

    @property
    @abstractmethod
    def last(self) -> int:
        """Return the number of updates after which weights are pruned for the last time."""


@dataclass(frozen=True)
class OneShot(SparsitySchedule):
    """Prune all at once, after ``at`` updates.

    Parameters
    ----------
    sparsity
        In [0, 1).
    at
        The number of updates before.

    Examples
    --------
    >>> schedule = OneShot(0.8, at=100)
    >>> schedule(99), schedule(100), schedule.due(100), schedule.due(101)
    (0.0, 0.8, True, False)
    """

    sparsity: float = level(low=0.0, high=1.0)
    at: int = number(0, low=0, whole=True)

    def value(self, xp: Any, t: Any) -> Any:
        """Return 0 before ``at`` updates, then ``sparsity``."""
        return xp.where(t >= self.at, self.sparsity, 0.0)

    def due(self, step: int) -> bool:
        """Return True after ``at`` updates, and no others."""
        return step == self.at

    @property
    def last(self) -> int:
        """Return the step after which nothing more is pruned."""
        return self.at


@dataclass(frozen=True)
class Gradual(SparsitySchedule):
    """Prune from ``initial`` to ``end`` over ``steps`` updates, fast at first: Zhu & Gupta, 2017, eq. 1.

    ``s_t = s_f + (s_i - s_f)·(1 - (t - t_0)/(n·Δt))^3``, pruned at t_0, t_0 + Δt, … t_0 + n·Δt.

    Parameters
    ----------
    end
        s_f, in [0, 1).
    steps
        n·Δt, a multiple of ``every``.
    every
        Δt: the number of updates between two prunings.
    start
        t_0: the number of updates before the first one.
    initial
        s_i; before ``start`` the sparsity is 0.
    power
        3 in the paper; 1 is linear.

    Examples
    --------
    >>> schedule = Gradual(0.8, steps=100, every=50, start=10)
    >>> [schedule(t) for t in (0, 10, 60, 110, 999)], [t for t in range(200) if schedule.due(t)]
    ([0.0, 0.0, 0.7000000000000001, 0.8, 0.8], [10, 60, 110])
    """

    end: float = level(low=0.0, high=1.0)
    steps: int = number(low=1, whole=True)
    every: int = number(1, low=1, whole=True)
    start: int = number(0, low=0, whole=True)
    initial: float = level(0.0, low=0.0, high=1.0)
    power: float = number(3.0, low=0.0, open_low=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps % self.every:
            raise InputError(
                f"Gradual: steps = {self.steps}; expected a multiple of every = {self.every}, so that the "
                "last pruning reaches the end"
            )
        if self.initial > self.end:
            raise InputError(f"Gradual: initial = {self.initial!r} is above end = {self.end!r}")

    def value(self, xp: Any, t: Any) -> Any:
        """Return s_t of the formula; 0 before ``start``."""
        curve = Polynomial(self.initial, steps=self.steps, power=self.power, end=self.end)
        return xp.where(t >= self.start, curve.value(xp, xp.maximum(t - self.start, 0.0)), 0.0)

    def due(self, step: int) -> bool:
        """Return True at t_0, t_0 + Δt, … t_0 + n·Δt."""
        return 0 <= step - self.start <= self.steps and (step - self.start) % self.every == 0

    @property
    def last(self) -> int:
        """Return the step of the last pruning, t_0 + n·Δt."""
        return self.start + self.steps


@dataclass(frozen=True)
class Iterative(SparsitySchedule):
    """Prune in ``rounds`` of ``every`` updates, after each of which the same share of what is left goes.

    After round r the sparsity is ``1 - (1 - end)^(r/rounds)``: each prunes ``1 - (1 - end)^(1/rounds)`` of
    the weights that are left (Frankle & Carbin, 2019, section 2, with 20 % a round).

    Parameters
    ----------
    end
        The last sparsity, in [0, 1).
    rounds
        How many there are.
    every
        The number of updates in each.

    Examples
    --------
    >>> schedule = Iterative(0.75, rounds=2, every=100)
    >>> [schedule(t) for t in (0, 100, 200, 900)], schedule.of_round(1)
    ([0.0, 0.5, 0.75, 0.75], 0.5)
    """

    end: float = level(low=0.0, high=1.0)
    rounds: int = number(low=1, whole=True)
    every: int = number(1, low=1, whole=True)

    def value(self, xp: Any, t: Any) -> Any:
        """Return the sparsity of the rounds that are over."""
        done = xp.minimum(xp.floor(t / self.every), float(self.rounds))
        part = 1.0 - xp.pow(1.0 - self.end, done / self.rounds)
        return xp.where(done >= self.rounds, self.end, part)

    def due(self, step: int) -> bool:
        """Return True after each round."""
        return 0 < step <= self.last and step % self.every == 0

    @property
    def last(self) -> int:
        """Return the step at which the last round ends."""
        return self.rounds * self.every

    def of_round(self, number: int) -> float:
        """Return the sparsity after that many rounds.

        Parameters
        ----------
        number
            How many rounds.

        Returns
        -------
        float
            In [0, 1).
        """
        return self(number * self.every)


SPARSITY_SCHEDULES: dict[str, type[SparsitySchedule]] = {
    "gradual": Gradual,
    "iterative": Iterative,
    "one_shot": OneShot,
}
"""The names that recipes use."""
