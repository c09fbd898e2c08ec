"""Hold what is given up to an update in place: each array by itself, in memory that can be written to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from polyopt.backend.host.overlap import apart, meeting, share
from polyopt.backend.protocol import Backend
from polyopt.core.errors import InputError
from polyopt.core.ops import Array
from polyopt.core.tree import Flat
from polyopt.engine.plan import Plan


class GivenUp:
    """The arrays that an update writes into, then those that it keeps as they are, and their names."""

    def __init__(
        self, plan: Plan, flat: Flat, g: Sequence[Array | None], slots: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self._paths = flat.paths
        columns: list[tuple[str, list[int], list[Array]]] = []
        kept: list[tuple[str, list[int], list[Array]]] = []
        for pipeline, indices in plan.classes:
            moved = [i for i in indices if g[i] is not None]
            if not moved:  # the state may not even have their slots
                continue
            columns.append(("", moved, [flat.leaves[i] for i in moved]))
            for name, slot in (x for segment in pipeline for part in segment.parts for x in part.names):
                if slot.shape == "like":
                    values = slots[name]
                    column = (name, moved, [values[self._paths[i]] for i in moved])
                    (kept if slot.constant else columns).append(column)
        still = [i for i, x in enumerate(flat.leaves) if x is not None and g[i] is None]
        kept.append(("", still, [flat.leaves[i] for i in still]))
        self._columns = columns + kept
        self.arrays = [x for _, _, column in self._columns for x in column]
        self.written = sum(len(column) for _, _, column in columns)

    def _name(self, index: int) -> tuple[str, str]:
        for slot, indices, _ in self._columns:
            if index < len(indices):
                return slot, self._paths[indices[index]]
            index -= len(indices)
        raise IndexError(index)

    def name(self, index: int) -> str:
        """Return how an error names an array."""
        slot, path = self._name(index)
        return f"slot {slot!r} of leaf {path!r}" if slot else f"leaf {path!r}"

    def pair(self, first: int, second: int) -> str:
        """Return how an error names two of them."""
        (slot, path), (other, at) = self._name(first), self._name(second)
        if slot or other:
            return f"{self.name(first)} and {self.name(second)}"
        path, at = sorted((path, at))
        return f"leaves {path!r} and {at!r}"


def alone(
    backend: Backend,
    plan: Plan,
    flat: Flat,
    g: list[Array | None],
    slots: Mapping[str, Mapping[str, Any]],
) -> list[Array | None]:
    """Refuse arrays that can't be updated in place, each by itself; give the gradients, apart from them.

    A backend whose arrays may share memory, or may not be writable, has two methods for this, which are
    optional: ``extents(arrays, written)`` gives an ``Extent`` for each, or ``None`` if none of the first
    ``written`` shares memory with another or has a fault; ``placed(x)`` a host array that has its
    elements where ``x`` has them.

    Parameters
    ----------
    plan, flat, g, slots
        What each leaf goes through, the leaves, their gradients and the state's slots.

    Returns
    -------
    list
        ``g``, with a copy of each gradient that lies in memory that is written to.

    Raises
    ------
    InputError
        For one array in two places, for two that share memory and for one that can't be written in place: it
        names them. Nothing was changed then.
    """
    given = GivenUp(plan, flat, g, slots)
    arrays, written = given.arrays, given.written
    ids = list(map(id, arrays))
    inside = set(ids[:written])
    if len(inside) < written or not inside.isdisjoint(ids[written:]):
        first: dict[int, int] = {}
        for i, x in enumerate(ids):
            if first.setdefault(x, i) < min(i, written):
                _refuse(given.pair(first[x], i), "are the same array, which")
    g = [_copy(backend, x) if id(x) in inside else x for x in g]
    extents, place = getattr(backend, "extents", None), getattr(backend, "placed", None)
    if extents is None or place is None:
        return g
    present = [i for i, x in enumerate(g) if x is not None]
    everything = [*arrays, *(g[i] for i in present)]
    found = extents(everything, written)
    if found is None:
        return g
    for i, extent in enumerate(found[:written]):
        if extent.fault:
            raise InputError(
                f"{given.name(i)} {extent.fault}, so donate=True can't update it in place; give a copy, or "
                "leave donate=True out. Nothing was changed"
            )
    changed = [not x.fixed for x in found[:written]] + [False] * (len(found) - written)
    for i, j in meeting(found, written):
        if not (changed[i] or changed[j]) or not share(place(everything[i]), place(everything[j])):
            continue
        if j < len(arrays):
            _refuse(given.pair(i, j), "share memory, which")
        at = present[j - len(arrays)]
        g[at] = _copy(backend, everything[j])
    return g


def separate(backend: Backend, targets: Sequence[Array], others: Sequence[Array]) -> bool:
    """Return True if none of ``targets`` is, or shares memory with, another one or one of ``others``."""
    inside = set(map(id, targets))
    if len(inside) < len(targets) or not inside.isdisjoint(map(id, others)):
        return False
    extents = getattr(backend, "extents", None)
    return extents is None or apart(extents([*targets, *others], len(targets)), len(targets))


def _copy(backend: Backend, x: Array) -> Array:
    return backend.ops.asarray(backend.stop_gradient(x), copy=True)


def _refuse(what: str, why: str) -> None:
    raise InputError(
        f"{what} {why} donate=True would update twice in place; give it once (or a copy), or leave "
        "donate=True out. Nothing was changed"
    )
