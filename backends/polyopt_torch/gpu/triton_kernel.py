"""One Triton kernel for a program over all leaves on a GPU: generated, compiled once, launched once a step.

The program becomes straight-line code. Each of its blocks looks up, in a *table* of addresses, where the
arrays of its leaf lie, so leaves of any number and size are one launch, in place where they are given up.
Nothing is contracted or approximated: no fused multiply-add, and the roundings of division and square root
are asked for by name, since Triton's own are off by an ulp or two in float32.

It was never run on a GPU: see docs/backends.md for what was checked without one.
"""

from __future__ import annotations

import hashlib
import linecache
import os
import warnings
from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from polyopt.backend.generate import Column, Names, statements
from polyopt.core.trace import PREDICATES, Program

if TYPE_CHECKING:
    from polyopt_torch.gpu.pointers import Table

Columns: TypeAlias = tuple[Column[torch.dtype], ...]

BLOCK = 1024
"""Elements that one block of threads computes."""

STORED: Mapping[torch.dtype, str] = {
    torch.float16: "tl.float16",
    torch.bfloat16: "tl.bfloat16",
    torch.float32: "tl.float32",
    torch.float64: "tl.float64",
}
"""Dtypes that the kernel reads and writes."""

# Correctly rounded, or only comparing and selecting. Triton's own minus is 0 - x, which loses a zero's sign;
# its floor and ceil take subnormal numbers for zero: see _integers.
_EXPRESSIONS: Mapping[str, str] = {
    "abs": "tl.abs({0})",
    "add": "{0} + {1}",
    "equal": "{0} == {1}",
    "greater": "{0} > {1}",
    "greater_equal": "{0} >= {1}",
    "isfinite": 'tl.abs({0}) < float("inf")',
    "isinf": 'tl.abs({0}) == float("inf")',
    "isnan": "{0} != {0}",
    "less": "{0} < {1}",
    "less_equal": "{0} <= {1}",
    "logical_and": "{0} & {1}",
    "logical_not": "~{0}",
    "logical_or": "{0} | {1}",
    # NaN if one is; of two zeros the second, as in polyopt.backend.host.numba_kernel.
    "maximum": "tl.where({0} > {1}, {0}, tl.where({0} != {0}, {0}, {1}))",
    "minimum": "tl.where({0} < {1}, {0}, tl.where({0} != {0}, {0}, {1}))",
    "multiply": "{0} * {1}",
    "negative": "{0} * -1.0",
    "not_equal": "{0} != {1}",
    "sign": "tl.where({0} > 0.0, 1.0, tl.where({0} < 0.0, -1.0, tl.where({0} == 0.0, 0.0, {0})))",
    "square": "{0} * {0}",
    "subtract": "{0} - {1}",
    "where": "tl.where({0}, {1}, {2})",
}


def _integers(least: float) -> Mapping[str, str]:
    """``round``, ``floor`` and ``ceil`` by additions, where all numbers from ``least`` on are integers."""
    near = f"(tl.where({{0}} < 0.0, -1.0, 1.0) * ((tl.abs({{0}}) + {least}) - {least}))"
    found = {
        "round": near,
        "floor": f"tl.where({near} > {{0}}, {near} - 1.0, {near})",
        "ceil": f"tl.where({near} < {{0}}, {near} + 1.0, {near})",
    }
    # A zero has the sign of what it comes from; NaN and infinities are as they were.
    return {
        op: f"tl.where(tl.abs({{0}}) < {least}, tl.where({x} == 0.0, {{0}} * 0.0, {x}), {{0}})"
        for op, x in found.items()
    }


_ROUNDED: Mapping[str, Mapping[str, str]] = {
    "float32": {"divide": "tl.div_rn({0}, {1})", "sqrt": "tl.sqrt_rn({0})", **_integers(2.0**23)},
    # Only float32 has approximate ones, and only it has these names.
    "float64": {"divide": "{0} / {1}", "sqrt": "tl.sqrt({0})", **_integers(2.0**52)},
}
EXACT = frozenset({*_EXPRESSIONS, *_ROUNDED["float32"]})
"""Operations that the kernel knows, all of them in NumPy's bits."""


@lru_cache(maxsize=1)
def _triton() -> Any:
    try:
        import triton
        import triton.language
    except ImportError:
        return None
    return triton


def interpreted() -> bool:
    """Return True if Triton runs kernels on the CPU, one NumPy call an operation: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def usable(device: torch.device) -> bool:
    """Return True if kernels can be launched for tensors on ``device``.

    NVIDIA's GPUs, with Triton installed.
    """
    if device.type == "cpu":
        return interpreted() and _triton() is not None
    return device.type == "cuda" and torch.version.hip is None and _triton() is not None and not _broken


class Kernel:
    """``program`` in the compute dtype ``dtype`` over ``columns``.

    ``resident`` are scalar inputs that lie on the device, as 0-d tensors; the program doesn't name them among
    its scalars, and nothing waits for their values.
    """

    def __init__(
        self, program: Program, dtype: str, columns: Columns, resident: tuple[str, ...] = ()
    ) -> None:
        self.columns = columns
        self.given = tuple(c.name for c in columns if c.given)
        self.in_place = tuple(c.name for c in columns if c.given and c.written)
        self.scalars = tuple(sorted(program.scalar_names & program.used))
        self.resident = tuple(n for n in resident if n in program.used)
        self.source = _source(program, dtype, columns, self.scalars, self.resident)
        self._launched = False

    @cached_property
    def function(self) -> Any:
        """The kernel as Triton has it: ``function[grid](table, chunks, scalars, *resident, ALIGNED)``."""
        return _compiled(self.source, len(self.resident))

    def launch(self, table: Table, scalars: torch.Tensor, resident: list[torch.Tensor]) -> bool:
        """Compute all leaves; ``False``, and nothing done, where Triton can't build kernels.

        ``scalars``: the values of ``scalars`` in the compute dtype; ``resident``: those of
        ``resident``.
        """
        try:
            # No fused multiply-add: it rounds once where the program rounds twice.
            self.function[(len(table.chunks),)](
                table.on_device,
                table.chunks,
                scalars,
                *resident,
                ALIGNED=table.aligned,
                num_warps=4,
                enable_fp_fusion=False,
            )
        except Exception as e:
            if self._launched:
                raise
            _give_up(e)
            return False
        self._launched = True
        return True


_broken = False


def _give_up(reason: Exception) -> None:
    """Triton needs a C compiler and a GPU that it knows; without, kernels can't be built in this process."""
    global _broken
    _broken = True
    text = str(reason).strip().splitlines()
    warnings.warn(
        f"Triton can't build a kernel here ({type(reason).__name__}: {text[0] if text else ''}); "
        "torch's foreach operations do its work, in the same bits but slower",
        RuntimeWarning,
        stacklevel=2,
    )


def _source(
    program: Program,
    dtype: str,
    columns: Columns,
    scalars: tuple[str, ...],
    resident: tuple[str, ...],
) -> str:
    """Write the kernel as Python source.

    It says all that the kernel depends on: equal sources are equal kernels.
    """
    name = Names()
    predicates = {i.name for i in program.body if i.op in PREDICATES}
    arguments = "".join(f"r{k}, " for k in range(len(resident)))
    lines = [
        f"def kernel(table, chunks, scalars, {arguments}ALIGNED: tl.constexpr):",
        "    row = chunks + tl.program_id(0).to(tl.int64) * 3",
        f"    leaf = table + tl.load(row) * {len(columns)}",
        "    offset = tl.load(row + 1)",
        "    length = tl.load(row + 2)",
        f"    lane = tl.arange(0, {BLOCK})",
    ]
    for k, scalar in enumerate(scalars):
        lines.append(
            f"    {name(scalar)} = tl.load(scalars + {k})" + (" != 0" if scalar in predicates else "")
        )
    for k, scalar in enumerate(resident):
        lines.append(f"    {name(scalar)} = tl.load(r{k}).to(tl.{dtype})")
    for k, column in enumerate(columns):
        pointer = f"tl.load(leaf + {k}).to(tl.pointer_type({STORED[column.storage]}))"
        lines.append(f"    a{k} = {pointer} + offset")
    # A whole chunk needs no mask, and then wide loads and stores are possible.
    lines.append("    if ALIGNED:")
    lines += [f"        a{k} = tl.multiple_of(a{k}, 16)" for k in range(len(columns))]
    lines.append(f"    if length == {BLOCK}:")
    lines += _body(program, dtype, columns, name, "")
    lines.append("    else:")
    lines += _body(program, dtype, columns, name, ", mask=lane < length")
    return "\n".join(lines) + "\n"


def _body(program: Program, dtype: str, columns: Columns, name: Names, mask: str) -> list[str]:
    lines = [
        f"{name(column.name)} = tl.load(a{k} + lane{mask}).to(tl.{dtype})"
        for k, column in enumerate(columns)
        if column.given and column.name in program.used
    ]
    lines += statements(program, {**_EXPRESSIONS, **_ROUNDED[dtype]}, name)
    results = dict(program.outputs)
    for k, column in enumerate(columns):
        if column.written:
            value = f"{name(results[column.name])}.to({STORED[column.storage]})"
            lines.append(f"tl.store(a{k} + lane, {value}{mask})")
    return [f"        {line}" for line in lines]


@lru_cache(maxsize=256)
def _compiled(source: str, resident: int) -> Any:
    triton = _triton()
    file = f"<polyopt {hashlib.sha256(source.encode()).hexdigest()[:32]}>"
    # Triton reads the source of what it compiles; it keeps what it has compiled on disk by that.
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    scope: dict[str, Any] = {"__name__": __name__, "tl": triton.language}
    exec(compile(source, file, "exec"), scope)
    # A scalar may lie anywhere: no kernel of its own for one that is aligned by chance.
    return triton.jit(scope["kernel"], do_not_specialize=[f"r{k}" for k in range(resident)])
