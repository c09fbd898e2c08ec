"""Many small leaves in few flat buffers: what JAX and TensorFlow need for small updates to be fast.

A call of a compiled function costs some microseconds for every array that goes in or comes out, and a kernel
for every leaf. Leaves of fewer than ``SMALL`` elements that go through the same stages in the same dtype
are put one after the other in a buffer; larger ones stay as they are, because copying their gradients would
cost more than it saves.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polyopt.backend import registry
from polyopt.backend.protocol import Backend
from polyopt.core import tree
from polyopt.core.aliases import instead
from polyopt.core.errors import InputError, nearest
from polyopt.core.ops import Array
from polyopt.core.rule import Chain, Global, Partition, Pattern, Rule, Slot, Slots, Stage, matches
from polyopt.core.tree import Flat, Tree
from polyopt.engine.plan import Segment, plan

SMALL = 1 << 15
"""Elements from which on a leaf stays alone."""


@dataclass(frozen=True)
class Buffer:
    """One array of the packed tree: named like its first leaf; ``flat``, or a lone leaf in its own shape."""

    members: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    flat: bool

    @property
    def name(self) -> str:
        """Return the path of its first leaf."""
        return self.members[0]


class Packing:
    """Pack a tree of parameters into flat buffers, one for each dtype, and unpack it.

    The packed tree is plain data, ``{path of a buffer's first leaf: array}``. An optimizer of
    ``rule`` steps it like any other tree, in the same bits as the leaves one by one.

    Parameters
    ----------
    params
        The tree: its structure, shapes, dtypes and devices count, not its values. Leaves that are frozen,
        ``None`` or in the hands of a leafwise rule stay alone.
    rule
        What the optimizer does with them.
    state
        Where given, a state by path that is to be packed: leaves that differ in how many
        updates they missed, or in a scalar slot, are kept apart.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt import Adam, Optimizer, Packing
    >>> params = {"w": np.ones((2, 3)), "b": np.zeros(3)}
    >>> packing = Packing(params, Adam())
    >>> buffers = packing.pack(params)
    >>> {name: x.shape for name, x in buffers.items()}
    {'b': (9,)}
    >>> opt = Optimizer(packing.rule)
    >>> state = opt.init(buffers)
    >>> buffers, state = opt.step(buffers, packing.pack(params), state)
    >>> packing.unpack(buffers)["w"].shape, packing.unpack_state(state)["slots"]["exp_avg"]["b"].shape
    ((2, 3), (3,))
    """

    def __init__(self, params: Tree, rule: Stage, *, state: Mapping[str, Any] | None = None) -> None:
        if not isinstance(rule, Rule | Chain | Partition):
            raise InputError(f"Packing: expected a rule, a chain or a partition, found {instead(rule)}")
        flat = tree.flatten(params)
        leaves = flat.leaves
        self.structure = flat.structure
        self._flat = Flat(flat.paths, [], flat.structure)  # its own leaves would keep the arrays alive
        self.backend: Backend = registry.of_leaves(flat.paths, leaves)
        planned = plan(rule, self._flat.paths)
        self._scalars = {
            name
            for pipeline, _ in planned.classes
            for part in _parts(pipeline)
            for name, slot in part.names
            if slot.shape == "scalar"
        }
        self.buffers = self._layout(leaves, planned.pipelines, state or {})
        self.names = tuple(buffer.name for buffer in self.buffers)
        self._of = {path: buffer for buffer in self.buffers for path in buffer.members}
        waits = {
            path: frozenset(p.key for p in _parts(pipeline) if isinstance(p.rule, Global))
            for path, pipeline in zip(self._flat.paths, planned.pipelines, strict=True)
            if pipeline is not None
        }
        order = {path: i for i, path in enumerate(self._flat.paths)}
        self.rule = _packed(rule, "", self.buffers, waits, order)

    def __repr__(self) -> str:
        leaves = len(self._flat.paths)
        return f"Packing({leaves} leaves in {len(self.buffers)} arrays)"

    def alone(self, name: str) -> bool:
        """Return True if the array of that name is a leaf itself, not a copy of some.

        Parameters
        ----------
        name
            One of ``names``.

        Returns
        -------
        bool
            False for a flat buffer of several leaves.
        """
        return not self._of[name].flat

    def pack(self, values: Tree) -> dict[str, Array | None]:
        """Pack a tree like the parameters (or their gradients); differentiable.

        Parameters
        ----------
        values
            The tree; ``None`` for a leaf without a gradient.

        Returns
        -------
        dict
            A buffer, or ``None``, for each of ``names``.

        Raises
        ------
        InputError
            For a leaf that is missing, or of another shape or dtype: it is named.
        """
        leaves = tree.aligned(values, self._flat, "pack")
        return self._pack(dict(zip(self._flat.paths, leaves, strict=True)), "leaf")

    def unpack(self, buffers: Mapping[str, Array | None]) -> Tree:
        """Take a packed tree apart; differentiable, so it is what a loss starts with.

        Parameters
        ----------
        buffers
            A buffer for each of ``names``.

        Returns
        -------
        tree
            The structure of the parameters.
        """
        for name in self.names:
            if name not in buffers:
                raise InputError(f"unpack: buffer {name!r} is missing; {nearest(name, buffers)}")
        found = self._unpack(buffers)
        return self._flat.unflatten(found[path] for path in self._flat.paths)

    def pack_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Make the state of an optimizer of ``rule`` from the one by path.

        Parameters
        ----------
        state
            By path, of an optimizer of the same rule without packing.

        Returns
        -------
        dict
            With a slot for each buffer.
        """
        slots: dict[str, dict[str, Any]] = {}
        for name, values in state["slots"].items():
            for path in values:
                if path not in self._of:
                    raise InputError(
                        f"pack_state: slot {name!r} has an unknown leaf {path!r}; {nearest(path, self._of)}"
                    )
            what = f"slot {name!r} of leaf"
            if name in self._scalars:
                slots[name] = self._counts(values, what)
            else:
                slots[name] = self._pack(values, what, partial=True)
        packed = {**state, "slots": slots}
        for key in ("missed", "accumulated"):
            if key in state:
                full = {path: state[key].get(path, 0) for path in self._of} if state[key] else {}
                packed[key] = {n: x for n, x in self._counts(full, f"{key!r} of leaf").items() if x != 0}
                if key == "accumulated":
                    packed[key] = {n: packed[key].get(n, 0) for n in slots.get("grad_accumulator", {})}
        return packed

    def unpack_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Make the state by path of a packed one: what a checkpoint holds.

        Parameters
        ----------
        state
            Of an optimizer of ``rule``.

        Returns
        -------
        dict
            With a slot for each leaf.
        """
        slots = {
            name: self._spread(values) if name in self._scalars else self._unpack(values)
            for name, values in state["slots"].items()
        }
        spread = {key: self._spread(state[key]) for key in ("missed", "accumulated") if key in state}
        return {**state, **spread, "slots": slots}

    # The layout

    def _layout(
        self,
        leaves: Sequence[Any],
        pipelines: Sequence[tuple[Segment, ...] | None],
        state: Mapping[str, Any],
    ) -> tuple[Buffer, ...]:
        groups: dict[Any, list[tuple[str, tuple[int, ...]]]] = {}
        for path, x, pipeline in zip(self._flat.paths, leaves, pipelines, strict=True):
            key: Any = path
            if x is not None and pipeline is not None and not any(s.leafwise for s in pipeline):
                dtype, device = self.backend.dtype_name(x), self._device(x)
                if math.prod(x.shape) < SMALL:
                    key = (pipeline, dtype, device, *self._history(path, state))
            groups.setdefault(key, []).append((path, () if x is None else tuple(x.shape)))
        found = []
        for members in groups.values():
            # Leaves of one shape stand together: cut and joined as one, they compile faster.
            first: dict[tuple[int, ...], int] = {}
            for _, shape in members:
                first.setdefault(shape, len(first))
            members.sort(key=lambda member: first[member[1]])
            paths, shapes = (tuple(column) for column in zip(*members, strict=True))
            found.append(Buffer(paths, shapes, len(members) > 1))
        return tuple(sorted(found, key=lambda buffer: buffer.name))

    def _device(self, x: Array) -> str:
        return "" if self.backend.is_traced(x) else self.backend.device_name(x)

    def _history(self, path: str, state: Mapping[str, Any]) -> tuple[Any, ...]:
        counts = (int(state.get(key, {}).get(path, 0)) for key in ("missed", "accumulated"))
        slots = state.get("slots", {})
        return (*counts, *(float(slots[n][path]) for n in sorted(self._scalars) if path in slots.get(n, {})))

    # Arrays

    def _pack(
        self, values: Mapping[str, Any], what: str, *, partial: bool = False
    ) -> dict[str, Array | None]:
        packed: dict[str, Array | None] = {}
        for buffer in self.buffers:
            if partial and not any(path in values for path in buffer.members):
                continue
            given: list[Any] = [values.get(path) for path in buffer.members]
            for path, shape, x in zip(buffer.members, buffer.shapes, given, strict=True):
                if x is None and buffer.flat:
                    raise InputError(f"pack: {what} {path!r} is None or missing; expected {shape}")
                if x is not None and tuple(x.shape) != shape:
                    raise InputError(f"pack: {what} {path!r} has shape {tuple(x.shape)}; expected {shape}")
                if x is not None and x.dtype != given[0].dtype:
                    name = self.backend.dtype_name
                    raise InputError(
                        f"pack: {what} {path!r} has dtype {name(x)}; expected {name(given[0])}, as "
                        f"{buffer.name!r} has, with which it shares a buffer"
                    )
            packed[buffer.name] = self.backend.join(given) if buffer.flat else given[0]
        return packed

    def _unpack(self, buffers: Mapping[str, Any]) -> dict[str, Any]:
        leaves: dict[str, Any] = {}
        for buffer in self.buffers:
            if buffer.name not in buffers:
                continue
            x = buffers[buffer.name]
            parts = self.backend.split(x, buffer.shapes) if buffer.flat else [x]
            leaves.update(zip(buffer.members, parts, strict=True))
        return leaves

    # Numbers, one a leaf

    def _counts(self, values: Mapping[str, Any], what: str) -> dict[str, Any]:
        packed: dict[str, Any] = {}
        for buffer in self.buffers:
            for path in buffer.members:
                if path not in values:
                    continue
                first = packed.setdefault(buffer.name, values[path])
                if first != values[path]:
                    raise InputError(
                        f"pack_state: {what} {path!r} is {values[path]}; expected {first}, as "
                        f"{buffer.name!r} has, with which it shares a buffer: lay them out by "
                        "Packing(params, rule, state=state)"
                    )
        return packed

    def _spread(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {path: values[b.name] for b in self.buffers if b.name in values for path in b.members}


def _parts(pipeline: Iterable[Segment]) -> list[Any]:
    return [part for segment in pipeline for part in segment.parts]


@dataclass(frozen=True)
class AnyMember:
    """A partition's pattern over buffers: it selects one where it selects a leaf in it."""

    pattern: Pattern
    members: Mapping[str, tuple[str, ...]]

    def __call__(self, name: str) -> bool:
        """Return True if the pattern matches a leaf of the buffer called ``name``."""
        return any(matches(self.pattern, path) for path in self.members.get(name, (name,)))

    def __hash__(self) -> int:
        return hash((self.pattern, *self.members))

    def __repr__(self) -> str:
        return repr(self.pattern)


@dataclass(frozen=True, eq=False)
class Cuts:
    """Offsets of the leaves in ``arrays`` buffers.

    Compared by identity, being as long as there are leaves.
    """

    leaves: tuple[tuple[int, int | None, int, tuple[int, ...]], ...]
    """For each leaf the index of its array, its end and start in it (no end: it is the array), its shape."""
    arrays: int


@dataclass(frozen=True)
class OverBuffers(Global):
    """A global rule that gets buffers: it measures the leaves in them, in the order of the unpacked tree."""

    inner: Global
    cuts: Cuts

    def at(self, path: str) -> Rule:
        """Return the rule for the buffer ``path``."""
        inner = self.inner.at(path)
        if inner is self.inner:
            return self
        return OverBuffers(inner, self.cuts) if isinstance(inner, Global) else inner

    def slots(self) -> tuple[Slot, ...]:
        """Return the inner rule's slots."""
        return self.inner.slots()

    def coefficients(self, xp: Any, t: Any, h: Any) -> dict[str, Any]:
        """Return the inner rule's coefficients."""
        return self.inner.coefficients(xp, t, h)

    def hyperparameters(self) -> dict[str, Any]:
        """Return the inner rule's hyperparameters."""
        return self.inner.hyperparameters()

    def limits(self) -> tuple[str, ...]:
        """Return the names of the inner rule's limits."""
        return self.inner.limits()

    def leaf(self, xp: Any, g: Array, p: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
        """Return what the inner rule makes of a buffer."""
        return self.inner.leaf(xp, g, p, slots, c)

    def measure(self, xp: Any, leaves: Sequence[Array], c: Any) -> dict[str, Array]:
        """Measure the leaves that the buffers are made of, in the leaves' own order."""
        if len(leaves) != self.cuts.arrays:
            raise InputError(
                f"{type(self.inner).__name__}: {len(leaves)} of {self.cuts.arrays} buffers have a gradient; "
                "expected all: give the others gradients of zeros, or leave them out of the parameters"
            )
        return self.inner.measure(
            xp,
            [
                leaves[i] if end is None else xp.reshape(leaves[i][start:end], shape)
                for i, end, start, shape in self.cuts.leaves
            ],
            c,
        )


def _packed(
    stage: Stage,
    key: str,
    buffers: Sequence[Buffer],
    waits: Mapping[str, frozenset[str]],
    order: Mapping[str, int],
) -> Stage:
    """Return ``stage`` for buffers instead of leaves: the same positions, so the same names in the state."""
    if isinstance(stage, Chain):
        return Chain(
            tuple(_packed(s, f"{key}{i}.", buffers, waits, order) for i, s in enumerate(stage.stages))
        )
    if isinstance(stage, Partition):
        members = {buffer.name: buffer.members for buffer in buffers}
        return Partition(
            tuple(
                (
                    AnyMember(pattern, members),
                    None if s is None else _packed(s, f"{key}{i}.", buffers, waits, order),
                )
                for i, (pattern, s) in enumerate(stage.members)
            )
        )
    if isinstance(stage, Global):
        return _over_buffers(stage, key, buffers, waits, order)
    # A mask is for leaves: it selects the buffers that hold one of them, all of which it treats alike.
    members = {buffer.name: buffer.members for buffer in buffers}
    masks: dict[str, Any] = {name: AnyMember(x, members) for name, x in stage.patterns().items()}
    return dataclasses.replace(stage, **masks) if masks else stage


def _over_buffers(
    rule: Global,
    key: str,
    buffers: Sequence[Buffer],
    waits: Mapping[str, frozenset[str]],
    order: Mapping[str, int],
) -> Rule:
    here = [b for b in buffers if key in waits.get(b.name, ())]
    cuts: list[tuple[int, int | None, int, tuple[int, ...]]] = []
    paths: list[str] = []
    for i, buffer in enumerate(here):
        start = 0
        for path, shape in zip(buffer.members, buffer.shapes, strict=True):
            end = start + math.prod(shape)
            cuts.append((i, end if buffer.flat else None, start, shape))
            paths.append(path)
            start = end
    ordered = sorted(range(len(cuts)), key=lambda j: order[paths[j]])
    return OverBuffers(rule, Cuts(tuple(cuts[j] for j in ordered), len(here)))
