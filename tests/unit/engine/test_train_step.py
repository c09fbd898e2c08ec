"""Whole training steps: the bits of ``Optimizer.step`` for the same gradients, made in whichever way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest

import polyopt as po
from polyopt import Optimizer, TrainStep, chain, partition
from polyopt.backend.convert import convert
from polyopt.backend.protocol import Backend
from polyopt.backend.registry import by_name
from polyopt.core import tree
from polyopt.core.errors import InputError, NonFiniteError
from polyopt.core.rule import Stage
from polyopt.engine.packing import SMALL
from polyopt.engine.stepping import Buffers, Leaves, Whole
from polyopt.testing import assert_same_bits
from polyopt.testing.whole_checks import whole_step

RULES: dict[str, Stage] = {
    "adam": po.AdamW(lr=po.Cosine(0.01, 20), weight_decay=0.1),
    "clipped": chain(po.ClipByGlobalNorm(0.1), po.NAdam(lr=0.01), po.EMA(0.9)),
    "leafwise": chain(po.ClipByNorm(0.1), po.SGD(lr=0.1, momentum=0.9)),
    "parted": partition({r"b$": po.SGD(lr=0.1), r"^head": None, r".*": po.Adam(lr=0.01)}),
}
WAYS = {"numpy": Leaves, "torch": Leaves, "jax": Whole, "tensorflow": Buffers}


def parameters() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shapes = {"embed": (SMALL // 8 + 1, 8), "head": (4, 2), "scale": ()}
    made: dict[str, Any] = {k: np.asarray(rng.normal(size=s), np.float32) for k, s in shapes.items()}
    made["layers"] = [
        {"w": rng.normal(size=(3, 4)).astype(np.float32), "b": rng.normal(size=4).astype(np.float32)}
        for _ in range(3)
    ]
    return made


def loss(xp: Any, params: Any, k: Any) -> Any:
    """Its gradient is k·p: exact for a power of two k, however it is computed."""
    total = None
    for x in tree.named(params).values():
        part = xp.sum(xp.square(x)) * 0.5
        total = part if total is None else total + part
    return total * k


def number(backend: Backend, value: float) -> Any:
    return backend.from_numpy(np.float32(value))


def same(backend: Backend, a: Any, b: Any) -> None:
    first, second = tree.named(a), tree.named(b)
    assert first.keys() == second.keys()
    for path, x in first.items():
        if backend.is_array(x):
            assert_same_bits(backend.to_numpy(x), backend.to_numpy(second[path]), what=path)
        else:
            assert x == second[path], path


@pytest.fixture(params=["numpy", "torch", "tensorflow", "jax", "tensorflow without kernels"])
def stepping(request: pytest.FixtureRequest) -> Iterator[tuple[Backend, type]]:
    """A backend, and the way in which its steps are made."""
    name = request.param.split()[0]
    backend = by_name(name)
    if name == request.param:
        if name == "tensorflow":
            pytest.importorskip("numba")
        yield backend, WAYS[name]
        return
    with mock.patch("polyopt_tensorflow.memory._survey", return_value=None):
        yield backend, Whole


@pytest.mark.full_for("without kernels")
@pytest.mark.parametrize("name", RULES)
def test_bits_of_gradient_and_step(stepping: tuple[Backend, type], name: str) -> None:
    backend, way = stepping
    rule, start = RULES[name], parameters()
    step = TrainStep(loss, Optimizer(rule))
    carry = step.init(convert(start, backend))
    assert type(carry.way) is way
    optimizer = Optimizer(rule)
    params = convert(start, backend)
    state = optimizer.init(params)
    for k in (1.0, 0.5, 2.0, 1.0):
        carry, value = step(carry, number(backend, k))
        grads = tree.map_leaves(lambda x, k=k: backend.ops.multiply(x, number(backend, k)), params)
        assert np.isfinite(float(backend.to_numpy(value)))
        params, state = optimizer.step(params, grads, state)
    found, found_state = step.unload(carry)
    same(backend, found, params)
    same(backend, found_state, state)


def test_what_was_unloaded_stays_as_it_was_and_loads_again(stepping: tuple[Backend, type]) -> None:
    backend, _ = stepping
    step = TrainStep(loss, Optimizer(RULES["clipped"]))
    given = convert(parameters(), backend)
    carry = step.init(given)
    carry, _ = step(carry, number(backend, 1.0))
    params, state = step.unload(carry)
    kept = {path: np.array(backend.to_numpy(x)) for path, x in tree.named(params).items()}
    carry, _ = step(carry, number(backend, 0.5))
    for path, x in tree.named(params).items():
        assert_same_bits(backend.to_numpy(x), kept[path], what=path)
    for path, x in tree.named(given).items():
        assert_same_bits(backend.to_numpy(x), tree.named(parameters())[path], what=path)
    other = step.load(params, state)
    other, _ = step(other, number(backend, 0.5))
    same(backend, step.unload(other)[0], step.unload(carry)[0])
    same(backend, step.unload(other)[1], step.unload(carry)[1])


def test_a_step_that_is_skipped_leaves_no_trace(stepping: tuple[Backend, type]) -> None:
    backend, _ = stepping
    step = TrainStep(loss, Optimizer(RULES["clipped"], nonfinite="skip"))
    carry = step.init(convert(parameters(), backend))
    ks = (1.0, np.inf, 0.5, np.nan, np.inf, 2.0)
    for k in ks:
        carry, _ = step(carry, number(backend, k))
    other = step.init(convert(parameters(), backend))
    for k in ks:
        if np.isfinite(k):
            other, _ = step(other, number(backend, k))
    same(backend, step.unload(carry)[0], step.unload(other)[0])
    same(backend, step.unload(carry)[1], step.unload(other)[1])
    assert step.unload(carry)[1]["step"] == 3


def test_schedules_that_wait_are_told(stepping: tuple[Backend, type]) -> None:
    backend, _ = stepping
    step = TrainStep(loss, Optimizer(po.SGD(lr=po.Plateau(0.5, factor=0.5, patience=1))))
    carry = step.init({"w": backend.from_numpy(np.ones(3, np.float32))})
    for metric in (1.0, 1.0, 1.0, 1.0):
        carry, _ = step(carry, number(backend, 1.0))
        carry = step.observe(carry, metric)
    rate = step.optimizer.hyperparameters(step.unload(carry)[1])["lr"]
    assert rate < 0.5, rate


def test_what_must_be_known_leaf_by_leaf_is_not_packed(stepping: tuple[Backend, type]) -> None:
    backend, _ = stepping
    step = TrainStep(loss, Optimizer(po.SGD(lr=0.1), nonfinite="raise"))
    carry = step.init(convert(parameters(), backend))
    assert type(carry.way) is Leaves
    with pytest.raises(NonFiniteError, match="embed"):
        step(carry, number(backend, np.inf))


def test_a_state_that_lacks_a_leaf_is_refused(stepping: tuple[Backend, type]) -> None:
    backend, way = stepping
    step = TrainStep(loss, Optimizer(po.Adam()))
    params = convert(parameters(), backend)
    state = step.optimizer.init(params)
    del state["slots"]["exp_avg"]["layers.1.w"]
    with pytest.raises(InputError, match=r"exp_avg.*layers\.1\.w"):
        step(step.load(params, state), number(backend, 1.0))
    assert way is not None


def test_whole_steps_on_tensorflow_without_kernels() -> None:
    """The kit asks for them where there are some: with kernels there are none."""
    from polyopt.testing.case import Context

    backend = by_name("tensorflow")
    with mock.patch("polyopt_tensorflow.memory._survey", return_value=None):
        assert whole_step(Context(backend)) is None
