"""The PyTorch backend: tensors and parameters, on CPU and accelerators."""

from __future__ import annotations

from polyopt_torch.backend import TorchBackend as TorchBackend

backend = TorchBackend()
