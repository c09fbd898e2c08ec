"""From whatever was found wrong with a recipe to one line that names the key and the remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from pydantic import ValidationError

from polyopt.core.errors import InputError, nearest


class Problem(ValueError):
    """Something wrong at ``key``, which is relative to the table being read."""

    def __init__(self, key: tuple[str | int, ...], message: str) -> None:
        super().__init__(message)
        self.key, self.message = key, message


def within(key: str | int, problem: Problem) -> Problem:
    """Return the same problem, seen from the table around."""
    return Problem((key, *problem.key), problem.message)


def shown(value: Any) -> str:
    """Show ``value`` in an error: on one line and short."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def dotted(key: Iterable[str | int]) -> str:
    """Write a key's path as errors name it, on one line.

    Examples
    --------
    >>> dotted(("partition", 0, "pattern")), dotted(("a\\n",))
    ('partition.0.pattern', "'a\\\\n'")
    """
    parts = map(str, key)
    return ".".join(part if part.isprintable() and len(part) <= 60 else shown(part) for part in parts)


def one_line(
    error: ValidationError, fields_of: Callable[[tuple[str | int, ...]], Iterable[str]]
) -> InputError:
    """The first problem of ``error``; ``fields_of(key of a table)`` gives the keys that it may have."""
    found_wrong = error.errors(include_url=False)
    # A misspelt key is missing too: say what was written, not what was not.
    first = min(found_wrong, key=lambda e: e["type"] != "extra_forbidden")
    key: tuple[str | int, ...] = tuple(first["loc"])
    kind, found = first["type"], first["input"]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, Problem):
        return InputError(f"{dotted((*key, *cause.key))}{cause.message}")
    if kind == "extra_forbidden":
        return InputError(f"{dotted(key)}: unknown key; {nearest(str(key[-1]), fields_of(key[:-1]))}")
    if kind == "missing":
        return InputError(f"{dotted(key)}: this key is missing; add it")
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return InputError(f"{dotted(key) or 'recipe'} = {shown(found)}; expected a table")
    if kind == "literal_error":
        choices = first["ctx"]["expected"].replace(" or ", ", ").split(", ")
        if isinstance(found, str) and all(choice.startswith("'") for choice in choices):
            near = nearest(found, [choice.strip("'") for choice in choices])
        else:
            near = f"expected {first['ctx']['expected']}" + (" (without quotes)" if found in choices else "")
        return InputError(f"{dotted(key)} = {shown(found)}; {near}")
    expected = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    expected = "expected " + expected.replace(" valid ", " ").replace("a integer", "an integer")
    expected = expected.replace("a tuple", "a list")
    if isinstance(found, str) and _number(found) and "string" not in expected:
        expected += f" (write {found} without quotes)"
    return InputError(f"{dotted(key)} = {shown(found)}; {expected}")


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text in ("true", "false")
    return True
