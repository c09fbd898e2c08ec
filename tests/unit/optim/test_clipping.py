"""Clipping against torch, optax and Keras, and where they overflow, underflow or round away."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from polyopt import (
    SGD,
    AdaptiveGradientClip,
    ClipByGlobalNorm,
    ClipByNorm,
    ClipByValue,
    Optimizer,
    chain,
    global_norm,
)
from polyopt.backend.protocol import Backend
from polyopt.core.errors import InputError, NonFiniteError
from polyopt.optim.clipping import CLIPPING
from polyopt.schedules import Polynomial
from polyopt.testing import assert_close, assert_same_bits
from polyopt.testing.compare import host
from polyopt_numpy import backend as numpy_backend

ONE_ROUNDING = "the same formula, rounded in another order"


def clip(backend: Backend, rule: Any, grads: dict[str, Any], params: Any = None, **options: Any) -> Any:
    """What ``rule`` makes of host arrays, as host arrays."""
    params = {n: np.zeros_like(g) for n, g in grads.items()} if params is None else params
    native = [{n: backend.from_numpy(x) for n, x in tree.items()} for tree in (params, grads)]
    opt = Optimizer(rule, **options)
    updates, _ = opt.update(native[1], opt.init(native[0]), native[0])
    return {n: np.asarray(host(u)) for n, u in updates.items()}


def some(dtype: str = "float32", scale: float = 1.0) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    shapes = {"a": (3, 4), "b": (), "c": (0, 3), "d": (1,), "e": (12, 50)}
    return {n: (np.asarray(rng.normal(size=s)) * scale).astype(dtype) for n, s in shapes.items()}


def rough_norm(grads: dict[str, Any]) -> float:
    return math.sqrt(math.fsum(float(x) ** 2 for g in grads.values() for x in g.astype(np.float64).ravel()))


# Against the peers


@pytest.mark.parametrize("limit", [0.5, 10.0, 1e3])
def test_torch(limit: float) -> None:
    import torch

    grads = some()
    leaves = [torch.nn.Parameter(torch.zeros(g.shape)) for g in grads.values()]
    for leaf, g in zip(leaves, grads.values(), strict=True):
        leaf.grad = torch.from_numpy(np.array(g))
    before = global_norm([leaf.grad for leaf in leaves])
    norm = torch.nn.utils.clip_grad_norm_(leaves, limit)
    ours = clip(numpy_backend, ClipByGlobalNorm(limit, convention="torch"), grads)
    for leaf, u in zip(leaves, ours.values(), strict=True):
        assert_close(u, leaf.grad.numpy(), rtol=5e-7, because=ONE_ROUNDING)
    assert_close(before, norm.numpy(), rtol=3e-7, because=ONE_ROUNDING)


@pytest.mark.parametrize("limit", [0.5, 10.0, 1e3])
def test_optax(limit: float) -> None:
    import jax
    import optax

    grads = some()
    for ours, theirs in (
        (ClipByGlobalNorm(limit, convention="optax"), optax.clip_by_global_norm(limit)),
        (ClipByValue(limit / 10), optax.clip(limit / 10)),
    ):
        with jax.numpy_dtype_promotion("standard"):
            expected, _ = theirs.update(
                {n: jax.numpy.asarray(g) for n, g in grads.items()}, theirs.init(None)
            )
        for n, u in clip(numpy_backend, ours, grads).items():
            assert_close(u, np.asarray(expected[n]), rtol=5e-7, because=ONE_ROUNDING)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (1, 9), (5, 3), (2, 3, 4), (3, 3, 2, 5), (2, 1, 2, 3, 4)])
def test_optax_adaptive(shape: tuple[int, ...]) -> None:
    import jax
    import optax

    rng = np.random.default_rng(0)
    p, g = (np.asarray(rng.normal(size=shape), np.float32) for _ in range(2))
    p = p * (rng.random(shape) < 0.7)  # some units are small
    p = np.asarray(p, np.float32)
    theirs = optax.adaptive_grad_clip(0.3, eps=1e-2)
    with jax.numpy_dtype_promotion("standard"):
        expected, _ = theirs.update(jax.numpy.asarray(g), theirs.init(None), jax.numpy.asarray(p))
    rule = AdaptiveGradientClip(0.3, eps=1e-2, convention="optax")
    ours = clip(numpy_backend, rule, {"w": g}, {"w": p})["w"]
    assert_close(ours, np.asarray(expected), rtol=1e-6, because=ONE_ROUNDING)


@pytest.mark.parametrize("shape", [(7,), (5, 3), (4, 3, 2), (5, 2, 3, 3)])
def test_adaptive_with_the_units_first(backend: Backend, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    p, g = (rng.normal(size=shape) for _ in range(2))
    axes = tuple(range(1, len(shape))) or None
    norms = [np.sqrt((x * x).sum(axis=axes, keepdims=True)) for x in (g, p)]
    limit = 0.3 * np.maximum(norms[1], 1e-3)
    expected = np.where(norms[0] > limit, g * limit / norms[0], g)
    rule = AdaptiveGradientClip(0.3, convention="torch")
    assert_close(
        clip(backend, rule, {"w": g}, {"w": p})["w"], expected, rtol=1e-14, because="float64 roundings"
    )


@pytest.mark.parametrize("limit", [0.5, 1e3])
def test_keras(limit: float) -> None:
    import keras

    grads = some()
    for option, rule in (
        ("global_clipnorm", ClipByGlobalNorm(limit, convention="keras")),
        ("clipnorm", ClipByNorm(limit, convention="keras")),
        ("clipvalue", ClipByValue(limit)),
    ):
        del grads["c"]  # Keras divides 0 by 0 for an empty one
        optimizer = keras.optimizers.SGD(1.0, **{option: limit})
        expected = optimizer._clip_gradients([keras.ops.convert_to_tensor(g) for g in grads.values()])
        ours = clip(numpy_backend, rule, grads)
        for u, e in zip(ours.values(), expected, strict=True):
            assert_close(u, keras.ops.convert_to_numpy(e), rtol=5e-7, because=ONE_ROUNDING)
        grads["c"] = np.zeros((0, 3), np.float32)


# The same bits on every backend


RULES = [
    ClipByValue(0.3),
    ClipByValue(0.5, min_value=-0.1),
    *(
        kind(0.7, convention=c)
        for kind in (ClipByGlobalNorm, ClipByNorm)
        for c in ("paper", "torch", "keras")
    ),
    AdaptiveGradientClip(0.01),
    AdaptiveGradientClip(0.01, convention="torch"),
]


# Op by op XLA compiles every operation for every shape: the conventions differ in the last of them alone.
CASES = [(rule, True) for rule in RULES]
CASES += [(rule, False) for rule in RULES if getattr(rule, "convention", "paper") == "paper"]


@pytest.mark.parametrize(("rule", "compiled"), CASES, ids=repr)
def test_the_same_bits_everywhere(backend: Backend, rule: Any, compiled: bool) -> None:
    for dtype in ("float32", "float64") if compiled else ("float32",):
        grads, params = some(dtype), some(dtype, scale=3.0)
        expected = clip(numpy_backend, rule, grads, params, compiled=False)
        ours = clip(backend, rule, grads, params, compiled=compiled)
        for n in grads:
            assert_same_bits(ours[n], expected[n], what=f"{rule} {dtype} {n}")


def test_tried_them_all() -> None:
    assert {type(rule) for rule in RULES} == set(CLIPPING.values())


@pytest.mark.parametrize("rule", [ClipByGlobalNorm(1e3), AdaptiveGradientClip(1e3)], ids=repr)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_within_the_limit_nothing_changes(backend: Backend, rule: Any, dtype: str) -> None:
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    grads = {n: g.astype(kind) for n, g in some().items()}
    wide = np.float64 if dtype == "float64" else np.float32
    params = {n: np.ones_like(g) for n, g in grads.items()}
    for n, u in clip(backend, rule, grads, params).items():
        assert_same_bits(u, grads[n].astype(wide), what=n)


def test_exactly_at_the_limit() -> None:
    grads = {"w": np.float32([3.0, 4.0])}
    assert_same_bits(clip(numpy_backend, ClipByGlobalNorm(5.0), grads)["w"], grads["w"])


# Where a plain sum of squares fails


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", [ClipByGlobalNorm, ClipByNorm])
@pytest.mark.parametrize("convention", ["paper", "torch", "keras"])
def test_extreme_magnitudes(backend: Backend, dtype: str, kind: Any, convention: str) -> None:
    top, bottom = (2.0**127, 2.0**-120) if dtype == "float32" else (2.0**1023, 2.0**-1000)
    for scale in (top, 2.0**41, math.sqrt(bottom) / 4, bottom):
        g = np.array([0.75, -0.5, 0.0, 0.25], dtype) * np.asarray(scale, dtype)
        limit = max(scale / 8, 2.0**-90 if dtype == "float32" else 2.0**-900)
        norm = math.sqrt(0.875) * scale
        eps = 1e-6 if convention == "torch" else 0.0
        factor = min(1.0, (limit / scale) / (math.sqrt(0.875) + eps / scale)) if eps / scale < 1e300 else 0.0
        if norm + eps < limit:
            factor = 1.0
        out = clip(backend, kind(limit, convention=convention), {"w": g})["w"]
        tiny = float(np.finfo(dtype).tiny)
        assert_close(
            out.astype(np.float64) / limit,
            g.astype(np.float64) / limit * factor,
            rtol=4 * float(np.finfo(dtype).eps),
            atol=4 * tiny / limit,
            because=f"a few roundings at {scale}; a result below the normal range may be flushed",
        )


def test_half_precision_norms(backend: Backend) -> None:
    big, small = np.full(100, 6e4, np.float16), np.full(64, 6e-8, np.float16)
    bf = np.full(1_000_000, 1e-3).astype(ml_dtypes.bfloat16)
    for x in (big, small, bf):
        expected = rough_norm({"x": x})
        assert_close(
            global_norm(backend.from_numpy(x)), np.float64(expected), rtol=5e-7, because="float32 sums"
        )


def test_mixed_dtypes(backend: Backend) -> None:
    """A float64 leaf beyond float32, and float32 leaves that must be scaled with it."""
    grads = {
        "a": np.array([2.0**120, -(2.0**100)], np.float32),
        "b": np.array([2.0**130, 2.0**-30]),
        "c": np.array([3.0], np.float16),
    }
    norm = global_norm({n: backend.from_numpy(g) for n, g in grads.items()})
    assert backend.dtype_name(norm) == "float64"
    expected = rough_norm(grads)
    assert_close(norm, np.float64(expected), rtol=1e-15, because="float64")
    ours = clip(backend, ClipByGlobalNorm(1.0), grads)
    for n, g in grads.items():
        assert_close(
            ours[n],
            g.astype(np.float64) / expected,
            rtol=3e-7,
            atol=2e-38,
            because="float32 leaves; subnormals may be flushed",
        )
    assert_close(ours["a"][0], np.float64(2.0**-10), rtol=1e-6, because="not flushed to zero")


@pytest.mark.parametrize("rule", [ClipByNorm(1.0), ClipByGlobalNorm(1.0, convention="torch")])
def test_zeros_and_nothing(backend: Backend, rule: Any) -> None:
    for grads in (
        {"a": np.zeros(3, np.float32), "b": np.zeros((0, 2), np.float32)},
        {"a": np.zeros((0,), np.float32)},
        {"a": np.zeros((0,)), "b": np.zeros((3, 0))},
    ):
        for n, u in clip(backend, rule, grads).items():
            assert_same_bits(u, grads[n], what=n)


def test_no_leaf_at_all() -> None:
    assert_same_bits(global_norm({"a": None}), np.float32(0.0))
    opt = Optimizer(chain(ClipByGlobalNorm(1.0), SGD(lr=0.1)))
    params = {"w": np.ones(2)}
    after, state = opt.step(params, {"w": None}, opt.init(params))
    assert after["w"] is params["w"]
    assert state["missed"] == {"w": 1}


def test_global_norm_names_a_leaf_that_has_none() -> None:
    with pytest.raises(InputError, match="leaf 'n' has dtype int64"):
        global_norm({"n": np.arange(3)})


# inf and NaN


@pytest.mark.parametrize(
    ("convention", "bad", "expected"),
    [
        ("paper", math.inf, [0.0, math.nan, 0.0]),
        ("torch", -math.inf, [0.0, math.nan, 0.0]),
        ("keras", math.inf, [math.nan] * 3),
        ("paper", math.nan, [math.nan] * 3),
        ("torch", math.nan, [math.nan] * 3),
        ("keras", math.nan, [math.nan] * 3),
    ],
)
def test_bad_leaves_propagate_as_documented(
    backend: Backend, convention: str, bad: float, expected: list[float]
) -> None:
    grads = {"a": np.float32([2.0, bad]), "b": np.float32([1.0])}
    ours = clip(backend, ClipByGlobalNorm(1.0, convention=convention), grads)
    assert_close(np.concatenate([ours["a"], ours["b"]]), expected, because="exact")
    alone = clip(backend, ClipByNorm(1.5, convention=convention), grads)
    assert_close(alone["a"], expected[:2], because="exact")
    assert_close(alone["b"], [1.0], because="another leaf's norm is no concern")


def test_bad_leaves_skipped_or_raised(backend: Backend) -> None:
    rule = chain(ClipByGlobalNorm(1.0), SGD(lr=0.1))
    params = {"a": backend.from_numpy(np.ones(2)), "b": backend.from_numpy(np.ones(1))}
    grads = {"a": backend.from_numpy(np.array([1.0, math.inf])), "b": backend.from_numpy(np.ones(1))}
    skip = Optimizer(rule, nonfinite="skip")
    state = skip.init(params)
    after, same = skip.step(params, grads, state)
    assert same == state
    for n in params:
        assert_same_bits(after[n], params[n], what=n)
    with pytest.raises(NonFiniteError, match="gradient of 'a'"):
        Optimizer(rule, nonfinite="raise").step(params, grads, state)


def test_by_value_specials(backend: Backend) -> None:
    grads = {"w": np.float32([math.inf, -math.inf, math.nan, -0.0])}
    ours = clip(backend, ClipByValue(2.0), grads)["w"]
    assert_close(ours, [2.0, -2.0, math.nan, 0.0], because="exact")


def test_a_scheduled_limit(backend: Backend) -> None:
    rule = chain(ClipByGlobalNorm(Polynomial(2.0, 2, end=1.0)), SGD(lr=1.0))
    opt = Optimizer(rule)
    params = {"w": backend.from_numpy(np.zeros(1))}
    state = opt.init(params)
    seen = []
    for _ in range(3):
        before = params
        params, state = opt.step(params, {"w": backend.from_numpy(np.array([10.0]))}, state)
        seen.append(float(host(before["w"])[0] - host(params["w"])[0]))
    assert_close(seen, [2.0, 1.5, 1.0], rtol=1e-15, because="the limit of each step")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClipByGlobalNorm(0.0), "max_norm = 0.0"),
        (lambda: ClipByNorm(-1.0), "max_norm = -1.0"),
        (lambda: ClipByNorm("1"), "max_norm = '1'"),
        (lambda: ClipByGlobalNorm(1.0, convention="pytorch"), "'pytorch'.*did you mean 'torch'"),
        (lambda: ClipByValue(-1.0), "max_value = -1.0"),
        (lambda: ClipByValue(1.0, min_value=2.0), "min_value = 2.0 is above max_value = 1.0"),
        (lambda: AdaptiveGradientClip(0.0), "clipping = 0.0"),
    ],
)
def test_errors_name_the_field(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
