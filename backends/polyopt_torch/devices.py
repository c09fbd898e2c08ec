"""PyTorch's devices by the names that polyopt shares between frameworks."""

from __future__ import annotations

import torch

from polyopt.core.errors import InputError


def usable() -> tuple[str, ...]:
    """Return ``"cpu"`` first, then ``"gpu:0"``, … for CUDA and ROCm, and ``"mps"``."""
    found = ["cpu"]
    if torch.cuda.is_available():
        found += [f"gpu:{i}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    return tuple(found)


def parse(name: str | None) -> torch.device:
    """Return the device of ``"cpu"``, ``"cuda:1"``, ``"gpu:0"`` or ``"mps"``; ``None``: PyTorch's default."""
    if name is None:
        return torch.get_default_device()
    kind, _, index = name.partition(":")
    shared = {"cuda": "gpu"}.get(kind, kind) + (f":{index}" if index else "")
    if shared == "gpu":
        shared = "gpu:0"
    known = usable()
    if shared.removesuffix(":0") not in known and shared not in known:
        raise InputError(f"device {name!r} can't be used here; usable: {', '.join(map(repr, known))}")
    return torch.device(shared.replace("gpu", "cuda"))


def name_of(x: torch.Tensor) -> str:
    """Return where ``x`` lies."""
    device = x.device
    if device.type == "cuda":
        return f"gpu:{device.index or 0}"
    return device.type


def synchronize() -> None:
    """Wait for everything queued on every accelerator."""
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            torch.cuda.synchronize(i)
    if torch.backends.mps.is_available():
        torch.mps.synchronize()
