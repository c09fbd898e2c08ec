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
    """Move against the gradient, element by element, with weight decay and under a named convention.

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

    GUARDS: ClassVar[tuple[str, ...]] = ("eps", "eps_inside")

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
        """Return the rule for ``path``: without weight decay where the mask leaves it out, slots kept."""
        if self.mask is None or is_zero(self.weight_decay) or matches(self.mask, path):
            return self
        return dataclasses.replace(self, weight_decay=0.0)

    def weights(self, *betas: str) -> tuple[Slot, ...]:
        """Return a slot for the sum of the weights in the average of each of ``betas`` that is scheduled.

        With a constant β the weights of all gradients in an average add up to 1 - β^t; with a scheduled one,
        to 1 - Πβ_i. The ``"torch"`` convention has no such slot and keeps 1 - β^t.

        Parameters
        ----------
        *betas
            Names of fields that hold the β of an average.

        Returns
        -------
        tuple of Slot
            Scalar slots that start at 0, ``"<beta>_weight"``.
        """
        return tuple(Slot(f"{beta}_weight", 0.0, "scalar") for beta in betas if self._weighs(beta))

    def _weighs(self, beta: str) -> bool:
        return self.convention != "torch" and isinstance(getattr(self, beta), Schedule)

    def correction(self, xp: Any, beta: str, t: Any, h: Any) -> tuple[Any, dict[str, Any]]:
        """Return what an average is divided by to correct its bias, and the slot that holds it.

        1 - β^t without a slot; 1 - Πβ_i with one.

        Parameters
        ----------
        xp
            Operations on the step's scalars.
        beta
            The name of the field.
        t
            The step, from 1.
        h
            The hyperparameters and scalar slots at this step.

        Returns
        -------
        tuple
            The divisor, and ``{slot: next value}``, empty without one.
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
        """Return the coefficients of step ``t``, without those of weight decay.

        Parameters
        ----------
        xp
            Operations on the step's scalars: ``polyopt.core.scalars``, or the framework's where the step is
            traced.
        t
            The step, from 1.
        h
            The hyperparameters and scalar slots at this step.

        Returns
        -------
        dict
            A number for each coefficient, and the next value of each scalar slot.
        """

    @abstractmethod
    def direction(self, xp: Any, g: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
        """Return ``(update to add, next slots)`` of one leaf, without weight decay.

        Parameters
        ----------
        xp
            Elementwise operations on arrays.
        g
            The gradient; with ``"l2"`` decay, λp is in it.
        slots
            The slots by name, each of the leaf's shape.
        c
            The coefficients as attributes.

        Returns
        -------
        tuple
            The update to add, of the leaf's shape, and ``{slot: next value}``.
        """

    def coefficients(self, xp: Any, t: Any, h: Any) -> dict[str, Any]:
        """Add what weight decay needs to ``scalars``: λ, or ``decay``, the share of a parameter that goes."""
        values = self.scalars(xp, t, h)
        if is_zero(self.weight_decay):
            return values
        if self.decay == "l2":
            return values | {"weight_decay": h.weight_decay}
        return values | {"decay": h.weight_decay if self.decay == "independent" else h.lr * h.weight_decay}

    def leaf(self, xp: Any, g: Array, p: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
        """Return ``direction`` with weight decay put in, before it or after it."""
        decays = not is_zero(self.weight_decay)
        if decays and self.decay == "l2":
            g = g + c.weight_decay * p
        update, new = self.direction(xp, g, slots, c)
        if decays and self.decay != "l2":
            update = update - c.decay * p
        return update, new


def is_zero(x: Any) -> bool:
    """Return True if ``x`` is the number 0, known without looking into an array or a schedule.

    >>> is_zero(0.0), is_zero(0.1)
    (True, False)
    """
    return isinstance(x, int | float) and x == 0


def quotient(xp: Any, n: Array, d: Array, *eps: Any) -> Array:
    """Return ``n / d``, and 0 where ``d`` is 0: a zero gradient moves nothing.

    One of ``eps`` that is a number above 0 keeps ``d`` from that; a schedule or an array may come to 0.
    """
    if any(isinstance(x, int | float) and x > 0 for x in eps):
        return n / d
    return xp.where(xp.equal(d, 0.0), 0.0, n / d)


def root(xp: Any, x: Array, eps: Any, eps_inside: Any = 0.0, *, c: Any) -> Array:
    """Return ``√(x + c.eps_inside) + c.eps``, without adding a hyperparameter that is the number 0."""
    d = xp.sqrt(x if is_zero(eps_inside) else x + c.eps_inside)
    return d if is_zero(eps) else d + c.eps
