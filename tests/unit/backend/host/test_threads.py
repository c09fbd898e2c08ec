"""Kernels on a framework's own threads."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import numpy as np
import pytest
from helpers.forks import child_of

from polyopt import Adam, ClipByGlobalNorm, Optimizer, chain
from polyopt.backend.host.threads import POOL, OpenMP, openmp
from polyopt.testing import assert_same_bits

torch = pytest.importorskip("torch")
pytest.importorskip("numba")
from polyopt_torch.cpu import memory  # noqa: E402

LINUX = sys.platform == "linux"
SIZES = (700, 300_001, 90_000)


def updated(threads: int) -> list[Any]:
    """Parameters after three clipped steps on so many of PyTorch's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rng = np.random.default_rng(0)
        params = {str(n): torch.from_numpy(rng.normal(size=n).astype("float32")) for n in SIZES}
        grads = {name: torch.sin(7 * x) for name, x in params.items()}
        optimizer = Optimizer(chain(ClipByGlobalNorm(max_norm=1.0), Adam(lr=0.1)), nonfinite="skip")
        state = optimizer.init(params)
        for _ in range(3):
            params, state = optimizer.step(params, grads, state, donate=True)
    finally:
        torch.set_num_threads(before)
    return [x.numpy() for x in params.values()]


def same(got: list[Any], expected: list[Any]) -> None:
    for x, y in zip(got, expected, strict=True):
        assert_same_bits(x, y)


@pytest.mark.skipif(not LINUX, reason="PyTorch runs on GCC's OpenMP on Linux alone")
def test_pytorchs_threads_are_found_and_have_the_bits_of_one_and_of_the_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert isinstance(memory._team(), OpenMP)
    alone = updated(1)
    for threads in (2, 3, 5):
        same(updated(threads), alone)
    monkeypatch.setattr(memory, "_team", lambda: POOL)
    same(updated(2), alone)


def test_threads_of_python_have_teams_of_their_own() -> None:
    expected, found = updated(1), {}
    many = [threading.Thread(target=lambda i=i: found.update({i: updated(2)})) for i in range(4)]
    for thread in many:
        thread.start()
    for thread in many:
        thread.join()
    for i in range(4):
        same(found[i], expected)


def test_a_library_that_is_not_loaded_or_has_other_threads_is_not_trusted() -> None:
    assert openmp(["libgomp-of-nobody.so.1"], lambda: 2) is POOL
    assert openmp(["libgomp.so.1"], lambda: 10_000) is POOL


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_does_not_wait_for_its_parents_threads() -> None:
    setup = (
        "import torch\n"
        "from polyopt import SGD, Optimizer\n"
        "torch.set_num_threads(2)\n"
        "o, p = Optimizer(SGD(lr=1.0)), torch.ones(1 << 20)"
    )
    assert child_of(setup) == "7"
