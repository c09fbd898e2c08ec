"""Lifting on NumPy: blocked, in place and packed, or op by op."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.array_utils import byte_bounds

from polyopt.backend.evaluate import evaluate_leaves
from polyopt.backend.host.array_table import Survey, numpy_survey
from polyopt.backend.host.lift import HostLift
from polyopt.backend.host.memory import Shapes
from polyopt.backend.host.overlap import FOLDED, Extent, apart, folds
from polyopt.backend.host.threads import POOL, Team
from polyopt.backend.protocol import Arrays, Lifted, Scalars
from polyopt.core.trace import Program
from polyopt_numpy import ops

if TYPE_CHECKING:
    from polyopt_numpy.backend import NumpyBackend


def lift(backend: NumpyBackend, program: Program, compiled: bool) -> Lifted:
    """Return ``program`` over a list of arrays."""
    if compiled:
        return HostLift(program, NumpyMemory())

    def run(arrays: Arrays, scalars: Scalars, dtype: str, donate: bool = False) -> dict[str, list[Any]]:
        kind = np.dtype(dtype).type
        with np.errstate(all="ignore"):
            values = {n: kind(v) for n, v in (*scalars.items(), *program.constants)}
            out = evaluate_leaves(backend, ops, program, arrays, values, dtype)
        given = {id(x) for leaves in arrays.values() for x in leaves}
        # An output may be an input as it is, or one scalar for all elements: it gets memory of its own.
        out = {
            n: [np.array(x) if id(x) in given or not x.flags.writeable else x for x in xs]
            for n, xs in out.items()
        }
        for name in out:
            if donate and name in arrays:
                out[name] = [_written(x, y) for x, y in zip(arrays[name], out[name], strict=True)]
        return out

    return run


def _written(target: Any, value: Any) -> Any:
    """Return ``target`` with ``value`` in it; ``value`` where the target can't be written to."""
    if not isinstance(target, np.ndarray) or not target.flags.writeable:
        return value
    target[...] = value
    return target


class NumpyMemory:
    """Host memory is NumPy's own."""

    def dtype(self, kind: Any) -> np.dtype[Any]:
        dtype: np.dtype[Any] = kind
        return dtype

    def host(self, x: Any) -> Any:
        return np.asarray(x)

    def wrap(self, x: Any, like: Any) -> Any:
        return x

    def assign(self, target: Any, value: Any) -> None:
        target[...] = value

    def views(self, buffer: Any, shapes: Shapes) -> Sequence[Any]:
        sizes = [int(np.prod(s)) for s in shapes]
        parts = np.split(buffer, np.cumsum(sizes)[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def gather(self, buffer: Any, views: Sequence[Any], leaves: Sequence[Any]) -> None:
        np.concatenate(leaves, axis=None, out=buffer, casting="unsafe")

    def scatter(self, views: Sequence[Any], leaves: Sequence[Any]) -> None:
        for view, leaf in zip(views, leaves, strict=True):
            leaf[...] = view

    def fresh(self, views: Sequence[Any], like: Sequence[Any] | None) -> list[Any]:
        if like is None:
            return [view.copy() for view in views]
        return [view.astype(x.dtype) for view, x in zip(views, like, strict=True)]

    def alike(
        self,
        columns: Sequence[Sequence[Any]],
        shapes: Shapes,
        kinds: Sequence[Sequence[Any]],
        written: Sequence[bool],
    ) -> bool:
        owners: set[int] = set()
        for leaves, own, into in zip(columns, kinds, written, strict=True):
            if len(leaves) != len(shapes):
                return False
            for x, shape, kind in zip(leaves, shapes, own, strict=True):
                if type(x) is not np.ndarray or x.shape != shape or x.dtype is not kind:
                    return False
                if not (x.flags.carray if into else x.flags.c_contiguous):
                    return False
                owner = x.base
                if owner is None:
                    owners.add(id(x))
                elif type(owner) is np.ndarray:
                    owners.add(id(owner))
        if len(owners) == len(shapes) * len(columns):
            return True  # as in ``extents``
        targets, others = (
            [x for leaves, into in zip(columns, written, strict=True) if into is which for x in leaves]
            for which in (True, False)
        )
        return apart(self.extents([*targets, *others], len(targets)), len(targets))

    def writable(self, leaves: Sequence[Any]) -> bool:
        return set(map(type, leaves)) <= {np.ndarray} and all(x.flags.writeable for x in leaves)

    def extents(self, arrays: Sequence[Any], written: int) -> list[Extent] | None:
        # An array and its views have one owner, so memory with different owners is different memory.
        # NumPy keeps the base of a view of a view; looking up addresses would take as long as the step.
        owners = [x if x.base is None else x.base for x in arrays]
        alone = len(set(map(id, owners))) == len(owners) and set(map(type, owners)) <= {np.ndarray}
        if alone and all(x is owner or x.flags.forc for x, owner in zip(arrays, owners, strict=True)):
            return None
        return [_extent(x) for x in arrays]

    def survey(self) -> Survey | None:
        return _survey()

    def team(self) -> Team:
        return POOL

    def storage(self, kind: int) -> np.dtype[Any] | None:
        return _STORAGE.get(kind)

    def plain(self) -> bool:
        return True

    def empty(self, shapes: Shapes, storage: np.dtype[Any], like: Sequence[Any] | None) -> list[Any]:
        return [np.empty(shape, storage) for shape in shapes]

    def changed(self, leaves: Sequence[Any]) -> None:
        pass


def _extent(x: Any) -> Extent:
    if not isinstance(x, np.ndarray):
        return Extent(0, 0)  # a scalar, which is never written into
    fixed = not x.flags.writeable
    folded = not fixed and not x.flags.forc and folds(x.shape, x.strides, x.itemsize)
    return Extent(*byte_bounds(x), FOLDED if folded else "", fixed)


_STORAGE = {id(np.dtype(name)): np.dtype(name) for name in ("float32", "float64")}


@lru_cache(maxsize=1)
def _survey() -> Survey | None:
    return numpy_survey()
