"""A leaf function runs once for many leaves of one shape, in the bits of one after the other."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from polyopt import AdaptiveGradientClip, ClipByNorm, Optimizer
from polyopt.backend.protocol import Backend
from polyopt.core import reductions
from polyopt.core.errors import RuleError
from polyopt.core.ops import DTYPES, Array, Ops
from polyopt.core.rule import Leafwise, Slot, Slots, hyper
from polyopt.core.trace import BINARY, UNARY
from polyopt.engine.batch_ops import Batch, BatchOps, NotBatchable, unbatched
from polyopt.engine.leafwise import SMALL
from polyopt.optim import OPTIMIZERS
from polyopt.optim.clipping import CLIPPING
from polyopt.testing import assert_close, assert_same_bits
from polyopt_numpy import ops as NUMPY

N, A, B = 5, 3, 4


def whole(*shape: int, seed: int = 0) -> Any:
    """Small whole numbers: sums and products of them are exact, in whatever order."""
    return np.random.default_rng(seed).integers(1, 6, size=(N, *shape)).astype(np.float32)


X, Y, V, S = whole(A, B), whole(A, B, seed=1), whole(B, seed=2), whole()
TRANSCENDENTAL = {"cos", "exp", "expm1", "log", "log1p", "pow", "tanh"}
PREDICATE = {"logical_and", "logical_not", "logical_or"}
Case = Callable[..., Any]
CASES: dict[str, list[Case]] = {
    **{op: [lambda xp, x, y, v, s, op=op: getattr(xp, op)(x)] for op in sorted(UNARY - PREDICATE)},
    **{
        op: [
            lambda xp, x, y, v, s, op=op: getattr(xp, op)(x, y),
            lambda xp, x, y, v, s, op=op: getattr(xp, op)(x, v),
            lambda xp, x, y, v, s, op=op: getattr(xp, op)(s, x),
            lambda xp, x, y, v, s, op=op: getattr(xp, op)(x, xp.full((), 2.0, dtype=x.dtype)),
            lambda xp, x, y, v, s, op=op: getattr(xp, op)(v, xp.ones((2, B), dtype=x.dtype)),
        ]
        for op in sorted(BINARY - PREDICATE)
    },
    "logical_and": [lambda xp, x, y, v, s: xp.logical_and(x > y, x > v)],
    "logical_or": [lambda xp, x, y, v, s: xp.logical_or(x > y, s > v)],
    "logical_not": [lambda xp, x, y, v, s: xp.logical_not(x > s)],
    "where": [
        lambda xp, x, y, v, s: xp.where(x > y, v, s),
        lambda xp, x, y, v, s: xp.where(s > 2.0, x, xp.zeros_like(y)),
    ],
    "clip": [
        lambda xp, x, y, v, s: xp.clip(x, 2.0, 4.0),
        lambda xp, x, y, v, s: xp.clip(x, v, None),
        lambda xp, x, y, v, s: xp.clip(x, min=None, max=s),
    ],
    "astype": [lambda xp, x, y, v, s: xp.astype(x, xp.int32)],
    "isdtype": [lambda xp, x, y, v, s: x if xp.isdtype(x.dtype, "real floating") else y],
    "finfo": [lambda xp, x, y, v, s: x * float(xp.finfo(x.dtype).eps)],
    "result_type": [lambda xp, x, y, v, s: xp.astype(x, xp.result_type(x, y))],
    "asarray": [lambda xp, x, y, v, s: xp.asarray(x) + xp.asarray(2.0, dtype=x.dtype)],
    "arange": [lambda xp, x, y, v, s: x + xp.arange(B, dtype=x.dtype)],
    "zeros": [lambda xp, x, y, v, s: v + xp.zeros((A, B), dtype=x.dtype)],
    "ones": [lambda xp, x, y, v, s: v + xp.ones((A, B), dtype=x.dtype)],
    "full": [lambda xp, x, y, v, s: x * xp.full((B,), 3.0, dtype=x.dtype)],
    "zeros_like": [lambda xp, x, y, v, s: xp.zeros_like(v)],
    "ones_like": [lambda xp, x, y, v, s: xp.ones_like(s)],
    "full_like": [lambda xp, x, y, v, s: xp.full_like(x, 2.5)],
    **{
        op: [
            lambda xp, x, y, v, s, op=op: getattr(xp, op)(x),
            lambda xp, x, y, v, s, op=op: getattr(xp, op)(x, axis=0),
            lambda xp, x, y, v, s, op=op: getattr(xp, op)(x, axis=-1, keepdims=True),
            lambda xp, x, y, v, s, op=op: getattr(xp, op)(x, axis=(-2, 1)),
            lambda xp, x, y, v, s, op=op: getattr(xp, op)(s),
        ]
        for op in ("max", "min", "sum", "mean")
    },
    **{
        op: [
            lambda xp, x, y, v, s, op=op: getattr(xp, op)(x > y),
            lambda xp, x, y, v, s, op=op: getattr(xp, op)(x > y, axis=1),
            lambda xp, x, y, v, s, op=op: getattr(xp, op)(s > 2.0),
        ]
        for op in ("all", "any")
    },
    "argmax": [
        lambda xp, x, y, v, s: xp.argmax(x),
        lambda xp, x, y, v, s: xp.argmax(x, keepdims=True),
        lambda xp, x, y, v, s: xp.argmax(x, axis=-1, keepdims=True),
        lambda xp, x, y, v, s: xp.argmax(x, axis=0),
    ],
    "matmul": [
        lambda xp, x, y, v, s: xp.matmul(x, xp.matrix_transpose(y)),
        lambda xp, x, y, v, s: xp.matmul(x, v),
        lambda xp, x, y, v, s: xp.matmul(v, v),
        lambda xp, x, y, v, s: xp.matmul(v, xp.matrix_transpose(x)),
        lambda xp, x, y, v, s: xp.matmul(x, xp.ones((B, 2), dtype=x.dtype)),
        lambda xp, x, y, v, s: xp.matmul(xp.ones((2, 2, A), dtype=x.dtype), x),
        lambda xp, x, y, v, s: x @ xp.matrix_transpose(y),
    ],
    "matrix_transpose": [lambda xp, x, y, v, s: xp.matrix_transpose(x)],
    "broadcast_to": [
        lambda xp, x, y, v, s: xp.broadcast_to(v, (2, A, B)),
        lambda xp, x, y, v, s: xp.broadcast_to(s, (A,)),
    ],
    "concat": [
        lambda xp, x, y, v, s: xp.concat([x, y]),
        lambda xp, x, y, v, s: xp.concat([x, xp.ones((A, 1), dtype=x.dtype)], axis=-1),
        lambda xp, x, y, v, s: xp.concat([x, v], axis=None),
    ],
    "expand_dims": [
        lambda xp, x, y, v, s: xp.expand_dims(x, axis=0),
        lambda xp, x, y, v, s: xp.expand_dims(x, axis=-1),
        lambda xp, x, y, v, s: xp.expand_dims(x, axis=-3),
    ],
    "permute_dims": [lambda xp, x, y, v, s: xp.permute_dims(x[:, None], (2, 0, 1))],
    "reshape": [
        lambda xp, x, y, v, s: xp.reshape(x, (-1,)),
        lambda xp, x, y, v, s: xp.reshape(x, (2, -1, 3)),
        lambda xp, x, y, v, s: xp.reshape(s, (1, 1)),
        lambda xp, x, y, v, s: xp.reshape(x[:0], (-1,)),
    ],
    "squeeze": [
        lambda xp, x, y, v, s: xp.squeeze(x[:1], 0),
        lambda xp, x, y, v, s: xp.squeeze(x[:1, None], (0, -2)),
    ],
    "stack": [
        lambda xp, x, y, v, s: xp.stack([x, y]),
        lambda xp, x, y, v, s: xp.stack([v, xp.ones((B,), dtype=x.dtype)], axis=-1),
    ],
    "take": [
        lambda xp, x, y, v, s: xp.take(x, xp.asarray([2, 0]), axis=0),
        lambda xp, x, y, v, s: xp.take(x, xp.asarray([1, 1, 3]), axis=-1),
        lambda xp, x, y, v, s: xp.take(v, xp.asarray([3])),
    ],
    "take_along_axis": [
        lambda xp, x, y, v, s: xp.take_along_axis(x, xp.argmax(y, axis=1, keepdims=True), axis=1),
        lambda xp, x, y, v, s: xp.take_along_axis(x, xp.argmax(y, axis=0, keepdims=True), axis=-2),
    ],
    "operators": [
        lambda xp, x, y, v, s: (2.0 - x) * v / 4.0 - (-y) + abs(x - y) + 1.0 / v,
        lambda xp, x, y, v, s: xp.where(xp.logical_and(x <= v, y >= s), x, y),
        lambda xp, x, y, v, s: x[1:, :2] + y[..., -1, None, None] + v[1],
        lambda xp, x, y, v, s: sum(row for row in x) + len(x) + x.ndim,
    ],
}


def test_every_operation_has_a_case() -> None:
    declared = {name for name, _ in inspect.getmembers(Ops) if not name.startswith("_")}
    assert declared - set(DTYPES) <= CASES.keys()


@pytest.mark.parametrize("op", sorted(CASES))
def test_every_operation_has_the_values_of_one_after_the_other(backend: Backend, op: str) -> None:
    xp = backend.ops
    own = [backend.from_numpy(x) for x in (X, Y, V, S)]
    batch = BatchOps(xp, N)
    for case in CASES[op]:
        expected = [case(xp, *(x[i] for x in own)) for i in range(N)]
        found = case(batch, *(Batch(batch, x) for x in own))
        assert tuple(found.shape) == tuple(expected[0].shape)
        stacked = unbatched(batch, found, tuple(found.shape))
        for i in range(N):
            if op in TRANSCENDENTAL:
                assert_close(
                    stacked[i], expected[i], rtol=1e-6, because="other code for vectors than for tails"
                )
            else:
                assert_same_bits(stacked[i], expected[i], what=f"{op} of array {i}")


def test_dtypes_are_the_frameworks(backend: Backend) -> None:
    batch = BatchOps(backend.ops, N)
    for name in DTYPES:
        assert getattr(batch, name) is getattr(backend.ops, name)


@pytest.mark.parametrize(
    "case",
    [
        lambda xp, x, y, v, s: x if s > 2.0 else y,
        lambda xp, x, y, v, s: float(s),
        lambda xp, x, y, v, s: x[x > y],
        lambda xp, x, y, v, s: xp.take(v, xp.argmax(v)),
        lambda xp, x, y, v, s: xp.full_like(x, s),
        lambda xp, x, y, v, s: xp.take(x, xp.asarray([0])),
        lambda xp, x, y, v, s: xp.clip(v, x, None),
        lambda xp, x, y, v, s: v.T,
        lambda xp, x, y, v, s: xp.matrix_transpose(v),
    ],
)
def test_what_cannot_be_done_at_once_says_so(backend: Backend, case: Case) -> None:
    batch = BatchOps(backend.ops, N)
    with pytest.raises(NotBatchable):
        case(batch, *(Batch(batch, backend.from_numpy(x)) for x in (X, Y, V, S)))


def test_attributes() -> None:
    batch = Batch(BatchOps(NUMPY, N), X)
    assert (batch.shape, batch.ndim, batch.size, batch.dtype) == ((A, B), 2, A * B, X.dtype)
    for transposed in (batch.T, batch.mT):
        assert_same_bits(transposed.data, X.swapaxes(1, 2))


# Rules


@dataclass(frozen=True)
class Lamb(Leafwise):
    """The trust ratio of two norms (You et al., 2020)."""

    lr: Any = hyper(0.1, low=0.0)

    def slots(self) -> tuple[Slot, ...]:
        return (Slot("exp_avg"), Slot("exp_avg_sq", dtype="bfloat16"))

    def leaf(self, xp: Any, g: Array, p: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
        half = xp.full_like(g, 0.5)
        m = xp.add(xp.multiply(half, slots["exp_avg"]), xp.multiply(half, g))
        v = xp.add(xp.multiply(half, slots["exp_avg_sq"]), xp.multiply(half, xp.multiply(g, g)))
        u = xp.divide(m, xp.add(xp.sqrt(v), xp.full_like(v, 0.25)))
        (a, i), (b, j) = (reductions.root_sum_squares(xp, [x]) for x in (p, u))
        ratio = xp.divide(xp.divide(a, i), xp.divide(b, j))
        ratio = xp.where(xp.greater(a, xp.zeros_like(a)), ratio, xp.ones_like(a))
        return xp.multiply(xp.multiply(xp.negative(c.lr), ratio), u), {"exp_avg": m, "exp_avg_sq": v}


@dataclass(frozen=True)
class Adafactor(Leafwise):
    """Second moments by row and column (Shazeer and Stern, 2018); slots that hold them in a leaf's shape."""

    def slots(self) -> tuple[Slot, ...]:
        return (Slot("rows"),)

    def leaf(self, xp: Any, g: Array, p: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
        if g.ndim < 2:
            return xp.negative(g), {"rows": slots["rows"]}
        x = xp.reshape(g, (g.shape[0], math.prod(g.shape[1:])))
        row, i = reductions.axis_root_sum_squares(xp, x, 1)
        column, j = reductions.axis_root_sum_squares(xp, x, 0)
        total, k = reductions.root_sum_squares(xp, [x])
        outer = xp.divide(xp.multiply(xp.divide(row, i), xp.divide(column, j)), xp.divide(total, k))
        safe = xp.where(xp.equal(outer, xp.zeros_like(outer)), xp.ones_like(outer), outer)
        u = xp.reshape(xp.divide(x, safe), g.shape)
        return xp.negative(u), {"rows": xp.reshape(xp.broadcast_to(row, x.shape), g.shape)}


@dataclass(frozen=True)
class Muon(Leafwise):
    """One step of Newton's and Schulz's iteration (Jordan et al., 2024)."""

    def leaf(self, xp: Any, g: Array, p: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
        if len(g.shape) != 2:
            return -g, {}
        tall = g.shape[0] > g.shape[1]
        x = xp.matrix_transpose(g) if tall else g
        x = 1.5 * x - 0.5 * xp.matmul(xp.matmul(x, xp.matrix_transpose(x)), x)
        return -(xp.matrix_transpose(x) if tall else x), {}


@dataclass(frozen=True)
class Peeking(Leafwise):
    """It reads a number out of an array, which works in eager frameworks only, leaf by leaf."""

    def leaf(self, xp: Any, g: Array, p: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
        return (g if float(xp.max(p)) > 0 else -g), {}


RULES = [ClipByNorm(0.7), AdaptiveGradientClip(0.1, convention="torch"), Lamb(), Adafactor(), Muon()]
SHAPES = [(3, 4)] * 4 + [(6, 2)] * 3 + [(5,)] * 2 + [(), (), (0, 3), (0, 3), (2, 3, 2, 2), (2, 3, 2, 2)]
SHAPES += [(SMALL,)] * 2 + [(7, 7)]


def test_all_leafwise_rules_are_tried() -> None:
    ours = {rule for rule in (*OPTIMIZERS.values(), *CLIPPING.values()) if issubclass(rule, Leafwise)}
    assert ours <= set(map(type, RULES))


def trees(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return {f"{i}": rng.integers(-3, 4, size=shape).astype(np.float32) for i, shape in enumerate(SHAPES)}


def run(backend: Backend, rule: Any, compiled: bool, donate: bool = False) -> Any:
    params = {n: backend.from_numpy(x) for n, x in trees(0).items()}
    opt = Optimizer(rule, compiled=compiled)
    state = opt.init(params)
    for seed in (1, 2):
        grads = {n: backend.from_numpy(x) for n, x in trees(seed).items()}
        params, state = opt.step(params, grads, state, donate=donate)
    return params, state["slots"]


# Giving arrays up is the same for all rules, and compiled anew: tried with slots, and without.
STACKED = [(rule, False) for rule in RULES] + [(Lamb(), True), (ClipByNorm(0.7), True)]


@pytest.mark.parametrize(("rule", "donate"), STACKED, ids=repr)
def test_stacked_leaves_have_the_bits_of_the_loop(backends: list[Backend], rule: Any, donate: bool) -> None:
    expected, slots = run(backends[0], rule, compiled=False)
    for backend in backends:
        found, own = run(backend, rule, compiled=True, donate=donate)
        for name in expected:
            assert_same_bits(found[name], expected[name], what=f"{backend.name} {name}")
            for slot in slots:
                assert_same_bits(own[slot][name], slots[slot][name], what=f"{backend.name} {slot} {name}")


def test_the_leaf_function_runs_once_for_a_kind(backend: Backend) -> None:
    """And is traced no more at the second step, where the framework compiles."""
    calls = []

    @dataclass(frozen=True)
    class Counting(Leafwise):
        def leaf(self, xp: Any, g: Array, p: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
            calls.append(tuple(g.shape))
            return xp.negative(g), {}

    opt = Optimizer(Counting())
    params = {f"{i}": backend.from_numpy(np.ones((4, 2), np.float32)) for i in range(50)}
    params["other"] = backend.from_numpy(np.ones(3, np.float32))
    state = opt.init(params)
    opt.step(params, params, state)
    assert sorted(calls) == [(3,), (4, 2)]
    opt.step(params, params, state)
    assert len(calls) == (2 if backend.name in ("jax", "tensorflow") else 4)


def test_a_rule_that_cannot_be_stacked_runs_by_leaf() -> None:
    params = {str(i): np.full(3, i - 2.0) for i in range(5)}
    grads = {n: np.ones(3) for n in params}
    for name, u in Optimizer(Peeking()).update(grads, Optimizer(Peeking()).init(params), params)[0].items():
        assert_same_bits(u, grads[name] if params[name][0] > 0 else -grads[name], what=name)


def test_an_error_is_that_of_the_rule(backend: Backend) -> None:
    @dataclass(frozen=True)
    class Wrong(Leafwise):
        def leaf(self, xp: Any, g: Array, p: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
            return c.missing * g, {}

    params = {f"{i}": backend.from_numpy(np.ones(3, np.float32)) for i in range(3)}
    opt = Optimizer(Wrong())
    with pytest.raises(RuleError, match="missing"):
        opt.step(params, params, opt.init(params))
