"""Gradients by PyTorch's autograd, of a tree of parameters that are left as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from polyopt.backend.gradients import check_loss
from polyopt.backend.protocol import LossFunction
from polyopt.core import tree
from polyopt.core.errors import InputError
from polyopt.core.tree import Tree
from polyopt_torch import ops


def value_and_grad(loss: LossFunction) -> Callable[..., tuple[torch.Tensor, Tree]]:
    """Return ``f(params, *args) -> (loss, gradients)``.

    ``loss`` gets leaves of its own on the caller's memory, so nobody's ``.grad`` or history is touched. A
    parameter that the loss doesn't depend on has gradient zero, and a leaf that is ``None`` has ``None``.

    Raises ``InputError`` for a leaf that isn't floating, and for a loss that isn't 0-d.
    """

    def run(params: Tree, *args: Any) -> tuple[torch.Tensor, Tree]:
        flat = tree.flatten(params)
        leaves = [_leaf(path, x) for path, x in zip(flat.paths, flat.leaves, strict=True)]
        with torch.enable_grad():
            value = check_loss(loss(ops, flat.unflatten(leaves), *args), torch.Tensor)
            gradients = iter(_gradients(value, [x for x in leaves if x is not None]))
        return value.detach(), flat.unflatten(None if x is None else next(gradients) for x in leaves)

    return run


def _leaf(path: str, x: torch.Tensor | None) -> torch.Tensor | None:
    if x is None:
        return None
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        raise InputError(
            f"parameter {path!r} is {getattr(x, 'dtype', type(x).__name__)}; expected a floating tensor"
        )
    return x.detach().requires_grad_()


def _gradients(value: torch.Tensor, leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    if not leaves or not value.requires_grad:
        return [torch.zeros_like(x) for x in leaves]
    found = torch.autograd.grad(value, leaves, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]
