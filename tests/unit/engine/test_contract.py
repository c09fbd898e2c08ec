"""Test what is said of a rule that reads, does or returns what it may not: the same on every backend."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import numpy as np
import pytest

from polyopt import SGD, Optimizer, TrainStep, chain
from polyopt.backend.protocol import Backend
from polyopt.core.errors import InputError, RuleError
from polyopt.core.rule import Elementwise, Global, Leafwise, Rule, Slot, hyper


def made(
    leaf: Callable[..., Any], *slots: Any, base: type[Rule] = Elementwise, name: str = "Wrong", **own: Any
) -> Rule:
    """A rule with a learning rate and the leaf function ``leaf(xp, g, p, slots, c)``."""
    method = wraps(leaf)(lambda self, *args: leaf(*args))
    methods = {"leaf": method, "slots": lambda self: slots, **own}
    members = {"__annotations__": {"lr": Any}, "lr": hyper(0.1)}
    rule: Rule = dataclass(frozen=True)(type(name, (base,), members | methods))()
    return rule


def run(backend: Backend, rule: Any, *, compiled: bool = True) -> float:
    """The parameter 3 after a step of ``rule`` by the gradient 0.5."""
    params = {"w": backend.from_numpy(np.array([3.0, 3.0], np.float32))}
    grads = {"w": backend.from_numpy(np.array([0.5, 0.5], np.float32))}
    opt = Optimizer(rule, compiled=compiled)
    return float(backend.to_numpy(opt.step(params, grads, opt.init(params))[0]["w"])[0])


M = Slot("moment")
BOTH: dict[str, tuple[Rule, Rule, str]] = {
    name: (made(leaf, *slots), made(leaf, *slots, base=Leafwise), message)
    for name, leaf, slots, message in (
        ("a slot read", lambda xp, g, p, s, c: (s["m"], {}), (), r"leaf reads slot 'm', which slots\(\)"),
        (
            "a slot's name",
            lambda xp, g, p, s, c: (g, {"momemt": g}),
            (M,),
            "value of slot 'moment'; did you mean 'momemt'",
        ),
        (
            "a slot forgotten",
            lambda xp, g, p, s, c: (g, {}),
            (M,),
            "doesn't return the next value of slot 'moment'",
        ),
        ("a slot returned", lambda xp, g, p, s, c: (g, {"m": g}), (), "returns slot 'm', which slots"),
        ("an update alone", lambda xp, g, p, s, c: -g, (), r"returns an array; expected \(update to add"),
        ("three values", lambda xp, g, p, s, c: (g, {}, g), (), "returns 3 values; expected"),
        ("None", lambda xp, g, p, s, c: None, (), "returns None; expected"),
        ("no update", lambda xp, g, p, s, c: (None, {}), (), "returns None as its update"),
        ("slots as a list", lambda xp, g, p, s, c: (g, [g]), (M,), "returns a list as its next slots"),
        (
            "a slot of None",
            lambda xp, g, p, s, c: (g, {"moment": None}),
            (M,),
            "returns None as slot 'moment'",
        ),
        ("a coefficient", lambda xp, g, p, s, c: (c.lrr * g, {}), (), "c.lrr, .* did you mean 'lr'"),
        ("an operation", lambda xp, g, p, s, c: (xp.sgn(g), {}), (), "no xp.sgn; did you mean 'sign'"),
        ("an if", lambda xp, g, p, s, c: (g if g > 0 else p, {}), (), "use xp.where"),
        ("too few arguments", lambda xp, g: (g, {}), (), r"leaf: .*takes 2 positional"),
    )
}


@pytest.mark.parametrize("which", BOTH)
@pytest.mark.parametrize("kind", [0, 1], ids=["elementwise", "leafwise"])
def test_a_leaf_function_is_told_what_is_wrong_with_it(backend: Backend, which: str, kind: int) -> None:
    rule, message = BOTH[which][kind], BOTH[which][2]
    with pytest.raises(RuleError, match=f"^Wrong.*{message}"):
        run(backend, rule)
    with pytest.raises(TypeError, match=message):
        run(backend, rule, compiled=False)


TRACED: dict[str, tuple[Callable[..., Any], str]] = {
    "a square": (lambda xp, g, p, s, c: (g**2, {}), r"write g \* g"),
    "a power": (lambda xp, g, p, s, c: (2**g, {}), "xp.pow"),
    "1 - b": (lambda xp, g, p, s, c: ((1 - c.lr) * g, {}), r"^Wrong.leaf: 1 - c\.lr would be rounded"),
    "b + b": (lambda xp, g, p, s, c: ((c.lr * 2.0 + c.lr) * g, {}), r"\+ c\.lr would be rounded"),
    "the parameter": (lambda xp, g, p, s, c: (p - c.lr * g, {}), "returns the new parameter"),
    "the parameter plus": (lambda xp, g, p, s, c: (-g + p, {}), "returns the new parameter"),
    "the parameter alone": (lambda xp, g, p, s, c: (p, {}), "returns the new parameter"),
    "a bool": (lambda xp, g, p, s, c: (g > 0, {}), "returns a bool as its update"),
    "NumPy": (lambda xp, g, p, s, c: (np.sign(g), {}), "uses numpy: use the operations of xp"),
    "NumPy's where": (
        lambda xp, g, p, s, c: (np.where(g > 0, g, p), {}),
        "use the operations of xp|xp.where",
    ),
    "math": (lambda xp, g, p, s, c: (math.sqrt(g) * g, {}), "xp.where"),
    "an array": (lambda xp, g, p, s, c: (np.ones(2) * g, {}), "expected an array that it is given"),
    "a text": (lambda xp, g, p, s, c: (g * "2", {}), "'2' in a leaf function"),
    "an element": (lambda xp, g, p, s, c: (g[0] * g, {}), "Leafwise rule"),
    "an assignment": (lambda xp, g, p, s, c: (g.__setitem__(0, 1.0), {}), "Leafwise rule"),
    "a shape": (lambda xp, g, p, s, c: (g / g.shape[0], {}), r"no \.shape in a leaf function"),
    "a product": (lambda xp, g, p, s, c: (g @ g, {}), "Leafwise rule"),
    "a sum": (lambda xp, g, p, s, c: (xp.sum(g), {}), "xp.sum is not an elementwise operation"),
    "and": (lambda xp, g, p, s, c: (xp.where((g > 0) & (p > 0), g, p), {}), "xp.logical_and"),
    "a remainder": (lambda xp, g, p, s, c: (g % 2.0, {}), "xp.floor"),
    "arguments": (
        lambda xp, g, p, s, c: (xp.sqrt(g, p), {}),
        "xp.sqrt takes 1 argument by position; found 2",
    ),
    "names": (
        lambda xp, g, p, s, c: (xp.maximum(x1=g, x2=p), {}),
        "by position; found 0, and x1, x2 by name",
    ),
}


@pytest.mark.parametrize("which", TRACED)
def test_an_elementwise_rule_says_so_when_it_is_first_traced(backend: Backend, which: str) -> None:
    leaf, message = TRACED[which]
    with pytest.raises(RuleError, match=message) as e:
        run(backend, made(leaf))
    assert str(e.value).startswith("Wrong.leaf")


def test_what_looks_alike_is_let_pass(backend: Backend) -> None:
    half = np.float32(0.1) * np.float32(0.5)
    assert run(backend, made(lambda xp, g, p, s, c: (-(0.5 * c.lr * p), {}))) == np.float32(3) - 3 * half
    assert run(backend, made(lambda xp, g, p, s, c: (-c.lr * g, {}))) == np.float32(3) - half
    assert run(backend, made(lambda xp, g, p, s, c: (xp.where(g == 0.5, 1.0, 2.0), {}))) == 4.0
    assert run(backend, made(lambda xp, g, p, s, c: (xp.where(g != 0.5, 1.0, 2.0), {}))) == 5.0
    assert run(backend, made(lambda xp, g, p, s, c: (np.float32(2) * g, {}))) == 4.0
    # The gradient of a penalty on p - 1 in the middle of a chain: no parameter is returned.
    toward = made(lambda xp, g, p, s, c: (p - 1.0, {}))
    assert run(backend, chain(toward, SGD(lr=0.5))) == 2.0


def test_a_leafwise_rule_returns_arrays_of_its_leafs_shape(backend: Backend) -> None:
    for leaf, found in (
        (lambda xp, g, p, s, c: (xp.sum(g), {}), r"an array of shape \(\)"),
        (lambda xp, g, p, s, c: (xp.reshape(g, (1, -1)), {}), r"an array of shape \(1, 2\)"),
        (lambda xp, g, p, s, c: (0.0, {}), "a float"),
    ):
        with pytest.raises(RuleError, match=f"Wrong.leaf returns {found} as its update"):
            run(backend, made(leaf, base=Leafwise))


def test_a_leafwise_rule_of_another_framework_is_refused(backend: Backend) -> None:
    if backend.name == "numpy":
        pytest.skip("it is NumPy's")
    with pytest.raises(RuleError, match=r"Wrong.leaf (uses numpy|returns an array of numpy)"):
        run(backend, made(lambda xp, g, p, s, c: (np.where(np.asarray(g) > 0, 1.0, 2.0), {}), base=Leafwise))


@dataclass(frozen=True)
class Plain(Elementwise):
    """Its rate is no hyperparameter."""

    lr: float = 0.1

    def leaf(self, xp: Any, g: Any, p: Any, slots: Any, c: Any) -> Any:
        return -(c.lr * g), {}


@dataclass(frozen=True)
class PlainLeaf(Leafwise):
    """Its rate is no hyperparameter."""

    lr: float = 0.1

    def leaf(self, xp: Any, g: Any, p: Any, slots: Any, c: Any) -> Any:
        return -(c.lr * g), {}


@dataclass(frozen=True)
class PlainGlobal(Global):
    """Its rate is no hyperparameter."""

    lr: float = 0.1

    def measure(self, xp: Any, leaves: Any, c: Any) -> Any:
        return {"total": xp.multiply(xp.sum(leaves[0]), c.lr)}

    def leaf(self, xp: Any, g: Any, p: Any, slots: Any, c: Any) -> Any:
        return -(c.total * g), {}


@pytest.mark.parametrize("rule", [Plain(), PlainLeaf(), PlainGlobal()], ids=lambda x: type(x).__name__)
def test_a_field_without_hyper_is_named(backend: Backend, rule: Rule) -> None:
    message = r"reads c\.lr, but 'lr' is a plain field: declare it with hyper\(\.\.\.\)"
    with pytest.raises(RuleError, match=message):
        run(backend, rule)
    step = TrainStep(lambda xp, params: xp.sum(params["w"]), Optimizer(rule))
    with pytest.raises(RuleError, match=message):
        step(step.init({"w": backend.from_numpy(np.ones(2, np.float32))}))


def test_fields_of_a_class_that_is_no_dataclass_are_not_ignored() -> None:
    class Bare(Elementwise):
        lr: Any = hyper(0.1)

        def leaf(self, xp: Any, g: Any, p: Any, slots: Any, c: Any) -> Any:
            return -(c.lr * g), {}

    for call in (Bare, lambda: Bare(lr=0.2)):
        with pytest.raises(RuleError, match=r"Bare is not a dataclass, so 'lr'.*@dataclass\(frozen=True\)"):
            call()


SCALARS: dict[str, tuple[Callable[..., Any], tuple[Slot, ...], str]] = {
    "None": (lambda self, xp, t, h: None, (), "returns None; expected numbers by name"),
    "a text": (lambda self, xp, t, h: {"lr": "x"}, (), "returns 'x' for 'lr'; expected a number"),
    "an array": (
        lambda self, xp, t, h: {"lr": np.ones(2)},
        (),
        r"returns array.* for 'lr'; expected a number",
    ),
    "a name": (lambda self, xp, t, h: {"lr": h.lrr}, (), "reads h.lrr, .* did you mean 'lr'"),
    "a slot": (lambda self, xp, t, h: {"lr": h.lr}, (Slot("k", 0.0, "scalar"),), "of the scalar slot 'k'"),
}


@pytest.mark.parametrize("which", SCALARS)
def test_coefficients_are_told_what_is_wrong_with_them(backend: Backend, which: str) -> None:
    function, slots, message = SCALARS[which]
    rule = made(lambda xp, g, p, s, c: (-(c.lr * g), {}), *slots, coefficients=function)
    with pytest.raises(RuleError, match=f"Wrong.coefficients .*{message}"):
        run(backend, rule)


@pytest.mark.parametrize("found", [None, 1.0, {"s": None}, {"s": np.ones(2)}], ids=str)
def test_measurements_are_arrays_by_name(backend: Backend, found: Any) -> None:
    rule = made(lambda xp, g, p, s, c: (g, {}), base=Global, measure=lambda self, xp, leaves, c: found)
    with pytest.raises(
        RuleError, match=r"Wrong\.measure returns .*expected (0-d arrays by name|a 0-d array)"
    ):
        run(backend, rule)


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        (("m",), "returns 'm' among its slots; expected Slot"),
        ((M, M), "two slots called 'moment'"),
        ((Slot("g"),), "a slot is called 'g'"),
    ],
    ids=["a text", "twice", "reserved"],
)
def test_slots_are_told_what_is_wrong_with_them(slots: tuple[Any, ...], message: str) -> None:
    with pytest.raises(RuleError, match=f"Wrong.*{message}"):
        Optimizer(made(lambda xp, g, p, s, c: (g, {}), *slots)).init({"w": np.ones(2)})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"shape": "scaler"}, "did you mean 'scalar'"),
        ({"init": "params"}, "expected a number or 'param'"),
        ({"init": None}, "expected a number or 'param'"),
    ],
    ids=str,
)
def test_a_slot_is_checked_where_it_is_declared(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Slot(**{"name": "m"} | wrong)


def test_an_error_of_the_users_own_is_left_as_it_is(backend: Backend) -> None:
    def leaf(xp: Any, g: Any, p: Any, slots: Any, c: Any) -> Any:
        raise ZeroDivisionError("mine")

    for base in (Elementwise, Leafwise):
        with pytest.raises(ZeroDivisionError, match="mine"):
            run(backend, made(leaf, base=base))
