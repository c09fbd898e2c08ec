"""Share among optimizers: conventions, weight decay with a mask, and roots with an epsilon."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from polyopt.core.errors import InputError
from polyopt.core.ops import Array
from polyopt.core.rule import Elementwise, Pattern, Slot, Slots, hyper, matches, pattern, static
from polyopt.core.scalars import one_minus_power
from polyopt.core.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Descent(Elementwise):
    """An elementwise optimizer with weight decay, under a named convention.

    Parameters
    ----------
    convention
        ``"paper"``, ``"torch"``, ``"optax"`` or ``"keras"``, as far as the algorithm exists there. It
        fills in every hyperparameter and switch that is not given.
    weight_decay
        λ, in [0, inf).
    decay
        What λ does: ``"l2"`` adds λp to the gradient; ``"decoupled"`` takes lr·λ·p off the parameter;
        ``"independent"`` takes λ·p off it, whatever lr is (λ may be a schedule of its own); ``"none"``: the
        convention has no weight decay, and a λ above 0 is refused.
    mask
        Which parameters decay: a regular expression searched for in the parameter's path, or a
        predicate on it.
        ``None``: all. ``Optimizer.init`` refuses one that matches none.
    """

    GUARDS: ClassVar[tuple[str, ...]] = ("eps", "inside")

    convention: str = static("paper")
    weight_decay: Any = hyper(None, low=0.0)
    decay: str = static(None, "none", "l2", "decoupled", "independent")
    mask: Pattern | None = pattern()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decay == "none" and not is_zero(self.weight_decay):
            raise InputError(
                f"{type(self).__name__}: weight_decay = {self.weight_decay!r}, but {self.convention} has no "
                'weight decay here; add decay="l2" or decay="decoupled" to say which is meant'
            )

    def at(self, path: str) -> Descent:
        """Without weight decay where the mask leaves ``path`` out; the slots are the same."""
        if self.mask is None or is_zero(self.weight_decay) or matches(self.mask, path):
            return self
        return dataclasses.replace(self, weight_decay=0.0)

    def weights(self, *betas: str) -> tuple[Slot, ...]:
        """Return a slot for the sum of the weights in the average of each of ``betas`` that is scheduled.

        With a constant β the weights of all gradients in an average add up to 1 - β^t; with a scheduled one,
        to 1 - Πβ_i. The ``"torch"`` convention has no such slot and keeps 1 - β^t.
        """
        return tuple(Slot(f"{beta}_weight", 0.0, "scalar") for beta in betas if self._weighs(beta))

    def _weighs(self, beta: str) -> bool:
        return self.convention != "torch" and isinstance(getattr(self, beta), Schedule)

    def correction(self, xp: Any, beta: str, t: Any, h: Any) -> tuple[Any, dict[str, Any]]:
        """Return what an average is divided by to correct its bias, and the slot that holds it.

        1 - β^t without a slot; 1 - Πβ_i with one.
        """
        b = getattr(h, beta)
        if not self._weighs(beta):
            return one_minus_power(xp, b, t), {}
        slot = f"{beta}_weight"
        # Summed as the average itself is: 1 - Πβ_i by the product would cancel, in float32 to 5e-5 of it.
        weight = b * getattr(h, slot) + (1 - b)
        return weight, {slot: weight}

    @abstractmethod
    def scalars(self, xp: Any, t: Any, h: Any) -> dict[str, Any]:
        """The coefficients of step ``t``, without those of weight decay."""

    @abstractmethod
    def direction(self, xp: Any, g: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
        """``(update to add, next slots)`` of one leaf, without weight decay."""

    def coefficients(self, xp: Any, t: Any, h: Any) -> dict[str, Any]:
        values = self.scalars(xp, t, h)
        if is_zero(self.weight_decay):
            return values
        if self.decay == "l2":
            return values | {"weight_decay": h.weight_decay}
        return values | {"shrink": h.weight_decay if self.decay == "independent" else h.lr * h.weight_decay}

    def leaf(self, xp: Any, g: Array, p: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
        decays = not is_zero(self.weight_decay)
        if decays and self.decay == "l2":
            g = g + c.weight_decay * p
        update, new = self.direction(xp, g, slots, c)
        if decays and self.decay != "l2":
            update = update - c.shrink * p
        return update, new


def is_zero(x: Any) -> bool:
    """Return True if ``x`` is the number 0, known without looking into an array or a schedule.

    >>> is_zero(0.0), is_zero(0.1)
    (True, False)
    """
    return isinstance(x, int | float) and x == 0


def quotient(xp: Any, n: Array, d: Array, *guards: Any) -> Array:
    """Return ``n / d``, and 0 where ``d`` is 0: a zero gradient moves nothing.

    One of ``guards`` that is a number above 0 keeps ``d`` from that; a schedule or an array may come to 0.
    """
    if any(isinstance(x, int | float) and x > 0 for x in guards):
        return n / d
    return xp.where(xp.equal(d, 0.0), 0.0, n / d)


def root(xp: Any, x: Array, eps: Any, inside: Any = 0.0, *, c: Any) -> Array:
    """``√(x + c.inside) + c.eps``, without the additions of a hyperparameter that is the number 0."""
    d = xp.sqrt(x if is_zero(inside) else x + c.inside)
    return d if is_zero(eps) else d + c.eps
