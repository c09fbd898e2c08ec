"""Select parameters by patterns of their paths, and find a model's layers from numbered paths."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from polyopt.core import tree
from polyopt.core.errors import InputError
from polyopt.core.rule import Pattern, compiled, matches, unmatched


def select(params: Any, *patterns: Pattern) -> tuple[str, ...]:
    """Return the paths that any of ``patterns`` matches, in the order of the tree.

    Parameters
    ----------
    params
        A tree of parameters.
    *patterns
        Regular expressions that are searched for in a path, or predicates on it.

    Returns
    -------
    tuple of str
        The paths.

    Raises
    ------
    InputError
        For a pattern that matches no path: it names the nearest ones.

    Examples
    --------
    >>> select({"embed": 0, "layers": [{"w": 0, "b": 0}, {"w": 0, "b": 0}]}, r"layers.*w$", r"embed")
    ('embed', 'layers.0.w', 'layers.1.w')
    """
    paths = tree.flatten(params).paths
    chosen = set().union(*(_matched(pattern, paths) for pattern in patterns))
    return tuple(path for path in paths if path in chosen)


def assigned(params: Any, members: Mapping[Any, Any] | Sequence[tuple[Pattern, Any]]) -> dict[str, Any]:
    """Return ``{path: value}`` by the first pattern that matches each path; every pattern must match one.

    >>> assigned({"a": 0, "b": 0, "c": 0}, [("a", 1), ("[ab]", 2)])
    {'a': 1, 'b': 2}
    """
    pairs = list(members.items()) if isinstance(members, Mapping) else list(members)
    paths = tree.flatten(params).paths
    found: dict[str, Any] = {}
    for pattern, value in pairs:
        for path in _matched(pattern, paths):
            found.setdefault(path, value)
    return found


def numbered_layers(
    params: Any,
    *,
    pattern: str | None = None,
    bottom: Sequence[Pattern] = (),
    top: Sequence[Pattern] = (),
) -> tuple[Pattern, ...]:
    r"""Find the layers of a model by the numbers in its paths: one pattern for each, the lowest first.

    Parameters
    ----------
    params
        A tree of parameters, with paths like ``layers.0.weight``.
    pattern
        A regular expression with one group, which is the layer's number. By default the first part of a path
        that is a number, which must follow the same name everywhere.
    bottom, top
        Patterns of what lies below the numbered layers (embeddings) and above them (a head), each a layer of
        its own, the lowest first.

    Returns
    -------
    tuple
        Patterns, the lowest layer's first.

    Raises
    ------
    InputError
        For a path that has no number and that neither ``bottom`` nor ``top`` matches: whether an embedding
        is taken for a head must not be left to chance. For numbers under two names, too.

    Examples
    --------
    >>> params = {"embed": 0, "layers": [{"w": 0}, {"w": 0}], "head": 0}
    >>> numbered_layers(params, bottom=["^embed"], top=["^head"])
    ('^embed', '^(?:layers\\.)0(?![0-9])', '^(?:layers\\.)1(?![0-9])', '^head')
    """
    paths = tree.flatten(params).paths
    placed = set(select(params, *bottom, *top))
    found: dict[int, set[str]] = {}
    names: dict[str, str] = {}
    for path in (path for path in paths if path not in placed):
        prefix, number = _number(path, pattern)
        names.setdefault(prefix, path)
        found.setdefault(number, set()).add(re.escape(prefix))
        if pattern is None and len(names) > 1:
            first, second = list(names.values())[:2]
            raise InputError(
                f"numbered_layers: {first!r} and {second!r} are numbered under different names; expected a "
                "pattern with one group for the number"
            )
    layers = (f"^(?:{'|'.join(sorted(found[n]))}){n}(?![0-9])" for n in sorted(found))
    return (*bottom, *layers, *top)


def _number(path: str, pattern: str | None) -> tuple[str, int]:
    found = (compiled(pattern) if pattern else re.compile(r"(?:^|\.)(\d+)(?=\.|$)")).search(path)
    if found is None:
        raise InputError(
            f"numbered_layers: {path!r} has no number; expected a pattern of bottom or top that matches it"
        )
    if found.re.groups != 1 or not (found.group(1) or "").isdecimal():
        raise InputError(
            f"numbered_layers: pattern = {pattern!r}; expected one group, which is a number in {path!r}"
        )
    return path[: found.start(1)], int(found.group(1))


def _matched(pattern: Pattern, paths: Sequence[str]) -> list[str]:
    found = [path for path in paths if matches(pattern, path)]
    if not found:
        name = pattern if isinstance(pattern, str) else getattr(pattern, "__name__", repr(pattern))
        raise InputError(f"pattern {name!r} {unmatched(pattern, paths)}")
    return found
