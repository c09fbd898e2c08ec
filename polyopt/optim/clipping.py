"""Clipping of gradients: by value, by norm, by global norm, adaptively.

A stage in a chain, before the optimizer: ``chain(ClipByGlobalNorm(1.0), Adam())``. Norms are taken in the
compute dtype (float32, or float64 where a leaf is), scaled by a power of two and summed in a fixed order, so
they neither overflow nor vanish, and all backends have them in the same bits. Gradients within the limit
come back bit-identical.

An inf or a NaN goes where the convention sends it: with an inf the norm is infinite, so finite elements
become 0 and infinite ones NaN (``"keras"``: all become NaN); with a NaN all become NaN. ``Optimizer(…,
nonfinite="skip")`` or ``"raise"`` looks at the gradients before any of this.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from polyopt.core.errors import InputError
from polyopt.core.ops import Array
from polyopt.core.reductions import axis_root_sum_squares, root_sum_squares
from polyopt.core.rule import Elementwise, Global, Leafwise, Rule, Slots, hyper, static


@dataclass(frozen=True)
class ClipByValue(Elementwise):
    """Hold each element inside [``min_value``, ``max_value``].

    torch's ``clip_grad_value_``, optax' ``clip``, Keras' ``clipvalue``. An infinite element becomes the
    limit, a NaN stays.

    Parameters
    ----------
    max_value
        The upper limit.
    min_value
        The lower limit: ``-max_value`` by default.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt import SGD, ClipByValue, Optimizer, chain
    >>> opt = Optimizer(chain(ClipByValue(1.0), SGD(lr=1.0)))
    >>> params = {"w": np.zeros(3)}
    >>> params, _ = opt.step(params, {"w": np.array([-3.0, 0.5, 2.0])}, opt.init(params))
    >>> params["w"].tolist()
    [1.0, -0.5, -1.0]
    """

    max_value: Any = hyper(limit=True)
    min_value: Any = hyper(None, limit=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.min_value, self.max_value
        if low is None and isinstance(high, int | float) and high < 0:
            raise InputError(f"ClipByValue: max_value = {high!r}; expected a number >= 0, or a min_value too")
        if isinstance(low, int | float) and isinstance(high, int | float) and low > high:
            raise InputError(f"ClipByValue: min_value = {low!r} is above max_value = {high!r}")

    def leaf(self, xp: Any, g: Array, p: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
        """Return the gradient held between the limits."""
        low = -c.max_value if self.min_value is None else c.min_value
        return xp.minimum(xp.maximum(g, low), c.max_value), {}


NORM_CONVENTIONS: Mapping[str, Mapping[str, Any]] = {
    "paper": {"eps": 0.0, "spread_inf": False},
    "optax": {"eps": 0.0, "spread_inf": False},
    "torch": {"eps": 1e-6, "spread_inf": False},
    "keras": {"eps": 0.0, "spread_inf": True},
}


@dataclass(frozen=True)
class ClipByGlobalNorm(Global):
    """Scale all gradients together so that their joint 2-norm is at most ``max_norm``.

    Pascanu et al., "On the difficulty of training recurrent neural networks", 2013, Algorithm 1.

    ``"paper"``, ``"optax"``: ``g`` if ‖g‖ <= c, else g·c/‖g‖. ``"torch"``: g·min(1, c/(‖g‖ + 1e-6)).
    ``"keras"``: g·c·min(1/‖g‖, 1/c), which is the paper's, but one inf makes everything NaN.

    Parameters
    ----------
    max_norm
        The limit c, above 0.
    convention
        ``"paper"``, ``"torch"``, ``"optax"`` or ``"keras"``; it fills in the two below.
    eps
        What is added to the norm, in [0, inf): 1e-6 (torch), else 0.
    spread_inf
        Let one inf make every element NaN (keras). Else finite elements become 0 and infinite ones NaN.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt import SGD, ClipByGlobalNorm, Optimizer, chain
    >>> opt = Optimizer(chain(ClipByGlobalNorm(1.0), SGD(lr=1.0)))
    >>> params = {"a": np.zeros(1), "b": np.zeros(1)}
    >>> params, _ = opt.step(params, {"a": np.array([3.0]), "b": np.array([-4.0])}, opt.init(params))
    >>> [x.round(12).tolist() for x in params.values()]
    [[-0.6], [0.8]]
    """

    CONVENTIONS: ClassVar[Mapping[str, Mapping[str, Any]]] = NORM_CONVENTIONS
    NORM_ALONE: ClassVar[bool] = True

    max_norm: Any = hyper(low=0.0, open_low=True, limit=True)
    convention: str = static("paper", *NORM_CONVENTIONS)
    eps: Any = hyper(None, low=0.0)
    spread_inf: bool | None = static(None, None, False, True)

    def measure(self, xp: Any, leaves: Sequence[Array], c: Any) -> dict[str, Array]:
        """Return the factors that bring the joint norm of ``leaves`` down to the limit."""
        root, scale = root_sum_squares(xp, leaves)
        return _limited(xp, root, scale, c.max_norm, c.eps, bool(self.spread_inf))

    def leaf(self, xp: Any, g: Array, p: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
        """Return the gradient as it is within the limit, else times c/‖g‖."""
        return xp.where(c.within > 0.5, g, (g * c.down) * c.factor), {}


@dataclass(frozen=True)
class ClipByNorm(Leafwise):
    """Scale each leaf on its own so that its 2-norm is at most ``max_norm``: Keras' ``clipnorm``.

    The formulas are those of ``ClipByGlobalNorm``, of one leaf.

    Parameters
    ----------
    max_norm
        The limit, above 0.
    convention, eps, spread_inf
        As of ``ClipByGlobalNorm``.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt import SGD, ClipByNorm, Optimizer, chain
    >>> opt = Optimizer(chain(ClipByNorm(1.0), SGD(lr=1.0)))
    >>> p = np.zeros(2)
    >>> opt.step(p, np.array([3.0, -4.0]), opt.init(p))[0].round(12).tolist()
    [-0.6, 0.8]
    """

    CONVENTIONS: ClassVar[Mapping[str, Mapping[str, Any]]] = NORM_CONVENTIONS

    max_norm: Any = hyper(low=0.0, open_low=True, limit=True)
    convention: str = static("paper", *NORM_CONVENTIONS)
    eps: Any = hyper(None, low=0.0)
    spread_inf: bool | None = static(None, None, False, True)

    def leaf(self, xp: Any, g: Array, p: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
        """Return the gradient as it is within the limit, else times c/‖g‖ of this leaf."""
        root, scale = root_sum_squares(xp, [g])
        limited = _limited(xp, root, scale, c.max_norm, c.eps, bool(self.spread_inf))
        return _clipped(xp, g, limited), {}


LAYOUTS: Mapping[str, Mapping[str, Any]] = {
    "paper": {"layout": "in_out"},
    "optax": {"layout": "in_out"},
    "keras": {"layout": "in_out"},
    "torch": {"layout": "out_in"},
}


@dataclass(frozen=True)
class AdaptiveGradientClip(Leafwise):
    """Hold each unit's gradient to a fraction of the unit's weights, in norm (AGC).

    Brock et al., "High-performance large-scale image recognition without normalization", 2021, eq. 3. Unit
    by unit: G_i·λ·max(‖W_i‖, ε)/‖G_i‖ where ‖G_i‖ > λ·max(‖W_i‖, ε). A unit is an output unit: with
    ``layout="in_out"`` (the paper's code, optax, Keras) it is a slice along the last axis, and along the last
    two of a 3-d leaf; with ``"out_in"`` (torch) along the first. A leaf of at most one axis longer than 1
    is a single unit, as in optax.

    Parameters
    ----------
    clipping
        λ, the largest ratio of the norms, above 0.
    eps
        ε, in [0, inf), so that a unit of zeros can move.
    convention
        ``"paper"``, ``"torch"``, ``"optax"`` or ``"keras"``; it fills in ``layout``.
    layout
        The axis of output units: ``"in_out"`` (paper, optax, keras) or ``"out_in"`` (torch).

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt import SGD, AdaptiveGradientClip, Optimizer, chain
    >>> opt = Optimizer(chain(AdaptiveGradientClip(0.5), SGD(lr=1.0)))
    >>> w = np.array([[2.0, 4.0], [0.0, 0.0]])
    >>> opt.step(w, np.array([[10.0, 1.0], [0.0, 0.0]]), opt.init(w))[0].tolist()
    [[1.0, 3.0], [0.0, 0.0]]
    """

    CONVENTIONS: ClassVar[Mapping[str, Mapping[str, Any]]] = LAYOUTS

    clipping: Any = hyper(0.01, low=0.0, open_low=True)
    eps: Any = hyper(1e-3, low=0.0)
    convention: str = static("paper", *LAYOUTS)
    layout: str | None = static(None, None, "in_out", "out_in")

    def leaf(self, xp: Any, g: Array, p: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
        """Return each unit's gradient as it is within λ·max(‖W_i‖, ε), else scaled down to that norm."""
        shape, axis = _units(tuple(g.shape), self.layout == "out_in")
        rows = xp.reshape(g, shape)
        root, scale = axis_root_sum_squares(xp, rows, axis)
        p_root, p_scale = axis_root_sum_squares(xp, xp.reshape(p, shape), axis)
        norm = xp.divide(p_root, p_scale)
        limit = xp.multiply(c.clipping, xp.maximum(norm, xp.broadcast_to(c.eps, tuple(norm.shape))))
        limited = _limited(xp, root, scale, limit, xp.zeros_like(root), False)
        return xp.reshape(_clipped(xp, rows, limited), tuple(g.shape)), {}


def _limited(
    xp: Any, root: Array, scale: Array, limit: Array, eps: Array, spread_inf: bool
) -> dict[str, Array]:
    """Compute the factors that bring a norm of ``root / scale`` down to ``limit``.

    ``within`` is 1 where nothing is to be done; else elements are multiplied by ``down``, a power of two, and
    then by ``factor``: one number could overflow or vanish.
    """
    one = xp.ones_like(root)
    # Held where its product with the scale is finite: the norm is below it there in any case.
    most = xp.full_like(root, 2.0**1023 if root.dtype == xp.float64 else 2.0**127)
    limit = xp.minimum(limit, xp.divide(most, xp.maximum(scale, one)))
    total = xp.add(root, xp.multiply(eps, scale))
    within = xp.less_equal(total, xp.multiply(limit, scale))
    # Not below what float32 holds: leaves of that dtype can stand beside float64 ones.
    down = xp.minimum(xp.maximum(scale, xp.full_like(root, 2.0**-100)), one)
    numerator = xp.multiply(limit, xp.divide(scale, down))
    factor = xp.divide(numerator, xp.where(xp.equal(total, xp.zeros_like(root)), one, total))
    if spread_inf:
        factor = xp.where(xp.isinf(root), xp.full_like(root, math.nan), factor)
    return {
        "within": xp.where(within, one, xp.zeros_like(root)),
        "down": down,
        "factor": factor,
    }


def _clipped(xp: Any, g: Array, limited: Mapping[str, Array]) -> Array:
    within = xp.greater(limited["within"], xp.full_like(limited["within"], 0.5))
    scaled = xp.multiply(xp.multiply(g, limited["down"]), limited["factor"])
    return xp.where(within, g, scaled)


def _units(shape: tuple[int, ...], out_in: bool) -> tuple[tuple[int, int], int]:
    """Return the 2-d shape in which each unit is a row or a column, and the axis along which one lies."""
    size = math.prod(shape)
    if sum(n != 1 for n in shape) <= 1:
        return (1, size), 1
    if out_in:
        return (shape[0], size // shape[0] if shape[0] else 0), 1
    kept = math.prod(shape[1:]) if len(shape) <= 3 else shape[-1]
    return (size // kept if kept else 0, kept), 0


CLIPPING: dict[str, type[Rule]] = {
    "adaptive_gradient_clip": AdaptiveGradientClip,
    "clip_by_global_norm": ClipByGlobalNorm,
    "clip_by_norm": ClipByNorm,
    "clip_by_value": ClipByValue,
}
"""The names that recipes use."""
