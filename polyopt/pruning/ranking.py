"""Exactly the lowest so many of millions of numbers, ties decided by position: on the host, in one pass.

Floating-point numbers are compared as integers: the bits of a non-negative float order as it does. A sample
says between which two keys the limit lies; a pass in blocks that stay in the cache decides all elements
outside and collects the few inside, which alone are ranked. What is chosen doesn't depend on the sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from polyopt.backend.host.buffers import aligned
from polyopt.backend.host.threads import BLOCK, POOL
from polyopt.core.errors import InputError

PIECE = 1 << 19
"""Elements that a thread takes at once."""

SAMPLE = 1 << 16
"""Elements of the sample; four times as many are ranked without one."""

FEW = 8
"""Elements of a row up to which each is compared with each."""

_UNSIGNED = {"float32": np.uint32, "float64": np.uint64}
_SIGNED = {"float32": np.int32, "float64": np.int64}


class Keys:
    """Unsigned integers that order as float32 or float64 numbers do, or as their magnitudes."""

    def __init__(self, dtype: Any, magnitude: bool) -> None:
        name = np.dtype(dtype).name
        self.unsigned, self._signed = _UNSIGNED[name], _SIGNED[name]
        self.dtype, self._magnitude = np.dtype(dtype), magnitude
        self._shift = self.dtype.itemsize * 8 - 1
        self._sign: Any = self.unsigned(1 << self._shift)
        self.largest = self.unsigned((1 << (self._shift + 1)) - 1)
        ends = np.array([0.0 if magnitude else -math.inf, math.inf], self.dtype)
        self.lowest, self.highest = self.of(ends)

    def of(self, x: Any, out: Any = None) -> Any:
        """Return the keys of a 1-d array; a NaN has one outside [``lowest``, ``highest``]."""
        if self._magnitude:
            return np.bitwise_and(x.view(self.unsigned), self._sign - self.unsigned(1), out=out)
        x = x + self.dtype.type(0)  # -0 is 0
        flip = (x.view(self._signed) >> self._shift).view(self.unsigned) | self._sign
        return np.bitwise_xor(x.view(self.unsigned), flip, out=out)

    def ranked(self, k: Any) -> bool:
        """Return True if the keys ``k``, of which there are some, are those of numbers."""
        return bool(k.max() <= self.highest and (self.lowest == 0 or k.min() >= self.lowest))


def keep_highest(
    leaves: Sequence[Any], prune: int, names: Sequence[str], *, magnitude: bool = False
) -> list[Any]:
    """Bool arrays, ``False`` at the ``prune`` lowest elements of all ``leaves`` together.

    Of equal elements those that come first are pruned, in the order of the leaves and, within one, of its
    elements. ``leaves`` are 1-d, all float32 or all float64; ``names`` are for errors.

    Raises
    ------
    InputError
        For a NaN, which has no rank.

    Examples
    --------
    >>> [x.tolist() for x in keep_highest([np.array([3.0, 1.0]), np.array([1.0, 2.0])], 2, "ab")]
    [[True, False], [False, True]]
    """
    if not leaves:
        return []
    keys = Keys(leaves[0].dtype, magnitude)
    total = sum(x.size for x in leaves)
    low, high = _between(leaves, keys, total, prune)
    masks, found = _divide(leaves, keys, names, low, high)
    # Of those in between, so many are among the lowest.
    need = prune - (total - sum(part.above + len(part.keys) for part in found))
    if not 0 <= need <= sum(len(part.keys) for part in found):
        masks, found = _divide(leaves, keys, names, keys.unsigned(0), keys.largest)
        need = prune
    drop = lowest(np.concatenate([part.keys for part in found]), need)
    start = 0
    for mask, part in zip(masks, found, strict=True):
        mask[part.positions] = ~drop[start : start + len(part.keys)]
        start += len(part.keys)
    return masks


def lowest(keys: Any, count: int) -> Any:
    """Mark the ``count`` lowest of the 1-d ``keys``, the first of equal ones, with ``True``."""
    if count == 0:
        return np.zeros(len(keys), bool)
    limit = np.partition(keys, count - 1)[count - 1]
    drop: Any = keys < limit
    ties = np.flatnonzero(keys == limit)
    drop[ties[: count - int(np.count_nonzero(drop))]] = True
    return drop


def keep_highest_in_rows(rows: Any, prune: int, name: str, *, magnitude: bool = False) -> Any:
    """Return ``keep_highest`` for each row of a 2-d array by itself: a bool array of its shape.

    >>> keep_highest_in_rows(np.array([[3.0, 1.0, 1.0], [0.0, 2.0, 1.0]]), 1, "w").tolist()
    [[True, False, True], [False, True, True]]
    """
    keys = Keys(rows.dtype, magnitude)
    k = keys.of(np.ascontiguousarray(rows).reshape(-1)).reshape(rows.shape)
    if k.size and not keys.ranked(k):
        raise _unranked(name)
    if prune == 0 or not k.size:
        return np.ones(k.shape, bool)
    if k.shape[1] <= FEW:
        return _compared(np.ascontiguousarray(k.T), prune).T
    limit = np.partition(k, prune - 1, axis=1)[:, prune - 1 : prune]
    below, equal = k < limit, k == limit
    left = prune - np.count_nonzero(below, axis=1, keepdims=True)
    return ~(below | (equal & (np.cumsum(equal, axis=1) <= left)))


def _compared(columns: Any, prune: int) -> Any:
    """Return the masks of rows so short that each pair of their elements is compared, in all rows at once."""
    below = np.zeros(columns.shape, np.uint8)
    for i, j in combinations(range(len(columns)), 2):
        first = columns[i] <= columns[j]
        below[j] += first
        below[i] += ~first
    return below >= prune


def _between(leaves: Sequence[Any], keys: Keys, total: int, prune: int) -> tuple[Any, Any]:
    """Two keys between which the limit should lie: four deviations of a sample's rank to either side."""
    if total <= 4 * SAMPLE:
        return keys.unsigned(0), keys.largest
    stride = total // SAMPLE
    sample = np.sort(np.concatenate([keys.of(np.ascontiguousarray(x[::stride])) for x in leaves]))
    n, share = len(sample), prune / total
    margin = 4 * math.sqrt(n * share * (1 - share)) + 4
    low, high = math.floor(n * share - margin), math.ceil(n * share + margin)
    return (
        sample[low] if 0 <= low < n else keys.unsigned(0),
        sample[high] if 0 <= high < n else keys.largest,
    )


class _Middle(NamedTuple):
    """The elements of a leaf, or a part of it, that lie between two keys, and how many lie above."""

    positions: Any
    keys: Any
    above: int


def _divide(
    leaves: Sequence[Any], keys: Keys, names: Sequence[str], low: Any, high: Any
) -> tuple[list[Any], list[_Middle]]:
    """Divide each leaf: into the mask of what lies above ``high``, and what lies from ``low`` to it."""
    masks = [aligned((x.size,), np.bool_) for x in leaves]
    cut = [(i, start) for i, x in enumerate(leaves) for start in range(0, x.size, PIECE)]

    def divide(piece: tuple[int, int]) -> _Middle | None:
        i, start = piece
        here = slice(start, start + PIECE)
        return _divided(leaves[i][here], masks[i][here], keys, low, high)

    parts: list[list[_Middle]] = [[] for _ in leaves]
    for (i, start), part in zip(cut, POOL.each(divide, cut, sum(x.size for x in leaves)), strict=True):
        if part is None:
            raise _unranked(names[i])
        parts[i].append(part._replace(positions=part.positions + start))
    return masks, [_joined(keys, of_leaf) for of_leaf in parts]


def _divided(x: Any, mask: Any, keys: Keys, low: Any, high: Any) -> _Middle | None:
    """Divide a part of a leaf, writing its part of the mask; ``None`` where it holds a NaN."""
    values, between = np.empty(BLOCK, keys.unsigned), np.empty(BLOCK, np.bool_)
    found = []
    for start in range(0, x.size, BLOCK):
        block, over = x[start : start + BLOCK], mask[start : start + BLOCK]
        k, inside = keys.of(block, out=values[: block.size]), between[: block.size]
        if not keys.ranked(k):
            return None
        np.greater(k, high, out=over)
        # What is above is not below: the two differ where it is neither.
        np.bitwise_xor(np.greater_equal(k, low, out=inside), over, out=inside)
        here = np.flatnonzero(inside)
        found.append(_Middle(here + start, k[here], int(np.count_nonzero(over))))
    return _joined(keys, found)


def _joined(keys: Keys, parts: Sequence[_Middle]) -> _Middle:
    return _Middle(
        np.concatenate([np.empty(0, np.intp), *(part.positions for part in parts)]),
        np.concatenate([np.empty(0, keys.unsigned), *(part.keys for part in parts)]),
        sum(part.above for part in parts),
    )


def _unranked(name: str) -> InputError:
    return InputError(f"{name!r} holds NaN, which has no rank; expected numbers. Nothing was changed")
