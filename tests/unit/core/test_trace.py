"""The trace of a leaf function and its evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyopt.core.trace import BINARY, UNARY, Program, Symbol, Tracer, evaluate
from polyopt.testing import assert_same_bits
from polyopt_numpy import ops


def trace(function: Any) -> Program:
    t = Tracer()
    return t.program(("x", "y"), (), {"out": function(t, Symbol(t, "x"), Symbol(t, "y"))})


def run(program: Program, x: Any, y: Any) -> Any:
    constants = {name: np.float32(value) for name, value in program.constants}
    with np.errstate(all="ignore"):
        return evaluate(program, ops, {"x": x, "y": y, **constants})["out"]


def expressions() -> st.SearchStrategy[Any]:
    """Random expression trees as functions of (xp, x, y)."""
    leaves = st.sampled_from([lambda xp, x, y: x, lambda xp, x, y: y]) | st.floats(-4, 4, width=32).map(
        lambda c: lambda xp, x, y: c * x
    )

    def grow(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        binary = st.tuples(
            st.sampled_from(["add", "subtract", "multiply", "divide", "maximum"]), inner, inner
        )
        unary = st.tuples(st.sampled_from(["abs", "sqrt", "negative", "square"]), inner)
        where = st.tuples(inner, inner)
        return (
            binary.map(lambda t: lambda xp, x, y: getattr(xp, t[0])(t[1](xp, x, y), t[2](xp, x, y)))
            | unary.map(lambda t: lambda xp, x, y: getattr(xp, t[0])(t[1](xp, x, y)))
            | where.map(lambda t: lambda xp, x, y: xp.where(x > y, t[0](xp, x, y), t[1](xp, x, y)))
        )

    return st.recursive(leaves, grow, max_leaves=12)


@given(expressions())
@settings(deadline=None, max_examples=150)
def test_the_program_is_the_function_in_every_bit(function: Any) -> None:
    x = np.linspace(-3, 3, 17, dtype=np.float32)
    y = np.cos(x).astype(np.float32)

    class Direct:
        def __getattr__(self, name: str) -> Any:
            return getattr(ops, name)

    with np.errstate(all="ignore"):
        expected = function(Direct(), x, y)
    assert_same_bits(run(trace(function), x, y), expected)


def test_operators_and_names_are_the_same_program() -> None:
    a = trace(lambda xp, x, y: -(x * y + x) / (y - x))
    b = trace(lambda xp, x, y: xp.divide(xp.negative(xp.add(xp.multiply(x, y), x)), xp.subtract(y, x)))
    assert a == b
    assert hash(a) == hash(b)


def test_equal_expressions_are_computed_once_and_dead_ones_not_at_all() -> None:
    def leaf(xp: Any, x: Symbol, y: Symbol) -> Symbol:
        xp.exp(y)
        return x * y + x * y

    assert [i.op for i in trace(leaf).body] == ["multiply", "add"]


def test_zeros_of_both_signs_and_nan_are_constants_of_their_own() -> None:
    program = trace(lambda xp, x, y: x + 0.0 + -0.0 + float("nan") + float("nan"))
    assert [str(v) for _, v in program.constants] == ["0.0", "-0.0", "nan"]


def test_clip_is_maximum_then_minimum() -> None:
    program = trace(lambda xp, x, y: xp.clip(x, -1.0, 1.0))
    assert [i.op for i in program.body] == ["maximum", "minimum"]


@pytest.mark.parametrize("look", [bool, float, int, lambda s: 1 if s > 0 else 0])
def test_looking_at_a_value_says_what_to_do_instead(look: Any) -> None:
    with pytest.raises(TypeError, match=r"xp\.where"):
        look(Symbol(Tracer(), "x"))


def test_an_operation_that_is_not_elementwise_is_refused() -> None:
    with pytest.raises(AttributeError, match=r"xp\.sum is not an elementwise operation"):
        _ = Tracer().sum


def test_every_elementwise_operation_is_in_ops() -> None:
    for name in UNARY | BINARY:
        assert callable(getattr(ops, name))
