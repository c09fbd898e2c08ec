"""What the arrays of a list are and where they lie, for a thousand of them in some microseconds.

Asking each array in Python costs more than updating a small one. A compiled loop reads the same facts from
memory: NumPy's arrays by the layout that its C API publishes (``PyArrayObject_fields``), other frameworks'
through the C functions of the DLPack exchange API (``__dlpack_c_exchange_api__``). A reader is tried on
samples before it is trusted; where it fails there, there is none.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import lru_cache
from textwrap import indent
from typing import Any, Protocol

import numpy as np

from polyopt import native

ADDRESS, SIZE, KIND, FLAGS, RANK, SHAPE = range(6)
"""Columns of a survey: where the data starts, how many elements, a code of the dtype, …, the first axis."""
CONTIGUOUS, WRITABLE = 1, 2
MOST_AXES = 8
FIELDS = SHAPE + MOST_AXES

BLOCK = 512
"""Arrays that are read together: what is known of them fits the caches."""

_LOOP = f"""
def survey(lists, items, types, facts, known, constants, scratch):
    leaves = facts.shape[1]
    places = np.empty({BLOCK}, np.int64)
    for column in range(facts.shape[0]):
        table = lists[column]
        if len(items) == 0:
            table = carray(address(table), 4, np.int64)[3]
        objects = carray(address(table), leaves, np.int64)
        for first in range(0, leaves, {BLOCK}):
            last = min(first + {BLOCK}, leaves)
            for leaf in range(first, last):
                of = carray(address(objects[leaf]), 2, np.int64)[1]
                if of != types[0] and of != types[1]:
                    return column * leaves + leaf
#WARM#
            for leaf in range(first, last):
                item = objects[leaf]
                fields = carray(address(item), 9, np.int64)
#READ#
                if rank > {MOST_AXES}:
                    return column * leaves + leaf
                size = 1
                for k in range(rank):
                    size *= shape[k]
                row = facts[column, leaf]
                if known:
                    same = row[{SIZE}] == size and row[{KIND}] == kind
                    if not same or row[{FLAGS}] != flags or row[{RANK}] != rank:
                        return column * leaves + leaf
                    for k in range(rank):
                        if row[{SHAPE} + k] != shape[k]:
                            return column * leaves + leaf
                else:
                    row[{SIZE}], row[{KIND}], row[{FLAGS}], row[{RANK}] = size, kind, flags, rank
                    for k in range({MOST_AXES}):
                        row[{SHAPE} + k] = shape[k] if k < rank else 0
                row[{ADDRESS}] = data
    return -1
"""

NUMPY = f"""
        data, kind, bits = fields[2], fields[7], fields[8]
        rank = fields[3] & 0xffffffff
        shape = carray(address(fields[4]), rank, np.int64)
        flags = ({CONTIGUOUS} if bits & 0x101 == 0x101 else 0) | ({WRITABLE} if bits & 0x400 else 0)
"""

DLPACK = f"""
        if call(constants[0], item, scratch.ctypes.data) != 0:
            return leaf
        data = scratch[0] + scratch[5]
        if scratch[1] & 0xffffffff != 1:
            return leaf
        rank, kind = scratch[2] & 0xffffffff, (scratch[2] >> 32) & 0xffffffff
        shape = carray(address(scratch[3]), rank, np.int64)
        strides = carray(address(scratch[4]), rank, np.int64)
        expected, flags = 1, {CONTIGUOUS | WRITABLE}
        for k in range(rank - 1, -1, -1):
            if shape[k] != 1 and strides[k] != expected:
                flags = {WRITABLE}
            expected *= shape[k]
        if expected == 0:
            flags = {CONTIGUOUS | WRITABLE}
        elif data == 0:
            return leaf
"""

_ITEMS = """
def items(sequence, out):
    first = carray(address(sequence), 4, np.int64)[3]
    found = carray(address(first), len(out), np.int64)
    for i in range(len(out)):
        out[i] = found[i]
"""


class Facts(Protocol):
    """What gives facts about lists of arrays: see :class:`Survey`."""

    def facts(self, columns: Sequence[list[Any]]) -> Any | None: ...

    def again(self, columns: Sequence[list[Any]], facts: Any) -> bool: ...


class Survey:
    """Facts about the arrays of a framework.

    Parameters
    ----------
    types
        The types of its arrays, one or two: nothing else is looked into.
    reader
        The part of the loop, in numba's Python, that sets ``data``, ``kind``, ``flags``, ``rank`` and
        ``shape`` from ``item``, the address of an array's object, or returns ``leaf`` where it can't. It
        may ``call`` and ``invoke`` C functions (see :mod:`polyopt.native`) and write to ``scratch``.
    constants
        What ``constants[k]`` is there: addresses of functions, say.
    warm
        What comes before the reader, for the arrays ``first`` to ``last`` of ``objects`` at once: it brings
        what they consist of into the caches, one kind of thing after the other, for a processor waits for
        many loads at a time where none needs the one before. It may write to ``places``.
    """

    def __init__(
        self, types: Sequence[type], reader: str, constants: Sequence[int] = (), warm: str = ""
    ) -> None:
        ids = [id(t) for t in types]
        self._types = np.array([ids[0], ids[-1]], np.int64)
        self._constants = np.array([*constants, 0], np.int64)
        self._run = _compiled(reader, warm)

    def facts(self, columns: Sequence[list[Any]]) -> Any | None:
        """An int64 array with a row for each leaf of each column, ``None`` where one can't be read so.

        The columns are lists of one length.
        """
        facts = np.empty((len(columns), len(columns[0]), FIELDS), np.int64)
        return facts if self._survey(columns, facts, False) else None

    def again(self, columns: Sequence[list[Any]], facts: Any) -> bool:
        """Whether the leaves are what ``facts`` say but for their addresses, which are brought up to date."""
        return self._survey(columns, facts, True)

    def _survey(self, columns: Sequence[list[Any]], facts: Any, known: bool) -> bool:
        for leaves in columns:
            if type(leaves) is not list or len(leaves) != facts.shape[1]:
                return False
        if lists_are_read():
            lists, items = np.array([id(leaves) for leaves in columns]), _NONE
        else:
            items = np.array([id(x) for leaves in columns for x in leaves], np.int64)
            lists = items.ctypes.data + np.arange(len(columns)) * (8 * facts.shape[1])
        scratch = np.empty(MOST_AXES, np.int64)
        return bool(self._run(lists, items, self._types, facts, known, self._constants, scratch) < 0)


_NONE = np.empty(0, np.int64)


def numpy_survey() -> Survey | None:
    """The survey of ndarrays, if NumPy's arrays look here as its headers say."""
    samples = [np.arange(3.0), np.ones((4, 2), np.float32)[1::2], np.zeros(()), np.ones((2, 3), np.int8).T]
    samples[0].flags.writeable = False
    expected = [
        [
            x.ctypes.data,
            x.size,
            id(x.dtype),
            CONTIGUOUS * x.flags.c_contiguous + WRITABLE * x.flags.writeable,
            x.ndim,
            *x.shape,
            *[0] * (MOST_AXES - x.ndim),
        ]
        for x in samples
    ]
    return tried(Survey((np.ndarray,), NUMPY), samples, expected)


def dlpack_survey(types: Sequence[type], samples: list[Any], expected: list[list[int]]) -> Survey | None:
    """The survey of a framework's arrays by the DLPack exchange API, if it has that and it is right.

    ``expected`` are the facts of the ``samples``, of which one is not contiguous.
    """
    capsule = getattr(types[0], "__dlpack_c_exchange_api__", None)
    if capsule is None:
        return None
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    # {version: 2 x uint32, previous, allocator, from object, to object, dltensor_from_py_object_no_sync}
    fields = (ctypes.c_size_t * 6).from_address(pointer(capsule, b"dlpack_exchange_api"))
    if fields[0] & 0xFFFFFFFF != 1 or not fields[5]:
        return None
    return tried(Survey(types, DLPACK, fields[5:6]), samples, expected)


def tried(survey: Survey, samples: list[Any], expected: list[list[int]]) -> Survey | None:
    """The survey, if ``expected`` are the facts that it gives of ``samples``."""
    facts = survey.facts([samples, samples[::-1]])
    return survey if facts is not None and facts.tolist() == [expected, expected[::-1]] else None


@lru_cache(maxsize=8)
def _compiled(reader: str, warm: str) -> Callable[..., int]:
    source = _LOOP.replace("#READ#", indent(reader.strip("\n"), " " * 8)).replace("#WARM#", warm)
    kinds = "int64[::1], int64[::1], int64[::1], int64[:, :, ::1], boolean, int64[::1], int64[::1]"
    return native.compile_source(source, "survey", f"int64({kinds})")


@lru_cache(maxsize=1)
def lists_are_read() -> bool:
    """Whether a list keeps its table (``PyListObject.ob_item``) where CPython 3.11 to 3.13 have it."""
    read = native.compile_source(_ITEMS, "items", "void(int64, int64[::1])")
    samples = [object(), None, []]
    out = np.empty(3, np.int64)
    length, first = (ctypes.c_size_t.from_address(id(samples) + at).value for at in (16, 24))
    if length != 3 or first % 8 or not first:
        return False
    read(id(samples), out)
    return out.tolist() == [id(x) for x in samples]
