"""Reductions whose bits are the same on every backend, because their order is fixed."""

from __future__ import annotations

from typing import Any

from polyopt.ops import Array

RADIX = 16
"""Rows that :func:`ordered_sum` folds at a time: one fused pass instead of four."""


def ordered_sum(xp: Any, x: Array) -> Array:
    """The sum of all elements as a 0-d array, in an order that is the same on every backend.

    Folding by elementwise additions: each is correctly rounded, so the bits agree, and the error grows
    with log n (Higham, "The accuracy of floating point summation", 1993), not with n.
    """
    x = xp.reshape(x, (-1,))
    n = x.shape[0]
    if n == 0:
        return xp.zeros((), dtype=x.dtype)
    while n > 1:
        width = -(-n // RADIX) if n >= RADIX else 1
        rows = -(-n // width)
        if rows * width != n:
            x = xp.concat([x, xp.zeros_like(x[: rows * width - n])])
        parts = [x[i * width : (i + 1) * width] for i in range(rows)]
        while len(parts) > 1:
            pairs = [xp.add(a, b) for a, b in zip(parts[::2], parts[1::2], strict=False)]
            parts = pairs + parts[len(pairs) * 2 :]
        x, n = parts[0], width
    return xp.reshape(x, ())
