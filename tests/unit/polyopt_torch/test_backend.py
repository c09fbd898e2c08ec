"""The PyTorch backend: exact where PyTorch isn't, kind to parameters, and NumPy's bits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from polyopt import Adam, Optimizer
from polyopt.backend import registry
from polyopt.core.errors import InputError
from polyopt.testing import assert_close, assert_same_bits

NUMPY, TORCH = registry.by_name("numpy"), registry.by_name("torch")
xp = TORCH.ops
SHAPES = {"a": (33, 7), "b": (5,), "c": (), "d": (0, 3), "e": (3, 4, 5), "f": (70, 70), "g": (1,)}


def train(backend: Any, dtype: str, compiled: bool, steps: int = 200) -> Any:
    rng = np.random.default_rng(3)
    params = {k: backend.from_numpy(rng.normal(size=s), dtype=dtype) for k, s in SHAPES.items()}
    opt = Optimizer(Adam(lr=0.01), compiled=compiled)
    state = opt.init(params)
    for _ in range(steps):
        grads = {k: backend.from_numpy(rng.normal(size=s), dtype=dtype) for k, s in SHAPES.items()}
        params, state = opt.step(params, grads, state)
    return params, state["slots"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_adam_has_numpys_bits_over_200_steps(dtype: str) -> None:
    expected, slots = train(NUMPY, dtype, compiled=False)
    for compiled in (False, True):
        params, own = train(TORCH, dtype, compiled)
        for path in SHAPES:
            assert_same_bits(params[path], expected[path], what=path)
            for name in slots:
                assert_same_bits(own[name][path], slots[name][path], what=f"{name} of {path}")


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("size", [6, 5000])
def test_a_step_leaves_parameters_alone_or_changes_them_in_place(compiled: bool, size: int) -> None:
    weight = torch.nn.Parameter(torch.ones(size))
    weight.grad = torch.full((size,), 2.0)
    opt = Optimizer(Adam(lr=0.5), compiled=compiled)
    state = opt.init({"w": weight})
    new, _ = opt.step({"w": weight}, {"w": weight.grad}, state)
    assert_same_bits(weight, np.ones(size, np.float32))
    assert new["w"].requires_grad
    assert new["w"].is_leaf
    assert not any(x["w"].requires_grad for x in state["slots"].values())
    address = weight.data_ptr()
    given, _ = opt.step({"w": weight}, {"w": weight.grad}, state, donate=True)
    assert given["w"] is weight
    assert (weight.data_ptr(), weight.is_leaf, weight.requires_grad) == (address, True, True)
    assert_same_bits(weight, new["w"])
    assert_same_bits(weight.grad, np.full(size, 2.0, np.float32))


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_leaves_in_any_memory_layout(compiled: bool, donate: bool) -> None:
    def runs(layout: Any) -> Any:
        rng = np.random.default_rng(0)
        opt = Optimizer(Adam(lr=0.1), compiled=compiled)
        p = {"w": layout(torch.from_numpy(rng.normal(size=(80, 90)))), "v": layout(torch.ones(3, 4))}
        state = opt.init(p)
        for _ in range(3):
            g = {k: layout(torch.from_numpy(rng.normal(size=x.shape)).to(x.dtype)) for k, x in p.items()}
            p, state = opt.step(p, g, state, donate=donate)
        return p

    plain = runs(lambda x: x)
    for layout in (lambda x: x.T.contiguous().T, lambda x: torch.stack([x, x], -1)[..., 0]):
        for path, x in runs(layout).items():
            assert_same_bits(x, plain[path], what=path)


def test_a_leaf_without_a_gradient_stays() -> None:
    p = {"w": torch.nn.Parameter(torch.ones(3)), "frozen": torch.nn.Parameter(torch.ones(2))}
    opt = Optimizer(Adam())
    new, state = opt.step(p, {"w": torch.ones(3), "frozen": None}, opt.init(p))
    assert new["frozen"] is p["frozen"]
    assert state["missed"] == {"frozen": 1}


def test_roots_are_correctly_rounded_and_differentiable() -> None:
    x = np.random.default_rng(0).random(100_003)
    for dtype in ("float16", "bfloat16", "float32", "float64"):
        a, b = NUMPY.from_numpy(x, dtype=dtype), TORCH.from_numpy(x, dtype=dtype)
        assert_same_bits(xp.sqrt(b), np.sqrt(a), what=dtype)
    x = torch.tensor([0.25, 1.0, 9.0], dtype=torch.float64)
    expected = 0.5 / np.sqrt(x.numpy())
    because = "one division"
    leaf = x.clone().requires_grad_()
    xp.sqrt(leaf).sum().backward()
    assert_close(leaf.grad, expected, rtol=3e-16, because=because)
    assert_close(torch.func.vmap(torch.func.grad(xp.sqrt))(x), expected, rtol=3e-16, because=because)
    second = torch.func.vmap(torch.func.grad(torch.func.grad(xp.sqrt)))(x)
    assert_close(second, -0.25 * x.numpy() ** -1.5, rtol=1e-15, because="a few roundings")
    assert torch.autograd.gradcheck(xp.sqrt, (leaf,))
    assert xp.sqrt(torch.tensor([-1.0, -0.0, math.inf])).tolist()[1:] == [0.0, math.inf]


def test_the_sign_of_a_zero_does_not_depend_on_its_position() -> None:
    for n in (1, 7, 8, 33):
        for dtype in (np.float32, np.float64):
            a, b = np.full(n, -0.0, dtype), np.full(n, 0.0, dtype)
            for x, y in ((a, b), (b, a)):
                for name in ("maximum", "minimum"):
                    got = getattr(xp, name)(torch.from_numpy(x), torch.from_numpy(y))
                    assert_same_bits(got, getattr(np, name)(x, y), what=f"{name} of {n}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_special_values(dtype: torch.dtype) -> None:
    x = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 2.5, 3.5, -0.5], dtype=dtype)
    host = TORCH.to_numpy(x).astype(np.float64)
    assert_same_bits(TORCH.to_numpy(xp.sign(x)).astype(np.float64), np.sign(host))
    assert_same_bits(TORCH.to_numpy(xp.round(x)).astype(np.float64), np.round(host))
    for bounds in ((-1.0, 3.0), (None, 0.0), (-math.inf, math.inf), (math.nan, None)):
        got = xp.clip(x, *bounds)
        assert got.dtype == dtype
        low, high = (y if y is not None else d for y, d in zip(bounds, (-math.inf, math.inf), strict=True))
        assert_close(TORCH.to_numpy(got), np.minimum(np.maximum(host, low), high), because="exact")
    assert math.isnan(xp.max(x))
    assert xp.argmax(x).item() == 0


def test_promotion_is_the_standards() -> None:
    zero_d = torch.tensor(1.0, dtype=torch.float64)
    assert xp.add(torch.ones(2), zero_d).dtype == torch.float64
    assert xp.where(torch.tensor(True), torch.ones(2), zero_d).dtype == torch.float64
    assert xp.result_type(torch.float16, torch.bfloat16) == torch.float32
    assert xp.result_type(torch.int8, torch.uint8) == torch.int16
    assert xp.add(torch.ones(2, dtype=torch.bfloat16), zero_d.to(torch.bfloat16)).dtype == torch.bfloat16
    third = xp.multiply(torch.ones(1, dtype=torch.bfloat16), 1 / 3)
    assert third.item() == torch.tensor(1 / 3, dtype=torch.bfloat16).item()
    assert xp.divide(torch.tensor([1, 2]), 2).tolist() == [0.5, 1.0]
    assert xp.sum(torch.ones(3, dtype=torch.int8)).dtype == torch.int64
    assert xp.sum(torch.tensor([True, True])).item() == 2
    assert xp.clip(torch.tensor([-5, 5], dtype=torch.int8), -math.inf, 3).tolist() == [-5, 3]


def test_shapes_and_indices() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    assert xp.max(x, axis=(0, 1), keepdims=True).shape == (1, 1)
    assert xp.sum(x, axis=()).tolist() == x.tolist()
    assert xp.sum(torch.tensor(2.0), axis=None, keepdims=True).shape == ()
    assert xp.sum(torch.zeros(0, 3), axis=0).tolist() == [0.0] * 3
    assert xp.argmax(x, keepdims=True).tolist() == [[5]]
    assert xp.argmax(torch.tensor([False, True])).item() == 1
    assert xp.take(x, torch.tensor([[-1, 0]], dtype=torch.int32), axis=1).shape == (2, 1, 2)
    assert xp.take(x, torch.tensor(-1)).item() == 5.0
    assert xp.take_along_axis(x, torch.tensor([[-1], [0]]), axis=1).tolist() == [[2.0], [3.0]]
    assert xp.concat([x, torch.tensor(9.0)], axis=None).shape == (7,)
    assert xp.expand_dims(x, axis=-1).shape == (2, 3, 1)


def test_asarray_keeps_what_it_is_given() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    assert xp.asarray(p) is p
    assert xp.asarray(p, dtype=torch.float64).requires_grad
    assert xp.asarray(p, copy=True) is not p
    fixed = np.ones(3, NUMPY.dtype("bfloat16"))
    fixed.flags.writeable = False
    assert xp.asarray(fixed).dtype == torch.bfloat16
    assert xp.asarray(np.arange(3.0)[::-1]).tolist() == [2.0, 1.0, 0.0]
    assert xp.asarray(True).dtype == torch.bool
    with pytest.raises(ValueError, match="copy=False"):
        xp.asarray(p, dtype=torch.float64, copy=False)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int8", "uint8", "bool"])
def test_to_numpy_and_back(dtype: str) -> None:
    host = np.array([[0, 1], [1, 3]]).astype(NUMPY.dtype(dtype))
    x = TORCH.from_numpy(host)
    assert TORCH.dtype_name(x) == dtype
    assert_same_bits(TORCH.to_numpy(x.T), host.T)
    host[0, 0] = 1
    assert not bool(x[0, 0])


def test_gradients_leave_the_parameters_alone() -> None:
    w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    w.grad = torch.ones(2)
    history = torch.ones(2, requires_grad=True) * 3.0
    params = {"layers": [{"w": w}, history], "unused": torch.ones(1), "none": None}

    def loss(xp: Any, p: Any, k: float) -> Any:
        return xp.sum(xp.multiply(xp.square(p["layers"][0]["w"]), k)) + xp.sum(p["layers"][1])

    with torch.no_grad():
        value, grads = TORCH.value_and_grad(loss)(params, 0.5)
    assert (value.item(), value.requires_grad, value.ndim) == (8.5, False, 0)
    assert grads["layers"][0]["w"].tolist() == [1.0, 2.0]
    assert grads["layers"][1].tolist() == [1.0, 1.0]
    assert grads["unused"].tolist() == [0.0]
    assert grads["none"] is None
    assert w.grad.tolist() == [1.0, 1.0]
    assert history.grad_fn is not None


def test_stop_gradient() -> None:
    _, grads = TORCH.value_and_grad(lambda xp, p: xp.sum(p["w"] * TORCH.stop_gradient(p["w"])))(
        {"w": torch.tensor([1.0, 2.0])}
    )
    assert grads["w"].tolist() == [1.0, 2.0]


def test_errors_say_what_is_wrong() -> None:
    with pytest.raises(InputError, match="device 'cuda:77' can't be used here; usable: 'cpu'"):
        TORCH.device("cuda:77")
    with pytest.raises(InputError, match="unknown dtype 'flaot32'; did you mean 'float32'"):
        TORCH.dtype("flaot32")
    with pytest.raises(InputError, match="dtype complex64"):
        TORCH.from_numpy(np.ones(1, np.complex64))
    with pytest.raises(InputError, match=r"parameter 'w' is torch\.int64; expected a floating"):
        TORCH.value_and_grad(lambda xp, p: p["w"])({"w": torch.tensor(1)})
    with pytest.raises(InputError, match="expected a 0-d array"):
        TORCH.value_and_grad(lambda xp, p: p["w"])({"w": torch.ones(3)})


def test_devices() -> None:
    assert TORCH.devices()[0] == "cpu"
    assert TORCH.device("cpu:0").type == "cpu"
    assert TORCH.device_name(TORCH.to_device(torch.ones(1), "cpu")) == "cpu"
    for name in TORCH.devices():
        assert TORCH.device_name(TORCH.from_numpy(np.ones(2), device=name)) == name


def test_placeholders_are_told_from_values() -> None:
    seen = []
    torch.vmap(lambda x: seen.append(TORCH.is_traced(x)) or x)(torch.ones(2))
    torch.func.grad(lambda x: seen.append(TORCH.is_traced(x)) or x)(torch.tensor(1.0))
    with torch._subclasses.FakeTensorMode():
        seen.append(TORCH.is_traced(torch.ones(1)))
    assert seen == [True, False, True]
    assert not TORCH.is_traced(torch.ones(1))
    assert TORCH.is_traced(torch.ones(1, device="meta"))


def test_a_step_under_vmap_is_the_step_of_each() -> None:
    opt = Optimizer(Adam(lr=0.1))
    state = opt.init({"w": torch.ones(3)})
    grads = torch.arange(6.0).reshape(2, 3)
    params = torch.ones(2, 3)
    both = torch.vmap(lambda p, g: opt.step({"w": p}, {"w": g}, state)[0]["w"])(params, grads)
    for i in range(2):
        alone, _ = opt.step({"w": params[i]}, {"w": grads[i]}, state)
        assert_same_bits(both[i], alone["w"])
