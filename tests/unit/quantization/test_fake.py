"""Fake quantization: values, gradients, torch's and TensorFlow's own, and training through it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import polyopt as po
from polyopt.backend.protocol import Backend
from polyopt.core.errors import InputError
from polyopt.quantization import (
    Cast,
    Integer,
    dequantize,
    fake_quantize,
    fake_quantize_weight,
    quantize,
)
from polyopt.testing import assert_close, assert_same_bits

X = np.float32([-20.0, -12.76, -12.74, -0.3, -0.05, 0.0, 0.04, 0.151, 3.3, 12.68, 12.72, 12.78, 99.0])


def reference(x: Any, s: float, z: int, low: int, high: int) -> tuple[Any, Any]:
    code = np.rint(x / np.float32(s)) + z  # in float32: 0.05 is half a step there
    q = np.clip(code, low, high)
    return (q.astype(np.float64) - z) * s, (q == code).astype(np.float64)


@pytest.mark.parametrize("z", [0, -3])
@pytest.mark.parametrize("compiled", [True, False])
def test_value_and_gradient(backend: Backend, z: int, compiled: bool) -> None:
    x = backend.from_numpy(X)
    expected, mask = reference(X, 0.1, z, -127, 127)
    weights = np.arange(1.0, 14.0, dtype=np.float32)

    def loss(xp: Any, x: Any, w: Any, gradient: str) -> Any:
        return xp.sum(w * fake_quantize(xp, x, 0.1, z, -127, 127, gradient=gradient))

    w = backend.from_numpy(weights)
    for gradient, passes in (("clipped", mask), ("straight", np.ones(13))):
        run = po.value_and_grad(lambda xp, x, w, g=gradient: loss(xp, x, w, g), compiled=compiled)
        value, grads = run(x, w)
        assert_close(value, np.float64(np.sum(weights * expected)), rtol=1e-6, because="a sum in float32")
        assert_close(grads, weights * passes, because="exact")


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_the_grid_to_the_bit(backend: Backend, dtype: str) -> None:
    generator = np.random.default_rng(0)
    x = backend.from_numpy(generator.standard_normal((40, 6)) * 3, dtype=dtype)
    out = fake_quantize(backend.ops, x, 0.02, 5, -128, 127)
    wide = np.float64 if dtype == "float64" else np.float32
    host = np.asarray(backend.to_numpy(x)).astype(wide)
    s = wide(0.02)
    want = (np.clip(np.rint(host / s) + wide(5), -128, 127) - wide(5)) * s
    numpy = po.get_backend("numpy")
    assert_same_bits(out, numpy.from_numpy(want, dtype=dtype))


@pytest.mark.parametrize(
    "scheme",
    [
        Integer(per="tensor"),
        Integer(),
        Integer(symmetric=False),
        Integer(bits=4, per="group", group_size=4),
        Integer(convention="torch"),
        Integer(convention="torch", symmetric=False),
        Integer(convention="keras"),
        Integer(convention="tensorflow", symmetric=False),
    ],
    ids=repr,
)
def test_weights_are_those_that_will_be_stored(backend: Backend, scheme: Integer) -> None:
    host = np.random.default_rng(2).standard_normal((8, 12)).astype(np.float32)
    host[:, 3] = 0.0
    w = backend.from_numpy(host)
    if scheme.convention == "keras":
        # Its codes come from the inverse of the scale that is stored.
        assert_close(
            fake_quantize_weight(backend.ops, w, scheme),
            backend.to_numpy(dequantize(quantize(w, scheme))),
            because="exact",
        )
    else:
        assert_same_bits(fake_quantize_weight(backend.ops, w, scheme), dequantize(quantize(w, scheme)))
    _, grads = po.value_and_grad(lambda xp, w: xp.sum(fake_quantize_weight(xp, w, scheme) * w))(w)
    assert np.isfinite(backend.to_numpy(grads)).all()
    # d(q·w) = q + w where the gradient goes through, which it does everywhere inside of the grid
    # (TensorFlow's is shifted so that 0 is a point of it: at one of its ends it doesn't).
    want = host + np.asarray(po.convert(dequantize(quantize(w, scheme)), "numpy"))
    inside = np.abs(np.asarray(backend.to_numpy(grads)) - want) < 1e-4
    assert inside.mean() > 0.85


@pytest.mark.parametrize(("low", "high", "z"), [(-128, 127, 0), (0, 255, 30), (-8, 7, 1)])
def test_torch_has_the_same(low: int, high: int, z: int) -> None:
    import torch

    host = np.concatenate([X, np.random.default_rng(1).standard_normal(500).astype(np.float32) * 10])
    x = torch.tensor(host, requires_grad=True)
    theirs = torch.fake_quantize_per_tensor_affine(x, 0.1, z, low, high)
    theirs.sum().backward()
    ours = fake_quantize(po.get_backend("torch").ops, x.detach(), 0.1, z, low, high, convention="torch")
    assert_close(ours, theirs.detach().numpy(), rtol=0, because="the same operations in the same order")
    run = po.value_and_grad(lambda xp, x: xp.sum(fake_quantize(xp, x, 0.1, z, low, high, convention="torch")))
    assert_close(run(x.detach())[1], x.grad.numpy(), because="a mask")


def test_torch_has_the_same_by_channel() -> None:
    import torch

    host = np.random.default_rng(1).standard_normal((5, 40)).astype(np.float32) * 10
    scale = np.float32([0.1, 0.03, 0.2, 0.07, 0.01])
    theirs = torch.fake_quantize_per_channel_affine(
        torch.tensor(host), torch.tensor(scale), torch.zeros(5, dtype=torch.int32), 0, -127, 127
    )
    xp = po.get_backend("numpy").ops
    ours = fake_quantize(xp, host, scale.reshape(5, 1), None, -127, 127, convention="torch")
    assert_close(ours, theirs.numpy(), because="the same operations in the same order")


@pytest.mark.parametrize(("low", "high"), [(-6.0, 6.0), (0.0, 2.55), (-0.3, 5.0)])
@pytest.mark.parametrize("bits", [4, 8])
def test_tensorflow_has_the_same(low: float, high: float, bits: int) -> None:
    import tensorflow as tf

    host = np.random.default_rng(1).standard_normal(2000).astype(np.float32) * 3
    x = tf.constant(host)
    with tf.GradientTape() as tape:
        tape.watch(x)
        theirs = tf.quantization.fake_quant_with_min_max_vars(x, low, high, num_bits=bits)
    mask = tape.gradient(theirs, x).numpy()
    scheme = Integer(bits=bits, per="tensor", symmetric=False, convention="tensorflow")
    grid = po.quantization.calibrate([np.float32([low, high])], scheme=scheme)["param"]

    def fake(xp: Any, x: Any) -> Any:
        return fake_quantize(xp, x, grid.scale, grid.zero_point, grid.low, grid.high, convention="tensorflow")

    ours = fake(po.get_backend("tensorflow").ops, x)
    # TensorFlow multiplies the step by s and adds the least value, which rounds twice.
    assert_close(ours, theirs.numpy(), rtol=3e-6, atol=1e-6, because="the last bits of a value of the grid")
    got = po.value_and_grad(lambda xp, x: xp.sum(fake(xp, x)))(x)[1]
    assert_close(got, mask, because="a mask")


def problem(backend: Backend) -> tuple[Any, Any, Any]:
    generator = np.random.default_rng(5)
    x = generator.standard_normal((64, 8)).astype(np.float32)
    y = x @ generator.standard_normal((8, 2)).astype(np.float32)
    w = (generator.standard_normal((8, 2)) * 0.1).astype(np.float32)
    return backend.from_numpy(w), backend.from_numpy(x), backend.from_numpy(y)


def test_training_that_knows_of_its_quantization(backend: Backend) -> None:
    scheme = Integer(bits=4, per="channel")
    w, x, y = problem(backend)

    def loss(xp: Any, params: Any, x: Any, y: Any) -> Any:
        difference = xp.matmul(x, fake_quantize_weight(xp, params["w"], scheme)) - y
        return xp.mean(difference * difference)

    step = po.TrainStep(loss, po.Optimizer(po.Adam(lr=0.05)))
    carry = step.init({"w": w})
    losses = []
    for _ in range(60):
        carry, value = step(carry, x, y)
        losses.append(float(value))
    params, _ = step.unload(carry)
    stored = dequantize(quantize(params, scheme))
    kept, _ = po.value_and_grad(lambda xp, p, x, y: xp.mean((xp.matmul(x, p["w"]) - y) ** 2))(stored, x, y)
    assert losses[-1] < losses[0] / 20
    fake, _ = po.value_and_grad(loss)(params, x, y)
    assert_close(
        kept, np.float64(float(fake)), rtol=1e-3, because="the stored weights are those trained with"
    )


def test_what_is_not_finite() -> None:
    xp = po.get_backend("numpy").ops
    x = np.float32([np.inf, -np.inf, 1.0])
    out = fake_quantize(xp, x, 0.1, 0, -127, 127)
    assert_close(out, np.float32([12.7, -12.7, 1.0]), rtol=1e-6, because="two roundings")
    assert np.isnan(fake_quantize(xp, np.float32([np.nan]), 0.1, 0, -127, 127)).all()


def test_what_is_refused() -> None:
    xp = po.get_backend("numpy").ops
    with pytest.raises(InputError, match="did you mean 'torch'"):
        fake_quantize(xp, X, 0.1, 0, -1, 1, convention="troch")
    with pytest.raises(InputError, match="did you mean 'clipped'"):
        fake_quantize(xp, X, 0.1, 0, -1, 1, gradient="cliped")
    with pytest.raises(InputError, match="expected low < high"):
        fake_quantize(xp, X, 0.1, 0, 1, 1)
    for scale in (0.0, -0.1, float("nan")):
        with pytest.raises(InputError, match="expected a finite number above 0"):
            fake_quantize(xp, X, scale, 0, -1, 1)
    with pytest.raises(InputError, match="expected an Integer"):
        fake_quantize_weight(xp, X, Cast())  # type: ignore[arg-type]


def test_numbers_of_the_host_and_leaves_without_elements(backend: Backend) -> None:
    xp, x = backend.ops, backend.from_numpy(X)
    given = fake_quantize(xp, x, np.float32(0.1), np.int8(2), -7, 7)
    assert_same_bits(given, fake_quantize(xp, x, float(np.float32(0.1)), 2, -7, 7))
    none = backend.from_numpy(np.zeros((0, 3), np.float32))
    assert tuple(fake_quantize_weight(xp, none, Integer()).shape) == (0, 3)
