"""An update like the one before: leaves that are given up at each step are not grouped anew each time.

To name, check and group a thousand leaves takes longer than to update them. So the structure of an update
is kept: which leaf stands where in the trees, what goes through which kernel. The next one is held against it
by a ``Repeatable``, which looks at every array's type, dtype and shape (and memory on the host): whatever
differs, the update goes the long way, which also knows how to complain. In host memory the arrays are changed
in place; where arrays are immutable (JAX), new ones take their places in new containers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from polyopt.backend.host.fused import FusedLift
from polyopt.backend.host.in_place import InPlaceLift
from polyopt.backend.host.overlap import NoOverlap
from polyopt.backend.protocol import Backend, Repeatable
from polyopt.core.groups import picker
from polyopt.core.ops import Array
from polyopt.core.rule import Global
from polyopt.core.tree import Flat, Tree, flatten
from polyopt.engine.execution import Execution, Group
from polyopt.engine.given_up import separate
from polyopt.engine.host_norm import HostNorm, measured
from polyopt.engine.hyperparameters import PartScalars
from polyopt.engine.lift import lifted
from polyopt.engine.plan import Segment, program


@dataclass(frozen=True)
class LeafOrder:
    """Order of the leaves in their container: a flat dict's keys, or the whole structure."""

    structure: Any
    keys: list[Any] | None

    @classmethod
    def of(cls, tree: Tree, flat: Flat) -> LeafOrder:
        """Note the containers and the order of the leaves of ``tree``."""
        alone = type(tree) is dict and sorted(map(str, tree)) == sorted(flat.paths)
        return cls(flat.structure, list(tree) if alone else None)

    def leaves(self, tree: Tree) -> list[Any] | None:
        """Return the leaves in the container's order; ``None`` where the containers are others."""
        if self.keys is not None:
            return list(tree.values()) if type(tree) is dict and list(tree) == self.keys else None
        flat = flatten(tree)
        return flat.leaves if flat.structure == self.structure else None

    def tree(self, leaves: list[Any]) -> Tree:
        """Return a container of such leaves."""
        if self.keys is not None:
            return dict(zip(self.keys, leaves, strict=True))
        return Flat((), leaves, self.structure).unflatten(leaves)

    def order(self, flat: Flat) -> list[int]:
        """Return for each leaf of ``flat`` its position in ``leaves``."""
        if self.keys is None:
            return list(range(len(flat.leaves)))
        at = {str(key): i for i, key in enumerate(self.keys)}
        return [at[path] for path in flat.paths]


def _picker(positions: Sequence[int], total: int) -> Callable[[list[Any]], list[Any]]:
    """Make a function that takes the elements at ``positions`` out of a list of ``total``."""
    if list(positions) == list(range(total)):
        return lambda values: values
    pick = picker(positions)
    return lambda values: list(pick(values))


Pick: TypeAlias = Callable[[list[Any]], list[Any]]
Put: TypeAlias = Callable[[list[Any], list[Any]], list[Any]]


def _putter(positions: Sequence[int], total: int) -> Put:
    """Make a function that gives a list of ``total`` with new elements at ``positions``."""
    if list(positions) == list(range(total)):
        return lambda values, new: new

    def put(values: list[Any], new: list[Any]) -> list[Any]:
        values = list(values)
        for i, x in zip(positions, new, strict=True):
            values[i] = x
        return values

    return put


@dataclass(frozen=True)
class CachedGroup:
    """A group of leaves of the update before, and how to find its arrays again."""

    pipeline: tuple[Segment, ...]
    indices: list[int]
    dtype: str
    lift: Repeatable
    look: Any
    parts: list[PartScalars]
    paths: list[str]
    pick: Pick
    """From the leaves of a tree."""
    slots: dict[str, Pick]
    """From the values of each slot that has the leaf's shape."""
    numbers: dict[str, Pick]
    """From those of each scalar slot."""
    puts: dict[str, Put]
    """Put new arrays where those of ``pick`` (as ``"p"``) and ``slots`` were."""


Arrays: TypeAlias = dict[str, list[Array]]


@dataclass(frozen=True)
class Ready:
    """An update that is like the one kept."""

    p: list[Array]
    """In the container's order, as ``g``."""
    g: list[Array]
    groups: list[tuple[CachedGroup, Arrays, dict[str, Any]]]
    """Each with its arrays and its scalar slots."""
    slots: dict[str, list[Any]]
    """The values of each slot in its order."""
    measured: dict[str, dict[str, Any]] | None
    """By each global rule, if that could be found on the host."""


class CachedStep:
    """The structure of one update, to be used by one thread at a time.

    Parameters
    ----------
    backend, flat, places
        Where, the leaves (their names count, not their values) and their order in their container.
    slots
        The leaves of each slot, in its order.
    kept
        The groups.
    norm
        Finds on the host what is measured and that all is finite, where that is asked for.
    finite
        True if an update is only made with gradients that are finite.
    """

    def __init__(
        self,
        backend: Backend,
        flat: Flat,
        places: LeafOrder,
        slots: dict[str, list[str]],
        kept: list[CachedGroup],
        norm: HostNorm | None,
        *,
        finite: bool,
    ) -> None:
        self.backend, self.lock = backend, threading.Lock()
        self.paths, self._structure = flat.paths, flat.structure
        self._places, self._slots, self._kept = places, slots, kept
        self._in_order = _picker(places.order(flat), len(flat.leaves))
        self._head = _head(kept)
        # Groups of compiled kernels alone are held against each other by their surveys, see ``record``.
        self._joint = len(kept) > 1 and not all(isinstance(x.lift, FusedLift) for x in kept)
        self._norm, self._on_host = norm, norm is not None or not (finite or _awaiting(kept))
        self._stale = True

    @property
    def alone(self) -> bool:
        """True if ``ready`` finds all that an update needs beside its arrays."""
        return self._on_host

    def flat(self, ready: Ready) -> Flat:
        """Return the leaves in the order of their names."""
        return Flat(self.paths, self._in_order(ready.p), self._structure)

    def gradients(self, ready: Ready) -> list[Array]:
        """Return the gradients in the order of their names."""
        return self._in_order(ready.g)

    def ready(self, params: Tree, grads: Tree, state: dict[str, Any]) -> Ready | None:
        """Return what ``run`` takes, if this update is like the one kept. Nothing is changed."""
        step = state.get("step")
        if state.get("missed") != {} or type(step) is not int or step < 0:
            return None
        p, g = self._places.leaves(params), self._places.leaves(grads)
        if p is None or g is None or (len(self._kept) > 1 and len(set(map(id, p))) < len(p)):
            return None
        slots = state.get("slots", {})
        values: dict[str, list[Any]] = {}
        for name, keys in self._slots.items():
            if list(slots.get(name, ())) != keys:
                return None
            values[name] = list(slots[name].values())
        groups = []
        for kept in self._kept:
            arrays = {"g": kept.pick(g), "p": kept.pick(p)}
            for name, pick in kept.slots.items():
                arrays[name] = pick(values[name])
            numbers: dict[str, Any] = {}
            for name, pick in kept.numbers.items():
                own = set(pick(values[name]))
                if len(own) != 1:
                    return None
                numbers[name] = own.pop()
            if not kept.lift.again(kept.look, arrays):
                self._stale = True
                return None
            if self._norm is not None:
                self._stale = self._stale or not kept.look.placed
            groups.append((kept, arrays, numbers))
        if self._joint and not self._separate(groups):
            return None
        if self._norm is None:
            return Ready(p, g, groups, values, None)
        found = self._measure(step, state)
        return None if found is None else Ready(p, g, groups, values, found)

    def _separate(self, groups: Sequence[tuple[CachedGroup, Arrays, dict[str, Any]]]) -> bool:
        """Return True if what a group replaces is nothing that another one reads."""
        columns = [(n in kept.look.in_place, x) for kept, arrays, _ in groups for n, x in arrays.items()]
        targets, others = (
            [x for into, xs in columns if into is which for x in xs] for which in (True, False)
        )
        return separate(self.backend, targets, others)

    def _measure(self, step: int, state: dict[str, Any]) -> dict[str, dict[str, Any]] | None:
        """Return what is measured; ``None`` where it, or that all is finite, must be found the long way."""
        assert self._norm is not None
        total = self._norm(moved=self._stale)
        self._stale = False
        if not total < float("inf"):
            return None
        if self._head is None:
            return {}
        part = self._kept[0].parts[0]
        found = measured(self._head, total, part.hyperparameters(step, state))
        return None if found is None else {part.key: found}

    def run(
        self, params: Tree, ready: Ready, state: dict[str, Any], execution: Execution | None
    ) -> tuple[Tree, dict[str, Any]]:
        """Update the arrays, in place where they can be, and give the next parameters and state.

        Parameters
        ----------
        params
            The container that is updated in place.
        ready
            As of ``ready``.
        state
            The state before.
        execution
            What measures the long way, where the step is not ``alone``.
        """
        step, found = state["step"], ready.measured
        if found is None:
            found = {} if execution is None else self._measured_by(execution, ready)
        # All of them before anything is written: one that is refused changes nothing.
        scalars = []
        new: dict[str, dict[str, Any]] = {}
        for kept, _, numbers in ready.groups:
            own: dict[str, Any] = {}
            results: dict[str, Any] = {}
            for part in kept.parts:
                own |= part.at(step, state, numbers, kept.paths[0], results)
                if part.key in found:
                    own |= {f"{part.key}{n}": x for n, x in found[part.key].items()}
            scalars.append(own)
            for name, x in results.items():
                new.setdefault(name, {}).update(dict.fromkeys(kept.paths, x))
        slots = state["slots"]
        if new:
            slots = slots | {name: slots[name] | values for name, values in new.items()}
        columns = {"p": ready.p, **ready.slots}
        replaced: set[str] = set()
        for (kept, arrays, _), own in zip(ready.groups, scalars, strict=True):
            for name, x in (kept.lift.rerun(kept.look, arrays, own, kept.dtype) or {}).items():
                columns[name] = kept.puts[name](columns[name], x)
                replaced.add(name)
        if replaced:
            params = self._places.tree(columns["p"])
            made = {n: dict(zip(self._slots[n], columns[n], strict=True)) for n in replaced - {"p"}}
            slots = slots | made
        return params, state | {"step": step + 1, "slots": slots}

    def _measured_by(self, execution: Execution, ready: Ready) -> dict[str, dict[str, Any]]:
        execution.measure_heads(
            [
                Group(kept.pipeline, kept.indices, kept.dtype, 0, numbers, arrays["g"])
                for kept, arrays, numbers in ready.groups
            ]
        )
        if not isinstance(self._kept[0].lift, FusedLift | InPlaceLift):
            return execution.measured
        to_numpy = self.backend.to_numpy
        return {
            key: {n: x if isinstance(x, int | float) else float(to_numpy(x)) for n, x in values.items()}
            for key, values in execution.measured.items()
        }


def record(
    backend: Backend,
    tree: Tree,
    flat: Flat,
    g: Sequence[Array | None],
    groups: list[Group],
    state: dict[str, Any],
    finite: bool,
) -> CachedStep | None:
    """Return what to keep of an update in place that left ``state``.

    ``None`` where it can't be repeated so.
    """
    if not all(_lifts(backend, group) for group in groups):
        return None
    slots = {name: list(values) for name, values in state["slots"].items()}
    if state["missed"] or type(state["step"]) is not int or any(x is None for x in flat.leaves):
        return None
    places = LeafOrder.of(tree, flat)
    found = [_keep(backend, flat, places.order(flat), g, group, state["slots"]) for group in groups]
    kept = [x for x in found if x is not None]
    if not kept or len(kept) < len(found):
        return None
    fused = [x.look.apart for x in kept if isinstance(x.lift, FusedLift)]
    if len(fused) > 1:
        NoOverlap.join(fused)
    norm = _norm(kept, state) if finite or _awaiting(kept) else None
    return CachedStep(backend, flat, places, slots, kept, norm, finite=finite)


def _lifts(backend: Backend, group: Group) -> Sequence[Repeatable]:
    """Return what may repeat an update of ``group``, the fastest first."""
    if len(group.pipeline) != 1 or group.pipeline[0].leafwise:
        return ()
    lift = lifted(backend, program(group.pipeline[0].parts, "p"), True)
    found: Sequence[Repeatable] = getattr(lift, "repeatable", ())
    return found


def _awaiting(kept: Sequence[CachedGroup]) -> bool:
    return any(group.pipeline[0].awaits for group in kept)


def _head(kept: Sequence[CachedGroup]) -> Global | None:
    """Return the global rule that all leaves come to first."""
    heads = {group.pipeline[0].parts[0].key: group.pipeline[0].awaits for group in kept}
    return heads.popitem()[1] if len(heads) == 1 else None


def _norm(kept: Sequence[CachedGroup], state: dict[str, Any]) -> HostNorm | None:
    """Return what finds the norm on the host, if that is all that is to be measured."""
    head = _head(kept)
    if _awaiting(kept):
        if head is None or not head.NORM_ALONE:
            return None
        h = kept[0].parts[0].hyperparameters(state["step"], state)
        if measured(head, np.dtype(kept[0].dtype).type(1.0), h) is None:
            return None
    groups = [(x.lift, x.look, x.indices) for x in kept if isinstance(x.lift, FusedLift)]
    return HostNorm.of(groups) if len(groups) == len(kept) else None


def _keep(
    backend: Backend,
    flat: Flat,
    order: list[int],
    g: Sequence[Array | None],
    group: Group,
    slots: dict[str, dict[str, Any]],
) -> CachedGroup | None:
    parts = group.pipeline[0].parts
    given = (x for part in parts for x in part.rule.hyperparameters().values())
    if any(backend.is_array(x) and backend.is_traced(x) for x in given):
        return None
    arrays = {"g": [g[i] for i in group.indices], "p": [flat.leaves[i] for i in group.indices]}
    pickers: dict[str, dict[str, Any]] = {"like": {}, "scalar": {}}
    at_leaves = [order[i] for i in group.indices]
    puts, written = {"p": _putter(at_leaves, len(order))}, {"p"}
    for name, slot in (names for part in parts for names in part.names):
        at = {path: i for i, path in enumerate(slots[name])}
        positions = [at[flat.paths[i]] for i in group.indices]
        pickers[slot.shape][name] = _picker(positions, len(at))
        if slot.shape == "like":
            arrays[name] = [slots[name][flat.paths[i]] for i in group.indices]
            written |= set() if slot.constant else {name}
            puts[name] = _putter(positions, len(at))
    for lift in _lifts(backend, group):
        look = lift.look(arrays, group.dtype, True)
        if look is not None:
            break
    else:
        return None
    if not look.in_place.issuperset(written):
        return None
    return CachedGroup(
        group.pipeline,
        group.indices,
        group.dtype,
        lift,
        look,
        [PartScalars(part, group.dtype) for part in parts],
        [flat.paths[i] for i in group.indices],
        _picker(at_leaves, len(order)),
        pickers["like"],
        pickers["scalar"],
        puts,
    )
