"""Large host arrays that are given up to a framework, in memory that it can take without a copy.

XLA and TensorFlow take a host array as it is where it begins at a multiple of 64 bytes; NumPy's own begin at
one of 16, and a large one nearly never at one of 64.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, ClassVar, TypeAlias

import numpy as np

from polyopt.backend.protocol import Backend
from polyopt.core.ops import Array

ALIGNMENT = 64
"""Bytes: XLA's ``MinAlign`` and TensorFlow's ``EIGEN_MAX_ALIGN_BYTES``, the largest of any build."""

HUGE = 2 << 20
"""Bytes: a huge page of Linux on x86 and arm."""

LARGE = 1 << 18
"""Bytes from which a copy that is saved is worth a detour."""

Host: TypeAlias = Any
"""A host array."""


def aligned(shape: Sequence[int], dtype: Any, boundary: int | None = None) -> Host:
    """Make a contiguous host array, its values undefined, that begins at a multiple of ``ALIGNMENT``.

    A large one lies in huge pages, unless ``boundary`` is what it begins at a multiple of.

    Examples
    --------
    >>> aligned((2, 3), np.float32).ctypes.data % ALIGNMENT
    0
    """
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    if boundary is None:
        boundary = ALIGNMENT if size < HUGE else HUGE
        memory = _memory(size + boundary)
    else:
        memory = np.empty(size + boundary, np.uint8)
    start = -memory.ctypes.data % boundary
    return memory[start : start + size].view(kind).reshape(shape)


class _Pages:
    """Memory of the system, in huge pages where it has them, as an array; kept for the next when it is free.

    It takes as long to get ten million floats from the system, which clears them, as to sort them into two
    halves, and ``malloc`` gives large ones back each time.
    """

    free: ClassVar[list[mmap.mmap]] = []

    def __init__(self, size: int) -> None:
        self.block = self._taken(size) or _mapped(size)
        address = np.frombuffer(self.block, np.uint8).ctypes.data
        self.__array_interface__ = {
            "version": 3,
            "shape": (size,),
            "typestr": "|u1",
            "data": (address, False),
        }

    def __del__(self, kept: int = 1 << 26) -> None:
        # The last array in it is gone.
        self.free.append(self.block)
        with suppress(IndexError):  # another thread was quicker
            while sum(map(len, tuple(self.free))) > kept:
                self.free.pop(0)

    def _taken(self, size: int) -> mmap.mmap | None:
        for block in sorted(self.free, key=len):
            if size <= len(block) <= 2 * size:
                with suppress(ValueError):  # as above
                    self.free.remove(block)
                    return block
        return None


def _mapped(size: int) -> mmap.mmap:
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages
        block.madvise(mmap.MADV_HUGEPAGE)
    return block


def _memory(size: int) -> Host:
    if size > HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # no memory: NumPy says so better
            return np.asarray(_Pages(size))
    return np.empty(size, np.uint8)


def copied(x: Any, dtype: Any = None) -> Host:
    """Return ``np.array(x, dtype)``, the caller's alone; aligned and in C order where it is large.

    Examples
    --------
    >>> copied([1, 2], np.float32).tolist()
    [1.0, 2.0]
    """
    if getattr(x, "nbytes", 0) < LARGE:
        return np.array(x, dtype)
    host = np.asarray(x)
    fresh = aligned(host.shape, host.dtype if dtype is None else dtype)
    np.copyto(fresh, host, casting="unsafe")
    return fresh


def donate_host_array(backend: Backend, fresh: Host, like: Array) -> Array:
    """Put ``fresh`` on ``backend`` and the device of ``like``, without a copy where that can be.

    ``fresh`` is contiguous, and given up: nobody else holds it or its memory, and it is never written again.
    A backend that can take such an array has a method ``adopt(x)``, which gives one on the CPU; it is
    optional.
    """
    device = backend.device_name(like)
    adopt = getattr(backend, "adopt", None)
    if adopt is None or device != "cpu":
        return backend.from_numpy(fresh, device=device)
    return adopt(fresh)
