"""One fused kernel for a program over all leaves in host memory, compiled by numba (the extra ``numba``).

The program becomes straight-line scalar code inside a loop over a *table*: a row holds the addresses of a
chunk's arrays and its length, so leaves of any number and size are one call, in place where they are given
up. Nothing is contracted, approximated or reordered (no fast-math), at any number of threads: the bits are
those of the program op by op.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from polyopt.backend.generate import Column, Names, statements
from polyopt.backend.host import threads
from polyopt.backend.host.threads import HEAD, PREAMBLE, Team
from polyopt.core.trace import PREDICATES, Program

CHUNK = 1 << 14
"""Elements of a row at the most: what threads share out."""

Columns: TypeAlias = tuple[Column[np.dtype[Any]], ...]

STORED = frozenset(np.dtype(name) for name in ("float32", "float64"))
"""Dtypes that the kernel reads and writes; others are left to NumPy."""

# All but polyopt.core.trace.INEXACT: correctly rounded, or only comparing and selecting, so that LLVM's bits
# are NumPy's. {t} is the compute dtype: a plain 1 would widen what it stands beside.
EXPRESSIONS: Mapping[str, str] = {
    "abs": "abs({0})",
    "add": "{0} + {1}",
    "ceil": "np.ceil({0})",
    "divide": "{0} / {1}",
    "equal": "{0} == {1}",
    "floor": "np.floor({0})",
    "greater": "{0} > {1}",
    "greater_equal": "{0} >= {1}",
    "isfinite": "np.isfinite({0})",
    "isinf": "np.isinf({0})",
    "isnan": "np.isnan({0})",
    "less": "{0} < {1}",
    "less_equal": "{0} <= {1}",
    "logical_and": "{0} & {1}",
    "logical_not": "not {0}",
    "logical_or": "{0} | {1}",
    # NaN if one is; of two zeros the second, as NumPy's vector code has it.
    "maximum": "{0} if {0} > {1} or {0} != {0} else {1}",
    "minimum": "{0} if {0} < {1} or {0} != {0} else {1}",
    "multiply": "{0} * {1}",
    "negative": "-{0}",
    "not_equal": "{0} != {1}",
    "round": "np.rint({0})",
    "sign": "{t}(1) if {0} > {t}(0) else ({t}(-1) if {0} < {t}(0) else ({t}(0) if {0} == {t}(0) else {0}))",
    "sqrt": "np.sqrt({0})",
    "square": "{0} * {0}",
    "subtract": "{0} - {1}",
    "where": "{1} if {0} else {2}",
}


@dataclass(frozen=True)
class Rows:
    """Cut leaves of certain sizes into rows: the leaf of each, its offset in elements and its length."""

    leaf: Any
    offset: Any
    length: Any
    total: int
    whole: bool
    """True if every leaf is one row."""
    cuts: dict[int, Any] = field(default_factory=dict, compare=False)
    """Results of ``bounds``, kept."""

    def bounds(self, parts: int) -> Any:
        """Return the first row of each of ``parts`` of about the same work, and the number of rows."""
        if parts not in self.cuts:
            ends = np.cumsum(self.length)
            inner: Any = np.searchsorted(ends, np.arange(1, parts) * (self.total / parts))
            self.cuts[parts] = np.array([0, *inner, len(ends)], np.int64)
        return self.cuts[parts]


def rows(sizes: Any) -> Rows:
    """Chunks of at most ``CHUNK`` elements of leaves with these ``sizes``, an int64 array.

    >>> rows(np.array([3, 0, CHUNK + 1])).length.tolist() == [3, CHUNK, 1]
    True
    """
    return _rows(sizes.tobytes())


@lru_cache(maxsize=64)
def _rows(sizes: bytes) -> Rows:
    numbers = np.frombuffer(sizes, np.int64).tolist()
    cut = [(i, start, min(CHUNK, n - start)) for i, n in enumerate(numbers) for start in range(0, n, CHUNK)]
    leaf, offset, length = np.array(cut, np.int64).reshape(-1, 3).T.copy()
    return Rows(leaf, offset, length, sum(numbers), leaf.tolist() == list(range(len(numbers))))


@lru_cache(maxsize=1)
def _numba() -> Any:
    try:
        import numba
    except ImportError:
        return None
    return numba


def available() -> bool:
    """Return True if numba is installed."""
    return _numba() is not None


class Kernel:
    """``program`` in the compute dtype ``dtype`` over ``columns``."""

    def __init__(self, program: Program, dtype: str, columns: Columns) -> None:
        self.columns = columns
        self.given = tuple(c.name for c in columns if c.given)
        self.in_place = frozenset(c.name for c in columns if c.given and c.written)
        self.dtype = np.dtype(dtype)
        self.scalars = tuple(sorted(program.scalar_names & program.used))
        self.function = compile_kernel(_source(program, dtype, columns, self.scalars))

    def over(self, cut: Rows) -> Call:
        """Make the call of the kernel for leaves that are cut so."""
        return Call(self, cut)


class Call:
    """A kernel over leaves of certain sizes, to be run many times, by one thread at a time."""

    def __init__(self, kernel: Kernel, cut: Rows) -> None:
        self._kernel, self._cut = kernel, cut
        self._table = np.empty((len(cut.leaf), len(kernel.columns) + 1), np.int64)
        self._table[:, -1] = cut.length
        self._places = self._table[:, :-1]
        self._offsets = cut.offset[:, None] * np.array([c.storage.itemsize for c in kernel.columns], np.int64)
        self._values = np.empty(len(kernel.scalars), kernel.dtype)
        self._calls: dict[tuple[Team, int], Callable[[], None]] = {}

    def place(self, addresses: Any) -> None:
        """Take over where the leaves are. ``addresses``: for each column those of every leaf, int64."""
        if self._cut.whole:
            self._places[...] = addresses.T
        else:
            np.add(addresses[:, self._cut.leaf].T, self._offsets, out=self._places)

    def run(self, scalars: Mapping[str, Any], team: Team) -> None:
        """Compute all leaves."""
        self._values[:] = [float(scalars[name]) for name in self._kernel.scalars]
        parts = threads.parts(team, self._cut.total)
        call = self._calls.get((team, parts))
        if call is None:
            bounds = self._cut.bounds(parts)
            words = (*(x.ctypes.data for x in (self._table, self._values, bounds)), parts)
            call = self._calls[team, parts] = threads.call(team, self._kernel.function, words, parts)
        call()


def _source(program: Program, dtype: str, columns: Columns, scalars: tuple[str, ...]) -> str:
    """Write the kernel as Python source.

    It says all that the kernel depends on: equal sources are equal kernels.
    """
    name = Names()
    predicates = {i.name for i in program.body if i.op in PREDICATES}
    lines = ["def kernel(job):", PREAMBLE.format(words=HEAD + 4).strip("\n")]
    lines.append(f"    table, scalars, bounds, parts = words[{HEAD}:]")
    lines.append(f"    scalars = carray(address(scalars), {len(scalars)}, np.{dtype})")
    lines.append("    bounds = carray(address(bounds), parts + 1, np.int64)")
    lines.append(f"    table = carray(address(table), (bounds[parts], {len(columns) + 1}), np.int64)")
    for k, scalar in enumerate(scalars):
        lines.append(f"    {name(scalar)} = scalars[{k}]" + (" != 0" if scalar in predicates else ""))
    lines.append("    for p in range(part, parts, step):")
    lines.append("      for row in range(bounds[p], bounds[p + 1]):")
    lines.append(f"        n = table[row, {len(columns)}]")
    for k, column in enumerate(columns):
        lines.append(f"        a{k} = carray(address(table[row, {k}]), n, np.{column.storage.name})")
    lines.append("        for i in range(n):")
    for k, column in enumerate(columns):
        if column.given and column.name in program.used:
            lines.append(f"            {name(column.name)} = np.{dtype}(a{k}[i])")
    lines += [f"            {x}" for x in statements(program, EXPRESSIONS, name, t=f"np.{dtype}")]
    results = dict(program.outputs)
    for k, column in enumerate(columns):
        if column.written:
            lines.append(f"            a{k}[i] = {name(results[column.name])}")
    return "\n".join(lines) + "\n"


@lru_cache(maxsize=256)
def compile_kernel(source: str) -> int:
    """Compile ``kernel`` of ``source``, and return its address: see ``polyopt.backend.host.threads``."""
    scope, cached = _scope(f"{source}# kernel\n")
    compiled = _numba().cfunc("void(int64)", error_model="numpy", cache=cached)(scope["kernel"])
    _kept.append(compiled)
    return int(compiled.address)


_kept: list[Any] = []
"""What addresses were given of."""


def compile_source(source: str, name: str, signature: str, *, nogil: bool = False) -> Callable[..., Any]:
    """Compile the function ``name`` of ``source``; from the second process on, load it from a file."""
    scope, cached = _scope(f"{source}# {signature}\n")
    # Not fast-math: every operation is rounded by itself.
    compiled = _numba().njit(signature, nogil=nogil, error_model="numpy", cache=cached)
    function: Callable[..., Any] = compiled(scope[name])
    return function


def _scope(source: str) -> tuple[dict[str, Any], bool]:
    """Return what ``source`` defines, and whether there is a file beside which numba may keep it compiled."""
    file = _cache_file(source)
    # The name is that of a module which can be imported: numba looks it up when it loads from its cache.
    scope: dict[str, Any] = {
        "__name__": __name__,
        "np": np,
        "carray": _numba().carray,
        "address": _address(),
        "load": _load(),
        "store": _store(),
        "call": _call(),
        "invoke": _invoke(),
    }
    exec(compile(source, str(file or "<polyopt kernel>"), "exec"), scope)
    return scope, file is not None


def _cache_file(source: str) -> Path | None:
    """Return a file with the source, beside which numba keeps what it compiles; ``None`` without one.

    In ``POLYOPT_CACHE_DIR``, else ``XDG_CACHE_HOME``/polyopt, else ``~/.cache/polyopt``.
    """
    own, shared = os.environ.get("POLYOPT_CACHE_DIR"), os.environ.get("XDG_CACHE_HOME")
    try:
        home = Path(own) if own else (Path(shared) if shared else Path.home() / ".cache") / "polyopt"
        folder = home / "kernels"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"k{hashlib.sha256(source.encode()).hexdigest()[:32]}.py"
        if not file.exists():
            from polyopt.core.files import write_atomic

            write_atomic(file, [source.encode()])
    except (OSError, RuntimeError, ValueError):
        return None
    return file


@lru_cache(maxsize=1)
def _address() -> Any:
    """Make an intrinsic that takes an integer for a pointer."""
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    @intrinsic
    def address(typingctx: Any, number: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], cgutils.voidptr_t)

        return types.voidptr(number), code

    return address


@lru_cache(maxsize=1)
def _load() -> Any:
    """Make an intrinsic that reads the 64-bit word at an address."""
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def load(typingctx: Any, where: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.load(builder.inttoptr(args[0], ir.IntType(64).as_pointer()))

        return types.int64(types.int64), code

    return load


@lru_cache(maxsize=1)
def _store() -> Any:
    """Make an intrinsic that writes a 64-bit word to an address."""
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def store(typingctx: Any, where: Any, word: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            builder.store(args[1], builder.inttoptr(args[0], ir.IntType(64).as_pointer()))
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), code

    return store


@lru_cache(maxsize=1)
def _call() -> Any:
    """Make an intrinsic that calls ``int f(void *, void *)`` at an address; an error (not 0) is dropped."""
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    @intrinsic
    def call(typingctx: Any, function: Any, first: Any, second: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kind = ir.FunctionType(ir.IntType(32), [cgutils.voidptr_t, cgutils.voidptr_t])
            pointer = builder.inttoptr(args[0], kind.as_pointer())
            result = builder.call(pointer, [builder.inttoptr(a, cgutils.voidptr_t) for a in args[1:]])
            with builder.if_then(builder.icmp_signed("!=", result, ir.Constant(ir.IntType(32), 0))):
                context.get_python_api(builder).err_clear()
            return result

        return types.int32(function, first, second), code

    return call


@lru_cache(maxsize=1)
def _invoke() -> Any:
    """Make an intrinsic that calls ``intptr_t f(intptr_t, intptr_t)`` at an address.

    It serves functions of fewer, and of narrower, arguments and results too; the caller knows what of the
    result means something.
    """
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def invoke(typingctx: Any, function: Any, first: Any, second: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            word = ir.IntType(64)
            pointer = builder.inttoptr(args[0], ir.FunctionType(word, [word, word]).as_pointer())
            return builder.call(pointer, args[1:])

        return types.int64(types.int64, types.int64, types.int64), code

    return invoke
