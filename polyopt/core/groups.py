"""Divide leaves into those of one kind."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from operator import itemgetter
from typing import Any, TypeVar

Kind = TypeVar("Kind", bound=Hashable)


def by_kind(kinds: Iterable[Kind]) -> dict[Kind, list[int]]:
    """List the positions of each kind, in the order in which it first comes.

    Parameters
    ----------
    kinds
        The kind of each leaf: whatever those have in common that are handled together.

    Returns
    -------
    dict
        ``{kind: positions}``.

    Examples
    --------
    >>> by_kind(["float32", "float64", "float32"])
    {'float32': [0, 2], 'float64': [1]}
    """
    found: dict[Kind, list[int]] = {}
    for i, kind in enumerate(kinds):
        found.setdefault(kind, []).append(i)
    return found


def chunks(members: list[int], most: int) -> list[tuple[int, ...]]:
    """Cut ``members`` into runs of at most ``most``.

    Parameters
    ----------
    members
        Positions of leaves.
    most
        The length of all runs but the last.

    Returns
    -------
    list of tuple
        The runs in their order.

    Examples
    --------
    >>> chunks([0, 1, 2, 3, 4], 2)
    [(0, 1), (2, 3), (4,)]
    """
    return [tuple(members[k : k + most]) for k in range(0, len(members), most)]


def picker(positions: Sequence[int]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """Make a function that takes the elements at ``positions`` out of a sequence.

    Parameters
    ----------
    positions
        At least one.

    Returns
    -------
    Callable
        ``f(sequence)``: the elements in the order of ``positions``.

    Examples
    --------
    >>> picker([2, 0])("abc"), picker([1])("abc")
    (('c', 'a'), ['b'])
    """
    if len(positions) == 1:
        return lambda values: [values[positions[0]]]
    return itemgetter(*positions)
