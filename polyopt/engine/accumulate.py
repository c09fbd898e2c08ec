"""Gradients held back and averaged: what an optimizer with ``accumulate=k`` does between its updates."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from polyopt.backend.protocol import Backend
from polyopt.core.groups import by_kind
from polyopt.core.ops import Array
from polyopt.core.trace import Program, Symbol, Tracer
from polyopt.engine.execution import compute_dtype
from polyopt.engine.lift import lifted


@lru_cache(maxsize=1)
def _sum() -> Program:
    t = Tracer()
    return t.program(("g", "p"), (), {"p": Symbol(t, "p") + Symbol(t, "g")})


@lru_cache(maxsize=1)
def _scaled() -> Program:
    t = Tracer()
    return t.program(("g", "p"), ("k",), {"update": Symbol(t, "p") / Symbol(t, "k")})


def add(
    backend: Backend, paths: Sequence[str], g: Sequence[Array | None], held: dict[str, Array], compiled: bool
) -> dict[str, Array]:
    """``held`` plus the gradients that are there, in the compute dtype."""
    return held | _run(backend, _sum(), "p", paths, g, held, {}, compiled)


def mean(
    backend: Backend, paths: Sequence[str], held: dict[str, Array], count: float, compiled: bool
) -> dict[str, Array]:
    """The held gradients divided by ``count``."""
    g = [held[path] for path in paths]
    return _run(backend, _scaled(), "update", paths, g, held, {"k": float(count)}, compiled)


def _run(
    backend: Backend,
    code: Program,
    output: str,
    paths: Sequence[str],
    g: Sequence[Array | None],
    held: dict[str, Array],
    scalars: dict[str, float],
    compiled: bool,
) -> dict[str, Array]:
    present = [(path, x) for path, x in zip(paths, g, strict=True) if x is not None]
    dtypes = (compute_dtype(backend.dtype_name(held[path])) for path, _ in present)
    result: dict[str, Array] = {}
    for dtype, members in by_kind(dtypes).items():
        names = [present[i][0] for i in members]
        arrays = {"g": [present[i][1] for i in members], "p": [held[path] for path in names]}
        out = lifted(backend, code, compiled)(arrays, scalars, dtype, donate=False)
        result |= dict(zip(names, out[output], strict=True))
    return result
