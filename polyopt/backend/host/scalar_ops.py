"""The exactly rounded operations on host scalars of one dtype, as the ``xp`` of a rule's measurement.

On a framework's 0-d arrays each of them costs microseconds. What is not exactly rounded isn't here: its bits
are each framework's own.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

float32, float64 = np.float32, np.float64
add, subtract, multiply, divide = operator.add, operator.sub, operator.mul, operator.truediv
negative, abs = operator.neg, operator.abs
equal, not_equal, less, less_equal = operator.eq, operator.ne, operator.lt, operator.le
greater, greater_equal = operator.gt, operator.ge
logical_and, logical_or = operator.and_, operator.or_
logical_not, isnan, isinf, isfinite, sqrt = np.logical_not, np.isnan, np.isinf, np.isfinite, np.sqrt


def where(condition: Any, x1: Any, x2: Any, /) -> Any:
    """Return ``x1`` where the condition holds, else ``x2``."""
    return x1 if condition else x2


def maximum(x1: Any, x2: Any, /) -> Any:
    """Return the larger one: NaN if one is, and of equals the second, as the arrays' own."""
    return x1 if x1 > x2 or x1 != x1 else x2


def minimum(x1: Any, x2: Any, /) -> Any:
    """Return the smaller one: NaN if one is, and of equals the second, as the arrays' own."""
    return x1 if x1 < x2 or x1 != x1 else x2


def full_like(x: Any, value: float, /) -> Any:
    """Return ``value`` in the dtype of ``x``."""
    return x.dtype.type(value)


def ones_like(x: Any, /) -> Any:
    """Return 1 in the dtype of ``x``."""
    return x.dtype.type(1.0)


def zeros_like(x: Any, /) -> Any:
    """Return 0 in the dtype of ``x``."""
    return x.dtype.type(0.0)


def ordinary(x: Any) -> bool:
    """Return True if ``x`` is 0 or a normal number: others are not the same everywhere.

    >>> ordinary(np.float32(0.5)), ordinary(np.float32(1e-40)), ordinary(np.float32(math.nan))
    (True, False, False)
    """
    size = math.fabs(x)
    return size == 0.0 or float(np.finfo(x.dtype).tiny) <= size < math.inf
