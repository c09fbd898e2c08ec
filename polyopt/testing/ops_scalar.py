"""Compute every elementwise operation for Python numbers, by hand from the standard.

The array API standard 2024.12 is the source (special cases included); NumPy is not used, so that NumPy's own
module is checked like everyone's. A function may return ``None``: the standard leaves the value open there.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from polyopt.core.ops import FLOATING
from polyopt.testing.ops_inputs import NUMERIC, SIGNED

ALL: Final = (*NUMERIC, "bool")
ULPS: Final = {"float64": 4.0, "float32": 4.0, "float16": 1.0, "bfloat16": 1.0}
"""Units in the last place for transcendental functions: the C libraries' and XLA's own bound of a few; half
precision is computed in float32 and rounded once, so one."""


@dataclass(frozen=True)
class Elementwise:
    """One operation: its value for Python numbers, its dtypes, and how exact it must be.

    ``ulps`` empty: correctly rounded, the same bits. ``predicate``: the result is a bool. ``zeros``: whether
    the standard fixes the sign of a zero result. ``largest``: bound on the size of finite inputs.
    """

    value: Callable[..., Any]
    arity: int
    dtypes: tuple[str, ...]
    predicate: bool = False
    ulps: Mapping[str, float] = field(default_factory=dict)
    zeros: bool = True
    largest: float = math.inf


def _divide(a: float, b: float) -> float:
    if b != 0:
        return a / b
    if a == 0 or math.isnan(a):
        return math.nan
    return math.copysign(math.inf, a) * math.copysign(1.0, b)


def _pow(a: Any, b: Any) -> Any:
    if isinstance(a, int):
        return a**b if 0 <= b < 64 else None
    if a == 1 and math.isnan(b):
        return None
    odd = math.isfinite(b) and b == math.floor(b) and math.fmod(b, 2) != 0
    try:
        return math.pow(a, b)
    except OverflowError:
        return -math.inf if a < 0 and odd else math.inf
    except ValueError:
        if a == 0:
            return math.copysign(math.inf, a) if odd else math.inf
        return math.nan


def _rounding(to_integer: Callable[[float], int]) -> Callable[[Any], Any]:
    def value(a: Any) -> Any:
        if isinstance(a, int) or not math.isfinite(a) or a == 0:
            return a
        return math.copysign(float(to_integer(a)), a)

    return value


def _total(function: Callable[[float], float], at_minus_inf: float = math.nan) -> Callable[[float], float]:
    """Make ``math``'s function total: inf for overflow and NaN outside the domain, and no exception."""

    def value(a: float) -> float:
        if a == -math.inf:
            return at_minus_inf
        try:
            return function(a)
        except OverflowError:
            return math.inf
        except ValueError:
            return math.nan

    return value


def _log(a: float) -> float:
    return -math.inf if a == 0 else _total(math.log)(a)


def _log1p(a: float) -> float:
    return -math.inf if a == -1 else _total(math.log1p)(a)


def _sign(a: Any) -> Any:
    if a != a:
        return a
    return type(a)((a > 0) - (a < 0))


def _extreme(pick: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    return lambda a, b: math.nan if a != a or b != b else pick(a, b)


def _wrap_abs(a: Any) -> Any:
    return math.fabs(a) if isinstance(a, float) else abs(a)


def _transcendental(value: Callable[..., Any], *, largest: float = math.inf) -> Elementwise:
    return Elementwise(value, 1, FLOATING, ulps=ULPS, largest=largest)


def _predicate(value: Callable[..., Any], arity: int, dtypes: tuple[str, ...]) -> Elementwise:
    return Elementwise(value, arity, dtypes, predicate=True)


ELEMENTWISE: Final[dict[str, Elementwise]] = {
    "abs": Elementwise(_wrap_abs, 1, NUMERIC),
    "add": Elementwise(operator.add, 2, NUMERIC),
    "ceil": Elementwise(_rounding(math.ceil), 1, NUMERIC),
    # Beyond 1e4 the result is that of the range reduction, which vector libraries do in single precision.
    "cos": _transcendental(_total(math.cos), largest=1e4),
    "divide": Elementwise(_divide, 2, FLOATING),
    "equal": _predicate(operator.eq, 2, ALL),
    "exp": _transcendental(_total(math.exp, 0.0)),
    "expm1": _transcendental(_total(math.expm1, -1.0)),
    "floor": Elementwise(_rounding(math.floor), 1, NUMERIC),
    "greater": _predicate(operator.gt, 2, NUMERIC),
    "greater_equal": _predicate(operator.ge, 2, NUMERIC),
    "isfinite": _predicate(math.isfinite, 1, NUMERIC),
    "isinf": _predicate(math.isinf, 1, NUMERIC),
    "isnan": _predicate(math.isnan, 1, NUMERIC),
    "less": _predicate(operator.lt, 2, NUMERIC),
    "less_equal": _predicate(operator.le, 2, NUMERIC),
    "log": _transcendental(_log),
    "log1p": _transcendental(_log1p),
    "logical_and": _predicate(operator.and_, 2, ("bool",)),
    "logical_not": _predicate(operator.not_, 1, ("bool",)),
    "logical_or": _predicate(operator.or_, 2, ("bool",)),
    # The standard leaves it open which zero max(+0, -0) is.
    "maximum": Elementwise(_extreme(max), 2, NUMERIC, zeros=False),
    "minimum": Elementwise(_extreme(min), 2, NUMERIC, zeros=False),
    "multiply": Elementwise(operator.mul, 2, NUMERIC),
    "negative": Elementwise(operator.neg, 1, SIGNED),
    "not_equal": _predicate(operator.ne, 2, ALL),
    "pow": Elementwise(_pow, 2, NUMERIC, ulps=ULPS),
    "round": Elementwise(_rounding(round), 1, NUMERIC),
    "sign": Elementwise(_sign, 1, NUMERIC),
    "sqrt": Elementwise(lambda a: a if a == 0 else _total(math.sqrt)(a), 1, FLOATING),
    "square": Elementwise(lambda a: a * a, 1, NUMERIC),
    "subtract": Elementwise(operator.sub, 2, NUMERIC),
    "tanh": _transcendental(_total(math.tanh, -1.0)),
    "where": Elementwise(lambda c, a, b: a if c else b, 3, ALL),
}
PROMOTIONS: Final = (
    ("float32", "float64", "float64"),
    ("int8", "int16", "int16"),
    ("int8", "int64", "int64"),
    ("int32", "int64", "int64"),
    ("uint8", "int8", "int16"),
    ("uint8", "int32", "int32"),
)
"""Two dtypes and what the standard makes of them; other mixtures it leaves open."""
