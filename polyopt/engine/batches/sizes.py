"""Schedule the batch size, and the learning rate that goes with it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import polyopt.core.scalars as host
from polyopt.core.errors import InputError
from polyopt.core.schedule import choice, inner, level, number
from polyopt.schedules import Measured, Schedule


@dataclass(frozen=True)
class BatchSize:
    """Give a size for every update: a schedule's value, rounded to a multiple and held inside limits.

    Parameters
    ----------
    schedule
        A number for a fixed size, or any schedule of the step alone: ``Exponential`` with a rate above 1
        grows geometrically, ``Step`` by leaps, ``Polynomial`` along a line; with a rate below 1 they decay.
    multiple
        Sizes are multiples of it, to the nearest, ties to the larger: the micro-batch of
        ``AccumulatedStep``.
    minimum, maximum
        Limits, multiples themselves; the lower one is ``multiple`` by default.

    Examples
    --------
    >>> from polyopt.schedules import Exponential, Step
    >>> doubling = BatchSize(Exponential(32, rate=2.0, steps=100), multiple=16, maximum=256)
    >>> [doubling(t) for t in (0, 50, 100, 1000)]
    [32, 48, 64, 256]
    >>> BatchSize(Step(128, steps=10, rate=5.0))(10)
    640
    >>> BatchSize(64)(7)
    64
    """

    schedule: Schedule | float
    multiple: int = 1
    minimum: int | None = None
    maximum: int | None = None

    def __post_init__(self) -> None:
        value = self.schedule
        if isinstance(value, Schedule):
            inner("BatchSize", "schedule", value)
        elif isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value < math.inf:
            raise InputError(f"BatchSize: schedule = {value!r}; expected a number >= 1 or a schedule")
        for name in ("multiple", "minimum", "maximum"):
            _check_size("BatchSize", name, getattr(self, name), self.multiple)
        if self.maximum is not None and self.maximum < (self.minimum or self.multiple):
            raise InputError(
                f"BatchSize: maximum = {self.maximum} is below minimum = {self.minimum or self.multiple}"
            )

    def __call__(self, step: int) -> int:
        """Return the size of the update after ``step`` were made."""
        value = float(self.value(host, step))
        if not math.isfinite(value):
            raise InputError(
                f"BatchSize: size = {value!r} at step {step}; expected a finite one, or a maximum"
            )
        return int(value)

    def value(self, xp: Any, t: Any) -> Any:
        """Return the size as a number.

        Parameters
        ----------
        xp
            The host's scalars, or a framework's operations where the step is traced.
        t
            The number of updates made.

        Returns
        -------
        number
            A float, or a 0-d array of the framework.
        """
        raw = self.schedule.value(xp, t) if isinstance(self.schedule, Schedule) else float(self.schedule)
        return rounded(xp, raw, self.multiple, self.minimum, self.maximum)


def rounded(xp: Any, value: Any, multiple: int, minimum: int | None, maximum: int | None) -> Any:
    """Return ``value`` to the nearest multiple inside the limits.

    >>> rounded(host, 24.0, 16, None, 64), rounded(host, float("inf"), 16, None, 64)
    (32.0, 64.0)
    """
    if maximum is not None:
        value = xp.minimum(value, maximum)
    return xp.maximum(xp.floor(value / multiple + 0.5) * multiple, minimum or multiple)


@dataclass(frozen=True)
class InsteadOfDecay(Schedule):
    """Grow a size as a rate would decay, ``initial · rate(0) / rate(t)``, with the rate kept constant.

    Smith, Kindermans, Ying & Le, "Don't decay the learning rate, increase the batch size", 2018: the
    noise of SGD goes with rate/size. Where the rate comes to 0 the size is infinite: give the
    ``BatchSize`` a maximum.

    Parameters
    ----------
    rate
        The decay that the size takes the place of.
    initial
        The size at first, at least 1.

    Examples
    --------
    >>> from polyopt.schedules import MultiStep
    >>> grown = InsteadOfDecay(MultiStep(0.1, milestones=[10, 20], rate=0.2), initial=128)
    >>> round(grown(0)), round(grown(10)), round(grown(20))
    (128, 640, 3200)
    """

    rate: Schedule
    initial: float = level(low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        inner("InsteadOfDecay", "rate", self.rate)
        if any(x < 0 for _, x in self.rate.levels()):
            raise InputError(f"InsteadOfDecay: rate = {self.rate!r}; expected one that doesn't fall below 0")

    def value(self, xp: Any, t: Any) -> Any:
        """Return ``initial · rate(0) / rate(t)``."""
        return xp.divide(self.initial * self.rate.value(xp, 0.0 * t), self.rate.value(xp, t))


POWERS = {"linear": 1.0, "sqrt": 0.5, "none": 0.0}


@dataclass(frozen=True)
class RateByPlannedSize(Schedule):
    """Let a learning rate follow the batch size: ``rate(t) · (size(t) / base)^power``.

    Parameters
    ----------
    rate
        The rate that suits batches of ``base`` samples: a number or a schedule.
    size
        The size at each update.
    base
        The size that ``rate`` was chosen for.
    scaling
        ``"linear"``: power 1 (Goyal et al., 2017, section 2.1), for SGD. ``"sqrt"``: power ½ (Krizhevsky,
        2014; Malladi et al., 2022, for Adam). ``"none"``: the rate as it is.

    Examples
    --------
    >>> from polyopt.schedules import Step
    >>> rate = RateByPlannedSize(0.1, BatchSize(Step(32, steps=10, rate=4.0)), base=32, scaling="sqrt")
    >>> rate(0), rate(10)
    (0.1, 0.2)
    """

    rate: Schedule | float
    size: BatchSize
    base: int = number(low=1, whole=True)
    scaling: str = choice("linear", *POWERS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.rate, Schedule):
            inner("RateByPlannedSize", "rate", self.rate)
        if not isinstance(self.size, BatchSize):
            raise InputError(f"RateByPlannedSize: size = {self.size!r}; expected a BatchSize")

    def levels(self) -> Iterator[tuple[str, float]]:
        """Those of the rate: a ratio of sizes is positive and doesn't leave a range that starts at 0."""
        return _levels(self.rate)

    def value(self, xp: Any, t: Any) -> Any:
        """Return ``rate(t) · (size(t) / base)^power``."""
        return _scaled(self, xp, t, self.size.value(xp, t))


@dataclass(frozen=True)
class RateByReportedSize(Measured):
    """Let a learning rate follow a size which no schedule knows: ``rate(t) · (size / base)^power``.

    Report each batch's size before its update: ``state = optimizer.observe(state, size, "size")``. Until then
    it is that of ``base``.

    Parameters
    ----------
    rate, base, scaling
        As of ``RateByPlannedSize``.

    Examples
    --------
    >>> rate = RateByReportedSize(0.1, base=32)
    >>> rate.current(rate.observe(rate.initial_state(), 64))
    0.2
    """

    rate: Schedule | float
    base: int = number(low=1, whole=True)
    scaling: str = choice("linear", *POWERS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.rate, Schedule):
            inner("RateByReportedSize", "rate", self.rate)

    @property
    def awaits(self) -> str:
        """Return ``"size"``, what it is told."""
        return "size"

    def levels(self) -> Iterator[tuple[str, float]]:
        """Those of the rate."""
        return _levels(self.rate)

    def initial_state(self) -> dict[str, float]:
        """Return the size of ``base``."""
        return {"size": float(self.base)}

    def observe(self, state: dict[str, float], metric: float) -> dict[str, float]:
        """Return the size that was reported, or refuse what is none."""
        if not 0 < metric < math.inf:
            raise InputError(f"RateByReportedSize: a batch of {metric!r} samples; expected a number above 0")
        return {"size": float(metric)}

    def current(self, state: dict[str, float], xp: Any = host, t: Any = 0) -> Any:
        """Return the rate at the size that was reported last."""
        return _scaled(self, xp, t, state["size"])


def _scaled(schedule: RateByPlannedSize | RateByReportedSize, xp: Any, t: Any, size: Any) -> Any:
    rate = schedule.rate.value(xp, t) if isinstance(schedule.rate, Schedule) else schedule.rate
    # A size that was reported is a number, also where the step is traced.
    power = host.pow if isinstance(size, float) else xp.pow
    return rate * power(size / schedule.base, POWERS[schedule.scaling])


def _levels(rate: Schedule | float) -> Iterator[tuple[str, float]]:
    if isinstance(rate, Schedule):
        return ((f"rate.{key}", x) for key, x in rate.levels())
    return iter([("rate", rate)])


def _check_size(owner: str, name: str, value: Any, multiple: Any) -> None:
    if value is None and name != "multiple":
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{owner}: {name} = {value!r}; expected an integer >= 1")
    if value % multiple:
        raise InputError(f"{owner}: {name} = {value}; expected a multiple of {multiple}")
