"""Host arrays that a framework takes over: without a copy where they are large, and nobody is surprised."""

from __future__ import annotations

import mmap
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from polyopt import convert
from polyopt.backend.host.buffers import ALIGNMENT, HUGE, LARGE, _Pages, aligned, copied, donate_host_array
from polyopt.backend.protocol import Backend
from polyopt.testing import assert_same_bits

DTYPES = ["bool", "int8", "uint8", "float16", "bfloat16", "float32", "float64"]


def drawn(dtype: str, shape: tuple[int, ...]) -> Any:
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    x = aligned(shape, kind)
    x[...] = np.random.default_rng(3).integers(0, 2 if dtype == "bool" else 100, shape).astype(kind)
    return x


@pytest.mark.parametrize("shape", [(), (3,), (0, 4), (2, 3, 5), (600, 1000)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_adopted_has_the_same_bits(backend: Backend, dtype: str, shape: tuple[int, ...]) -> None:
    x = drawn(dtype, shape)
    before = x.copy()
    made = donate_host_array(backend, x, backend.from_numpy(np.zeros(2, np.float32), device="cpu"))
    assert backend.is_array(made)
    assert backend.dtype_name(made) == dtype
    assert backend.device_name(made) == "cpu"
    assert_same_bits(backend.to_numpy(made), before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_aligned_array_is_not_copied(backend: Backend, dtype: str) -> None:
    x = drawn(dtype, (600, 1000))
    made = donate_host_array(backend, x, backend.from_numpy(np.zeros(2, np.float32), device="cpu"))
    assert backend.to_numpy(made).ctypes.data == x.ctypes.data


@pytest.mark.parametrize("size", [20, LARGE])
def test_one_that_is_not_aligned_is_taken_too(backend: Backend, size: int) -> None:
    """And computed with: TensorFlow's kernels end the process where memory is not aligned."""
    like, xp = backend.from_numpy(np.zeros(2, np.float32), device="cpu"), backend.ops
    for skipped in (1, 2, 4, 8):
        x, mask = aligned((size,), np.float32)[skipped:], aligned((size,), np.bool_)[skipped:]
        x[:], mask[:] = 2.0, True
        made, kept = donate_host_array(backend, x, like), donate_host_array(backend, mask, like)
        doubled = xp.where(kept, xp.add(made, made), made)
        assert_same_bits(backend.to_numpy(doubled), np.full(x.shape, 4.0, np.float32))


def test_a_backend_without_the_method_gets_a_copy(backend: Backend) -> None:
    class Older:
        device_name, from_numpy = backend.device_name, backend.from_numpy

    like = backend.from_numpy(np.zeros(2, np.float32))
    older: Any = Older()
    x = drawn("int8", (600, 1000))
    before = x.copy()
    made = donate_host_array(older, x, like)
    x[:] = 0
    assert_same_bits(backend.to_numpy(made), before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("of", [lambda x: x, lambda x: x.T, lambda x: x[::-1, 1:]])
def test_a_copy_is_the_callers_alone(backend: Backend, dtype: str, of: Any) -> None:
    """``from_numpy`` may hand its own copy over, never the caller's memory."""
    x = drawn(dtype, (600, 1000))
    before = of(x).copy()
    made = backend.from_numpy(of(x))
    x[...] = 0
    assert_same_bits(backend.to_numpy(made), before)


def test_what_is_computed_of_an_adopted_array_leaves_it_alone(backend: Backend) -> None:
    x = aligned((LARGE,), np.float32)
    x[:] = 1.0
    made = donate_host_array(backend, x, backend.from_numpy(np.zeros(2, np.float32), device="cpu"))
    xp = backend.ops
    twice = backend.compile(lambda xp, a: xp.multiply(a, 2.0))(made)
    assert_same_bits(backend.to_numpy(xp.add(made, made)), backend.to_numpy(twice))
    assert_same_bits(backend.to_numpy(made), np.full(LARGE, 1.0, np.float32))
    del made
    assert_same_bits(backend.to_numpy(twice), np.full(LARGE, 2.0, np.float32))


def test_copies_are_aligned_where_large() -> None:
    for shape in ((LARGE,), (700, 701)):
        x = copied(np.ones(shape), np.float32)
        assert x.ctypes.data % ALIGNMENT == 0
        assert x.dtype == np.float32
        assert x.flags.c_contiguous
    assert copied([[1, 2]], None).tolist() == [[1, 2]]
    assert convert({"w": np.ones(3)}, "numpy")["w"].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="huge pages are Linux's")
def test_large_memory_is_used_again_when_nothing_holds_it() -> None:
    _Pages.free.clear()
    shape = (HUGE // 4 + 5, 2)
    first = aligned(shape, np.float32)
    place = first.ctypes.data
    assert place % HUGE == 0
    part = first[3:]
    part[:] = 7.0
    del first
    second = aligned(shape, np.float32)
    assert second.ctypes.data != place, "a view holds it"
    second[:] = 1.0
    assert (part == 7.0).all()
    del part
    assert len(_Pages.free) == 1
    assert aligned(shape, np.float32).ctypes.data == place
    # Of what is free so much is kept and no more.
    for held in [[aligned((HUGE * k,), np.uint8) for _ in range(4)] for k in (1, 3, 9)]:
        held.clear()
        assert sum(map(len, _Pages.free)) <= 1 << 26
    assert _Pages.free
