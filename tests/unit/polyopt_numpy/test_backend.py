"""The NumPy backend: IEEE special values in silence, bfloat16, and gradients checked against closed forms."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from polyopt.backend import registry
from polyopt.core.errors import InputError
from polyopt.models.losses import log_softmax
from polyopt.models.networks import relu
from polyopt.testing import assert_close, assert_same_bits

NUMPY, TORCH = registry.by_name("numpy"), registry.by_name("torch")
xp = NUMPY.ops
BF16 = NUMPY.dtype("bfloat16")
TOLERANCE = {"float64": 1e-13, "float32": 1e-5, "bfloat16": 0.05}


# Operations


def test_special_values_raise_no_warning() -> None:
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -1.0], np.float32)
    assert_same_bits(xp.divide(np.float32(1), x)[:4], np.float32([np.inf, -np.inf, 0.0, -0.0]))
    assert_same_bits(xp.log(x)[:3], np.float32([-np.inf, -np.inf, np.inf]))
    assert_same_bits(xp.sqrt(x)[:3], np.float32([0.0, -0.0, np.inf]))
    assert_same_bits(xp.sign(x)[:5], np.float32([0.0, 0.0, 1.0, -1.0, np.nan]))
    assert np.isnan(xp.subtract(x, x)[2])
    assert xp.exp(np.float32(1000.0)) == np.inf
    assert xp.astype(np.array([1e300]), np.float32)[0] == np.inf
    assert np.isnan(xp.mean(np.zeros(0)))
    assert np.isnan(xp.max(x.astype(BF16)))


def test_bfloat16_behaves_like_a_dtype_of_the_standard() -> None:
    x = np.array([1.0, -2.0, -0.0], BF16)
    assert xp.isdtype(BF16, ("bool", "real floating"))
    assert xp.isdtype(BF16, BF16)
    assert not xp.isdtype(BF16, "integral")
    assert not xp.isdtype(np.dtype("float32"), BF16)
    assert float(xp.finfo(x).eps) == 2**-7
    for value in (xp.add(x, 1.5), xp.multiply(0.5, x), xp.where(x > 0, x, 2.0), xp.clip(x, 0.0, 1.0)):
        assert value.dtype == BF16
    for value in (xp.sqrt(x), xp.sum(x), xp.mean(x), xp.max(x), xp.matmul(x, x), xp.round(x), xp.pow(x, 2.0)):
        assert value.dtype == BF16
    assert xp.result_type(BF16, np.float32) == np.float32
    assert xp.result_type(BF16, np.float16) == np.float32
    assert xp.result_type(x, 1.0) == BF16
    assert_same_bits(xp.sign(x), np.array([1.0, -1.0, 0.0], BF16))


@pytest.mark.parametrize("dtype", [BF16, np.dtype(np.float16)])
def test_many_small_terms_are_not_rounded_away(dtype: Any) -> None:
    ones = np.ones((5000, 2), dtype)
    assert xp.sum(ones, axis=0).astype(float).tolist() == [float(np.asarray(5000).astype(dtype))] * 2
    assert xp.mean(ones).astype(float) == 1.0
    product = xp.matmul(np.ones((1, 5000), dtype), ones)
    assert product.astype(float).tolist() == [[float(np.asarray(5000).astype(dtype))] * 2]


def test_integers_keep_to_the_standard() -> None:
    small = np.array([3, -4], np.int8)
    assert xp.sum(small).dtype == np.int64
    assert xp.sum(np.ones(3, bool)) == 3
    assert xp.clip(small, -np.inf, 2).tolist() == [2, -4]
    assert xp.clip(small, -np.inf, 2).dtype == np.int8
    for name in ("ceil", "floor", "round"):
        assert getattr(xp, name)(small).dtype == np.int8
    assert xp.result_type(np.int8, np.uint8) == np.int16


def test_clip_gives_a_new_array() -> None:
    x = np.ones(2)
    assert xp.clip(x) is not x


# The backend


def test_errors_say_what_is_wrong() -> None:
    with pytest.raises(InputError, match=r"device 'cuda'.*'cpu' alone"):
        NUMPY.device("cuda")
    with pytest.raises(InputError, match="unknown dtype 'bfloat61'; did you mean 'bfloat16'"):
        NUMPY.dtype("bfloat61")
    with pytest.raises(InputError, match=r"parameter 'a\.0' is int64; expected a floating array"):
        NUMPY.value_and_grad(lambda xp, p: p["a"][0])({"a": [np.arange(3)]})
    with pytest.raises(InputError, match=r"the loss returned an array of shape \(3,\); expected a 0-d array"):
        NUMPY.value_and_grad(lambda xp, p: p["w"])({"w": np.ones(3)})
    with pytest.raises(InputError, match="the loss returned a float; expected a 0-d array"):
        NUMPY.value_and_grad(lambda xp, p: 1.0)({"w": np.ones(3)})


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64", "int8", "uint8", "bool"])
def test_dtypes_by_name(name: str) -> None:
    x = NUMPY.from_numpy(np.ones(2), dtype=name)
    assert NUMPY.dtype_name(x) == name
    assert NUMPY.dtype_name(x[0]) == name


def test_autograd_is_imported_by_who_differentiates() -> None:
    code = "import sys, polyopt_numpy; assert 'autograd' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# Gradients

X = np.random.default_rng(0).normal(size=(3, 4))
POSITIVE = np.abs(np.random.default_rng(1).normal(size=4)) + 0.5
M = np.random.default_rng(2).normal(size=(4, 2))
TIES = np.array([[1.0, 1.0, 0.0], [0.0, -1.0, 2.0]])
BATCH = np.random.default_rng(3).normal(size=(2, 3, 4))


def _unary(name: str) -> Callable[..., Any]:
    return lambda xp, p: xp.sum(getattr(xp, name)(p[0]))


def _binary(name: str) -> Callable[..., Any]:
    def loss(xp: Any, p: Any) -> Any:
        op = getattr(xp, name)
        scalars = xp.add(xp.sum(op(p[1], 2.0)), xp.sum(op(2.0, p[1])))
        return xp.add(xp.sum(op(xp.abs(p[0]), p[1])), scalars)

    return loss


def _reduced(name: str, axis: Any, keepdims: bool) -> Callable[..., Any]:
    return lambda xp, p: xp.sum(xp.square(getattr(xp, name)(p[0], axis=axis, keepdims=keepdims)))


def _square_sum(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda xp, p: xp.sum(xp.square(function(xp, p)))


CASES: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    **{n: (_unary(n), (X,)) for n in ("abs", "cos", "exp", "expm1", "negative", "square", "tanh")},
    "log_softmax": (_square_sum(lambda xp, p: log_softmax(xp, p[0])), (X,)),
    "relu": (_square_sum(lambda xp, p: relu(xp, p[0])), (X,)),
    **{n: (_unary(n), (X,)) for n in ("ceil", "floor", "round", "sign")},
    **{n: (_unary(n), (POSITIVE,)) for n in ("log", "log1p", "sqrt")},
    **{n: (_binary(n), (X, POSITIVE)) for n in ("add", "divide", "maximum", "minimum", "multiply", "pow")},
    "subtract": (_binary("subtract"), (X, POSITIVE)),
    **{
        f"{n} {axis} {k}": (_reduced(n, axis, k), (TIES,))
        for n in ("max", "mean", "min", "sum")
        for axis in (None, 0, -1, (0, 1))
        for k in (False, True)
    },
    "pow at 0": (lambda xp, p: xp.sum(xp.add(xp.pow(p[0], 2.0), xp.pow(p[0], 0.0))), (TIES,)),
    "matmul": (_square_sum(lambda xp, p: xp.matmul(p[0], p[1])), (X, M)),
    "matrix vector": (_square_sum(lambda xp, p: xp.matmul(p[0], p[1])), (X, POSITIVE)),
    "vector matrix": (_square_sum(lambda xp, p: xp.matmul(p[1], p[0])), (M, POSITIVE)),
    "dot": (lambda xp, p: xp.matmul(p[0], p[0]), (POSITIVE,)),
    "batch": (_square_sum(lambda xp, p: xp.matmul(p[0], p[1])), (BATCH, M)),
    "reshape": (_square_sum(lambda xp, p: xp.exp(xp.reshape(p[0], (-1,)))), (X,)),
    "permute": (_square_sum(lambda xp, p: xp.matmul(xp.permute_dims(p[0], (2, 0, 1)), p[1])), (BATCH, X)),
    "transpose": (_square_sum(lambda xp, p: xp.matmul(xp.matrix_transpose(p[0]), p[0])), (X,)),
    "broadcast": (_square_sum(lambda xp, p: xp.broadcast_to(p[0], (3, 4))), (POSITIVE,)),
    "squeeze": (_square_sum(lambda xp, p: xp.squeeze(xp.expand_dims(p[0], axis=1), 1)), (X,)),
    "concat": (_square_sum(lambda xp, p: xp.concat([xp.exp(p[0]), p[0]], axis=1)), (X,)),
    "concat flat": (_square_sum(lambda xp, p: xp.concat([p[0], p[1]], axis=None)), (X, POSITIVE)),
    "stack": (_square_sum(lambda xp, p: xp.stack([xp.exp(p[0]), p[0]], axis=1)), (POSITIVE,)),
    "take": (_square_sum(lambda xp, p: xp.take(p[0], xp.asarray([0, -1, 0]), axis=1)), (X,)),
    "take flat": (_square_sum(lambda xp, p: xp.take(p[0], xp.asarray([[1, 1]]))), (X,)),
    "take along": (
        _square_sum(lambda xp, p: xp.take_along_axis(p[0], xp.asarray([[0], [-1], [2]]), axis=1)),
        (X,),
    ),
    "where": (
        _square_sum(lambda xp, p: xp.where(xp.greater(p[0], 0.0), p[0], xp.where(xp.isnan(p[1]), 0.0, p[1]))),
        (X, POSITIVE),
    ),
    "clip": (_square_sum(lambda xp, p: xp.clip(p[0], -0.5, 0.3)), (X,)),
    "astype": (
        lambda xp, p: xp.sum(xp.astype(xp.square(xp.astype(p[0], xp.float64)), p[0].dtype)),
        (X,),
    ),
    "to integer": (
        lambda xp, p: xp.sum(xp.multiply(p[0], xp.astype(xp.astype(p[0], xp.int32), p[0].dtype))),
        (X,),
    ),
    "unused": (_unary("exp"), (X, POSITIVE)),
    "select": (lambda xp, p: xp.add(xp.sum(xp.square(p[0][1:, ::2])), p[0][0, 0]), (X,)),
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_torchs(case: str, dtype: str) -> None:
    loss, params = CASES[case]
    value, grads = NUMPY.value_and_grad(loss)([NUMPY.from_numpy(p, dtype=dtype) for p in params])
    expected, theirs = TORCH.value_and_grad(loss)([TORCH.from_numpy(p, dtype=dtype) for p in params])
    tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    assert_close(value, expected, **tolerance, because="transcendental functions and order of sums")
    for g, t, p in zip(grads, theirs, params, strict=True):
        assert NUMPY.dtype_name(g) == dtype
        assert g.shape == p.shape
        assert_close(g, t, **tolerance, because="transcendental functions and order of sums")


def test_gradients_have_closed_forms() -> None:
    a, y = X, np.arange(3.0)

    def loss(xp: Any, p: Any, a: Any, y: Any) -> Any:
        return xp.mean(xp.square(xp.subtract(xp.add(xp.matmul(a, p["w"]), p["b"]), y)))

    value, grads = NUMPY.value_and_grad(loss)({"w": POSITIVE, "b": np.asarray(0.5)}, a, y)
    error = a @ POSITIVE + 0.5 - y
    because = "a few roundings in another order"
    assert_close(value, np.mean(error**2), rtol=1e-14, because=because)
    assert_close(grads["w"], 2 * a.T @ error / 3, rtol=1e-13, because=because)
    assert_close(grads["b"], 2 * error.mean(), rtol=1e-13, because=because)


def test_operators_and_trees() -> None:
    params = {"layers": [{"w": np.float32([1.0, 2.0])}, None], "unused": np.ones(2, np.float32)}

    def loss(xp: Any, p: Any) -> Any:
        w = p["layers"][0]["w"]
        return xp.mean(-w * w + w / 2.0) + (w @ w) ** 2

    _, grads = NUMPY.value_and_grad(loss)(params)
    w = np.array([1.0, 2.0])
    assert_close(grads["layers"][0]["w"], -w + 0.25 + 20 * w, rtol=1e-6, because="float32")
    assert grads["layers"][0]["w"].dtype == np.float32
    assert grads["layers"][1] is None
    assert grads["unused"].tolist() == [0.0, 0.0]
    assert params["layers"][0]["w"].tolist() == [1.0, 2.0]


def test_a_constant_loss_has_gradient_zero() -> None:
    value, grads = NUMPY.value_and_grad(lambda xp, p: xp.asarray(2.0))({"w": np.ones(2)})
    assert (float(value), grads["w"].tolist()) == (2.0, [0.0, 0.0])


def test_stop_gradient_and_second_order() -> None:
    w = {"w": np.array([1.0, 2.0])}
    _, grads = NUMPY.value_and_grad(lambda xp, p: xp.sum(p["w"] * NUMPY.stop_gradient(p["w"])))(w)
    assert grads["w"].tolist() == [1.0, 2.0]

    def squared_gradient(xp: Any, p: Any) -> Any:
        _, inner = NUMPY.value_and_grad(lambda xp, q: xp.sum(xp.pow(q["w"], 3.0)))(p)
        return xp.sum(xp.square(inner["w"]))

    _, grads = NUMPY.value_and_grad(squared_gradient)(w)
    assert_close(grads["w"], 36 * w["w"] ** 3, rtol=1e-14, because="a few roundings")


def test_losses_may_look_up_the_backend_of_their_values() -> None:
    seen = []

    def loss(xp: Any, p: Any) -> Any:
        seen.append(registry.of(p["w"]).name)
        seen.append(NUMPY.to_numpy(p["w"]).tolist())
        return xp.sum(xp.asarray([p["w"][0], 2.0]))

    _, grads = NUMPY.value_and_grad(loss)({"w": np.ones(2)})
    assert seen == ["numpy", [1.0, 1.0]]
    assert grads["w"].tolist() == [1.0, 0.0]


def test_gradients_in_threads() -> None:
    def gradient(k: int) -> Any:
        f = NUMPY.value_and_grad(lambda xp, p: xp.sum(xp.multiply(xp.square(p["w"]), float(k))))
        return [f({"w": np.ones(3)})[1]["w"].tolist() for _ in range(20)]

    with ThreadPoolExecutor(4) as pool:
        for k, found in enumerate(pool.map(gradient, range(16))):
            assert found == [[2.0 * k] * 3] * 20
