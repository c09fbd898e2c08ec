"""Products of int8 matrices in int32, where PyTorch has fast ones."""

from __future__ import annotations

import torch


def int8_matmul(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor | None:
    """Return ``x @ w`` in int32 on a CUDA device; ``None`` elsewhere.

    On a CPU without VNNI ``torch._int_mm`` is a plain loop, 30 times slower than a float32 product. cuBLASLt
    takes more than 16 rows, and inner and outer sizes that are multiples of 8.
    """
    rows, inner = x.shape
    if x.device.type != "cuda" or inner % 8 or w.shape[1] % 8 or not inner or not w.shape[1]:
        return None
    padded = torch.nn.functional.pad(x, (0, 0, 0, 17 - rows)) if rows < 17 else x
    product: torch.Tensor = torch._int_mm(padded.contiguous(), w.contiguous())
    return product[:rows]
