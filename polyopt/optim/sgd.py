"""Stochastic gradient descent, with momentum in its forms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from polyopt.ops import Array
from polyopt.rule import Elementwise, Slots, hyper


@dataclass(frozen=True)
class SGD(Elementwise):
    """Gradient descent: ``p -= lr * g`` (Robbins & Monro, 1951)."""

    lr: Any = hyper(low=0.0)

    def leaf(self, xp: Any, g: Array, p: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
        return -(c.lr * g), {}
