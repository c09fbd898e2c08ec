"""Adadelta."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from polyopt.core.ops import Array
from polyopt.core.rule import Slot, Slots, hyper
from polyopt.optim.base import Descent, quotient


@dataclass(frozen=True)
class Adadelta(Descent):
    """Adadelta (Zeiler, 2012, Algorithm 1).

    ``v = ρv + (1-ρ)g²``, ``d = √(u + ε)/√(v + ε)·g``, ``u = ρu + (1-ρ)d²``, ``p -= lr·d``.

    Parameters
    ----------
    lr
        In [0, inf): 1 (paper, which has no lr; torch; optax, where it must be given) or 1e-3 (keras).
    rho
        ρ, in [0, 1): 0.95 (paper, keras) or 0.9 (torch, optax).
    eps
        ε, in [0, inf): 1e-7 (keras), else 1e-6. With 0 nothing ever moves.
    convention, weight_decay, decay, mask
        See ``Descent``. λ is 0; ``"l2"`` (paper, torch, optax) or ``"decoupled"``
        (keras).

    Notes
    -----
    Slots: ``square_avg``, ``acc_delta``.

    Examples
    --------
    >>> from polyopt import Adadelta
    >>> Adadelta(convention="torch").rho
    0.9
    """

    lr: Any = hyper(None, low=0.0)
    rho: Any = hyper(None, low=0.0, high=1.0, open_high=True)
    eps: Any = hyper(None, low=0.0)

    def slots(self) -> tuple[Slot, ...]:
        """Keep both running means: v, of squared gradients, and u, of squared steps."""
        return (Slot("square_avg"), Slot("acc_delta"))

    def scalars(self, xp: Any, t: Any, h: Any) -> dict[str, Any]:
        """Name the formula's numbers: ``rho`` is ρ, ``one_minus_rho`` 1-ρ, ``eps`` ε and ``scale`` -lr."""
        return {"scale": -h.lr, "rho": h.rho, "one_minus_rho": 1 - h.rho, "eps": h.eps}

    def direction(self, xp: Any, g: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
        """Return ``-lr·d`` and the two means after it."""
        v = c.rho * slots["square_avg"] + c.one_minus_rho * (g * g)
        u = slots["acc_delta"]
        d = quotient(xp, xp.sqrt(u + c.eps), xp.sqrt(v + c.eps), self.eps) * g
        return c.scale * d, {"square_avg": v, "acc_delta": c.rho * u + c.one_minus_rho * (d * d)}

    _PAPER: ClassVar[dict[str, Any]] = {
        "lr": 1.0,
        "rho": 0.95,
        "eps": 1e-6,
        "weight_decay": 0.0,
        "decay": "l2",
    }
    CONVENTIONS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": _PAPER,
        "torch": _PAPER | {"rho": 0.9},
        "optax": _PAPER | {"rho": 0.9},
        "keras": _PAPER | {"lr": 1e-3, "eps": 1e-7, "decay": "decoupled"},
    }
