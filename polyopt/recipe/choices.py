"""Keys of a table that belong to one of its choices alone: their defaults, and their refusal elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polyopt.recipe.problems import Problem
from polyopt.recipe.sections import Section


def filled(table: Any, choice: str, own: Mapping[str, Mapping[str, Any]], default: str | None = None) -> Any:
    """Return ``table`` with the defaults of the keys that what it chose, or ``default``, has of its ``own``.

    >>> filled({"loss": "decoupled", "beta": 2.0}, "loss", {"decoupled": {"alpha": 1.0, "beta": 8.0}})
    {'alpha': 1.0, 'beta': 2.0, 'loss': 'decoupled'}
    """
    chosen = table.get(choice, default) if isinstance(table, Mapping) else None
    return {**own[chosen], **table} if isinstance(chosen, str) and chosen in own else table


def check_own(section: Section, choice: str, own: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a key of another choice than the one that was made."""
    found = getattr(section, choice)
    for name, keys in own.items():
        for key in keys:
            if key not in own.get(found, {}) and getattr(section, key) is not None:
                raise Problem((key,), f": only for {choice} = {name!r}; found {found!r}")
