"""An update like the one before: leaves that are given up at each step are not grouped anew each time.

To name, check and group a thousand leaves takes longer than to update them. So the structure of an in-place
update in host memory is kept: which leaf stands where in the trees, what goes through which kernel. The
next one is held against it by surveys that read every array's type, dtype, shape and address: whatever
differs, the update goes the long way, which also knows how to complain.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from polyopt.backend.host.fused import FusedLift, KernelPlan, NoOverlap
from polyopt.backend.protocol import Backend
from polyopt.core.ops import Array
from polyopt.core.tree import Flat, Tree, flatten
from polyopt.engine.execution import Execution, Group
from polyopt.engine.lift import lifted
from polyopt.engine.plan import Segment, program


@dataclass(frozen=True)
class LeafOrder:
    """Order of the leaves in their container: a flat dict's keys, or the whole structure."""

    structure: Any
    keys: list[Any] | None

    @classmethod
    def of(cls, tree: Tree, flat: Flat) -> LeafOrder:
        alone = type(tree) is dict and sorted(map(str, tree)) == sorted(flat.paths)
        return cls(flat.structure, list(tree) if alone else None)

    def leaves(self, tree: Tree) -> list[Any] | None:
        """The leaves in the container's order; ``None`` where the containers are others."""
        if self.keys is not None:
            return list(tree.values()) if type(tree) is dict and list(tree) == self.keys else None
        flat = flatten(tree)
        return flat.leaves if flat.structure == self.structure else None

    def order(self, flat: Flat) -> list[int]:
        """For each leaf of ``flat`` its position in ``leaves``."""
        if self.keys is None:
            return list(range(len(flat.leaves)))
        at = {str(key): i for i, key in enumerate(self.keys)}
        return [at[path] for path in flat.paths]


def _picker(positions: Sequence[int], total: int) -> Callable[[list[Any]], list[Any]]:
    """Takes the elements at ``positions`` out of a list of ``total``."""
    if list(positions) == list(range(total)):
        return lambda values: values
    if len(positions) == 1:
        return lambda values: [values[positions[0]]]
    pick = itemgetter(*positions)
    return lambda values: list(pick(values))


@dataclass(frozen=True)
class CachedGroup:
    """A group of leaves of the update before, and how to find its arrays again."""

    pipeline: tuple[Segment, ...]
    indices: list[int]
    dtype: str
    lift: FusedLift
    look: KernelPlan
    scalars: tuple[str, ...]
    pick: Callable[[list[Any]], list[Any]]
    """From the leaves of a tree."""
    slots: dict[str, Callable[[list[Any]], list[Any]]]
    """From the values of each slot that has the leaf's shape."""
    numbers: dict[str, Callable[[list[Any]], list[Any]]]
    """From those of each scalar slot."""


@dataclass(frozen=True)
class CachedArrays:
    """The arrays of an update that is like the one kept."""

    flat: Flat
    g: list[Array]
    groups: list[tuple[CachedGroup, dict[str, list[Array]], Group]]


class CachedStep:
    """The structure of one update, to be used by one thread at a time."""

    def __init__(
        self,
        backend: Backend,
        flat: Flat,
        places: LeafOrder,
        slots: dict[str, list[str]],
        kept: list[CachedGroup],
    ) -> None:
        self.backend, self.lock = backend, threading.Lock()
        self._paths, self._structure = flat.paths, flat.structure
        self._places, self._slots, self._kept = places, slots, kept
        self._in_order = _picker(places.order(flat), len(flat.leaves))

    def ready(self, params: Tree, grads: Tree, state: dict[str, Any]) -> CachedArrays | None:
        """Return what ``run`` takes, if this update is like the one kept. Nothing is changed."""
        p, g = self._places.leaves(params), self._places.leaves(grads)
        slots = state.get("slots", {})
        step = state.get("step")
        if p is None or g is None or state.get("missed") != {} or type(step) is not int or step < 0:
            return None
        values: dict[str, list[Any]] = {}
        for name, keys in self._slots.items():
            if list(slots.get(name, ())) != keys:
                return None
            values[name] = list(slots[name].values())
        groups = []
        for kept in self._kept:
            own = {name: set(pick(values[name])) for name, pick in kept.numbers.items()}
            if any(len(x) != 1 for x in own.values()):
                return None
            arrays = {"g": kept.pick(g), "p": kept.pick(p)}
            arrays |= {name: pick(values[name]) for name, pick in kept.slots.items()}
            if not kept.lift.again(kept.look, arrays):
                return None
            numbers = {name: x.pop() for name, x in own.items()}
            group = Group(kept.pipeline, kept.indices, kept.dtype, 0, numbers, arrays["g"])
            groups.append((kept, arrays, group))
        return CachedArrays(Flat(self._paths, self._in_order(p), self._structure), self._in_order(g), groups)

    def run(self, ready: CachedArrays, execution: Execution) -> dict[str, Any]:
        """Update the arrays in place and give the next state."""
        execution.measure_heads([group for _, _, group in ready.groups])
        slots = execution.state["slots"]
        # All of them before anything is written: one that is refused changes nothing.
        coefficients = [execution.scalars(group, kept.pipeline[0]) for kept, _, group in ready.groups]
        for (kept, arrays, group), own in zip(ready.groups, coefficients, strict=True):
            scalars = own | execution.measured_for(kept.pipeline[0])
            wanted = {n: scalars[n] for n in kept.scalars}
            for name, x in wanted.items():
                if not isinstance(x, int | float):
                    wanted[name] = float(self.backend.to_numpy(x))
            kept.lift.run(kept.look, arrays, wanted, group.dtype)
            for name, new in group.results.items():
                paths = [self._paths[i] for i in group.indices]
                slots = slots | {name: slots[name] | dict(zip(paths, new, strict=True))}
        return execution.state | {"step": execution.next_step(), "slots": slots}


def record(
    backend: Backend,
    tree: Tree,
    flat: Flat,
    g: Sequence[Array | None],
    groups: list[Group],
    state: dict[str, Any],
) -> CachedStep | None:
    """Return what to keep of an update in place that left ``state``.

    ``None`` where it can't be repeated so.
    """
    slots = {name: list(values) for name, values in state["slots"].items()}
    if state["missed"] or type(state["step"]) is not int or any(x is None for x in flat.leaves):
        return None
    places = LeafOrder.of(tree, flat)
    found = [_keep(backend, flat, places.order(flat), g, group, state["slots"]) for group in groups]
    kept = [x for x in found if x is not None]
    if not kept or len(kept) < len(found):
        return None
    if len(kept) > 1:
        NoOverlap.join([x.look.apart for x in kept])
    return CachedStep(backend, flat, places, slots, kept)


def _keep(
    backend: Backend,
    flat: Flat,
    order: list[int],
    g: Sequence[Array | None],
    group: Group,
    slots: dict[str, dict[str, Any]],
) -> CachedGroup | None:
    if len(group.pipeline) != 1 or group.pipeline[0].leafwise:
        return None
    code = program(group.pipeline[0].parts, "p")
    lift = getattr(lifted(backend, code, True), "fused", None)
    if not isinstance(lift, FusedLift):
        return None
    arrays = {"g": [g[i] for i in group.indices], "p": [flat.leaves[i] for i in group.indices]}
    pickers: dict[str, dict[str, Any]] = {"like": {}, "scalar": {}}
    written = {"p"}
    for name, slot in (names for part in group.pipeline[0].parts for names in part.names):
        at = {path: i for i, path in enumerate(slots[name])}
        positions = [at[flat.paths[i]] for i in group.indices]
        pickers[slot.shape][name] = _picker(positions, len(at))
        if slot.shape == "like":
            arrays[name] = [slots[name][flat.paths[i]] for i in group.indices]
            written |= set() if slot.constant else {name}
    look = lift.look(arrays, group.dtype, True)
    if look is None or not look.kernel.in_place.issuperset(written):
        return None
    pick = _picker([order[i] for i in group.indices], len(order))
    return CachedGroup(
        group.pipeline,
        group.indices,
        group.dtype,
        lift,
        look,
        code.scalars,
        pick,
        pickers["like"],
        pickers["scalar"],
    )
