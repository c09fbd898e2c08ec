"""From whatever was found wrong with a recipe to lines that name the key and the remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from polyopt.core.errors import nearest

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


class Problem(ValueError):
    """Something wrong at ``key``, which is relative to the table being read."""

    def __init__(self, key: tuple[str | int, ...], message: str) -> None:
        super().__init__(message)
        self.key, self.message = key, message

    def __str__(self) -> str:
        return f"{dotted(self.key) or 'recipe'}{self.message}"


class Problems(ValueError):
    """Several things wrong, at keys relative to one table."""

    def __init__(self, each: Sequence[Problem]) -> None:
        super().__init__("; ".join(map(str, each)))
        self.each = each


def within(key: str | int, problem: Problem) -> Problem:
    """Return the same problem, seen from the table around."""
    return Problem((key, *problem.key), problem.message)


def shown(value: Any) -> str:
    """``value`` for an error: on one line and short."""
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


def found(
    error: ValidationError, fields_of: Callable[[tuple[str | int, ...]], Iterable[str]]
) -> Iterator[Problem]:
    """All problems of ``error``; ``fields_of(key of a table)`` gives the keys that it may have."""
    # A misspelt key is missing too: say first what was written.
    for one in sorted(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden"):
        key: tuple[str | int, ...] = tuple(one["loc"])
        cause = one.get("ctx", {}).get("error")
        if isinstance(cause, Problem):
            yield Problem((*key, *cause.key), cause.message)
        elif isinstance(cause, Problems):
            yield from (Problem((*key, *each.key), each.message) for each in cause.each)
        else:
            yield Problem(key, _said(one, key, fields_of))


def _said(
    one: ErrorDetails,
    key: tuple[str | int, ...],
    fields_of: Callable[[tuple[str | int, ...]], Iterable[str]],
) -> str:
    """Pydantic's words in a recipe's."""
    kind, value = one["type"], one["input"]
    if kind == "extra_forbidden":
        return f": unknown key; {nearest(str(key[-1]), fields_of(key[:-1]))}"
    if kind == "missing":
        return ": this key is missing; add it"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f" = {shown(value)}; expected a table"
    if kind == "literal_error":
        choices = one["ctx"]["expected"].replace(" or ", ", ").split(", ")
        if isinstance(value, str) and all(choice.startswith("'") for choice in choices):
            return f" = {shown(value)}; {nearest(value, [choice.strip(chr(39)) for choice in choices])}"
        bare = " (without quotes)" if value in choices else ""
        return f" = {shown(value)}; expected {one['ctx']['expected']}{bare}"
    expected = one["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    expected = "expected " + expected.replace(" valid ", " ").replace("a integer", "an integer")
    expected = expected.replace("a tuple", "a list")
    if isinstance(value, str) and _number(value) and "string" not in expected:
        expected += f" (write {value} without quotes)"
    return f" = {shown(value)}; {expected}"


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text in ("true", "false")
    return True
