"""Tensors and host arrays on the same memory, bfloat16 (which NumPy doesn't know) included."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import torch

NAMES = {
    torch.bool: "bool",
    torch.int8: "int8",
    torch.int16: "int16",
    torch.int32: "int32",
    torch.int64: "int64",
    torch.uint8: "uint8",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
}
DTYPES = {name: dtype for dtype, name in NAMES.items()}


def host_view(x: torch.Tensor) -> Any:
    """View the memory of a CPU tensor as a host array."""
    if x.requires_grad:
        x = x.detach()
    if x.is_neg():  # to be read: it is never written in place
        x = x.resolve_neg()
    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return x.numpy()


def tensor_view(x: Any) -> torch.Tensor:
    """View the memory of a writable host array as a tensor."""
    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def tensor_from_host(x: Any, *, copy: bool) -> torch.Tensor:
    """Make a tensor with the values of the host array ``x``, on its memory where that can be had."""
    x = np.asarray(x)
    if copy or not x.flags.writeable or not x.dtype.isnative or any(s < 0 for s in x.strides):
        x = x.astype(x.dtype.newbyteorder("="), order="C", copy=True)
    return tensor_view(x)
