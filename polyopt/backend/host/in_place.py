"""Updates in place by NumPy, like the one before: with buffers, views and calls that were made once.

What ``polyopt.backend.host.lift`` finds out about leaves at each call, which takes longer than to update
small ones, is kept here: how they are divided, the blocks for those that are packed, and the calls over
them. The bits are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from polyopt.backend.host.memory import Shapes
from polyopt.backend.host.numpy_kernel import BLOCK, Call, Kernel, ScalarCells
from polyopt.backend.protocol import Arrays, Scalars
from polyopt.core.groups import picker
from polyopt.core.ops import Array

if TYPE_CHECKING:
    from polyopt.backend.host.lift import HostLift, Pack


@dataclass(frozen=True)
class PackCalls:
    """Compute the leaves of one pack: gather, call, scatter."""

    pick: Callable[[Sequence[Array]], Sequence[Array]]
    reads: list[tuple[int, Any, Sequence[Any]]]
    """The column, its block, and the block in the leaves' shapes."""
    calls: list[Call]
    writes: list[tuple[int, Sequence[Any]]]


@dataclass(frozen=True)
class InPlacePlan:
    """Hold what is known of leaves that are given up, and how to compute them; for one thread at a time."""

    shapes: Shapes
    kinds: tuple[tuple[Any, ...], ...]
    in_place: frozenset[str]
    scalars: ScalarCells
    packs: list[PackCalls]
    alone: list[tuple[int, Kernel]]


class InPlaceLift:
    """Repeat the updates of ``lift`` by NumPy, for leaves that are all replaced in their own memory."""

    def __init__(self, lift: HostLift) -> None:
        self._lift, self._memory = lift, lift.memory
        program = lift.program
        self._read, self._written, self._touched = program.read, program.replaced, program.touched
        self._into = [n in self._written for n in self._touched]
        self._order = [self._touched.index(n) for n in (*self._read, *self._written)]

    def look(self, arrays: Arrays, dtype: str, donate: bool) -> InPlacePlan | None:
        """Return what to run; ``None`` where something isn't replaced, or can't be in its memory."""
        if not donate or self._written != self._lift.program.written:
            return None
        shapes = tuple([tuple(x.shape) for x in arrays["p"]])
        kinds = tuple([tuple([x.dtype for x in arrays[name]]) for name in self._touched])
        if not self._alike(shapes, kinds, arrays):
            return None
        layout = self._lift.layout(shapes, kinds, dtype, True)
        scalars = ScalarCells(self._lift.program, dtype)
        kernel = self._lift.packed_kernel(dtype)
        blocks = {name: np.empty(BLOCK, dtype) for name in self._touched}
        registers = kernel.registers() if layout.packs else []
        made: dict[int, PackCalls] = {}
        packs = []
        for pack in layout.packs:
            if pack.kind not in made:
                made[pack.kind] = self._calls(kernel, pack, scalars, blocks, registers)
            packs.append(replace(made[pack.kind], pick=picker(pack.indices)))
        return InPlacePlan(shapes, kinds, frozenset(self._written), scalars, packs, layout.alone)

    def again(self, look: InPlacePlan, arrays: Arrays) -> bool:
        """Return True if these leaves are what ``look`` was made for, but for where they are."""
        return self._alike(look.shapes, look.kinds, arrays)

    def rerun(self, look: InPlacePlan, arrays: Arrays, scalars: Scalars, dtype: str) -> None:
        """Compute what ``again`` has let pass; ``scalars`` may hold more than it takes."""
        memory, columns = self._memory, [arrays[name] for name in self._touched]
        with np.errstate(all="ignore"):
            look.scalars.take(scalars)
            for pack in look.packs:
                pick = pack.pick
                for k, block, views in pack.reads:
                    memory.gather(block, views, pick(columns[k]))
                for function, operands in pack.calls:
                    function(*operands)
                for k, views in pack.writes:
                    memory.scatter(views, pick(columns[k]))
            for i, kernel in look.alone:
                flat = [memory.host(column[i]).reshape(-1) for column in columns]
                kernel.run([flat[k] for k in self._order], look.scalars.values)
        for name in self._written:
            memory.changed(arrays[name])

    def _alike(self, shapes: Shapes, kinds: tuple[tuple[Any, ...], ...], arrays: Arrays) -> bool:
        columns = [arrays[name] for name in self._touched]
        return self._memory.alike(columns, shapes, kinds, self._into)

    def _calls(
        self,
        kernel: Kernel,
        pack: Pack,
        scalars: ScalarCells,
        blocks: dict[str, Any],
        registers: Sequence[Any],
    ) -> PackCalls:
        own = {name: block[: pack.size] for name, block in blocks.items()}
        views = {name: self._memory.views(block, pack.shapes) for name, block in own.items()}
        return PackCalls(
            picker(pack.indices),
            [(self._touched.index(n), own[n], views[n]) for n in self._read],
            kernel.bound([own[n] for n in (*self._read, *self._written)], scalars.values, registers),
            [(self._touched.index(n), views[n]) for n in self._written],
        )
