"""Lifting for tensors on accelerators: one launch for all leaves of a device, or as few as foreach needs.

Leaves are grouped by device and dtypes. A group on an NVIDIA GPU is one generated Triton kernel over a table
of addresses that is kept on the device and replaced when an address changes; any other is PyTorch's foreach.
The bits are those of the program op by op. It was never run on a GPU: see docs/backends.md.
"""

from __future__ import annotations

import logging
import operator
import weakref
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from polyopt.backend.generate import columns
from polyopt.backend.host.numpy_kernel import ScalarValues
from polyopt.backend.host.overlap import disjoint
from polyopt.backend.protocol import Arrays, Lifted, Scalars
from polyopt.core.trace import Program
from polyopt_torch.extents import span
from polyopt_torch.gpu import triton_kernel
from polyopt_torch.gpu.foreach import Foreach
from polyopt_torch.gpu.pointers import Tables, addresses_of, alike, uploaded
from polyopt_torch.gpu.triton_kernel import STORED, Kernel
from polyopt_torch.host_views import DTYPES
from polyopt_torch.overwrite import overwritten

_log = logging.getLogger("polyopt")
_PLAIN = {torch.Tensor, torch.nn.Parameter}

Tensors = list[torch.Tensor]


@dataclass(frozen=True)
class Kind:
    """Describe a tensor; ``contiguous``: its memory is its elements in order."""

    device: torch.device
    dtype: torch.dtype
    contiguous: bool


@dataclass(frozen=True)
class Group:
    """Leaves that can be computed together; ``regular``: each lies in one piece, in all columns alike."""

    device: torch.device
    dtypes: tuple[torch.dtype, ...]
    regular: bool


@dataclass(frozen=True)
class Seen:
    """The tensors of a column, not kept alive, and what they all are."""

    tensors: list[weakref.ref[torch.Tensor]]
    sizes: tuple[int, ...]
    kind: Kind


class _NotPlain(Exception):
    """A tensor of which PyTorch has to be asked, not its memory."""


class DeviceLift:
    """``program`` over plain tensors of any devices, under ``no_grad``.

    ``host`` is the lift for leaves in host memory that stand among them.
    """

    def __init__(self, program: Program, host: Lifted) -> None:
        self._program, self._host = program, host
        self._written, self._replaced, self._touched = program.written, program.replaced, program.touched
        self._seen: dict[str, Seen] = {}
        self._tables = Tables()
        self._without = lru_cache(maxsize=8)(self._make_without)
        self._kernel = lru_cache(maxsize=64)(self._make_kernel)

    def __call__(
        self, arrays: Arrays, scalars: Scalars, dtype: str, donate: bool = False
    ) -> dict[str, Tensors] | None:
        """Run the program; return ``None``, and do nothing, for tensors of other kinds.

        Also while a CUDA graph is captured, which would replay this step's scalars.

        Such are sparse, fake and distributed ones, and those on ``meta``.
        """
        sizes = tuple(map(torch.Tensor.numel, arrays["p"]))
        try:
            groups = self._groups(arrays, sizes)
        except _NotPlain:
            return None
        if any(_capturing(group.device) for group in groups):
            return None
        addresses = {n: addresses_of(arrays[n]) for n in self._touched}
        apart = not donate or self._apart(arrays, addresses, sizes, groups)
        out: dict[str, Tensors] = {n: [None] * len(sizes) for n in self._written}  # type: ignore[list-item]
        for group, indices in groups.items():
            if indices is None:
                out = self._run(group, arrays, addresses, sizes, scalars, dtype, donate and apart)
                continue
            own = {n: [xs[i] for i in indices] for n, xs in arrays.items()}
            starts = {n: x[indices] for n, x in addresses.items()}
            counts = tuple(sizes[i] for i in indices)
            found = self._run(group, own, starts, counts, scalars, dtype, donate and apart)
            for name, values in found.items():
                for i, value in zip(indices, values, strict=True):
                    out[name][i] = value
        if not apart:
            # Leaves that share memory: all were computed from the old values; now one after the other.
            for name in self._replaced:
                out[name] = [overwritten(x, y) for x, y in zip(arrays[name], out[name], strict=True)]
        return out

    # What there is

    def _groups(self, arrays: Arrays, sizes: tuple[int, ...]) -> dict[Group, list[int] | None]:
        """Return ``None`` for the indices of all leaves."""
        kinds = {n: self._kinds(n, arrays[n], sizes) for n in self._touched}
        uniform = [kind for kind in kinds.values() if isinstance(kind, Kind)]
        if len(uniform) == len(kinds) and len({kind.device for kind in uniform}) == 1:
            return {Group(uniform[0].device, tuple(kind.dtype for kind in uniform), True): None}
        groups: dict[Group, list[int] | None] = {}
        for i in range(len(sizes)):
            own = [kind if isinstance(kind, Kind) else kind[i] for kind in kinds.values()]
            leaf = [arrays[n][i] for n in self._touched]
            if len({kind.device for kind in own}) != 1 or len({x.shape for x in leaf}) != 1:
                raise _NotPlain
            regular = all(kind.contiguous for kind in own) or alike(leaf)
            group = Group(own[0].device, tuple(kind.dtype for kind in own), regular)
            indices = groups.setdefault(group, [])
            assert indices is not None
            indices.append(i)
        return groups

    def _kinds(self, name: str, leaves: Sequence[torch.Tensor], sizes: tuple[int, ...]) -> Kind | list[Kind]:
        """Return one kind where all are of it, contiguous and of the right sizes, else the kind of each.

        A tensor that was seen before is asked again only for what can change without its address.
        """
        seen = self._seen.get(name)
        if (
            seen is not None
            and seen.sizes == sizes
            and all(map(operator.is_, map(operator.call, seen.tensors), leaves))
            and all(map(torch.Tensor.is_contiguous, leaves))
        ):
            return seen.kind
        if not set(map(type, leaves)) <= _PLAIN or any(
            x.layout != torch.strided or x.is_meta for x in leaves
        ):
            raise _NotPlain
        pieces = [x.is_contiguous() and not x.is_neg() for x in leaves]
        if (
            not all(pieces)
            or len({x.dtype for x in leaves}) != 1
            or len({x.device for x in leaves}) != 1
            or tuple(map(torch.Tensor.numel, leaves)) != sizes
        ):
            self._seen.pop(name, None)
            return [Kind(x.device, x.dtype, piece) for x, piece in zip(leaves, pieces, strict=True)]
        kind = Kind(leaves[0].device, leaves[0].dtype, True)
        self._seen[name] = Seen(list(map(weakref.ref, leaves)), sizes, kind)
        return kind

    def _apart(
        self,
        arrays: Arrays,
        addresses: Mapping[str, Any],
        sizes: tuple[int, ...],
        groups: Mapping[Group, list[int] | None],
    ) -> bool:
        """Return True if what is replaced shares memory with nothing else."""
        group, indices = next(iter(groups.items()))
        spans = {}
        for k, n in enumerate(self._touched):
            if indices is None:
                spans[n] = np.array(sizes, np.int64) * group.dtypes[k].itemsize
            else:
                spans[n] = np.fromiter(map(span, arrays[n]), np.int64, len(sizes))

        def of(names: Sequence[str]) -> Any:
            found = [np.stack([addresses[n], addresses[n] + spans[n]], axis=1) for n in names]
            return np.concatenate(found) if found else np.empty((0, 2), np.int64)

        return disjoint(of(self._replaced), of([n for n in self._touched if n not in self._replaced]))

    # How it is computed

    def _run(
        self,
        group: Group,
        arrays: Arrays,
        addresses: Mapping[str, Any],
        sizes: tuple[int, ...],
        scalars: Scalars,
        dtype: str,
        donate: bool,
    ) -> dict[str, Tensors]:
        device = group.device
        if _on_host(device):
            return self._host(arrays, scalars, dtype, donate=donate)
        on_device, on_host = divided(scalars, device, DTYPES[dtype])
        program, foreach = self._without(frozenset(on_device))
        with np.errstate(all="ignore"):
            values = ScalarValues(program)(on_host, dtype)
        if group.regular and triton_kernel.usable(device):
            kernel = self._kernel(group.dtypes, dtype, donate, frozenset(on_device))
            if kernel is not None:
                found = self._launch(kernel, device, arrays, addresses, sizes, values, on_device, dtype)
                if found is not None:
                    return found
        with _on(device):
            return foreach(arrays, values, on_device, DTYPES[dtype], donate)

    def _launch(
        self,
        kernel: Kernel,
        device: torch.device,
        arrays: Arrays,
        addresses: Mapping[str, Any],
        sizes: tuple[int, ...],
        values: Mapping[str, Any],
        on_device: Mapping[str, torch.Tensor],
        dtype: str,
    ) -> dict[str, Tensors] | None:
        """Return ``None``, and nothing written, where Triton can't build the kernel."""
        out: dict[str, Tensors] = {}
        starts = []
        for column in kernel.columns:
            if column.given:
                starts.append(addresses[column.name])
                continue
            like, made = arrays.get(column.name), column.storage
            out[column.name] = [
                torch.empty_like(p, dtype=made, requires_grad=like is not None and like[i].requires_grad)
                for i, p in enumerate(arrays["p"])
            ]
            starts.append(addresses_of(out[column.name]))
        with _on(device):
            table = self._tables.get(kernel, device, sizes, np.stack(starts, axis=1))
            numbers = uploaded(np.array([float(values[n]) for n in kernel.scalars] or [0.0], dtype), device)
            resident = [on_device[n] for n in kernel.resident]
            if len(table.chunks) and not kernel.launch(table, numbers, resident):
                return None
        for name in kernel.in_place:
            out[name] = list(arrays[name])
            _changed(out[name])
        return out

    def _make_without(self, on_device: frozenset[str]) -> tuple[Program, Foreach]:
        """Make the program without the scalars on the device: what depends on them is not for the host."""
        scalars = tuple(n for n in self._program.scalars if n not in on_device)
        program = replace(self._program, scalars=scalars)
        return program, Foreach(program)

    def _make_kernel(
        self, dtypes: tuple[torch.dtype, ...], dtype: str, donate: bool, on_device: frozenset[str]
    ) -> Kernel | None:
        program, _ = self._without(on_device)
        if program.inexact:
            _log.debug(
                "the update of %s is slower, not one Triton kernel: no kernel can be generated for %s",
                ", ".join(self._written),
                ", ".join(program.inexact),
            )
        if program.inexact or not STORED.keys() >= set(dtypes):
            return None
        storage = dict(zip(self._touched, dtypes, strict=True))
        found = columns(program, storage, DTYPES[dtype], donate)
        narrow = (torch.float16, torch.bfloat16)
        if dtype == "float64" and any(c.written and c.storage in narrow for c in found):
            return None  # rounded twice, by way of float32
        return Kernel(program, dtype, found, tuple(sorted(on_device)))


def divided(
    scalars: Scalars, device: torch.device, dtype: torch.dtype
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Scalars that lie on an accelerator, and those whose values are at hand: nothing waits for a GPU."""
    on_device, on_host = {}, {}
    for name, value in scalars.items():
        if isinstance(value, torch.Tensor) and (not value.is_cpu or device.type == "cpu"):
            on_device[name] = value.detach().to(device, dtype)
        else:
            on_host[name] = value.item() if isinstance(value, torch.Tensor) else value
    return on_device, on_host


def _changed(leaves: Tensors) -> None:
    """Autograd refuses a backward pass through a graph whose saved values have changed."""
    try:
        torch.autograd.graph.increment_version(leaves)
    except RuntimeError:  # tensors made in inference mode have no version
        torch.autograd.graph.increment_version([x for x in leaves if not x.is_inference()])


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device's current stream."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _on_host(device: torch.device) -> bool:
    return device.type == "cpu" and not triton_kernel.interpreted()


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
