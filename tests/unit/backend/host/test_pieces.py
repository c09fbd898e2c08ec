"""Work that threads share: the same results, whoever does it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import warnings
from typing import Any

import numpy as np
import pytest

from polyopt.backend.host import threads as host_threads
from polyopt.backend.host.threads import POOL, Pool
from polyopt.core.errors import InputError
from polyopt.pruning import magnitude_masks, pruned, score_masks
from polyopt.quantization import Cast, Integer, quantize, to_arrays
from polyopt.testing import assert_same_bits


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two, however few elements and cores there are."""
    monkeypatch.setattr(host_threads, "THREADED", 1)
    monkeypatch.setattr(Pool, "size", lambda self: 2)


@pytest.mark.usefixtures("threads")
def test_results_come_in_the_order_of_the_pieces() -> None:
    who = set()

    def work(k: int) -> int:
        who.add(threading.get_ident())
        time.sleep(0.002 * (k % 3))
        return k * k

    assert POOL.each(work, range(30), 30) == [k * k for k in range(30)]
    assert len(who) == 2


def test_few_elements_are_left_to_the_caller() -> None:
    assert POOL.each(lambda _: threading.get_ident(), range(9), 1000) == [threading.get_ident()] * 9
    assert POOL.each(len, [], 0) == []


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("wrong", [0, 7, 19])
def test_what_a_piece_raises_is_raised(wrong: int) -> None:
    def work(k: int) -> int:
        time.sleep(0.001)
        return 1 // (k - wrong)

    with pytest.raises(ZeroDivisionError):
        POOL.each(work, range(20), 20)
    assert POOL.each(len, ["a", "bc"], 3) == [1, 2]


@pytest.mark.usefixtures("threads")
def test_threads_treat_overflow_as_the_caller_does() -> None:
    large = np.full(4, 3e38, np.float32)
    barrier = threading.Barrier(2)

    def work(k: int) -> Any:
        barrier.wait(10)
        return large * large

    with warnings.catch_warnings(), np.errstate(over="ignore"):
        warnings.simplefilter("error")
        assert all(np.isinf(x).all() for x in POOL.each(work, range(2), 2))


FORK = """
import os
from polyopt.backend.host import threads
from polyopt.backend.host.threads import POOL, Pool

threads.THREADED, Pool.size = 1, lambda self: 2
assert POOL.each(abs, range(9), 9) == list(range(9))
child = os.fork()
assert POOL.each(abs, range(9), 9) == list(range(9))
if child:
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_the_child_of_a_fork_has_threads_of_its_own() -> None:
    # In a process of its own: JAX warns of forks where it is loaded.
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=60)


SCHEMES: list[Integer | Cast] = [
    Integer(),
    Integer(symmetric=False),
    Integer(per="tensor", symmetric=False),
    Integer(layout="out_in"),
    Integer(convention="torch"),
    Integer(convention="keras"),
    Integer(convention="tensorflow", symmetric=False),
    Integer(bits=4, per="group", group_size=10),
    Cast(),
    Cast("float16"),
]


def weights() -> dict[str, Any]:
    draw = np.random.default_rng(2)
    return {
        "fine": draw.normal(size=(700, 600)).astype(np.float32),
        "coarse": np.round(draw.normal(size=(100, 900)), 1),
        "narrow": draw.normal(size=(30000, 10)).astype(np.float16),
    }


def computed() -> dict[str, Any]:
    params = weights()
    masks = magnitude_masks(params, 0.8, scope="global")
    sparse = pruned(params, masks)
    found = {f"mask {p}": x for p, x in masks.items()}
    found |= {f"leaf {p}": x for p, x in magnitude_masks(params, 0.5).items()}
    found |= {f"score {p}": x for p, x in score_masks(params, 0.3).items()}
    found |= {f"sparse {p}": x for p, x in sparse.items()}
    for i, scheme in enumerate(SCHEMES):
        found |= {f"{i} {p}": x for p, x in to_arrays(quantize(sparse, scheme))[0].items()}
    return found


def test_masks_codes_and_scales_have_the_same_bits_by_two_threads(request: pytest.FixtureRequest) -> None:
    alone = computed()
    request.getfixturevalue("threads")
    shared = computed()
    assert list(shared) == list(alone)
    for name, x in alone.items():
        assert_same_bits(shared[name], x)


@pytest.mark.usefixtures("threads")
def test_the_first_leaf_that_holds_nan_is_named() -> None:
    params = weights()
    for name in ("narrow", "fine"):
        params[name][0, 0] = np.nan
        with pytest.raises(InputError, match=f"'{name}' holds NaN"):
            magnitude_masks(params, 0.5, scope="global")
