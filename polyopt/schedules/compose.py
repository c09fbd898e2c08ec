"""Schedules made of schedules: joined, warmed up, warm-up/stable/decay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from polyopt.core.errors import InputError
from polyopt.core.schedule import (
    Schedule,
    blend,
    choice,
    falling,
    for_traced_step,
    increasing,
    inner,
    level,
    number,
    unit,
)
from polyopt.schedules.cycle import Cosine


@dataclass(frozen=True)
class Joined(Schedule):
    """Follow ``schedules[i]`` from ``boundaries[i - 1]`` on, each counting from its own start (optax's).

    Parameters
    ----------
    schedules
        One more than there are boundaries.
    boundaries
        Numbers of updates, ascending, at which the next schedule takes over.

    Examples
    --------
    >>> from polyopt.schedules import Constant, Polynomial
    >>> s = Joined([Constant(1.0), Polynomial(1.0, steps=10)], boundaries=[100])
    >>> s(99), s(105), s(110)
    (1.0, 0.5, 0.0)
    """

    schedules: tuple[Schedule, ...]
    boundaries: tuple[int, ...] = number(low=0, whole=True, many=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        parts = self.schedules if isinstance(self.schedules, tuple | list) else (self.schedules,)
        checked = tuple(inner("Joined", f"schedules[{i}]", s) for i, s in enumerate(parts))
        object.__setattr__(self, "schedules", checked)
        increasing("Joined", "boundaries", self.boundaries)
        if len(checked) != len(self.boundaries) + 1:
            raise InputError(
                f"Joined: {len(checked)} schedules and {len(self.boundaries)} boundaries; "
                "expected one schedule more than boundaries"
            )

    def value(self, xp: Any, t: Any) -> Any:
        """Return the value of the schedule whose turn it is."""
        value = self.schedules[0].value(xp, t)
        for schedule, start in zip(self.schedules[1:], self.boundaries, strict=True):
            later = schedule.value(xp, xp.maximum(t - start, 0))
            value = xp.where(t >= start, later, value)
        return value


@dataclass(frozen=True)
class Warmup(Schedule):
    """Rise in a straight line from ``initial`` to where ``then`` starts, over ``steps`` updates.

    ``then`` follows. ``clock="own"``: ``then`` counts from the end of the warm-up (so does optax's and Keras'
    warm-up cosine; see ``WarmupCosine`` for how they count ``decay_steps``). ``clock="shared"``: ``then``
    counts from step 0 and the line multiplies it, from ``initial`` as a *fraction* up to 1 (torch's
    ``LinearLR`` chained to another).

    Parameters
    ----------
    then
        What follows the rise.
    steps
        Number of updates of the rise, at least 0.
    initial
        Where the rise starts: a value, or a fraction of ``then`` with ``clock="shared"``.
    clock
        ``"own"`` or ``"shared"``, as above.

    Examples
    --------
    >>> from polyopt.schedules import Constant
    >>> s = Warmup(Constant(1.0), steps=4)
    >>> [s(t) for t in range(6)]
    [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """

    then: Schedule
    steps: int = number(low=0, whole=True)
    initial: float = level(0.0)
    clock: str = choice("own", "own", "shared")

    def __post_init__(self) -> None:
        super().__post_init__()
        inner("Warmup", "then", self.then)

    def levels(self) -> Iterator[tuple[str, float]]:
        """Yield the levels, but for ``initial`` where it is a fraction."""
        fraction = self.clock == "shared"
        return (pair for pair in super().levels() if pair[0] != "initial" or not fraction)

    def extremes(self) -> Iterator[tuple[str, float, bool]]:
        """Yield the extremes; a fraction multiplies what ``then`` reaches."""
        for key, x, there in self.then.extremes():
            yield f"then.{key}", x, there
            if self.clock == "shared" and self.steps:
                yield f"initial times then.{key}", self.initial * x, there
        if self.clock == "own":
            yield "initial", self.initial, True

    def value(self, xp: Any, t: Any) -> Any:
        """Return the line's value, or that of ``then`` after it."""
        rise = unit(xp, t / self.steps) if self.steps else 1.0
        if self.clock == "shared":
            return self.then.value(xp, t) * blend(xp, 1.0, self.initial, rise)
        later = self.then.value(xp, xp.maximum(t - self.steps, 0))
        line = blend(xp, self.then.value(xp, 0.0 * t), self.initial, rise)
        return xp.where(t >= self.steps, later, line)


@dataclass(frozen=True)
class WarmupCosine(Schedule):
    """Rise linearly from ``initial`` to ``peak`` over ``warmup`` updates, then fall by a cosine to ``end``.

    ``convention="optax"``: ``steps`` (its ``decay_steps``) includes the warm-up. ``"keras"``: it excludes it.

    Parameters
    ----------
    peak
        The largest value.
    steps
        Number of updates until ``end`` is reached, at least 1; see ``convention``.
    warmup
        Number of updates of the rise, at least 0.
    initial
        The value at step 0.
    end
        The value after ``steps``, kept from there on.
    convention
        ``"optax"`` or ``"keras"``, as above.

    Examples
    --------
    >>> WarmupCosine(1.0, steps=110, warmup=10)(60)
    0.5
    >>> WarmupCosine(1.0, steps=100, warmup=10, convention="keras")(60)
    0.5
    """

    peak: float = level()
    steps: int = number(low=1, whole=True)
    warmup: int = number(low=0, whole=True)
    initial: float = level(0.0)
    end: float = level(0.0)
    convention: str = choice("optax", "optax", "keras")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.convention == "optax" and self.steps <= self.warmup:
            raise InputError(
                f"WarmupCosine: steps = {self.steps!r} includes warmup = {self.warmup!r} by optax's "
                'convention; expected more, or convention="keras"'
            )

    def value(self, xp: Any, t: Any) -> Any:
        """Return the rise's value, or the cosine's after it."""
        decay = self.steps - self.warmup if self.convention == "optax" else self.steps
        parts = Warmup(Cosine(self.peak, decay, end=self.end), int(self.warmup), self.initial)
        return for_traced_step(parts).value(xp, t)


@dataclass(frozen=True)
class WarmupStableDecay(Schedule):
    """Rise linearly to ``peak``, stay there, and decay to ``end`` (Hu et al., "MiniCPM", 2024).

    Parameters
    ----------
    peak
        The value of the plateau.
    warmup
        Number of updates of the rise, at least 0.
    stable
        Number of updates of the plateau, at least 0.
    decay
        Number of updates of the decay, at least 0.
    initial
        The value at step 0.
    end
        The value after the decay, kept from there on.
    shape
        Of the decay: ``"linear"``, ``"cosine"`` or ``"sqrt"`` (1 - √, Hägele et al., 2024).

    Examples
    --------
    >>> s = WarmupStableDecay(1.0, warmup=10, stable=80, decay=10)
    >>> s(5), s(50), s(95), s(100)
    (0.5, 1.0, 0.5, 0.0)
    """

    peak: float = level()
    warmup: int = number(low=0, whole=True)
    stable: int = number(low=0, whole=True)
    decay: int = number(low=0, whole=True)
    initial: float = level(0.0)
    end: float = level(0.0)
    shape: str = choice("linear", "linear", "cosine", "sqrt")

    def value(self, xp: Any, t: Any) -> Any:
        """Return the value of the rise and the plateau, or of the decay after them."""
        rise = unit(xp, t / self.warmup) if self.warmup else 1.0
        start = self.warmup + self.stable
        passed = unit(xp, (t - start) / self.decay) if self.decay else xp.where(t >= start, 1.0, 0.0)
        up = blend(xp, self.peak, self.initial, rise)
        down = blend(xp, self.peak, self.end, falling(xp, passed, self.shape))
        return xp.where(t >= start, down, up)
