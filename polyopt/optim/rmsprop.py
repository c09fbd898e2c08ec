"""RMSprop, plain, centered and with momentum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from polyopt.core.ops import Array
from polyopt.core.rule import Slot, Slots, hyper, static
from polyopt.optim.base import Descent, is_zero, quotient, root


@dataclass(frozen=True)
class RMSprop(Descent):
    """RMSprop (Tieleman & Hinton, 2012, lecture 6e; centered with momentum: Graves, 2013, eq. 38-41).

    ``v = αv + (1-α)g²``, ``p -= lr·g/(√v + ε)``. Centered: ``a = αa + (1-α)g`` and v - a² in the place of v.
    With momentum μ, by ``form``: ``"heavy_ball"``: ``b = μb + g/(√v + ε)``, ``p -= lr·b``;
    ``"lr_in_buffer"``: ``b = μb - lr·g/(√v + ε)``, ``p += b``.

    Parameters
    ----------
    lr
        In [0, inf). 1e-2 (torch), else 1e-3; optax has no default.
    alpha
        α, in [0, 1): 0.99 (torch), else 0.9. Keras calls it ``rho``, optax ``decay``.
    eps
        ε, in [0, inf): 1e-7 (keras), else 1e-8. The lecture has none.
    momentum
        μ, in [0, 1].
    centered
        Divide by an estimate of the deviation, not of the root of the mean square.
    eps_placement
        ``"outside"``: √v + ε (paper, torch); ``"inside"``: √(v + ε) (optax, keras; Graves too).
    form
        ``"heavy_ball"`` (torch) or ``"lr_in_buffer"`` (paper, optax, keras). Keras keeps this buffer with the
        opposite sign; the parameters are the same.
    convention, weight_decay, decay, mask
        See ``Descent``. λ is 0; ``"l2"`` (paper, torch), ``"decoupled"`` (keras),
        ``"none"`` (optax).

    Notes
    -----
    Slots: ``square_avg``; ``grad_avg`` if centered; ``momentum_buffer`` where there is momentum.

    Deviations: v - a² is at least 0 in exact arithmetic but not after rounding; it is clamped there, where
    the frameworks take the root of a negative number and give NaN. With ε = 0, 0/0 counts as 0. optax's
    ``nesterov``, ``initial_scale`` and ``bias_correction`` are not offered.

    Examples
    --------
    >>> from polyopt import RMSprop
    >>> [s.name for s in RMSprop(centered=True, momentum=0.9).slots()]
    ['square_avg', 'grad_avg', 'momentum_buffer']
    """

    lr: Any = hyper(None, low=0.0)
    alpha: Any = hyper(None, low=0.0, high=1.0, open_high=True)
    eps: Any = hyper(None, low=0.0)
    momentum: Any = hyper(0.0, low=0.0, high=1.0)
    centered: bool = static(False, False, True)
    eps_placement: str = static(None, "outside", "inside")
    form: str = static(None, "heavy_ball", "lr_in_buffer")

    def slots(self) -> tuple[Slot, ...]:
        """Keep v, if centered the mean gradient, and the momentum buffer where there is momentum."""
        names = ["square_avg"]
        names += ["grad_avg"] if self.centered else []
        names += [] if is_zero(self.momentum) else ["momentum_buffer"]
        return tuple(Slot(name) for name in names)

    def scalars(self, xp: Any, t: Any, h: Any) -> dict[str, Any]:
        """Name the formula's numbers.

        ``alpha`` is α, ``one_minus_alpha`` 1-α, ``momentum`` μ and ``scale`` -lr; ``eps`` or ``eps_inside``
        is ε, outside or inside the root.
        """
        values = {"scale": -h.lr, "alpha": h.alpha, "one_minus_alpha": 1 - h.alpha, "momentum": h.momentum}
        return values | {"eps_inside" if self.eps_placement == "inside" else "eps": h.eps}

    def direction(self, xp: Any, g: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
        """Return ``-lr·g/(√v + ε)``, by way of the buffer where there is momentum."""
        v = c.alpha * slots["square_avg"] + c.one_minus_alpha * (g * g)
        new = {"square_avg": v}
        variance = v
        if self.centered:
            a = c.alpha * slots["grad_avg"] + c.one_minus_alpha * g
            new["grad_avg"] = a
            variance = xp.maximum(v - a * a, 0.0)
        inside = self.eps_placement == "inside"
        d = root(xp, variance, 0.0 if inside else self.eps, self.eps if inside else 0.0, c=c)
        u = quotient(xp, g, d, self.eps)
        if is_zero(self.momentum):
            return c.scale * u, new
        fresh = c.scale * u if self.form == "lr_in_buffer" else u
        b = c.momentum * slots["momentum_buffer"] + fresh
        new["momentum_buffer"] = b
        return b if self.form == "lr_in_buffer" else c.scale * b, new

    _PAPER: ClassVar[dict[str, Any]] = {
        "lr": 1e-3,
        "alpha": 0.9,
        "eps": 1e-8,
        "eps_placement": "outside",
        "form": "lr_in_buffer",
        "weight_decay": 0.0,
        "decay": "l2",
    }
    CONVENTIONS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": _PAPER,
        "torch": _PAPER | {"lr": 1e-2, "alpha": 0.99, "form": "heavy_ball"},
        "optax": _PAPER | {"eps_placement": "inside", "decay": "none"},
        "keras": _PAPER | {"eps": 1e-7, "eps_placement": "inside", "decay": "decoupled"},
    }
