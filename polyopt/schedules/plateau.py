"""The schedule that a metric drives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polyopt.core.scalars as host
from polyopt.core.schedule import Measured, choice, level, number


@dataclass(frozen=True)
class Plateau(Measured):
    """Multiply the value by ``factor`` when a metric has stopped improving: torch's ``ReduceLROnPlateau``.

    Report the metric with ``state = optimizer.observe(state, metric)``, once an epoch, say.

    Parameters
    ----------
    initial
        The value before the first reduction.
    mode
        Whether the metric gets better by falling (``"min"``) or by rising (``"max"``).
    factor
        What the value is multiplied by, in [0, 1).
    patience
        Number of reports without improvement that are let pass; the next one reduces.
    threshold, threshold_mode
        An improvement is one by the fraction ``threshold`` of the best (``"rel"``), or by as much
        (``"abs"``).
    cooldown
        Number of reports after a reduction that are not counted as bad.
    minimum
        The value goes no lower (torch's ``min_lr``).
    eps
        A reduction by no more than this is not made.

    Examples
    --------
    >>> s = Plateau(1.0, factor=0.5, patience=1)
    >>> state = s.initial_state()
    >>> for metric in (3.0, 3.0, 3.0):
    ...     state = s.observe(state, metric)
    >>> s.current(state)
    0.5
    """

    initial: float = level()
    mode: str = choice("min", "min", "max")
    factor: float = number(0.1, low=0.0, high=1.0)
    patience: int = number(10, low=0, whole=True)
    threshold: float = number(1e-4, low=0.0)
    threshold_mode: str = choice("rel", "rel", "abs")
    cooldown: int = number(0, low=0, whole=True)
    minimum: float = level(0.0)
    eps: float = number(1e-8, low=0.0)

    def initial_state(self) -> dict[str, float]:
        """Return the value at first, with nothing seen."""
        # A flag instead of an infinite best: infinities are not JSON.
        return {"value": float(self.initial), "best": 0.0, "seen": 0.0, "bad": 0.0, "cooldown": 0.0}

    def observe(self, state: dict[str, float], metric: float) -> dict[str, float]:
        """Count a metric: as the best one, or as a bad one, of which ``patience`` are forgiven."""
        best, seen, bad = state["best"], state["seen"], state["bad"] + 1.0
        if self._better(metric, best, seen):
            best, seen, bad = metric, 1.0, 0.0
        cooldown, value = state["cooldown"], state["value"]
        if cooldown > 0:
            cooldown, bad = cooldown - 1.0, 0.0
        if bad > self.patience:
            lower = max(value * self.factor, self.minimum)
            value = lower if value - lower > self.eps else value
            cooldown, bad = float(self.cooldown), 0.0
        return {"value": value, "best": best, "seen": seen, "bad": bad, "cooldown": cooldown}

    def current(self, state: dict[str, float], xp: Any = host, t: Any = 0) -> Any:
        """Return the value after the metrics observed so far."""
        return state["value"]

    def _better(self, metric: float, best: float, seen: float) -> bool:
        sign = 1.0 if self.mode == "min" else -1.0
        if not seen:
            return sign * metric < float("inf")
        if self.threshold_mode == "rel":
            # Of its size: of a negative best, a fraction of itself would be worse.
            goal = best - sign * self.threshold * abs(best)
        else:
            goal = best - sign * self.threshold
        return sign * metric < sign * goal
