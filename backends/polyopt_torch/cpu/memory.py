"""Tensors on a CPU as host memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch

from polyopt.backend.host import numba_kernel
from polyopt.backend.host.array_table import ArrayTable
from polyopt.backend.host.memory import Shapes
from polyopt.backend.host.overlap import Extent
from polyopt.backend.host.threads import Team, openmp
from polyopt_torch.cpu.array_table import count_changes, tensors
from polyopt_torch.extents import extents
from polyopt_torch.host_views import DTYPES, NAMES, host_view, tensor_view
from polyopt_torch.overwrite import overwrite, overwritten


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
        overwritten(target, value)

    def views(self, buffer: Any, shapes: Shapes) -> Sequence[torch.Tensor]:
        sizes = [int(np.prod(s)) for s in shapes]
        parts = torch.split(torch.from_numpy(buffer), sizes)
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def gather(self, buffer: Any, views: Sequence[torch.Tensor], leaves: Sequence[torch.Tensor]) -> None:
        torch._foreach_copy_(list(views), list(leaves))

    def scatter(self, views: Sequence[torch.Tensor], leaves: Sequence[torch.Tensor]) -> None:
        overwrite(leaves, views)

    def fresh(self, views: Sequence[torch.Tensor], like: Sequence[torch.Tensor] | None) -> list[torch.Tensor]:
        if like is None:
            return [view.clone() for view in views]
        return [
            view.to(x.dtype, copy=True).requires_grad_(x.requires_grad)
            for view, x in zip(views, like, strict=True)
        ]

    def alike(
        self,
        columns: Sequence[Sequence[torch.Tensor]],
        shapes: Shapes,
        kinds: Sequence[Sequence[Any]],
        written: Sequence[bool],
    ) -> bool:
        return False

    def writable(self, leaves: Sequence[torch.Tensor]) -> bool:
        return True

    def extents(self, arrays: Sequence[torch.Tensor], written: int) -> list[Extent] | None:
        return None if transformed() else extents(arrays, written)

    def survey(self) -> ArrayTable | None:
        return tensors()

    def team(self) -> Team:
        return _team()

    def storage(self, kind: int) -> np.dtype[Any] | None:
        return _STORAGE.get(kind)

    def plain(self) -> bool:
        return not transformed()

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
        count = count_changes() if numba_kernel.available() else None
        if count is not None:
            count(leaves if type(leaves) is list else list(leaves))
            return
        try:
            torch.autograd.graph.increment_version(leaves)
        except RuntimeError:  # tensors made in inference mode have no version
            torch.autograd.graph.increment_version([x for x in leaves if not x.is_inference()])


def transformed() -> bool:
    """Return True if tensors stand for something else, inside ``torch.compile`` or ``torch.func``."""
    return torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None


_STORAGE = {2 | bits << 8 | 1 << 16: np.dtype(f"float{bits}") for bits in (32, 64)}
"""DLPack's code, bits and lanes of a dtype -> the host's."""


@lru_cache(maxsize=1)
def _team() -> Team:
    """PyTorch's own threads: after a backward pass they spin on the cores where others would run."""
    packages = Path(torch.__file__).parent
    own = [*packages.glob("lib/libgomp*.so*"), *packages.parent.glob("torch.libs/libgomp*.so*")]
    return openmp([*map(str, own), "libgomp.so.1"], torch.get_num_threads)
