"""Elementwise operations: values, dtypes, special values, shapes, layouts and promotion."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from polyopt.backend.protocol import Backend
from polyopt.core.ops import INTEGER
from polyopt.testing.case import Context, for_all, hypothesis
from polyopt.testing.compare_arrays import check_values, result
from polyopt.testing.ops_inputs import (
    PAIRS,
    SHAPES,
    dtypes_of,
    host_dtype,
    lay,
    rounded,
    sample,
    specials,
)
from polyopt.testing.ops_scalar import ELEMENTWISE, PROMOTIONS, Elementwise


def expected(spec: Elementwise, arrays: list[Any], dtype: str) -> tuple[Any, Any, Any]:
    """Compute what is expected, element by element.

    ``(rounded to dtype, in double precision, where the standard leaves it open)``.
    """
    broadcast = np.broadcast_arrays(*arrays)
    shape = broadcast[0].shape
    columns = [
        x.astype(np.float64).reshape(-1).tolist() if x.dtype.kind in "fV" else x.reshape(-1).tolist()
        for x in broadcast
    ]
    values = [spec.value(*row) for row in zip(*columns, strict=True)]
    open_ = [v is None or _overflows(v, dtype) for v in values]
    values = [0 if skip else v for v, skip in zip(values, open_, strict=True)]
    exact = np.array([float(v) for v in values], dtype=np.float64).reshape(shape)
    want = np.array([rounded(v, dtype) for v in values], dtype=host_dtype(dtype)).reshape(shape)
    return want, exact, np.array(open_, dtype=bool).reshape(shape)


def _overflows(value: Any, dtype: str) -> bool:
    if dtype not in INTEGER:
        return False
    limits = np.iinfo(dtype)
    return not limits.min <= value <= limits.max


def _call(
    backend: Backend, name: str, arrays: list[Any], layout: str, dtype: str, compiled: bool = False
) -> None:
    """Call operation ``name`` on ``arrays`` and compare; the result must have ``dtype`` (or be a bool)."""
    spec = ELEMENTWISE[name]
    if spec.largest < np.inf:
        arrays = [np.where(np.abs(x.astype(np.float64)) <= spec.largest, x, x.dtype.type(1)) for x in arrays]
    if name == "pow" and dtype in INTEGER:  # the standard leaves a negative exponent open
        arrays = [arrays[0], np.where((arrays[1] >= 0) & (arrays[1] < 8), arrays[1], arrays[1].dtype.type(2))]
    out_dtype = "bool" if spec.predicate else dtype
    how = f"{layout}, compiled" if compiled else layout
    call = f"{name}({', '.join(x.dtype.name for x in arrays)}; {how})"
    operation = getattr(backend.ops, name)
    if compiled:
        operation = backend.compile(lambda xp, *x: getattr(xp, name)(*x))
    out = operation(*(lay(backend, x, layout) for x in arrays))
    want, exact, skip = expected(spec, arrays, out_dtype)
    got = result(backend, call, out, out_dtype, want.shape)
    ulps = spec.ulps.get(dtype, 0.0)
    check_values(
        call, got, want, dtype=out_dtype, exact=exact, ulps=ulps, zeros=spec.zeros, skip=skip, inputs=arrays
    )


def check(context: Context, name: str) -> None:
    """Everything about the elementwise operation ``name``."""
    backend, spec = context.backend, ELEMENTWISE[name]
    dtypes = dtypes_of(backend, spec.dtypes)
    for dtype in dtypes:
        _call(backend, name, _grid(spec, specials(dtype)), "contiguous", dtype)
        if dtype in ("float32", "float64"):
            _call(backend, name, _grid(spec, specials(dtype)), "contiguous", dtype, compiled=True)
    for dtype in {dtypes[0], dtypes[-1]}:
        for shape in ((), (0,), (0, 3)):
            arrays = [sample(i, dtype, shape) for i in range(spec.arity)]
            _call(backend, name, _with_condition(spec, arrays), "contiguous", dtype)
    _drawn(context, name, dtypes)
    if len(arity_operands(spec)) == 2:
        for i, (left, right, to) in enumerate(PROMOTIONS):
            if {left, right} <= set(dtypes):
                pair = (left, right) if i % 2 else (right, left)
                arrays = [np.abs(sample(7 + k, d, (4,))) for k, d in enumerate(pair)]
                _call(backend, name, _with_condition(spec, arrays), "contiguous", to)


def arity_operands(spec: Elementwise) -> range:
    """Operands that share a dtype: all but ``where``'s condition."""
    return range(spec.arity - 1 if spec.arity == 3 else spec.arity)


def _grid(spec: Elementwise, pool: Any) -> list[Any]:
    """Combine all special values with each other."""
    operands = np.meshgrid(*([pool] * len(arity_operands(spec))), indexing="ij")
    return _with_condition(spec, [np.ascontiguousarray(x.reshape(-1)) for x in operands])


def _with_condition(spec: Elementwise, arrays: list[Any]) -> list[Any]:
    if spec.arity < 3:
        return arrays
    arrays = arrays[-2:]
    shape = np.broadcast_shapes(*(x.shape for x in arrays))
    return [(np.arange(int(np.prod(shape, dtype=int))) % 2 == 0).reshape(shape), *arrays]


def _drawn(context: Context, name: str, dtypes: tuple[str, ...]) -> None:
    st = hypothesis().strategies
    spec = ELEMENTWISE[name]
    binary = len(arity_operands(spec)) == 2

    def one(dtype: str, shapes: Any, layouts: str, seed: int) -> None:
        arrays = [sample(seed + i, dtype, shape) for i, shape in enumerate(shapes)]
        _call(context.backend, name, _with_condition(spec, arrays), layouts, dtype)

    for_all(
        one,
        examples=EXAMPLES_QUICK if context.quick or context.sparse else EXAMPLES,
        dtype=st.sampled_from(dtypes),
        shapes=st.sampled_from(PAIRS if binary else tuple((s,) for s in SHAPES)),
        layouts=st.sampled_from(context.layouts),
        seed=st.integers(0, 2**32 - 1),
    )


EXAMPLES: Final = 12
EXAMPLES_QUICK: Final = 5
