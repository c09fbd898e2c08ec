"""From a composition of rules to what each leaf goes through: pipelines, segments and their programs.

Consecutive elementwise rules become *one* program, so a whole chained optimizer is one kernel. A pipeline is
cut only where something must be known first: before a ``Global`` (its measurement over all
leaves) and around a ``Leafwise`` rule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from itertools import pairwise
from typing import Any, cast

from polyopt.core.errors import InputError
from polyopt.core.groups import by_kind
from polyopt.core.rule import (
    Chain,
    Global,
    Leafwise,
    Partition,
    Rule,
    Slot,
    Stage,
    check_patterns,
    matches,
    unmatched,
)
from polyopt.core.trace import Program, Symbol, Tracer

RESERVED = {"g": "gradient", "p": "parameter", "update": "update"}
"""Names that the arrays of a leaf function have beside its slots."""


@dataclass(frozen=True)
class Part:
    """One rule in a leaf's pipeline; ``key`` is its position in the composition ("1.0." or "")."""

    key: str
    rule: Rule = field(compare=False)
    names: tuple[tuple[str, Slot], ...]
    """``(name in the state, slot)``: the slot's own name, qualified by ``key`` where two rules share it."""
    identity: tuple[object, ...]
    """What the rule is, in a form that can be hashed: a hyperparameter may be an array, even a traced one."""


@dataclass(frozen=True)
class Segment:
    """Parts that run as one: elementwise ones fused, or a single leafwise one."""

    parts: tuple[Part, ...]

    @property
    def leafwise(self) -> bool:
        return isinstance(self.parts[0].rule, Leafwise)

    @property
    def awaits(self) -> Global | None:
        """The rule whose measurement this segment starts with."""
        head = self.parts[0].rule
        return head if isinstance(head, Global) else None


@dataclass(frozen=True)
class Plan:
    """For every leaf its pipeline, ``None`` where it is frozen; leaves that share one stand together."""

    pipelines: tuple[tuple[Segment, ...] | None, ...]
    classes: tuple[tuple[tuple[Segment, ...], tuple[int, ...]], ...]

    @property
    def norm_first(self) -> bool:
        """Return True if every leaf comes first to one and the same rule.

        Which wants the norm of all gradients.
        """
        heads = [pipeline[0] if pipeline else None for pipeline, _ in self.classes]
        first = heads[0] if heads else None
        if first is None or first.awaits is None or not first.awaits.NORM_ALONE:
            return False
        return all(x is not None and x.parts[0].key == first.parts[0].key for x in heads)


def plan(stage: Stage, paths: Sequence[str]) -> Plan:
    """The pipelines of the leaves ``paths``.

    Raises ``InputError`` for a leaf that no pattern of a partition matches, and for a
    pattern that selects no leaf, a mask included.
    """
    used: set[str] = set()
    pipelines = [_pipeline(stage, path, used) for path in paths]
    _check_patterns(stage, "", used, paths)
    check_patterns(stage, paths)
    classes = by_kind(pipelines)
    return Plan(tuple(pipelines), tuple((k, tuple(v)) for k, v in classes.items() if k is not None))


def _pipeline(stage: Stage, path: str, used: set[str]) -> tuple[Segment, ...] | None:
    found = _rules_at(stage, path, "", used)
    if found is None:
        return None
    for (_, rule), (_, later) in pairwise(found):
        if rule.LAST and not later.LAST:
            raise InputError(
                f"{type(rule).__name__} stands before {type(later).__name__} for parameter {path!r}; "
                "expected it last in the chain, where it sees what the parameter moves by"
            )
    for _, rule in found:
        _check_names(rule)
    counts = Counter(slot.name for _, rule in found for slot in rule.slots() if not slot.constant)
    parts = [
        Part(
            key,
            rule,
            tuple((f"{key}{s.name}" if counts[s.name] > 1 else s.name, s) for s in rule.slots()),
            _identity(rule),
        )
        for key, rule in found
    ]
    segments: list[list[Part]] = []
    for part in parts:
        alone = isinstance(part.rule, Leafwise | Global)
        if not segments or alone or isinstance(segments[-1][0].rule, Leafwise):
            segments.append([])
        segments[-1].append(part)
    return tuple(Segment(tuple(s)) for s in segments)


def _check_names(rule: Rule) -> None:
    """A slot must not be called as the leaf function's other arrays are, among which it stands."""
    for slot in rule.slots():
        if slot.name in RESERVED:
            raise InputError(
                f"{type(rule).__name__}: a slot is called {slot.name!r}, which is the name of the "
                f"{RESERVED[slot.name]} in every rule; expected another name"
            )


def _identity(rule: Rule) -> tuple[object, ...]:
    return (type(rule), *(_hashable(getattr(rule, f.name)) for f in fields(rule)))


def _hashable(value: Any) -> Hashable:
    try:
        hash(value)  # TensorFlow's arrays say that they are hashable and then are not
    except TypeError:
        return id(value)
    return cast(Hashable, value)


def _rules_at(stage: Stage | None, path: str, key: str, used: set[str]) -> list[tuple[str, Rule]] | None:
    """``[(key, rule)]`` for the leaf at ``path``; ``None`` where a partition freezes it."""
    if stage is None:
        return None
    if isinstance(stage, Rule):
        return [(key, stage.at(path))]
    if isinstance(stage, Chain):
        found: list[tuple[str, Rule]] = []
        for i, part in enumerate(stage.stages):
            rules = _rules_at(part, path, f"{key}{i}.", used)
            if rules is None:
                return None
            found += rules
        return found
    for i, (pattern, member) in enumerate(stage.members):
        if matches(pattern, path):
            used.add(f"{key}{i}.")
            return _rules_at(member, path, f"{key}{i}.", used)
    patterns = ", ".join(repr(p) for p, _ in stage.members)
    raise InputError(f"partition: no pattern matches parameter {path!r}; patterns: {patterns}")


def _check_patterns(stage: Stage | None, key: str, used: set[str], paths: Sequence[str]) -> None:
    if isinstance(stage, Chain):
        for i, part in enumerate(stage.stages):
            _check_patterns(part, f"{key}{i}.", used, paths)
    elif isinstance(stage, Partition):
        for i, (pattern, member) in enumerate(stage.members):
            if f"{key}{i}." not in used:
                if not any(matches(pattern, path) for path in paths):
                    raise InputError(f"partition: pattern {pattern!r} {unmatched(pattern, paths)}")
                continue  # an earlier pattern takes all that it matches
            _check_patterns(member, f"{key}{i}.", used, paths)


class _Coefficients:
    """Makes a scalar input of the program out of every coefficient that a leaf function reads."""

    def __init__(self, tracer: Tracer, key: str, read: dict[str, Symbol]) -> None:
        self._of = (tracer, key, read)

    def __getattr__(self, name: str) -> Symbol:
        tracer, key, read = self._of
        return read.setdefault(f"{key}{name}", Symbol(tracer, f"{key}{name}"))


@lru_cache(maxsize=512)
def program(parts: tuple[Part, ...], output: str) -> Program:
    """One program for all of ``parts``. ``output``: ``"update"``, or ``"p"`` for the new parameter.

    A scalar's name in the program is its part's key followed by the coefficient's name.
    """
    tracer = Tracer()
    update, p = Symbol(tracer, "g"), Symbol(tracer, "p")
    read: dict[str, Symbol] = {}
    arrays = ["g", "p"]
    outputs: dict[str, Any] = {}
    for part in parts:
        slots = {slot.name: Symbol(tracer, name) for name, slot in part.names if slot.shape == "like"}
        c = _Coefficients(tracer, part.key, read)
        try:
            update, new = part.rule.leaf(tracer, update, p, slots, c)
        except (AttributeError, TypeError) as e:
            raise type(e)(f"{type(part.rule).__name__}.leaf: {e}") from e
        for name, slot in part.names:
            if slot.shape == "like" and name not in arrays:
                arrays.append(name)
            if slot.shape == "like" and not slot.constant:
                outputs[name] = new[slot.name]
    outputs[output] = p + update if output == "p" else update
    return tracer.program(tuple(arrays), tuple(read), outputs)
