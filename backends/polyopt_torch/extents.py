"""Tell where the elements of tensors lie, on any device."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import torch

from polyopt.backend.host.overlap import FOLDED, Extent, disjoint, folds, placed

PLAIN = {torch.Tensor, torch.nn.Parameter}
"""Types whose tensors lie in memory of their own device as their strides say."""


def extents(arrays: Sequence[torch.Tensor], written: int) -> list[Extent] | None:
    """Give the memory of each.

    ``None`` if none of the first ``written`` shares any with another, and none of those has a fault.
    """
    # By functions of C alone where nothing is special: it must not take longer than to update them.
    plain = set(map(type, arrays)) <= PLAIN and set(map(_LAYOUT, arrays)) == {torch.strided}
    if plain and all(map(torch.Tensor.is_contiguous, arrays)) and not any(map(torch.Tensor.is_neg, arrays)):
        starts = np.fromiter(map(torch.Tensor.data_ptr, arrays), np.int64, len(arrays))
        stops = starts + np.fromiter(map(_BYTES, arrays), np.int64, len(arrays))
        bounds = np.stack([starts, stops], axis=1)
        if starts.all() and disjoint(bounds[:written], bounds[written:]):
            return None
    return [extent(x) for x in arrays]


_LAYOUT, _BYTES = attrgetter("layout"), attrgetter("nbytes")


def extent(x: torch.Tensor) -> Extent:
    """Give the memory of ``x``; an empty one where it has none of its own."""
    if type(x) not in PLAIN or x.layout != torch.strided:
        return Extent(0, 0)
    start = x.data_ptr()
    if x.is_neg():
        return Extent(start, start + span(x), "stands for the negative of another tensor")
    if x.is_contiguous():
        if not start and x.numel():
            return Extent(0, 0, f"has no memory: its device is {x.device.type!r}")
        return Extent(start, start + x.nbytes)
    strides = _byte_strides(x)
    return Extent(start, start + span(x), FOLDED if folds(x.shape, strides, x.itemsize) else "")


def span(x: torch.Tensor) -> int:
    """Bytes from the first element's beginning to the last one's end."""
    if x.is_contiguous() or not x.numel():
        return x.nbytes
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return int((1 + last) * x.itemsize)


def stand_in(x: torch.Tensor) -> Any:
    """Give a host array with its elements where ``x`` has them; it is never read."""
    return placed(x.data_ptr(), x.shape, _byte_strides(x), x.itemsize)


def _byte_strides(x: torch.Tensor) -> list[int]:
    return [stride * x.itemsize for stride in x.stride()]
