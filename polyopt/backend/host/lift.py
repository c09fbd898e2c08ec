"""The compiled lift for arrays in host memory: NumPy's own, and other frameworks' that share theirs.

Large leaves go through a ``Kernel`` one by one, in blocks. Small ones of equal
dtypes are packed: gathered into one block, computed together and scattered, so that the cost of a Python call
is paid once for many leaves. The bits are those of ``evaluate_leaves``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from polyopt.backend.host.fused import FusedLift
from polyopt.backend.host.in_place import InPlaceLift
from polyopt.backend.host.memory import Memory, Shapes
from polyopt.backend.host.numpy_kernel import BLOCK, Kernel, ScalarValues
from polyopt.backend.host.overlap import apart
from polyopt.backend.protocol import Arrays, Scalars
from polyopt.core.ops import Array
from polyopt.core.trace import Program

SMALL = 1 << 12
"""Elements up to which a leaf is packed."""


@dataclass(frozen=True)
class Pack:
    """Leaves that are computed together."""

    indices: tuple[int, ...]
    shapes: Shapes
    size: int
    kind: int
    """The same for packs of the same shapes."""

    def of(self, leaves: Sequence[Array]) -> list[Array]:
        """Return the leaves that this pack is made of."""
        return [leaves[i] for i in self.indices]


@dataclass
class Layout:
    """Divide leaves of certain shapes and dtypes into those that are packed and those that run alone."""

    packs: list[Pack]
    alone: list[tuple[int, Kernel]]
    pool: deque[Workspace] = field(default_factory=lambda: deque(maxlen=16))


class Workspace:
    """Block buffers for one call's packs, and the shaped views of them."""

    def __init__(self, memory: Memory, names: Sequence[str], dtype: str) -> None:
        self._memory = memory
        self.buffers = {name: np.empty(BLOCK, dtype) for name in names}
        self._views: dict[tuple[str, int], Sequence[Any]] = {}

    def views(self, name: str, pack: Pack) -> Sequence[Any]:
        """Return views of a buffer, shaped like the leaves of ``pack``."""
        key = (name, pack.kind)
        if key not in self._views:
            self._views[key] = self._memory.views(self.buffers[name][: pack.size], pack.shapes)
        return self._views[key]


class HostLift:
    """``program`` over leaves in host memory: a ``Lifted``."""

    def __init__(self, program: Program, memory: Memory) -> None:
        self.program, self.memory = program, memory
        self._read, self._written = program.read, program.written
        self._replaced, self._touched = program.replaced, program.touched
        self.layout = lru_cache(maxsize=32)(self._make_layout)
        self._kernel = lru_cache(maxsize=64)(self._make_kernel)
        self._scalars = ScalarValues(program)
        self.fused = FusedLift(program, memory)
        self.repeatable = (self.fused, InPlaceLift(self))

    def __call__(
        self, arrays: Arrays, scalars: Scalars, dtype: str, donate: bool = False
    ) -> dict[str, list[Array]]:
        """Run the program over all leaves: by the compiled kernel where it can be, else in blocks."""
        fused = self.fused(arrays, scalars, dtype, donate)
        return self.in_blocks(arrays, scalars, dtype, donate) if fused is None else fused

    def in_blocks(self, arrays: Arrays, scalars: Scalars, dtype: str, donate: bool) -> dict[str, list[Array]]:
        """Compute by NumPy what the compiled kernel can't take."""
        shapes = tuple([tuple(x.shape) for x in arrays["p"]])
        if donate:
            targets = [x for name in self._replaced for x in arrays[name]]
            donate = self.memory.writable(targets)
            others = [x for name in self._read if name not in self._replaced for x in arrays[name]]
            if donate and not apart(self.memory.extents([*targets, *others], len(targets)), len(targets)):
                return self._in_order(arrays, scalars, dtype)
        kinds = tuple([tuple([x.dtype for x in arrays[name]]) for name in self._touched])
        layout = self.layout(shapes, kinds, dtype, donate)
        out: dict[str, list[Array]] = {name: [None] * len(shapes) for name in self._written}
        with np.errstate(all="ignore"):
            values = self._scalars(scalars, dtype)
            self._run_packs(layout, arrays, values, dtype, donate, out)
            for i, kernel in layout.alone:
                leaf = {name: arrays[name][i] for name in self._touched}
                self._run_alone(kernel, leaf, shapes[i], values, dtype, donate, out, i)
        return out

    def _in_order(self, arrays: Arrays, scalars: Scalars, dtype: str) -> dict[str, list[Array]]:
        """Leaves that share memory: compute all from the old values, then write one after the other."""
        out = self.in_blocks(arrays, scalars, dtype, donate=False)
        for name in self._replaced:
            for target, value in zip(arrays[name], out[name], strict=True):
                self.memory.assign(target, value)
            out[name] = list(arrays[name])
        return out

    # Small leaves

    def _run_packs(
        self,
        layout: Layout,
        arrays: Arrays,
        values: Mapping[str, Any],
        dtype: str,
        donate: bool,
        out: dict[str, list[Array]],
    ) -> None:
        if not layout.packs:
            return
        kernel = self.packed_kernel(dtype)
        names = tuple(dict.fromkeys((*self._read, *self._written)))
        try:
            work = layout.pool.pop()
        except IndexError:
            work = Workspace(self.memory, names, dtype)
        for pack in layout.packs:
            for name in self._read:
                buffer = work.buffers[name][: pack.size]
                self.memory.gather(buffer, work.views(name, pack), pack.of(arrays[name]))
            flat = [work.buffers[name][: pack.size] for name in (*self._read, *self._written)]
            kernel.run(flat, values)
            for name in self._written:
                views = work.views(name, pack)
                old = pack.of(arrays[name]) if name in self._replaced else None
                if donate and old is not None:
                    self.memory.scatter(views, old)
                    new = old
                else:
                    new = self.memory.fresh(views, old)
                for i, x in zip(pack.indices, new, strict=True):
                    out[name][i] = x
        layout.pool.append(work)

    # Large leaves

    def _run_alone(
        self,
        kernel: Kernel,
        leaf: Mapping[str, Array],
        shape: tuple[int, ...],
        values: Mapping[str, Any],
        dtype: str,
        donate: bool,
        out: dict[str, list[Array]],
        index: int,
    ) -> None:
        memory = self.memory
        hosts = {name: memory.host(x) for name, x in leaf.items()}
        flat = {name: x.reshape(-1) for name, x in hosts.items()}  # a copy where it isn't contiguous
        results: dict[str, Any] = {}
        for name in self._written:
            if donate and name in self._replaced:
                results[name] = flat[name]
            else:
                storage = hosts[name].dtype if name in hosts else np.dtype(dtype)
                results[name] = np.empty(math.prod(shape), storage)
        kernel.run([flat[n] for n in self._read] + [results[n] for n in self._written], values)
        for name in self._written:
            if not (donate and name in self._replaced):
                out[name][index] = memory.wrap(results[name].reshape(shape), leaf.get(name))
                continue
            if not hosts[name].flags.c_contiguous:
                hosts[name][...] = results[name].reshape(shape)
            out[name][index] = leaf[name]
            memory.changed([leaf[name]])

    # What to run how

    def packed_kernel(self, dtype: str) -> Kernel:
        """Return the kernel for packs, which are in the compute dtype."""
        return self._kernel(tuple(np.dtype(dtype) for _ in self._touched), dtype, True)

    def _make_layout(
        self, shapes: Shapes, kinds: tuple[tuple[Any, ...], ...], dtype: str, donate: bool
    ) -> Layout:
        groups: list[list[int]] = []
        alone: list[tuple[int, Kernel]] = []
        single: list[int] = []
        filled = 0
        for i, shape in enumerate(shapes):
            size = math.prod(shape)
            if size > SMALL:
                single.append(i)
                continue
            if filled + size > BLOCK or not groups:
                groups.append([])
                filled = 0
            groups[-1].append(i)
            filled += size
        single += [group[0] for group in groups if len(group) == 1]
        for i in single:
            storage = tuple(self.memory.dtype(kind[i]) for kind in kinds)
            alone.append((i, self._kernel(storage, dtype, donate)))
        kinds_of: dict[Shapes, int] = {}
        packs = []
        for indices in (group for group in groups if len(group) > 1):
            own = tuple(shapes[i] for i in indices)
            total = sum(math.prod(shape) for shape in own)
            packs.append(Pack(tuple(indices), own, total, kinds_of.setdefault(own, len(kinds_of))))
        return Layout(packs, alone)

    def _make_kernel(self, storage: tuple[np.dtype[Any], ...], dtype: str, in_place: bool) -> Kernel:
        return Kernel(self.program, dtype, dict(zip(self._touched, storage, strict=True)), in_place=in_place)
