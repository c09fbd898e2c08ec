"""Read dtype, shape and address of a thousand arrays in some microseconds.

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
from typing import Any, Protocol, TypeAlias

import numpy as np

from polyopt.backend.host import numba_kernel

ADDRESS, SIZE, KIND, FLAGS, RANK, SHAPE = range(6)
"""Columns of a survey: where the data starts, how many elements, a code of the dtype, …, the first axis."""
CONTIGUOUS, WRITABLE = 1, 2
MOST_AXES = 8
FIELDS = SHAPE + MOST_AXES

SAME, MOVED = 1, 2
"""Results of a watch: arrays of the same kinds at the same addresses, or at others. Any other array is 0."""

BLOCK = 512
"""Arrays that are read together: what is known of them fits the caches."""

_LOOP = f"""
def kernel(job):
    lists, columns, leaves, by_list = load(job), load(job + 8), load(job + 16), load(job + 24)
    facts, known, scratch, constants = load(job + 32), load(job + 40), load(job + 48), load(job + 56)
    type0, type1 = load(job + 64), load(job + 72)
    places = scratch + {8 * MOST_AXES}
    found = {SAME}
#CONSTANTS#
    for column in range(columns):
        objects = load(lists + 8 * column)
        if by_list:
            objects = load(objects + 24)
        first = 0
        while first < leaves:
            last = first + {BLOCK}
            if last > leaves:
                last = leaves
            for leaf in range(first, last):
                of = load(load(objects + 8 * leaf) + 8)
                if of != type0 and of != type1:
                    return
#WARM#
            for leaf in range(first, last):
                item = load(objects + 8 * leaf)
#READ#
                if rank > {MOST_AXES}:
                    return
                row = facts + {8 * FIELDS} * (column * leaves + leaf)
                size, other = 1, 0
                for k in range(rank):
                    n = load(shape + 8 * k)
                    size *= n
                    other |= load(row + {8 * SHAPE} + 8 * k) ^ n
                    if not known:
                        store(row + {8 * SHAPE} + 8 * k, n)
                if known:
                    other |= (load(row + {8 * SIZE}) ^ size) | (load(row + {8 * KIND}) ^ kind)
                    other |= (load(row + {8 * FLAGS}) ^ flags) | (load(row + {8 * RANK}) ^ rank)
                    if other != 0:
                        return
                else:
                    store(row + {8 * SIZE}, size)
                    store(row + {8 * KIND}, kind)
                    store(row + {8 * FLAGS}, flags)
                    store(row + {8 * RANK}, rank)
                if load(row) != data:
                    found = {MOVED}
                    store(row, data)
            first = last
    store(job + 80, found)
"""

NUMPY = f"""
        data, kind, bits, shape = load(item + 16), load(item + 56), load(item + 64), load(item + 32)
        rank = load(item + 24) & 0xffffffff
        flags = ({CONTIGUOUS} if bits & 0x101 == 0x101 else 0) | ({WRITABLE} if bits & 0x400 else 0)
"""

DLPACK = """
        if call(c0, item, scratch) != 0:
            return
        data = load(scratch) + load(scratch + 40)
        if load(scratch + 8) & 0xffffffff != 1:
            return
        rank, kind = load(scratch + 16) & 0xffffffff, (load(scratch + 16) >> 32) & 0xffffffff
        shape, strides = load(scratch + 24), load(scratch + 32)
#STRIDED#
        if expected != 0 and data == 0:
            return
"""

STRIDED = f"""
        expected, flags = 1, {CONTIGUOUS | WRITABLE}
        for k in range(rank - 1, -1, -1):
            if load(shape + 8 * k) != 1 and load(strides + 8 * k) != expected:
                flags = {WRITABLE}
            expected *= load(shape + 8 * k)
        if expected == 0:
            flags = {CONTIGUOUS | WRITABLE}
"""
"""The ``flags`` of what has these ``strides``, and how many elements are ``expected`` of its ``shape``."""

DLPACK = DLPACK.replace("#STRIDED#", STRIDED.strip("\n"))


Watch: TypeAlias = Callable[[Sequence[list[Any]]], int]
"""Holds columns of leaves against the facts that it was made for, whose addresses it brings up to date:
``SAME``, ``MOVED``, or 0 where they are others. For one thread at a time."""


class ArrayTable(Protocol):
    """Read a table of facts about lists of arrays: see ``Survey``."""

    def facts(self, columns: Sequence[list[Any]]) -> Any | None:
        """Return an int64 array with a row for each leaf of each column, ``None`` where one can't be read."""

    def watch(self, facts: Any) -> Watch:
        """Make what holds later arrays against ``facts``."""


class Survey:
    """Facts about the arrays of a framework.

    Parameters
    ----------
    types
        The types of its arrays, one or two: nothing else is looked into.
    reader
        The part of the loop, in numba's Python, that sets ``data``, ``kind``, ``flags``, ``rank`` and
        ``shape``, the address of its sizes, from ``item``, the address of an array's object, or returns
        where it can't. It may ``load`` and ``store`` words, ``call`` and ``invoke`` C functions (see
        ``polyopt.backend.host.numba_kernel``) and use the words at ``scratch``. There are no arrays in it:
        numba would compile for seconds.
    constants
        What ``c0``, ``c1``, … are there: addresses of functions, say.
    warm
        What comes before the reader, for the arrays ``first`` to ``last`` of ``objects`` at once: it brings
        what they consist of into the caches, one kind of thing after the other, for a processor waits for
        many loads at a time where none needs the one before. It has a word for each at ``places``.
    """

    def __init__(
        self, types: Sequence[type], reader: str, constants: Sequence[int] = (), warm: str = ""
    ) -> None:
        self._types = [id(types[0]), id(types[-1])]
        self._constants = np.array([*constants, 0], np.int64)
        self._run = _compiled(reader, warm, len(constants))

    def facts(self, columns: Sequence[list[Any]]) -> Any | None:
        """Return an int64 array with a row for each leaf of each column, ``None`` where one can't be read so.

        The columns are lists of one length.
        """
        facts = np.zeros((len(columns), len(columns[0]), FIELDS), np.int64)
        return facts if self._prepared(facts, False)(columns) else None

    def watch(self, facts: Any) -> Watch:
        """Return what holds other leaves against ``facts``: all is prepared that doesn't depend on them."""
        return self._prepared(facts, True)

    def _prepared(self, facts: Any, known: bool) -> Watch:
        run, count, by_list = self._run, facts.shape[1], lists_are_read()
        lists = (ctypes.c_int64 * len(facts))()
        scratch, constants = np.empty(MOST_AXES + BLOCK, np.int64), self._constants
        places = (facts.ctypes.data, known, scratch.ctypes.data, constants.ctypes.data)
        words = (ctypes.addressof(lists), len(facts), count, by_list, *places, *self._types, 0)
        job = (ctypes.c_int64 * len(words))(*words)
        where, last = ctypes.addressof(job), len(words) - 1

        def survey(columns: Sequence[list[Any]], kept: Any = (facts, scratch, constants)) -> int:
            for i, leaves in enumerate(columns):
                if type(leaves) is not list or len(leaves) != count:
                    return 0
                lists[i] = id(leaves)
            if not by_list:
                items = np.array([id(x) for leaves in columns for x in leaves], np.int64)
                lists[:] = [items.ctypes.data + 8 * count * i for i in range(len(columns))]
            job[last] = 0
            run(where)
            return job[last]

        return survey


def numpy_survey() -> Survey | None:
    """Make the survey of ndarrays, if NumPy's arrays look here as its headers say."""
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
    """Make the survey of a framework's arrays by the DLPack exchange API, if it has that and it is right.

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
    """Return the survey, if ``expected`` are the facts that it gives of ``samples``."""
    facts = survey.facts([samples, samples[::-1]])
    return survey if facts is not None and facts.tolist() == [expected, expected[::-1]] else None


@lru_cache(maxsize=8)
def _compiled(reader: str, warm: str, constants: int) -> Callable[[int], None]:
    named = "\n".join(f"    c{k} = load(constants + {8 * k})" for k in range(constants))
    source = _LOOP.replace("#CONSTANTS#", named).replace("#WARM#", warm)
    # It reads what Python may change: the interpreter's lock is kept.
    kernel = numba_kernel.compile_kernel(source.replace("#READ#", indent(reader.strip("\n"), " " * 8)))
    return ctypes.PYFUNCTYPE(None, ctypes.c_size_t)(kernel)


@lru_cache(maxsize=1)
def lists_are_read() -> bool:
    """Return True if a list keeps its table (``PyListObject.ob_item``) where CPython 3.11 to 3.13 have it."""
    samples = [object(), None, []]
    length, first = (ctypes.c_size_t.from_address(id(samples) + at).value for at in (16, 24))
    if length != 3 or first % 8 or not first:
        return False
    return list((ctypes.c_size_t * 3).from_address(first)) == [id(x) for x in samples]
