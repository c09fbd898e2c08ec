"""Small leaves of one kind stacked into one, so that XLA compiles and runs one kernel for all of them.

A call of a compiled function costs some microseconds for every tensor that goes in or comes out, and some
milliseconds of compilation; ``tf.stack`` and ``tf.unstack`` take a whole list in one operation. Variables
that are given up are read and written many at once where they are stacked; where not, the compiled function
itself reads and assigns them, which reuses their memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any

import tensorflow as tf

from polyopt.backend.protocol import Arrays
from polyopt.core.groups import by_kind
from polyopt_tensorflow import variables

SMALL = 32_768
"""Elements from which on copying a leaf costs more than handing it over by itself."""
MANY = 4
"""Leaves of one kind from which on stacking pays."""


class Packing:
    """The leaves of one call and how they are handed to the compiled function.

    ``given``: the names of ``arrays`` whose variables are given up and written into.
    """

    def __init__(self, arrays: Arrays, given: frozenset[str]) -> None:
        self._arrays, self._given = arrays, given
        shapes = (tuple(x.shape) for x in arrays["p"])
        dtypes = ((x.dtype for x in group) for group in arrays.values())
        self._members = _grouped(tuple(zip(shapes, *dtypes, strict=True)))

    def packed(self) -> dict[str, list[Any]]:
        """``{name: [a stack, a leaf, or a variable that is given up]}``."""
        return {
            name: [self._pack(name, [group[i] for i in members]) for members in self._members]
            for name, group in self._arrays.items()
        }

    def _pack(self, name: str, leaves: list[Any]) -> Any:
        if name in self._given and variables.plain(leaves):
            return leaves[0] if len(leaves) == 1 else variables.read(leaves)
        tensors = [x if isinstance(x, tf.Tensor) else tf.convert_to_tensor(x) for x in leaves]
        return tensors[0] if len(tensors) == 1 else tf.stack(tensors)

    def unpacked(self, outputs: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """One array for each leaf again, in the order in which they were; written variables are those given.

        ``None`` among ``outputs`` stands for a variable that is written already.
        """
        out: dict[str, list[Any]] = {}
        for name, group in outputs.items():
            leaves: list[Any] = [None] * sum(map(len, self._members))
            for members, x in zip(self._members, group, strict=True):
                for i, part in zip(members, self._unpack(name, members, x), strict=True):
                    leaves[i] = part
            out[name] = leaves
        return out

    def _unpack(self, name: str, members: Sequence[int], x: Any) -> Sequence[Any]:
        before = [self._arrays[name][i] for i in members] if name in self._given else []
        if x is None:
            return before
        if len(members) > 1 and variables.plain(before):
            variables.write(before, x)
            return before
        return [x] if len(members) == 1 else tf.unstack(x, num=len(members))


@lru_cache(maxsize=256)
def _grouped(kinds: tuple[Any, ...]) -> tuple[tuple[int, ...], ...]:
    """The indices of the leaves that are handed over as one, for leaves of these ``(shape, *dtypes)``."""
    members: list[tuple[int, ...]] = []
    for group in by_kind(kind if prod(kind[0]) < SMALL else i for i, kind in enumerate(kinds)).values():
        members += [tuple(group)] if len(group) >= MANY else [(i,) for i in group]
    return tuple(members)
