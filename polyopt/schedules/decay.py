"""Schedules that go one way: constant, exponential, step, polynomial, inverse time, piecewise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from polyopt.core.errors import InputError
from polyopt.core.schedule import Schedule, blend, choice, increasing, level, number, unit


@dataclass(frozen=True)
class Constant(Schedule):
    """Keep ``initial`` at every step.

    Parameters
    ----------
    initial
        The value.

    Examples
    --------
    >>> Constant(0.1)(1000)
    0.1
    """

    initial: float = level()

    def value(self, xp: Any, t: Any) -> Any:
        """Return ``initial``."""
        return self.initial + 0.0 * t


@dataclass(frozen=True)
class Exponential(Schedule):
    """Decay as ``initial · rate^(t / steps)``.

    torch's ``ExponentialLR`` has ``steps=1``; optax and Keras name them ``transition_steps`` and
    ``decay_steps``.

    Parameters
    ----------
    initial
        The value at step 0.
    rate
        What the value is multiplied by in ``steps`` updates, above 0.
    steps
        Number of updates, above 0.
    staircase
        Round the exponent down.
    end
        Where the decay stops (or the growth, where ``rate > 1``), as in optax; ``None``: nowhere.

    Examples
    --------
    >>> Exponential(1.0, rate=0.5, steps=10)(20)
    0.25
    """

    initial: float = level()
    rate: float = number(low=0.0, open_low=True)
    steps: float = number(1, low=0.0, open_low=True)
    staircase: bool = choice(False, False, True)
    end: float | None = level(None, optional=True)

    def extremes(self) -> Iterator[tuple[str, float, bool]]:
        """Yield the extremes of the fields, and 0 or infinity where ``end`` doesn't stop it."""
        yield from super().extremes()
        if self.rate != 1 and not (self.end is not None and self._shrinks == (self.rate < 1)):
            yield "rate", 0.0 if self.rate < 1 else math.copysign(math.inf, self.initial), False

    @property
    def _shrinks(self) -> bool:
        return (self.rate <= 1) == (self.initial >= 0)

    def value(self, xp: Any, t: Any) -> Any:
        """Return ``initial · rate^(t / steps)``, held at ``end``."""
        exponent = t / self.steps
        if self.staircase:
            exponent = xp.floor(exponent)
        value = self.initial * xp.pow(self.rate, exponent)
        if self.end is None:
            return value
        return (xp.maximum if self._shrinks else xp.minimum)(value, self.end)


@dataclass(frozen=True)
class Step(Schedule):
    """Decay as ``initial · rate^floor(t / steps)``: torch's ``StepLR``.

    Parameters
    ----------
    initial
        The value at step 0.
    steps
        Number of updates between two decays, at least 1.
    rate
        What the value is multiplied by at each, at least 0.

    Examples
    --------
    >>> Step(1.0, rate=0.5, steps=10)(19)
    0.5
    """

    initial: float = level()
    steps: int = number(low=1, whole=True)
    rate: float = number(0.1, low=0.0)

    def extremes(self) -> Iterator[tuple[str, float, bool]]:
        """Yield the extremes of the fields, and what it comes to in the long run."""
        yield from super().extremes()
        if self.rate != 1:
            far = 0.0 if self.rate < 1 else math.copysign(math.inf, self.initial)
            yield "rate", far, self.rate == 0

    def value(self, xp: Any, t: Any) -> Any:
        """Return ``initial · rate^floor(t / steps)``."""
        return self.initial * xp.pow(self.rate, xp.floor(t / self.steps))


@dataclass(frozen=True)
class MultiStep(Schedule):
    """Decay to ``initial · rate^k`` from the k-th of ``milestones`` on: torch's ``MultiStepLR``.

    A milestone that is listed twice counts twice.

    Parameters
    ----------
    initial
        The value at step 0.
    milestones
        Numbers of updates after which the value is multiplied by ``rate``.
    rate
        The factor, at least 0.

    Examples
    --------
    >>> MultiStep(1.0, milestones=[5, 8], rate=0.5)(5)
    0.5
    """

    initial: float = level()
    milestones: tuple[int, ...] = number(low=0, whole=True, many=True)
    rate: float = number(0.1, low=0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        increasing("MultiStep", "milestones", self.milestones)

    def extremes(self) -> Iterator[tuple[str, float, bool]]:
        """Yield the extremes of the fields, and the value after the last milestone."""
        yield from super().extremes()
        yield "rate", self.initial * self.rate ** len(self.milestones), True

    def value(self, xp: Any, t: Any) -> Any:
        """Return ``initial · rate^k`` after k milestones."""
        passed = 0.0 * t
        for milestone in self.milestones:
            passed = passed + xp.where(t >= milestone, 1.0, 0.0)
        return self.initial * xp.pow(self.rate, passed)


@dataclass(frozen=True)
class Polynomial(Schedule):
    """Go as ``initial · (1 - t/steps)^power`` down (or up) to ``end``, which it keeps after ``steps``.

    With ``end``: ``(initial - end) · (1 - t/steps)^power + end``, as in optax and Keras. Linear by default.

    Parameters
    ----------
    initial
        The value at step 0.
    steps
        Number of updates until ``end``, above 0.
    power
        The exponent, above 0.
    end
        The last value.

    Examples
    --------
    >>> Polynomial(1.0, steps=10, power=2.0)(5)
    0.25
    """

    initial: float = level()
    steps: float = number(low=0.0, open_low=True)
    power: float = number(1.0, low=0.0, open_low=True)
    end: float = level(0.0)

    def value(self, xp: Any, t: Any) -> Any:
        """Return ``(initial - end) · (1 - t/steps)^power + end``."""
        left = 1.0 - unit(xp, t / self.steps)
        weight = left if self.power == 1 else xp.pow(left, self.power)
        return blend(xp, self.initial, self.end, weight)


@dataclass(frozen=True)
class InverseTime(Schedule):
    """Decay as ``initial / (1 + rate · t / steps)``: Keras' ``InverseTimeDecay``.

    Parameters
    ----------
    initial
        The value at step 0.
    rate
        How fast, at least 0.
    steps
        Number of updates in which the divisor grows by ``rate``, above 0.
    staircase
        Round ``t / steps`` down.

    Examples
    --------
    >>> InverseTime(1.0, rate=0.5)(2)
    0.5
    """

    initial: float = level()
    rate: float = number(low=0.0)
    steps: float = number(1, low=0.0, open_low=True)
    staircase: bool = choice(False, False, True)

    def extremes(self) -> Iterator[tuple[str, float, bool]]:
        """Yield the extremes of the fields, and 0 that it goes towards."""
        yield from super().extremes()
        if self.rate:
            yield "rate", 0.0, False

    def value(self, xp: Any, t: Any) -> Any:
        """Return ``initial / (1 + rate · t / steps)``."""
        time = t / self.steps
        if self.staircase:
            time = xp.floor(time)
        return self.initial / (1.0 + self.rate * time)


@dataclass(frozen=True)
class Piecewise(Schedule):
    """Take ``values[i]`` between ``boundaries[i - 1]`` and ``boundaries[i]``.

    At a boundary it has the new value (``convention="optax"``) or still the old one (``"keras"``).
    With ``shape="linear"`` it goes in straight lines from ``values[i]`` at the i-th boundary to the next,
    the first value standing at step 0.

    Parameters
    ----------
    values
        One more than there are boundaries.
    boundaries
        Numbers of updates, ascending.
    shape
        ``"constant"`` or ``"linear"``, as above.
    convention
        ``"optax"`` or ``"keras"``, as above.

    Examples
    --------
    >>> Piecewise([1.0, 0.1], boundaries=[10])(10), Piecewise([1.0, 0.1], [10], convention="keras")(10)
    (0.1, 1.0)
    """

    values: tuple[float, ...] = level(many=True)
    boundaries: tuple[float, ...] = number(low=0.0, many=True)
    shape: str = choice("constant", "constant", "linear")
    convention: str = choice("optax", "optax", "keras")

    def __post_init__(self) -> None:
        super().__post_init__()
        increasing("Piecewise", "boundaries", self.boundaries)
        if len(self.values) != len(self.boundaries) + 1:
            raise InputError(
                f"Piecewise: {len(self.values)} values and {len(self.boundaries)} boundaries; "
                "expected one value more than boundaries"
            )

    def value(self, xp: Any, t: Any) -> Any:
        """Return the value of the interval that ``t`` lies in."""
        value: Any = self.values[0] + 0.0 * t
        start = 0.0
        for i, boundary in enumerate(self.boundaries):
            new: Any = self.values[i + 1]
            if self.shape == "linear":
                width = boundary - start
                weight = 1.0 - unit(xp, (t - start) / width) if width > 0 else 0.0
                line = blend(xp, self.values[i], new, weight)
                value = xp.where(t >= start, line, value)
            else:
                inside = t >= boundary if self.convention == "optax" else t > boundary
                value = xp.where(inside, new, value)
            start = boundary
        return value
