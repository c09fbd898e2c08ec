"""Losses and metrics: what is left out, labels that are no class, and what a loss must return."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import polyopt_numpy.ops as nops
from polyopt import SGD, Optimizer, TrainStep, value_and_grad
from polyopt.backend.protocol import Backend
from polyopt.core.errors import InputError
from polyopt.models.losses import accuracy, cross_entropy, mean_squared_error
from polyopt.testing import assert_close

LOGITS = np.array([[1.0, 3.0, -2.0], [0.5, 0.0, 0.25], [2.0, -1.0, 0.0]])
ROUNDING = "float64 roundings of sums of three terms"


def host(backend: Backend, x: Any) -> Any:
    return np.asarray(backend.to_numpy(x))


def log_softmax(z: Any) -> Any:
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def test_ignored_labels_count_nothing(backend: Backend) -> None:
    labels = np.array([0, -100, 2], np.int32)
    z, y = backend.from_numpy(LOGITS), backend.from_numpy(labels)
    expected = -(log_softmax(LOGITS)[0, 0] + log_softmax(LOGITS)[2, 2]) / 2
    got = cross_entropy(backend.ops, z, y, ignore_index=-100)
    assert_close(host(backend, got), np.array(expected), rtol=1e-14, because=ROUNDING)
    share = accuracy(backend.ops, z, y, ignore_index=-100)
    assert_close(host(backend, share), np.array(0.0), atol=0, because="neither is right, exactly")


def test_smoothing_does_not_pull_an_ignored_sample(backend: Backend) -> None:
    labels = backend.from_numpy(np.array([0, -1, 2], np.int32))

    def loss(xp: Any, z: Any, y: Any) -> Any:
        return cross_entropy(xp, z, y, ignore_index=-1, label_smoothing=0.3)

    _, g = value_and_grad(loss)(backend.from_numpy(LOGITS), labels)
    assert not host(backend, g)[1].any()


@pytest.mark.parametrize("metric", [cross_entropy, accuracy])
@pytest.mark.parametrize("wrong", [-100, -1, 3])
def test_a_label_that_is_no_class_is_named(backend: Backend, metric: Any, wrong: int) -> None:
    labels = backend.from_numpy(np.array([0, 1, wrong], np.int32))
    with pytest.raises(InputError, match=rf"label of sample 2 is {wrong}; expected 0 to 2, or ignore_index"):
        metric(backend.ops, backend.from_numpy(LOGITS), labels)


@pytest.mark.parametrize("name", ["tensorflow", "jax"])
def test_inside_of_a_compiled_function_it_is_nan(name: str) -> None:
    from conftest import load

    backend = load(name)
    y = backend.from_numpy(np.array([0, 1, 3], np.int32))
    run = backend.compile(lambda xp, z, y: (cross_entropy(xp, z, y), accuracy(xp, z, y)))
    for x in run(backend.from_numpy(LOGITS), y):
        assert np.isnan(host(backend, x))


def test_labels_of_samples_without_weight_may_be_anything(backend: Backend) -> None:
    labels = backend.from_numpy(np.array([0, 1, 77], np.int32))
    weights = backend.from_numpy(np.array([1.0, 3.0, 0.0]))
    got = cross_entropy(backend.ops, backend.from_numpy(LOGITS), labels, weights=weights)
    expected = -(log_softmax(LOGITS)[0, 0] + 3 * log_softmax(LOGITS)[1, 1]) / 4
    assert_close(host(backend, got), np.array(expected), rtol=1e-14, because=ROUNDING)


def test_a_guess_of_class_0_is_not_right_for_an_unknown_label(backend: Backend) -> None:
    z = backend.from_numpy(np.array([[1.0, 0.0]]))
    with pytest.raises(InputError, match="label of sample 0 is -100"):
        accuracy(backend.ops, z, backend.from_numpy(np.array([-100], np.int32)))


@given(
    data=st.data(),
    n=st.integers(1, 4),
    kind=st.sampled_from(["labels", "probabilities", "numbers"]),
)
@settings(deadline=None, max_examples=60)
def test_samples_without_weight_change_neither_loss_nor_gradient(data: Any, n: int, kind: str) -> None:
    """Whatever they hold: the same as the batch without them."""
    anything = st.sampled_from([0.0, -1.5, 1e300, np.inf, -np.inf, np.nan])
    weights = np.array([*data.draw(st.lists(st.sampled_from([0.0, 0.5, 2.0]), min_size=n, max_size=n)), 1.0])
    z = np.array(
        data.draw(
            st.lists(st.lists(st.floats(-5, 5), min_size=2, max_size=2), min_size=n + 1, max_size=n + 1)
        )
    )
    y = np.array([[0.25, 0.75]] * (n + 1))
    labels = np.array([i % 2 for i in range(n + 1)])
    for i in np.flatnonzero(weights == 0):
        z[i] = data.draw(st.tuples(anything, anything))
        y[i] = data.draw(st.tuples(anything, anything))
        labels[i] = data.draw(st.integers(-200, 200))
    target = labels if kind == "labels" else y
    which = mean_squared_error if kind == "numbers" else cross_entropy

    def loss(xp: Any, z: Any, y: Any, w: Any) -> Any:
        return which(xp, z, y, weights=w)

    kept = weights > 0
    with np.errstate(all="raise"):
        value, g = value_and_grad(loss)(z, target, weights)
        wanted, slope = value_and_grad(loss)(z[kept], target[kept], weights[kept])
    assert_close(np.asarray(value), np.asarray(wanted), rtol=1e-14, because="sums with zeros among them")
    assert not g[~kept].any()
    assert_close(g[kept], slope, rtol=1e-13, atol=1e-15, because="sums with zeros among them")


BAD: dict[str, tuple[Any, str]] = {
    "float": (lambda xp, p: 1.0, "a float"),
    "none": (lambda xp, p: None, "None"),
    "pair": (lambda xp, p: (xp.sum(p), xp.sum(p)), "a tuple"),
    "integer": (lambda xp, p: xp.sum(xp.astype(p, xp.int32)), "an array of dtype int"),
    "bool": (lambda xp, p: xp.all(xp.isfinite(p)), "an array of dtype bool"),
    "vector": (lambda xp, p: p, r"an array of shape \(3,\)"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("compiled", [False, True])
def test_what_is_no_loss_is_refused_alike(backend: Backend, kind: str, compiled: bool) -> None:
    loss, found = BAD[kind]
    message = f"the loss returned {found}.*; expected a 0-d array of a floating dtype"
    p = backend.from_numpy(np.ones(3))
    with pytest.raises(InputError, match=message):
        value_and_grad(loss, compiled=compiled)(p)
    step = TrainStep(lambda xp, tree: loss(xp, tree["w"]), Optimizer(SGD(lr=0.1)))
    carry = step.init({"w": p})
    with pytest.raises(InputError, match=message):
        step(carry)


def test_log_softmax_of_nothing_likely_is_finite() -> None:
    z = np.array([[0.0, 0.0, -np.inf]])
    got = cross_entropy(nops, z, np.array([0]))
    assert_close(np.asarray(got), np.log(2.0), rtol=1e-15, because="one logarithm")


N, C = 3, 3
FLOATS, INTS = np.arange(3.0), np.arange(3, dtype=np.int32)
SHAPES: dict[str, tuple[Any, tuple[Any, ...], Any, str]] = {
    "a column": (
        mean_squared_error,
        (FLOATS[:, None], FLOATS),
        None,
        r"shape \(3, 1\) and the target \(3,\)",
    ),
    "a row": (mean_squared_error, (FLOATS, FLOATS[None]), None, r"shape \(3,\) and the target \(1, 3\)"),
    "fewer": (mean_squared_error, (FLOATS, FLOATS[:1]), None, r"the target \(1,\); expected the same"),
    "columns of labels": (cross_entropy, (LOGITS, FLOATS[:, None]), None, r"the target \(3, 1\)"),
    "fewer labels": (cross_entropy, (LOGITS, INTS[:1]), None, r"\(3, 3\), for labels of shape \(1,\)"),
    "floating labels": (
        cross_entropy,
        (LOGITS, FLOATS),
        None,
        "cross_entropy: the labels have dtype float64",
    ),
    "floating labels of a metric": (
        accuracy,
        (LOGITS, FLOATS),
        None,
        "accuracy: the labels have dtype float64",
    ),
    "columns of a metric": (accuracy, (LOGITS, FLOATS[:, None]), None, r"the target \(3, 1\)"),
    "a weight": (mean_squared_error, (FLOATS, FLOATS), FLOATS[:1], r"weights have shape \(1,\); .*\(3,\)"),
    "a column of weights": (cross_entropy, (LOGITS, INTS), FLOATS[:, None], r"weights have shape \(3, 1\)"),
    "weights of probabilities": (cross_entropy, (LOGITS, LOGITS), FLOATS[:2], r"weights have shape \(2,\)"),
    "weights of a metric": (accuracy, (LOGITS, INTS), FLOATS[None], r"weights have shape \(1, 3\)"),
    "whole weights": (
        mean_squared_error,
        (FLOATS, FLOATS),
        INTS,
        "weights have dtype .*int32; expected a float",
    ),
}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("which", SHAPES)
def test_nothing_is_broadcast_in_silence(backend: Backend, which: str, compiled: bool) -> None:
    function, values, weights, message = SHAPES[which]
    first, second = (backend.from_numpy(x) for x in values)
    extra = () if weights is None else (backend.from_numpy(weights),)

    def loss(xp: Any, z: Any, y: Any, *w: Any) -> Any:
        return function(xp, z, y, weights=w[0] if w else None)

    if function is accuracy:
        run = backend.compile(loss) if compiled else lambda *args: loss(backend.ops, *args)
    else:
        run = value_and_grad(loss, compiled=compiled)
    with pytest.raises(InputError, match=message):
        run(first, second, *extra)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_sample_of_nan_is_wrong(backend: Backend, compiled: bool) -> None:
    logits = np.array([[np.nan, 0.0], [0.0, np.nan], [0.0, 1.0], [np.nan, np.nan]])
    for target in (np.array([0, 1, 1, 0], np.int32), np.eye(2)[[0, 1, 1, 0]]):
        z, y = backend.from_numpy(logits), backend.from_numpy(target)
        run = backend.compile(accuracy) if compiled else lambda *args: accuracy(backend.ops, *args)
        assert_close(host(backend, run(z, y)), np.array(0.25), atol=0, because="one of four, exactly")


@pytest.mark.parametrize("compiled", [False, True])
def test_a_loss_of_another_frameworks_number_is_refused(backend: Backend, compiled: bool) -> None:
    if backend.name == "numpy":
        pytest.skip("it is NumPy's own")
    with pytest.raises(InputError, match=r"the loss returned an array of numpy; expected a 0-d array"):
        value_and_grad(lambda xp, z: np.float32(1.0), compiled=compiled)(backend.from_numpy(LOGITS))
