"""Define what a schedule is, and check its fields."""

from __future__ import annotations

import copy
import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

import polyopt.core.scalars as host
from polyopt.core.aliases import CheckedKeywords
from polyopt.core.errors import InputError, nearest


def number(
    default: Any = dataclasses.MISSING,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
    whole: bool = False,
    many: bool = False,
    optional: bool = False,
) -> Any:
    """Declare a numeric field with its valid range.

    ``many`` takes a sequence of numbers, ``whole`` integers alone.
    """
    limits = (low, high, open_low, whole, many, optional)
    return dataclasses.field(default=default, metadata={"limits": limits})


def level(default: Any = dataclasses.MISSING, **limits: Any) -> Any:
    """Declare a numeric field that the schedule's own value starts from, ends at or lies between."""
    field: Any = number(default, **limits)
    return dataclasses.field(default=default, metadata={**field.metadata, "level": True})


def choice(default: Any, *choices: Any) -> Any:
    """Declare a switch: one of ``choices``."""
    return dataclasses.field(default=default, metadata={"choices": choices})


@dataclass(frozen=True)
class Schedule(CheckedKeywords, ABC):
    """Give a value for every step: a pure function of the number of updates made so far, 0 for the first."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = _checked(type(self).__name__, field, getattr(self, field.name))
            object.__setattr__(self, field.name, value)

    @abstractmethod
    def value(self, xp: Any, t: Any) -> Any:
        """Return the value before update ``t + 1``.

        Parameters
        ----------
        xp
            The host's scalars, or a framework's operations where the step is traced.
        t
            The number of updates made so far: an integer, or a 0-d array.

        Returns
        -------
        number
            A float, or a 0-d array of the framework.
        """

    def __call__(self, step: int) -> float:
        """Return the value at ``step`` as a float."""
        return float(self.value(host, step))

    def levels(self) -> Iterator[tuple[str, float]]:
        """Yield the numbers between which its value lies, each with its key, to be held to a range.

        Examples
        --------
        >>> from polyopt.schedules import Constant, Warmup
        >>> list(Warmup(Constant(0.1), steps=5).levels())
        [('then.initial', 0.1), ('initial', 0.0)]
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            for key, item in _items(field.name, value):
                if isinstance(item, Schedule):
                    yield from ((f"{key}.{inside}", x) for inside, x in item.levels())
                elif field.metadata.get("level") and item is not None:
                    yield key, item

    def extremes(self) -> Iterator[tuple[str, float, bool]]:
        """Yield the values between which it lies: each with its key, and True if it is reached.

        A schedule that grows without bound yields an infinity; one that approaches its end without getting
        there yields it with False.

        Examples
        --------
        >>> from polyopt.schedules import Exponential
        >>> list(Exponential(0.5, rate=0.9).extremes())
        [('initial', 0.5, True), ('rate', 0.0, False)]
        """
        if type(self).levels is not Schedule.levels:
            yield from ((key, x, True) for key, x in self.levels())
            return
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            for key, item in _items(field.name, value):
                if isinstance(item, Schedule):
                    yield from ((f"{key}.{inside}", x, there) for inside, x, there in item.extremes())
                elif field.metadata.get("level") and item is not None:
                    yield key, item, True


@lru_cache(maxsize=256)
def for_traced_step(schedule: Schedule) -> Schedule:
    """Return ``schedule`` with large integers as floats: a framework may have no int64 (JAX by default)."""
    changed = copy.copy(schedule)
    for field in dataclasses.fields(schedule):
        value = getattr(schedule, field.name)
        many = isinstance(value, tuple)
        items = tuple(_in_float(x) for x in (value if many else (value,)))
        object.__setattr__(changed, field.name, items if many else items[0])
    return changed


def _in_float(x: Any) -> Any:
    if isinstance(x, Schedule):
        return for_traced_step(x)
    return float(x) if type(x) is int and abs(x) >= 2**31 else x


def first_outside(schedule: Schedule, inside: Callable[[float], bool]) -> tuple[int, float] | None:
    """Return the step from which on ``schedule`` is not ``inside``, and its value there, if there is one.

    >>> from polyopt.schedules import Exponential
    >>> first_outside(Exponential(0.5, rate=2.0), lambda x: x < 4)
    (3, 4.0)
    """
    low, high = -1, 0
    while inside(schedule(high)):
        low, high = high, 2 * high + 1
        if high > 2**40:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if inside(schedule(middle)) else (low, middle)
    return high, schedule(high)


@dataclass(frozen=True)
class Measured(Schedule):
    """Follow what the user reports, not the step alone."""

    @property
    def awaits(self) -> str:
        """Return what it is told, ``"metric"`` as a rule: reports of anything else are not for it."""
        return "metric"

    def value(self, xp: Any, t: Any) -> Any:
        """Refuse: the value depends on what is reported, so an optimizer's state has it."""
        raise TypeError(f"{type(self).__name__} depends on a {self.awaits}: ask an Optimizer's state for it")

    @abstractmethod
    def initial_state(self) -> dict[str, float]:
        """Return the state before anything was reported: plain finite numbers."""

    @abstractmethod
    def observe(self, state: dict[str, float], metric: float) -> dict[str, float]:
        """Return its state after ``metric`` was reported.

        Parameters
        ----------
        state
            Its state before: numbers by name.
        metric
            A finite number, as ``awaits`` names it.

        Returns
        -------
        dict
            The next state.
        """

    @abstractmethod
    def current(self, state: dict[str, float], xp: Any = host, t: Any = 0) -> Any:
        """Return the value in ``state``, before update ``t + 1``.

        Parameters
        ----------
        state
            Its state: numbers by name.
        xp
            As of ``value``.
        t
            As of ``value``.

        Returns
        -------
        number
            A float, or a 0-d array of the framework.
        """


def blend(xp: Any, first: Any, last: Any, weight: Any) -> Any:
    """Go from ``first``, where ``weight`` is 1, to ``last``, where it is 0, both exactly."""
    return first * weight + last * (1.0 - weight)


def falling(xp: Any, fraction: Any, shape: str) -> Any:
    """Fall from 1 at ``fraction`` 0 to 0 at 1: ``"linear"``, ``"cosine"``, or ``"sqrt"``, 1 - √fraction."""
    if shape == "linear":
        return 1.0 - fraction
    if shape == "sqrt":
        return 1.0 - xp.sqrt(fraction)
    return 0.5 * (1.0 + xp.cos(xp.pi * fraction))


def unit(xp: Any, fraction: Any) -> Any:
    """Return ``fraction`` held inside [0, 1]."""
    return xp.minimum(xp.maximum(fraction, 0.0), 1.0)


def inner(owner: str, name: str, value: Any) -> Schedule:
    """Return a schedule that stands inside another one, or refuse it: a ``Measured`` one has no clock."""
    if not isinstance(value, Schedule) or isinstance(value, Measured):
        raise InputError(
            f"{owner}: {name} = {value!r:.80}; expected a schedule that depends on the step alone"
        )
    return value


def increasing(owner: str, name: str, values: Sequence[float]) -> None:
    """Refuse boundaries that are out of order."""
    for i, (a, b) in enumerate(pairwise(values)):
        if not a <= b:
            raise InputError(f"{owner}: {name}[{i + 1}] = {b!r} is below {name}[{i}] = {a!r}")


def _items(name: str, value: Any) -> list[tuple[str, Any]]:
    many = isinstance(value, tuple)
    return [(f"{name}[{i}]", x) for i, x in enumerate(value)] if many else [(name, value)]


def finite(value: float) -> bool:
    """Return True if ``value`` is a number that a float can hold: an integer may be too large for that."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _checked(owner: str, field: dataclasses.Field[Any], value: Any) -> Any:
    choices = field.metadata.get("choices")
    if choices and not any(type(value) is type(c) and value == c for c in choices):
        raise InputError(f"{owner}: {field.name} = {value!r}; {nearest(str(value), map(str, choices))}")
    limits = field.metadata.get("limits")
    if limits is None:
        return value
    *_, many, optional = limits
    if value is None and optional:
        return None
    if not many:
        return _number(owner, field.name, value, limits)
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise InputError(f"{owner}: {field.name} = {value!r}; expected a sequence of numbers")
    return tuple(_number(owner, f"{field.name}[{i}]", x, limits) for i, x in enumerate(value))


def _number(owner: str, name: str, value: Any, limits: tuple[Any, ...]) -> float | int:
    low, high, open_low, whole, *_ = limits
    kind = "an integer" if whole else "a finite number"
    left = "(" if open_low else "["
    expected = f"expected {kind} in {left}{low}, {high}]"
    if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
        raise InputError(f"{owner}: {name} = {value!r}; {expected}")
    # A NumPy scalar would drag the arithmetic down to its own precision.
    plain = int(value) if isinstance(value, Integral) else float(value)
    inside = (plain > low if open_low else plain >= low) and plain <= high
    if not inside or not finite(plain):
        raise InputError(f"{owner}: {name} = {value!r}; {expected}")
    return plain
