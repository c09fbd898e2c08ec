"""On a CPU: a program over a large leaf as one kernel, in place, called from inside an XLA computation.

XLA for CPUs gives each result a loop of its own: Adam reads and writes 40 bytes a parameter where 28 would
do, and memory is the bottleneck. So where numba is installed a program's kernel (see
``polyopt.backend.host.numba_kernel``) is registered as a foreign function, whose in- and output share
their memory. It has the program's bits, as the fenced computation has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from polyopt.backend.host import numba_kernel
from polyopt.backend.host.numpy_kernel import scalar_names
from polyopt.core.trace import Program

LARGE = 1 << 16
"""Elements from which on the kernel pays: below, the caches hold what XLA's loops read twice."""

_HEAD = """
def kernel(frame):
    # XLA_FFI_CallFrame in words of 8 bytes (xla/ffi/api/c_api.h). One with an extension asks for the
    # handler's version: it is that of whoever calls.
    words = carray(address(frame), 22, np.int64)
    if words[1] != 0:
        extension = carray(address(words[1]), 4, np.int64)
        if carray(address(words[1] + 8), 1, np.int32)[0] == 1:
            api = carray(address(words[2]), 5, np.int64)
            carray(address(extension[3]), 5, np.int64)[3] = api[4]
            return
    given = carray(address(words[9]), {inputs}, np.int64)
    made = carray(address(words[14]), {outputs}, np.int64)
    n = 1
    rank = carray(address(given[0]), 6, np.int64)[4]
    dims = carray(address(carray(address(given[0]), 6, np.int64)[5]), rank, np.int64)
    for d in range(rank):
        n *= dims[d]
    scalars = carray(address(carray(address(given[{inputs} - 1]), 6, np.int64)[3]), {scalars}, np.{dtype})
"""


def runs(program: Program, arrays: Mapping[str, Any]) -> bool:
    """Whether the kernel can have, and is the way to have, the results of ``program`` on this leaf."""
    kinds = {np.dtype(x.dtype) for x in arrays.values()}
    return (
        _alone_on_cpu()
        and math.prod(arrays["p"].shape) >= LARGE
        and kinds <= numba_kernel.STORED
        and numba_kernel.supported(program)
        and {i.op for i in program.body} <= numba_kernel.EXPRESSIONS.keys()
    )


@lru_cache(maxsize=1)
def _alone_on_cpu() -> bool:
    """Whether CPUs are all that a computation could be compiled for."""
    return jax.default_backend() == "cpu"


def run(
    program: Program,
    arrays: Mapping[str, Any],
    scalars: Mapping[str, Any],
    dtype: str,
    *,
    in_place: bool,
) -> dict[str, Any]:
    """The outputs of ``program`` on one leaf, inside a computation.

    Parameters
    ----------
    scalars
        0-d, of ``dtype``, constants included.
    in_place
        Whether outputs take the memory of what they replace, which XLA copies where it is still needed.
    """
    outputs = tuple(n for n, _ in program.outputs)
    shared = tuple(n for n in outputs if n in arrays) if in_place else ()
    names = tuple(n for n in program.arrays if n in program.used or n in shared)
    like = arrays["p"]
    stored = tuple((n, str(np.dtype(arrays[n].dtype))) for n in names)
    made = tuple((n, str(np.dtype(arrays[n].dtype)) if n in arrays else dtype) for n in outputs)
    used = [n for n in (*program.scalars, *(n for n, _ in program.constants)) if n in program.used]
    target = _target(program, dtype, stored, made, tuple(used), shared)
    values = [scalars[n] for n in used]
    vector = jnp.stack(values) if values else jnp.zeros((1,), dtype)
    call = jax.ffi.ffi_call(
        target,
        [jax.ShapeDtypeStruct(like.shape, kind) for _, kind in made],  # type: ignore[no-untyped-call]
        input_output_aliases={names.index(n): outputs.index(n) for n in shared},
    )
    return dict(zip(outputs, call(*(arrays[n] for n in names), vector), strict=True))


@lru_cache(maxsize=256)
def _target(
    program: Program,
    dtype: str,
    stored: tuple[tuple[str, str], ...],
    made: tuple[tuple[str, str], ...],
    scalars: tuple[str, ...],
    shared: tuple[str, ...],
) -> str:
    """The name under which XLA knows the kernel."""
    import numba

    source = _source(program, dtype, stored, made, scalars, shared)
    # A name that says what is computed: JAX may find the computation around it in a cache on disk.
    name = f"polyopt_{sha256(source.encode()).hexdigest()[:32]}"
    if name not in _kept:
        kernel = numba_kernel.compile_source(source, "kernel", "void(int64)", nogil=True)

        @numba.cfunc("int64(int64)")
        def handler(frame: int) -> int:
            kernel(frame)
            return 0  # no error

        _kept[name] = handler
        capsule = jax.ffi.pycapsule(handler.ctypes)  # type: ignore[no-untyped-call]
        jax.ffi.register_ffi_target(name, capsule, platform="cpu")
    return name


_kept: dict[str, Any] = {}
"""What XLA has the addresses of."""


def _source(
    program: Program,
    dtype: str,
    stored: tuple[tuple[str, str], ...],
    made: tuple[tuple[str, str], ...],
    scalars: tuple[str, ...],
    shared: tuple[str, ...],
) -> str:
    """The kernel; what is ``shared`` is read where it is written, so that the compiler sees one array."""
    names: dict[str, str] = {}

    def name(value: str) -> str:
        return names.setdefault(value, f"x{len(names)}")

    def buffer(table: str, i: int, kind: str) -> str:
        return f"carray(address(carray(address({table}[{i}]), 6, np.int64)[3]), n, np.{kind})"

    head = _HEAD.format(inputs=len(stored) + 1, outputs=len(made), scalars=max(1, len(scalars)), dtype=dtype)
    lines = [head.strip("\n")]
    lines += [f"    {name(s)} = scalars[{k}]" for k, s in enumerate(scalars)]
    known = scalar_names(program)
    steps = [
        (i, f"{name(i.name)} = {numba_kernel.EXPRESSIONS[i.op].format(*map(name, i.args))}")
        for i in program.body
    ]
    lines += [f"    {text}" for i, text in steps if i.name in known]
    results = [n for n, _ in made]
    lines += [f"    o{k} = {buffer('made', k, kind)}" for k, (_, kind) in enumerate(made)]
    lines += [
        f"    a{k} = {buffer('given', k, kind)}" for k, (n, kind) in enumerate(stored) if n not in shared
    ]
    lines.append("    for i in range(n):")
    for k, (n, _) in enumerate(stored):
        source = f"o{results.index(n)}" if n in shared else f"a{k}"
        lines.append(f"        {name(n)} = np.{dtype}({source}[i])")
    lines += [f"        {text}" for i, text in steps if i.name not in known]
    outputs = dict(program.outputs)
    lines += [f"        o{k}[i] = {name(outputs[n])}" for k, n in enumerate(results)]
    return "\n".join(lines) + "\n"
