"""Threads for compiled kernels: a pool of our own, or the OpenMP team that a framework has already.

Two pools on the same cores get in each other's way: OpenMP's threads spin for a while after each parallel
region, a backward pass for one, and ours would wait for a core meanwhile. On the framework's own team a
kernel starts at once.

A kernel is the address of ``void kernel(int64 job)``, and a job is the address of 64-bit words of which the
first four (``HEAD``) say which parts of the work are the calling thread's: ``part, part + step, …``.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

HEAD = 4
"""Words of a job that are the team's: first part, step, and two functions of OpenMP that tell them, or 0."""

PREAMBLE = """
    words = carray(address(job), {words}, np.int64)
    part, step = words[0], words[1]
    if words[2] != 0:
        part, step = invoke(words[2], 0, 0) & 0xffffffff, invoke(words[3], 0, 0) & 0xffffffff
"""
"""How a kernel begins, in numba's Python (see ``polyopt.backend.host.numba_kernel``)."""


class Team(Protocol):
    """Threads that share a kernel's work."""

    least: int
    """Elements from which a thread of its own is worth its while."""

    def size(self) -> int:
        """How many there are, the caller's own included."""

    def call(self, kernel: int, words: Sequence[int], parts: int) -> Callable[[], None]:
        """What calls ``kernel`` with the job ``words`` (without its head) for each of ``parts``, and waits.

        It can be called many times, by one thread at a time.
        """


class Pool:
    """Python threads that are ours alone."""

    least = 1 << 18

    def size(self) -> int:
        """``OMP_NUM_THREADS`` where it is set, and no more than there are cores."""
        limit = os.environ.get("OMP_NUM_THREADS", "")
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(usable, int(limit)) if limit.isdigit() and int(limit) > 0 else usable

    def call(self, kernel: int, words: Sequence[int], parts: int) -> Callable[[], None]:
        jobs = np.array([(part, parts, 0, 0, *words) for part in range(parts)], np.int64)
        function = _callable(kernel)

        def run() -> None:
            first, *rest = range(jobs.ctypes.data, jobs.ctypes.data + jobs.nbytes, jobs.strides[0])
            waiting = [self._threads(parts).submit(function, job) for job in rest]
            function(first)
            for job in waiting:
                job.result()

        return run

    @staticmethod
    @lru_cache(maxsize=8)
    def _threads(parts: int) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(parts - 1, thread_name_prefix="polyopt")


POOL = Pool()


class OpenMP:
    """The team of a framework that runs on GCC's OpenMP.

    Parameters
    ----------
    library
        The one that the framework has loaded.
    size
        How many threads the framework may have.
    """

    least = 1 << 15

    def __init__(self, library: ctypes.CDLL, size: Callable[[], int]) -> None:
        self.size = size
        self._parallel = library.GOMP_parallel
        self._parallel.restype = None
        self._parallel.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_uint, ctypes.c_uint]
        names = (library.omp_get_thread_num, library.omp_get_num_threads)
        self._who = [ctypes.cast(function, ctypes.c_void_p).value for function in names]

    def call(self, kernel: int, words: Sequence[int], parts: int) -> Callable[[], None]:
        # A region inside of another, or in a program that has fewer threads left, gets fewer: they share.
        job = np.array([0, 1, *self._who, *words], np.int64)
        where = job.ctypes.data

        def run(job: Any = job) -> None:  # which keeps it
            if _forked:
                POOL.call(kernel, words, parts)()
            else:
                self._parallel(kernel, where, parts, 0)

        return run


def openmp(libraries: Iterable[str], size: Callable[[], int]) -> Team:
    """The OpenMP team of the first of ``libraries`` that is loaded; without one, the pool.

    Trusted only where it has as many threads as the framework says.
    """
    for name in libraries if hasattr(os, "RTLD_NOLOAD") else ():
        try:
            library = ctypes.CDLL(name, mode=os.RTLD_NOLOAD)
            if library.omp_get_max_threads() == size():
                return OpenMP(library, size)
        except (OSError, AttributeError):
            continue
    return POOL


def parts(team: Team, elements: int) -> int:
    """Among how many of ``team`` so many elements are worth sharing."""
    most = elements // team.least
    return min(team.size(), most) if most > 1 else 1


def call(team: Team, kernel: int, words: Sequence[int], parts: int) -> Callable[[], None]:
    """What runs ``kernel`` for each of ``parts``: by ``team``, or by the caller alone where there is one."""
    return (team if parts > 1 else _ALONE).call(kernel, words, parts)


class _Alone:
    """The calling thread."""

    least = 1

    def size(self) -> int:
        return 1

    def call(self, kernel: int, words: Sequence[int], parts: int) -> Callable[[], None]:
        job = np.array([0, 1, 0, 0, *words], np.int64)
        function, where = _callable(kernel), job.ctypes.data

        def run(job: Any = job) -> None:  # which keeps it
            function(where)

        return run


_ALONE = _Alone()


@lru_cache(maxsize=512)
def _callable(kernel: int) -> Callable[[int], Any]:
    """The function at that address; it is called without the interpreter's lock."""
    return ctypes.CFUNCTYPE(None, ctypes.c_size_t)(kernel)


_forked: list[bool] = []
"""Whether this process is a fork's child: OpenMP's threads, and the pool's, are its parent's alone."""


def _after_fork() -> None:
    Pool._threads.cache_clear()
    _forked[:] = [True]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
