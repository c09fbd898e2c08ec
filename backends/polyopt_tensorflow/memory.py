"""Eager tensors on a CPU as host memory, written in place where they are given up and nothing else has it.

XLA for CPUs gives every result new memory and each a loop of its own: Adam took three to four times the time
that reading and writing its arrays takes. The compiled kernel of ``polyopt.backend.host.numba_kernel`` can do
it in place, but TensorFlow's tensors may share memory: a reshaped tensor is the same bytes, ``tf.constant``
may keep NumPy's. So an array counts as writable only where TensorFlow's own count of who holds the memory
says that it is this tensor alone, and where TensorFlow allocated it.

The count is read as TensorFlow's C API leads to it: ``TFE_TensorHandleResolve`` gives the ``TF_Tensor`` of an
eager tensor, which begins with a pointer to ``{table, shape, buffer}`` (``TensorInterface``), and the buffer
is ``{table, count, address}`` (``TensorBuffer``). Where each stands is found out on samples, by reads that
can't fail, and tried on others; where that is not as it should be, XLA does the work.
"""

from __future__ import annotations

import ctypes
import glob
import os
from collections.abc import Sequence
from functools import lru_cache
from struct import unpack
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context

from polyopt.backend.host import numba_kernel
from polyopt.backend.host.array_table import CONTIGUOUS, MOST_AXES, WRITABLE, Survey, tried
from polyopt.backend.host.memory import Shapes
from polyopt.backend.host.threads import POOL, Team

_HANDLE = "_Z18EagerTensor_HandlePK7_object"
"""``TFE_TensorHandle* EagerTensor_Handle(const PyObject*)``."""
_FUNCTIONS = (
    "TFE_TensorHandleResolve",
    "TF_TensorData",
    "TF_TensorType",
    "TF_NumDims",
    "TF_Dim",
    "TF_DeleteTensor",
)
_BUFFER = 32
"""Bytes from the beginning of a ``TensorInterface`` to its pointer to the buffer: a table, a shape."""

# constants: the handle's offset in the object, a status, the functions above, what a tensor alone counts,
# the tables of buffers that TensorFlow allocates.
_READER = f"""
        handle = load(item + c0)
        tensor = invoke(c2, handle, c1)
        if tensor == 0:
            return
        buffer = load(load(tensor) + {_BUFFER})
        data = invoke(c3, tensor, 0)
        kind = invoke(c4, tensor, 0) & 0xffffffff
        rank = invoke(c5, tensor, 0) & 0xffffffff
        shape = scratch
        elements = 1
        for k in range(rank if rank < {MOST_AXES} else {MOST_AXES}):
            store(shape + 8 * k, invoke(c6, tensor, k))
            elements *= load(shape + 8 * k)
        flags = {CONTIGUOUS}
        if elements == 0:
            data = 0
            flags = {CONTIGUOUS | WRITABLE}
        elif buffer != 0:
            shared = load(handle + 8) & 0xffffffff != 1
            alone = load(buffer + 8) & 0xffffffff == c8 and not shared and load(buffer + 16) == data
            if alone and (load(buffer) == c9 or load(buffer) == c10 or load(buffer) == c11):
                flags = {CONTIGUOUS | WRITABLE}
        invoke(c7, tensor, 0)
"""


class TensorFlowMemory:
    """The memory of eager tensors."""

    def survey(self) -> Survey | None:
        return _survey()

    def team(self) -> Team:
        return POOL

    def storage(self, kind: int) -> np.dtype[Any] | None:
        return _STORAGE.get(kind)

    def plain(self) -> bool:
        return bool(tf.executing_eagerly()) and not context.is_async()

    def empty(
        self, shapes: Shapes, storage: np.dtype[Any], like: Sequence[tf.Tensor] | None
    ) -> list[tf.Tensor]:
        return [tf.raw_ops.Empty(shape=shape, dtype=storage.name) for shape in shapes]

    def changed(self, leaves: Sequence[tf.Tensor]) -> None:
        pass


def host_kernels() -> bool:
    """Return True if compiled kernels update eager tensors in place here."""
    return numba_kernel.available() and _survey() is not None


_STORAGE: dict[int, np.dtype[Any]] = {1: np.dtype("float32"), 2: np.dtype("float64")}
"""``TF_DataType`` -> the host's."""


@lru_cache(maxsize=1)
def _survey() -> Survey | None:
    """Make the survey of eager tensors, if CPUs are all there is and TensorFlow is as described above."""
    if len(tf.config.list_logical_devices()) > 1 or context.is_async():
        return None
    with tf.device("cpu"):
        try:
            functions, handle_of, status = _functions()
            samples, _others = _samples()
            facts = [_found(x, functions, handle_of, status) for x in samples]
        except (OSError, AttributeError, ValueError, tf.errors.OpError):
            return None  # another TensorFlow than the one described above, or one without XLA
        alone, aliased, foreign = facts[:3], facts[3], facts[4]
        counts = {count for _, count, _ in alone}
        offsets = {offset for offset, _, _ in facts}
        tables = {table for _, _, table in alone}
        if len(counts) > 1 or len(offsets) > 1 or aliased[1] <= alone[0][1] or foreign[2] in tables:
            return None
        known = [*tables, *tables, *tables][:3]
        constants = [*offsets, status, *functions.values(), *counts, *known]
        survey = Survey((type(samples[0]),), _READER, constants)
        return tried(survey, samples, [_expected(x, i not in (3, 4)) for i, x in enumerate(samples)])


def _samples() -> tuple[list[Any], list[Any]]:
    """Make tensors of each kind of memory, and those that two of them share it with.

    Three that are alone in memory of TensorFlow's (by its kernels and by XLA), one that shares it, one in
    NumPy's, and one without elements.
    """
    doubled = tf.function(lambda x: x + x, autograph=False, jit_compile=True)
    whole = tf.raw_ops.Fill(dims=[4, 2], value=1.0)
    others = [tf.reshape(whole, (8,)), np.ones((64, 2), np.float32)]
    samples = [
        tf.raw_ops.Fill(dims=[3], value=2.0),
        tf.raw_ops.Fill(dims=[2, 1, 5], value=tf.constant(1.0, tf.float64)),
        doubled(tf.raw_ops.Fill(dims=[2, 2], value=1.0)),
        whole,
        tf.constant(others[1]),
        tf.zeros((0, 3)),
    ]
    return samples, others


def _expected(x: Any, writable: bool) -> list[int]:
    host = np.asarray(x)
    flags = CONTIGUOUS + WRITABLE * writable
    address = 0 if not host.size else host.ctypes.data
    rank = len(x.shape)
    return [address, host.size, x.dtype.as_datatype_enum, flags, rank, *x.shape, *[0] * (MOST_AXES - rank)]


def _functions() -> tuple[dict[str, int], Any, int]:
    """Return the addresses of the C functions, what gives the handle of an eager tensor, and a new status."""
    library = ctypes.CDLL(min(glob.glob(os.path.join(tf.sysconfig.get_lib(), "libtensorflow_cc.*"))))
    library.TF_NewStatus.restype = ctypes.c_size_t
    found = {name: ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0 for name in _FUNCTIONS}
    folder = os.path.join(tf.sysconfig.get_lib(), "python")
    for file in ("lib_pywrap_tensorflow_common", "_pywrap_tensorflow_internal"):
        for path in glob.glob(os.path.join(folder, f"{file}.*")):
            handle_of = getattr(ctypes.PyDLL(path), _HANDLE, None)
            if handle_of is not None:
                handle_of.restype, handle_of.argtypes = ctypes.c_size_t, [ctypes.py_object]
                return found, handle_of, library.TF_NewStatus()
    raise AttributeError(_HANDLE)


def _found(x: Any, functions: dict[str, int], handle_of: Any, status: int) -> tuple[int, int, int]:
    """Return ``(the handle's offset in the object, the buffer's count, its table)``."""
    handle = handle_of(x)
    words = _read(id(x), type(x).__basicsize__ // 8)
    offset = 8 * words.index(handle)
    resolve = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_size_t, ctypes.c_size_t)(functions[_FUNCTIONS[0]])
    delete = ctypes.CFUNCTYPE(None, ctypes.c_size_t)(functions["TF_DeleteTensor"])
    tensor = resolve(handle, status)
    try:
        (held,) = _read(tensor, 1)
        (buffer,) = _read(held + _BUFFER, 1)
        if not x.shape.num_elements():
            return offset, 0, 0
        table, count, address = _read(buffer, 3)
        if address != np.asarray(x).ctypes.data or _read(handle + 8, 1)[0] & 0xFFFFFFFF != 1:
            raise OSError("TensorFlow's buffers are not as they were known")
        return offset, count & 0xFFFFFFFF, table
    finally:
        delete(tensor)


def _read(address: int, count: int) -> tuple[int, ...]:
    """Words of memory; ``OSError`` where there is none at that address."""
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        return unpack(f"={count}Q", memory.read(8 * count))
