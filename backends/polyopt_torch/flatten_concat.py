"""Tensors one after the other in a flat one, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def join(arrays: Sequence[torch.Tensor]) -> torch.Tensor:
    """Put the elements of ``arrays`` one after the other."""
    return torch.cat([x.reshape(-1) for x in arrays])


def split(x: torch.Tensor, shapes: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
    """Cut ``x`` into views; the gradient of the cut as a whole is one concatenation."""
    parts = torch.split(x, [math.prod(shape) for shape in shapes])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
