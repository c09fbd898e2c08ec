"""Write into tensors, also those of inference mode, which PyTorch refuses to change outside of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def overwrite(targets: Sequence[Any], values: Sequence[Any]) -> None:
    """Copy ``values`` into ``targets``, casting."""
    with _allowed(targets):
        torch._foreach_copy_(list(targets), list(values))


def overwritten(target: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Give ``target``, of whatever type, with ``value`` in it."""
    with _allowed([target]):
        return target.copy_(value)


def _allowed(targets: Sequence[Any]) -> AbstractContextManager[Any]:
    return torch.inference_mode() if any(x.is_inference() for x in targets) else nullcontext()
