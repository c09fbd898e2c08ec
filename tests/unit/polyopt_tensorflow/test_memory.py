"""Eager tensors as host memory: written in place where nothing else holds them, and only there."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest

import polyopt as po
from polyopt import Optimizer, chain
from polyopt.backend.registry import by_name
from polyopt.core.rule import Stage
from polyopt.testing import assert_same_bits
from polyopt.testing.whole_checks import SHAPES

tf = pytest.importorskip("tensorflow")
pytest.importorskip("numba")
host = pytest.importorskip("polyopt_tensorflow.memory")

RULES: dict[str, Stage] = {
    "adam": po.Adam(lr=0.01),
    "clipped": chain(po.ClipByGlobalNorm(0.5), po.NAdam(lr=0.01), po.EMA(0.9)),
    "momentum": po.SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
}


def own(shape: tuple[int, ...], value: float = 1.0, dtype: Any = None) -> Any:
    """A tensor that nothing else has a part of."""
    return tf.raw_ops.Fill(dims=list(shape), value=tf.constant(value, dtype or tf.float32))


def address(x: Any) -> int:
    return int(np.asarray(x).ctypes.data)


def stepped(params: dict[str, Any], *, times: int = 1) -> dict[str, Any]:
    optimizer = Optimizer(po.SGD(lr=0.5))
    state = optimizer.init(params)
    grads = {name: tf.ones_like(x) for name, x in params.items()}
    for _ in range(times):
        params, state = optimizer.step(params, grads, state, donate=True)
    return params


def test_there_is_a_survey_here() -> None:
    """The rest of this file would show nothing without one."""
    assert host.host_kernels()
    assert by_name("tensorflow").whole(lambda xp, p: p, lambda *_: None) is None


def test_a_tensor_alone_is_written_in_place() -> None:
    given = own((4, 3))
    before = address(given)
    moved = stepped({"w": given})["w"]
    assert moved is given
    assert address(moved) == before
    assert_same_bits(moved, np.full((4, 3), 0.5, np.float32))


@pytest.mark.parametrize("how", ["reshape", "identity", "numpy view", "variable", "slice"])
def test_memory_that_something_else_holds_is_not_written(how: str) -> None:
    given = own((4, 3))
    holders = {
        "reshape": lambda x: tf.reshape(x, (12,)),
        "identity": tf.identity,
        "numpy view": np.asarray,
        "variable": tf.Variable,
        "slice": lambda x: tf.split(x, 2)[1],
    }
    other = holders[how](given)
    moved = stepped({"w": given})["w"]
    assert_same_bits(moved, np.full((4, 3), 0.5, np.float32))
    seen = other.numpy() if hasattr(other, "numpy") else other
    assert_same_bits(seen, np.ones(seen.shape, np.float32), what=how)
    # Once that is gone, what polyopt made is its own: from now on it is in place.
    after = address(moved)
    again = stepped({"w": moved})["w"]
    assert address(again) == after


def test_memory_of_numpy_is_not_written() -> None:
    theirs = np.ones((256, 16), np.float32)
    given = tf.constant(theirs)
    moved = stepped({"w": given}, times=3)["w"]
    assert_same_bits(theirs, np.ones((256, 16), np.float32))
    assert_same_bits(moved, np.full((256, 16), -0.5, np.float32))


def test_many_tensors_that_share_memory_are_not_compiled_one_by_one() -> None:
    """XLA took minutes for a thousand leaves of many shapes, at the first step."""
    from polyopt_tensorflow.lift import TensorFlowLift

    shared = [np.ones((64, 1 + i % 7), np.float32) for i in range(300)]
    with mock.patch.object(TensorFlowLift, "_by_xla", side_effect=AssertionError("compiled by XLA")):
        moved = stepped({f"{i}": tf.constant(x) for i, x in enumerate(shared)}, times=2)
    assert_same_bits(moved["6"], np.zeros((64, 7), np.float32))
    assert_same_bits(shared[6], np.ones((64, 7), np.float32))


def test_a_cached_scalar_is_not_written() -> None:
    """TensorFlow hands out one handle for equal Python numbers."""
    given, twin = tf.constant(2.0), tf.constant(2.0)
    stepped({"w": given})
    assert_same_bits(tf.constant(2.0), np.float32(2.0))
    assert_same_bits(twin, np.float32(2.0))


def test_without_donation_nothing_is_written() -> None:
    given = {"w": own((3,))}
    optimizer = Optimizer(po.SGD(lr=0.5))
    moved, _ = optimizer.step(given, {"w": own((3,))}, optimizer.init(given))
    assert_same_bits(given["w"], np.ones(3, np.float32))
    assert_same_bits(moved["w"], np.full(3, 0.5, np.float32))


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "xla"])
@pytest.mark.parametrize("donate", [True, False], ids=["donated", "kept"])
@pytest.mark.parametrize("name", RULES)
def test_bits(name: str, donate: bool, kernels: bool) -> None:
    """NumPy's op by op: with the kernels, and by XLA where there are none."""
    rng = np.random.default_rng(0)
    start = {str(i): rng.normal(size=shape).astype(np.float32) for i, shape in enumerate(SHAPES)}
    start["wide"] = rng.normal(size=(5, 3))  # float64
    grads = [{k: np.asarray(np.cos(x * i), x.dtype) for k, x in start.items()} for i in (1, 2, 3)]
    backend = by_name("tensorflow")

    def run(place: Any, compiled: bool) -> Any:
        optimizer = Optimizer(RULES[name], compiled=compiled)
        params = {k: place(x) for k, x in start.items()}
        state = optimizer.init(params)
        for i in range(6):
            given = {k: place(x) for k, x in grads[i % 3].items()}
            params, state = optimizer.step(params, given, state, donate=donate)
        return params, state["slots"]

    expected, expected_slots = run(np.array, False)
    off = mock.patch.object(host, "_survey", return_value=None)
    with off if not kernels else mock.MagicMock():
        found, slots = run(backend.from_numpy, True)
    for key, x in found.items():
        assert_same_bits(x, expected[key], what=key)
    for slot, values in slots.items():
        for key, x in values.items():
            assert_same_bits(x, expected_slots[slot][key], what=f"{slot} of {key}")


def test_float16_leaves_go_by_xla_and_keep_their_dtype() -> None:
    given = {"w": own((3,), dtype=tf.float16)}
    moved = stepped(given)["w"]
    assert moved.dtype == tf.float16
    assert_same_bits(moved, np.full(3, 0.5, np.float16))


def test_inside_a_graph_it_joins_the_graph() -> None:
    optimizer = Optimizer(po.SGD(lr=0.5))
    state = optimizer.init({"w": own((3,))})

    @tf.function(autograph=False)
    def move(x: Any) -> Any:
        return optimizer.step({"w": x}, {"w": tf.ones_like(x)}, state)[0]["w"]

    given = own((3,))
    assert_same_bits(move(given), np.full(3, 0.5, np.float32))
    assert_same_bits(given, np.ones(3, np.float32))


def test_a_handle_that_is_not_as_known_means_no_survey() -> None:
    host._survey.cache_clear()
    try:
        for wrong in (OSError, AttributeError, ValueError):
            with mock.patch.object(host, "_functions", side_effect=wrong):
                assert host._survey() is None
            host._survey.cache_clear()
        with mock.patch.object(host, "_BUFFER", 24):
            assert host._survey() is None
    finally:
        host._survey.cache_clear()
    assert host._survey() is not None
