"""Lifting on PyTorch: through the host's memory on CPU, op by op elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import torch

from polyopt.backend import Arrays, Lifted, Scalars
from polyopt.hostlift import HostLift, disjoint
from polyopt.hostmemory import Shapes
from polyopt.lifting import evaluate_leaves
from polyopt.trace import Program
from polyopt_torch import ops
from polyopt_torch.memory import DTYPES, NAMES, host_view, tensor_view

if TYPE_CHECKING:
    from polyopt_torch.backend import TorchBackend

_PLAIN = {torch.Tensor, torch.nn.Parameter}


def lift(backend: TorchBackend, program: Program, compiled: bool) -> Lifted:
    """``program`` over a list of tensors, none of which joins a graph."""
    host = HostLift(program, TorchMemory())

    def run(
        arrays: Arrays, scalars: Scalars, dtype: str, donate: bool = False
    ) -> dict[str, list[torch.Tensor]]:
        with torch.no_grad():
            if compiled and _in_host_memory(arrays):
                known = {
                    n: v.detach().item() if isinstance(v, torch.Tensor) else v for n, v in scalars.items()
                }
                return host(arrays, known, dtype, donate)
            return _op_by_op(backend, program, arrays, scalars, dtype, donate)

    return run


def _in_host_memory(arrays: Arrays) -> bool:
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    return all(
        set(map(type, leaves)) <= _PLAIN
        and all(x.is_cpu for x in leaves)
        and {x.layout for x in leaves} <= {torch.strided}
        for leaves in arrays.values()
    )


def _op_by_op(
    backend: TorchBackend,
    program: Program,
    arrays: Arrays,
    scalars: Scalars,
    dtype: str,
    donate: bool,
) -> dict[str, list[torch.Tensor]]:
    """The reference, for tensors on any device and for placeholders."""
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
    """``value`` in the memory of ``old``, or with its ``requires_grad``."""
    if donate:
        return old.copy_(value)
    return value.requires_grad_() if old.requires_grad else value


class TorchMemory:
    """The memory of CPU tensors. Called under ``no_grad``."""

    def dtype(self, kind: torch.dtype) -> np.dtype[Any]:
        name = NAMES[kind]
        return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)

    def host(self, x: torch.Tensor) -> Any:
        return host_view(x)

    def wrap(self, x: Any, like: torch.Tensor | None) -> torch.Tensor:
        result = tensor_view(x)
        return result.requires_grad_() if like is not None and like.requires_grad else result

    def assign(self, target: torch.Tensor, value: torch.Tensor) -> None:
        target.copy_(value)

    def views(self, buffer: Any, shapes: Shapes) -> Sequence[torch.Tensor]:
        sizes = [int(np.prod(s)) for s in shapes]
        parts = torch.split(torch.from_numpy(buffer), sizes)
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def gather(self, buffer: Any, views: Sequence[torch.Tensor], leaves: Sequence[torch.Tensor]) -> None:
        torch._foreach_copy_(list(views), list(leaves))

    def scatter(self, views: Sequence[torch.Tensor], leaves: Sequence[torch.Tensor]) -> None:
        torch._foreach_copy_(list(leaves), list(views))

    def fresh(self, views: Sequence[torch.Tensor], like: Sequence[torch.Tensor] | None) -> list[torch.Tensor]:
        if like is None:
            return [view.clone() for view in views]
        return [
            view.to(x.dtype, copy=True).requires_grad_(x.requires_grad)
            for view, x in zip(views, like, strict=True)
        ]

    def writable(self, leaves: Sequence[torch.Tensor]) -> bool:
        return True

    def disjoint(self, targets: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> bool:
        return disjoint(_bounds(targets), _bounds(others))

    def contiguous(self, leaves: Sequence[torch.Tensor], writable: bool) -> bool:
        return all(map(torch.Tensor.is_contiguous, leaves))

    def addresses(self, leaves: Sequence[torch.Tensor]) -> Any:
        return np.fromiter(map(torch.Tensor.data_ptr, leaves), np.int64, len(leaves))

    def empty(
        self, shapes: Shapes, storage: np.dtype[Any], like: Sequence[torch.Tensor] | None
    ) -> list[torch.Tensor]:
        dtype = DTYPES[storage.name]
        if like is None:
            return [torch.empty(shape, dtype=dtype) for shape in shapes]
        return [
            torch.empty(shape, dtype=dtype, requires_grad=x.requires_grad)
            for shape, x in zip(shapes, like, strict=True)
        ]

    def changed(self, leaves: Sequence[torch.Tensor]) -> None:
        # Autograd refuses a backward pass through a graph whose saved values have changed.
        torch.autograd.graph.increment_version([x for x in leaves if not x.is_inference()])


def _bounds(leaves: Sequence[torch.Tensor]) -> list[tuple[int, int]]:
    """First byte and the one after the last, for each."""
    return [(start := x.data_ptr(), start + _span(x)) for x in leaves]


def _span(x: torch.Tensor) -> int:
    if x.is_contiguous() or not x.numel():
        return x.nbytes
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return int((1 + last) * x.itemsize)
