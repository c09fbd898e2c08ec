"""The machine's bandwidth floor: reading and writing the same bytes, and computing next to nothing."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyopt_bench.machine import threads
from polyopt_bench.traffic import Traffic

LARGEST = 1 << 25
"""Elements from which on a part is measured, and its seconds are multiplied."""
BLOCK = 1 << 12
"""Elements of the gradient that stay in the first cache while each array in its turn is read and written."""

Array = NDArray[np.float32]


class Floor:
    """A pass over flat arrays: the gradient is read, and each array that a step writes is read and written.

    The work is shared out over the threads that the frameworks have too. By numba where it is installed, else
    by NumPy in blocks.
    """

    def __init__(self, elements: int, traffic: Traffic) -> None:
        n = min(elements, LARGEST)
        self._g: Array = np.full(n, 1e-8, np.float32)
        self._arrays = tuple(np.ones(n, np.float32) for _ in range(traffic.writes))
        self._measured = traffic.measured
        moved = 4 * n * (1 + 2 * traffic.writes + traffic.measured)
        self.scale = traffic.bytes * elements / moved
        """Seconds of one call times this are the floor."""
        # A thread that has too little to do costs more than it brings.
        count = max(1, min(threads(), n >> 16))
        self._bounds = list(pairwise(np.linspace(0, n, count + 1, dtype=np.int64).tolist()))
        self._pool = ThreadPoolExecutor(count)

    def __call__(self) -> None:
        """Read and write what a step must, and nothing else."""
        read, stream = _kernels(len(self._arrays))
        for _ in range(self._measured):
            self._share(lambda start, stop: read(self._g, start, stop))
        self._share(lambda start, stop: stream(self._g, self._arrays, start, stop))

    def _share(self, part: Callable[[int, int], Any]) -> None:
        jobs = [self._pool.submit(part, *bounds) for bounds in self._bounds[1:]]
        part(*self._bounds[0])
        for job in jobs:
            job.result()


@lru_cache(maxsize=8)
def _kernels(count: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return ``read(g, start, stop)`` and ``stream(g, arrays, start, stop)`` for ``count`` arrays."""
    try:
        import numba
    except ImportError:
        return _read_numpy, _stream_numpy
    jit = numba.njit(nogil=True, fastmath=True)
    names = [f"a{k}" for k in range(count)]
    # LLVM gives up vectorizing where it would have to see for more than four arrays that none overlaps.
    groups = [names[k : k + 3] for k in range(0, count, 3)]
    lines = [
        f"def stream(g, {', '.join(names)}, start, stop):",
        f"    for low in range(start, stop, {BLOCK}):",
    ]
    lines += [f"        high = min(low + {BLOCK}, stop)"]
    for group in groups:
        lines += [f"        x{name} = {name}[low:high]" for name in group]
        lines += ["        xg = g[low:high]", "        for i in range(len(xg)):"]
        lines += [f"            x{name}[i] += xg[i]" for name in group]
    scope: dict[str, Any] = {}
    exec("\n".join(lines), scope)
    stream = jit(scope["stream"])

    def read(g: Any, start: int, stop: int) -> Any:
        part = g[start:stop]
        total = np.float32(0.0)
        for i in range(len(part)):
            total += part[i]
        return total

    return jit(read), lambda g, arrays, start, stop: stream(g, *arrays, start, stop)


def _read_numpy(g: Array, start: int, stop: int) -> Any:
    return g[start:stop].max()


def _stream_numpy(g: Array, arrays: tuple[Array, ...], start: int, stop: int) -> None:
    step = 16 * BLOCK
    for low in range(start, stop, step):
        part = slice(low, min(low + step, stop))
        for a in arrays:
            np.add(a[part], g[part], out=a[part])
