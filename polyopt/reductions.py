"""Reductions whose bits are the same on every backend, because their order is fixed.

Everything is folded by elementwise additions: each is correctly rounded, so the bits agree, and the error
grows with log n (Higham, "The accuracy of floating point summation", 1993), not with n. Blocks are small
enough for a cache and few enough for a compiler.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from polyopt.ops import Array

BLOCK = 1 << 15
"""Elements that are worked on at a time, few enough to stay in a cache with what is computed from them."""

WIDTH = 1 << 10
"""Elements that a block is folded to before the leaves are put together."""

JOINED = 1 << 16
"""Elements of small arrays that are joined first: copying them costs less than operations for each."""

_SCALES = {
    "float32": ((-100, 126), (-40, 80), (40, 0), (128, -80)),
    "float64": (
        *((-900 + 200 * i, 1000 - 200 * i) for i in range(5)),
        (100, 0),
        *((300 + 200 * i, -200 - 200 * i) for i in range(4)),
        (1024, -1000),
    ),
}
"""``(e, k)``, in order: an array whose largest magnitude is below 2^e is multiplied by 2^k, exactly."""


def ordered_sum(xp: Any, x: Array) -> Array:
    """The sum of all elements as a 0-d array, in an order that is the same on every backend.

    >>> import numpy as np
    >>> float(ordered_sum(np, np.full(2**20, np.float32(0.1)))) == float(np.float32(0.1)) * 2**20
    True
    """
    return _joint_sum(xp, [xp.reshape(x, (-1,))], lambda part: part)


def root_sum_squares(xp: Any, arrays: Sequence[Array]) -> tuple[Array, Array]:
    """``(root, scale)``, 0-d: the joint 2-norm of ``arrays`` is ``root / scale``, which may overflow alone.

    ``scale`` is a power of two, 1 for ordinary magnitudes, chosen so that no square overflows and none that
    counts vanishes. ``root`` is 0 where all is zero or empty, inf or NaN where an element is.

    Parameters
    ----------
    xp
        The operations; products go through ``xp.multiply``, so that a compiler can be kept from contracting.
    arrays
        At least one array; all float32 or all float64.
    """
    flat = packed(xp, arrays)
    scale = power_of_two(xp, peak(xp, flat))

    def squares(part: Array) -> Array:
        scaled = xp.multiply(part, scale)
        return xp.multiply(scaled, scaled)

    return xp.sqrt(_joint_sum(xp, flat, squares)), scale


def axis_root_sum_squares(xp: Any, x: Array, axis: int) -> tuple[Array, Array]:
    """As :func:`root_sum_squares`, of each row or column of a 2-d array; both keep the axis, of length 1."""
    size = x.shape[axis]
    if size == 0:
        zero = xp.sum(x, axis=axis, keepdims=True)
        return zero, xp.ones_like(zero)
    scale = power_of_two(xp, xp.max(xp.abs(x), axis=axis, keepdims=True))
    scaled = xp.multiply(x, scale)
    squares = xp.multiply(scaled, scaled)

    def rows(part: Array, start: int, stop: int) -> Array:
        return part[start:stop, :] if axis == 0 else part[:, start:stop]

    return xp.sqrt(_halved(xp, squares, size, rows)), scale


def packed(xp: Any, arrays: Sequence[Array]) -> list[Array]:
    """The arrays flat, neighbours joined as long as they are small together."""
    groups: list[list[Array]] = []
    room = 0
    for x in arrays:
        size = math.prod(x.shape)
        if size > room or not groups:
            groups.append([])
            room = JOINED
        groups[-1].append(xp.reshape(x, (-1,)))
        room -= size
    return [xp.concat(group) if len(group) > 1 else group[0] for group in groups]


def peak(xp: Any, flat: Sequence[Array]) -> Array:
    """The largest magnitude as a 0-d array: 0 where there is no element."""
    found: list[Array] = []
    for x in flat:
        if x.shape[0] == 0:
            found.append(xp.sum(x))
        elif x.shape[0] <= JOINED:
            # One reduction: XLA would compile a join of 1000 leaves into each of two (58 s against 1.5 s).
            found.append(xp.max(xp.abs(x)))
        else:
            # Two: abs would write an array as large as x.
            found.append(xp.maximum(xp.max(x), xp.negative(xp.min(x))))
    return xp.max(xp.stack(found)) if len(found) > 1 else found[0]


def power_of_two(xp: Any, largest: Array) -> Array:
    """The scale of :func:`root_sum_squares` for the magnitudes ``largest``, elementwise."""
    table = _SCALES["float64" if largest.dtype == xp.float64 else "float32"]
    scale = xp.full_like(largest, 2.0 ** table[-1][1])
    for exponent, power in reversed(table[:-1]):
        below = xp.less(largest, xp.full_like(largest, 2.0**exponent))
        scale = xp.where(below, xp.full_like(largest, 2.0**power), scale)
    return scale


def _joint_sum(xp: Any, flat: Sequence[Array], of: Callable[[Array], Array]) -> Array:
    """The sum of ``of(x)`` over all elements of the 1-d arrays; ``of`` is elementwise."""
    parts = [part for x in flat for part in _folded(xp, x, of)]
    if not parts:
        return xp.sum(flat[0])
    x = xp.concat(parts) if len(parts) > 1 else parts[0]
    while x.shape[0] > 2 * WIDTH:
        parts = _folded(xp, x, lambda part: part)
        x = xp.concat(parts) if len(parts) > 1 else parts[0]
    return xp.reshape(_halved(xp, x, x.shape[0], lambda part, start, stop: part[start:stop]), ())


def _folded(xp: Any, x: Array, of: Callable[[Array], Array]) -> list[Array]:
    """``of(x)`` as one array of WIDTH elements and the remainder of fewer, as far as there are any."""
    n = x.shape[0]
    blocks, whole = n // BLOCK, n - n % WIDTH

    def tree(low: int, high: int) -> Array:
        if high - low == 1:
            return of(x[low * BLOCK : high * BLOCK])
        middle = (low + high) // 2
        return xp.add(tree(low, middle), tree(middle, high))

    def narrow(block: Array, size: int) -> Array:
        return _halved(xp, block, size // WIDTH, lambda part, a, b: part[a * WIDTH : b * WIDTH])

    sums = [narrow(tree(0, blocks), BLOCK)] if blocks else []
    if blocks * BLOCK < whole:
        sums.append(narrow(of(x[blocks * BLOCK : whole]), whole - blocks * BLOCK))
    parts = [xp.add(*sums)] if len(sums) == 2 else sums
    return [*parts, of(x[whole:])] if whole < n else parts


def _halved(xp: Any, x: Array, rows: int, cut: Callable[[Array, int, int], Array]) -> Array:
    """The sum of the rows of ``x``: its halves are added until one is left; an odd row waits till the end."""
    odd: list[Array] = []
    while rows > 1:
        if rows % 2:
            odd.append(cut(x, rows - 1, rows))
        rows //= 2
        x = xp.add(cut(x, 0, rows), cut(x, rows, 2 * rows))
    for row in reversed(odd):
        x = xp.add(x, row)
    return x
