"""The fused lift: all leaves in host memory in one call of a compiled kernel, where numba is installed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from polyopt.backend import Arrays, Scalars
from polyopt.hostkernel import scalar_values
from polyopt.hostmemory import Surveyed
from polyopt.native import STORED, Column, Kernel, supported
from polyopt.ops import Array
from polyopt.survey import ADDRESS, CONTIGUOUS, FLAGS, KIND, RANK, SIZE, WRITABLE
from polyopt.trace import Program


@dataclass(frozen=True)
class Look:
    """What was found out about a call's arrays: the kernel for them, and the survey of each column."""

    kernel: Kernel
    names: tuple[str, ...]
    facts: Any
    """The survey: for each of ``names``, each leaf."""
    sizes: Any


class FusedLift:
    """``program`` over leaves that the kernel can take; it gives ``None`` for those that it can't."""

    def __init__(self, program: Program, memory: Surveyed) -> None:
        self.program, self.memory = program, memory
        self._written = tuple(name for name, _ in program.outputs)
        replaced = (name for name in self._written if name in program.arrays)
        self._touched = tuple(dict.fromkeys((*(n for n in program.arrays if n in program.used), *replaced)))
        self._kernel = lru_cache(maxsize=64)(self._make_kernel)
        self._disjoint = Disjoint()
        self._last_apart: tuple[Kernel, Any] | None = None
        self._constants = dict(program.constants)
        self._direct = frozenset((*program.scalars, *self._constants))

    def __call__(
        self, arrays: Arrays, scalars: Scalars, dtype: str, donate: bool
    ) -> dict[str, list[Array]] | None:
        """``None`` where leaves are of mixed or other dtypes, in pieces, not writable or share memory."""
        look = self.look(arrays, dtype, donate)
        return None if look is None else self.run(look, arrays, scalars, dtype)

    def look(self, arrays: Arrays, dtype: str, donate: bool) -> Look | None:
        """What to run for these leaves; ``None`` where it has to be something else."""
        survey = self.memory.survey() if self._touched and supported(self.program) else None
        if survey is None or not self.memory.plain():
            return None
        columns = [x if isinstance(x := arrays[name], list) else list(x) for name in self._touched]
        facts = survey.facts(columns)
        return None if facts is None else self._understood(facts, dtype, donate)

    def again(self, look: Look, arrays: Mapping[str, list[Array]]) -> bool:
        """Whether these leaves are what ``look`` found but for their addresses, which it takes over."""
        survey = self.memory.survey()
        return (
            survey is not None
            and survey.again([arrays[name] for name in look.names], look.facts)
            and self.memory.plain()
            and self._apart(look.kernel, look.facts)
        )

    def run(self, look: Look, arrays: Arrays, scalars: Scalars, dtype: str) -> dict[str, list[Array]]:
        """Compute what was looked at."""
        kernel = look.kernel
        out: dict[str, list[Array]] = {}
        columns = []
        for column in kernel.columns:
            if column.given:
                columns.append(look.facts[look.names.index(column.name), :, ADDRESS])
            else:
                shapes = tuple(tuple(x.shape) for x in arrays["p"])
                made = self.memory.empty(shapes, column.storage, arrays.get(column.name))
                out[column.name] = made
                columns.append(self._survey(made))
        values: Mapping[str, Any]
        if self._direct.issuperset(kernel.scalars):
            values = {**self._constants, **scalars} if self._constants else scalars
        else:
            with np.errstate(all="ignore"):
                values = scalar_values(self.program, scalars, dtype)
        kernel.run(columns, look.sizes, values, self.memory.team())
        for name in kernel.in_place:
            out[name] = list(arrays[name])
            self.memory.changed(out[name])
        return out

    def _survey(self, leaves: list[Array]) -> Any:
        survey = self.memory.survey()
        facts = None if survey is None else survey.facts([leaves])
        assert facts is not None  # our own, in one piece
        return facts[0, :, ADDRESS]

    def _understood(self, facts: Any, dtype: str, donate: bool) -> Look | None:
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
        if not self._apart(kernel, facts):
            return None
        return Look(kernel, self._touched, facts, facts[0, :, SIZE].copy())

    def _apart(self, kernel: Kernel, facts: Any) -> bool:
        """Whether what is written in place shares memory with nothing else."""
        last = self._last_apart
        addresses = facts[:, :, ADDRESS].copy()
        if last is not None and last[0] is kernel and np.array_equal(last[1], addresses):
            return True
        ranges: dict[bool, list[Any]] = {True: [], False: []}
        for column in kernel.columns:
            if column.given:
                found = facts[self._touched.index(column.name)]
                ranges[column.name in kernel.in_place].append(
                    (found[:, ADDRESS], found[:, SIZE] * column.storage.itemsize)
                )
        if not self._disjoint(ranges[True], ranges[False]):
            return False
        self._last_apart = (kernel, addresses)
        return True

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


class Disjoint:
    """Whether pieces of memory share none. The written ones are mostly those of the call before."""

    def __init__(self) -> None:
        self._last: tuple[Any, Any, Any] | None = None

    def __call__(self, written: list[tuple[Any, Any]], read: list[tuple[Any, Any]]) -> bool:
        """``[(first bytes, lengths)]`` of int64 arrays.

        >>> a, b = np.array([0, 8]), np.array([4, 4])
        >>> Disjoint()([(a, b)], [(a + 4, b)]), Disjoint()([(a, b)], [(a + 3, b)])
        (True, False)
        """
        if not written:
            return True
        bounds = np.concatenate([x for pair in written for x in pair])
        last = self._last
        if last is None or not np.array_equal(last[0], bounds):
            found = _sorted(written)
            if found is None:
                return False
            self._last = last = (bounds, *found)
        _, starts, stops = last
        for first, length in read:
            before = np.searchsorted(starts, first + length)  # the written ones that start before each ends
            hit = (stops[before - 1] > first) & (before > 0) & (length > 0)
            if len(stops) and hit.any():
                return False
        return True


def _sorted(pairs: list[tuple[Any, Any]]) -> tuple[Any, Any] | None:
    """Starts and stops in order, ``None`` where two meet."""
    starts = np.concatenate([first for first, _ in pairs])
    stops = starts + np.concatenate([length for _, length in pairs])
    starts, stops = starts[starts < stops], stops[starts < stops]
    order = np.argsort(starts)
    starts, stops = starts[order], stops[order]
    return None if (starts[1:] < stops[:-1]).any() else (starts, stops)
