"""Reductions, searching, linear algebra and shapes: each against loops over indices, written out by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import numpy as np

from polyopt.core.ops import FLOATING, INTEGER
from polyopt.testing.case import Context, for_all, hypothesis
from polyopt.testing.compare_arrays import check_values, result
from polyopt.testing.ops_inputs import (
    NUMERIC,
    dtypes_of,
    finite,
    host_dtype,
    info,
    lay,
    rounded,
    sample,
)
from polyopt.testing.ops_scalar import ALL

SHAPES: Final = ((), (1,), (7,), (3, 4), (2, 1, 5), (0,), (2, 0))
AXES: Final = {0: (None,), 1: (None, 0, -1), 2: (None, 0, 1, -1, (0, 1)), 3: (None, 0, -2, (0, 2), (0, 1, 2))}


def groups(shape: tuple[int, ...], axis: Any, keepdims: bool) -> tuple[tuple[int, ...], dict[Any, list[Any]]]:
    """Return the result's shape, and for each of its indices those of ``shape`` that are reduced to it."""
    axes = range(len(shape)) if axis is None else (axis,) if isinstance(axis, int) else axis
    reduced = {a % len(shape) for a in axes} if shape else set()
    out = tuple(1 if a in reduced else n for a, n in enumerate(shape) if keepdims or a not in reduced)
    found: dict[Any, list[Any]] = {at: [] for at in itertools.product(*(range(n) for n in out))}
    for index in itertools.product(*(range(n) for n in shape)):
        at = tuple(0 if a in reduced else i for a, i in enumerate(index) if keepdims or a not in reduced)
        found[at].append(index)
    return out, found


def _extreme(pick: Callable[..., Any]) -> Callable[[list[Any]], Any]:
    return lambda values: math.nan if any(v != v for v in values) else pick(values)


REDUCTIONS: Final[dict[str, tuple[Callable[[list[Any]], Any], tuple[str, ...]]]] = {
    "all": (all, ALL),
    "any": (any, ALL),
    "max": (_extreme(max), NUMERIC),
    "min": (_extreme(min), NUMERIC),
    "mean": (lambda v: math.fsum(v) / len(v) if v else math.nan, FLOATING),
    "sum": (lambda v: math.fsum(v) if v and isinstance(v[0], float) else sum(v), NUMERIC),
}
EMPTY_OPEN: Final = ("max", "min")
"""The standard leaves the largest of no elements open."""


def check_reduction(context: Context, name: str) -> None:
    """Check ``name`` over every axis, with and without ``keepdims``.

    Sums may be off by n·eps of the sum of sizes.
    """
    st = hypothesis().strategies
    dtypes = dtypes_of(context.backend, REDUCTIONS[name][1])

    def one(dtype: str, shape: Any, axis: int, keepdims: bool, layout: str, seed: int) -> None:
        axes = AXES[len(shape)]
        _reduce(context, name, dtype, shape, axes[axis % len(axes)], keepdims, layout, seed)

    for dtype in dtypes:
        one(dtype, (3, 4), 1, True, "contiguous", 1)
    if name not in EMPTY_OPEN:
        one("float32", (0,), 0, False, "contiguous", 0)
    for_all(
        one,
        examples=6 if context.quick else 25,
        dtype=st.sampled_from(dtypes),
        shape=st.sampled_from(SHAPES),
        axis=st.integers(0, 4),
        keepdims=st.booleans(),
        layout=st.sampled_from(context.layouts),
        seed=st.integers(0, 2**32 - 1),
    )


def _reduce(
    context: Context, name: str, dtype: str, shape: Any, axis: Any, keepdims: bool, layout: str, seed: int
) -> None:
    function, _ = REDUCTIONS[name]
    exact_order = name not in ("sum", "mean")
    x = sample(seed, dtype, shape) if exact_order else finite(seed, dtype, shape)
    out_shape, members = groups(shape, axis, keepdims)
    if name in EMPTY_OPEN and any(not v for v in members.values()):
        return
    options: dict[str, Any] = {}
    to = "bool" if name in ("all", "any") else dtype
    if name == "sum" and dtype in INTEGER:
        to = "int64"  # the default integer; uint64, the standard's for uint8, is not among our dtypes
        options = {"dtype": context.backend.dtype("int64")} if dtype == "uint8" else {}
    call = f"{name}({dtype}{list(shape)}, axis={axis}, keepdims={keepdims}; {layout})"
    out = getattr(context.backend.ops, name)(
        lay(context.backend, x, layout), axis=axis, keepdims=keepdims, **options
    )
    got = result(context.backend, call, out, to, out_shape)
    plain = x.astype(np.float64) if dtype in FLOATING else x
    exact = np.zeros(out_shape, dtype=np.float64)
    want = np.zeros(out_shape, dtype=host_dtype(to))
    worst = np.zeros(out_shape)
    for at, indices in members.items():
        values = [plain[i].item() for i in indices]
        value = function(values)
        exact[at], want[at] = value, rounded(value, to)
        if values and not exact_order:
            worst[at] = math.fsum(abs(v) for v in values) / (len(values) if name == "mean" else 1)
    if exact_order or dtype in INTEGER:
        check_values(call, got, want, dtype=to, exact=exact, zeros=False)
        return
    n = max((len(v) for v in members.values()), default=0)
    within(call, got, exact, worst * (n + 2) * float(info(dtype).eps))


def within(call: str, got: Any, exact: Any, bound: Any) -> None:
    """Assert ``|got - exact| <= bound`` element by element, NaN where NaN is expected."""
    g, e = np.asarray(got).astype(np.float64), np.asarray(exact)
    wrong = ~((np.abs(g - e) <= bound) | (np.isnan(g) & np.isnan(e)) | (g == e))
    if wrong.any():
        i = int(np.flatnonzero(wrong.reshape(-1))[0])
        raise AssertionError(
            f"{call} at element {i} = {g.reshape(-1)[i]!r}; expected {e.reshape(-1)[i]!r} "
            f"within {np.broadcast_to(bound, e.shape).reshape(-1)[i]:.3g} (n eps times the sum of sizes)"
        )


def check_argmax(context: Context, name: str = "argmax") -> None:
    """Check that it is the first of the largest, as the default index type (int64)."""
    for dtype in dtypes_of(context.backend, NUMERIC):
        for shape, axis, keepdims in (
            ((7,), None, False),
            ((3, 4), 0, False),
            ((3, 4), -1, True),
            ((3, 4), None, False),
        ):
            x = (
                (np.abs(finite(3, dtype, shape).astype(np.float64)) * 2)
                .astype(np.int64)
                .astype(host_dtype(dtype))
            )
            out_shape, members = groups(shape, axis, keepdims)
            want = np.zeros(out_shape, dtype=np.int64)
            for at, indices in members.items():
                values = [x[i].item() for i in indices]
                want[at] = values.index(max(values))
            call = f"argmax({dtype}{list(shape)}, axis={axis}, keepdims={keepdims})"
            out = context.backend.ops.argmax(context.backend.from_numpy(x), axis=axis, keepdims=keepdims)
            check_values(call, result(context.backend, call, out, "int64", out_shape), want, dtype="int64")


MATMUL: Final = (
    ((3,), (3,)),
    ((2, 3), (3,)),
    ((3,), (3, 2)),
    ((2, 3), (3, 4)),
    ((5, 2, 3), (3, 4)),
    ((5, 1, 2, 3), (4, 3, 2)),
    ((0, 3), (3, 2)),
    ((2, 0), (0, 3)),
)


def check_matmul(context: Context, name: str = "matmul") -> None:
    """Vectors, matrices, stacks; within the inner length times eps of the product of sizes."""
    backend = context.backend
    for dtype in dtypes_of(backend, ("float32", "float64", "float16", "bfloat16", "int32", "int64")):
        for left, right in MATMUL:
            for layout in ("contiguous",) if dtype != "float32" else context.layouts:
                a, b = finite(1, dtype, left), finite(2, dtype, right)
                exact, size = _product(a, b), _product(np.abs(a), np.abs(b))
                call = f"matmul({dtype}{list(left)}, {list(right)}; {layout})"
                out = backend.ops.matmul(lay(backend, a, layout), lay(backend, b, layout))
                got = result(backend, call, out, dtype, exact.shape)
                eps = 0.0 if dtype in INTEGER else float(info(dtype).eps)
                within(call, got, exact, size * (left[-1] + 2) * eps)


def _product(a: Any, b: Any) -> Any:
    a, b = a.astype(np.float64), b.astype(np.float64)
    wide_a, wide_b = (a[None, :] if a.ndim == 1 else a), (b[:, None] if b.ndim == 1 else b)
    stack = np.broadcast_shapes(wide_a.shape[:-2], wide_b.shape[:-2])
    wide_a = np.broadcast_to(wide_a, stack + wide_a.shape[-2:])
    wide_b = np.broadcast_to(wide_b, stack + wide_b.shape[-2:])
    out = np.zeros((*stack, wide_a.shape[-2], wide_b.shape[-1]))
    for at in itertools.product(*(range(n) for n in out.shape)):
        head, i, j = at[:-2], at[-2], at[-1]
        out[at] = math.fsum(wide_a[(*head, i, k)] * wide_b[(*head, k, j)] for k in range(wide_a.shape[-1]))
    drop = ((-2,) if a.ndim == 1 else ()) + ((-1,) if b.ndim == 1 else ())
    return out.reshape([n for k, n in enumerate(out.shape) if k - out.ndim not in drop])


@lru_cache(maxsize=1)
def checks() -> dict[str, Callable[[Context, str], None]]:
    """Return the check of each reduction, of argmax and of matmul."""
    return {**dict.fromkeys(REDUCTIONS, check_reduction), "argmax": check_argmax, "matmul": check_matmul}
