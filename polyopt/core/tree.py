"""Named leaves of nested containers: the one place that knows about trees (optree does the work).

A tree is any nesting of dicts, lists, tuples, named tuples and types registered with optree. Its leaves are
named by their path, joined by dots as PyTorch does: the one of ``{"layers": [{"weight": w}]}`` is
``"layers.0.weight"``.
``None`` is a leaf of its own: a parameter without a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import optree

from polyopt.core.errors import InputError, nearest

Tree = Any
ROOT = "param"
"""The name of a leaf that stands alone, not inside any container."""


@dataclass(frozen=True)
class Flat:
    """Hold the leaves of a tree, their names, and the structure to put them back into."""

    paths: tuple[str, ...]
    leaves: list[Any]
    structure: Any

    def unflatten(self, leaves: Iterable[Any]) -> Tree:
        """Put leaves, in the order of ``paths``, into a tree of this structure."""
        return optree.tree_unflatten(self.structure, list(leaves))


def flatten(tree: Tree) -> Flat:
    """Name and list the leaves of ``tree``, dict keys in sorted order.

    >>> flatten({"b": 1, "a": [2, None]}).paths
    ('a.0', 'a.1', 'b')
    """
    leaves, structure = optree.tree_flatten(tree, none_is_leaf=True)
    return Flat(_paths(structure), leaves, structure)


@lru_cache(maxsize=256)
def _paths(structure: Any) -> tuple[str, ...]:
    names = tuple(
        ".".join(str(getattr(entry, "field", entry.entry)) for entry in accessor) or ROOT
        for accessor in optree.treespec_accessors(structure)
    )
    if len(set(names)) != len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise InputError(f"two leaves have the same path {twice!r}: rename one of their keys")
    return names


def aligned(tree: Tree, like: Flat, what: str) -> list[Any]:
    """Return the leaves of ``tree``, which must have the paths of ``like``; ``what`` names it in errors."""
    flat = flatten(tree)
    if flat.paths is like.paths or flat.paths == like.paths:
        return flat.leaves
    have, want = set(flat.paths), set(like.paths)
    if have == want:  # an OrderedDict keeps its own order
        leaves = dict(zip(flat.paths, flat.leaves, strict=True))
        return [leaves[path] for path in like.paths]
    if flat.structure.type is not like.structure.type:
        names = f": {', '.join(map(repr, like.paths[:3]))}{', …' * (len(like.paths) > 3)}"
        raise InputError(
            f"{what}: found {_container(flat)}; expected the structure of the parameters, {_container(like)}"
            + (names if like.paths != (ROOT,) else "")
        )
    for path in like.paths:
        if path not in have:
            raise InputError(f"{what}: leaf {path!r} is missing; {nearest(path, have - want or have)}")
    extra = next(p for p in flat.paths if p not in want)
    raise InputError(f"{what}: leaf {extra!r} has no parameter; {nearest(extra, want)}")


def _container(flat: Flat) -> str:
    """Return what ``flat`` is a flat form of: ``"a dict of 2 leaves"``, say, or ``"an array"``."""
    kind = flat.structure.type
    if kind is None:
        leaf = flat.leaves[0] if flat.leaves else None
        named = leaf is None or hasattr(leaf, "shape")
        return ("None" if leaf is None else "an array") if named else f"a {type(leaf).__name__}"
    return f"a {kind.__name__} of {len(flat.paths)} {'leaf' if len(flat.paths) == 1 else 'leaves'}"


def map_leaves(function: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """Apply ``function(leaf, *rest_leaves)`` to every leaf, in a tree of the same structure; None stays."""
    flat = flatten(tree)
    others = [aligned(other, flat, "tree") for other in rest]
    return flat.unflatten(
        None if leaf is None else function(leaf, *more)
        for leaf, *more in zip(flat.leaves, *others, strict=True)
    )


def named(tree: Tree) -> dict[str, Any]:
    """Return ``{path: leaf}`` of every leaf that is not ``None``.

    >>> named({"layer": {"weight": 1.0, "bias": None}})
    {'layer.weight': 1.0}
    """
    flat = flatten(tree)
    return {p: x for p, x in zip(flat.paths, flat.leaves, strict=True) if x is not None}


def rename(like: Tree, values: dict[str, Any], what: str = "values") -> Tree:
    """Make a tree of the structure of ``like`` with the leaves ``values[path]``."""
    flat = flatten(like)
    expected: Sequence[str] = [p for p, x in zip(flat.paths, flat.leaves, strict=True) if x is not None]
    for path in values:
        if path not in flat.paths:
            raise InputError(f"{what}: unknown leaf {path!r}; {nearest(path, flat.paths)}")
    for path in expected:
        if path not in values:
            raise InputError(f"{what}: leaf {path!r} is missing; {nearest(path, values)}")
    return flat.unflatten(values.get(p) for p in flat.paths)
