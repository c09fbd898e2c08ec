"""Adamax."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from polyopt.core.ops import Array
from polyopt.core.rule import Slot, Slots, hyper, static
from polyopt.optim.base import Descent, is_zero, quotient


@dataclass(frozen=True)
class Adamax(Descent):
    """Adamax, Adam in the infinity norm (Kingma & Ba, 2015, Algorithm 2).

    ``m = β1·m + (1-β1)g``, ``u = max(β2·u, |g|)``, ``p -= lr/(1-β1^t)·m/u``.

    Parameters
    ----------
    lr
        α, in [0, inf): 1e-3 (keras), else 2e-3; optax has no default.
    b1, b2
        β1 and β2, in [0, 1): 0.9 and 0.999.
    eps
        ε, in [0, inf): 0 (paper, which has none), 1e-8 (torch, optax), 1e-7 (keras).
    eps_placement
        ``"norm"``: u = max(β2·u, |g| + ε) (torch, optax); ``"outside"``: m/(u + ε) (keras).
    convention, weight_decay, decay, mask
        See ``Descent``. λ is 0; ``"l2"`` (paper, torch), ``"decoupled"`` (keras),
        ``"none"`` (optax).

    Notes
    -----
    Slots: ``exp_avg`` (m), ``exp_inf`` (u). With ε = 0, 0/0 counts as 0.

    Examples
    --------
    >>> from polyopt import Adamax
    >>> Adamax(convention="torch").eps_placement
    'norm'
    """

    lr: Any = hyper(None, low=0.0)
    b1: Any = hyper(None, low=0.0, high=1.0, open_high=True)
    b2: Any = hyper(None, low=0.0, high=1.0, open_high=True)
    eps: Any = hyper(None, low=0.0)
    eps_placement: str = static(None, "outside", "norm")

    def slots(self) -> tuple[Slot, ...]:
        """Keep m, u and the weight of a scheduled β1."""
        return (Slot("exp_avg"), Slot("exp_inf"), *self.weights("b1"))

    def scalars(self, xp: Any, t: Any, h: Any) -> dict[str, Any]:
        """Name the formula's numbers; ``scale`` is -lr/(1-β1^t), ``one_minus_beta1`` 1-β1."""
        bc1, first = self.correction(xp, "b1", t, h)
        values = {"b1": h.b1, "one_minus_beta1": 1 - h.b1, "b2": h.b2, "eps": h.eps, "bc1": bc1}
        return values | first | {"scale": -(h.lr / bc1)}

    def direction(self, xp: Any, g: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
        """Return ``-lr/(1-β1^t)·m/u``, ε where the convention has it, and both moments after it."""
        m = c.b1 * slots["exp_avg"] + c.one_minus_beta1 * g
        size = xp.abs(g)
        in_norm = self.eps_placement == "norm" and not is_zero(self.eps)
        u = xp.maximum(c.b2 * slots["exp_inf"], size + c.eps if in_norm else size)
        d = u if in_norm or is_zero(self.eps) else u + c.eps
        return c.scale * quotient(xp, m, d, self.eps), {"exp_avg": m, "exp_inf": u}

    _PAPER: ClassVar[dict[str, Any]] = {
        "lr": 2e-3,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 0.0,
        "eps_placement": "outside",
        "weight_decay": 0.0,
        "decay": "l2",
    }
    _TORCH: ClassVar[dict[str, Any]] = _PAPER | {"eps": 1e-8, "eps_placement": "norm"}
    CONVENTIONS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": _PAPER,
        "torch": _TORCH,
        "optax": _TORCH | {"decay": "none"},
        "keras": _PAPER | {"lr": 1e-3, "eps": 1e-7, "decay": "decoupled"},
    }
