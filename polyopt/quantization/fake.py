"""Fake quantization: the rounding error of integers in a float computation, with a gradient through it."""

from __future__ import annotations

from numbers import Real
from typing import Any

from polyopt.backend import registry
from polyopt.core.errors import InputError, nearest
from polyopt.core.ops import Array, Ops
from polyopt.quantization.scales import Scales, compute_scales
from polyopt.quantization.scheme import CONVENTIONS, Integer, blocks

GRADIENTS = ("clipped", "straight")


def fake_quantize(
    xp: Ops,
    x: Array,
    scale: Any,
    zero_point: Any,
    low: int,
    high: int,
    *,
    convention: str = "paper",
    gradient: str = "clipped",
) -> Array:
    """Round to a grid, (clip(round(x/s) + z, low, high) - z)·s, with the derivative of the identity by ``x``.

    The straight-through estimator (Bengio et al., "Estimating or propagating gradients", 2013): for training
    that knows of its quantization (Jacob et al., 2018, section 3). ``scale`` and ``zero_point`` are constants
    to it. The value is the grid's own to the bit, not x + (q - x), which can be an ulp beside it.

    Parameters
    ----------
    xp
        As the loss gets it.
    x
        Floating, any shape. 16 bits are computed in float32.
    scale, zero_point
        Numbers, or arrays that broadcast with ``x``; a ``zero_point`` of ``None`` is 0.
    low, high
        The range of codes: -127 and 127, say.
    convention
        ``"paper"``, ``"torch"``, ``"keras"``, ``"tensorflow"``: how codes are rounded, as for
        ``Integer``. ``"paper"`` divides, ``"torch"`` and ``"keras"`` multiply by 1/s, both half to even;
        ``"tensorflow"`` has floor(· + ½) and holds x within the grid first.
    gradient
        ``"clipped"``: 0 where the code is out of range, as in torch, or with ``"tensorflow"`` where x is
        beyond the ends of the grid (torch lets the half step beyond an end through). ``"straight"``: 1
        everywhere, but 0 at an x that is not finite.

    Returns
    -------
    Array
        The shape and dtype of ``x``.

    Examples
    --------
    >>> import numpy as np
    >>> import polyopt as po
    >>> x = np.array([0.24, -0.9, 5.0])
    >>> loss = lambda xp, x: xp.sum(fake_quantize(xp, x, 0.1, 0, -10, 10))
    >>> [round(v, 6) for v in fake_quantize(po.get_backend("numpy").ops, x, 0.1, 0, -10, 10).tolist()]
    [0.2, -0.9, 1.0]
    >>> po.value_and_grad(loss)(x)[1].tolist()
    [1.0, 1.0, 0.0]
    """
    if convention not in CONVENTIONS:
        raise InputError(f"fake_quantize: convention = {convention!r}; {nearest(convention, CONVENTIONS)}")
    if gradient not in GRADIENTS:
        raise InputError(f"fake_quantize: gradient = {gradient!r}; {nearest(gradient, GRADIENTS)}")
    if not low < high:
        raise InputError(f"fake_quantize: low = {low!r}, high = {high!r}; expected low < high")
    if isinstance(scale, Real) and not 0 < float(scale) < float("inf"):
        raise InputError(f"fake_quantize: scale = {scale!r}; expected a finite number above 0")
    backend, wide = registry.of(x), _wide(xp, x)
    s = backend.stop_gradient(_constant(xp, scale, wide))
    z = backend.stop_gradient(_constant(xp, 0 if zero_point is None else zero_point, wide))
    inverse = None if convention == "paper" else xp.divide(xp.ones_like(s), s)
    return _through(xp, x, Scales(s, inverse, z, low, high, convention), gradient)


def _through(xp: Ops, x: Array, on: Scales, gradient: str) -> Array:
    backend, wide = registry.of(x), _wide(xp, x)
    value = backend.stop_gradient(x if x.dtype == wide else xp.astype(x, wide))
    grid, inside = _rounded(xp, value, on)
    if gradient == "straight":
        inside = xp.isfinite(value)
    passed = xp.where(inside, x, xp.zeros_like(x))
    rounded = grid if x.dtype == wide else xp.astype(grid, x.dtype)
    # The difference is 0, and its gradient is the mask.
    return xp.add(backend.stop_gradient(rounded), xp.subtract(passed, backend.stop_gradient(passed)))


def fake_quantize_weight(xp: Ops, w: Array, scheme: Integer, *, gradient: str = "clipped") -> Array:
    """Compute ``dequantize(quantize(w, scheme))`` inside a loss: the scales follow the weights.

    The scales are computed from ``w`` in every call, and are constants to the gradient. The bits are those of
    ``quantize`` as long as the framework rounds every operation by itself: always without compilation.

    Parameters
    ----------
    xp
        As the loss gets it.
    w
        A floating array of any framework.
    scheme
        How ``quantize`` would do it.
    gradient
        As of ``fake_quantize``.

    Returns
    -------
    Array
        The shape and dtype of ``w``.

    Examples
    --------
    >>> import numpy as np
    >>> import polyopt as po
    >>> w = np.array([[0.3, -1.27], [0.126, 0.5]])
    >>> xp = po.get_backend("numpy").ops
    >>> fake_quantize_weight(xp, w, Integer(per="tensor")).round(6).tolist()
    [[0.3, -1.27], [0.13, 0.5]]
    """
    if not isinstance(scheme, Integer):
        raise InputError(f"fake_quantize_weight: scheme = {scheme!r}; expected an Integer")
    backend = registry.of(w)
    cut = blocks(scheme, tuple(w.shape), "w")
    if 0 in cut.view:
        return w
    wide = _wide(xp, w)
    view = xp.reshape(xp.astype(backend.stop_gradient(w), wide), cut.view)
    axes = tuple(i for i, n in enumerate(cut.scales) if n == 1)
    zero = xp.zeros(cut.scales, dtype=wide)
    least = xp.minimum(xp.min(view, axis=axes, keepdims=True), zero)
    largest = xp.maximum(xp.max(view, axis=axes, keepdims=True), zero)
    out = _through(xp, xp.reshape(w, cut.view), compute_scales(xp, scheme, least, largest), gradient)
    return xp.reshape(out, tuple(w.shape))


def _wide(xp: Ops, x: Array) -> Any:
    return xp.float64 if x.dtype == xp.float64 else xp.float32


def _constant(xp: Ops, x: Any, dtype: Any) -> Array:
    if isinstance(x, Real):  # NumPy's too
        return xp.asarray(float(x), dtype=dtype)
    return x if x.dtype == dtype else xp.astype(x, dtype)


def _rounded(xp: Ops, x: Array, on: Scales) -> tuple[Array, Array]:
    """Return the point of the grid for every element, and where the gradient goes through."""
    s, z, low, high = on.scale, on.zero_point, on.low, on.high
    if on.convention == "tensorflow":
        least, largest = xp.multiply(low - z, s), xp.multiply(high - z, s)
        inside = xp.logical_and(xp.greater_equal(x, least), xp.less_equal(x, largest))
        held = xp.minimum(xp.maximum(x, least), largest)
        steps = xp.multiply(xp.subtract(held, least), on.inverse)
        q = xp.floor(steps + 0.5) + float(low)
    else:
        steps = xp.divide(x, s) if on.inverse is None else xp.multiply(x, on.inverse)
        code = xp.add(xp.round(steps), z)
        q = xp.minimum(xp.maximum(code, xp.full_like(code, low)), xp.full_like(code, high))
        inside = xp.equal(q, code)
    return xp.multiply(xp.subtract(q, z), s), inside
