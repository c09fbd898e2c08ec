"""A quantized leaf: plain arrays and what they mean."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from polyopt.backend import registry
from polyopt.core.ops import Array
from polyopt.quantization.scheme import Cast, Scheme, blocks

ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True, eq=False)
class Quantized:
    """Stand for a quantized leaf in a tree of parameters: codes, scales and zero points.

    Its arrays are of the framework of the leaf and on its device. Made by ``quantize`` and ``gptq``.

    Parameters
    ----------
    shape
        Of the leaf.
    scheme
        What it was quantized by.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt.quantization import Integer, quantize
    >>> q = quantize(np.float32([[1.27, -0.5]]), Integer(per="tensor"))
    >>> q.codes.tolist(), q.shape, q.dtype
    ([[127, -50]], (1, 2), 'float32')
    """

    codes: Array
    """int8 of ``shape``; for 4 bits uint8 of (⌈n/2⌉,), C order, the first of two codes in the low half of its
    byte; for a ``Cast`` the leaf in that dtype."""
    scale: Array | None
    """float32, or float64 for a float64 leaf. Shape () for a tensor; the leaf's with 1 outside of the axis of
    the channels; the leaf's with n/group_size along the axis of the groups."""
    zero_point: Array | None
    """int8 in the shape of ``scale``; ``None`` where symmetric."""
    shape: tuple[int, ...]
    dtype: str
    """Of the leaf."""
    scheme: Scheme

    @property
    def size(self) -> int:
        """Return the number of weights."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        total = 0
        for x, width in ((self.codes, 1), (self.scale, 4), (self.zero_point, 1)):
            if x is not None:
                name = registry.of(x).dtype_name(x)
                total += math.prod(x.shape) * ITEMSIZE.get(name, width)
        return total


def codes_of(q: Quantized) -> Array:
    """Return the codes as int8 of the leaf's shape, on its framework; 4 bits are unpacked.

    Parameters
    ----------
    q
        A quantized leaf.

    Returns
    -------
    Array
        int8, of ``q.shape``; the leaf in its 16-bit dtype for a ``Cast``.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt.quantization import Integer, quantize
    >>> codes_of(quantize(np.float32([[7.0, -3.0, 1.0]]), Integer(bits=4, per="tensor"))).tolist()
    [[7, -3, 1]]
    """
    xp = registry.of(q.codes).ops
    if isinstance(q.scheme, Cast) or q.scheme.bits == 8:
        return q.codes
    return xp.astype(_nibbles(xp, q, xp.float32), xp.int8)


def restored(q: Quantized) -> Array:
    """Return (q - z)·s of one leaf, in its shape and dtype: one exact difference and one rounded product.

    Written in the framework's operations, so that it can stand in a compiled function: a model that holds its
    weights as codes.
    """
    backend = registry.of(q.codes)
    xp, dtype = backend.ops, backend.dtype(q.dtype)
    if isinstance(q.scheme, Cast):
        return xp.astype(q.codes, dtype)
    assert q.scale is not None
    cut = blocks(q.scheme, q.shape, "param")
    wide = q.scale.dtype
    codes = xp.astype(q.codes, wide) if q.scheme.bits == 8 else _nibbles(xp, q, wide)
    codes = xp.reshape(codes, cut.expanded)
    if q.zero_point is not None:
        codes = xp.subtract(codes, xp.reshape(xp.astype(q.zero_point, wide), cut.factors))
    values = xp.reshape(xp.multiply(codes, xp.reshape(q.scale, cut.factors)), q.shape)
    return values if wide == dtype else xp.astype(values, dtype)


def _nibbles(xp: Any, q: Quantized, dtype: Any) -> Array:
    # In floats, where it is exact: Ops has no shifts.
    byte = xp.astype(q.codes, dtype)
    high = xp.floor(byte * 0.0625)
    low = byte - high * 16.0
    both = xp.reshape(xp.stack([low, high], axis=1), (-1,))
    signed = xp.where(both > 7.5, both - 16.0, both)
    return xp.reshape(signed[: q.size], q.shape)
