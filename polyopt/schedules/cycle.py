"""Schedules made of cosines and cycles."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from polyopt.core.errors import InputError
from polyopt.core.schedule import Schedule, blend, choice, falling, level, number, unit


@dataclass(frozen=True)
class Cosine(Schedule):
    """Go from ``initial`` to ``end`` along half a cosine (Loshchilov & Hutter, "SGDR", 2017, eq. 5).

    Parameters
    ----------
    initial, steps
        Where it starts and how many updates it takes.
    end
        Where it ends, absolutely: torch's ``eta_min``.
    alpha
        Where it ends, as a fraction of ``initial``: optax' and Keras' ``alpha``. One of the two at most.
    exponent
        The cosine's weight is raised to it (optax).
    after
        ``"hold"`` keeps the end value (optax, Keras); ``"cycle"`` rises again, back to ``initial`` at
        ``2 · steps``, as torch's ``CosineAnnealingLR`` does.

    Examples
    --------
    >>> Cosine(1.0, steps=10)(5), Cosine(1.0, 10)(20), Cosine(1.0, 10, after="cycle")(20)
    (0.5, 0.0, 1.0)
    """

    initial: float = level()
    steps: float = number(low=0.0, open_low=True)
    end: float | None = level(None, optional=True)
    alpha: float | None = number(None, optional=True)
    exponent: float = number(1.0, low=0.0, open_low=True)
    after: str = choice("hold", "hold", "cycle")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.end is not None and self.alpha is not None:
            raise InputError(
                f"Cosine: end = {self.end!r} and alpha = {self.alpha!r}; expected one of them: "
                "alpha is end as a fraction of initial"
            )

    def extremes(self) -> Iterator[tuple[str, float, bool]]:
        """Yield the extremes of the fields and, where ``alpha`` is given, the end that it names."""
        yield from super().extremes()
        if self.end is None:
            yield "alpha", self.initial * (self.alpha or 0.0), True

    def value(self, xp: Any, t: Any) -> Any:
        """Return the value of the cosine at ``t``."""
        end = self.initial * self.alpha if self.alpha is not None else self.end or 0.0
        if self.after == "hold":
            fraction = unit(xp, t / self.steps)
        else:
            # Reduced first: the cosine of a large multiple of pi has lost its digits.
            period = 2.0 * self.steps
            phase = (t - period * xp.floor(t / period)) / self.steps
            fraction = xp.minimum(phase, 2.0 - phase)
        weight = falling(xp, fraction, "cosine")
        if self.exponent != 1:
            weight = xp.pow(weight, self.exponent)
        return blend(xp, self.initial, end, weight)


@dataclass(frozen=True)
class WarmRestarts(Schedule):
    """Follow cosines that start again, each ``factor`` times as long (SGDR: Loshchilov & Hutter, 2017).

    The first lasts ``steps`` updates (torch's ``T_0``; ``factor`` is its ``T_mult``, Keras' ``t_mul``). With
    ``peak_factor`` (Keras' ``m_mul``) each one starts that much lower over ``end`` than the one before.
    A restart happens exactly at its step, also after 2^31 of them.

    Parameters
    ----------
    initial
        Where the first cosine starts.
    steps
        Number of updates of the first cosine, above 0.
    factor
        How many times as long each cosine is as the one before, at least 1.
    end
        What each cosine falls to.
    peak_factor
        What each cosine's height over ``end`` is multiplied by, at least 0.

    Examples
    --------
    >>> s = WarmRestarts(1.0, steps=10, factor=2)
    >>> s(5), s(10), s(20), s(30)
    (0.5, 1.0, 0.5, 1.0)
    """

    initial: float = level()
    steps: float = number(low=0.0, open_low=True)
    factor: float = number(1, low=1)
    end: float = level(0.0)
    peak_factor: float = number(1.0, low=0.0)

    def extremes(self) -> Iterator[tuple[str, float, bool]]:
        """Yield the extremes of the fields, and infinity where the peaks grow without bound."""
        yield from super().extremes()
        if self.peak_factor > 1 and self.initial != self.end:
            yield "peak_factor", math.copysign(math.inf, self.initial - self.end), False

    def value(self, xp: Any, t: Any) -> Any:
        """Return the value of the cosine that ``t`` lies in."""
        cycle, fraction = self._equal(xp, t) if self.factor == 1 else self._growing(xp, t)
        weight = falling(xp, fraction, "cosine")
        if self.peak_factor != 1:
            weight = weight * xp.pow(self.peak_factor, cycle)
        return blend(xp, self.initial, self.end, weight)

    def _equal(self, xp: Any, t: Any) -> tuple[Any, Any]:
        cycle = xp.floor(t / self.steps)
        return cycle, (t - self.steps * cycle) / self.steps

    def _growing(self, xp: Any, t: Any) -> tuple[Any, Any]:
        grown = 1.0 + (self.factor - 1.0) * (t / self.steps)
        guess = xp.floor(xp.log(grown) / xp.log(self.factor))
        # The logarithms round; the start of a cycle, a sum of powers, does not: it decides.
        cycle = xp.where(self._start(xp, guess) > t, guess - 1.0, guess)
        cycle = xp.where(self._start(xp, cycle + 1.0) <= t, cycle + 1.0, cycle)
        length = self.steps * self._power(xp, cycle)
        return cycle, unit(xp, (t - self._start(xp, cycle)) / length)

    def _start(self, xp: Any, cycle: Any) -> Any:
        return self.steps * (self._power(xp, cycle) - 1.0) / (self.factor - 1.0)

    def _power(self, xp: Any, cycle: Any) -> Any:
        power = xp.pow(self.factor, cycle)
        # Whole where it is: a framework's power may be an ulp off.
        return xp.floor(power + 0.5) if self.factor == int(self.factor) else power


@dataclass(frozen=True)
class OneCycle(Schedule):
    """Go up to ``peak`` and down again (Smith & Topin, "Super-Convergence", 2018).

    Starts at ``peak / div``, reaches ``peak`` after the share ``pct_start`` of ``steps``, ends at
    ``peak / (div · final_div)`` and stays there. With ``phases=3`` it comes down to ``peak / div`` first.

    ``convention="torch"`` peaks at step ``pct_start · steps - 1`` (not rounded), is back at ``2 · pct_start ·
    steps - 2`` and ends at ``steps - 1``; ``"optax"`` peaks at ``floor(pct_start · steps)``, is back at
    ``floor(pct_final · steps)`` and ends at ``steps``.

    Parameters
    ----------
    peak
        The largest value.
    steps
        Number of updates of the whole cycle, at least 1.
    pct_start
        The share of ``steps`` in which it rises, in [0, 1].
    div
        What ``peak`` is divided by for the first value, above 0.
    final_div
        What the first value is divided by for the last one, above 0.
    shape
        Of each segment: ``"cosine"`` or ``"linear"``.
    phases
        2, or 3 to come down to ``peak / div`` before the last descent.
    pct_final
        With three phases, the share of ``steps`` after which the last descent starts (optax alone).
    convention
        ``"torch"`` or ``"optax"``, as above.

    Examples
    --------
    >>> s = OneCycle(1.0, steps=100, convention="optax")
    >>> s(0), s(30), s(100) == 1 / 25 / 1e4
    (0.04, 1.0, True)
    """

    peak: float = level()
    steps: int = number(low=1, whole=True)
    pct_start: float = number(0.3, low=0.0, high=1.0)
    div: float = number(25.0, low=0.0, open_low=True)
    final_div: float = number(1e4, low=0.0, open_low=True)
    shape: str = choice("cosine", "cosine", "linear")
    phases: int = choice(2, 2, 3)
    pct_final: float = number(0.85, low=0.0, high=1.0)
    convention: str = choice("torch", "torch", "optax")

    def __post_init__(self) -> None:
        super().__post_init__()
        knots = [step for step, _ in self._knots()]
        if self.phases == 3 and knots != sorted(knots):
            raise InputError(
                f"OneCycle: pct_start = {self.pct_start!r}: three phases can't end at steps {knots}"
            )

    def extremes(self) -> Iterator[tuple[str, float, bool]]:
        """Yield the extremes of the fields, the first value and the last one."""
        yield from super().extremes()
        yield "div", self.peak / self.div, True
        yield "final_div", self.peak / self.div / self.final_div, True

    def _knots(self) -> tuple[tuple[float, float], ...]:
        start = self.peak / self.div
        torch = self.convention == "torch"
        top = self.pct_start * self.steps - 1 if torch else int(self.pct_start * self.steps)
        last = self.steps - 1 if torch else self.steps
        knots: tuple[tuple[float, float], ...] = ((top, self.peak), (last, start / self.final_div))
        if self.phases == 2:
            return knots
        back = 2 * self.pct_start * self.steps - 2 if torch else int(self.pct_final * self.steps)
        return knots[0], (back, start), knots[1]

    def value(self, xp: Any, t: Any) -> Any:
        """Return the value of the segment that ``t`` lies in."""
        at, level = 0.0, self.peak / self.div
        value: Any = level + 0.0 * t
        for step, goal in self._knots():
            # torch's first phase can be over before the first step: its peak then lies before 0.
            fraction = unit(xp, (t - at) / (step - at)) if step > at else 1.0
            segment = blend(xp, level, goal, falling(xp, fraction, self.shape))
            value = xp.where(t >= at, segment, value)
            at, level = step, goal
        return value
