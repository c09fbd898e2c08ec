"""The compiled lift for host memory gives the bits of the program evaluated op by op, whatever the leaves."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyopt import SGD, Adam, ClipByGlobalNorm, Optimizer, chain
from polyopt.backend import registry
from polyopt.backend.host.lift import SMALL
from polyopt.backend.host.numpy_kernel import BLOCK
from polyopt.backend.host.overlap import disjoint
from polyopt.core.trace import Program, Symbol, Tracer
from polyopt.testing import assert_same_bits

NUMPY = registry.by_name("numpy")
HOSTS = [NUMPY, registry.by_name("torch")]
UNARY = ("abs", "ceil", "floor", "negative", "round", "sign", "sqrt", "square")
BINARY = ("add", "divide", "maximum", "minimum", "multiply", "subtract")
ARRAYS = ("g", "p", "m")
SCALARS = ("s", "t")
SHAPES = [(), (1,), (0,), (0, 3), (7,), (3, 4), (SMALL,), (SMALL + 1,), (2, BLOCK // 2 + 5), (BLOCK,)]
WIDE = {"float32": ("float16", "bfloat16", "float32"), "float64": ("float64",)}


@st.composite
def programs(draw: Any) -> Program:
    """A random straight-line program over three arrays and two scalars."""
    t = Tracer()
    values = [Symbol(t, n) for n in (*ARRAYS, *SCALARS)]
    for _ in range(draw(st.integers(0, 12))):
        pick = st.sampled_from(values)
        kind = draw(st.sampled_from(("unary", "binary", "binary", "where", "constant")))
        if kind == "unary":
            values.append(t.emit(draw(st.sampled_from(UNARY)), draw(pick)))
        elif kind == "binary":
            values.append(t.emit(draw(st.sampled_from(BINARY)), draw(pick), draw(pick)))
        elif kind == "constant":
            values.append(draw(pick) * draw(st.sampled_from((0.0, -0.0, 1.5, np.inf, 1e-3))))
        else:
            test = t.emit(draw(st.sampled_from(("less", "greater_equal"))), draw(pick), draw(pick))
            values.append(t.emit("where", test, draw(pick), draw(pick)))
    outputs = {n: draw(st.sampled_from(values)) for n in ("m", "extra", "p") if draw(st.booleans())}
    return t.program(ARRAYS, SCALARS, outputs or {"p": values[-1]})


def leaf(rng: np.random.Generator, shape: tuple[int, ...], dtype: str, layout: str) -> Any:
    """Values of all sizes, with zeros, infinities and NaN, in memory of some layout."""
    x = rng.normal(size=shape) * 10.0 ** rng.integers(-6, 4, size=shape)
    special = rng.choice([0.0, -0.0, np.inf, -np.inf, np.nan], size=shape)
    with np.errstate(over="ignore"):
        x = np.asarray(np.where(rng.random(shape) < 0.05, special, x)).astype(NUMPY.dtype(dtype))
    if layout == "F" and x.ndim:
        return np.asfortranarray(x)
    if layout == "strided" and x.ndim:
        return np.repeat(x, 2, axis=-1)[..., ::2]
    if layout == "reversed" and x.ndim:
        return np.ascontiguousarray(x[::-1])[::-1]
    return x


def run(backend: Any, program: Program, arrays: Any, dtype: str, compiled: bool, donate: bool) -> Any:
    """Outputs and what became of the inputs, as host arrays."""
    own = {
        n: [backend.from_numpy(x) if backend is not NUMPY else like(x) for x in xs]
        for n, xs in arrays.items()
    }
    lifted = backend.lift(program, compiled=compiled)
    out = lifted(own, {"s": 0.37, "t": -2.5}, dtype, donate=donate)
    if donate:
        for name in set(out) & set(own):
            assert all(x is y for x, y in zip(out[name], own[name], strict=True))
    return tuple({n: [backend.to_numpy(x) for x in xs] for n, xs in d.items()} for d in (out, own))


def like(x: Any) -> Any:
    """A copy of ``x`` in memory of the same layout."""
    base = np.empty_like(x, subok=False) if x.flags.forc else np.repeat(x, 2, axis=-1)[..., ::2]
    base[...] = x
    return base


def check(got: Any, expected: Any) -> None:
    assert got.keys() == expected.keys()
    for name, xs in expected.items():
        for i, x in enumerate(xs):
            assert_same_bits(got[name][i], x, what=f"{name}[{i}]")


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_the_compiled_lift_has_the_bits_of_the_reference(data: Any) -> None:
    program = data.draw(programs())
    dtype = data.draw(st.sampled_from(("float32", "float64")))
    shapes = data.draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=6))
    layouts = st.sampled_from(("C", "C", "F", "strided", "reversed"))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    arrays = {
        n: [leaf(rng, s, data.draw(st.sampled_from(WIDE[dtype])), data.draw(layouts)) for s in shapes]
        for n in ARRAYS
    }
    donate = data.draw(st.booleans())
    got, after = run(NUMPY, program, arrays, dtype, True, donate)
    expected, expected_after = run(NUMPY, program, arrays, dtype, False, donate)
    check(got, expected)
    check(after, expected_after)


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_torch_has_numpys_bits(compiled: bool, donate: bool) -> None:
    t = Tracer()
    g, p, m, s, r = (Symbol(t, n) for n in (*ARRAYS, *SCALARS))
    top = t.emit("maximum", m, t.emit("abs", g) + s)
    out = {
        "p": p - s * (g / (t.emit("sqrt", top) + 1e-8)),
        "m": top,
        "extra": t.emit("where", g < r, p, m * r),
    }
    program = t.program(ARRAYS, SCALARS, out)
    rng = np.random.default_rng(0)
    arrays = {
        n: [leaf(rng, s, ("bfloat16", "float32", "float16")[i % 3], "C") for i, s in enumerate(SHAPES)]
        for n in ARRAYS
    }
    check(
        run(HOSTS[1], program, arrays, "float32", compiled, donate)[0],
        run(NUMPY, program, arrays, "float32", False, donate)[0],
    )


def test_outputs_may_exchange_inputs_in_place() -> None:
    t = Tracer()
    p, m = Symbol(t, "p"), Symbol(t, "m")
    program = t.program(ARRAYS, SCALARS, {"p": m, "m": p, "extra": p + m})
    arrays = {n: [np.full(5, v), np.full(SMALL + 9, v)] for n, v in zip(ARRAYS, (1.0, 2.0, 3.0), strict=True)}
    out, _ = run(NUMPY, program, arrays, "float64", True, True)
    assert [out["p"][1][0], out["m"][1][-1], out["extra"][0][0]] == [3.0, 2.0, 5.0]


@pytest.mark.parametrize("backend", HOSTS, ids=lambda b: b.name)
@pytest.mark.parametrize("size", [6, SMALL + 1])
def test_leaves_that_share_memory_are_computed_from_their_old_values(backend: Any, size: int) -> None:
    t = Tracer()
    g, p = Symbol(t, "g"), Symbol(t, "p")
    program = t.program(("g", "p"), (), {"p": p + g})
    for compiled in (True, False):
        shared = backend.from_numpy(np.arange(float(size)))
        tied = [shared, shared]
        backend.lift(program, compiled=compiled)(
            {"g": [shared, shared], "p": tied}, {}, "float64", donate=True
        )
        assert_same_bits(shared, 2 * np.arange(float(size)), what="tied leaves")
        whole = backend.from_numpy(np.arange(float(size)))
        parts = [whole[:-1], whole[1:]]
        grads = [whole[1:], whole[:-1]]
        backend.lift(program, compiled=compiled)({"g": grads, "p": parts}, {}, "float64", donate=True)
        x = np.arange(float(size))
        expected = np.concatenate([[x[0] + x[1]], x[1:] + x[:-1]])
        assert_same_bits(whole, expected, what="overlapping leaves")


def test_an_output_that_is_an_input_is_a_copy() -> None:
    t = Tracer()
    program = t.program(("g", "p"), (), {"p": Symbol(t, "g")})
    for backend in HOSTS:
        for compiled in (True, False):
            for size in (4, SMALL + 1):
                arrays = {n: [backend.from_numpy(np.ones(size))] for n in ("g", "p")}
                out = backend.lift(program, compiled=compiled)(arrays, {}, "float64")
                backend.assign(out["p"][0], backend.from_numpy(np.zeros(size)))
                assert_same_bits(arrays["g"][0], np.ones(size))


def test_what_cannot_be_written_is_replaced() -> None:
    t = Tracer()
    program = t.program(("g", "p"), (), {"p": Symbol(t, "p") + Symbol(t, "g")})
    fixed = np.ones(3)
    fixed.flags.writeable = False
    for compiled in (True, False):
        leaves = [fixed, np.float64(1.0)]
        grads = [np.ones(3), np.asarray(1.0)]
        out = NUMPY.lift(program, compiled=compiled)({"g": grads, "p": leaves}, {}, "float64", donate=True)
        assert [x.tolist() for x in out["p"]] == [[2.0, 2.0, 2.0], 2.0]
        assert fixed.tolist() == [1.0, 1.0, 1.0]


def test_several_threads_at_once() -> None:
    lift = NUMPY.lift(_adam_like(), compiled=True)
    rng = np.random.default_rng(0)
    inputs = [
        {n: [rng.normal(size=s) for s in ((30, 30), (10 * BLOCK + 7,), (5,))] for n in ("g", "p")}
        for _ in range(8)
    ]
    expected = [NUMPY.lift(_adam_like(), compiled=False)(x, {"k": 0.5}, "float64") for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            for got, want in zip(
                pool.map(lambda x: lift(x, {"k": 0.5}, "float64"), inputs), expected, strict=True
            ):
                check(got, want)


def _adam_like() -> Program:
    t = Tracer()
    g, p, k = Symbol(t, "g"), Symbol(t, "p"), Symbol(t, "k")
    return t.program(("g", "p"), ("k",), {"p": p - k * (g / (t.emit("sqrt", g * g) + 1e-8))})


@pytest.mark.parametrize("backend", HOSTS, ids=lambda b: b.name)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "rule",
    [SGD(lr=0.1), Adam(lr=0.01), chain(ClipByGlobalNorm(1.0), Adam(lr=0.01))],
    ids=["sgd", "adam", "clipped"],
)
def test_optimizers_have_the_bits_of_op_by_op(backend: Any, dtype: str, rule: Any) -> None:
    shapes = {"a": (33, 7), "b": (), "c": (0,), "d": (SMALL + 1,), "e": (1,), "f": (2, 3, 4), "g": (1000,)}
    runs = []
    for compiled, donate in ((False, False), (True, False), (True, True)):
        rng = np.random.default_rng(1)
        p = {k: backend.from_numpy(rng.normal(size=s), dtype=dtype) for k, s in shapes.items()}
        opt = Optimizer(rule, compiled=compiled)
        state = opt.init(p)
        for _ in range(12):
            grads = {k: backend.from_numpy(rng.normal(size=s), dtype=dtype) for k, s in shapes.items()}
            p, state = opt.step(p, grads, state, donate=donate)
        runs.append((p, state["slots"]))
    for p, slots in runs[1:]:
        for path in shapes:
            assert_same_bits(p[path], runs[0][0][path], what=path)
            for name, values in slots.items():
                assert_same_bits(values[path], runs[0][1][name][path], what=f"{name} of {path}")


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 6)), max_size=8), st.integers(0, 8))
@settings(deadline=None)
def test_disjoint_is_what_it_says(spans: list[tuple[int, int]], cut: int) -> None:
    intervals = [(a, a + n) for a, n in spans]
    targets, others = intervals[:cut], intervals[cut:]
    used = [set(range(a, b)) for a, b in intervals]
    first = len(targets)
    meets = any(used[i] & used[j] for i in range(first) for j in range(len(used)) if i != j)
    assert disjoint(targets, others) == (not meets)
