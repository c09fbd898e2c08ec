"""Make the tables of a kernel over many tensors: addresses, chunks and scalars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from polyopt_torch.gpu.triton_kernel import BLOCK


@dataclass(frozen=True)
class Table:
    """Addresses of every leaf in every column, and the chunks that leaves are cut into; on the device too."""

    addresses: Any
    on_device: torch.Tensor
    chunks: torch.Tensor
    aligned: bool
    """True if all addresses are multiples of 16."""


class Tables:
    """The latest tables of some sets of leaves."""

    KEPT = 16

    def __init__(self) -> None:
        self._tables: dict[tuple[Any, ...], Table] = {}

    def get(self, owner: object, device: torch.device, sizes: tuple[int, ...], addresses: Any) -> Table:
        """Return the table for leaves of these ``sizes``; make it anew where an address has changed.

        ``addresses``: int64, leaves by columns. ``owner``: the kernel, which knows the columns.
        """
        # By stream as well: what one stream copies to the device, another must not read at once.
        stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
        key = (id(owner), device, stream, sizes)
        table = self._tables.get(key)
        if table is not None and np.array_equal(table.addresses, addresses):
            return table
        chunks = uploaded(cut(sizes), device) if table is None else table.chunks
        aligned = not (addresses % 16).any()
        if table is None and len(self._tables) >= self.KEPT:
            self._tables.pop(next(iter(self._tables), key), None)
        self._tables[key] = table = Table(addresses, uploaded(addresses, device), chunks, aligned)
        return table


def cut(sizes: tuple[int, ...]) -> Any:
    """Chunks of at most ``BLOCK`` elements: an int64 row ``(leaf, offset, length)`` for each.

    >>> cut((3, 0, BLOCK + 1)).tolist()
    [[0, 0, 3], [2, 0, 1024], [2, 1024, 1]]
    """
    counts = np.array(sizes, np.int64)
    pieces = -(-counts // BLOCK)
    leaf = np.repeat(np.arange(len(counts)), pieces)
    first = np.repeat(np.cumsum(pieces) - pieces, pieces)
    offset = (np.arange(len(leaf)) - first) * BLOCK
    return np.stack([leaf, offset, np.minimum(counts[leaf] - offset, BLOCK)], axis=1)


def uploaded(x: Any, device: torch.device) -> torch.Tensor:
    """Put a host array on ``device``, without waiting for it."""
    tensor = torch.from_numpy(x)
    # PyTorch gives the pinned memory to nobody else before the copy is done.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def addresses_of(leaves: Sequence[torch.Tensor]) -> Any:
    """Return where the first element of each lies: int64."""
    return np.fromiter(map(torch.Tensor.data_ptr, leaves), np.int64, len(leaves))


def alike(leaf: Sequence[torch.Tensor]) -> bool:
    """Return True if all have their elements in the same order in one piece, as with channels last.

    >>> x = torch.ones(2, 3).T
    >>> alike([x, torch.ones_like(x)]), alike([x, x.contiguous()]), alike([x[:1], x[:1]])
    (True, False, False)
    """
    first = leaf[0]
    if any(x.shape != first.shape or x.stride() != first.stride() or x.is_neg() for x in leaf):
        return False
    expected = 1
    for stride, size in sorted(zip(first.stride(), first.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
