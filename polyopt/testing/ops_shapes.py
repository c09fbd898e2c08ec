"""Operations that move elements: the same bits at other indices, for every dtype and memory layout."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numpy as np

from polyopt.testing.case import LAYOUTS, Context
from polyopt.testing.compare_arrays import check_values, result
from polyopt.testing.ops_inputs import dtypes_of, lay, sample
from polyopt.testing.ops_scalar import ALL

Index = tuple[int, ...]


def gathered(x: Any, shape: Index, source: Callable[[Index], Index]) -> Any:
    """Return ``out[at] = x[source(at)]`` for every index of ``shape``."""
    out = np.zeros(shape, dtype=x.dtype)
    for at in itertools.product(*(range(n) for n in shape)):
        out[at] = x[source(at)]
    return out


def _strides(shape: Index) -> list[int]:
    return [math.prod(shape[i + 1 :]) for i in range(len(shape))]


def _position(at: Index, shape: Index) -> int:
    return sum(i * s for i, s in zip(at, _strides(shape), strict=True))


def _unravel(k: int, shape: Index) -> Index:
    return tuple(k // s % n for s, n in zip(_strides(shape), shape, strict=True))


# Where an element of the result comes from: functions of its index, their first arguments bound by partial.


def _without(k: int, at: Index) -> Index:
    return (*at[:k], *at[k + 1 :])


def _permuted(axes: Index, at: Index) -> Index:
    return tuple(at[axes.index(a)] for a in range(len(axes)))


def _moved(shape: Index, source: Index, at: Index) -> Index:
    return _unravel(_position(at, shape), source)


def _picked(k: int, indices: Any, at: Index) -> Index:
    return (*at[:k], int(indices[at[k]]), *at[k + 1 :])


def _each(context: Context, name: str, shapes: tuple[Index, ...], one: Callable[..., Any]) -> None:
    """Check ``one(x, host) -> (call, function, want)``: every shape in float32, the last in every dtype.

    What moves elements does not look at them, and XLA compiles for every shape, dtype and argument anew: so
    ``sparse``, the other dtypes take one argument each, in turn.
    """
    for i, dtype in enumerate(dtypes_of(context.backend, ALL)):
        for shape in shapes if dtype == "float32" else shapes[-1:]:
            for layout in context.layouts if dtype == "float32" and shape == shapes[-1] else LAYOUTS[:1]:
                host = sample(len(shape), dtype, shape)
                calls = list(one(lay(context.backend, host, layout), host))
                if context.sparse and dtype != "float32":
                    calls = [calls[i % len(calls)]]
                for arguments, function, want in calls:
                    call = f"{name}({dtype}{list(shape)}{arguments}; {layout})"
                    got = result(context.backend, call, function(), dtype, want.shape)
                    check_values(call, got, want, dtype=dtype)


def broadcast_to(context: Context, name: str) -> None:
    """Check arrays that are repeated along new axes and axes of length 1."""
    xp = context.backend.ops

    def one(x: Any, host: Any) -> Any:
        for shape in ((2, 3, 4), (0, 2, 3, 4)):

            def source(at: Index) -> Index:
                tail = at[len(at) - host.ndim :]
                return tuple(0 if n == 1 else i for i, n in zip(tail, host.shape, strict=True))

            yield f", {shape}", partial(xp.broadcast_to, x, shape), gathered(host, shape, source)

    _each(context, name, ((), (1,), (4,), (3, 1), (2, 1, 4)), one)


def concat(context: Context, name: str) -> None:
    """Check arrays joined along each axis, and flat."""
    xp, backend = context.backend.ops, context.backend

    def one(x: Any, host: Any) -> Any:
        other = sample(77, host.dtype.name, host.shape)
        y = backend.from_numpy(other)
        flat = np.array([*host.reshape(-1), *other.reshape(-1)], dtype=host.dtype)
        yield ", axis=None", partial(xp.concat, [x, y], axis=None), flat
        for axis in range(-host.ndim, host.ndim):
            k = axis % host.ndim
            n = host.shape[k]
            shape = (*host.shape[:k], 3 * n, *host.shape[k + 1 :])
            want = np.zeros(shape, dtype=host.dtype)
            for i, part in enumerate((host, other, host)):
                want[(slice(None),) * k + (slice(i * n, (i + 1) * n),)] = part
            yield f", axis={axis}", partial(xp.concat, [x, y, x], axis=axis), want

    _each(context, name, ((2,), (2, 3), (2, 0), (2, 1, 3)), one)


def expand_dims(context: Context, name: str) -> None:
    """Check a new axis at each place, counted from either end."""
    xp = context.backend.ops

    def one(x: Any, host: Any) -> Any:
        for axis in range(-host.ndim - 1, host.ndim + 1):
            k = axis % (host.ndim + 1)
            shape = (*host.shape[:k], 1, *host.shape[k:])
            want = gathered(host, shape, partial(_without, k))
            yield f", axis={axis}", partial(xp.expand_dims, x, axis=axis), want

    _each(context, name, ((), (3,), (2, 3), (0, 2)), one)


def squeeze(context: Context, name: str) -> None:
    """Check axes of length 1 that are removed, one or several."""
    xp = context.backend.ops

    def one(x: Any, host: Any) -> Any:
        for axis in (0, -3, 2, (0, 2), (-1,)):
            drop = {a % host.ndim for a in ((axis,) if isinstance(axis, int) else axis)}
            if any(host.shape[a] != 1 for a in drop):
                continue
            shape = tuple(n for a, n in enumerate(host.shape) if a not in drop)

            def source(at: Index, drop: set[int] = drop) -> Index:
                rest = iter(at)
                return tuple(0 if a in drop else next(rest) for a in range(host.ndim))

            yield f", axis={axis}", partial(xp.squeeze, x, axis), gathered(host, shape, source)

    _each(context, name, ((1, 3, 1), (1, 0, 1), (1, 1, 1)), one)


def stack(context: Context, name: str) -> None:
    """Check arrays joined along a new axis at each place."""
    xp, backend = context.backend.ops, context.backend

    def one(x: Any, host: Any) -> Any:
        other = sample(77, host.dtype.name, host.shape)
        y = backend.from_numpy(other)
        for axis in range(-host.ndim - 1, host.ndim + 1):
            k = axis % (host.ndim + 1)
            want = np.zeros((*host.shape[:k], 3, *host.shape[k:]), dtype=host.dtype)
            for i, part in enumerate((host, other, host)):
                want[(slice(None),) * k + (i,)] = part
            yield f", axis={axis}", partial(xp.stack, [x, y, x], axis=axis), want

    _each(context, name, ((), (3,), (2, 3), (0, 2)), one)


def permute_dims(context: Context, name: str) -> None:
    """Check axes put in other orders."""
    xp = context.backend.ops

    def one(x: Any, host: Any) -> Any:
        for axes in tuple(itertools.permutations(range(host.ndim)))[-3:]:
            shape = tuple(host.shape[a] for a in axes)
            want = gathered(host, shape, partial(_permuted, axes))
            yield f", {axes}", partial(xp.permute_dims, x, axes), want

    _each(context, name, ((), (3,), (2, 3), (2, 0, 3), (2, 3, 4)), one)


def matrix_transpose(context: Context, name: str) -> None:
    """Check the last two axes exchanged."""
    xp = context.backend.ops

    def one(x: Any, host: Any) -> Any:
        shape = (*host.shape[:-2], host.shape[-1], host.shape[-2])
        yield (
            "",
            partial(xp.matrix_transpose, x),
            gathered(host, shape, lambda at: (*at[:-2], at[-1], at[-2])),
        )

    _each(context, name, ((2, 3), (2, 0), (4, 2, 3)), one)


def reshape(context: Context, name: str) -> None:
    """Check other shapes of as many elements, a length of -1 among them."""
    xp = context.backend.ops
    targets: Final[dict[Index, tuple[Index, ...]]] = {
        (): ((1,), (-1,), (1, 1), ()),
        (6,): ((2, 3), (3, -1), (-1,), (6, 1)),
        (0, 3): ((0,), (3, 0), (-1, 3)),
        (2, 6): ((3, 4), (12,), (-1, 2, 3)),
    }

    def one(x: Any, host: Any) -> Any:
        for target in targets[host.shape]:
            known = math.prod(n for n in target if n >= 0)
            shape = tuple(host.size // known if n < 0 else n for n in target)
            want = gathered(host, shape, partial(_moved, shape, host.shape))
            yield f", {target}", partial(xp.reshape, x, target), want
            yield f", {target}, copy=True", partial(xp.reshape, x, target, copy=True), want

    _each(context, name, tuple(targets), one)


def take(context: Context, name: str) -> None:
    """Check elements taken along each axis, counted from either end."""
    xp, backend = context.backend.ops, context.backend

    def one(x: Any, host: Any) -> Any:
        for axis in range(-host.ndim, host.ndim):
            k = axis % host.ndim
            indices = np.array([1, 0, 1, host.shape[k] - 1], dtype=np.int64)
            shape = (*host.shape[:k], len(indices), *host.shape[k + 1 :])
            want = gathered(host, shape, partial(_picked, k, indices))
            for kind in ("int64", "int32") if axis >= 0 else ("int64",):
                where = backend.from_numpy(indices, dtype=kind)
                yield f", {indices.tolist()} {kind}, axis={axis}", partial(xp.take, x, where, axis=axis), want
        if host.ndim == 1:
            nothing = backend.from_numpy(np.zeros((0,), dtype=np.int64))
            yield ", [] int64", partial(xp.take, x, nothing, axis=0), host[:0]

    _each(context, name, ((3,), (2, 3), (2, 4, 3)), one)


def take_along_axis(context: Context, name: str) -> None:
    """Check elements taken along each axis, place by place."""
    xp, backend = context.backend.ops, context.backend

    def one(x: Any, host: Any) -> Any:
        for axis in range(-host.ndim, host.ndim):
            k = axis % host.ndim
            shape = (*host.shape[:k], 4, *host.shape[k + 1 :])
            indices = np.random.default_rng(k).integers(0, host.shape[k], size=shape)

            def source(at: Index, k: int = k, indices: Any = indices) -> Index:
                return (*at[:k], int(indices[at]), *at[k + 1 :])

            function = partial(xp.take_along_axis, x, backend.from_numpy(indices), axis=axis)
            yield f", {indices.tolist()}, axis={axis}", function, gathered(host, shape, source)

    _each(context, name, ((3,), (2, 3), (2, 3, 2)), one)


CHECKS: Final[dict[str, Callable[[Context, str], None]]] = {
    f.__name__: f
    for f in (
        broadcast_to,
        concat,
        expand_dims,
        matrix_transpose,
        permute_dims,
        reshape,
        squeeze,
        stack,
        take,
        take_along_axis,
    )
}
