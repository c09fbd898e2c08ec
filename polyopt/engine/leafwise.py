"""Run a leafwise rule over all leaves: small ones of one shape stacked, the others one by one."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from polyopt.backend.protocol import Arrays, Backend, Scalars
from polyopt.core.groups import by_kind, chunks
from polyopt.core.ops import Array
from polyopt.core.rule import Leafwise
from polyopt.engine.batch_ops import Batch, BatchOps, unbatched

SMALL = 32_768
"""Elements below which leaves of one kind are stacked: copying a larger one costs more than it saves."""

STACK = 1 << 20
"""Most elements of a stack."""


def leafwise(backend: Backend, rule: Leafwise, compiled: bool) -> Callable[..., dict[str, list[Array]]]:
    """Lift a leafwise rule: its outputs are the next slots and ``"update"``, in the compute dtype.

    Compiled, its leaf function runs once for small leaves of one shape and dtypes, stacked, and once for each
    of the others, all in one function where the framework compiles; else on one leaf after the other.
    """
    by_leaf = _over_leaves(backend, rule, compiled)
    if not compiled:
        return by_leaf
    stacked = _over_stacks(backend, rule)
    batchable = True

    def run(arrays: Arrays, scalars: Scalars, dtype: str) -> dict[str, list[Array]]:
        nonlocal batchable
        names = tuple(arrays)
        kinds = tuple(
            (tuple(leaf[0].shape), *(x.dtype for x in leaf)) for leaf in zip(*arrays.values(), strict=True)
        )
        members = stacks(kinds) if batchable else ()
        if not members:
            return by_leaf(arrays, scalars, dtype)
        alone = sorted(set(range(len(kinds))).difference(*members))
        given = [{n: backend.join([arrays[n][i] for i in group]) for n in names} for group in members]
        rest = {n: [arrays[n][i] for i in alone] for n in names}
        shapes = tuple((len(group), kinds[group[0]][0]) for group in members)
        try:
            found, others = stacked(given, rest, scalars, shapes, dtype)
        except Exception:
            # By leaf it may work, or complain as it should; a rule for which that works is not tried again.
            result: dict[str, list[Array]] = by_leaf(arrays, scalars, dtype)
            batchable = False
            return result
        outputs: dict[str, list[Array]] = {n: [None] * len(kinds) for n in found[0]}
        for group, results in zip(members, found, strict=True):
            for name, x in results.items():
                parts = backend.split(x, [kinds[group[0]][0]] * len(group))
                for i, part in zip(group, parts, strict=True):
                    outputs[name][i] = part
        for name, parts in others.items():
            for i, part in zip(alone, parts, strict=True):
                outputs[name][i] = part
        return outputs

    return run


@lru_cache(maxsize=64)
def stacks(kinds: tuple[tuple[Any, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """The leaves that are stacked together, given each one's shape and dtypes.

    >>> stacks((((2, 3), "f"), ((4,), "f"), ((2, 3), "f"), ((2, 3), "h"), ((10**6,), "f"), ((10**6,), "f")))
    ((0, 2),)
    """
    result: list[tuple[int, ...]] = []
    for kind, members in by_kind(kinds).items():
        size = math.prod(kind[0])
        result += chunks(members, max(STACK // max(size, 1), 2)) if size < SMALL else []
    return tuple(group for group in result if len(group) > 1)


def _over_leaves(backend: Backend, rule: Leafwise, compiled: bool) -> Callable[..., dict[str, list[Array]]]:
    def run(xp: Any, arrays: Arrays, scalars: Scalars, dtype: str) -> dict[str, list[Array]]:
        return _each(backend, rule, xp, arrays, scalars, dtype)

    if not compiled:
        return lambda arrays, scalars, dtype: run(backend.ops, arrays, scalars, dtype)

    @lru_cache(maxsize=2)
    def of(dtype: str) -> Callable[..., Any]:
        return backend.compile(lambda xp, arrays, scalars: run(xp, arrays, scalars, dtype), exact=True)

    return lambda arrays, scalars, dtype: of(dtype)(arrays, scalars)


def _over_stacks(backend: Backend, rule: Leafwise) -> Callable[..., Any]:
    @lru_cache(maxsize=16)
    def of(shapes: tuple[tuple[int, tuple[int, ...]], ...], dtype: str) -> Callable[..., Any]:
        def run(xp: Any, given: list[Arrays], rest: Arrays, scalars: Scalars) -> Any:
            found = []
            for (n, shape), stack in zip(shapes, given, strict=True):
                batch = BatchOps(xp, n)
                arrays = {
                    name: [Batch(batch, xp.reshape(_constant(backend, x), (n, *shape)))]
                    for name, x in stack.items()
                }
                results = _each(backend, rule, batch, arrays, scalars, dtype)
                found.append(
                    {name: xp.reshape(unbatched(batch, x, shape), (-1,)) for name, (x,) in results.items()}
                )
            return found, _each(backend, rule, xp, rest, scalars, dtype)

        return backend.compile(run, exact=True)

    return lambda given, rest, scalars, shapes, dtype: of(shapes, dtype)(given, rest, scalars)


def _each(
    backend: Backend, rule: Leafwise, xp: Any, arrays: Arrays, scalars: Scalars, dtype: str
) -> dict[str, list[Array]]:
    """The leaf function on one leaf after the other."""
    outputs: dict[str, list[Array]] = {}
    c = SimpleNamespace(**scalars)
    names = [slot.name for slot in rule.slots() if slot.shape == "like"]
    for i in range(len(arrays["p"])):
        wide = {n: _in(backend, xp, _constant(backend, x[i]), dtype) for n, x in arrays.items()}
        slots = {n: wide[n] for n in names}
        update, new = rule.leaf(xp, wide["g"], wide["p"], slots, c)
        result = {n: _in(backend, xp, new[n], backend.dtype_name(arrays[n][i])) for n in names}
        for name, value in (result | {"update": update}).items():
            outputs.setdefault(name, []).append(value)
    return outputs


def _in(backend: Backend, xp: Any, x: Array, dtype: str) -> Array:
    return x if backend.dtype_name(x) == dtype else xp.astype(x, backend.dtype(dtype))


def _constant(backend: Backend, x: Array) -> Array:
    # PyTorch would keep every step's graph alive through a parameter that requires gradients.
    return x if isinstance(x, Batch) or backend.is_traced(x) else backend.stop_gradient(x)
