"""Large host arrays that are given up to a framework, in memory that it can take without a copy.

XLA and TensorFlow take a host array as it is where it begins at a multiple of 64 bytes; NumPy's own begin at
one of 16, and a large one nearly never at one of 64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from polyopt.backend import Backend
from polyopt.ops import Array

ALIGNMENT = 64
"""Bytes: XLA's ``MinAlign`` and TensorFlow's ``EIGEN_MAX_ALIGN_BYTES``, the largest of any build."""

LARGE = 1 << 18
"""Bytes from which a copy that is saved is worth a detour."""

Host: TypeAlias = Any
"""A host array."""


def aligned(shape: Sequence[int], dtype: Any) -> Host:
    """A new contiguous host array, its values undefined, that begins at a multiple of :data:`ALIGNMENT`.

    >>> aligned((2, 3), np.float32).ctypes.data % ALIGNMENT
    0
    """
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(kind).reshape(shape)


def copied(x: Any, dtype: Any = None) -> Host:
    """``np.array(x, dtype)``, the caller's alone; aligned and in C order where it is large.

    >>> copied([1, 2], np.float32).tolist()
    [1.0, 2.0]
    """
    if getattr(x, "nbytes", 0) < LARGE:
        return np.array(x, dtype)
    host = np.asarray(x)
    fresh = aligned(host.shape, host.dtype if dtype is None else dtype)
    np.copyto(fresh, host, casting="unsafe")
    return fresh


def adopted(backend: Backend, fresh: Host, like: Array) -> Array:
    """``fresh`` as an array of ``backend`` on the device of ``like``, without a copy where that can be.

    ``fresh`` is contiguous, and given up: nobody else holds it or its memory, and it is never written again.
    A backend that can take such an array has a method ``adopt(x)``, which gives one on the CPU; it is
    optional.
    """
    device = backend.device_name(like)
    adopt = getattr(backend, "adopt", None)
    if adopt is None or device != "cpu":
        return backend.from_numpy(fresh, device=device)
    return adopt(fresh)
