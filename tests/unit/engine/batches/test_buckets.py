"""Real batches of any size in arrays of few: the same update, and little is compiled."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from helpers.batch_problem import losses, problem
from hypothesis import given as examples
from hypothesis import strategies as st

import polyopt_numpy.ops as nops
from polyopt import SGD, Adam, Optimizer, convert, value_and_grad
from polyopt.backend.protocol import Backend
from polyopt.core import tree
from polyopt.core.errors import InputError
from polyopt.core.random import permutation
from polyopt.core.sample_weights import weighted_mean
from polyopt.distillation import SoftTargets
from polyopt.engine.batches import Batches, BatchSize, Buckets, IndexSampler, PaddedStep, RateByReportedSize
from polyopt.finetuning import split, trainable
from polyopt.models.losses import cross_entropy, mean_squared_error
from polyopt.schedules import Exponential
from polyopt.testing import assert_close, assert_same_bits
from polyopt.testing.compare import host

SUMS = "sums of at most 40 terms in another order: the padding adds zeros, and products of it, to them"
ROUNDING = {"float32": 2e-6, "float64": 1e-13}
"""Of one step, relative to the largest element: sums of 40 terms round by 40 half ulps at most."""


@examples(st.integers(1, 3000), st.integers(1, 64))
def test_powers_are_few_and_hold_every_size(largest: int, smallest: int) -> None:
    smallest = min(smallest, largest)
    buckets = Buckets.powers(largest, smallest)
    assert buckets.sizes[0] == smallest or buckets.sizes == (largest,)
    assert buckets.sizes[-1] == largest
    assert len(buckets.sizes) <= math.ceil(math.log2(largest / smallest)) + 1
    for n in range(1, largest + 1, max(1, largest // 50)):
        found = buckets(n)
        assert n <= found < max(2 * n, smallest + 1)
        assert all(size < n for size in buckets.sizes if size < found)


@examples(st.lists(st.integers(0, 99), min_size=1, max_size=20), st.integers(0, 5))
def test_padding_repeats_the_last_row(rows: list[int], room: int) -> None:
    found, counted = Buckets((len(rows) + room,)).pad(rows)
    assert found.tolist() == rows + [rows[-1]] * room
    assert counted.tolist() == [1.0] * len(rows) + [0.0] * room
    assert (found.dtype, counted.dtype) == (np.int32, np.float32)


# The mean of what counts


def test_a_weighted_mean_and_its_gradient(backend: Backend) -> None:
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=9), rng.uniform(0, 2, size=9)
    weights[[2, 7]], values[7] = 0.0, 50.0
    f = value_and_grad(weighted_mean)
    for dtype in ("float32", "float64"):
        mean, slope = f(backend.from_numpy(values), backend.from_numpy(weights, dtype=dtype))
        own = weights.astype(dtype).astype(np.float64)
        because = "nine terms in float64; float32 weights are summed in float32"
        rtol = 1e-14 if dtype == "float64" else 3e-7
        assert_close(mean, own @ values / own.sum(), rtol=rtol, because=because)
        assert_close(slope, own / own.sum(), rtol=rtol, because=because)
    infinite = backend.from_numpy(np.array([1.0, np.inf, np.nan, 2.0]))
    mean, slope = f(infinite, backend.from_numpy(np.array([1.0, 0.0, 0.0, 1.0])))
    assert_close(mean, 1.5, rtol=0, because="what has no weight does not count, whatever it is")
    assert_close(slope, [0.5, 0.0, 0.0, 0.5], rtol=0, because="exact")


def test_the_weights_of_300_bfloat16_losses_are_counted(backend: Backend) -> None:
    values = backend.from_numpy(np.ones(300, np.float32), dtype="bfloat16")
    mean = weighted_mean(backend.ops, values, backend.from_numpy(np.ones(300, np.float32)))
    assert backend.dtype_name(mean) == "bfloat16"
    assert_close(mean, 1.0, rtol=2.0**-7, because="the sum has eight bits; a count in them stops at 256")


@pytest.mark.full_for("float64")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_losses_take_weights(backend: Backend, dtype: str) -> None:
    rng = np.random.default_rng(1)
    z, v = rng.normal(size=(2, 7, 4)).astype(dtype)
    labels = rng.integers(0, 4, size=7).astype(np.int32)
    weights = np.array([1, 1, 0, 1, 0, 1, 1], np.float32)
    kept = np.flatnonzero(weights)
    given = [backend.from_numpy(x) for x in (z, v, labels, weights)]
    soft = SoftTargets(3.0, 0.7)
    for name, loss in {
        "cross-entropy": lambda xp, z, v, y, w: cross_entropy(xp, z, y, label_smoothing=0.1, weights=w),
        "squares": lambda xp, z, v, y, w: mean_squared_error(xp, z, v, weights=w),
        "soft targets": lambda xp, z, v, y, w: soft(xp, z, v, y, weights=w),
        "torch": lambda xp, z, v, y, w: SoftTargets(3.0, 0.7, convention="torch")(xp, z, v, y, weights=w),
    }.items():
        got, slope = value_and_grad(loss)(*given)
        few = [backend.from_numpy(x[kept]) for x in (z, v, labels)]
        want, few_slope = value_and_grad(loss)(*few, None)
        expected = np.zeros_like(z)
        expected[kept] = host(few_slope)
        rtol = ROUNDING[dtype]
        assert_close(got, host(want), rtol=rtol, because=f"{name}: {SUMS}")
        assert_close(slope, expected, rtol=rtol, atol=rtol, because=f"{name}: {SUMS}")


# The step


@pytest.mark.parametrize(("where", "dtype"), [("host", "float32"), ("device", "float64")])
def test_a_padded_batch_makes_the_update_of_the_batch_alone(backend: Backend, where: str, dtype: str) -> None:
    params, data = problem(backend, dtype, where)
    step = PaddedStep(losses, Optimizer(SGD(lr=1.0)), Buckets((4, 40)))
    # The batch alone on NumPy, where no size is compiled for.
    gradient = value_and_grad(lambda xp, p, x, y: xp.mean(losses(xp, p, x, y)))
    carry = step.init(params)
    for t, size in enumerate([1, 3, 5, 40]):
        start = convert(step.unload(carry)[0], "numpy")
        before = {path: p.copy() for path, p in tree.named(start).items()}
        rows = permutation(40, t)[:size]
        value, grads = gradient(start, *(host(a)[rows] for a in data))
        carry, loss = step(carry, data, rows)
        assert_close(loss, host(value), rtol=ROUNDING[dtype], because=SUMS)
        for path, p in tree.named(step.unload(carry)[0]).items():
            moved = before[path] - host(tree.named(grads)[path])
            largest = float(np.abs(moved).max())
            assert_close(p, moved, rtol=0, atol=ROUNDING[dtype] * largest, because=SUMS)


def compiled(backend: Backend, messages: list[str]) -> list[str]:
    """What JAX says that it compiled."""
    return [m.split(" with ")[0] for m in messages if m.startswith("Compiling")]


def test_as_much_is_compiled_as_there_are_buckets(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    traced: list[int] = []

    def watched(xp: Any, params: Any, x: Any, y: Any) -> Any:
        traced.append(int(x.shape[0]))
        return losses(xp, params, x, y)

    params, data = problem(backend, "float32", "device")
    buckets = Buckets.powers(40, 8)
    step = PaddedStep(watched, Optimizer(Adam(lr=0.05)), buckets)
    carry = step.init(params)
    if backend.name == "jax":
        import jax

        jax.config.update("jax_log_compiles", True)
    try:
        caplog.clear()
        for size in (1, 9, 7, 40, 17, 31, 12, 38, 8, 25):
            carry, _ = step(carry, data, range(size))
        assert set(traced) == set(buckets.sizes)
        found = Counter(compiled(backend, [r.getMessage() for r in caplog.records]))
        if backend.name == "jax":
            assert found
            assert max(found.values()) <= len(buckets.sizes), found
        if backend.name in ("jax", "tensorflow"):
            # On JAX each is looked at once before it is differentiated.
            assert len(traced) <= len(buckets.sizes) * (2 if backend.name == "jax" else 1)
        caplog.clear()
        traced.clear()
        for size in range(1, 41):
            carry, _ = step(carry, data, range(size))
        assert compiled(backend, [r.getMessage() for r in caplog.records]) == []
        assert not traced or backend.name in ("numpy", "torch")
    finally:
        if backend.name == "jax":
            jax.config.update("jax_log_compiles", False)
    assert step.unload(carry)[1]["step"] == 50


def test_a_run_of_growing_batches(backend: Backend) -> None:
    """Frozen leaves, a rate that follows the size and a resumed run, with the bits of the whole one."""
    params, data = problem(backend, "float32", "device")
    trained, frozen = split(params, r"layers\.0")
    batches = Batches(IndexSampler(40, seed=1), BatchSize(Exponential(4, rate=2.0, steps=5), maximum=32))
    step = PaddedStep(
        trainable(losses), Optimizer(SGD(lr=RateByReportedSize(0.1, base=8))), Buckets.powers(32, smallest=4)
    )

    def advance(carry: Any, first: int, last: int) -> Any:
        for t in range(first, last):
            rows = batches.batch(t)
            carry = step.observe(carry, len(rows), "size")
            carry, _ = step(carry, data, rows, shared=(frozen,))
        return carry

    whole, _ = step.unload(advance(step.init(trained), 0, 12))
    half = step.unload(advance(step.init(trained), 0, 5))
    resumed, state = step.unload(advance(step.load(*half), 5, 12))
    assert state["step"] == 12
    for path, p in tree.named(resumed).items():
        assert_same_bits(p, host(tree.named(whole)[path]), what=path)
    assert sorted(tree.named(whole)) == ["layers.1.bias", "layers.1.weight"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Buckets(()), r"sizes = \(\); expected a tuple of integers"),
        (lambda: Buckets((4, 4)), r"sizes\[1\] = 4 follows 4; expected a larger one"),
        (lambda: Buckets((0, 4)), r"sizes\[0\] = 0; expected an integer >= 1"),
        (lambda: Buckets.powers(4, 8), "largest = 4 is below smallest = 8"),
        (lambda: Buckets.powers(0), "largest = 0; expected an integer >= 1"),
        (lambda: Buckets((4, 8))(9), "a batch of 9 samples; expected 1 to 8"),
        (lambda: Buckets((4, 8)).pad([]), r"rows have shape \(0,\)"),
    ],
)
def test_bad_buckets_are_refused(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_bad_batches_are_refused_and_nothing_changes() -> None:
    from polyopt.backend import registry

    params, data = problem(registry.by_name("numpy"), "float64", "host")
    step = PaddedStep(losses, Optimizer(SGD(lr=0.1)), Buckets((4, 8)))
    carry = step.init(params)
    for rows, message in (
        (range(9), "a batch of 9 samples; expected 1 to 8"),
        ([], "PaddedStep: indices have shape"),
        ([0, 40], "PaddedStep: index 40 is out of range; expected 0 to 39"),
    ):
        with pytest.raises(InputError, match=message):
            step(carry, data, rows)
    mean = PaddedStep(lambda *a: losses(*a).mean(), Optimizer(SGD(lr=0.1)), Buckets((4,)))
    with pytest.raises(InputError, match=r"losses has shape \(\); expected one loss a sample, \(4,\)"):
        mean(mean.init(params), data, [0])
    with pytest.raises(InputError, match="weights have shape"):
        SoftTargets(2.0, 1.0)(nops, np.zeros((3, 2)), np.zeros((3, 2)), weights=np.ones(2))
    for path, p in tree.named(step.unload(carry)[0]).items():
        assert_same_bits(p, tree.named(params)[path], what=path)
