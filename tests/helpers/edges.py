"""Numbers at which rounding to integers, and the sign, are easily wrong."""

from __future__ import annotations

from typing import Any

import numpy as np

from polyopt.core.trace import Program, Symbol, Tracer

ROUNDINGS = {
    "ceil": np.ceil,
    "floor": np.floor,
    "round": np.rint,
    "sign": np.sign,
    "clip": lambda x: np.minimum(np.maximum(x, x.dtype.type(-0.37)), x.dtype.type(0.37)),
}
"""NumPy's function for each operation."""


def rounding_program(op: str) -> Program:
    """``p = op(g)``, where the limits of ``clip`` are ``-s`` and ``s``: 0.37."""
    t = Tracer()
    g, s = Symbol(t, "g"), Symbol(t, "s")
    return t.program(("g", "p"), ("s",), {"p": t.clip(g, -s, s) if op == "clip" else t.emit(op, g)})


def rounding_edges(dtype: str) -> Any:
    """Zeros, subnormals, halves, numbers around the one from which all are integers, and the special ones."""
    whole = 2.0 ** np.finfo(dtype).nmant
    some = [0.0, 0.3, 0.5, 0.7, 1.0, 1.5, 2.5, 1e-42, whole / 2 - 0.5, whole - 0.5, whole + 1, 1e30]
    return np.array([*some, *(-x for x in some), np.inf, -np.inf, np.nan], dtype)
