"""The driver: what it leaves alone, missing gradients, the step, accumulation, bad gradients, its errors."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import polyopt
from polyopt import SGD, Adam, ClipByGlobalNorm, Optimizer, chain, partition
from polyopt.backend.protocol import Backend
from polyopt.core.errors import InputError, NonFiniteError
from polyopt.schedules import Cosine, Plateau
from polyopt.testing import assert_close, assert_same_bits
from polyopt.testing.compare import host

DTYPES = ("float16", "bfloat16", "float32", "float64")
SHAPES: dict[str, tuple[int, ...]] = {"scalar": (), "empty": (0,), "hollow": (0, 3), "one": (1,), "w": (4, 3)}


def tree_of(backend: Backend, seed: int, dtype: str = "float64") -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {n: native(backend, rng.normal(size=s), dtype) for n, s in SHAPES.items()}


def native(backend: Backend, x: Any, dtype: str = "float64") -> Any:
    return backend.from_numpy(np.asarray(x), dtype=dtype)


def copies(tree: dict[str, Any]) -> dict[str, Any]:
    return {n: np.array(host(x)) for n, x in tree.items()}


def same(tree: dict[str, Any], expected: dict[str, Any]) -> None:
    for n, x in expected.items():
        assert_same_bits(tree[n], x, what=n)


@pytest.mark.parametrize("dtype", DTYPES)
def test_shapes_dtypes_and_the_callers_arrays(backend: Backend, dtype: str) -> None:
    opt = Optimizer(chain(ClipByGlobalNorm(1.0), Adam(lr=0.1)))
    params, grads = tree_of(backend, 0, dtype), tree_of(backend, 1, dtype)
    state = opt.init(params)
    p, g, m = copies(params), copies(grads), copies(state["slots"]["exp_avg"])
    stepped, after = opt.step(params, grads, state)
    updates, after_update = opt.update(grads, state, params)
    applied = polyopt.apply(params, updates)
    same(params, p)
    same(grads, g)
    same(state["slots"]["exp_avg"], m)
    assert (state["step"], after["step"], after_update["step"]) == (0, 1, 1)
    wide = "float64" if dtype == "float64" else "float32"
    for n, shape in SHAPES.items():
        assert tuple(stepped[n].shape) == shape
        assert backend.dtype_name(stepped[n]) == dtype
        assert backend.dtype_name(updates[n]) == wide
        assert backend.dtype_name(after["slots"]["exp_avg"][n]) == wide
        assert tuple(after["slots"]["exp_avg"][n].shape) == shape
        assert_same_bits(applied[n], host(stepped[n]), what=f"{n}: update and apply, or step")


def test_donated_or_not_the_numbers_are_the_same(backend: Backend) -> None:
    opt = Optimizer(Adam(lr=0.1))
    results = []
    for donate in (False, True):
        params = tree_of(backend, 0)
        state = opt.init(params)
        for i in range(3):
            params, state = opt.step(params, tree_of(backend, i + 1), state, donate=donate)
        results.append(copies(params))
    same(results[1], results[0])


def test_missing_gradients_are_torchs(backend: Backend) -> None:
    """A parameter without a gradient keeps its own step count, so its own bias correction."""
    import torch

    rng = np.random.default_rng(0)
    start = {n: rng.normal(size=3) for n in "ab"}
    theirs = {n: torch.nn.Parameter(torch.from_numpy(x.copy())) for n, x in start.items()}
    peer = torch.optim.Adam(list(theirs.values()), lr=0.1)
    opt = Optimizer(Adam(lr=0.1, convention="torch"))
    params = {n: native(backend, x) for n, x in start.items()}
    state = opt.init(params)
    for t in range(12):
        grads: dict[str, Any] = {n: rng.normal(size=3) for n in "ab"}
        if t in (0, 1, 5, 8):
            grads["a"] = None
        for n, leaf in theirs.items():
            leaf.grad = None if grads[n] is None else torch.from_numpy(grads[n].copy())
        peer.step()
        before, slots = params["a"], state["slots"]["exp_avg"]["a"]
        given = {n: None if g is None else native(backend, g) for n, g in grads.items()}
        params, state = opt.step(params, given, state)
        if grads["a"] is None:
            assert params["a"] is before
            assert state["slots"]["exp_avg"]["a"] is slots
    assert state["step"] == 12
    assert state["missed"] == {"a": 4}
    for n, leaf in theirs.items():
        assert_close(params[n], leaf.detach().numpy(), rtol=1e-13, because="Adam in float64, 12 steps")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("step", [2**24 - 1, 2**24, 2**31 - 1, 2**31])
def test_the_step_goes_on(backend: Backend, dtype: str, step: int) -> None:
    b2, lr = 1 - 1e-9, Cosine(0.5, 2**32)
    opt = Optimizer(Adam(lr=lr, b1=0.9, b2=b2))
    params = {"w": native(backend, [1.0, -2.0], dtype)}
    state = opt.init(params) | {"step": step}
    expected = np.array([1.0, -2.0])
    m, v = np.zeros(2), np.zeros(2)
    for t in range(3):
        g = np.array([0.5, -0.25])
        params, state = opt.step(params, {"w": native(backend, g, dtype)}, state)
        m, v = 0.9 * m + 0.1 * g, b2 * v + (1 - b2) * g * g
        bias = -math.expm1((step + t + 1) * math.log(b2))
        expected = expected - lr(step + t) * m / (np.sqrt(v / bias) + 1e-8)
        kind = {"bfloat16": ml_dtypes.bfloat16}.get(dtype, dtype)
        expected = expected.astype(kind).astype(np.float64)
    assert state["step"] == step + 3
    rtol = {"float16": 2e-3, "bfloat16": 1.6e-2, "float32": 1e-6, "float64": 1e-12}[dtype]
    assert_close(params["w"], expected, rtol=rtol, because=f"three roundings to {dtype}")


# Accumulation


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_accumulated_is_one_big_batch(backend: Backend, reduce: Any) -> None:
    small = Optimizer(Adam(lr=Cosine(0.1, 10)), accumulate=4, reduce=reduce)
    big = Optimizer(Adam(lr=Cosine(0.1, 10)))
    p, q = tree_of(backend, 0), tree_of(backend, 0)
    s, r = small.init(p), big.init(q)
    for i in range(3):
        parts = [tree_of(backend, 10 * i + k) for k in range(4)]
        for k, part in enumerate(parts):
            before = copies(p)
            p, s = small.step(p, part, s)
            if k < 3:
                same(p, before)
                assert s["step"] == i
        total = {n: sum(host(part[n]) for part in parts) for n in SHAPES}
        scale = 4.0 if reduce == "mean" else 1.0
        q, r = big.step(q, {n: native(backend, x / scale) for n, x in total.items()}, r)
    assert (s["step"], s["micro_step"], r["step"]) == (3, 0, 3)
    for n in SHAPES:
        assert_close(p[n], host(q[n]), rtol=1e-13, because="the same sums, from zero or from the first")


def test_accumulated_with_missing_and_bad_gradients(backend: Backend) -> None:
    opt = Optimizer(SGD(lr=1.0), accumulate=2, reduce="sum", nonfinite="skip")
    params = {n: native(backend, [0.0]) for n in "abc"}
    state = opt.init(params)
    one = {n: native(backend, [1.0]) for n in "abc"}
    params, state = opt.step(params, one | {"a": None, "c": None}, state)
    params, skipped = opt.step(params, one | {"a": native(backend, [math.nan])}, state)
    assert skipped is state
    params, state = opt.step(params, one | {"c": None}, state)
    assert_close(params["a"], [-1.0], because="one of two gradients was there")
    assert_close(params["b"], [-2.0], because="both were there")
    assert_close(params["c"], [0.0], because="neither was there")
    assert state["step"] == 1
    assert state["missed"] == {"c": 1}
    for x in state["slots"]["grad_accumulator"].values():
        assert_close(x, [0.0], because="a new round")


# Bad gradients


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_policies(backend: Backend, bad: float) -> None:
    params = {"layers": [{"weight": native(backend, [1.0, 2.0])}, {"weight": native(backend, [3.0])}]}
    grads = {"layers": [{"weight": native(backend, [1.0, 1.0])}, {"weight": native(backend, [bad])}]}
    skip = Optimizer(Adam(lr=0.1), nonfinite="skip")
    state = skip.init(params)
    after, kept = skip.step(params, grads, state)
    assert kept is state
    assert after["layers"][0]["weight"] is params["layers"][0]["weight"]
    updates, kept = skip.update(grads, state, params)
    assert kept is state
    assert updates["layers"][1]["weight"] is None
    for donate in (False, True):
        with pytest.raises(NonFiniteError, match=r"gradient of 'layers\.1\.weight' holds inf or NaN"):
            Optimizer(Adam(lr=0.1), nonfinite="raise").step(params, grads, state, donate=donate)
    assert_close(params["layers"][1]["weight"], [3.0], because="untouched")
    on, state = Optimizer(Adam(lr=0.1)).step(params, grads, state)
    assert np.isnan(host(on["layers"][1]["weight"])).all()
    assert state["step"] == 1


def test_finite_gradients_pass_every_policy(backend: Backend) -> None:
    results = []
    for policy in ("propagate", "skip", "raise"):
        opt = Optimizer(Adam(lr=0.1), nonfinite=policy)  # type: ignore[arg-type]
        params = tree_of(backend, 0)
        params, _ = opt.step(params, tree_of(backend, 1), opt.init(params))
        results.append(copies(params))
    same(results[1], results[0])
    same(results[2], results[0])


# Order, partitions, chains


def test_the_order_of_leaves_does_not_matter(backend: Backend) -> None:
    params, grads = tree_of(backend, 0, "float32"), tree_of(backend, 1, "float32")
    opt = Optimizer(chain(ClipByGlobalNorm(0.1), Adam(lr=0.1)))
    one, _ = opt.step(params, grads, opt.init(params))
    turned = [dict(reversed(t.items())) for t in (params, grads)]
    two, _ = opt.step(turned[0], turned[1], opt.init(turned[0]))
    same(two, copies(one))


def test_frozen_leaves_have_no_state(backend: Backend) -> None:
    params = {n: native(backend, [1.0]) for n in ("embed", "bias", "w")}
    opt = Optimizer(partition({"^embed$": None, "bias$": SGD(lr=0.5), ".*": Adam(lr=0.1)}))
    state = opt.init(params)
    assert {n: sorted(v) for n, v in state["slots"].items()} == {"exp_avg": ["w"], "exp_avg_sq": ["w"]}
    grads = {n: native(backend, [1.0]) for n in params}
    after, state = opt.step(params, grads, state)
    assert after["embed"] is params["embed"]
    assert_close(after["bias"], [0.5], because="exact")
    assert_close(after["w"], [0.9], rtol=1e-7, because="Adam's first step is the rate, but for epsilon")
    assert state["missed"] == {}


def test_integer_leaves_may_be_frozen() -> None:
    params = {"steps": np.arange(3), "w": np.ones(2)}
    opt = Optimizer(partition({"steps": None, "w": SGD(lr=1.0)}))
    after, _ = opt.step(params, {"steps": None, "w": np.ones(2)}, opt.init(params))
    assert after["steps"] is params["steps"]
    assert_close(after["w"], [0.0, 0.0], because="exact")


def test_two_stages_of_one_rule_keep_apart() -> None:
    opt = Optimizer(chain(Adam(lr=-1.0 * -1.0), Adam(lr=0.1)))
    params = {"w": np.ones(2)}
    state = opt.init(params)
    assert sorted(state["slots"]) == ["0.exp_avg", "0.exp_avg_sq", "1.exp_avg", "1.exp_avg_sq"]
    _, state = opt.step(params, {"w": np.array([2.0, 4.0])}, state)
    assert_close(state["slots"]["0.exp_avg"]["w"], [0.2, 0.4], rtol=1e-15, because="of the gradient")
    assert_close(state["slots"]["1.exp_avg"]["w"], [-0.1, -0.1], rtol=1e-8, because="of the first's update")


def test_hyperparameters_by_position() -> None:
    opt = Optimizer(chain(ClipByGlobalNorm(2.0), SGD(lr=Plateau(0.5, factor=0.5, patience=0))))
    state = opt.init({"w": np.ones(1)})
    values = opt.hyperparameters(state)
    assert (values["0.max_norm"], values["1.lr"]) == (2.0, 0.5)
    for metric in (1.0, 1.0):
        state = opt.observe(state, metric)
    assert opt.hyperparameters(state)["1.lr"] == 0.25


# Errors


def gradient_error(grads: Any, message: str) -> None:
    params = {"layer": {"weight": np.ones((2, 3)), "bias": np.ones(3)}}
    before = {n: x.copy() for n, x in params["layer"].items()}
    opt = Optimizer(SGD(lr=1.0))
    with pytest.raises(InputError, match=message):
        opt.step(params, grads, opt.init(params))
    same(params["layer"], before)


def test_mismatched_trees_name_the_leaf() -> None:
    w, b = np.ones((2, 3)), np.ones(3)
    gradient_error(
        {"layer": {"weigth": w, "bias": b}}, r"'layer\.weight' is missing; did you mean 'layer.weigth'"
    )
    gradient_error({"layer": {"weight": w, "bias": b, "scale": b}}, r"'layer\.scale' has no parameter")
    gradient_error({"layer": {"weight": w.T, "bias": b}}, r"'layer\.weight'.*\(3, 2\).*expected.*\(2, 3\)")


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (np.arange(3), "'w' has dtype int64; expected one of float16"),
        (np.ones(3, bool), "'w' has dtype bool"),
        (np.ones(3, complex), "'w' has dtype complex128"),
        (1.0, "float is not an array"),
        ("text", "str is not an array"),
    ],
)
def test_leaves_that_are_no_parameters(leaf: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Optimizer(SGD(lr=1.0)).init({"w": leaf})


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"wieght": SGD(lr=1.0), ".*": None}, "pattern 'wieght' matches no parameter; did you mean 'weight'"),
        ({"weight": SGD(lr=1.0)}, "no pattern matches parameter 'bias'; patterns: 'weight'"),
        ({"(": SGD(lr=1.0)}, "'\\(' is not a regular expression"),
        ({".*": 3}, "'.*' has 3; expected a rule"),
    ],
)
def test_partition_errors(members: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Optimizer(partition(members)).init({"weight": np.ones(1), "bias": np.ones(1)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 0}, "accumulate = 0"),
        ({"accumulate": True}, "accumulate = True"),
        ({"reduce": "median"}, "reduce = 'median'"),
        ({"nonfinite": "ignore"}, "nonfinite = 'ignore'"),
    ],
)
def test_options_are_checked(options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Optimizer(SGD(lr=1.0), **options)


def test_chains_are_checked() -> None:
    with pytest.raises(InputError, match="at least one stage"):
        chain()
    with pytest.raises(InputError, match="stage 1 is 0\\.1"):
        chain(SGD(lr=1.0), 0.1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected a rule"):
        Optimizer("adam")  # type: ignore[arg-type]
