"""Bounds, scales, zero points and codes, block by block on the host: one result for every framework."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np

from polyopt.backend import registry
from polyopt.backend.host.buffers import aligned
from polyopt.backend.host.threads import BLOCK, POOL
from polyopt.core.errors import InputError
from polyopt.quantization.scales import KERAS_EPSILON, compute_scales
from polyopt.quantization.scheme import Blocks, Integer

Host: TypeAlias = Any
"""A host array."""

Box: TypeAlias = tuple[Any, Any]
"""Where its elements lie in the view, and where their scales do."""


def compute_dtype(x: Host) -> Any:
    """float64 for float64, else float32."""
    return np.dtype(np.float64 if x.dtype == np.float64 else np.float32)


def bounds(
    x: Host, cut: Blocks, path: str, *, symmetric: bool = False, dtype: Any = None
) -> tuple[Host, Host]:
    """Return the least and the largest element for each scale, widened to hold 0; refuse what is not finite.

    So are elements beyond half of the largest number of ``dtype``, by default that of ``x``: their grid would
    reach infinity. With ``symmetric`` the largest magnitude and its negative, which is faster.
    """
    finfo: Any = ml_dtypes.finfo
    largest = finfo(x.dtype if dtype is None else dtype).max
    dtype = compute_dtype(x)
    low, high = _magnitudes(x, cut, dtype) if symmetric else _extrema(x, cut, dtype)
    limit = dtype.type(largest) / 2
    if not (np.all(low >= -limit) and np.all(high <= limit)):
        flat = np.asarray(x, dtype).reshape(-1)
        i = int(np.flatnonzero(~(np.abs(flat) <= limit))[0])
        index = tuple(int(k) for k in np.unravel_index(i, x.shape))
        raise InputError(
            f"leaf {path!r}: the element at {index} is {float(flat[i]):.6g}; expected finite numbers "
            f"of at most {float(limit):.6g}"
        )
    return low, high


def _extrema(x: Host, cut: Blocks, dtype: Any) -> tuple[Host, Host]:
    view, axes = x.reshape(cut.view), _shared(cut)

    def extrema(box: Box) -> tuple[Host, Host]:
        block = np.asarray(view[box[0]], dtype)
        return np.min(block, axis=axes, keepdims=True), np.max(block, axis=axes, keepdims=True)

    low, high = np.zeros(cut.scales, dtype), np.zeros(cut.scales, dtype)
    boxes = list(_boxes(cut))
    for (_, scales), (least, largest) in zip(boxes, POOL.each(extrema, boxes, x.size), strict=True):
        low[scales] = np.minimum(low[scales], least)
        high[scales] = np.maximum(high[scales], largest)
    return low, high


def _magnitudes(x: Host, cut: Blocks, dtype: Any) -> tuple[Host, Host]:
    """Return the largest magnitude for each scale, and its negative before it.

    Magnitudes are compared by their bits, which order as they do.
    """
    view, axes = x.reshape(cut.view), _shared(cut)
    unsigned = np.dtype(f"u{dtype.itemsize}")
    rest = unsigned.type(np.iinfo(unsigned).max >> 1)

    def largest(box: Box) -> Host:
        bits = np.ascontiguousarray(view[box[0]], dtype).view(unsigned)
        return np.max(np.bitwise_and(bits, rest), axis=axes, keepdims=True)

    most = np.zeros(cut.scales, unsigned)
    boxes = list(_boxes(cut))
    for (_, scales), found in zip(boxes, POOL.each(largest, boxes, x.size), strict=True):
        most[scales] = np.maximum(most[scales], found)
    high = most.view(dtype)
    return -high, high


def _shared(cut: Blocks) -> tuple[int, ...]:
    """Return the axes along which elements share a scale."""
    return tuple(i for i, n in enumerate(cut.scales) if n == 1)


def choose(scheme: Integer, low: Host, high: Host) -> tuple[Host, Host | None]:
    """Return ``(scale, zero point)`` for bounds that hold 0; the zero point is ``None`` where symmetric."""
    found = compute_scales(registry.by_name("numpy").ops, scheme, low, high)
    return found.scale, None if scheme.symmetric else found.zero_point.astype(np.int8)


def encode(
    scheme: Integer,
    x: Host,
    cut: Blocks,
    scale: Host,
    zero_point: Host | None,
    bounds: tuple[Host, Host] | None = None,
) -> Host:
    """int8 codes of the shape of ``x``. ``bounds``, where given, are those that the scale was chosen for."""
    view, codes = x.reshape(cut.view), aligned(cut.view, np.int8)
    rounder = _Rounder(scheme, scale, zero_point, bounds)

    def rounded(box: Box) -> None:
        where, scales = box
        block = view[where]
        out = np.empty(block.shape, scale.dtype)
        rounder(block, scales, out)
        np.copyto(codes[where], out, casting="unsafe")

    POOL.each(rounded, list(_boxes(cut)), x.size)
    return codes.reshape(x.shape)


class _Rounder:
    """The convention's formula for a block, written into a buffer."""

    def __init__(self, scheme: Integer, scale: Host, zero: Host | None, bounds: Any) -> None:
        dtype = scale.dtype.type
        self._range = scheme.range
        self._convention, self._scale = scheme.convention, scale
        self._zero = None if zero is None else zero.astype(scale.dtype)
        # A symmetric scale from the bounds takes each element to at most the largest code, rounded.
        self._inside = bounds is not None and scheme.symmetric and scheme.convention in ("paper", "keras")
        with np.errstate(over="ignore"):
            self._inverse = dtype(1) / scale
        if scheme.convention == "keras" and bounds is not None:
            most = np.maximum(-bounds[0], bounds[1])
            self._inverse = dtype(scheme.range[1]) / (most + dtype(KERAS_EPSILON))

    def __call__(self, block: Host, scales: Any, out: Host) -> None:
        low, high = self._range
        if self._convention == "tensorflow":
            self._half_up(block, scales, out)
            return
        if self._convention == "paper":
            np.divide(block, self._scale[scales], out=out, dtype=out.dtype)
        else:
            np.multiply(block, self._inverse[scales], out=out, dtype=out.dtype)
        np.rint(out, out=out)
        if self._zero is not None:
            np.add(out, self._zero[scales], out=out)
        if not self._inside:
            np.clip(out, low, high, out=out)

    def _half_up(self, block: Host, scales: Any, out: Host) -> None:
        low, high = self._range
        assert self._zero is not None
        scale, zero, half = self._scale[scales], self._zero[scales], out.dtype.type(0.5)
        least = (low - zero) * scale
        np.copyto(out, block, casting="unsafe")
        np.clip(out, least, (high - zero) * scale, out=out)
        np.subtract(out, least, out=out)
        np.multiply(out, self._inverse[scales], out=out)
        np.add(out, half, out=out)
        np.floor(out, out=out)
        np.add(out, out.dtype.type(low), out=out)


def _boxes(cut: Blocks) -> Iterator[Box]:
    """Boxes of about ``BLOCK`` elements that cover the view: where they lie in it, and in the scales."""
    a, b, c = cut.view
    if not a * b * c:
        return
    columns = max(1, min(b, BLOCK // c))
    rows = max(1, min(a, BLOCK // (columns * c)))
    for i in range(0, a, rows):
        for j in range(0, b, columns):
            first, second = slice(i, i + rows), slice(j, j + columns)
            ours = (
                first if cut.scales[0] > 1 else slice(None),
                second if cut.scales[1] > 1 else slice(None),
            )
            yield (first, second), ours


def narrowed(x: Host, dtype: str) -> Host:
    """Return ``x`` as float16 or bfloat16, as NumPy and ml_dtypes cast it.

    >>> narrowed(np.array([1 + 2.0**-9, 3.0]), "bfloat16").tolist()
    [1.0, 3.0]
    """
    result = aligned(x.shape, ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    given, out = x.reshape(-1), result.reshape(-1)

    def cast(start: int) -> None:
        here = slice(start, start + BLOCK)
        np.copyto(out[here], given[here], casting="unsafe")

    POOL.each(cast, range(0, given.size, BLOCK), given.size)
    return result


def pack(codes: Host) -> Host:
    """Codes of 4 bits, two a byte: the first in the low half; a uint8 array of ⌈n/2⌉.

    >>> pack(np.int8([1, -1, 7])).tolist()
    [241, 7]
    """
    flat = codes.reshape(-1).view(np.uint8)
    packed = flat[::2] & np.uint8(15)
    packed[: flat.size // 2] |= flat[1::2] << np.uint8(4)
    return packed


def unpack(packed: Host, shape: tuple[int, ...]) -> Host:
    """Return the int8 codes of ``shape`` that ``pack`` was given.

    Examples
    --------
    >>> unpack(np.uint8([241, 7]), (3,)).tolist()
    [1, -1, 7]
    """
    both = np.empty((packed.size, 2), np.int8)
    both[:, 0] = (packed << np.uint8(4)).view(np.int8) >> 4
    both[:, 1] = packed.view(np.int8) >> 4
    return both.reshape(-1)[: int(np.prod(shape, dtype=np.int64))].reshape(shape)
