"""The fused kernel has the bits of the program op by op, or leaves the work to NumPy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from helpers.edges import ROUNDINGS, rounding_edges, rounding_program
from helpers.forks import child_of
from hypothesis import given, settings
from hypothesis import strategies as st

from polyopt import Adam, Optimizer
from polyopt.backend import registry
from polyopt.backend.host import numba_kernel
from polyopt.backend.host.fused import FusedLift
from polyopt.backend.host.numba_kernel import CHUNK, EXPRESSIONS, rows
from polyopt.backend.host.threads import POOL, Pool
from polyopt.core.trace import BINARY, INEXACT, PREDICATES, UNARY, Program, Symbol, Tracer
from polyopt.testing import assert_same_bits
from polyopt_numpy.lift import NumpyMemory

pytest.importorskip("numba")

NUMPY = registry.by_name("numpy")
HOSTS = [NUMPY, registry.by_name("torch")]
ARRAYS = ("g", "p", "m")
NUMBERS = sorted((UNARY & EXPRESSIONS.keys()) - PREDICATES)
PAIRS = sorted((BINARY & EXPRESSIONS.keys()) - PREDICATES)
TESTS = sorted(BINARY & PREDICATES - {"logical_and", "logical_or"})
SHAPES = ((), (1,), (0,), (0, 3), (7,), (33, 5), (1000,), (CHUNK + 1,))


def everything() -> Program:
    """A program that uses every operation that the kernel knows."""
    t = Tracer()
    g, p, m, s = (Symbol(t, n) for n in (*ARRAYS, "s"))
    x = g
    for op in NUMBERS:
        x = x + t.emit(op, t.emit("multiply", p, s))
    for op in PAIRS:
        x = t.emit(op, x, m)
    conditions = [t.emit(op, g, p) for op in TESTS]
    conditions += [t.emit(op, m) for op in ("isnan", "isinf", "isfinite")]
    condition = conditions[0]
    for i, c in enumerate(conditions[1:]):
        condition = t.emit(("logical_and", "logical_or")[i % 2], condition, c)
        x = t.emit("where", c, x, t.emit("subtract", m, x))
    x = t.emit("where", t.emit("logical_not", condition), x, p)
    x = t.emit("where", t.emit("greater", s, 0.25), x, g)
    return t.program(ARRAYS, ("s",), {"p": x, "m": t.emit("maximum", m, g), "extra": x - p})


def values(rng: Any, shape: tuple[int, ...], dtype: str) -> Any:
    x = rng.normal(size=shape) * 10.0 ** rng.integers(-20, 15, size=shape)
    special = rng.choice([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-42], size=shape)
    return np.where(rng.random(shape) < 0.1, special, x).astype(dtype)


def both(backend: Any, program: Program, arrays: Any, dtype: str, donate: bool) -> tuple[Any, Any]:
    """Fused (it must be), and op by op on NumPy."""
    own = {n: [backend.from_numpy(x) for x in xs] for n, xs in arrays.items()}
    taken = []
    look = FusedLift.look

    def spy(*args: Any) -> Any:
        taken.append(look(*args))
        return taken[-1]

    with mock.patch.object(FusedLift, "look", spy):
        got = backend.lift(program)(own, {"s": 0.37}, dtype, donate=donate)
    assert taken[0] is not None
    if donate:
        assert all(x is y for n in ("p", "m") for x, y in zip(got[n], own[n], strict=True))
    else:
        for name, xs in arrays.items():
            for x, before in zip(own[name], xs, strict=True):
                assert_same_bits(x, before, what=f"the caller's {name}")
    return got, NUMPY.lift(program, compiled=False)(arrays, {"s": 0.37}, dtype)


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", HOSTS, ids=lambda b: b.name)
def test_every_operation(backend: Any, dtype: str, donate: bool) -> None:
    rng = np.random.default_rng(0)
    kinds = {"g": "float32", "p": dtype, "m": "float64"}
    arrays = {n: [values(rng, shape, kinds[n]) for shape in SHAPES] for n in ARRAYS}
    got, expected = both(backend, everything(), arrays, dtype, donate)
    for name, xs in expected.items():
        for i, x in enumerate(xs):
            assert_same_bits(got[name][i], x, what=f"{name}[{i}]")


@pytest.mark.parametrize("threads", ["1", "2", "5"])
def test_the_bits_are_the_same_at_any_number_of_threads(
    threads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pool, "size", lambda self: int(threads))
    rng = np.random.default_rng(1)
    shapes = ((POOL.least,), (3, CHUNK), *[(50,)] * 40, (2 * POOL.least + 11,))
    arrays = {n: [values(rng, shape, "float32") for shape in shapes] for n in ARRAYS}
    got, expected = both(NUMPY, everything(), arrays, "float32", False)
    for name, xs in expected.items():
        for x, y in zip(got[name], xs, strict=True):
            assert_same_bits(x, y, what=name)


@given(st.lists(st.integers(0, 3 * CHUNK), max_size=8))
@settings(deadline=None, max_examples=60)
def test_rows_cover_each_leaf_once(sizes: list[int]) -> None:
    cut = rows(np.array(sizes, np.int64))
    assert cut.total == int(cut.length.sum()) == sum(sizes)
    for i, n in enumerate(sizes):
        mine = cut.leaf == i
        ends = (cut.offset + cut.length)[mine].tolist()
        assert [0, *ends] == [*cut.offset[mine].tolist(), n]
    assert int(max(cut.length, default=0)) <= CHUNK


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a["p"].__setitem__(0, np.ones((4, 3), np.float16)),
        lambda a: a["p"].__setitem__(0, np.asfortranarray(a["p"][0])),
        lambda a: a["g"].__setitem__(0, a["g"][0][::-1]),
        lambda a: a["p"][0].setflags(write=False),
        lambda a: a["p"].__setitem__(1, a["p"][0]),
        lambda a: a["m"].__setitem__(0, a["p"][0]),
    ],
)
def test_what_the_kernel_cannot_take_is_left_to_numpy(change: Any) -> None:
    rng = np.random.default_rng(2)
    arrays = {n: [values(rng, (4, 3), "float32") for _ in range(2)] for n in ARRAYS}
    change(arrays)
    lift = FusedLift(everything(), NumpyMemory())
    assert lift(arrays, {"s": 0.37}, "float32", True) is None


def test_the_kernel_knows_every_operation_that_is_exact() -> None:
    assert EXPRESSIONS.keys() | INEXACT == UNARY | BINARY | {"where"}
    assert not EXPRESSIONS.keys() & INEXACT


@pytest.mark.parametrize("op", sorted(INEXACT))
def test_operations_that_are_not_exact_are_left_to_numpy(op: str, caplog: pytest.LogCaptureFixture) -> None:
    t = Tracer()
    p, s = Symbol(t, "p"), Symbol(t, "s")
    x, operands = [np.ones(3, np.float32)], 2 if op in BINARY else 1
    slow = FusedLift(t.program(("p",), (), {"p": t.emit(op, *[p] * operands)}), NumpyMemory())
    fast = FusedLift(t.program(("p",), ("s",), {"p": p * t.emit(op, *[s] * operands)}), NumpyMemory())
    with caplog.at_level("DEBUG", logger="polyopt"):
        for _ in range(2):
            assert slow({"p": x}, {}, "float32", False) is None
        # On scalars alone they run on the host in any case.
        assert fast({"p": x}, {"s": 0.37}, "float32", False) is not None
    (told,) = caplog.records
    assert told.getMessage().endswith(f"no kernel can be generated for {op}")


def test_leaves_that_the_kernel_cannot_take_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    lift, x = FusedLift(everything(), NumpyMemory()), np.ones(3, np.float32)
    with caplog.at_level("DEBUG", logger="polyopt"):
        for _ in range(2):
            assert (
                lift({"g": [x], "p": [x.astype(np.float16)], "m": [x]}, {"s": 0.37}, "float32", True) is None
            )
    (told,) = caplog.records
    assert "mixed dtypes" in told.getMessage()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("op", ROUNDINGS)
@pytest.mark.parametrize("backend", HOSTS, ids=lambda b: b.name)
def test_rounding_and_signs_at_the_edges(backend: Any, op: str, dtype: str) -> None:
    x = rounding_edges(dtype)
    arrays = {"g": [x], "p": [np.ones_like(x)]}
    got, expected = both(backend, rounding_program(op), arrays, dtype, False)
    assert_same_bits(got["p"][0], ROUNDINGS[op](x), what=op)
    assert_same_bits(expected["p"][0], ROUNDINGS[op](x), what=f"{op}, op by op")


def test_without_numba_the_bits_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> Any:
        opt = Optimizer(Adam(lr=0.01))
        params = {"w": np.linspace(-1, 1, 5000, dtype=np.float32), "b": np.zeros((), np.float32)}
        state = opt.init(params)
        for i in range(5):
            grads = {"w": np.cos(params["w"] * i), "b": np.float32(i) * np.ones((), np.float32)}
            params, state = opt.step(params, grads, state)
        return params

    fused = run()
    from polyopt.engine.lift import lifted

    lifted.cache_clear()
    monkeypatch.setattr(numba_kernel, "_numba", lambda: None)
    plain = run()
    lifted.cache_clear()
    for name, x in plain.items():
        assert_same_bits(fused[name], x, what=name)


def test_a_second_process_finds_the_kernel_compiled(tmp_path: Path) -> None:
    code = (
        "import numpy as np, polyopt as po; o = po.Optimizer(po.Adam()); p = np.ones(9); "
        "print(o.step(p, p, o.init(p))[0].tolist())"
    )
    runs = []
    for _ in range(2):
        env = {**os.environ, "POLYOPT_CACHE_DIR": str(tmp_path)}
        out = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
        kept = {f.name: f.stat().st_mtime_ns for f in tmp_path.rglob("*.nb*")}
        runs.append((out.stdout, kept))
    assert runs[0] == runs[1]
    assert runs[0][1]


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("POLYOPT_CACHE_DIR", str(file))
    assert numba_kernel._cache_file("def kernel(): pass\n") is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_threads_of_its_own() -> None:
    setup = (
        "from polyopt import SGD, Optimizer\n"
        "from polyopt.backend.host.threads import Pool\n"
        "Pool.size = lambda self: 3\n"
        "o, p = Optimizer(SGD(lr=1.0)), np.ones(4 * Pool.least)"
    )
    assert child_of(setup) == "7"
