"""Lifting on NumPy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from polyopt.lifting import evaluate_leaves
from polyopt.trace import Program
from polyopt_numpy import ops

if TYPE_CHECKING:
    from polyopt_numpy.backend import NumpyBackend


def lift(backend: NumpyBackend, program: Program, compiled: bool) -> Any:
    def run(arrays: Any, scalars: Any, dtype: str, donate: bool = False) -> Any:
        kind = np.dtype(dtype).type
        values = {n: kind(v) for n, v in (*scalars.items(), *program.constants)}
        with np.errstate(all="ignore"):
            out = evaluate_leaves(backend, ops, program, arrays, values, dtype)
        if donate:
            for name in out:
                if name in arrays:
                    for target, value in zip(arrays[name], out[name], strict=True):
                        target[...] = value
                    out[name] = list(arrays[name])
        return out

    return run
