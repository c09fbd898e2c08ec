"""Many variables of one kind read and written at once.

Called one by one, ``read_value`` and ``assign`` cost ten to thirty microseconds each, so that a thousand
small variables took longer than their update. A graph function that is handed their handles does it in a few.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import tensorflow as tf

CHUNK = 256
"""Most variables for one function, which takes a millisecond to trace for each."""


def plain(values: Iterable[Any]) -> bool:
    """Return True if all are ordinary variables.

    One of a distribution strategy is several behind one face.
    """
    return set(map(type, values)) == {_ordinary()}


@lru_cache(maxsize=1)
def _ordinary() -> type:
    return type(tf.Variable(0.0, trainable=False))


def read(variables: Sequence[Any]) -> Any:
    """Read the values of plain variables of one shape and dtype, stacked."""
    dtype = variables[0].dtype
    parts = [
        tf.raw_ops.StatefulPartitionedCall(args=handles, Tout=[dtype], f=_reader(len(handles), dtype))[0]
        for handles in _handles(variables)
    ]
    return parts[0] if len(parts) == 1 else tf.concat(parts, 0)


def write(variables: Sequence[Any], stacked: Any) -> None:
    """Assign ``stacked[i]`` to the i-th of plain variables of one shape and dtype."""
    chunks = _handles(variables)
    parts = tf.split(stacked, [len(handles) for handles in chunks]) if len(chunks) > 1 else [stacked]
    for handles, part in zip(chunks, parts, strict=True):
        writer = _writer(len(handles), tuple(part.shape), part.dtype)
        tf.raw_ops.StatefulPartitionedCall(args=[*handles, part], Tout=[], f=writer)


def _handles(variables: Sequence[Any]) -> list[list[Any]]:
    handles = [v.handle for v in variables]
    return [handles[k : k + CHUNK] for k in range(0, len(handles), CHUNK)]


@lru_cache(maxsize=128)
def _reader(count: int, dtype: Any) -> Any:
    def stacked(handles: list[Any]) -> Any:
        return tf.stack([tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype) for handle in handles])

    return _function(stacked, [tf.TensorSpec((), tf.resource)] * count)


@lru_cache(maxsize=128)
def _writer(count: int, shape: tuple[int, ...], dtype: Any) -> Any:
    def assign(handles: list[Any], values: Any) -> None:
        for handle, value in zip(handles, tf.unstack(values, num=count), strict=True):
            tf.raw_ops.AssignVariableOp(resource=handle, value=value)

    return _function(assign, [tf.TensorSpec((), tf.resource)] * count, tf.TensorSpec(shape, dtype))


def _function(body: Any, *signature: Any) -> Any:
    # Called by StatefulPartitionedCall, because calling it as a Python function checks argument by argument.
    return tf.function(body, autograph=False).get_concrete_function(*signature)
