"""The fused lift: all leaves in host memory in one call of a compiled kernel, where numba is installed."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from polyopt.backend import Arrays, Scalars
from polyopt.hostkernel import scalar_values
from polyopt.hostmemory import Memory, Shapes
from polyopt.native import STORED, Column, Kernel, supported
from polyopt.ops import Array
from polyopt.trace import Program


class FusedLift:
    """``program`` over leaves that the kernel can take; it gives ``None`` for those that it can't."""

    def __init__(self, program: Program, memory: Memory) -> None:
        self.program, self.memory = program, memory
        self._written = tuple(name for name, _ in program.outputs)
        replaced = (name for name in self._written if name in program.arrays)
        self._touched = tuple(dict.fromkeys((*(n for n in program.arrays if n in program.used), *replaced)))
        self._kernel = lru_cache(maxsize=64)(self._make_kernel)

    def __call__(
        self, arrays: Arrays, shapes: Shapes, scalars: Scalars, dtype: str, donate: bool
    ) -> dict[str, list[Array]] | None:
        """``None`` where leaves are of mixed or other dtypes, in pieces, not writable or share memory."""
        kinds = tuple([frozenset([x.dtype for x in arrays[name]]) for name in self._touched])
        kernel = self._kernel(kinds, dtype, donate)
        if kernel is None:
            return None
        memory, sizes = self.memory, _sizes(shapes)
        if not all(memory.contiguous(arrays[n], n in kernel.in_place) for n in kernel.given):
            return None
        addresses = {name: memory.addresses(arrays[name]) for name in kernel.given}
        if kernel.in_place and not kernel.disjoint(addresses, sizes):
            return None
        out: dict[str, list[Array]] = {}
        columns = []
        for column in kernel.columns:
            if column.given:
                columns.append(addresses[column.name])
            else:
                out[column.name] = memory.empty(shapes, column.storage, arrays.get(column.name))
                columns.append(memory.addresses(out[column.name]))
        with np.errstate(all="ignore"):
            values = scalar_values(self.program, scalars, dtype)
        kernel.run(columns, sizes, values)
        for name in kernel.in_place:
            out[name] = list(arrays[name])
            memory.changed(out[name])
        return out

    def _make_kernel(self, kinds: tuple[frozenset[Any], ...], dtype: str, donate: bool) -> Kernel | None:
        if any(len(kind) != 1 for kind in kinds) or not supported(self.program):
            return None
        storage = {n: self.memory.dtype(*kind) for n, kind in zip(self._touched, kinds, strict=True)}
        if not STORED.issuperset(storage.values()):
            return None
        in_place = set(self._written) & set(storage) if donate else set()
        given = [n for n in self._touched if n in self.program.used or n in in_place]
        made = [n for n in self._written if n not in in_place]
        return Kernel(
            self.program,
            dtype,
            (
                *(Column(n, storage[n], True, n in in_place) for n in given),
                *(Column(n, storage.get(n, np.dtype(dtype)), False, True) for n in made),
            ),
        )


@lru_cache(maxsize=64)
def _sizes(shapes: Shapes) -> tuple[int, ...]:
    return tuple(map(math.prod, shapes))
