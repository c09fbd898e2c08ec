"""Clipping of gradients: by value, by norm, by global norm, adaptively."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from polyopt.ops import Array
from polyopt.reductions import ordered_sum
from polyopt.rule import Global, Slots, hyper


@dataclass(frozen=True)
class ClipByGlobalNorm(Global):
    """Scale all gradients together so that their joint norm is at most ``max_norm``."""

    max_norm: Any = hyper(low=0.0, open_low=True)

    def measure(self, xp: Any, leaves: Sequence[Array]) -> dict[str, Array]:
        peaks = [xp.max(xp.abs(x)) for x in leaves if 0 not in x.shape]
        peak = xp.max(xp.stack(peaks))
        one = xp.ones_like(peak)
        peak = xp.where(xp.greater(peak, xp.zeros_like(peak)), peak, one)
        total = xp.zeros_like(peak)
        for x in leaves:
            y = xp.divide(x, peak)
            total = xp.add(total, ordered_sum(xp, xp.multiply(y, y)))
        return {"peak": peak, "root": xp.sqrt(total)}

    def leaf(self, xp: Any, g: Array, p: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
        inside = c.peak * c.root < c.max_norm
        return xp.where(inside, g, (g / c.peak) * (c.max_norm / c.root)), {}
