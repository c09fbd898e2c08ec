"""Adam (Kingma & Ba, 2015, Algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from polyopt.ops import Array
from polyopt.rule import Elementwise, Slot, Slots, hyper
from polyopt.scalar import one_minus_power


@dataclass(frozen=True)
class Adam(Elementwise):
    lr: Any = hyper(1e-3, low=0.0)
    b1: Any = hyper(0.9, low=0.0, high=1.0, open_high=True)
    b2: Any = hyper(0.999, low=0.0, high=1.0, open_high=True)
    eps: Any = hyper(1e-8, low=0.0)

    def slots(self) -> tuple[Slot, ...]:
        return (Slot("exp_avg"), Slot("exp_avg_sq"))

    def coefficients(self, xp: Any, t: Any, h: Any) -> dict[str, Any]:
        return {
            "lr": h.lr,
            "b1": h.b1,
            "b2": h.b2,
            "a1": 1 - h.b1,
            "a2": 1 - h.b2,
            "eps": h.eps,
            "bc1": one_minus_power(xp, h.b1, t),
            "bc2": one_minus_power(xp, h.b2, t),
        }

    def leaf(self, xp: Any, g: Array, p: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
        m = c.b1 * slots["exp_avg"] + c.a1 * g
        v = c.b2 * slots["exp_avg_sq"] + c.a2 * (g * g)
        update = -(c.lr * ((m / c.bc1) / (xp.sqrt(v / c.bc2) + c.eps)))
        return update, {"exp_avg": m, "exp_avg_sq": v}
