"""The fused lift: all leaves in host memory in one call of a compiled kernel, where numba is installed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from polyopt.backend.generate import columns
from polyopt.backend.host.array_table import (
    ADDRESS,
    CONTIGUOUS,
    FLAGS,
    KIND,
    RANK,
    SAME,
    SIZE,
    WRITABLE,
    Watch,
)
from polyopt.backend.host.memory import Surveyed
from polyopt.backend.host.numba_kernel import STORED, Call, Kernel, available, rows
from polyopt.backend.host.numpy_kernel import ScalarValues
from polyopt.backend.host.overlap import NoOverlap
from polyopt.backend.protocol import Arrays, Scalars
from polyopt.core.ops import Array
from polyopt.core.trace import Program

_log = logging.getLogger("polyopt")


@dataclass
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
    watch: Watch | None = None
    """Holds later calls' arrays against ``facts``; made when there is one."""
    checked: bool = True
    """True if ``apart`` holds at the addresses that ``facts`` has."""
    placed: bool = False
    """True if ``call`` has those addresses."""

    @property
    def in_place(self) -> frozenset[str]:
        """Return the names of the arrays that are written in place."""
        return self.kernel.in_place


class FusedLift:
    """``program`` over leaves that the kernel can take; it gives ``None`` for those that it can't."""

    def __init__(self, program: Program, memory: Surveyed) -> None:
        self.program, self.memory = program, memory
        self._touched = program.touched
        self._kernel = lru_cache(maxsize=64)(self._make_kernel)
        self._constants = dict(program.constants)
        self._scalars = ScalarValues(program)
        self._direct = frozenset((*program.scalars, *self._constants))
        self._inexact = program.inexact and f"no kernel can be generated for {', '.join(program.inexact)}"
        self._told: set[str] = set()

    @property
    def repeatable(self) -> tuple[FusedLift, ...]:
        """Return itself where numba is installed: what repeats an update of a backend's lift."""
        return (self,) if available() else ()

    def __call__(
        self, arrays: Arrays, scalars: Scalars, dtype: str, donate: bool
    ) -> dict[str, list[Array]] | None:
        """Run the kernel; ``None`` for leaves of mixed or other dtypes, in pieces, or that share memory."""
        look = self.look(arrays, dtype, donate)
        return None if look is None else self.run(look, arrays, scalars, dtype)

    def look(self, arrays: Arrays, dtype: str, donate: bool) -> KernelPlan | None:
        """Return what to run for these leaves; ``None`` where it has to be something else."""
        if self._inexact or not available():
            self._tell(self._inexact or "numba is not installed")
            return None
        survey = self.memory.survey() if self._touched else None
        if survey is None or not self.memory.plain():
            return None
        lists = [x if isinstance(x := arrays[name], list) else list(x) for name in self._touched]
        facts = survey.facts(lists)
        look = None if facts is None else self._understood(facts, dtype, donate)
        if look is None:
            self._tell(
                "leaves are of mixed dtypes, of neither float32 nor float64, in pieces, read-only or shared"
            )
        return look

    def _tell(self, reason: str) -> None:
        """Say once why an update is not one kernel."""
        if reason not in self._told:
            self._told.add(reason)
            names = ", ".join(self.program.written)
            _log.debug("the update of %s is slower, not one compiled kernel: %s", names, reason)

    def again(self, look: KernelPlan, arrays: Mapping[str, list[Array]]) -> bool:
        """Return True if these leaves are what ``look`` found but for their addresses.

        Which it takes over.
        """
        if look.watch is None:
            survey = self.memory.survey()
            if survey is None:
                return False
            look.watch = survey.watch(look.facts)
        found = look.watch([arrays[name] for name in look.names])
        if found != SAME:
            look.checked = look.placed = False
        if not found or not self.memory.plain():
            return False
        look.checked = look.checked or look.apart(look.facts)
        return look.checked

    def run(self, look: KernelPlan, arrays: Arrays, scalars: Scalars, dtype: str) -> dict[str, list[Array]]:
        """Compute what was looked at."""
        kernel = look.kernel
        out: dict[str, list[Array]] = {}
        addresses = look.facts[:, :, ADDRESS] if look.exact else look.facts[look.given, :, ADDRESS]
        for column in kernel.columns[len(look.given) :]:
            shapes = tuple(tuple(x.shape) for x in arrays["p"])
            out[column.name] = self.memory.empty(shapes, column.storage, arrays.get(column.name))
            addresses = np.vstack([addresses, self._survey(out[column.name])])
        look.call.place(addresses)
        look.call.run(self._values(kernel, scalars, dtype), self.memory.team())
        for name in kernel.in_place:
            out[name] = list(arrays[name])
            self.memory.changed(out[name])
        return out

    def rerun(
        self, look: KernelPlan, arrays: Mapping[str, list[Array]], scalars: Scalars, dtype: str
    ) -> None:
        """Compute, all in place, what ``again`` has let pass."""
        if not look.placed:
            look.call.place(look.facts[:, :, ADDRESS] if look.exact else look.facts[look.given, :, ADDRESS])
            look.placed = True
        look.call.run(self._values(look.kernel, scalars, dtype), self.memory.team())
        for name in look.kernel.in_place:
            self.memory.changed(arrays[name])

    def _values(self, kernel: Kernel, scalars: Scalars, dtype: str) -> Mapping[str, Any]:
        if self._direct.issuperset(kernel.scalars):
            return {**self._constants, **scalars} if self._constants else scalars
        with np.errstate(all="ignore"):
            return self._scalars(scalars, dtype)

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
        apart = NoOverlap(rows_of[True], rows_of[False], facts)
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
        return Kernel(self.program, dtype, columns(self.program, storage, np.dtype(dtype), donate))
