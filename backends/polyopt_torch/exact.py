"""Operations whose bits PyTorch leaves open on the CPU, made definite.

``torch.sqrt`` goes through a vector library (MKL's, on x86) whose float32 root is off by one unit in the last
place for about a fifth of all values (https://github.com/pytorch/pytorch/issues/31250). IEEE 754 has the root
correctly rounded, as NumPy does; so it is taken there. ``torch.maximum`` gives a zero whose sign depends on
the tensor's length (https://github.com/pytorch/pytorch/issues/193781).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

_PLAIN = (torch.Tensor, torch.nn.Parameter)


def sqrt(x: torch.Tensor, /) -> torch.Tensor:
    """Return the square root, correctly rounded on CPU and differentiable.

    Inside ``torch.compile``, and for tensors of other kinds (fake, distributed, meta), it is PyTorch's.
    """
    if torch.compiler.is_compiling() or not x.is_floating_point() or x.device.type != "cpu":
        return torch.sqrt(x)
    if torch._C._functorch.is_functorch_wrapped_tensor(x):
        return _differentiable(x)
    if type(x) not in _PLAIN:
        return torch.sqrt(x)
    if x.requires_grad and torch.is_grad_enabled():
        return _differentiable(x)
    # A forward-mode tangent rides on a tensor without showing in requires_grad.
    return _differentiable(x) if torch.autograd.forward_ad._current_level >= 0 else _root(x)


def maximum(x1: torch.Tensor, x2: torch.Tensor, /) -> torch.Tensor:
    """Return the larger one; of two zeros the second, which is NumPy's choice on x86.

    PyTorch's choice between 0.0 and -0.0 depends on the element's position. Under differentiation it is
    left alone: its gradient at a tie is half for each.
    """
    return _second_of_equals(torch.maximum(x1, x2), x1, x2)


def minimum(x1: torch.Tensor, x2: torch.Tensor, /) -> torch.Tensor:
    """Return the smaller one; of two zeros the second, as for ``maximum``."""
    return _second_of_equals(torch.minimum(x1, x2), x1, x2)


def _second_of_equals(chosen: torch.Tensor, x1: torch.Tensor, x2: torch.Tensor) -> torch.Tensor:
    if chosen.requires_grad or not chosen.is_floating_point():
        return chosen
    return torch.where(x1 == x2, x2, chosen)


def _root(x: torch.Tensor) -> torch.Tensor:
    """Return the root of a plain CPU tensor, through NumPy on the same memory."""
    x = x.detach()
    if x.dtype in (torch.float16, torch.bfloat16):
        # Rounding a float32 root once more is exact: 24 bits are at least 2 * 11 + 2 (Figueroa, 1995).
        return _root(x.float()).to(x.dtype)
    result = torch.empty_like(x)
    with np.errstate(invalid="ignore"):
        np.sqrt(x.numpy(), out=result.numpy())
    return result


class _Sqrt(torch.autograd.Function):
    """The exact root with PyTorch's own derivative, g / (2 sqrt(x)), for every mode and order."""

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return sqrt(x) if torch._C._functorch.is_functorch_wrapped_tensor(x) else _root(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> torch.Tensor:
        (root,) = ctx.saved_tensors
        derivative: torch.Tensor = gradients[0] / (2 * root)
        return derivative

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> torch.Tensor:
        (root,) = ctx.saved_tensors
        derivative: torch.Tensor = tangents[0] / (2 * root)
        return derivative

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None], x: torch.Tensor) -> tuple[torch.Tensor, int | None]:
        return sqrt(x), in_dims[0]


def _differentiable(x: torch.Tensor) -> torch.Tensor:
    root: torch.Tensor = _Sqrt.apply(x)  # type: ignore[no-untyped-call]
    return root
