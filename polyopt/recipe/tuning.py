"""``[tune]``: which keys of a recipe are looked for, and where."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, PlainSerializer, PlainValidator

from polyopt.core.errors import InputError, nearest
from polyopt.recipe.problems import Problem, shown, within
from polyopt.recipe.sections import MAX_INTEGER, Count, Section, Seed

TUNABLE = ("model", "loss", "optimizer", "partition", "clip", "ema", "train", "phase")
"""The tables whose keys may be looked for: the data and the dtype are what is tuned *for*."""
OF_PHASE = (
    "optimizer",
    "train",
    "finetune",
    "clip_weights",
    "prune",
    "quantize",
    "distil",
    "federated",
)
MAX_CHOICES = 1000
MAX_STEPS = 10**15
"""From ``low`` to ``high``: more than that many floats could not be told apart."""


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included: integers where both are, else floats.

    ``log`` spreads them evenly over orders of magnitude; ``step`` keeps to ``low``, ``low + step``, … and
    ``high``: where it does not lead there, the last step is shorter.
    """

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    @property
    def whole(self) -> bool:
        """Return True if it is one of integers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def ends(self) -> tuple[Any, ...]:
        """Values that the recipe must take for it to make sense."""
        return (self.low, self.high)

    def holds(self, value: Any) -> bool:
        """Return True if ``value`` is in it."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and isinstance(value, int) == self.whole and self.low <= value <= self.high

    @property
    def steps(self) -> int | None:
        """Return how many steps it takes from ``low`` to ``high``; ``None`` without ``step``.

        >>> Range(1, 10, step=4).steps, Range(0.0, 0.9, step=0.3).steps
        (3, 3)
        """
        return None if self.step is None else self.steps_to(self.high)

    def after(self, steps: int) -> int | float:
        """The value so many steps above ``low``, ``high`` at most.

        >>> [Range(1, 10, step=4).after(i) for i in range(4)], Range(0.0, 1.0, step=0.3).after(3)
        ([1, 5, 9, 10], 0.9)
        """
        value = min(_exact(self.low) + steps * _exact(self.step or 0), _exact(self.high))
        return int(value) if self.whole else float(value)

    def steps_to(self, value: int | float) -> int:
        """Return how many steps above ``low`` a value is that ``after`` gave."""
        return math.ceil((_exact(value) - _exact(self.low)) / _exact(self.step or 1))

    def table(self) -> dict[str, Any]:
        """As it stands in a recipe."""
        found: dict[str, Any] = {"low": self.low, "high": self.high}
        return (
            found | ({"log": True} if self.log else {}) | ({} if self.step is None else {"step": self.step})
        )


@dataclass(frozen=True)
class Choices:
    """One of ``values``: numbers, strings, true, false, or lists of them."""

    values: tuple[Any, ...]

    def ends(self) -> tuple[Any, ...]:
        """All of them: the recipe must take each."""
        return self.values

    def holds(self, value: Any) -> bool:
        """Return True if ``value`` is one of them."""
        return any(type(x) is type(value) and x == value for x in self.values)

    def table(self) -> dict[str, Any]:
        """As it stands in a recipe."""
        return {"choices": [list(v) if isinstance(v, tuple) else v for v in self.values]}


def _exact(number: int | float) -> Fraction:
    """The decimal that was written: 0.1 is a tenth, which the nearest float is not."""
    return Fraction(str(number))


Axis: TypeAlias = Range | Choices
Space: TypeAlias = tuple[tuple[str, Axis], ...]


def _axis(table: Any) -> Axis:
    if isinstance(table, Range | Choices):
        return table
    if not isinstance(table, Mapping):
        raise Problem((), f" = {shown(table)}; expected {{low = …, high = …}} or {{choices = […]}}")
    known = ("choices",) if "choices" in table else ("low", "high", "log", "step")
    for key in table:
        if key not in known:
            raise Problem((key,), f": unknown key; {nearest(str(key), known)}")
    return _choices(table["choices"]) if "choices" in table else _range(table)


def _choices(values: Any) -> Choices:
    if not isinstance(values, list | tuple) or not 0 < len(values) <= MAX_CHOICES:
        raise Problem(("choices",), f" = {shown(values)}; expected a list of 1 to {MAX_CHOICES} values")
    kept: list[Any] = []
    for i, value in enumerate(values):
        items = value if isinstance(value, list | tuple) else [value]
        if not all(isinstance(x, bool | int | float | str) for x in items):
            raise Problem(("choices", i), f" = {shown(value)}; expected a number, a string, true or false")
        value = tuple(value) if isinstance(value, list) else value
        if any(type(value) is type(other) and value == other for other in kept):
            raise Problem(("choices", i), f" = {shown(value)}: this choice stands there twice")
        kept.append(value)
    return Choices(tuple(kept))


def _range(table: Mapping[str, Any]) -> Range:
    for key in ("low", "high"):
        if key not in table:
            raise Problem((key,), ": this key is missing; add it, or give choices")
    numbers = {key: _number(key, table[key]) for key in ("low", "high", "step") if key in table}
    low, high, step, log = numbers["low"], numbers["high"], numbers.get("step"), table.get("log", False)
    if not isinstance(log, bool):
        raise Problem(("log",), f" = {shown(log)}; expected true or false")
    if not low < high:
        raise Problem(("high",), f" = {high!r}; expected more than low = {low!r}")
    if log and low <= 0:
        raise Problem(("low",), f" = {low!r}; expected a number above 0 where log = true")
    if step is not None:
        if log:
            raise Problem(("step",), f" = {step!r}; expected none where log = true")
        if isinstance(low, int) and isinstance(high, int) and not isinstance(step, int):
            raise Problem(("step",), f" = {step!r}; expected an integer, as low and high are")
        if not 0 < step <= high - low:
            raise Problem(("step",), f" = {step!r}; expected more than 0 and at most high - low")
        if (high - low) / step > MAX_STEPS:
            raise Problem(("step",), f" = {step!r}; expected at most {MAX_STEPS:.0e} steps from low to high")
        if step == 1 and isinstance(step, int) and isinstance(high, int) and isinstance(low, int):
            step = None
    if isinstance(low, int) != isinstance(high, int):
        low, high = float(low), float(high)
    return Range(low, high, log, step)


def _number(key: str, value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Problem((key,), f" = {shown(value)}; expected a number")
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise Problem((key,), f" = {shown(value)}; expected an integer of at most {MAX_INTEGER}")
    if not math.isfinite(value):
        raise Problem((key,), f" = {value!r}; expected a finite number")
    return value


def _space(value: Any) -> Space:
    if isinstance(value, tuple):
        value = dict(value)
    if not isinstance(value, Mapping) or not value:
        raise Problem((), f" = {shown(value)}; expected a table with a key for each hyperparameter")
    axes = []
    for key, table in value.items():
        _tunable(key, table)
        try:
            axes.append((key, _axis(table)))
        except Problem as problem:
            raise within(key, problem) from None
    return tuple(axes)


def _tunable(key: str, table: Any) -> None:
    """Refuse a key that can't be one of the space's."""
    first, *rest = key.split(".")
    if first not in TUNABLE:
        raise Problem((key,), f": not in a table that can be tuned; {nearest(first, TUNABLE)}")
    if not rest and isinstance(table, Mapping) and (inner := _nested(table)):
        raise Problem((key,), f': a key with dots stands in quotes: "{key}.{inner}" = …')
    if first != "phase":
        return
    number, of, *_ = (*rest, "", "")
    if not number.isdecimal():
        raise Problem((key,), ": expected the number of a phase, from 0 on, such as phase.0.optimizer.lr")
    if of not in OF_PHASE:
        raise Problem((key,), f": not in a table that can be tuned; {nearest(of, OF_PHASE)}")


def _nested(table: Mapping[str, Any]) -> str | None:
    """Find the dotted key of the first axis in tables that TOML made of a key without quotes."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            if {"low", "high", "choices"} & set(value):
                return key
            if (inner := _nested(value)) is not None:
                return f"{key}.{inner}"
    return None


def first_phase(space: Space) -> int:
    """Find the first run that depends on what is tried: 0 is the one before all phases, 1 the first phase.

    Examples
    --------
    >>> first_phase((("phase.1.optimizer.lr", Range(0.1, 1.0)), ("phase.0.train.epochs", Range(1, 2))))
    1
    """
    return min(int(key.split(".")[1]) + 1 if key.startswith("phase.") else 0 for key, _ in space)


def reaches_phases(space: Space) -> bool:
    """Return True if anything of a phase is looked for."""
    return any(key.startswith("phase.") for key, _ in space)


def _space_table(space: Space) -> dict[str, Any]:
    return {key: axis.table() for key, axis in space}


class Tune(Section):
    """``[tune]``: how hyperparameters are looked for; see ``tune``."""

    trials: Count = 20
    """Runs in all."""
    metric: Literal["accuracy", "loss"] | None = None
    """What is compared, on the validation samples: by default the accuracy where there is one."""
    validation_fraction: float = Field(0.2, gt=0.0, lt=1.0)
    """The part of the training samples that is kept for it; the test samples are not looked at."""
    prune: bool = True
    """Give a run up that is worse than the median of those before it, after as many epochs."""
    seed: Seed = 0
    """Decides what is tried, and which samples are kept."""
    space: Annotated[Any, PlainValidator(_space), PlainSerializer(_space_table, return_type=dict)]
    """Keys of the recipe, dotted and in quotes, and where their values may lie."""


def check_space(tune: Tune, build: Callable[[Mapping[str, Any]], Any]) -> Iterator[Problem]:
    """See that ``build({key: value})``, a recipe, takes the ends of each range and every choice.

    Where one needs another (Nesterov's momentum a momentum), it must do so with the first or the last values
    of all the others.
    """
    corners = ({}, *({key: axis.ends()[i] for key, axis in tune.space} for i in (0, -1)))
    for key, axis in tune.space:
        for value in axis.ends():
            problem = None
            for others in corners:
                try:
                    build({**others, key: value})
                    break
                except InputError as e:
                    problem = problem or e
            else:
                yield Problem(("tune", "space", key), f": {problem}")
                break


def assigned(table: Any, key: str, value: Any) -> Any:
    """Copy nested plain data with ``value`` at the dotted ``key``; a number counts in a list.

    Examples
    --------
    >>> assigned({"model": {"hidden": [8, 8]}}, "model.hidden.1", 16)
    {'model': {'hidden': [8, 16]}}
    """
    first, _, rest = key.partition(".")
    if isinstance(table, list):
        if not first.isdecimal() or int(first) >= len(table):
            raise InputError(f"{first!r} is no place in a list of {len(table)}")
        i = int(first)
        return [*table[:i], assigned(table[i], rest, value) if rest else value, *table[i + 1 :]]
    if not isinstance(table, dict):
        raise InputError(f"{first!r} can't be set in {shown(table)}, which is no table")
    if rest.split(".")[0].isdecimal() and first not in table:
        raise InputError(f"the recipe has no {first!r}, of which this is one's key")
    return table | {first: assigned(table.get(first, {}), rest, value) if rest else value}
