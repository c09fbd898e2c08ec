"""Small leaves of one shape stacked into one, so that XLA compiles and runs one kernel for all of them.

A call of a compiled function costs some microseconds for every tensor that goes in or comes out, and some
milliseconds of compilation; ``tf.stack`` and ``tf.unstack`` take a whole list in one operation.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

SMALL = 32_768
"""Elements from which on copying a leaf costs more than handing it over by itself."""
MANY = 4
"""Leaves of one kind from which on stacking pays."""


def pack(arrays: dict[str, list[Any]]) -> tuple[dict[str, list[Any]], list[list[int]]]:
    """The arrays with small leaves of one kind stacked, and for each packed leaf which ones it holds."""
    kinds: dict[Any, list[int]] = {}
    for i, leaf in enumerate(zip(*arrays.values(), strict=True)):
        shape = leaf[0].shape
        small = shape.num_elements() < SMALL
        kinds.setdefault((tuple(shape), *(x.dtype for x in leaf)) if small else i, []).append(i)
    members: list[list[int]] = []
    for found in kinds.values():
        members += [found] if len(found) >= MANY else [[i] for i in found]
    packed = {
        name: [group[m[0]] if len(m) == 1 else tf.stack([group[i] for i in m]) for m in members]
        for name, group in arrays.items()
    }
    return packed, members


def unpack(outputs: dict[str, list[Any]], members: list[list[int]]) -> dict[str, list[Any]]:
    """One array for each leaf again, in the order in which they were."""
    out: dict[str, list[Any]] = {}
    for name, group in outputs.items():
        leaves: list[Any] = [None] * sum(map(len, members))
        for m, x in zip(members, group, strict=True):
            for i, part in zip(m, [x] if len(m) == 1 else tf.unstack(x, num=len(m)), strict=True):
                leaves[i] = part
        out[name] = leaves
    return out
