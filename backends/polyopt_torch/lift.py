"""Lifting on PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from polyopt.backend import Lifted
from polyopt.lifting import evaluate_leaves
from polyopt.trace import Program
from polyopt_torch import ops

if TYPE_CHECKING:
    from polyopt_torch.backend import TorchBackend


def lift(backend: TorchBackend, program: Program, compiled: bool) -> Lifted:
    """Op by op."""

    def run(arrays: Any, scalars: Any, dtype: str, donate: bool = False) -> Any:
        return op_by_op(backend, program, arrays, scalars, dtype, donate)

    return run


@torch.no_grad()
def op_by_op(
    backend: TorchBackend, program: Program, arrays: Any, scalars: Any, dtype: str, donate: bool
) -> dict[str, list[torch.Tensor]]:
    """The reference, for tensors on any device and for placeholders."""
    leaves = arrays["p"]
    device = leaves[0].device if leaves else None
    kind = backend.dtype(dtype)
    values = {n: ops.asarray(v, dtype=kind, device=device) for n, v in (*scalars.items(), *program.constants)}
    detached = {n: [x.detach() for x in xs] for n, xs in arrays.items()}
    out = evaluate_leaves(backend, ops, program, detached, values, dtype)
    for name, results in out.items():
        if name not in arrays:
            continue
        if donate:
            for target, value in zip(arrays[name], results, strict=True):
                target.copy_(value)
            out[name] = list(arrays[name])
        else:
            out[name] = [
                value.clone() if value.data_ptr() == x.data_ptr() else value
                for x, value in zip(arrays[name], results, strict=True)
            ]
            for x, value in zip(arrays[name], out[name], strict=True):
                value.requires_grad_(x.requires_grad)
    return out
