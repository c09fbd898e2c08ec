"""Rates and weight decay layer by layer: builders of rules, on any schedule.

Stages of a chain that have no rate of their own (clipping) stay whole, so a global norm is still taken over
all leaves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polyopt.core.scalars as host
from polyopt.core.errors import InputError
from polyopt.core.rule import Chain, Global, Pattern, Rule, Stage, chain, partition, rules_of
from polyopt.core.schedule import finite, number
from polyopt.schedules import Measured, Schedule

Members = Mapping[str, float] | Sequence[tuple[Pattern, float]]


@dataclass(frozen=True)
class Scaled(Schedule):
    """Multiply another schedule by ``factor``.

    Parameters
    ----------
    schedule
        The other one, of the step alone.
    factor
        At least 0.

    Examples
    --------
    >>> from polyopt.schedules import Step
    >>> Scaled(Step(1.0, steps=10, rate=0.5), factor=0.25)(10)
    0.125
    """

    schedule: Schedule
    factor: float = number(low=0.0)

    def levels(self) -> Iterator[tuple[str, float]]:
        """Yield the other schedule's levels times ``factor``."""
        return ((f"schedule.{key}", self.factor * x) for key, x in self.schedule.levels())

    def value(self, xp: Any, t: Any) -> Any:
        """Return ``factor`` times the other schedule's value."""
        return self.factor * self.schedule.value(xp, t)


@dataclass(frozen=True)
class ScaledMeasured(Measured):
    """Multiply a schedule that is driven by what is reported by ``factor``.

    Parameters
    ----------
    schedule
        The other one, a ``Plateau`` for one.
    factor
        At least 0.

    Examples
    --------
    >>> from polyopt.schedules import Plateau
    >>> s = ScaledMeasured(Plateau(1.0), factor=0.25)
    >>> s.current(s.initial_state())
    0.25
    """

    schedule: Measured
    factor: float = number(low=0.0)

    @property
    def awaits(self) -> str:
        """Return the name of the metric that it waits for."""
        return self.schedule.awaits

    def levels(self) -> Iterator[tuple[str, float]]:
        """Yield the other schedule's levels times ``factor``."""
        return ((f"schedule.{key}", self.factor * x) for key, x in self.schedule.levels())

    def initial_state(self) -> dict[str, float]:
        """Return the other schedule's state at first."""
        return self.schedule.initial_state()

    def observe(self, state: dict[str, float], metric: float) -> dict[str, float]:
        """Return the other schedule's state after ``metric``."""
        return self.schedule.observe(state, metric)

    def current(self, state: dict[str, float], xp: Any = host, t: Any = 0) -> Any:
        """Return ``factor`` times the other schedule's value."""
        return self.factor * self.schedule.current(state, xp, t)


def times(value: Any, factor: float) -> Any:
    """Return ``factor`` times a hyperparameter: a number, a 0-d array or a schedule.

    >>> from polyopt.schedules import Constant
    >>> times(0.5, 0.5), times(Constant(0.5), 0.5)(7)
    (0.25, 0.25)
    """
    if factor == 1:
        return value
    if isinstance(value, Measured):
        return ScaledMeasured(value, factor)
    return Scaled(value, factor) if isinstance(value, Schedule) else factor * value


def layer_rates(rule: Stage, factors: Members) -> Stage:
    """Multiply the rate of the parameters that a pattern matches by that pattern's factor.

    Every field ``lr`` of every rule inside is multiplied, so decoupled weight decay follows it, as it does in
    torch's parameter groups. The first pattern that matches counts; parameters that none matches keep
    their rate. For a factor 0 the slots still move; ``freeze`` costs nothing.

    Parameters
    ----------
    rule
        A rule, a chain or a partition; its rate is a number or any schedule.
    factors
        ``{pattern: factor}``, factors in [0, inf).

    Returns
    -------
    Stage
        What ``Optimizer`` takes.

    Raises
    ------
    InputError
        For a factor out of range, or where no rule inside has a rate. A pattern that matches no parameter is
        refused by ``Optimizer.init``.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt import SGD, Optimizer
    >>> opt = Optimizer(layer_rates(SGD(lr=1.0), {r"^embed": 0.25}))
    >>> params = {"embed": np.ones(1), "head": np.ones(1)}
    >>> moved, _ = opt.step(params, params, opt.init(params))
    >>> moved["embed"].tolist(), moved["head"].tolist()
    ([0.75], [0.0])
    """
    pairs = _checked("layer_rates", factors)
    if not any(_has(part, "lr") for _, part in rules_of(rule)):
        raise InputError(f"layer_rates: no rule of {rule!r} has a hyperparameter 'lr'; expected one that has")

    def changed(part: Rule, factor: float) -> Rule:
        return _with(part, "lr", times(part.hyperparameters()["lr"], factor))

    return _by_layer(rule, pairs, lambda part: _has(part, "lr"), changed)


def layer_decay(rule: Stage, layers: Sequence[Pattern], decay: float) -> Stage:
    r"""Multiply the rate by ``decay^d`` for the layer that lies d below the top one.

    Howard & Ruder, "Universal language model fine-tuning", 2018, section 3.2 (η of a layer is that of the one
    above divided by 2.6); Bao et al., "BEiT", 2022, and Clark et al., "ELECTRA", 2020, whose embeddings count
    as the lowest layer and whose head as the top one.

    Parameters
    ----------
    rule
        A rule, a chain or a partition.
    layers
        The layers, the lowest first: one pattern each, or ``numbered_layers``. Parameters that none
        matches have the top layer's rate.
    decay
        In (0, 1]: 1/2.6 in ULMFiT, 0.65 to 0.9 for transformers.

    Returns
    -------
    Stage
        What ``Optimizer`` takes.

    Examples
    --------
    >>> from polyopt import SGD, Optimizer
    >>> rule = layer_decay(SGD(lr=0.8), [r"layers\.0", r"layers\.1", r"head"], decay=0.5)
    >>> Optimizer(rule).hyperparameters({"step": 0})["0.lr"]
    0.2
    """
    if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 < decay <= 1:
        raise InputError(f"layer_decay: decay = {decay!r}; expected a number in (0, 1]")
    if not layers:
        raise InputError("layer_decay: layers is empty; expected at least one pattern")
    top = len(layers) - 1
    return layer_rates(rule, [(pattern, float(decay) ** (top - i)) for i, pattern in enumerate(layers)])


def layer_weight_decay(rule: Stage, values: Members) -> Stage:
    """Replace the weight decay λ of the parameters that a pattern matches by the pattern's.

    Discriminative weight decay. The first pattern that matches counts; parameters that none matches keep
    their λ. Whether λ is added to the gradient or decoupled stays as the rule has it.

    Parameters
    ----------
    rule
        A rule, a chain or a partition.
    values
        ``{pattern: λ}``, λ in [0, inf).

    Returns
    -------
    Stage
        What ``Optimizer`` takes.

    Raises
    ------
    InputError
        Where no rule inside has a weight decay, or where it is not clear whose is meant: several have the
        field and none, or more than one in a chain, is above 0.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt import SGD, Optimizer
    >>> opt = Optimizer(layer_weight_decay(SGD(lr=1.0, weight_decay=0.5), {r"bias$": 0.0}))
    >>> params, grads = ({"bias": np.full(1, x), "weight": np.full(1, x)} for x in (1.0, 0.0))
    >>> {k: x.tolist() for k, x in opt.step(params, grads, opt.init(params))[0].items()}
    {'bias': [1.0], 'weight': [0.5]}
    """
    pairs = _checked("layer_weight_decay", values)
    meant = _decaying(rule)
    return _by_layer(rule, pairs, meant, lambda part, x: _with(part, "weight_decay", x))


def _decaying(rule: Stage) -> Callable[[Rule], bool]:
    """Whose weight decay is meant: the rule's that has one, or could have one."""
    able = [part for _, part in rules_of(rule) if _has(part, "weight_decay")]
    active = [part for part in able if not _is_zero(part.hyperparameters()["weight_decay"])]
    found = active or able
    if not found:
        raise InputError(f"layer_weight_decay: no rule of {rule!r} has a hyperparameter 'weight_decay'")
    kinds = {type(part) for part in found}
    if len(kinds) > 1:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise InputError(f"layer_weight_decay: {names} all have a weight decay; expected one kind of rule")
    # By kind: a rule that a partition gives to other leaves at another λ is meant as well.
    kind = kinds.pop()
    return lambda part: type(part) is kind


def _by_layer(
    stage: Stage,
    pairs: list[tuple[Pattern, float]],
    touched: Callable[[Rule], bool],
    changed: Callable[[Rule, float], Rule],
) -> Stage:
    """Return ``stage`` with each rule that is ``touched`` changed for a pattern's leaves."""
    if isinstance(stage, Rule):
        if not touched(stage):
            return stage
        if isinstance(stage, Global):
            raise InputError(
                f"{type(stage).__name__} measures over all leaves; expected a rule that can be split by layer"
            )
        return partition([*((pattern, changed(stage, x)) for pattern, x in pairs), (r".*", stage)])
    if isinstance(stage, Chain):
        return chain(*(_by_layer(part, pairs, touched, changed) for part in stage.stages))
    return partition(
        [
            (pattern, None if member is None else _by_layer(member, pairs, touched, changed))
            for pattern, member in stage.members
        ]
    )


def _checked(owner: str, members: Members) -> list[tuple[Pattern, float]]:
    pairs = list(members.items()) if isinstance(members, Mapping) else list(members)
    for pattern, x in pairs:
        if isinstance(x, bool) or not isinstance(x, int | float) or not (x >= 0 and finite(x)):
            raise InputError(f"{owner}: {pattern!r} has {x!r}; expected a finite number >= 0")
    return [(pattern, float(x)) for pattern, x in pairs]


def _with(rule: Rule, name: str, value: Any) -> Rule:
    changes: dict[str, Any] = {name: value}
    return dataclasses.replace(rule, **changes)


def _has(rule: Rule, name: str) -> bool:
    return name in rule.hyperparameters()


def _is_zero(x: Any) -> bool:
    return isinstance(x, int | float) and x == 0
