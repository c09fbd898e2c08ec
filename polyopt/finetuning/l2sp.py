"""L2-SP: weights are drawn towards where they started from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from polyopt.core.ops import Array
from polyopt.core.rule import Elementwise, Pattern, Rule, Slot, Slots, hyper, matches, pattern


@dataclass(frozen=True)
class L2SP(Elementwise):
    """Pull each parameter to its pre-trained value: ``g + α·(p - p0)``.

    Li, Grandvalet & Davoine, "Explicit inductive bias for transfer learning", 2018, eq. 4 and 5. The layers
    that are ``new`` have no start to be drawn to: there it is the usual ``g + β·p``. A stage before an
    optimizer: ``chain(L2SP(0.01, 0.01, new="^head"), SGD(lr=0.1))``.

    The gradient of the loss + α/2·‖p - p0‖².

    Parameters
    ----------
    alpha
        α, in [0, inf).
    beta
        β, in [0, inf).
    new
        Which layers are new: a regular expression searched for in the parameter's path, or a predicate on
        it. ``None``: none. ``Optimizer.init`` refuses a pattern that matches nothing.

    Notes
    -----
    Slots: ``anchor``, a copy of the parameter when the state is made, for what is not new.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt import SGD, Optimizer, chain
    >>> opt = Optimizer(chain(L2SP(alpha=0.5, beta=0.25, new="head"), SGD(lr=1.0)))
    >>> start, zero = ({"body": np.array([x]), "head": np.array([x])} for x in (4.0, 0.0))
    >>> moved = {"body": np.array([6.0]), "head": np.array([4.0])}
    >>> {k: x.tolist() for k, x in opt.step(moved, zero, opt.init(start))[0].items()}
    {'body': [5.0], 'head': [3.0]}
    """

    alpha: Any = hyper(low=0.0)
    beta: Any = hyper(0.0, low=0.0)
    new: Pattern | None = pattern()

    def at(self, path: str) -> Rule:
        """Plain L2 for a layer that is new."""
        return self if self.new is None or not matches(self.new, path) else _NewLayer(self.beta)

    def slots(self) -> tuple[Slot, ...]:
        """Keep p0, the parameter when the state is made."""
        return (Slot("anchor", init="param", constant=True),)

    def leaf(self, xp: Any, g: Array, p: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
        """Return ``g + α·(p - p0)``."""
        return g + c.alpha * (p - slots["anchor"]), {}


@dataclass(frozen=True)
class _NewLayer(Elementwise):
    """``g + β·p``; β has the name that L2-SP's own has, by which schedules find their state."""

    beta: Any = hyper(low=0.0)

    def leaf(self, xp: Any, g: Array, p: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
        return g + c.beta * p, {}
