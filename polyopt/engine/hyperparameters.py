"""Give the rules of a composition their hyperparameters at a step: schedules evaluated, values checked."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import polyopt.core.scalars as host
from polyopt.core.rule import Rule, Stage, check_scheduled, rules_of
from polyopt.core.schedule import for_traced_step
from polyopt.engine.checks import check_coefficients, make_infinite
from polyopt.engine.plan import Part
from polyopt.engine.state_checks import check_observed
from polyopt.schedules import Measured, Schedule

State = dict[str, Any]
Resolve = Callable[[str, Rule, Any, Any], SimpleNamespace]
"""``resolve(key, rule, xp, step)``: a rule's hyperparameters at ``step``, schedules evaluated."""


class Hyperparameters:
    """The hyperparameters of all rules of ``stage``."""

    def __init__(self, stage: Stage) -> None:
        self._rules = list(rules_of(stage))
        self._measured = [
            (f"{key}{name}", value)
            for key, rule in self._rules
            for name, value in rule.hyperparameters().items()
            if isinstance(value, Measured)
        ]

    def initial(self) -> State:
        """Return what a state holds of the schedules that are told something, before they were."""
        return {name: schedule.initial_state() for name, schedule in self._measured}

    def observe(self, state: State, value: float, what: str) -> State:
        """Return ``state`` after ``value`` was reported to the schedules that wait for ``what``."""
        check_observed(state, self._measured, value, what)
        told = {
            name: schedule.observe(state["observed"][name], float(value))
            for name, schedule in self._measured
            if schedule.awaits == what
        }
        return state | ({"observed": state["observed"] | told} if told else {})

    def resolver(self, state: State) -> Resolve:
        """Return what gives a rule's hyperparameters at a step, ``state`` having what schedules were told."""

        def resolve(key: str, rule: Rule, xp: Any, step: Any) -> SimpleNamespace:
            values = rule.hyperparameters()
            _evaluate(values, key, rule, xp, step, state)
            return SimpleNamespace(**values)

        return resolve

    def by_name(self, state: State) -> dict[str, float]:
        """Return ``{"lr": value}`` at the coming update, names qualified by the rule's position."""
        check_observed(state, self._measured)
        values: dict[str, float] = {}
        resolve, step = self.resolver(state), int(state["step"])
        for key, rule in self._rules:
            found = vars(resolve(key, rule, host, step))
            values |= {f"{key}{name}": float(value) for name, value in found.items()}
        return values


class PartScalars:
    """The scalars of one rule at each of many steps, in double precision on the host.

    What doesn't change from step to step is found once.
    """

    def __init__(self, part: Part, dtype: str) -> None:
        self.rule, self.key = part.rule, part.key
        self._dtype = dtype
        self._values = self.rule.hyperparameters()
        self._changing = {n: x for n, x in self._values.items() if type(x) not in (int, float)}
        make_infinite(self.rule, self._values, dtype)
        self._bounded = not self._changing.keys().isdisjoint(self.rule.limits())
        self._own = {slot.name: name for name, slot in part.names if slot.shape == "scalar"}

    def hyperparameters(self, step: int, state: State) -> SimpleNamespace:
        """Return them before update ``step + 1``."""
        h = SimpleNamespace(**self._values)
        if self._changing:
            changing = dict(self._changing)
            _evaluate(changing, self.key, self.rule, host, step, state)
            for name, value in changing.items():
                changing[name] = value if isinstance(value, int | float) else float(value)
            if self._bounded:
                make_infinite(self.rule, changing, self._dtype)
            vars(h).update(changing)
        return h

    def at(
        self, step: int, state: State, slots: dict[str, Any], path: str, results: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the coefficients of update ``step + 1`` by their names in the program.

        Parameters
        ----------
        step, state
            The number of updates made, and the state that they left.
        slots
            The scalar slots by their names in the state.
        path
            A leaf that is updated, for errors.
        results
            Is given the next values of the scalar slots.
        """
        h = self.hyperparameters(step, state)
        for slot, name in self._own.items():
            setattr(h, slot, slots[name])
        values = self.rule.coefficients(host, step + 1, h)
        check_coefficients(self.rule, vars(h), values, self._dtype, step, path)
        for slot, name in self._own.items():
            results[name] = values[slot]
        return {f"{self.key}{n}": x for n, x in values.items()} if self.key else values


def _evaluate(values: dict[str, Any], key: str, rule: Rule, xp: Any, step: Any, state: State) -> None:
    """Replace schedules among ``values`` by what they give at ``step``."""
    for name, value in values.items():
        if type(value) is float:
            continue
        if isinstance(value, Measured):
            check_observed(state, [(f"{key}{name}", value)])
            values[name] = value.current(state["observed"][f"{key}{name}"], xp, step)
        elif isinstance(value, Schedule):
            values[name] = (value if xp is host else for_traced_step(value)).value(xp, step)
        if isinstance(values[name], float) and values[name] is not value:
            check_scheduled(rule, name, values[name], step)
