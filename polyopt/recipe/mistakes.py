"""All mistakes of a recipe at once: each is mended in a copy, so that the checks behind it run too."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias, get_args

from pydantic import BaseModel, ValidationError

from polyopt.core.errors import InputError
from polyopt.recipe.problems import Problem, found

ROUNDS = 20
"""Checks of the whole recipe at most: one for each mistake that hides another."""
SHOWN = 20
"""Mistakes that one error tells at most."""

Key: TypeAlias = tuple[str | int, ...]


def explained(error: ValidationError, section: type[BaseModel], table: Mapping[str, Any]) -> InputError:
    """Return one error, on one line, with everything that is wrong with ``table``.

    Parameters
    ----------
    error
        What ``section`` raised for ``table``.
    section, table
        The class of the recipe, and its plain data.
    """
    mended = copy.deepcopy(dict(table))
    known: dict[Key, Problem] = {}
    changed: set[Key] = set()
    taken: set[Key] = set()
    for _ in range(ROUNDS):
        before = len(known)
        for problem in found(error, lambda key: fields_of(section, key)):
            if problem.key in known or any(_touch(problem.key, key) for key in changed):
                continue
            if before and _follows(problem, changed, taken):
                continue
            known[problem.key] = problem
            places, meant = _mend(mended, problem)
            changed |= places
            taken |= set() if meant else places
        if len(known) == before:
            break
        try:
            section.model_validate(mended)
            break
        except ValidationError as e:
            error = e
    lines = [str(problem) for problem in known.values()]
    if len(lines) == 1:
        return InputError(lines[0])
    told = " ".join(f"({i}) {line}" for i, line in enumerate(lines[:SHOWN], 1))
    more = f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return InputError(f"{len(lines)} mistakes: {told}{more}")


def fields_of(section: type[BaseModel], key: Sequence[str | int]) -> list[str]:
    """The keys that the table at ``key`` may have; none where it is no table of fixed keys."""
    current: type[BaseModel] | None = section
    for part in key:
        if current is not None and isinstance(part, str):
            field = current.model_fields.get(part)
            current = None if field is None else next(_sections(field.annotation), None)
    return [] if current is None else list(current.model_fields)


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _sections(part)


def _touch(a: Key, b: Key) -> bool:
    """True if one of two places lies within the other."""
    return a[: len(b)] == b or b[: len(a)] == a


def _follows(problem: Problem, changed: set[Key], taken: set[Key]) -> bool:
    """True if ``problem`` may come from the mending.

    A key that belongs to a choice which is another now; beside one that was taken out, a key that is missing;
    and what a table says of one of its own keys for a table within it.
    """
    table = problem.key[:-1]
    choice = re.match(r": only for (\w+) = ", problem.message)
    if choice is not None and (*table, choice.group(1)) in changed:
        return True
    if "this key is missing" in problem.message:
        return any(table == key[:-1] for key in taken)
    return any(len(table) < len(key) - 1 and key[: len(table)] == table for key in taken)


def _mend(table: dict[str, Any], problem: Problem) -> tuple[set[Key], bool]:
    """Put what was meant in the place of what is wrong, or take it out; the places, and which of the two."""
    *path, last = problem.key or ("",)
    parent: Any = table
    for part in path:
        if not _holds(parent, part):
            return set(), False
        parent = parent[part]
    if not isinstance(parent, dict) or last not in parent:
        return set(), False
    value = parent.pop(last)
    near = re.search(r"did you mean '([^']*)'\?$", problem.message)
    if near is not None and problem.message.startswith(" = "):
        parent[last] = near.group(1)
        return {problem.key}, True
    if near is not None and re.match(": unknown key|: '\\w+' has no such hyperparameter", problem.message):
        parent.setdefault(near.group(1), value)
        return {problem.key, (*path, near.group(1))}, True
    return {problem.key}, False


def _holds(table: Any, key: str | int) -> bool:
    if isinstance(table, dict):
        return key in table
    return isinstance(table, list) and isinstance(key, int) and key < len(table)
