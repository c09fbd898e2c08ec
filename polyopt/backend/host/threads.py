"""Share work out to threads: a pool of our own, or the OpenMP team that a framework has already.

Two pools on the same cores get in each other's way: OpenMP's threads spin for a while after each parallel
region, a backward pass for one, and ours would wait for a core meanwhile. On the framework's own team a
kernel starts at once.

A kernel is the address of ``void kernel(int64 job)``, and a job is the address of 64-bit words of which the
first four (``HEAD``) say which parts of the work are the calling thread's: ``part, part + step, …``.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
from _thread import LockType, allocate_lock, get_ident, start_new_thread
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from contextvars import Context, copy_context
from functools import lru_cache
from itertools import cycle, starmap
from operator import call as apply
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np

P = TypeVar("P")
R = TypeVar("R")

THREADED = 1 << 19
"""Elements of Python pieces from which a thread of its own is worth its while."""

BLOCK = 1 << 16
"""Elements that one of Python's pieces takes together: what stays in the cache from reading to writing."""

HEAD = 4
"""Words of a job that are the team's: first part, step, and two functions of OpenMP that tell them, or 0."""

PREAMBLE = """
    words = carray(address(job), {words}, np.int64)
    part, step = words[0], words[1]
    if words[2] != 0:
        part, step = invoke(words[2], 0, 0) & 0xffffffff, invoke(words[3], 0, 0) & 0xffffffff
"""
"""The first lines of a kernel, in numba's Python (see ``polyopt.backend.host.numba_kernel``)."""


class Team(Protocol):
    """Threads that share a kernel's work."""

    least: int
    """Elements from which a thread of its own is worth its while."""

    def size(self) -> int:
        """Count the threads, the caller's own included."""

    def call(self, kernel: int, words: Sequence[int], parts: int) -> Callable[[], None]:
        """Return a function that runs ``kernel`` with the job ``words`` for each of ``parts``, and waits.

        It can be called many times, by one thread at a time.
        """


class Pool:
    """Python threads of our own, which take jobs from one queue.

    An exception may be raised in the main thread between any two bytecodes: by Ctrl-C, by the handler of a
    time-out. So jobs are handed over and waited for inside *one* call of C code, in which no bytecode runs:
    whatever is raised meanwhile comes out when every worker has ended, and nothing is written afterwards.
    """

    least = 1 << 18

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job | SimpleQueue[None]] = SimpleQueue()
        self._workers = 0
        self._alive: list[int] = []
        self._stopped = False
        self.forks = 0

    def size(self) -> int:
        """Return ``OMP_NUM_THREADS`` where it is set, and no more than there are cores."""
        limit = os.environ.get("OMP_NUM_THREADS", "")
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(usable, int(limit)) if limit.isdigit() and int(limit) > 0 else usable

    def call(self, kernel: int, words: Sequence[int], parts: int) -> Callable[[], None]:
        """Prepare a kernel's run in ``parts``; what is returned runs it."""
        jobs = np.array([(part, parts, 0, 0, *words) for part in range(parts)], np.int64)
        function = _callable(kernel)
        first, *rest = range(jobs.ctypes.data, jobs.ctypes.data + jobs.nbytes, jobs.strides[0])
        prepared: list[_Meeting] = []
        forks = self.forks

        def run(jobs: Any = jobs) -> None:  # which keeps it
            nonlocal prepared, forks
            if _own.inside or self._stopped:
                for place in (first, *rest):
                    function(place)
                return
            if len(prepared) < len(rest) or forks != self.forks:
                prepared, forks = [_meeting() for _ in rest], self.forks
            self._share([(function, place) for place in rest], prepared, (function, first))

        return run

    def each(self, work: Callable[[P], R], pieces: Sequence[P], elements: int) -> list[R]:
        """Return ``[work(piece) for piece in pieces]``, by as many threads as ``elements`` in all are worth.

        NumPy gives up the interpreter's lock inside of its loops: pieces of some ten thousand elements run at
        once. They must not depend on each other. What the first that fails raises is raised, when all have
        ended.

        >>> POOL.each(len, ["a", "bc"], 3)
        [1, 2]
        """
        threads = min(self.size(), elements // THREADED, len(pieces))
        if threads < 2 or _own.inside or self._stopped:
            return [work(piece) for piece in pieces]
        results: dict[int, R] = {}
        errors: dict[int, BaseException] = {}
        left = iter(range(len(pieces)))

        def some(context: Context) -> None:
            i = -1
            try:
                for i in left:
                    results[i] = context.run(work, pieces[i])
            except BaseException as error:
                errors[i] = error

        # Each in a copy of the caller's context, in which NumPy keeps how it treats overflow. None by the
        # caller itself: an interrupt would come between two bytecodes of `work`.
        self._share([(some, copy_context()) for _ in range(threads)], [_meeting() for _ in range(threads)])
        for i in sorted(errors):
            raise errors[i]
        return [results[i] for i in range(len(pieces))]

    def _share(self, work: Sequence[_Work], meetings: Sequence[_Meeting], own: _Work | None = None) -> None:
        """Do ``work`` by workers and ``own`` by the caller; return when all is done."""
        while self._workers < len(work):
            # A worker that an interrupt leaves uncounted does no harm.
            start_new_thread(_take, (self._jobs, self._alive))
            self._workers += 1
        steps: list[_Work] = [
            (self._jobs.put, (*job, meeting)) for job, meeting in zip(work, meetings, strict=True)
        ]
        if own is not None:
            steps.append(own)
        steps += [_awaiting(meeting) for meeting in meetings]
        deque(starmap(apply, steps), maxlen=0)  # the one call of C code

    def forked(self) -> None:
        """Forget the threads of the process before, which a fork's child doesn't have."""
        self._jobs, self._workers, self._alive, self._stopped = SimpleQueue(), 0, [], False
        self.forks += 1

    def stop(self) -> None:
        """End all workers, each after its last job: none may write while the interpreter is taken down.

        What is still to do afterwards, callers do alone.
        """
        ended: SimpleQueue[None] = SimpleQueue()
        # Counted by themselves: `_workers` may lose one to an interrupt, or to another thread.
        self._stopped = True
        alive, self._workers, self._alive = len(self._alive), 0, []
        for _ in range(alive):
            self._jobs.put(ended)
        with suppress(Empty):
            for _ in range(alive):
                ended.get(timeout=5.0)


_Work: TypeAlias = tuple[Callable[[Any], Any], Any]
"""A function and its argument."""
_Meeting: TypeAlias = Any
"""A barrier, or a held lock, at which a worker and its caller wait for each other."""
_Job: TypeAlias = tuple[Callable[[Any], Any], Any, _Meeting]


class _Own(threading.local):
    inside = False
    """True in a worker, whose own calls don't wait for other workers."""


_own = _Own()


def _take(jobs: SimpleQueue[_Job | SimpleQueue[None]], alive: list[int]) -> None:
    """Do one job after the other, as a worker; end by what is no job."""
    _own.inside = True
    alive.append(get_ident())
    while isinstance(job := jobs.get(), tuple):
        function, argument, meeting = job
        function(argument)  # which raises nothing
        _arrive(meeting)
        del job, function, argument, meeting  # or they would be kept until the next job
    job.put(None)


def _of_process(*names: str) -> list[Any]:
    """Return the C functions of these names, or none where one isn't there."""
    try:
        library = ctypes.CDLL(None)
        return [getattr(library, name) for name in names]
    except (OSError, TypeError, AttributeError):
        return []


# What a caller and its worker wait by goes on waiting after a signal: a handler may raise, and the wait would
# be over. POSIX' barriers do.
_posix = _of_process("pthread_barrier_init", "pthread_barrier_wait")
if _posix:
    _posix[0].argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint]
    _posix[1].argtypes = [ctypes.c_void_p]
# Where there are none (macOS) a lock is tried again and again, for a wait for it may end. On Windows, which
# has no `usleep`, it doesn't.
_nap = _of_process("usleep")
if _nap:
    _nap[0].argtypes, _nap[0].restype = [ctypes.c_uint], None
NAP = 50
"""Microseconds."""


def _meeting() -> _Meeting:
    if not _posix:
        lock = allocate_lock()
        lock.acquire()
        return lock
    barrier = (ctypes.c_int64 * 16)()
    if _posix[0](barrier, None, 2):
        raise MemoryError("no barrier for two threads could be made")
    return barrier


def _arrive(meeting: _Meeting) -> None:
    _posix[1](meeting) if _posix else meeting.release()


def _awaiting(meeting: _Meeting) -> _Work:
    """Return what waits until a worker has arrived, in one call of C code."""
    if _posix:
        return _posix[1], meeting
    if not _nap:
        return LockType.acquire, meeting
    tries: list[_Work] = [(meeting.acquire, False), (_nap[0], NAP)]
    return any, starmap(apply, cycle(tries))


POOL = Pool()
atexit.register(POOL.stop)


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
        """Prepare a kernel's run in ``parts``; what is returned runs it."""
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
    """Return the OpenMP team of the first of ``libraries`` that is loaded; without one, the pool.

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
    """Return a function that runs ``kernel`` for each of ``parts``, by ``team`` or by the caller alone."""
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
    """Return the function at that address; it is called without the interpreter's lock."""
    return ctypes.CFUNCTYPE(None, ctypes.c_size_t)(kernel)


_forked: list[bool] = []
"""True if this process is a fork's child: OpenMP's threads, and the pool's, are its parent's alone."""


def _after_fork() -> None:
    POOL.forked()
    _forked[:] = [True]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
