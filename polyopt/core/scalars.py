"""Scalar arithmetic on the host: the ``xp`` of schedules and coefficients when the step is a Python int.

Everything is a Python float, so double precision, and follows IEEE 754 where ``math`` would raise
(``log(0)`` is ``-inf``). When the step is traced inside a user's own jit, the same formulas get the
framework's operations instead; that is why they are written ``xp.log(b)``, never ``math.log(b)``.
"""

from __future__ import annotations

import math
from typing import Any

pi = math.pi
Scalar = Any
"""A Python float, or a 0-d array where the step is traced."""


def log(x: float, /) -> float:
    """Return the natural logarithm; -inf at 0, NaN below."""
    if x > 0:
        return math.log(x)
    return -math.inf if x == 0 else math.nan


def exp(x: float, /) -> float:
    """Return e to the power of ``x``; inf where it is too large."""
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def expm1(x: float, /) -> float:
    """Return ``exp(x) - 1``, exact near 0; inf where it is too large."""
    try:
        return math.expm1(x)
    except OverflowError:
        return math.inf


def sqrt(x: float, /) -> float:
    """Return the square root; NaN below 0."""
    return math.sqrt(x) if x >= 0 else math.nan


def pow(x1: float, x2: float, /) -> float:
    """Return ``x1`` to the power of ``x2``; inf where it is too large, NaN where it isn't real."""
    try:
        value = math.pow(x1, x2)
    except OverflowError:
        return math.inf
    except ValueError:
        return math.inf if x1 == 0 else math.nan
    return value


def cos(x: float, /) -> float:
    """Return the cosine of ``x`` radians."""
    return math.cos(x)


def floor(x: float, /) -> float:
    """Round down; infinities and NaN stay."""
    return float(math.floor(x)) if math.isfinite(x) else x


def maximum(x1: float, x2: float, /) -> float:
    """Return the larger one; NaN where either is."""
    return math.nan if math.isnan(x1) or math.isnan(x2) else max(x1, x2)


def minimum(x1: float, x2: float, /) -> float:
    """Return the smaller one; NaN where either is."""
    return math.nan if math.isnan(x1) or math.isnan(x2) else min(x1, x2)


def abs(x: float, /) -> float:
    """Return the magnitude."""
    return math.fabs(x)


def where(condition: bool, x1: float, x2: float, /) -> float:
    """Return ``x1`` if ``condition`` is true, else ``x2``."""
    return x1 if condition else x2


def divide(x1: float, x2: float, /) -> float:
    """IEEE division: 1/0 is inf and 0/0 is NaN, where Python raises."""
    if x2 != 0:
        return x1 / x2
    if x1 == 0 or math.isnan(x1):
        return math.nan
    return math.copysign(math.inf, x1) * math.copysign(1.0, x2)


def one_minus_power(xp: Any, base: Scalar, exponent: Scalar) -> Scalar:
    """Return ``1 - base**exponent`` without the cancellation: 1 - 0.999 in float32 is off by 1.3e-5.

    >>> import polyopt.core.scalars as host
    >>> one_minus_power(host, 0.0, 3)
    1.0
    >>> one_minus_power(host, 0.9, 1)
    0.09999999999999998
    """
    return -xp.expm1(exponent * xp.log(base))
