"""A named thing with options: an optimizer, a schedule, an initializer, a way of clipping or averaging, ….

Its name is looked up in its registry and nowhere else; its options are the fields of the class found there.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polyopt.core.aliases import keyword
from polyopt.core.errors import InputError, nearest
from polyopt.core.rule import compiled
from polyopt.federated import SERVER_RULES
from polyopt.models.initializers import INITIALIZERS
from polyopt.optim import OPTIMIZERS
from polyopt.optim.averaging import AVERAGING
from polyopt.optim.clipping import CLIPPING
from polyopt.pruning import SPARSITY_SCHEDULES
from polyopt.recipe.problems import Problem, shown, within
from polyopt.schedules import SCHEDULES

REGISTRIES: dict[str, Mapping[str, Any]] = {
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "initializer": INITIALIZERS,
    "clipping": CLIPPING,
    "averaging": AVERAGING,
    "sparsity": SPARSITY_SCHEDULES,
    "server": {**SERVER_RULES, **OPTIMIZERS},
}
SCHEDULED = ("schedule", "sparsity")
SCHEDULE_KEY = "schedule"
"""What makes a table a schedule, wherever a number is expected: ``lr = {schedule = "cosine", …}``."""


@dataclass(frozen=True)
class Component:
    """Hold ``name`` out of the registry ``kind``, with ``options`` in the order of the class's fields.

    Parameters
    ----------
    kind
        The registry: ``"optimizer"``, ``"schedule"``, ``"loss"``, …
    name
        As the recipe has it.
    options
        Pairs of a field and its plain value, or a ``Component`` for a schedule.

    Examples
    --------
    >>> Component.parse({"name": "sgd", "lr": 0.1}, "optimizer").build().lr
    0.1
    """

    kind: str
    name: str
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def parse(cls, table: Any, kind: str) -> Component:
        """Read a table, or a bare name; raises ``Problem``.

        Parameters
        ----------
        table
            A mapping with the key ``name`` (``schedule`` of a schedule), or a bare name.
        kind
            The registry.

        Returns
        -------
        Component
            With its options as they were written.

        Raises
        ------
        Problem
            For what is no such table, and for unknown names and keys.
        """
        label = SCHEDULE_KEY if kind in SCHEDULED else "name"
        if isinstance(table, str) and kind not in SCHEDULED:
            table = {label: table}
        if not isinstance(table, Mapping):
            raise Problem((), f" = {shown(table)}; expected a table with the key {label!r}")
        if label not in table:
            raise Problem((label,), f": this key is missing; {nearest('', REGISTRIES[kind])}")
        name = table[label]
        target = REGISTRIES[kind].get(name) if isinstance(name, str) else None
        if target is None:
            raise Problem(
                (label,), f" = {shown(name)}: unknown {kind}; {nearest(str(name), REGISTRIES[kind])}"
            )
        fields = [f.name for f in dataclasses.fields(target) if f.init]
        given = {key: value for key, value in table.items() if key != label}
        for key in given:
            if key not in fields:
                near = keyword(str(key), fields)
                raise Problem((key,), f": {name!r} has no such hyperparameter; {near}")
        options = []
        for field in fields:
            if field in given:
                try:
                    options.append((field, _value(given[field])))
                except Problem as problem:
                    raise within(field, problem) from None
        component = cls(kind, name, tuple(options))
        component.build()
        return component

    def table(self) -> dict[str, Any]:
        """Return it as it stands in a recipe.

        Returns
        -------
        dict
            Plain data.
        """
        label = SCHEDULE_KEY if self.kind in SCHEDULED else "name"
        return {label: self.name} | {key: _plain(value) for key, value in self.options}

    def build(self) -> Any:
        """Make the object itself.

        Returns
        -------
        object
            An instance of the registry's class.

        Raises
        ------
        Problem
            For an option out of range.
        """
        target = REGISTRIES[self.kind][self.name]
        fields = {f.name: f for f in dataclasses.fields(target)}
        for key, value in self.options:
            _check_switch(fields[key], key, value)
        try:
            return target(**{key: _built(value) for key, value in self.options})
        except InputError as e:
            raise _located(str(e), target.__name__, list(fields)) from None
        except TypeError as e:
            missing = re.search(r"missing .*?: '(\w+)'", str(e))
            if missing is None:
                raise
            key = missing.group(1)
            raise Problem((key,), f": this key is missing; {self.name!r} needs it") from None


def _value(value: Any) -> Any:
    """Return an option in immutable form: tables are schedules."""
    if isinstance(value, Mapping):
        return Component.parse(value, "schedule")
    if isinstance(value, list | tuple):
        items = []
        for i, item in enumerate(value):
            try:
                items.append(_value(item))
            except Problem as problem:
                raise within(i, problem) from None
        return tuple(items)
    if isinstance(value, float) and not math.isfinite(value):
        raise Problem((), f" = {value!r}; expected a finite number")
    if isinstance(value, bool | int | float | str):
        return value
    raise Problem((), f" = {shown(value)}; expected a number, a string, true, false, a list or a schedule")


def _plain(value: Any) -> Any:
    if isinstance(value, Component):
        return value.table()
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _built(value: Any) -> Any:
    if isinstance(value, Component):
        return value.build()
    return tuple(_built(item) for item in value) if isinstance(value, tuple) else value


def _check_switch(field: dataclasses.Field[Any], key: str, value: Any) -> None:
    """Hold a switch to its choices, for which 1 is not true, and keep numbers out of a text field."""
    if isinstance(value, Component) and "range" not in field.metadata and "Schedule" not in str(field.type):
        raise Problem((key,), ": this can't be scheduled; expected a plain value")
    choices = [c for c in field.metadata.get("choices", ()) if c is not None]
    if choices and not any(type(value) is type(c) and value == c for c in choices):
        listed = ", ".join(str(c).lower() if isinstance(c, bool) else repr(c) for c in choices)
        raise Problem((key,), f" = {shown(value)}; expected one of {listed}")
    pattern = "Pattern" in str(field.type)
    if (pattern or field.name == "convention") and not isinstance(value, str):
        raise Problem((key,), f" = {shown(value)}; expected a string")
    if pattern:
        try:
            compiled(value)
        except InputError as e:
            raise Problem((key,), f": {e}") from None


def _located(message: str, owner: str, fields: list[str]) -> Problem:
    """Return ``"AdamW: lr = -1.0; expected …"`` with the key taken out of the message."""
    text = message.removeprefix(f"{owner}: ")
    found = re.match(r"(\w+(?:\.\w+|\[\d+\])*)( = .*)", text, re.DOTALL)
    key = re.findall(r"\w+", found.group(1)) if found else []
    if found is None or key[0] not in fields:
        return Problem((), f": {text}")
    return Problem(tuple(int(part) if part.isdigit() else part for part in key), found.group(2))
