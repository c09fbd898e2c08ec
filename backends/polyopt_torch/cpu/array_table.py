"""Read dtype, shape and address of many tensors at once from PyTorch's own structures.

A tensor's object holds the address of a ``c10::TensorImpl``, which holds its sizes, strides and dispatch keys
and the addresses of its ``c10::StorageImpl`` and of its version counter. Where in them is looked for in
samples of known contents when PyTorch is loaded, and tried on others: with another layout than is known here
there is no such survey, and tensors are read by DLPack's C functions, at several times the cost.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from polyopt.backend.host import numba_kernel
from polyopt.backend.host.array_table import (
    CONTIGUOUS,
    MOST_AXES,
    MOVED,
    STRIDED,
    WRITABLE,
    Survey,
    Watch,
    dlpack_survey,
    lists_are_read,
    tried,
)

TYPES = (torch.Tensor, torch.nn.Parameter)
WORDS = 26
"""Words of a ``TensorImpl`` that are looked at."""

# c0, …: the fields of Layout, two sets of dispatch keys, two dtypes, what marks memory to be copied when
# it is written to.
_WARM = """
            for leaf in range(first, last):
                store(places + 8 * (leaf - first), load(load(objects + 8 * leaf) + c0))
            touched = 0
            for k in range(last - first):
                impl = load(places + 8 * k)
                touched ^= load(impl + c2) ^ load(impl + c5)
                store(places + 8 * k, load(impl + c1))
            for k in range(last - first):
                if load(places + 8 * k) != 0:
                    touched ^= load(load(places + 8 * k) + 16)
            store(scratch, touched)
"""

_READER = f"""
        impl = load(item + c0)
        keys, of, storage = load(impl + c6), load(impl + c5) & 0xffffffff, load(impl + c1)
        if (keys != c7 and keys != c8) or storage == 0:
            return
        if of == c9:
            width, kind = 4, {2 | 32 << 8 | 1 << 16}
        elif of == c10:
            width, kind = 8, {2 | 64 << 8 | 1 << 16}
        else:
            return
        if load(storage + 24) == c11:
            return
        rank, shape, strides = load(impl + c2), impl + c2 + 8, impl + c3
        if rank > 5:
            shape = load(shape)
            strides = shape + 8 * rank
        data = load(storage + 16) + load(impl + c4) * width
{STRIDED.strip(chr(10))}
        if expected != 0 and load(storage + 16) == 0:
            return
"""

_CHANGED = """
def kernel(job):
    objects, count, tensor, version = load(load(job) + 24), load(job + 8), load(job + 16), load(job + 24)
    for leaf in range(count):
        counter = load(load(load(objects + 8 * leaf) + tensor) + version)
        if counter != 0:
            carray(address(counter + 16), 1, np.uint32)[0] += 1
"""


@dataclass(frozen=True)
class Layout:
    """Hold offsets in bytes: of the tensor in its Python object, of its parts in the tensor."""

    tensor: int
    storage: int
    rank: int
    strides: int
    offset: int
    kind: int
    keys: int


def _words(where: int, count: int) -> list[int]:
    return list((ctypes.c_uint64 * count).from_address(where))


@lru_cache(maxsize=1)
def layout() -> Layout | None:
    """Find the offsets in samples of known contents; ``None`` where one isn't found exactly once."""
    base = torch.arange(2000.0)
    x = base.as_strided((3, 5, 7), (211, 11, 2), 37)
    try:
        impl = _words(x._cdata, WORDS)
        sizes = _find(impl, [3, 3, 5, 7])
        kind = next(i for i, word in enumerate(impl) if word & 0xFFFFFFFF == 0xFF000006)
        return Layout(
            8 * _words(id(x), 6).index(x._cdata),
            8 * impl.index(x.untyped_storage()._cdata),
            8 * sizes,
            8 * _find(impl, [211, 11, 2]),
            8 * impl.index(37),
            8 * kind,
            8 * impl.index(torch._C._dispatch_keys(x).raw_repr()),
        )
    except (AttributeError, ValueError, StopIteration):
        return None


def _find(words: list[int], part: list[int]) -> int:
    return next(i for i in range(len(words)) if words[i : i + len(part)] == part)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


@lru_cache(maxsize=1)
def direct() -> Survey | None:
    """Make the survey by the structures themselves, if they look as described above."""
    at = layout()
    if at is None:
        return None
    with torch.inference_mode():
        frozen = torch.ones(4)
    shared = torch.ones(3)
    plain = torch.ones(3, dtype=torch.float64)
    known = [_words(x._cdata, WORDS) for x in (shared, frozen, plain)]
    try:
        copy = torch._lazy_clone(shared)  # its memory is shared until one of the two is written to
        lazy = _words(copy.untyped_storage()._cdata, 4)[3]
    except (AttributeError, RuntimeError):
        return None
    keys = [known[0][at.keys // 8], known[1][at.keys // 8]]
    kinds = [known[0][at.kind // 8] & 0xFFFFFFFF, known[2][at.kind // 8] & 0xFFFFFFFF]
    constants = [_signed(x) for x in (*astuple(at), *keys, *kinds, lazy)]
    survey = Survey(TYPES, _READER, constants, _WARM)
    refused = [copy, torch.ones(2, dtype=torch.int32), torch.ones(2, device="meta"), torch.eye(2).to_sparse()]
    refused += [torch.ones(2, dtype=torch.complex64).conj().imag, torch.ones(3, dtype=torch.bfloat16)]
    if any(survey.facts([[x]]) is not None for x in refused):
        return None
    return tried(survey, *samples())


def samples() -> tuple[list[Any], list[list[int]]]:
    """Tensors, and what a survey finds of them."""
    with torch.inference_mode():
        frozen = torch.ones(2, 5, dtype=torch.float64)
    made: list[Any] = [
        torch.arange(3.0),
        torch.nn.Parameter(torch.ones(4, 2, dtype=torch.float64)),
        torch.ones(()),
        torch.ones(0, 3),
        torch.ones(6, 5)[1:, ::2].requires_grad_(),
        torch.from_numpy(np.ones((3, 1, 4)))[:, 0],
        torch.ones(2, 1, 2, 1, 3, 2)[1:],
        torch.ones(1, 2, 3, 1, 2, 2, 2).transpose(1, 5),
        frozen,
    ]
    return made, [
        [
            x.data_ptr(),
            x.numel(),
            2 | x.itemsize << 11 | 1 << 16,
            CONTIGUOUS * x.is_contiguous() + WRITABLE,
            x.ndim,
            *x.shape,
            *[0] * (MOST_AXES - x.ndim),
        ]
        for x in made
    ]


class TensorSurvey:
    """The survey by PyTorch's structures, and by DLPack for tensors that it doesn't know."""

    def __init__(self, direct: Survey | None) -> None:
        self._direct = direct

    def facts(self, columns: Sequence[list[Any]]) -> Any | None:
        """Return the tensors' facts, by the structures where they show them, else by DLPack."""
        found = None if self._direct is None else self._direct.facts(columns)
        other = exchanged() if found is None else None
        if other is not None:
            found = other.facts(columns)
            found = found if found is not None and _positive(columns) else None
        return found

    def watch(self, facts: Any) -> Watch:
        direct = None if self._direct is None else self._direct.watch(facts)

        def survey(columns: Sequence[list[Any]]) -> int:
            if direct is not None and (found := direct(columns)):
                return found
            other = exchanged()
            # What gave up half-way has some of the new addresses: that they moved is not seen any more.
            read = other is not None and other.watch(facts)(columns) and _positive(columns)
            return MOVED if read else 0

        return survey


def _positive(columns: Sequence[list[Any]]) -> bool:
    """Return True if what lies in memory are the values; such a tensor may stand for their negatives."""
    return not any(map(torch.Tensor.is_neg, (x for leaves in columns for x in leaves)))


@lru_cache(maxsize=1)
def exchanged() -> Survey | None:
    """Return the survey by DLPack; compiled when it is needed."""
    return dlpack_survey(TYPES, *samples())


@lru_cache(maxsize=1)
def tensors() -> TensorSurvey | None:
    """Return the survey of tensors, if there is one here."""
    at_once = direct()
    return None if at_once is None and exchanged() is None else TensorSurvey(at_once)


@lru_cache(maxsize=1)
def count_changes() -> Callable[[list[torch.Tensor]], None] | None:
    """Return a function that counts a change of many tensors, as ``increment_version`` does.

    ``None`` where PyTorch's structures are not those described above.
    """
    at = layout()
    if at is None or direct() is None or not lists_are_read():
        return None
    run = ctypes.PYFUNCTYPE(None, ctypes.c_size_t)(numba_kernel.compile_kernel(_CHANGED))
    words = ctypes.c_int64 * 4

    def changed(leaves: list[torch.Tensor]) -> None:
        job = words(id(leaves), len(leaves), at.tensor, at.storage + 24)
        run(ctypes.addressof(job))

    with torch.inference_mode():
        frozen = torch.ones(1)
    some = [torch.ones(2), torch.nn.Parameter(torch.ones(2)), torch.ones(4)[1:], frozen]
    if any(_word_of(x, at.storage // 8 + 3) % 8 for x in some):
        return None
    torch.autograd.graph.increment_version(some[:2])
    changed(some)
    return changed if [x._version for x in some[:3]] == [2, 2, 1] else None


def _word_of(x: torch.Tensor, index: int) -> int:
    return _words(x._cdata, WORDS)[index]
