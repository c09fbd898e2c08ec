"""Models and losses, against closed forms and numeric gradients, on every backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyopt.backend.convert import convert
from polyopt.backend.protocol import Backend
from polyopt.core import tree
from polyopt.core.random import generator
from polyopt.models import losses
from polyopt.models.initializers import Glorot, Zeros
from polyopt.models.networks import MLP, MODELS, Linear, Model, Softmax
from polyopt.recipe import Recipe
from polyopt.testing import assert_close, assert_same_bits

N = 6
MADE: dict[str, Model] = {
    "linear": Linear(3, 1, Glorot(), Zeros()),
    "softmax": Softmax(3, 4, Glorot(), Zeros()),
    "relu": MLP(3, 4, Glorot(), Glorot(), hidden=(5, 7), activation="relu"),
    "tanh": MLP(3, 4, Glorot(), Glorot(), hidden=(5,), activation="tanh"),
    "no hidden layer": MLP(3, 4, Glorot(), Glorot(), hidden=()),
}


def samples(name: str) -> tuple[Any, Any]:
    draw = generator(0, name)
    x = draw.standard_normal((N, 3))
    y = draw.standard_normal((N, 1)) if name == "linear" else np.eye(4)[draw.integers(0, 4, N)]
    return x, y


def loss_of(name: str) -> Any:
    model = MADE[name]

    def loss(xp: Any, params: Any, x: Any, y: Any) -> Any:
        output = model.apply(xp, params, x)
        if name == "linear":
            return losses.mean_squared_error(xp, output, y)
        return losses.cross_entropy(xp, output, y, label_smoothing=0.1)

    return loss


def reference(name: str, params: dict[str, Any], x: Any, y: Any) -> float:
    """The loss by another route: sample by sample, in extended precision."""
    wide = {k: v.astype(np.longdouble) for k, v in params.items()}
    total = np.longdouble(0)
    for row, target in zip(x.astype(np.longdouble), y, strict=True):
        h = row
        depth = len([k for k in wide if k.endswith("weight")])
        for i in range(depth):
            prefix = f"layers.{i}." if "weight" not in wide else ""
            h = h @ wide[f"{prefix}weight"] + wide[f"{prefix}bias"]
            if i < depth - 1:
                h = np.tanh(h) if name == "tanh" else np.where(h > 0, h, 0)
        if name == "linear":
            total += ((h - target) ** 2).sum()
        else:
            q = target * 0.9 + 0.1 / 4
            total -= (q * (h - np.log(np.exp(h).sum()))).sum()
    return float(total / N)


@pytest.mark.parametrize("name", MADE)
def test_loss_and_gradients(backend: Backend, name: str) -> None:
    x, y = samples(name)
    host = MADE[name].init(0, "float64")
    params = convert(host, backend)
    value, grads = backend.value_and_grad(loss_of(name))(params, backend.from_numpy(x), backend.from_numpy(y))
    named = tree.named(host)
    assert_close(value, reference(name, named, x, y), rtol=1e-14, because="float64 sums of a few terms")
    step = 1e-6
    for path, grad in tree.named(grads).items():
        assert tuple(grad.shape) == named[path].shape
        numeric = np.zeros(named[path].shape)
        for i in np.ndindex(*numeric.shape):
            sides = []
            for sign in (1, -1):
                moved = {k: v.copy() for k, v in named.items()}
                moved[path][i] += sign * step
                sides.append(reference(name, moved, x, y))
            numeric[i] = (sides[0] - sides[1]) / (2 * step)
        assert_close(grad, numeric, atol=1e-8, because="central differences: 1e-16 / 1e-6 + 1e-12")


@pytest.mark.parametrize("name", MADE)
def test_initial_bits(name: str) -> None:
    """Each parameter's draw is keyed by its name: the same again, another for another seed."""
    a, b, c = (tree.named(MADE[name].init(seed, "float32")) for seed in (0, 0, 1))
    for path, value in a.items():
        assert value.dtype == np.float32
        assert_same_bits(b[path], value)
    assert any(not np.array_equal(c[path], value) for path, value in a.items())


def test_names() -> None:
    assert set(tree.named(MADE["tanh"].init(0, "float32"))) == {
        "layers.0.weight",
        "layers.0.bias",
        "layers.1.weight",
        "layers.1.bias",
    }
    assert set(MODELS) == {"linear", "softmax", "mlp"}


@pytest.mark.parametrize("name", MADE)
def test_features_end_with_the_bits_of_the_output(backend: Backend, name: str) -> None:
    model = MADE[name]
    params, x = (
        convert(model.init(0, "float32"), backend),
        backend.from_numpy(samples(name)[0], dtype="float32"),
    )
    features = model.features(backend.ops, params, x)
    hidden = getattr(model, "hidden", ())
    assert list(features) == [*(f"layers.{i}" for i in range(len(hidden))), "output"]
    assert [tuple(features[f"layers.{i}"].shape) for i in range(len(hidden))] == [(N, m) for m in hidden]
    assert_same_bits(features["output"], backend.to_numpy(model.apply(backend.ops, params, x)))


def test_cross_entropy_does_not_overflow(backend: Backend) -> None:
    logits = backend.from_numpy(np.array([[1e30, -1e30, 0.0], [-500.0, 500.0, 499.0]]))
    hot = backend.from_numpy(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    expected = np.log1p(np.exp(-1.0)) / 2
    found = backend.compile(losses.cross_entropy)(logits, hot)
    assert_close(found, expected, rtol=1e-14, because="one log and one exp")


def test_labels_and_rows_with_a_one_are_the_same(backend: Backend) -> None:
    labels = np.array([2, 0, 1], dtype=np.int32)
    logits = backend.from_numpy(generator(0).standard_normal((3, 3)))
    rows, numbers = backend.from_numpy(np.eye(3)[labels]), backend.from_numpy(labels)
    for function in (losses.cross_entropy, losses.accuracy):
        found = [backend.to_numpy(backend.compile(function)(logits, y)) for y in (rows, numbers)]
        assert_same_bits(found[0], found[1])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=20), st.integers(0, 99))
def test_accuracy_counts(labels: list[int], seed: int) -> None:
    logits = generator(seed).standard_normal((len(labels), 3))
    right = [int(row.argmax()) == y for row, y in zip(logits, labels, strict=True)]
    found = losses.accuracy(np, logits, np.array(labels))  # type: ignore[arg-type]
    assert_close(found, np.mean(right), rtol=1e-15, because="one division")


def test_relu_has_no_gradient_at_zero(backend: Backend) -> None:
    """Where the frameworks' own maxima have 0, 1/2 or 1."""
    model = MLP(1, 1, Zeros(), Zeros(), hidden=(2,))
    params = convert(model.init(0, "float64"), backend)
    params["layers"][1]["weight"] = backend.from_numpy(np.ones((2, 1)))

    def loss(xp: Any, params: Any, x: Any) -> Any:
        return xp.sum(model.apply(xp, params, x))

    _, grads = backend.value_and_grad(loss)(params, backend.from_numpy(np.ones((1, 1))))
    assert_same_bits(grads["layers"][0]["bias"], np.zeros(2))


@pytest.mark.parametrize("convention", ["paper", "torch", "keras"])
def test_fans_are_those_of_the_models_weights(convention: str) -> None:
    """A convention's own layout would take the fans of a (64, 16) weight the other way round."""
    table = {
        "data": {"name": "digits"},
        "model": {"name": "mlp", "hidden": [16], "init": {"name": "lecun", "convention": convention}},
        "optimizer": "adam",
        "train": {"epochs": 1},
    }
    from polyopt.models.datasets import load

    model = Recipe.from_dict(table).build_model(load("digits"))
    weight = tree.named(model.init(0, "float64"))["layers.0.weight"]
    assert weight.shape == (64, 16)
    assert_close(weight.std(), 1 / 8, rtol=0.1, because="1024 draws: a deviation of 1/√2048 = 2 %")
