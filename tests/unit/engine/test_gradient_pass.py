"""Gradients are read once for all that is asked of them, and in one compiled pass in host memory."""

from __future__ import annotations

from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyopt import AdamW, ClipByGlobalNorm, Optimizer, chain
from polyopt.backend.host import numba_kernel, sum_squares
from polyopt.backend.host.threads import Pool
from polyopt.backend.protocol import Backend
from polyopt.core import reductions
from polyopt.core.errors import NonFiniteError
from polyopt.engine.gradient_pass import GradientPass
from polyopt.testing import assert_close, assert_same_bits
from polyopt_numpy import ops as NUMPY
from polyopt_numpy.lift import NumpyMemory
from polyopt_torch.cpu.memory import TorchMemory

SIZES = [0, 1, 7, 8, 9, 63, 65, 1000, reductions.LARGE - 1, reductions.LARGE, 70_001, 2 * reductions.JOINED]


def reference(arrays: Any, scale: float) -> Any:
    """Op by op."""
    kind = arrays[0].dtype.type
    return reductions._sum_squares(NUMPY, arrays, reductions.packed(NUMPY, arrays), kind(scale))


@given(sizes=st.lists(st.sampled_from(SIZES), min_size=1, max_size=6), wide=st.booleans(), big=st.booleans())
@settings(deadline=None, max_examples=40)
def test_the_compiled_pass_has_the_bits_of_the_definition(sizes: list[int], wide: bool, big: bool) -> None:
    pytest.importorskip("numba")
    rng = np.random.default_rng(sum(sizes))
    arrays = [rng.normal(size=n).astype("float64" if wide else "float32") for n in sizes]
    scale = 2.0**-20 if big else 1.0
    for memory, own in ((NumpyMemory(), arrays), (TorchMemory(), [_tensor(x) for x in arrays])):
        total = sum_squares.sum_squares(memory, own, scale)
        assert_same_bits(total, reference(arrays, scale), what=f"{sizes}")


def _tensor(x: Any) -> Any:
    import torch

    return torch.from_numpy(x)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_bits_are_the_same_at_any_number_of_threads(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numba")
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=n).astype("float32") for n in (1_500_001, 30, 400_000, *[1000] * 300)]
    monkeypatch.setattr(Pool, "size", lambda self: threads)
    total = sum_squares.sum_squares(NumpyMemory(), arrays, 1.0)
    assert_same_bits(total, reference(arrays, 1.0))


def test_what_the_compiled_pass_cannot_take() -> None:
    x = np.ones((40, 30), np.float32)
    for bad in (x.T, x[:, ::2], x.astype(np.float16), x.astype(ml_dtypes.bfloat16), x.astype(np.float64)):
        assert sum_squares.sum_squares(NumpyMemory(), [x, bad], 1.0) is None


def test_without_numba_the_bits_are_the_same(monkeypatch: pytest.MonkeyPatch, backend: Backend) -> None:
    arrays = [np.linspace(-1, 1, n, dtype=np.float32) for n in (50_000, 10, 3000)]
    own = [backend.from_numpy(x) for x in arrays]

    def norm() -> Any:
        return backend.compile(lambda xp, x: reductions.root_sum_squares(xp, x)[0], exact=True)(own)

    found = norm()
    monkeypatch.setattr(numba_kernel, "_numba", lambda: None)
    assert_same_bits(norm(), found)


def parts(backend: Backend, bad: float | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    rng = np.random.default_rng(3)
    shapes = {"a": (5, 3), "b": (40_000,), "c": ()}
    params = {n: np.asarray(rng.normal(size=s), np.float32) for n, s in shapes.items()}
    grads = {n: np.asarray(rng.normal(size=s) * 9, np.float32) for n, s in shapes.items()}
    if bad is not None:
        grads["b"][17] = bad
    return (
        {n: backend.from_numpy(x) for n, x in params.items()},
        {n: backend.from_numpy(x) for n, x in grads.items()},
    )


@pytest.mark.parametrize("compiled", [True, False])
def test_skipping_and_clipping_read_once(backend: Backend, compiled: bool) -> None:
    """The bits of clipping alone, and the rule is told the norm that the check had to take in any case."""
    params, grads = parts(backend)
    rule = chain(ClipByGlobalNorm(1.0), AdamW(lr=0.1))
    found = []
    for policy in ("propagate", "skip"):
        opt = Optimizer(rule, nonfinite=policy, compiled=compiled)  # type: ignore[arg-type]
        with mock.patch.object(GradientPass, "norm", autospec=True, side_effect=GradientPass.norm) as asked:
            found.append(opt.step(params, grads, opt.init(params)))
        assert asked.call_count == (policy == "skip")
        if policy == "skip":
            reading, leaves, dtype = asked.call_args.args
            assert reading.norm(leaves, dtype) is not None
            assert reading.norm(leaves[1:], dtype) is None
            assert reading.norm(leaves, "float64") is None
    for name in params:
        assert_same_bits(found[1][0][name], found[0][0][name], what=name)


@pytest.mark.parametrize(
    "rule", [chain(ClipByGlobalNorm(1.0), AdamW(lr=0.1)), AdamW(lr=0.1)], ids=["clipped", "plain"]
)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_is_seen(backend: Backend, rule: Any, bad: float) -> None:
    params, grads = parts(backend, bad)
    skip = Optimizer(rule, nonfinite="skip")
    state = skip.init(params)
    after, same = skip.step(params, grads, state)
    assert same is state
    for name in params:
        assert_same_bits(after[name], params[name], what=name)
    with pytest.raises(NonFiniteError, match="'b'"):
        Optimizer(rule, nonfinite="raise").step(params, grads, state)


def test_large_is_not_infinite(backend: Backend) -> None:
    """Squares that overflow are no reason to skip."""
    params, _ = parts(backend)
    grads = {n: backend.ops.full_like(x, 1e38) for n, x in params.items()}
    for rule in (ClipByGlobalNorm(1.0), AdamW(lr=0.5, weight_decay=0.0)):
        opt = Optimizer(rule, nonfinite="skip")
        _, state = opt.step(params, grads, opt.init(params))
        assert state["step"] == 1


def test_a_norm_of_some_gradients_is_not_that_of_all(backend: Backend) -> None:
    from polyopt import SGD, partition

    params, grads = parts(backend)
    rule = partition({"a": chain(ClipByGlobalNorm(1.0), SGD(lr=1.0)), ".*": SGD(lr=1.0)})
    opt = Optimizer(rule, nonfinite="skip")
    updates, _ = opt.update(grads, opt.init(params), params)
    norm = reductions.root_sum_squares(NUMPY, [np.asarray(backend.to_numpy(updates["a"]))])[0]
    assert_close(norm, np.float32(1.0), rtol=1e-6, because="a few float32 roundings")
