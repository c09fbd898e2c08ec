"""The fused lift: all leaves in host memory in one call of a compiled kernel, where numba is installed."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from polyopt.backend.host.array_table import ADDRESS, CONTIGUOUS, FIELDS, FLAGS, KIND, RANK, SIZE, WRITABLE
from polyopt.backend.host.memory import Surveyed
from polyopt.backend.host.numba_kernel import STORED, Call, Column, Kernel, compile_kernel, rows, supported
from polyopt.backend.host.numpy_kernel import scalar_values
from polyopt.backend.protocol import Arrays, Scalars
from polyopt.core.ops import Array
from polyopt.core.trace import Program


@dataclass(frozen=True)
class KernelPlan:
    """Hold what is known of a call's arrays: the kernel for them, and the table of each column."""

    kernel: Kernel
    names: tuple[str, ...]
    facts: Any
    """The survey: for each of ``names``, each leaf."""
    call: Call
    given: list[int]
    """Which of ``names`` the kernel is given, in its order."""
    exact: bool
    """True if ``given`` is all of ``names`` in their order."""
    apart: NoOverlap


class FusedLift:
    """``program`` over leaves that the kernel can take; it gives ``None`` for those that it can't."""

    def __init__(self, program: Program, memory: Surveyed) -> None:
        self.program, self.memory = program, memory
        self._written = tuple(name for name, _ in program.outputs)
        replaced = (name for name in self._written if name in program.arrays)
        self._touched = tuple(dict.fromkeys((*(n for n in program.arrays if n in program.used), *replaced)))
        self._kernel = lru_cache(maxsize=64)(self._make_kernel)
        self._constants = dict(program.constants)
        self._direct = frozenset((*program.scalars, *self._constants))

    def __call__(
        self, arrays: Arrays, scalars: Scalars, dtype: str, donate: bool
    ) -> dict[str, list[Array]] | None:
        """``None`` where leaves are of mixed or other dtypes, in pieces, not writable or share memory."""
        look = self.look(arrays, dtype, donate)
        return None if look is None else self.run(look, arrays, scalars, dtype)

    def look(self, arrays: Arrays, dtype: str, donate: bool) -> KernelPlan | None:
        """Return what to run for these leaves; ``None`` where it has to be something else."""
        survey = self.memory.survey() if self._touched and supported(self.program) else None
        if survey is None or not self.memory.plain():
            return None
        columns = [x if isinstance(x := arrays[name], list) else list(x) for name in self._touched]
        facts = survey.facts(columns)
        return None if facts is None else self._understood(facts, dtype, donate)

    def again(self, look: KernelPlan, arrays: Mapping[str, list[Array]]) -> bool:
        """Return True if these leaves are what ``look`` found but for their addresses.

        Which it takes over.
        """
        survey = self.memory.survey()
        return (
            survey is not None
            and survey.again([arrays[name] for name in look.names], look.facts)
            and self.memory.plain()
            and look.apart(look.facts)
        )

    def run(self, look: KernelPlan, arrays: Arrays, scalars: Scalars, dtype: str) -> dict[str, list[Array]]:
        """Compute what was looked at."""
        kernel = look.kernel
        out: dict[str, list[Array]] = {}
        addresses = look.facts[:, :, ADDRESS] if look.exact else look.facts[look.given, :, ADDRESS]
        for column in kernel.columns[len(look.given) :]:
            shapes = tuple(tuple(x.shape) for x in arrays["p"])
            out[column.name] = self.memory.empty(shapes, column.storage, arrays.get(column.name))
            addresses = np.vstack([addresses, self._survey(out[column.name])])
        values: Mapping[str, Any]
        if self._direct.issuperset(kernel.scalars):
            values = {**self._constants, **scalars} if self._constants else scalars
        else:
            with np.errstate(all="ignore"):
                values = scalar_values(self.program, scalars, dtype)
        look.call.run(addresses, values, self.memory.team())
        for name in kernel.in_place:
            out[name] = list(arrays[name])
            self.memory.changed(out[name])
        return out

    def _survey(self, leaves: list[Array]) -> Any:
        survey = self.memory.survey()
        facts = None if survey is None else survey.facts([leaves])
        assert facts is not None  # our own, in one piece
        return facts[0, :, ADDRESS]

    def _understood(self, facts: Any, dtype: str, donate: bool) -> KernelPlan | None:
        if not facts.shape[1]:
            return None
        kinds = facts[:, :1, KIND]
        if (facts[:, :, KIND] != kinds).any() or (facts[:, :, RANK:] != facts[:1, :, RANK:]).any():
            return None
        kernel = self._kernel(tuple(kinds[:, 0].tolist()), dtype, donate)
        if kernel is None:
            return None
        for name in kernel.given:
            needed = CONTIGUOUS | WRITABLE if name in kernel.in_place else CONTIGUOUS
            if (facts[self._touched.index(name), :, FLAGS] & needed != needed).any():
                return None
        at = {name: i for i, name in enumerate(self._touched)}
        given = [c for c in kernel.columns if c.given]
        rows_of: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        for column in given:
            rows_of[column.name in kernel.in_place].append((at[column.name], column.storage.itemsize))
        apart = NoOverlap(rows_of[True], rows_of[False])
        if not apart(facts):
            return None
        return KernelPlan(
            kernel,
            self._touched,
            facts,
            kernel.over(rows(facts[0, :, SIZE].copy())),
            [at[c.name] for c in given],
            [c.name for c in given] == list(self._touched),
            apart,
        )

    def _make_kernel(self, kinds: tuple[int, ...], dtype: str, donate: bool) -> Kernel | None:
        found = {n: self.memory.storage(kind) for n, kind in zip(self._touched, kinds, strict=True)}
        storage = {n: kind for n, kind in found.items() if kind is not None and kind in STORED}
        if len(storage) < len(found):
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


MEETS, FREE = 1, 2
_APART = f"""
def kernel(job):
    facts, leaves = load(job), load(job + 8)
    written, wrote, last = load(job + 16), load(job + 24), load(job + 32)
    read, reads = load(job + 40), load(job + 48)
    starts, stops, count = load(job + 56), load(job + 64), load(job + 72)
    for k in range(wrote):
        rows = facts + {8 * FIELDS} * leaves * load(written + 16 * k)
        for leaf in range(leaves):
            if load(rows + {8 * FIELDS} * leaf + {8 * ADDRESS}) != load(last + 8 * (k * leaves + leaf)):
                return
    for k in range(reads):
        rows, width = facts + {8 * FIELDS} * leaves * load(read + 16 * k), load(read + 16 * k + 8)
        for leaf in range(leaves):
            row = rows + {8 * FIELDS} * leaf
            first = load(row + {8 * ADDRESS})
            end = first + load(row + {8 * SIZE}) * width
            low, high = 0, count  # how many written ones start before this one ends
            while low < high:
                middle = (low + high) >> 1
                if load(starts + 8 * middle) < end:
                    low = middle + 1
                else:
                    high = middle
            if low > 0 and load(stops + 8 * (low - 1)) > first and end > first:
                store(job + 80, {MEETS})
                return
    store(job + 80, {FREE})
"""


class NoOverlap:
    """True if arrays that are written share memory with no other; they are mostly where they were before.

    Both kinds as pairs: their row in a survey, and the bytes of an element.
    """

    def __init__(self, written: list[tuple[int, int]], read: list[tuple[int, int]]) -> None:
        self._written, self._read = (np.array(x, np.int64).reshape(-1, 2) for x in (written, read))
        self._last = np.empty((len(written), 0), np.int64)
        self._starts = self._stops = np.empty(0, np.int64)
        self._joined = False

    @staticmethod
    def join(several: list[NoOverlap]) -> None:
        """Hold what each reads against what any of them writes.

        They are apart as they are now. Where what is written lies elsewhere at a later call, it is ``False``.
        """
        starts, stops = (np.concatenate([getattr(x, n) for x in several]) for n in ("_starts", "_stops"))
        order = np.argsort(starts)
        for x in several:
            x._starts, x._stops, x._joined = starts[order], stops[order], True

    def __call__(self, facts: Any) -> bool:
        run = _compiled_apart()
        for _ in range(2):
            if self._last.shape[1] == facts.shape[1]:
                arrays = (self._written, self._last, self._read, self._starts, self._stops)
                written, last, read, starts, stops = (x.ctypes.data for x in arrays)
                words = (facts.ctypes.data, facts.shape[1], written, len(self._written), last)
                job = np.array((*words, read, len(self._read), starts, stops, len(self._starts), 0), np.int64)
                run(job.ctypes.data)
                if job[-1]:
                    return bool(job[-1] == FREE)
            if self._joined or not self._sort(facts):
                return False
        return True

    def _sort(self, facts: Any) -> bool:
        """Take over where the written ones are; whether they are apart from each other."""
        which = self._written[:, 0]
        last = facts[which, :, ADDRESS]
        starts, stops = last.ravel(), (last + facts[which, :, SIZE] * self._written[:, 1:]).ravel()
        order = np.argsort(starts)
        order = order[starts[order] < stops[order]]
        self._last, self._starts, self._stops = last, starts[order], stops[order]
        return not (self._starts[1:] < self._stops[:-1]).any()


@lru_cache(maxsize=1)
def _compiled_apart() -> Callable[[int], None]:
    return ctypes.CFUNCTYPE(None, ctypes.c_size_t)(compile_kernel(_APART))
