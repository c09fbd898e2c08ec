"""The sum of squares of ``polyopt.core.reductions`` over arrays in host memory, in one compiled pass.

numba compiles two loops: one folds every array twice, lane by lane, on as many threads as there are; the
other folds what is left. The order of the additions is that of ``reductions`` at any number of threads, so
the bits are those of the definition, op by op.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from polyopt.backend.host import numba_kernel, threads
from polyopt.backend.host.array_table import ADDRESS, CONTIGUOUS, FLAGS, KIND, SIZE
from polyopt.backend.host.memory import Memory
from polyopt.backend.host.numba_kernel import compile_kernel, compile_source
from polyopt.backend.host.threads import HEAD, PREAMBLE, Team
from polyopt.core.ops import Array
from polyopt.core.reductions import FOLD, JOINED, WIDTH, groups

LANES = 1 << 12
"""Lanes of a row: FOLD rows of them fit a core's own cache, and a stream is read in long pieces."""

_STREAMS = "\n".join(
    f"                x{i} = x[{i} * m + i * m2 + a:{i} * m + i * m2 + b]" for i in range(FOLD)
)
_SQUARES = "\n".join(
    f"                    s{i} = x{i}[j] * scale\n                    t{i} = s{i} * s{i}" for i in range(FOLD)
)

_FOLD = f"""
def kernel(job):
{PREAMBLE.format(words=HEAD + 8).strip(chr(10))}
    table, pieces, members, scale, out, results, bounds, parts = words[{HEAD}:]
    bounds = carray(address(bounds), parts + 1, np.int64)
    table = carray(address(table), (bounds[parts], 7), np.int64)
    pieces = carray(address(pieces), (members, 2), np.int64)
    out = carray(address(out), results, np.DTYPE)
    scale = carray(address(scale), 1, np.DTYPE)[0]
    joined = np.empty({JOINED}, out.dtype)
    rows = np.empty(({FOLD}, {LANES}), out.dtype)
    few = np.empty({FOLD}, out.dtype)
    for p in range(part, parts, step):
      for row in range(bounds[p], bounds[p + 1]):
        where, n, first, lanes = table[row, 0], table[row, 1], table[row, 2], table[row, 3]
        to, low, high = table[row, 4], table[row, 5], table[row, 6]
        if where == 0:
            at = 0
            for k in range(low, high):
                piece = carray(address(pieces[k, 0]), pieces[k, 1], out.dtype)
                for j in range(len(piece)):
                    joined[at + j] = piece[j]
                at += len(piece)
            x = joined[:n]
        else:
            x = carray(address(where), n, out.dtype)
        m = n // {FOLD}
        m2 = m // {FOLD}
        last = m2
        if where != 0:
            last = min(first + lanes, m2)
        for a in range(first, last, {LANES}):
            b = min(a + {LANES}, last)
            for i in range({FOLD}):
{_STREAMS}
                target = rows[i]
                for j in range(b - a):
{_SQUARES}
                    target[j] = ((t0 + t4) + (t2 + t6)) + ((t1 + t5) + (t3 + t7))
            for h in (4, 2, 1):
                for i in range(h):
                    for j in range(b - a):
                        rows[i, j] = rows[i, j] + rows[h + i, j]
            for j in range(b - a):
                out[to + a + j] = rows[0, j]
        if first == 0:
            at = to + m2
            for j in range({FOLD} * m2, m):
                for i in range({FOLD}):
                    s = x[i * m + j] * scale
                    few[i] = s * s
                for h in (4, 2, 1):
                    for i in range(h):
                        few[i] = few[i] + few[h + i]
                out[at] = few[0]
                at += 1
            for j in range({FOLD} * m, n):
                t0 = x[j] * scale
                out[at] = t0 * t0
                at += 1
"""

_FINISH = f"""
def finish(x, spare):
    n = len(x)
    while n > {WIDTH}:
        m = n // {FOLD}
        for j in range(4 * m):
            spare[j] = x[j] + x[4 * m + j]
        for h in (2 * m, m):
            for j in range(h):
                spare[j] = spare[j] + spare[h + j]
        for j in range({FOLD} * m, n):
            spare[m + j - {FOLD} * m] = x[j]
        n = m + n - {FOLD} * m
        x, spare = spare, x
    odd = np.empty(64, x.dtype)
    count = 0
    while n > 1:
        if n % 2:
            odd[count] = x[n - 1]
            count += 1
        n //= 2
        for j in range(n):
            spare[j] = x[j] + x[n + j]
        x, spare = spare, x
    total = x[0]
    while count > 0:
        count -= 1
        total = total + odd[count]
    return total
"""


@lru_cache(maxsize=2)
def _functions(dtype: str) -> tuple[int, Any]:
    fold = compile_kernel(_FOLD.replace("DTYPE", dtype))
    return fold, compile_source(_FINISH, "finish", f"{dtype}({dtype}[::1], {dtype}[::1])", nogil=True)


@dataclass(frozen=True)
class Layout:
    """Cut arrays of certain sizes into rows that threads share, and pieces of joined arrays."""

    leaf: Any
    """The array of each row whose address it takes, -1 for a joined group."""
    table: Any
    member: Any
    pieces: Any
    weights: Any
    """Elements up to each row, itself included."""
    results: int


@lru_cache(maxsize=64)
def _layout(sizes: bytes) -> Layout:
    counts = np.frombuffer(sizes, np.int64).tolist()
    rows: list[tuple[int, ...]] = []
    leaf: list[int] = []
    members: list[int] = []
    weights: list[int] = []
    results = 0
    for group in groups(tuple(counts)):
        n = sum(counts[i] for i in group)
        m, m2 = n // FOLD, n // FOLD // FOLD
        if len(group) > 1:
            rows.append((0, n, 0, m2, results, len(members), len(members) + len(group)))
            members += group
            leaf.append(-1)
            weights.append(n)
        else:
            for first in range(0, max(m2, 1), LANES):
                rows.append((1, n, first, LANES, results, 0, 0))
                leaf.append(group[0])
                weights.append(min(LANES, m2 - first) * FOLD * FOLD)
        results += m2 + (m - FOLD * m2) + (n - FOLD * m)
    pieces = np.empty((len(members), 2), np.int64)
    member = np.array(members, np.int64)
    pieces[:, 1] = np.array(counts, np.int64)[member] if members else 0
    return Layout(
        np.array(leaf, np.int64),
        np.array(rows, np.int64).reshape(-1, 7),
        member,
        pieces,
        np.cumsum(weights),
        results,
    )


def with_sum_squares(ops: Any, memory: Memory, wrap: Callable[[Any], Array]) -> Any:
    """Return ``ops`` with ``sum_squares``; ``wrap`` makes an array of a host scalar."""

    def run(arrays: Sequence[Array], scale: Array) -> Array | None:
        total = sum_squares(memory, arrays, scale)
        return None if total is None else wrap(total)

    return SimpleNamespace(**(vars(ops) | {"sum_squares": run}))


def sum_squares(memory: Memory, arrays: Sequence[Array], scale: Any) -> Any | None:
    """Return the sum of the squares of all elements times ``scale``, as a host scalar of the arrays' dtype.

    ``None`` without numba, and for arrays of mixed or other dtypes than float32 and float64, in pieces, or
    not in host memory.
    """
    if numba_kernel._numba() is None or not memory.plain():
        return None
    leaves, survey = list(arrays), memory.survey()
    columns = None if survey is None or not leaves else survey.facts([leaves])
    if columns is None:
        return None
    facts = columns[0]
    dtype = memory.storage(int(facts[0, KIND]))
    if dtype is None or (facts[:, KIND] != facts[0, KIND]).any() or not (facts[:, FLAGS] & CONTIGUOUS).all():
        return None
    layout = _layout(np.ascontiguousarray(facts[:, SIZE]).tobytes())
    if layout.results == 0:
        return dtype.type(0)
    return SumSquares(layout, dtype)(facts[:, ADDRESS], float(scale), memory.team())


class SumSquares:
    """The sum of the squares of arrays that are cut as ``layout`` says; for one thread at a time."""

    def __init__(self, layout: Layout, dtype: np.dtype[Any]) -> None:
        self._layout, self._dtype = layout, dtype
        self._fold, self._finish = _functions(dtype.name)
        self._table, self._pieces = layout.table.copy(), layout.pieces.copy()
        self._alone = layout.leaf >= 0
        self._of_alone = layout.leaf[self._alone]
        self._out, self._spare = np.empty((2, layout.results), dtype)
        self._scale = np.empty(1, dtype)
        self._calls: dict[tuple[Team, int], Callable[[], None]] = {}

    def __call__(self, addresses: Any, scale: float, team: Team) -> Any:
        """Return the sum for arrays at these ``addresses`` times ``scale``, as a scalar of their dtype."""
        self.place(addresses)
        return self.run(scale, team)

    def place(self, addresses: Any) -> None:
        """Take over where the arrays are."""
        self._table[self._alone, 0] = addresses[self._of_alone]
        self._pieces[:, 0] = addresses[self._layout.member]

    def run(self, scale: float, team: Team) -> Any:
        """Return the sum for arrays that lie where they did."""
        self._scale[0] = scale
        total = int(self._layout.weights[-1])
        parts = threads.parts(team, total)
        call = self._calls.get((team, parts))
        if call is None:
            call = self._calls[team, parts] = self._call(team, parts, total)
        call()
        return self._dtype.type(self._finish(self._out, self._spare))

    def _call(self, team: Team, parts: int, total: int) -> Callable[[], None]:
        ends = np.searchsorted(self._layout.weights, np.arange(1, parts) * (total / parts))
        bounds = np.array([0, *ends, len(self._table)], np.int64)
        arrays = (self._table, self._pieces, self._scale, self._out, bounds)
        places = [x.ctypes.data for x in arrays]
        words = (*places[:2], len(self._pieces), *places[2:4], len(self._out), places[4], parts)
        call = threads.call(team, self._fold, words, parts)

        def run(kept: Any = bounds) -> None:
            call()

        return run


def of_sizes(sizes: Any, dtype: np.dtype[Any]) -> SumSquares | None:
    """Return what sums over arrays of ``sizes``, int64; ``None`` where they have no elements."""
    layout = _layout(sizes.tobytes())
    return SumSquares(layout, dtype) if layout.results else None
