"""Define what an algorithm is: a frozen dataclass whose fields are its hyperparameters.

A rule declares its slots, computes its scalars once a step (``Rule.coefficients``) and gives a pure leaf
function (``Rule.leaf``) from the gradient and the parameter to the **update to add**. Rules are put
together by ``chain`` (the update of one is the gradient of the next) and ``partition`` (by
parameter path). How they run, on which framework and how fast, is not their business.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, TypeAlias

from polyopt.core.aliases import CheckedKeywords, check_decorated, instead
from polyopt.core.errors import InputError, nearest
from polyopt.core.ops import Array
from polyopt.core.schedule import Schedule, finite, first_outside

Slots: TypeAlias = Mapping[str, Array]
Pattern: TypeAlias = str | Callable[[str], bool]
"""Selects parameters by path: a regular expression that is searched for, or a predicate."""


@dataclass(frozen=True)
class Slot:
    """State that a rule keeps for every leaf.

    ``init`` is the initial value, or ``"param"`` for a copy of the parameter. ``shape="like"`` has the
    leaf's shape; ``"scalar"`` is one number a leaf that depends on the step and the hyperparameters alone: it
    is updated by ``Rule.coefficients``. ``dtype=None`` is the compute dtype: float64 for float64
    parameters, else float32. ``constant`` is only read, by an elementwise rule: its leaf function does not
    return it, and all rules of a leaf that name it share one array.
    """

    name: str
    init: float | Literal["param"] = 0.0
    shape: Literal["like", "scalar"] = "like"
    dtype: str | None = None
    constant: bool = False

    def __post_init__(self) -> None:
        if self.shape not in ("like", "scalar"):
            raise InputError(f"Slot: shape = {self.shape!r}; {nearest(str(self.shape), ('like', 'scalar'))}")
        if self.init != "param" and (isinstance(self.init, bool) or not hasattr(self.init, "__float__")):
            raise InputError(f"Slot: init = {self.init!r}; expected a number or 'param'")


def hyper(
    default: Any = dataclasses.MISSING,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
    limit: bool = False,
) -> Any:
    """Declare a hyperparameter field with its valid range.

    A ``limit`` only bounds something: beyond the compute dtype it is infinite, where others are refused.

    A ``None`` default is filled in by the convention.
    """
    metadata = {"range": (low, high, open_low, open_high), "limit": limit}
    return dataclasses.field(default=default, metadata=metadata)


def pattern(default: Pattern | None = None) -> Any:
    """Declare a field that selects parameters by path; ``init`` refuses one that matches none of them."""
    return dataclasses.field(default=default, metadata={"static": True, "choices": (), "pattern": True})


def static(default: Any = None, *choices: Any) -> Any:
    """Declare a switch: a field that is never traced nor scheduled, one of ``choices`` where given."""
    return dataclasses.field(default=default, metadata={"static": True, "choices": choices})


@dataclass(frozen=True)
class Rule(CheckedKeywords, ABC):
    """Base of every algorithm: abstract; a subclass is final (wrap it, don't override it)."""

    CONVENTIONS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """For each named convention, the values of the fields that the user left at ``None``."""

    LAST: ClassVar[bool] = False
    """True if what it gets must be what the parameter will move by, so that only its like may follow."""

    GUARDS: ClassVar[tuple[str, ...]] = ()
    """Coefficients that keep a divisor from 0: one that is above 0 must not round to 0."""

    def __post_init__(self) -> None:
        check_fields(self)

    def slots(self) -> tuple[Slot, ...]:
        """Return the slots, from the switches alone: never from an array."""
        return ()

    def coefficients(self, xp: Any, t: Any, h: Any) -> dict[str, Any]:
        """Return the scalars of step ``t`` (from 1).

        ``xp`` is ``polyopt.core.scalars``, in double precision, or the framework's where the step is traced.
        A value under a scalar slot's name is that slot's next value.

        ``h`` holds the hyperparameters and the scalar slots.
        """
        return dict(vars(h))

    @abstractmethod
    def leaf(self, xp: Any, g: Array, p: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
        """Return ``(update to add, next slots)`` for one leaf; ``c`` holds the coefficients as attributes."""

    def at(self, path: str) -> Rule:
        """Return the rule for the leaf at ``path``: itself, unless a mask leaves something out there."""
        return self

    def hyperparameters(self) -> dict[str, Any]:
        """Return the numeric fields by name: numbers, 0-d arrays or schedules."""
        values = ((name, getattr(self, name)) for name in _fields_with(type(self), "range"))
        return {name: value for name, value in values if value is not None}

    def limits(self) -> tuple[str, ...]:
        """Return the names of the hyperparameters that only bound something."""
        return _fields_with(type(self), "limit")

    def patterns(self) -> dict[str, Pattern]:
        """Return the fields that select parameters by path, by name: those that are given."""
        values = ((name, getattr(self, name)) for name in _fields_with(type(self), "pattern"))
        return {name: value for name, value in values if value is not None}


@lru_cache(maxsize=256)
def _fields_with(kind: type[Any], key: str) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(kind) if f.metadata.get(key))


@dataclass(frozen=True)
class Elementwise(Rule):
    """A rule whose leaf function works element by element, so leaves may be flattened, packed and fused."""


@dataclass(frozen=True)
class Leafwise(Rule):
    """A rule that needs its leaf's shape (reductions, products of matrices): it is never flattened."""


@dataclass(frozen=True)
class Global(Elementwise):
    """An elementwise rule with scalars measured over all the leaves it gets (a global norm, say)."""

    NORM_ALONE: ClassVar[bool] = False
    """True if all that ``measure`` wants of the leaves is ``reductions.root_sum_squares(xp, leaves)``.

    Then it may be given no leaves, but an ``xp`` that knows the norm, taken along with something else.
    """

    @abstractmethod
    def measure(self, xp: Any, leaves: Sequence[Array], c: Any) -> dict[str, Array]:
        """Return 0-d arrays by name, which ``leaf`` finds in ``c``. Products through ``xp.multiply``.

        ``leaves`` (at least one) are of one dtype, the widest compute dtype among them; ``c`` holds the
        hyperparameters as 0-d arrays of it.
        """


@dataclass(frozen=True)
class Chain:
    """Stages one after the other: the update of one is the gradient of the next. Made by ``chain``."""

    stages: tuple[Stage, ...]


@dataclass(frozen=True)
class Partition:
    """Rules by parameter path. Made by ``partition``."""

    members: tuple[tuple[Pattern, Stage | None], ...]


Stage: TypeAlias = Rule | Chain | Partition


def chain(*stages: Stage) -> Chain:
    """Compose rules: each one gets the update of the one before as its gradient.

    Parameters
    ----------
    *stages
        Rules, chains or partitions, at least one, in the order in which a gradient passes them.

    Returns
    -------
    Chain
        What ``Optimizer`` takes.

    Raises
    ------
    InputError
        For what is none of these.

    Examples
    --------
    >>> from polyopt import SGD, ClipByGlobalNorm, chain
    >>> len(chain(ClipByGlobalNorm(1.0), SGD(lr=0.1)).stages)
    2
    """
    for i, stage in enumerate(stages):
        if not isinstance(stage, Rule | Chain | Partition):
            raise InputError(f"chain: expected rules, chains or partitions; stage {i} is {instead(stage)}")
    if not stages:
        raise InputError("chain: expected at least one stage, found none")
    return Chain(stages)


def partition(
    members: Mapping[str, Stage | None] | Sequence[tuple[Pattern, Stage | None]],
) -> Partition:
    """Give each parameter the rule of the first pattern that matches its path; ``None`` freezes it.

    Every parameter must be matched and every pattern must match one, or ``init`` says which does not.

    Parameters
    ----------
    members
        ``{pattern: rule}``, or pairs where patterns are predicates: a regular expression searched for in a
        parameter's path, or a predicate on it; a rule, a chain, a partition or ``None``.

    Returns
    -------
    Partition
        What ``Optimizer`` takes.

    Raises
    ------
    InputError
        For a pattern that isn't a regular expression, or a rule that is none.

    Examples
    --------
    >>> from polyopt import SGD, Adam, partition
    >>> rule = partition({r"bias$": SGD(lr=0.1), r"^embed": None, r".*": Adam(lr=1e-3)})
    >>> import numpy as np
    >>> from polyopt import Optimizer
    >>> params = {"embed": np.ones(1), "weight": np.ones(1), "bias": np.ones(1)}
    >>> optimizer = Optimizer(rule)
    >>> params, _ = optimizer.step(params, {name: np.ones(1) for name in params}, optimizer.init(params))
    >>> params["embed"].tolist(), params["bias"].tolist()
    ([1.0], [0.9])
    """
    try:
        pairs = [(x, y) for x, y in (members.items() if isinstance(members, Mapping) else members)]
    except (TypeError, ValueError):
        raise InputError(f"partition: expected {{pattern: rule}}, found {instead(members)}") from None
    for pattern, stage in pairs:
        if isinstance(pattern, str):
            compiled(pattern)
        if stage is not None and not isinstance(stage, Rule | Chain | Partition):
            raise InputError(f"partition: {pattern!r} has {instead(stage)}; expected a rule or None")
    return Partition(tuple(pairs))


def compiled(pattern: str) -> re.Pattern[str]:
    """Compile the regular expression, or raise an error that quotes it."""
    try:
        return re.compile(pattern)
    except re.error as e:
        raise InputError(f"{pattern!r} is not a regular expression: {e}") from None


def matches(pattern: Pattern, path: str) -> bool:
    """Return True if ``pattern`` selects ``path``.

    >>> matches(r"bias$", "layers.0.bias")
    True
    """
    if isinstance(pattern, str):
        return compiled(pattern).search(path) is not None
    if not callable(pattern):
        raise InputError(
            f"pattern = {pattern!r:.80}; expected a regular expression or a predicate of the path"
        )
    return bool(pattern(path))


def unmatched(pattern: Pattern, paths: Iterable[str]) -> str:
    """Say that ``pattern`` matches none of ``paths``, and which of them it is most like.

    >>> unmatched(r"wieght$", ["layers.0.bias", "layers.0.weight"])
    "matches no parameter; did you mean 'layers.0.weight'?"
    """
    known = list(paths)
    # What a regular expression is like without its signs; a predicate is like nothing.
    text = pattern.replace(r"\.", ".") if isinstance(pattern, str) else ""
    words = [re.sub(r"\\[a-zA-Z]|[^\w.]", "", alternative) for alternative in text.split("|")]
    ends = {}  # every end of a path, and every part of it
    for path in reversed(known):
        parts = path.split(".")
        ends.update(dict.fromkeys([*parts, *(".".join(parts[i:]) for i in range(len(parts)))], path))
    close = [x for word in words for x in difflib.get_close_matches(word, ends, n=1, cutoff=0.6)]
    return f"matches no parameter; {nearest(ends[close[0]] if close else '', known)}"


def check_patterns(stage: Stage, paths: Iterable[str]) -> None:
    """Refuse a pattern of a rule inside ``stage`` that matches none of ``paths``: it would do nothing.

    A rule that a partition gives to some of the leaves may have one that matches others alone.

    Raises
    ------
    InputError
        It names the rule, the field and the nearest path.
    """
    known = list(paths)
    for _, rule in rules_of(stage):
        for name, found in rule.patterns().items():
            if not any(matches(found, path) for path in known):
                raise InputError(f"{type(rule).__name__}: {name} = {found!r} {unmatched(found, known)}")


def rules_of(stage: Stage, key: str = "") -> Iterator[tuple[str, Rule]]:
    """Yield every rule inside ``stage`` with its key: its positions, dotted and ending in a dot."""
    if isinstance(stage, Rule):
        yield key, stage
    elif isinstance(stage, Chain):
        for i, part in enumerate(stage.stages):
            yield from rules_of(part, f"{key}{i}.")
    else:
        for i, (_, member) in enumerate(stage.members):
            if member is not None:
                yield from rules_of(member, f"{key}{i}.")


def check_fields(instance: Any) -> None:
    """Fill in the fields that the convention decides, then hold each to its range or its choices."""
    owner = type(instance).__name__
    check_decorated(type(instance))
    if instance.CONVENTIONS:
        name: Any = getattr(instance, "convention", None)
        if not isinstance(name, str) or name not in instance.CONVENTIONS:
            raise InputError(
                f"{owner}: convention = {name!r} is not one of this algorithm's; "
                f"{nearest(str(name), instance.CONVENTIONS)}"
            )
        for key, value in instance.CONVENTIONS[name].items():
            if getattr(instance, key) is None:
                object.__setattr__(instance, key, value)
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if "range" in field.metadata and not isinstance(value, bool) and isinstance(value, Real):
            # A NumPy scalar would drag the arithmetic down to its own precision.
            value = int(value) if isinstance(value, Integral) else float(value)
            object.__setattr__(instance, field.name, value)
        if "pattern" in field.metadata and value is not None:
            _check_pattern(owner, field.name, value)
        choices = field.metadata.get("choices", ())
        if value in choices:
            # 8.0 is 8, and 1 is true: files and messages say it in one way.
            object.__setattr__(instance, field.name, choices[choices.index(value)])
        _check(owner, field, value)


def _check_pattern(owner: str, name: str, value: Any) -> None:
    if isinstance(value, str):
        compiled(value)
    elif not callable(value):
        raise InputError(
            f"{owner}: {name} = {value!r:.80}; expected a regular expression or a predicate of the path"
        )


def _check(owner: str, field: dataclasses.Field[Any], value: Any) -> None:
    choices = field.metadata.get("choices")
    if choices and value not in choices:
        names = [c for c in choices if isinstance(c, str)]
        close = isinstance(value, str) and names
        known = nearest(value, names) if close else "expected one of " + ", ".join(map(repr, choices))
        raise InputError(f"{owner}: {field.name} = {value!r}; {known}")
    if "range" not in field.metadata or value is None:
        return
    if isinstance(value, Schedule):
        _check_schedule(owner, field, value)
        return
    if isinstance(value, bool) or not (isinstance(value, int | float) or hasattr(value, "dtype")):
        raise InputError(f"{owner}: {field.name} = {value!r}; expected a number or a schedule")
    if not isinstance(value, int | float):
        if getattr(value, "shape", None) != ():
            raise InputError(
                f"{owner}: {field.name} = {value!r}; expected a number, a 0-d array or a schedule"
            )
        return  # an array: it may be traced, so its value can't be looked at
    if not inside(field, value):
        raise InputError(f"{owner}: {field.name} = {value!r}; expected {_interval(field)}")


def inside(field: dataclasses.Field[Any], value: float, *, reached: bool = True) -> bool:
    """Return True if ``value`` lies in the field's range; an open end may be approached, not reached."""
    low, high, open_low, open_high = field.metadata["range"]
    above = value > low if open_low and reached else value >= low
    below = value < high if open_high and reached else value <= high
    return above and below and (finite(value) or not reached)


def _interval(field: dataclasses.Field[Any]) -> str:
    low, high, open_low, open_high = field.metadata["range"]
    return f"a finite number in {'(' if open_low else '['}{low}, {high}{')' if open_high else ']'}"


def _check_schedule(owner: str, field: dataclasses.Field[Any], schedule: Schedule) -> None:
    """Hold all that ``schedule`` will be to the field's range, as far as it is known beforehand."""
    for key, x, reached in schedule.extremes():
        if inside(field, x, reached=reached):
            continue
        if finite(x):
            raise InputError(f"{owner}: {field.name}.{key} = {x!r}; expected {_interval(field)}")
        found = first_outside(schedule, lambda value: inside(field, value))
        where = "" if found is None else f": {found[1]!r} at step {found[0]}"
        raise InputError(
            f"{owner}: {field.name}.{key} grows without bound{where}; expected {_interval(field)}"
        )


@lru_cache(maxsize=256)
def _ranges(kind: type[Rule]) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(kind) if "range" in field.metadata}


def check_scheduled(rule: Rule, name: str, value: float, step: Any) -> None:
    """Hold what a schedule gave at ``step`` to the range of the field ``name``.

    Raises
    ------
    InputError
        It names the field, the step and the value.
    """
    field = _ranges(type(rule)).get(name)
    if field is not None and not inside(field, value):
        raise InputError(
            f"{type(rule).__name__}: {name} = {value!r} at step {step}, by {getattr(rule, name)!r:.120}; "
            f"expected {_interval(field)}"
        )
