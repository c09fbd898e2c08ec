"""LoRA: adapters, gradients by them alone, merging and going back."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from polyopt import Adam, Optimizer, TrainStep, convert, value_and_grad
from polyopt.backend.protocol import Backend
from polyopt.core import tree
from polyopt.core.errors import InputError
from polyopt.finetuning import LoRA, unmerge
from polyopt.models.initializers import Constant, Glorot, He, Normal, Zeros
from polyopt.models.losses import cross_entropy
from polyopt.models.networks import MLP
from polyopt.testing import assert_close, assert_same_bits
from polyopt.testing.compare import host

MODEL = MLP(5, 3, Glorot(), Zeros(), hidden=(8, 6), activation="tanh")
LORA = LoRA([r"layers\.[01]\.weight$"], rank=2, alpha=3.0)
ADAPTED = ("layers.0.weight", "layers.1.weight")


def loss(xp: Any, params: Any, x: Any, y: Any) -> Any:
    return cross_entropy(xp, MODEL.apply(xp, params, x), y)


def problem(backend: Backend, dtype: str = "float64") -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(16, 5)), np.eye(3)[rng.integers(0, 3, size=16)]
    data = (backend.from_numpy(a, dtype=dtype) for a in (x, y))
    return convert(MODEL.init(0, dtype), backend), *data


@pytest.mark.parametrize("layout", ["in_out", "out_in"])
def test_adapters_are_the_same_bits_everywhere(backend: Backend, layout: str) -> None:
    params = convert({"w": np.ones((6, 4), np.float32), "b": np.ones(4, np.float32)}, backend)
    lora = LoRA("w", rank=3, alpha=1.0, layout=layout, initializer=Normal(stddev=0.02))
    adapters = lora.init(params, seed=5)
    assert sorted(tree.named(adapters)) == ["w.A", "w.B"]
    inputs, outputs = (6, 4) if layout == "in_out" else (4, 6)
    drawn = Normal(stddev=0.02).sample((inputs, 3), 5, "w.A", "float32")
    a, b = adapters["w"]["A"], adapters["w"]["B"]
    assert_same_bits(a, drawn if layout == "in_out" else drawn.T.copy())
    zeros = np.zeros((3, outputs), np.float32)
    assert_same_bits(b, zeros if layout == "in_out" else zeros.T.copy())
    default = LoRA("w", rank=3, alpha=1.0, layout=layout).init(params, seed=5, dtype="float64")["w"]["A"]
    drawn = He(distribution="normal", convention="paper").sample((inputs, 3), 5, "w.A", "float64")
    assert_same_bits(default, drawn if layout == "in_out" else drawn.T.copy())


def test_only_adapters_are_trained(backend: Backend) -> None:
    """Against the formula in float64 NumPy: ∂L/∂A = s·∂L/∂W·Bᵀ and ∂L/∂B = s·Aᵀ·∂L/∂W."""
    params, x, y = problem(backend)
    adapters = LORA.init(params, seed=3)
    start, _ = value_and_grad(loss)(params, x, y)
    value, grads = value_and_grad(LORA.loss(loss))(adapters, params, x, y)
    assert_close(value, host(start), rtol=1e-14, because="B is zero, so W is unchanged")
    assert sorted(tree.named(grads)) == [f"{path}.{k}" for path in ADAPTED for k in "AB"]
    rng = np.random.default_rng(2)
    moved = tree.map_leaves(lambda v: backend.from_numpy(rng.normal(size=tuple(v.shape))), adapters)
    _, grads = value_and_grad(LORA.loss(loss))(moved, params, x, y)
    whole = tree.named(convert(params, "numpy"))
    for path in ADAPTED:
        whole[path] = whole[path] + 1.5 * host(moved[path]["A"]) @ host(moved[path]["B"])
    numpy_params = tree.rename(convert(params, "numpy"), whole)
    _, expected = value_and_grad(loss)(numpy_params, host(x), host(y))
    for path in ADAPTED:
        g, a, b = tree.named(expected)[path], host(moved[path]["A"]), host(moved[path]["B"])
        because = "the chain rule, in float64"
        assert_close(grads[path]["A"], 1.5 * g @ b.T, rtol=1e-11, atol=1e-13, because=because)
        assert_close(grads[path]["B"], 1.5 * a.T @ g, rtol=1e-11, atol=1e-13, because=because)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_merging_and_going_back(backend: Backend, dtype: str) -> None:
    if backend.name == "numpy" and dtype == "bfloat16":
        dtype = "float16"
    kind: Any = {"bfloat16": ml_dtypes.bfloat16}.get(dtype, dtype)
    rng = np.random.default_rng(4)
    w = {"w": rng.normal(size=(7, 5)).astype(kind), "v": rng.normal(size=(5, 7)).astype(kind)}
    params = {k: backend.from_numpy(x) for k, x in w.items()}
    lora = LoRA(["^w$"], rank=2, alpha=1.0, scaling="rank_stabilized")
    ab = {"A": rng.normal(size=(7, 2)).astype(np.float32), "B": rng.normal(size=(2, 5)).astype(np.float32)}
    adapters = {"w": {k: backend.from_numpy(x) for k, x in ab.items()}}
    merged, originals = lora.merge(params, adapters)
    wide = {k: x.astype(np.float64) for k, x in ab.items()}
    expected = w["w"].astype(np.float64) + (1.0 / np.sqrt(2.0)) * (wide["A"] @ wide["B"])
    assert_same_bits(merged["w"], expected.astype(kind), what="rounded once")
    assert merged["v"] is params["v"]
    assert backend.device_name(merged["w"]) == backend.device_name(params["w"])
    back = unmerge(merged | {"v": merged["w"]}, originals)
    assert back["w"] is params["w"]
    assert back["v"] is merged["w"]
    assert_same_bits(back["w"], w["w"])


def test_layouts_are_transposes(backend: Backend) -> None:
    rng = np.random.default_rng(4)
    w, x = rng.normal(size=(7, 5)), rng.normal(size=(3, 7))
    out_in = LoRA("w", rank=2, alpha=4.0, layout="out_in")
    in_out = LoRA("w", rank=2, alpha=4.0)
    here, there = {"w": backend.from_numpy(w)}, {"w": backend.from_numpy(w.T.copy())}
    one, other = in_out.init(here, seed=1), out_in.init(there, seed=1)
    one["w"]["B"] = backend.from_numpy(np.ones((2, 5)))
    other["w"]["B"] = backend.from_numpy(np.ones((5, 2)))
    assert_same_bits(one["w"]["A"], host(other["w"]["A"]).T.copy())
    xp = backend.ops
    first = xp.matmul(backend.from_numpy(x), in_out.apply(xp, here, one)["w"])
    second = xp.matmul(backend.from_numpy(x), xp.matrix_transpose(out_in.apply(xp, there, other)["w"]))
    assert_close(first, host(second), rtol=1e-12, atol=1e-13, because="sums in another order, float64")


def test_it_trains_in_a_whole_step(backend: Backend) -> None:
    params, x, y = problem(backend, "float32")
    before = {k: np.array(host(v)) for k, v in tree.named(params).items()}
    step = TrainStep(LORA.loss(loss), Optimizer(Adam(lr=0.05)))
    carry = step.init(LORA.init(params, seed=0))
    losses = []
    for _ in range(30):
        carry, value = step(carry, params, x, y)
        losses.append(float(host(value)))
    assert losses[-1] < 0.7 * losses[0]
    adapters, state = step.unload(carry)
    assert sorted(state["slots"]["exp_avg"]) == [f"{path}.{k}" for path in ADAPTED for k in "AB"]
    for path, old in before.items():
        assert_same_bits(tree.named(params)[path], old, what=path)
    merged, originals = LORA.merge(params, adapters)
    value, _ = value_and_grad(loss)(merged, x, y)
    again, _ = value_and_grad(LORA.loss(loss))(adapters, params, x, y)
    assert_close(value, host(again), rtol=2e-6, because="W + sAB in float32, or rounded once from double")
    for path, x in tree.named(unmerge(merged, originals)).items():
        assert_same_bits(x, before[path], what=path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank = 0; expected an integer >= 1"),
        ({"rank": True}, "rank = True"),
        ({"alpha": 0.0}, "alpha = 0.0; expected a finite number above 0"),
        ({"alpha": float("inf")}, "alpha = inf"),
        ({"layout": "inout"}, "layout = 'inout'; did you mean 'in_out'"),
        ({"scaling": "peper"}, "scaling = 'peper'; did you mean 'paper'"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LoRA(**({"patterns": ["w"], "rank": 1, "alpha": 1.0} | options))


def test_what_can_not_be_adapted_is_named() -> None:
    params = {"weight": np.ones((3, 2)), "bias": np.ones(2), "none": None}
    with pytest.raises(InputError, match=r"'bias' has shape \(2,\); expected two axes"):
        LoRA("s$", 1, 1.0).init(params)
    with pytest.raises(InputError, match="'none' has shape None"):
        LoRA("none", 1, 1.0).init(params)
    with pytest.raises(InputError, match=r"rank = 3 for leaf 'weight' of shape \(3, 2\)"):
        LoRA("weight", 3, 1.0).init(params)
    with pytest.raises(InputError, match="'wieght' matches no parameter; did you mean 'weight'"):
        LoRA("wieght", 1, 1.0).init(params)
    adapters = LoRA("weight", 1, 1.0, initializer=Constant(1.0)).init(params)
    with pytest.raises(InputError, match="adapted leaf 'wieght' is no parameter; did you mean 'weight'"):
        LoRA("weight", 1, 1.0).merge(params, {"wieght": adapters["weight"]})


@pytest.mark.parametrize(
    ("lora", "adapter", "found"),
    [
        (LoRA("w", 1, 1.0, layout="out_in"), {"A": (3, 1), "B": (1, 3)}, r"\(3, 1\), \(1, 3\)"),
        (LoRA("w", 1, 1.0), {"A": (1, 1), "B": (1, 3)}, r"\(1, 1\), \(1, 3\)"),
        (LoRA("w", 2, 1.0), {"A": (3, 1), "B": (1, 3)}, r"\(3, 1\), \(1, 3\)"),
        (LoRA("w", 1, 1.0), {"A": (3, 1)}, r"\(3, 1\), None"),
    ],
)
def test_adapters_are_not_broadcast(lora: LoRA, adapter: Any, found: str) -> None:
    params = {"w": np.ones((3, 3))}
    adapters = {"w": {name: np.ones(shape) for name, shape in adapter.items()}}
    for call in (lambda: lora.apply(np, params, adapters), lambda: lora.merge(params, adapters)):
        with pytest.raises(InputError, match=rf"adapters A, B of leaf 'w' have the shapes {found}; expected"):
            call()
