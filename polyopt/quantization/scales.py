"""Compute scales and zero points from bounds, as each convention does."""

from __future__ import annotations

from dataclasses import dataclass

from polyopt.core.ops import Array, Ops
from polyopt.quantization.scheme import Integer

TORCH_EPSILON = 2.0**-23
KERAS_EPSILON = 1e-7


@dataclass(frozen=True)
class Scales:
    """Scales and zero points of integer codes, as arrays of the compute dtype.

    ``inverse`` is 1/scale as the convention rounds it; ``None`` where it divides.
    """

    scale: Array
    inverse: Array | None
    zero_point: Array
    low: int
    high: int
    convention: str


def compute_scales(xp: Ops, scheme: Integer, low: Array, high: Array) -> Scales:
    """Return the scales and zero points of ``scheme`` for elements between ``low`` and ``high``.

    Parameters
    ----------
    xp
        Operations of the arrays' framework: the result is the same to the bit on each.
    scheme
        It gives the convention and the range of codes.
    low, high
        Bounds of any shape, one for each scale, with ``low <= 0 <= high``; float32 or float64.

    Examples
    --------
    >>> import numpy as np
    >>> import polyopt as po
    >>> xp = po.get_backend("numpy").ops
    >>> found = compute_scales(xp, Integer(symmetric=False), np.array([-1.0]), np.array([1.55]))
    >>> found.scale.round(6).tolist(), found.zero_point.tolist()
    ([0.01], [-28.0])
    """
    least, largest = scheme.range
    if scheme.symmetric:
        scale, inverse = _symmetric(xp, scheme, xp.maximum(-low, high))
        return Scales(scale, inverse, xp.zeros_like(scale), least, largest, scheme.convention)
    scale = xp.divide(xp.subtract(high, low), xp.full_like(low, largest - least))
    if scheme.convention == "torch":
        scale = xp.maximum(scale, xp.full_like(scale, TORCH_EPSILON))
    else:
        scale = _usable(xp, scale)
    steps = xp.divide(low, scale)
    if scheme.convention == "tensorflow":
        # Half away from zero on TensorFlow's unsigned grid, where this is a number >= 0.
        unsigned = float(2 ** (scheme.bits - 1))
        zero = xp.floor((least + unsigned) - steps + 0.5) - unsigned
    else:
        zero = float(least) - xp.round(steps)
    held = xp.minimum(xp.maximum(zero, xp.full_like(zero, least)), xp.full_like(zero, largest))
    inverse = None if scheme.convention == "paper" else xp.divide(xp.ones_like(scale), scale)
    return Scales(scale, inverse, held, least, largest, scheme.convention)


def _symmetric(xp: Ops, scheme: Integer, most: Array) -> tuple[Array, Array | None]:
    """Return scale and inverse for elements of magnitudes up to ``most``."""
    least, largest = scheme.range
    one = xp.ones_like(most)
    if scheme.convention == "keras":
        inverse = xp.divide(xp.full_like(most, largest), most + KERAS_EPSILON)
        return xp.divide(one, inverse), inverse
    if scheme.convention == "torch":
        scale = xp.divide(most, xp.full_like(most, (largest - least) / 2))
        scale = xp.maximum(scale, xp.full_like(scale, TORCH_EPSILON))
        return scale, xp.divide(one, scale)
    return _usable(xp, xp.divide(most, xp.full_like(most, largest))), None


def _usable(xp: Ops, scale: Array) -> Array:
    """Make it 1 for zeros alone, and else not subnormal, which has few bits and is 0 on XLA."""
    smallest = 2.0**-1022 if scale.dtype == xp.float64 else 2.0**-126
    held = xp.maximum(scale, xp.full_like(scale, smallest))
    return xp.where(xp.equal(scale, xp.zeros_like(scale)), xp.ones_like(scale), held)
