"""Data types, casts and creation: names, kinds, limits, promotion, defaults, copies."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numpy as np

from polyopt.core.ops import DTYPES, FLOATING, INTEGER
from polyopt.testing.case import Context
from polyopt.testing.compare_arrays import check_values, result
from polyopt.testing.ops_inputs import dtypes_of, host_dtype, info, lay, rounded, sample, specials
from polyopt.testing.ops_scalar import ALL, PROMOTIONS

KINDS: Final = {
    "bool": ("bool",),
    "signed integer": ("int8", "int16", "int32", "int64"),
    "unsigned integer": ("uint8",),
    "integral": INTEGER,
    "real floating": FLOATING,
    "complex floating": (),
    "numeric": (*INTEGER, *FLOATING),
}
SHAPES: Final = ((), (3,), (0, 2), (2, 3), 4)


def dtype_itself(context: Context, name: str) -> None:
    """Return ``xp.float32`` is a dtype: arrays can be made of it, and they have that name."""
    if name not in dtypes_of(context.backend, DTYPES):
        return
    out = context.backend.ops.zeros((2,), dtype=getattr(context.backend.ops, name))
    result(context.backend, f"zeros((2,), dtype=xp.{name})", out, name, (2,))


def isdtype(context: Context, name: str) -> None:
    """Check every dtype against every kind, alone and in tuples."""
    backend, xp = context.backend, context.backend.ops
    for dtype in dtypes_of(backend, ALL):
        for kind, members in KINDS.items():
            for spelt in (kind, (kind,), ("bool", kind)):
                want = dtype in members or (len(spelt) == 2 and dtype == "bool")
                got = xp.isdtype(backend.dtype(dtype), spelt)
                assert got is want or bool(got) == want, (
                    f"isdtype({dtype}, {spelt!r}) = {got}; expected {want}"
                )
        for other in dtypes_of(backend, ALL):
            got = bool(xp.isdtype(backend.dtype(dtype), backend.dtype(other)))
            assert got == (dtype == other), f"isdtype({dtype}, {other}) = {got}; expected {dtype == other}"


def finfo(context: Context, name: str) -> None:
    """Check the limits of the floating dtypes."""
    backend = context.backend
    for dtype in dtypes_of(backend, FLOATING):
        got, want = backend.ops.finfo(backend.dtype(dtype)), info(dtype)
        for field in ("bits", "eps", "max", "min", "smallest_normal"):
            a, w = float(getattr(got, field)), float(getattr(want, field))
            assert a == w, f"finfo({dtype}).{field} = {a!r}; expected {w!r}"


def result_type(context: Context, name: str) -> None:
    """Check the promotion of each pair of dtypes, of arrays and of dtypes."""
    backend, xp = context.backend, context.backend.ops
    pairs = [(d, d, d) for d in dtypes_of(backend, ALL)] + list(PROMOTIONS)
    for left, right, want in pairs:
        for a, b in ((left, right), (right, left)):
            array = backend.from_numpy(np.zeros((2,), dtype=host_dtype(a)))
            for how, first in (("dtype", backend.dtype(a)), ("array", array)):
                got = xp.result_type(first, backend.dtype(b))
                assert got == backend.dtype(want), f"result_type({how} {a}, {b}) = {got}; expected {want}"


def astype(context: Context, name: str) -> None:
    """Check that numbers are rounded once to nearest even, and towards zero to integers, within range.

    Float64 to bfloat16 may go by float32 (ml_dtypes does), so within one unit.
    """
    backend = context.backend
    for source in dtypes_of(backend, ALL):
        x = specials(source) if source != "bool" else sample(0, source, (4,))
        for to in dtypes_of(backend, ALL):
            usable = x if to not in INTEGER or source == "bool" else x[_fits(x, to)]
            plain = usable.astype(np.float64) if source in FLOATING else usable
            want = np.array([_converted(v, to) for v in plain.tolist()], dtype=host_dtype(to))
            call = f"astype({source}, {to})"
            out = backend.ops.astype(backend.from_numpy(usable), backend.dtype(to))
            got = result(backend, call, out, to, want.shape)
            twice = to == "bfloat16" and source in ("float64", "int32", "int64")
            wide = want.astype(np.float64)
            check_values(call, got, want, dtype=to, exact=wide, ulps=1.0 if twice else 0.0, inputs=[usable])
        recast = partial(_recast, context, backend.dtype(source))
        _copies(context, "astype(copy=True)", recast, source)


def _recast(context: Context, dtype: Any, x: Any) -> Any:
    return context.backend.ops.astype(x, dtype, copy=True)


def _converted(value: Any, to: str) -> Any:
    if to == "bool":
        return bool(value)
    return int(value) if to in INTEGER else rounded(value, to)


def _fits(x: Any, to: str) -> Any:
    """Return where a value, cut to an integer, is one of ``to``'s: the standard leaves the rest open."""
    limits = np.iinfo(to)
    fits = [math.isfinite(v) and limits.min <= int(v) <= limits.max for v in x.tolist()]
    return np.array(fits, dtype=bool)


def _copies(context: Context, call: str, function: Callable[[Any], Any], dtype: str) -> None:
    """Check that the copy keeps its values when the original is overwritten, where that can be done."""
    backend = context.backend
    x = backend.from_numpy(np.zeros((3,), dtype=host_dtype(dtype)))
    out = function(x)
    backend.assign(x, backend.from_numpy(np.ones((3,), dtype=host_dtype(dtype))))
    values = np.asarray(backend.to_numpy(out)).astype(np.float64)
    assert not values.any(), f"{call} shares memory with its argument ({dtype})"


def asarray(context: Context, name: str) -> None:
    """Check Python numbers, nested lists, own arrays; with a dtype, on a device, copied."""
    backend, xp = context.backend, context.backend.ops
    cases: list[tuple[Any, tuple[int, ...]]] = [
        (1, ()),
        ([1, 0, 1], (3,)),
        ([[1, 0], [0, 1]], (2, 2)),
        ([], (0,)),
    ]
    for dtype in dtypes_of(backend, ALL):
        for value, shape in cases:
            call = f"asarray({value}, dtype={dtype})"
            out = xp.asarray(value, dtype=backend.dtype(dtype))
            want = np.array(value, dtype=np.float64).astype(host_dtype(dtype))
            check_values(call, result(backend, call, out, dtype, shape), want, dtype=dtype)
        own = xp.asarray(xp.ones((3,), dtype=backend.dtype(dtype)), device=backend.device("cpu"))
        result(backend, f"asarray(array of {dtype}, device=cpu)", own, dtype, (3,))
        _copies(context, "asarray(copy=True)", lambda a: xp.asarray(a, copy=True), dtype)
    result(backend, "asarray([True, False])", xp.asarray([True, False]), "bool", (2,))
    for value, kind in (([1, 2], "integral"), ([1.5, 2.0], "real floating"), (2.5, "real floating")):
        found = xp.asarray(value).dtype
        assert xp.isdtype(found, kind), f"asarray({value}) has dtype {found}; expected a {kind} one"


def arange(context: Context, name: str) -> None:
    """Check lengths and values, for steps of both signs."""
    backend = context.backend
    for dtype in dtypes_of(backend, ("float32", "float64", "int32", "int64")):
        for args, want in (
            ((5,), [0, 1, 2, 3, 4]),
            ((2, 5), [2, 3, 4]),
            ((0, 7, 3), [0, 3, 6]),
            ((5, 0, -2), [5, 3, 1]),
            ((0,), []),
            ((3, 1), []),
        ):
            call = f"arange{args} of {dtype}"
            out = backend.ops.arange(*args, dtype=backend.dtype(dtype))
            expected = np.array(want, dtype=dtype)
            check_values(call, result(backend, call, out, dtype, expected.shape), expected, dtype=dtype)
    found = backend.ops.arange(3).dtype
    assert backend.ops.isdtype(found, "integral"), f"arange(3) has dtype {found}; expected an integer one"


def filled(context: Context, name: str) -> None:
    """zeros, ones and full, and the same ``_like`` another array."""
    backend, xp = context.backend, context.backend.ops
    like, base = name.endswith("_like"), name.removesuffix("_like")
    fills = {"zeros": (0,), "ones": (1,), "full": (0, 1, 3)}[base]
    for dtype in dtypes_of(backend, ALL):
        for shape in SHAPES:
            for fill in fills if dtype != "bool" else fills[:2]:
                dims = (shape,) if isinstance(shape, int) else shape
                extra = (fill,) if base == "full" else ()
                call = f"{name}({shape}, {extra}, {dtype})"
                kind = backend.dtype(dtype)
                if like:
                    source = xp.zeros(shape, dtype=backend.dtype("int32"))
                    outs = [getattr(xp, name)(source, *extra, dtype=kind)]
                    outs.append(getattr(xp, name)(xp.zeros(shape, dtype=kind), *extra))
                else:
                    outs = [getattr(xp, name)(shape, *extra, dtype=kind)]
                want = (
                    np.array([fill] * math.prod(dims), dtype=np.float64)
                    .astype(host_dtype(dtype))
                    .reshape(dims)
                )
                for out in outs:
                    check_values(call, result(backend, call, out, dtype, dims), want, dtype=dtype)
    if base == "full" and not like:
        for value in (math.inf, -math.inf, math.nan, -0.0, 0.1):
            out = xp.full((2,), value, dtype=backend.dtype("float64"))
            want = np.array([value, value])
            check_values(
                f"full((2,), {value})", result(backend, "full", out, "float64", (2,)), want, dtype="float64"
            )
        result(backend, "full((2,), True)", xp.full((2,), True), "bool", (2,))


def clip(context: Context, name: str) -> None:
    """Numbers or arrays as bounds, either left out; NaN stays. The standard leaves min > max open."""
    backend = context.backend
    for dtype in dtypes_of(backend, (*FLOATING, *INTEGER)):
        x = specials(dtype)
        bounds = (1, 3) if dtype in INTEGER else (-1.5, 2.5)
        for low, high in (bounds, (bounds[0], None), (None, bounds[1]), (None, None)):
            want = np.array([_clipped(v, low, high) for v in x.tolist()], dtype=host_dtype(dtype))
            shaped = [
                None if b is None else lay(backend, np.full(x.shape, b, dtype=x.dtype), context.layouts[-1])
                for b in (low, high)
            ]
            for how, (lo, hi) in (("numbers", (low, high)), ("arrays", shaped)):
                call = f"clip({dtype}, {low}, {high} as {how})"
                out = backend.ops.clip(backend.from_numpy(x), lo, hi)
                check_values(call, result(backend, call, out, dtype, x.shape), want, dtype=dtype, inputs=[x])


def _clipped(value: Any, low: Any, high: Any) -> Any:
    value = value if value != value or low is None or value >= low else low
    return value if value != value or high is None or value <= high else high


CHECKS: Final[dict[str, Callable[[Context, str], None]]] = {
    **dict.fromkeys(DTYPES, dtype_itself),
    **{f.__name__: f for f in (isdtype, finfo, result_type, astype, asarray, arange, clip)},
    **dict.fromkeys(("zeros", "ones", "full", "zeros_like", "ones_like", "full_like"), partial(filled)),
}
