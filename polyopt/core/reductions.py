"""Reductions whose bits are the same on every backend, because their order is fixed.

Everything is folded by elementwise additions: each is correctly rounded, so the bits agree, and the error
grows with log n (Higham, "The accuracy of floating point summation", 1993), not with n. An array is cut in
``FOLD`` equal streams that are added up lane by lane: long contiguous operations for NumPy, one
vectorized loop each for a compiler, and lanes that threads can share out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

from polyopt.core.groups import by_kind
from polyopt.core.ops import Array

FOLD = 8
"""Streams that an array is folded by: as many as a processor fetches ahead of."""

LEVELS = 2
"""How often each array is folded before the results are put together."""

WIDTH = 1 << 10
"""Elements from which on folding is by halves."""

LARGE = 1 << 15
"""Elements from which an array is read where it lies: joining costs a copy, but fewer operations."""

JOINED = 1 << 17
"""Elements of small arrays that are joined at the most: what stays in a core's own cache."""

LANES = 1 << 14
"""Lanes that are folded at a time where nothing is compiled, so that a temporary stays in the cache."""

_SCALES = {
    "float32": ((-100, 126), (-40, 80), (40, 0), (128, -80)),
    "float64": (
        *((-900 + 200 * i, 1000 - 200 * i) for i in range(5)),
        (100, 0),
        *((300 + 200 * i, -200 - 200 * i) for i in range(4)),
        (1024, -1000),
    ),
}
"""``(e, k)``, in order: a row whose largest magnitude is below 2^e is multiplied by 2^k, exactly."""

_ORDINARY = {"float32": (-70, 100), "float64": (-200, 200)}
"""Exponents between which a sum of squares has lost nothing that counts, and needs no other scale."""

_STEPS = {"float32": (80, -80, 126), "float64": (200, -1000, 1000)}
"""Exponents: from one scale to the next, the smallest scale and the largest."""

_ATTEMPTS = {"float32": 3, "float64": 6}
"""Scales in one direction, 1 included."""


def ordered_sum(xp: Any, x: Array) -> Array:
    """Return the sum of all elements as a 0-d array, in an order that is the same on every backend.

    Examples
    --------
    >>> import numpy as np
    >>> float(ordered_sum(np, np.full(2**20, np.float32(0.1)))) == float(np.float32(0.1)) * 2**20
    True
    """
    return _joint_sum(xp, [xp.reshape(x, (-1,))], lambda part: part)


def root_sum_squares(xp: Any, arrays: Sequence[Array]) -> tuple[Array, Array]:
    """Return ``(root, scale)``, 0-d: the joint 2-norm of ``arrays`` is their quotient.

    ``scale`` is a power of two, 1 for ordinary magnitudes, else chosen so that no square overflows and none
    that counts vanishes: then, and then only, the arrays are read once more. ``root`` is 0 where all is zero
    or empty, inf or NaN where an element is.

    Parameters
    ----------
    xp
        The operations; products go through ``xp.multiply``, so that a compiler can be kept from contracting.
    arrays
        At least one array; all float32 or all float64.
    """
    known = getattr(xp, "known_norm", None)
    if known is not None:
        root, scale = known
        return root, scale
    kind = _kind(xp, arrays[0])
    step, smallest, largest = (2.0**e for e in _STEPS[kind])
    low, high = (2.0**e for e in _ORDINARY[kind])
    flat = None if hasattr(xp, "sum_squares") else packed(xp, arrays)

    def attempt(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        scale = carry[1]
        total = _sum_squares(xp, arrays, flat, scale)

        def bound(value: float) -> Array:
            return xp.full_like(total, value)

        lost = xp.logical_and(xp.less(total, bound(low)), xp.less(scale, bound(largest)))
        over = xp.logical_and(xp.greater(total, bound(high)), xp.greater(scale, bound(smallest)))
        up = xp.minimum(xp.multiply(scale, bound(step)), bound(largest))
        down = xp.maximum(xp.multiply(scale, bound(1 / step)), bound(smallest))
        done = xp.logical_not(xp.logical_or(lost, over))
        return done, xp.where(lost, up, xp.where(over, down, scale)), total

    start = xp.reshape(xp.reshape(arrays[0], (-1,))[:0], (0,))
    zero = xp.sum(start)
    carry = (xp.less(zero, zero), xp.ones_like(zero), zero)
    _, scale, total = getattr(xp, "repeat_until", partial(_repeated, xp))(_ATTEMPTS[kind], attempt, carry)
    return xp.sqrt(total), scale


def settled_at_once(total: Any) -> bool:
    """Return True if a sum of squares, a host scalar, gives ``root_sum_squares`` its root at the scale 1.

    Parameters
    ----------
    total
        The sum of the squares as they are, of NumPy's float32 or float64.

    Returns
    -------
    bool
        False where squares may have vanished, overflowed, or where an element is inf or NaN.

    Examples
    --------
    >>> import numpy as np
    >>> settled_at_once(np.float32(4.0)), settled_at_once(np.float32(0.0))
    (True, False)
    """
    low, high = _ORDINARY["float64" if total.itemsize == 8 else "float32"]
    return bool(2.0**low <= total <= 2.0**high)


def finite(xp: Any, arrays: Sequence[Array]) -> Array:
    """Return a 0-d bool: True if no element of the arrays is inf or NaN.

    There is at least one array; they may differ in their floating dtypes.
    """
    found: list[Array] = []
    for members in by_kind(x.dtype for x in arrays).values():
        same = [arrays[i] for i in members]
        total = xp.sum_squares(same, 1.0) if hasattr(xp, "sum_squares") else None
        # An infinite sum may be of finite elements.
        if total is not None and xp.isfinite(total):
            continue
        found += [xp.all(xp.isfinite(x)) for x in packed(xp, same)]
    if not found:
        return xp.asarray(True)
    return xp.all(xp.stack(found)) if len(found) > 1 else found[0]


def axis_root_sum_squares(xp: Any, x: Array, axis: int) -> tuple[Array, Array]:
    """Return ``root_sum_squares`` of each row or column of a 2-d array; both keep the axis, of length 1."""
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
    """Flatten the arrays and join small ones: a group stands where its first member stood."""
    flat = [xp.reshape(x, (-1,)) for x in arrays]
    members = groups(tuple(math.prod(x.shape) for x in arrays))
    return [_joined(xp, [flat[i] for i in group]) for group in members]


@lru_cache(maxsize=64)
def groups(sizes: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Return which arrays of these sizes are read as one.

    >>> groups((3, LARGE, 5, 7))
    ((0, 2, 3), (1,))
    """
    found: list[list[int]] = []
    open_group: list[int] = []
    room = 0
    for i, size in enumerate(sizes):
        if size >= LARGE:
            found.append([i])
            continue
        if size > room or not open_group:
            open_group, room = [], JOINED
            found.append(open_group)
        open_group.append(i)
        room -= size
    return tuple(map(tuple, found))


def power_of_two(xp: Any, largest: Array) -> Array:
    """Return the scale of ``axis_root_sum_squares`` for the magnitudes ``largest``, elementwise."""
    table = _SCALES[_kind(xp, largest)]
    scale = xp.full_like(largest, 2.0 ** table[-1][1])
    for exponent, power in reversed(table[:-1]):
        below = xp.less(largest, xp.full_like(largest, 2.0**exponent))
        scale = xp.where(below, xp.full_like(largest, 2.0**power), scale)
    return scale


def _kind(xp: Any, x: Array) -> str:
    return "float64" if x.dtype == xp.float64 else "float32"


def _repeated(
    xp: Any, times: int, function: Callable[[tuple[Array, ...]], tuple[Array, ...]], carry: tuple[Array, ...]
) -> tuple[Array, ...]:
    """Return ``xp.repeat_until`` where it is missing: everything is computed, and the flag selects."""
    for i in range(times):
        new = function(carry)
        done = carry[0]
        carry = tuple(xp.where(done, a, b) for a, b in zip(carry, new, strict=True)) if i else new
    return carry


def _sum_squares(xp: Any, arrays: Sequence[Array], flat: list[Array] | None, scale: Array) -> Array:
    """Return the sum of the squares of all elements times ``scale``."""
    if flat is None:
        total = xp.sum_squares(arrays, scale)
        if total is not None:
            return total

    def squares(part: Array) -> Array:
        scaled = xp.multiply(part, scale)
        return xp.multiply(scaled, scaled)

    return _joint_sum(xp, packed(xp, arrays) if flat is None else flat, squares)


def _joint_sum(xp: Any, flat: Sequence[Array], of: Callable[[Array], Array]) -> Array:
    """Return the sum of ``of(x)`` over all elements of the 1-d arrays; ``of`` is elementwise."""
    settled = getattr(xp, "settled", _same)
    parts = [part for x in flat for part in _folded(xp, x, of)]
    for _ in range(LEVELS - 1):
        parts = [part for x in parts for part in _folded(xp, settled(x), _same)]
    if not parts:
        return xp.sum(flat[0])
    x = _joined(xp, parts)
    while x.shape[0] > WIDTH:
        x = _joined(xp, _folded(xp, settled(x), _same))
    return xp.reshape(_halved(xp, x, x.shape[0], lambda part, start, stop: part[start:stop]), ())


def _folded(xp: Any, x: Array, of: Callable[[Array], Array]) -> list[Array]:
    """Return ``of(x)`` as the sum of FOLD equal streams, and the elements that remain."""
    n = x.shape[0]
    m = n // FOLD
    if m == 0:
        return [of(x)] if n else []
    # A compiler makes one loop of the whole; else a temporary must not be larger than the cache.
    lanes = m if hasattr(xp, "settled") else max(LANES, -(-m // 16))
    if lanes >= m:
        parts = [_halves(xp, of(x[: FOLD * m]), m)]
    else:
        parts = [_streams(xp, x, of, m, a, min(a + lanes, m)) for a in range(0, m, lanes)]
    whole = _joined(xp, parts)
    return [whole, of(x[FOLD * m :])] if FOLD * m < n else [whole]


def _halves(xp: Any, x: Array, size: int) -> Array:
    """Add the halves of ``x`` until ``size`` elements are left."""
    while x.shape[0] > size:
        half = x.shape[0] // 2
        x = xp.add(x[:half], x[half:])
    return x


def _streams(xp: Any, x: Array, of: Callable[[Array], Array], m: int, start: int, stop: int) -> Array:
    """Return the lanes from ``start`` to ``stop`` of ``_halves``, from FOLD streams of ``m`` elements."""
    parts = [of(x[i * m + start : i * m + stop]) for i in range(FOLD)]
    while len(parts) > 1:
        half = len(parts) // 2
        parts = [xp.add(a, b) for a, b in zip(parts[:half], parts[half:], strict=True)]
    return parts[0]


def _joined(xp: Any, parts: Sequence[Array]) -> Array:
    return xp.concat(parts) if len(parts) > 1 else parts[0]


def _same(x: Array) -> Array:
    return x


def _halved(xp: Any, x: Array, rows: int, cut: Callable[[Array, int, int], Array]) -> Array:
    """Sum the rows of ``x``: its halves are added until one is left; an odd row waits till the end."""
    odd: list[Array] = []
    while rows > 1:
        if rows % 2:
            odd.append(cut(x, rows - 1, rows))
        rows //= 2
        x = xp.add(cut(x, 0, rows), cut(x, rows, 2 * rows))
    for row in reversed(odd):
        x = xp.add(x, row)
    return x
