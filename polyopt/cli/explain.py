"""``polyopt explain ALGORITHM``: the formula that really runs."""

from __future__ import annotations

import dataclasses
import inspect
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from polyopt.cli import output
from polyopt.core.aliases import keyword
from polyopt.core.errors import InputError, nearest
from polyopt.core.rule import Rule


def explain(
    algorithm: str, convention: str | None, settings: Sequence[str], ascii: bool, as_json: bool
) -> int:
    """Print the formula of ``algorithm`` under ``convention`` with ``settings`` (``key=value``)."""
    from polyopt.optim.explain import explain as formula

    rule = build(algorithm, convention, settings)
    text = formula(rule, ascii=ascii)
    if as_json:
        values = {f.name: _shown(getattr(rule, f.name)) for f in dataclasses.fields(rule)}
        output.emit(
            {
                "algorithm": algorithm,
                "convention": getattr(rule, "convention", None),
                "hyperparameters": values,
                "formula": text,
            }
        )
    else:
        print(text)
    return 0


def build(algorithm: str, convention: str | None, settings: Sequence[str]) -> Rule:
    """Make the rule that a recipe would name ``algorithm``.

    Raises ``InputError`` for an algorithm, convention or hyperparameter that is not one.

    Examples
    --------
    >>> build("adam", None, ["eps=1e-3"]).eps
    0.001
    """
    rules = known()
    if algorithm not in rules:
        raise InputError(f"unknown algorithm {algorithm!r}; {nearest(algorithm, rules)}")
    kind = rules[algorithm]
    fields = {f.name: f for f in dataclasses.fields(kind)}
    values = dict(setting(text) for text in settings)
    if convention is not None:
        values["convention"] = convention
    for key in values:
        if key == "convention" and key not in fields:
            raise InputError(f"{algorithm} is the same in every convention: leave --convention out")
        if key not in fields:
            raise InputError(f"{algorithm} has no hyperparameter {key!r}; {keyword(key, fields)}")
    missing = [n for n, f in fields.items() if _required(f) and n not in values]
    if missing:
        raise InputError(f"{algorithm} needs {missing[0]}: give it with --set {missing[0]}=0.1")
    return kind(**values)


def known() -> Mapping[str, type[Rule]]:
    """Return every rule by the name that recipes use, but for those that are functions of a table."""
    from polyopt.federated import SERVER_RULES
    from polyopt.optim import OPTIMIZERS
    from polyopt.optim.clipping import CLIPPING

    return {k: v for k, v in {**OPTIMIZERS, **CLIPPING, **SERVER_RULES}.items() if inspect.isclass(v)}


def setting(text: str) -> tuple[str, Any]:
    """Return ``key=value`` with the value as TOML has it; a bare word is a string.

    >>> setting("eps=1e-3"), setting("nesterov=true"), setting("form=averaged")
    (('eps', 0.001), ('nesterov', True), ('form', 'averaged'))
    """
    key, found, value = text.partition("=")
    if not found or not key.strip():
        raise InputError(f"--set {text!r}: expected key=value, for example --set eps=1e-3")
    try:
        return key.strip(), tomllib.loads(f"x = {value}")["x"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _shown(value: Any) -> Any:
    return value if value is None or isinstance(value, str | bool | int | float) else repr(value)
