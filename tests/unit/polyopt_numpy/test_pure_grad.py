"""Recorded losses have the bits of autograd's gradients, and what can't be recorded runs as ever."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from polyopt import SGD, Optimizer, TrainStep, value_and_grad
from polyopt.core import tree
from polyopt.core.errors import InputError
from polyopt.models import losses
from polyopt.models.initializers import Constant
from polyopt.models.networks import MLP, relu
from polyopt.testing import assert_same_bits, conform
from polyopt_numpy import differentiable as xp
from polyopt_numpy import grad
from polyopt_numpy.backend import NumpyBackend
from polyopt_numpy.pure_grad import SIGNATURES, PureGradient
from polyopt_numpy.tape import Tape

BF16 = NumpyBackend().dtype("bfloat16")
CALLS = 4
"""Two that are compared with autograd, and two of the tape alone."""


def assert_replays(loss: Callable[..., Any], params: Any, *args: Any) -> None:
    """Assert that a tape serves the loss, with the bits of autograd, whatever the values."""
    pure, eager = PureGradient(loss), grad.value_and_grad(loss)
    random = np.random.default_rng(0)
    got: Any = None
    for call in range(CALLS):
        got, wanted = pure(params, *args), eager(params, *args)
        for (path, a), b in zip(tree.named(got).items(), tree.named(wanted).values(), strict=True):
            assert (type(a), a.dtype) == (type(b), b.dtype), f"call {call}, {path}"
            assert_same_bits(a, b)
        params = tree.map_leaves(lambda x: (x + random.integers(-1, 2, x.shape)).astype(x.dtype), params)
    assert [type(t) for t in pure._tapes.values()] == [Tape]


X = np.array([[0.0, -0.0, 2.0], [1.0, 1.0, -3.0]])
SPECIAL = np.array([[np.inf, -np.inf, np.nan], [0.0, 1e-40, 1e38]])
Y = np.array([[1.0, 0.5, 2.0], [1.0, 2.0, 0.0]])

OPS: dict[str, Callable[[Any, Any], Any]] = {
    "add": xp.add,
    "operators": lambda x, y: (x + y) * 2.0 - x / (y + 3.0) - -x,
    "powers": lambda x, y: x**2 + (xp.abs(x) + 1.0) ** y + xp.pow(xp.square(x), 1.5),
    "extrema": lambda x, y: xp.maximum(x, y) + xp.minimum(x, 0.0) + xp.max(x, axis=0) * xp.min(y, axis=0),
    "relu": lambda x, y: relu(xp, x) * y,
    "rounding": lambda x, y: x * xp.round(y) + xp.sign(x) + xp.floor(x) * y,
    "clip": lambda x, y: xp.clip(x, -1.0, 1.0) * y,
    "where": lambda x, y: xp.where(xp.greater(x, y), x * y, xp.zeros_like(x)),
    "roots": lambda x, y: xp.sqrt(xp.abs(x)) + xp.log1p(xp.abs(y)) + xp.expm1(x) + xp.tanh(y),
    "divide": lambda x, y: xp.divide(x, y) + xp.log(x),
    "softmax": lambda x, y: xp.log_softmax(x) * y,
    "sums": lambda x, y: xp.sum(x, axis=1, keepdims=True) + xp.mean(y, axis=0) + xp.mean(x),
    "products": lambda x, y: xp.matmul(x, xp.matrix_transpose(y))[:, :1] * x,
    "shapes": lambda x, y: xp.permute_dims(xp.reshape(x, (3, 2)), (1, 0)) + xp.broadcast_to(y[0], (2, 3)),
    "concat": lambda x, y: xp.concat([x, y])[1:3] + xp.stack([x[0], y[1]]) + xp.concat([x, y], axis=None)[2],
    "take": lambda x, y: xp.take(x, np.array([1, 1, 0]), axis=1) * y,
    "take_along_axis": lambda x, y: xp.take_along_axis(x, xp.argmax(y, axis=1)[:, None], axis=1) * y,
    "elements": lambda x, y: x[0] * x[0] + x[1] + y[:, 1:2] + x[0, 0],
    "casts": lambda x, y: (
        xp.astype(xp.astype(x, xp.float64) * 0.1, y.dtype) + xp.astype(xp.greater(x, y), y.dtype)
    ),
    "asarray": lambda x, y: xp.asarray([x[0, 0], 2.0])[0] * xp.asarray(y),
    "one twice": lambda x, y: x + x + x + y,
}


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("values", [X, SPECIAL], ids=["ties", "special"])
@pytest.mark.parametrize("name", OPS)
def test_every_operation_is_replayed_with_its_bits(name: str, values: Any, dtype: str) -> None:
    kind = NumpyBackend().dtype(dtype)
    with np.errstate(all="ignore"):
        params = {"x": values.astype(kind), "y": Y.astype(kind), "left out": None}
    assert_replays(lambda xp, p: xp.sum(OPS[name](p["x"], p["y"])), params)
    assert_replays(lambda xp, p, y: xp.sum(OPS[name](p["x"], y)), {"x": params["x"]}, params["y"])


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("target", ["labels", "rows", "smoothed", "weighted", "numbers"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_networks_and_losses(activation: str, target: str, dtype: str) -> None:
    kind = NumpyBackend().dtype(dtype)
    model = MLP(5, 4, Constant(0.0), Constant(0.0), hidden=(64, 3), activation=activation)
    random = np.random.default_rng(1)
    draw = lambda *shape: random.standard_normal(shape).astype(kind)  # noqa: E731
    params = tree.map_leaves(lambda x: draw(*x.shape), model.init(0, "float32"))
    x, labels = draw(48, 5), random.integers(0, 4, 48)
    weights = (random.random(48) > 0.3).astype(kind) if target == "weighted" else None
    y = np.eye(4)[labels].astype(kind) if target in ("rows", "numbers") else labels
    function: Any = losses.mean_squared_error if target == "numbers" else losses.cross_entropy
    more = {"label_smoothing": 0.1} if target == "smoothed" else {}

    def loss(xp: Any, p: Any, x: Any, y: Any, w: Any) -> Any:
        return function(xp, model.apply(xp, p, x), y, weights=w, **more)

    assert_replays(loss, params, x, y, weights)


class Checked(NumpyBackend):
    """NumPy whose every gradient is asked of a tape and compared."""

    def __init__(self) -> None:
        self.tapes = self.losses = 0

    def value_and_grad(self, loss: Any, *, compiled: bool = True) -> Any:
        pure, eager = PureGradient(loss), grad.value_and_grad(loss)

        def run(params: Any, *args: Any) -> Any:
            wanted = eager(params, *args)
            for _ in range(CALLS):
                got = pure(params, *args)
            for a, b in zip(tree.named(got).values(), tree.named(wanted).values(), strict=True):
                assert_same_bits(a, b)
            self.losses += 1
            self.tapes += any(isinstance(t, Tape) for t in pure._tapes.values())
            return got

        return run


@pytest.mark.parametrize("check", ["distillation", "quantization", "finetuning"])
def test_the_kit_holds_and_all_its_losses_are_replayed(check: str) -> None:
    backend = Checked()
    report = conform(backend, quick=True, checks=[check])
    assert report.ok, [row for row in report.rows if row.outcome == "failed"]
    assert backend.tapes == backend.losses > 0


# What a caller relies on


def _quadratic(xp: Any, p: Any, x: Any) -> Any:
    return xp.sum(xp.square(p["w"] - x))


def served(*args: Any, loss: Any = _quadratic) -> PureGradient:
    """A loss whose tape is trusted for these arguments."""
    pure = PureGradient(loss)
    for _ in range(CALLS):
        pure(*args)
    assert [type(t) for t in pure._tapes.values()] == [Tape]
    return pure


def test_results_are_new_arrays() -> None:
    params, x = {"w": np.ones(3), "v": np.ones(2)}, np.zeros(3)
    pure = served(params, x)
    _, first = pure(params, x)
    kept = {name: g.copy() for name, g in first.items()}
    pure(params, x + 5.0)
    for name, g in first.items():
        assert_same_bits(g, kept[name])
        g += 1.0  # zeros for what the loss doesn't depend on, too
    _, again = pure(params, x)
    for name, g in again.items():
        assert_same_bits(g, kept[name])


def test_gradients_share_no_memory() -> None:
    params = {"a": np.ones(3), "b": np.ones(3)}
    pure = served(params, np.ones(3), loss=lambda xp, p, x: xp.sum((p["a"] + p["b"]) * x))
    _, g = pure(params, np.ones(3))
    assert not np.shares_memory(g["a"], g["b"])


def test_changes_in_place_and_other_shapes_are_seen() -> None:
    params, x = {"w": np.ones(3)}, np.zeros(3)
    pure = served(params, x)
    params["w"] *= 2.0
    assert float(pure(params, x)[0]) == 12.0
    x += 1.0
    assert float(pure(params, x)[0]) == 3.0
    assert float(pure(params, np.zeros((2, 3)))[0]) == 24.0
    assert float(pure({"w": np.ones(6)[::2]}, x)[0]) == 0.0  # other strides
    with pytest.raises(InputError, match="'w' is int64"):
        pure({"w": np.ones(3, int)}, x)


def test_an_error_is_that_of_the_loss() -> None:
    def loss(xp: Any, p: Any, rows: Any) -> Any:
        return xp.sum(xp.take(p["w"], rows, axis=0))

    pure = served({"w": np.ones((3, 2))}, np.array([0, 2]), loss=loss)
    with pytest.raises(IndexError, match="index 7 is out of bounds"):
        pure({"w": np.ones((3, 2))}, np.array([0, 7]))
    assert float(pure({"w": np.ones((3, 2))}, np.array([0, 2]))[0]) == 4.0


def _branch(xp: Any, p: Any, x: Any) -> Any:
    return xp.sum(p["w"]) if float(xp.sum(x)) > 0.0 else xp.sum(xp.square(p["w"]))


def _mask(xp: Any, p: Any, x: Any) -> Any:
    return xp.sum(p["w"][x > 0.0])


def _caught(xp: Any, p: Any, x: Any) -> Any:
    try:
        sign = 1.0 if x[0] > 0 else -1.0
    except Exception:
        sign = 5.0
    return xp.sum(p["w"]) * sign


def _asarray(xp: Any, p: Any, x: Any) -> Any:
    return xp.sum(p["w"] * np.asarray(x))


def _in_place(xp: Any, p: Any, x: Any) -> Any:
    x = x * 1.0
    x += 1.0
    return xp.sum(p["w"] * x)


@pytest.mark.parametrize("loss", [_branch, _mask, _caught, _asarray, _in_place])
def test_what_looks_at_values_runs_as_ever(loss: Any, caplog: pytest.LogCaptureFixture) -> None:
    pure, eager = PureGradient(loss), grad.value_and_grad(loss)
    params = {"w": np.array([1.0, 2.0])}
    with caplog.at_level(logging.DEBUG, "polyopt"):
        for sign in (1.0, -1.0, 1.0, -1.0, -1.0):
            got, wanted = pure(params, np.full(2, sign)), eager(params, np.full(2, sign))
            assert_same_bits(got[0], wanted[0])
            assert_same_bits(got[1]["w"], wanted[1]["w"])
    assert len(caplog.records) == 1
    assert loss.__name__ in caplog.text


def test_a_random_loss_is_found_out() -> None:
    random = np.random.default_rng(0)
    pure = PureGradient(lambda xp, p: xp.sum(p["w"] * random.standard_normal(3)))
    values = {float(pure({"w": np.ones(3)})[0]) for _ in range(6)}
    assert len(values) == 6
    assert list(pure._tapes.values()) == [None]


def test_a_number_that_changes_at_each_call_is_bounded() -> None:
    pure = PureGradient(lambda xp, p, rate: xp.sum(p["w"]) * rate)
    for i in range(3 * SIGNATURES):
        assert float(pure({"w": np.ones(2)}, float(i))[0]) == 2.0 * i
    assert len(pure._tapes) == SIGNATURES


def test_minus_zero_is_another_number() -> None:
    pure = PureGradient(lambda xp, p, x: xp.sum(xp.divide(p["w"], x)))
    for x in (0.0, -0.0) * CALLS:
        assert float(pure({"w": np.ones(1)}, x)[0]) == (-np.inf if np.signbit(x) else np.inf)


def test_threads_have_buffers_of_their_own() -> None:
    def loss(xp: Any, p: Any, x: Any) -> Any:
        return xp.sum(xp.tanh(xp.matmul(x, p["w"])))

    params = {"w": np.linspace(-1.0, 1.0, 64 * 64).reshape(64, 64)}
    pure = served(params, np.ones((64, 64)), loss=loss)
    inputs = [np.full((64, 64), 0.01 * i) for i in range(8)]
    wanted = [grad.value_and_grad(loss)(params, x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: pure(params, inputs[i % 8]), range(200)))
    for i, (value, g) in enumerate(found):
        assert_same_bits(value, wanted[i % 8][0])
        assert_same_bits(g["w"], wanted[i % 8][1]["w"])


def test_memory_does_not_grow() -> None:
    params, x = {"w": np.ones(3)}, np.zeros(3)
    pure = served(params, x)
    (tape,) = pure._tapes.values()
    for _ in range(50):
        pure(params, x)
    assert isinstance(tape, Tape)
    assert len(tape._idle) == 1


def test_it_is_pickled_without_its_tapes() -> None:
    pure = served({"w": np.ones(3)}, np.zeros(3))
    again = pickle.loads(pickle.dumps(pure))
    assert again._tapes == {}
    assert float(again({"w": np.ones(3)}, np.zeros(3))[0]) == 3.0


def test_purity_is_promised_by_a_training_step_and_by_name_alone() -> None:
    factor = [1.0]

    def loss(xp: Any, p: Any) -> Any:
        return xp.sum(p["w"]) * factor[0]

    plain, pure = value_and_grad(loss), value_and_grad(loss, pure=True)
    step = TrainStep(loss, Optimizer(SGD(lr=0.0)))
    anew = TrainStep(loss, Optimizer(SGD(lr=0.0), compiled=False))
    carry, other = step.init({"w": np.ones(2)}), anew.init({"w": np.ones(2)})
    for _ in range(CALLS):
        pure({"w": np.ones(2)})
        carry, _ = step(carry)
    factor[0] = 3.0
    assert float(plain({"w": np.ones(2)})[0]) == 6.0
    assert float(pure({"w": np.ones(2)})[0]) == 2.0
    assert float(step(carry)[1]) == 2.0
    assert float(anew(other)[1]) == 6.0
