"""Evaluate a traced program op by op over a list of leaves, with the casts between their dtypes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from polyopt.backend.protocol import Arrays, Backend, Scalars
from polyopt.core.ops import Array
from polyopt.core.trace import Program, evaluate


def cast(backend: Backend, x: Array, dtype: str) -> Array:
    """Return ``x`` in ``dtype``; ``x`` itself where it is already."""
    if backend.dtype_name(x) == dtype:
        return x
    return backend.ops.astype(x, backend.dtype(dtype))


def full_like(backend: Backend, leaf: Array, value: float, dtype: str) -> Array:
    """Make a constant with the shape and device of ``leaf``."""
    return backend.ops.full_like(backend.stop_gradient(leaf), value, dtype=backend.dtype(dtype))


def evaluate_leaves(
    backend: Backend,
    xp: Any,
    program: Program,
    arrays: Arrays,
    scalars: Scalars,
    dtype: str,
    call: Callable[[str, tuple[Any, ...]], Any] | None = None,
) -> dict[str, list[Array]]:
    """Evaluate a program op by op over a list of leaves: the reference, and the body of compiled lifts.

    ``scalars`` are 0-d arrays of ``dtype`` here, constants included.
    """
    outputs: dict[str, list[Array]] = {name: [] for name, _ in program.outputs}
    for i in range(len(arrays["p"])):
        leaf = {name: arrays[name][i] for name in program.arrays}
        inputs = {n: cast(backend, x, dtype) for n, x in leaf.items() if n in program.used}
        results = evaluate(program, xp, {**scalars, **inputs}, call=call)
        shape = leaf["p"].shape
        for name, value in results.items():
            if tuple(value.shape) != tuple(shape):
                value = xp.broadcast_to(value, tuple(shape))
            like = backend.dtype_name(leaf[name]) if name in leaf else dtype
            outputs[name].append(cast(backend, value, like))
    return outputs
