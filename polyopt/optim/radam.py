"""RAdam."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from polyopt.core.ops import Array
from polyopt.core.rule import Slot, Slots, hyper, static
from polyopt.optim.base import Descent, quotient, root


@dataclass(frozen=True)
class RAdam(Descent):
    """RAdam, Adam with its variance rectified (Liu et al., 2020, Algorithm 2).

    With ``ρ_inf = 2/(1-β2) - 1``, ``ρ = ρ_inf - 2t·β2^t/(1-β2^t)`` and
    ``r = √((ρ-4)(ρ-2)ρ_inf/((ρ_inf-4)(ρ_inf-2)ρ))``: ``p -= lr·r·m̂·√(1-β2^t)/(√v + ε)`` where ρ is above
    the threshold, else ``p -= lr·m̂``, with Adam's m, v and ``m̂ = m/(1-β1^t)``.

    Parameters
    ----------
    lr
        α, in [0, inf): 1e-3; optax has no default.
    b1, b2
        β1 and β2, in [0, 1): 0.9 and 0.999.
    eps
        ε, in [0, inf): 1e-8. Algorithm 2 has none; it is where the authors' code has it.
    eps_root
        In [0, inf): √(v̂ + eps_root); optax' alone, 0 by default.
    threshold
        In [4, inf): 4 (paper) or 5 (torch, optax). r is not real below 4.
    eps_placement
        ``"hat"``: √(1-β2^t)/(√v + ε) (paper, torch); ``"outside"``: 1/(√v̂ + ε) (optax).
    at_threshold
        What happens at ρ = threshold: ``"plain"`` (paper, torch) or ``"rectified"`` (optax).
    convention, weight_decay, decay, mask
        See ``Descent``. λ is 0; ``"l2"`` (paper, torch; torch's
        ``decoupled_weight_decay=True`` is ``"decoupled"``), ``"none"`` (optax). Keras has no RAdam.

    Notes
    -----
    Slots: ``exp_avg`` (m), ``exp_avg_sq`` (v). ρ is what is left of a cancellation: the frameworks'
    1 - β2**t leaves about 1e-10 of noise in it at the first rectified steps, so that parity is relative to
    the parameters, not to the update.

    Examples
    --------
    >>> from polyopt import RAdam
    >>> RAdam(convention="keras")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    polyopt.core.errors.InputError: RAdam: convention = 'keras' ... known: 'optax', 'paper', 'torch'
    """

    lr: Any = hyper(None, low=0.0)
    b1: Any = hyper(None, low=0.0, high=1.0, open_high=True)
    b2: Any = hyper(None, low=0.0, high=1.0, open_high=True)
    eps: Any = hyper(None, low=0.0)
    eps_root: Any = hyper(0.0, low=0.0)
    threshold: Any = hyper(None, low=4.0, limit=True)
    eps_placement: str = static(None, "outside", "hat")
    at_threshold: str = static(None, "plain", "rectified")

    def slots(self) -> tuple[Slot, ...]:
        """Keep m, v and the weights of scheduled betas."""
        return (Slot("exp_avg"), Slot("exp_avg_sq"), *self.weights("b1", "b2"))

    def scalars(self, xp: Any, t: Any, h: Any) -> dict[str, Any]:
        """Fold the corrections, the rectification and lr into one factor and one ε.

        - ``b1``, ``one_minus_beta1``, ``b2``, ``one_minus_beta2``: β1, 1-β1, β2, 1-β2.
        - ``bc1``, ``bc2``: 1-β1^t and 1-β2^t; ``rho_inf``, ``rho`` and ``r`` as in Algorithm 2.
        - ``rectified``: 1 where ρ is above the threshold, else 0.
        - ``scale``: -lr·r·√bc2/bc1 where it is rectified, else -lr/bc1.
        - ``eps``, ``eps_inside``: ε and ``eps_root`` (``"hat"``) or ε√bc2 and ``eps_root``·bc2.
        """
        (bc1, first), (bc2, second) = (self.correction(xp, beta, t, h) for beta in ("b1", "b2"))
        rho_inf = 2 / (1 - h.b2) - 1
        rho = rho_inf - 2 * t * (1 - bc2 if second else xp.pow(h.b2, t)) / bc2
        rectified = rho > h.threshold if self.at_threshold == "plain" else rho >= h.threshold
        over = (rho - 4) * (rho - 2) * rho_inf
        r = xp.sqrt(xp.maximum(xp.divide(over, (rho_inf - 4) * (rho_inf - 2) * rho), 0.0))
        correction = xp.sqrt(bc2)
        outside = self.eps_placement == "outside"
        return {
            **first,
            **second,
            "b1": h.b1,
            "one_minus_beta1": 1 - h.b1,
            "b2": h.b2,
            "one_minus_beta2": 1 - h.b2,
            "bc1": bc1,
            "bc2": bc2,
            "rho_inf": rho_inf,
            "rho": rho,
            "r": r,
            "rectified": xp.where(rectified, 1.0, 0.0),
            "scale": -(h.lr * xp.where(rectified, r * correction, 1.0) / bc1),
            "eps": h.eps * correction if outside else h.eps,
            "eps_inside": h.eps_root * bc2 if outside else h.eps_root,
        }

    def direction(self, xp: Any, g: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
        """Return ``scale·m/(√(v + eps_inside) + eps)``, without the division before it is rectified."""
        m = c.b1 * slots["exp_avg"] + c.one_minus_beta1 * g
        v = c.b2 * slots["exp_avg_sq"] + c.one_minus_beta2 * (g * g)
        d = xp.where(c.rectified > 0.5, root(xp, v, self.eps, self.eps_root, c=c), 1.0)
        return c.scale * quotient(xp, m, d, self.eps, self.eps_root), {"exp_avg": m, "exp_avg_sq": v}

    _PAPER: ClassVar[dict[str, Any]] = {
        "lr": 1e-3,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "eps_placement": "hat",
        "threshold": 4.0,
        "at_threshold": "plain",
        "weight_decay": 0.0,
        "decay": "l2",
    }
    CONVENTIONS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": _PAPER,
        "torch": _PAPER | {"threshold": 5.0},
        "optax": _PAPER
        | {"threshold": 5.0, "at_threshold": "rectified", "eps_placement": "outside", "decay": "none"},
    }
