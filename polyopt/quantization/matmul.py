"""Products of integers: int8 by int8, added up exactly in int32, and a linear layer made of them."""

from __future__ import annotations

from typing import Any

from polyopt.backend import registry
from polyopt.core.errors import InputError
from polyopt.core.ops import FLOATING, Array, Ops
from polyopt.quantization.calibration import Grid
from polyopt.quantization.record import Quantized, codes_of
from polyopt.quantization.scheme import Integer

EXACT_TERMS = 1024
"""As many products of int8 numbers, 2¹⁴ each at most, add up in float32 without rounding, in any order."""

MAX_TERMS = 131_071
"""The most products that can't overflow int32."""

MAX_INPUTS = 33_025
"""The most inputs of a layer with two zero points: 255²·33025 < 2³¹."""


def int8_matmul(x: Array, w: Array) -> Array:
    """Multiply int8 matrices into int32: exact, so the same on every framework.

    Through ``backend.int8_matmul(x, w)`` where the backend has that method and it gives an array: a product
    in integers. Else by float32 products of 1024 terms at a time, which are exact too. k is at most 131,071.

    Parameters
    ----------
    x
        int8, of shape (m, k); k is at most 131,071.
    w
        int8, of shape (k, n).

    Returns
    -------
    Array
        int32, of shape (m, n).

    Raises
    ------
    InputError
        For other dtypes, shapes that don't fit, and a larger k.

    Examples
    --------
    >>> import numpy as np
    >>> int8_matmul(np.int8([[100, -128]]), np.int8([[100], [127]])).tolist()
    [[-6256]]
    """
    backend = registry.of(x, w)
    for name, a in (("x", x), ("w", w)):
        if backend.dtype_name(a) != "int8" or len(a.shape) != 2:
            raise InputError(
                f"int8_matmul: {name} is {backend.dtype_name(a)} of shape {tuple(a.shape)}; "
                "expected int8 of two axes"
            )
    if x.shape[1] != w.shape[0] or x.shape[1] > MAX_TERMS:
        raise InputError(
            f"int8_matmul: shapes {tuple(x.shape)} and {tuple(w.shape)}; expected (m, k) and (k, n) "
            f"with k of at most {MAX_TERMS}"
        )
    native = getattr(backend, "int8_matmul", None)
    product = None if native is None else native(x, w)
    return _blocked(backend.ops, x, w) if product is None else product


def int8_linear(x: Array, weight: Quantized, grid: Grid | None = None, *, bias: Array | None = None) -> Array:
    """Compute ``x @ dequantize(weight) + bias`` with ``x`` rounded to 8 bits too, the products in integers.

    y = s_x·s_w·(Σ q_x·q_w - z_x·Σ q_w - z_w·Σ q_x + k·z_x·z_w) + b: Jacob et al., 2018, eq. 7. The bracket is
    exact in int32; then one product of the scales, one with it, and one sum are rounded.

    Parameters
    ----------
    x
        Floating, (…, in).
    weight
        Two axes, by its scheme's ``layout``; of 8 or 4 bits, per tensor or per channel of the outputs.
    grid
        That of ``x`` from ``calibrate``. By default each row has its own: symmetric, with the row's
        largest magnitude at 127; a row that holds NaN or inf has none that is a number, and becomes NaN.
    bias
        (out,).

    Returns
    -------
    Array
        Of shape (…, out), dtype of ``x``.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt.quantization import quantize
    >>> w = quantize(np.float32([[1.0, 0.5], [0.0, -1.0]]), Integer())
    >>> int8_linear(np.float32([[2.0, 1.0]]), w).round(2).tolist()
    [[2.0, 0.0]]
    """
    if not isinstance(weight, Quantized):
        raise InputError(f"int8_linear: weight is a {type(weight).__name__}; expected what quantize gives")
    if not isinstance(grid, Grid | None):
        raise InputError(
            f"int8_linear: grid is a {type(grid).__name__}; expected a Grid: one of what calibrate gives"
        )
    backend = registry.of(x, weight.codes)
    xp = backend.ops
    if backend.dtype_name(x) not in FLOATING:
        raise InputError(f"int8_linear: x is {backend.dtype_name(x)}; expected one of {', '.join(FLOATING)}")
    codes, scale, zero = _as_in_out(xp, weight)
    inputs, outputs = int(codes.shape[0]), int(codes.shape[1])
    if len(x.shape) < 1 or x.shape[-1] != inputs:
        raise InputError(f"int8_linear: x has shape {tuple(x.shape)}; expected (…, {inputs})")
    if bias is not None and tuple(bias.shape) != (outputs,):
        raise InputError(f"int8_linear: bias has shape {tuple(bias.shape)}; expected ({outputs},)")
    rows = xp.astype(xp.reshape(x, (-1, inputs)), xp.float32)
    q, s, z = _row_codes(xp, rows) if grid is None else _grid_codes(xp, rows, grid)
    total = int8_matmul(q, codes)
    whole = xp.astype(codes, xp.int32)
    if z:
        total = total - z * xp.sum(whole, axis=0, dtype=xp.int32, keepdims=True)
    if zero is not None:
        sums = xp.sum(xp.astype(q, xp.int32), axis=1, dtype=xp.int32, keepdims=True)
        total = xp.subtract(total, xp.multiply(sums - z * inputs, zero))
    y = xp.multiply(xp.astype(total, xp.float32), xp.multiply(s, scale))
    if bias is not None:
        y = xp.add(y, xp.astype(bias, xp.float32))
    y = xp.reshape(y, (*(int(n) for n in x.shape[:-1]), outputs))
    return y if x.dtype == xp.float32 else xp.astype(y, x.dtype)


def _as_in_out(xp: Ops, weight: Quantized) -> tuple[Array, Array, Array | None]:
    """Codes (in, out), scales in float32 and zero points in int32, both (1, out) or (1, 1)."""
    scheme = weight.scheme
    if not isinstance(scheme, Integer) or scheme.per == "group" or len(weight.shape) != 2:
        raise InputError(
            f"int8_linear: a weight of shape {weight.shape} with {scheme}; expected two axes and an Integer "
            "scheme per tensor or channel: sums of several groups have no common scale"
        )
    by_input = scheme.layout == "in_out"
    outputs, inputs = weight.shape[int(by_input)], weight.shape[int(not by_input)]
    if scheme.axis is not None and scheme.axis % 2 != int(by_input):
        raise InputError(f"int8_linear: axis = {scheme.axis} is that of the inputs; expected the outputs'")
    if inputs > MAX_INPUTS:
        raise InputError(f"int8_linear: {inputs} inputs; expected at most {MAX_INPUTS}, or int32 overflows")
    codes = codes_of(weight)
    row = (1, outputs if scheme.per == "channel" else 1)
    scale = xp.astype(xp.reshape(weight.scale, row), xp.float32)
    zero = weight.zero_point
    zero = None if zero is None else xp.astype(xp.reshape(zero, row), xp.int32)
    return codes if by_input else xp.matrix_transpose(codes), scale, zero


def _row_codes(xp: Ops, x: Array) -> tuple[Array, Array, int]:
    most = xp.max(xp.abs(x), axis=1, keepdims=True)
    s = xp.divide(most, xp.full_like(most, 127.0))
    # A scale that is NaN stays: the row is NaN.
    s = xp.where(xp.less_equal(s, xp.full_like(s, 2.0**-126)), xp.ones_like(s), s)
    return xp.astype(xp.round(xp.divide(x, s)), xp.int8), s, 0


def _grid_codes(xp: Ops, x: Array, grid: Grid) -> tuple[Array, Array, int]:
    if not -128 <= grid.low < grid.high <= 127:
        raise InputError(f"int8_linear: {grid}; expected low and high within [-128, 127]")
    s = xp.asarray(grid.scale, dtype=xp.float32)
    q = xp.round(xp.divide(x, s)) + float(grid.zero_point)
    q = xp.minimum(xp.maximum(q, xp.full_like(q, grid.low)), xp.full_like(q, grid.high))
    return xp.astype(q, xp.int8), s, grid.zero_point


def _blocked(xp: Ops, x: Array, w: Array) -> Array:
    total: Any = xp.zeros((int(x.shape[0]), int(w.shape[1])), dtype=xp.int32) if x.shape[1] == 0 else None
    for start in range(0, int(x.shape[1]), EXACT_TERMS):
        some = slice(start, start + EXACT_TERMS)
        part = xp.matmul(xp.astype(x[:, some], xp.float32), xp.astype(w[some], xp.float32))
        part = xp.astype(part, xp.int32)
        total = part if total is None else xp.add(total, part)
    return total
