"""Work on large host arrays, cut in pieces that threads share.

NumPy gives up the interpreter's lock inside of its loops: pieces of some ten thousand elements run at once.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

from polyopt.backend.host.threads import POOL

P = TypeVar("P")
R = TypeVar("R")

SCRATCH = 1 << 20
"""Bytes of working memory up to which a thread keeps it."""

THREADED = 1 << 19
"""Elements from which a thread of its own is worth its while."""


def each(work: Callable[[P], R], pieces: Sequence[P], elements: int) -> list[R]:
    """``[work(piece) for piece in pieces]``, by as many threads as ``elements`` in all are worth.

    The pieces must not depend on each other. What the first that fails raises is raised, when all have ended.

    >>> each(len, ["a", "bc"], 3)
    [1, 2]
    """
    threads = min(POOL.size(), elements // THREADED, len(pieces))
    if threads < 2:
        return [work(piece) for piece in pieces]
    left = deque(range(len(pieces)))
    results: dict[int, R] = {}

    def some() -> None:
        while True:
            try:
                i = left.popleft()
            except IndexError:
                return
            results[i] = work(pieces[i])

    # Each in a copy of the caller's context, in which NumPy keeps how it treats overflow.
    jobs = [_pool().submit(copy_context().run, some) for _ in range(threads - 1)]
    try:
        some()
    finally:
        errors = [job.exception() for job in jobs]
    for error in errors:
        if error is not None:
            raise error
    return [results[i] for i in range(len(pieces))]


def scratch(name: str, shape: Sequence[int], dtype: Any) -> Any:
    """A host array to compute in: this thread's memory, until it asks by the same ``name`` again.

    New memory for every block costs as much as the work: the system takes it back each time, and clears it.
    """
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    if size > SCRATCH:
        return np.empty(shape, kind)
    buffers: dict[str, Any] = _kept.__dict__
    memory = buffers.get(name)
    if memory is None or memory.nbytes < size:
        memory = buffers[name] = np.empty(size, np.uint8)
    return memory[:size].view(kind).reshape(shape)


_kept = threading.local()


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, POOL.size() - 1), thread_name_prefix="polyopt-pieces")


if hasattr(os, "register_at_fork"):
    # Threads don't survive a fork: the child would wait for its parent's for ever.
    os.register_at_fork(after_in_child=_pool.cache_clear)
