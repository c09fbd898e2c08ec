"""Lifting on PyTorch: through the host's memory on CPU, by the device's kernels elsewhere."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from polyopt.backend.evaluate import evaluate_leaves
from polyopt.backend.host.fused import FusedLift
from polyopt.backend.host.lift import HostLift
from polyopt.backend.protocol import Arrays, Lifted, Scalars
from polyopt.core.trace import Program
from polyopt_torch import ops
from polyopt_torch.cpu.memory import TorchMemory, transformed
from polyopt_torch.extents import PLAIN
from polyopt_torch.gpu.lift import DeviceLift
from polyopt_torch.overwrite import overwritten

if TYPE_CHECKING:
    from polyopt_torch.backend import TorchBackend


def lift(backend: TorchBackend, program: Program, compiled: bool) -> Lifted:
    """Return ``program`` over a list of tensors, none of which joins a graph."""
    return TorchLift(backend, program) if compiled else partial(_op_by_op, backend, program)


class TorchLift:
    """The host lift where tensors lie in host memory, the device lift elsewhere."""

    def __init__(self, backend: TorchBackend, program: Program) -> None:
        self._backend, self._program = backend, program
        self._host = HostLift(program, TorchMemory())
        self.fused = self._host.fused
        self._device = DeviceLift(program, self)

    @property
    def repeatable(self) -> tuple[FusedLift, ...]:
        """Return the compiled kernel, where there is one."""
        return self.fused.repeatable

    def __call__(
        self, arrays: Arrays, scalars: Scalars, dtype: str, donate: bool = False
    ) -> dict[str, list[torch.Tensor]]:
        """Run the program over all leaves: by the compiled kernel, on a GPU, or op by op."""
        with torch.no_grad():
            look = self.fused.look(arrays, dtype, donate)
            if look is None and not _in_host_memory(arrays):
                found = None if transformed() else self._device(arrays, scalars, dtype, donate)
                if found is None:
                    found = _op_by_op(self._backend, self._program, arrays, scalars, dtype, donate)
                return found
            known = {n: v.detach().item() if isinstance(v, torch.Tensor) else v for n, v in scalars.items()}
            if look is None:
                return self._host.in_blocks(arrays, known, dtype, donate)
            return self.fused.run(look, arrays, known, dtype)


def _in_host_memory(arrays: Arrays) -> bool:
    return not transformed() and all(
        set(map(type, leaves)) <= PLAIN
        and all(x.is_cpu for x in leaves)
        and {x.layout for x in leaves} <= {torch.strided}
        for leaves in arrays.values()
    )


@torch.no_grad()
def _op_by_op(
    backend: TorchBackend,
    program: Program,
    arrays: Arrays,
    scalars: Scalars,
    dtype: str,
    donate: bool = False,
) -> dict[str, list[torch.Tensor]]:
    """Run the reference, for tensors on any device and for placeholders."""
    leaves = arrays["p"]
    kind = backend.dtype(dtype)
    device = leaves[0].device if leaves else None
    values = {n: ops.asarray(v, dtype=kind, device=device) for n, v in (*scalars.items(), *program.constants)}
    detached = {n: [x.detach() for x in xs] for n, xs in arrays.items()}
    out = evaluate_leaves(backend, ops, program, detached, values, dtype)
    given = {id(x) for leaves in detached.values() for x in leaves}
    # An output may be an input as it is, or one scalar for all elements: it gets memory of its own.
    out = {n: [x.clone() if id(x) in given else x.contiguous() for x in xs] for n, xs in out.items()}
    for name in out:
        if name in arrays:
            out[name] = [_owned(x, y, donate) for x, y in zip(arrays[name], out[name], strict=True)]
    return out


def _owned(old: torch.Tensor, value: torch.Tensor, donate: bool) -> torch.Tensor:
    """Return ``value`` in the memory of ``old``, or with its ``requires_grad``."""
    if donate:
        return overwritten(old, value)
    return value.requires_grad_() if old.requires_grad else value
