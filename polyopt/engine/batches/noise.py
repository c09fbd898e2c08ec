"""The gradient noise scale, and a batch size that follows it.

McCandlish, Kaplan, Amodei et al., "An empirical model of large-batch training", 2018. The simple noise scale
B = tr(Σ)/‖G‖², with G the true gradient and Σ the covariance over samples (eq. 2.9), is about the size above
which larger batches save few updates. It is estimated from the norms of gradients over few and over
many samples (appendix A.1), which accumulation gives for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polyopt.core.scalars as host
from polyopt.core.errors import InputError
from polyopt.engine.batches.sizes import _check_size, rounded

State = dict[str, float]
"""``{"noise": , "signal": , "weight": }``: plain finite numbers, to be saved as they are."""


@dataclass(frozen=True)
class Norms:
    """Hold the norms of gradients over few and over many samples, which tell of the noise.

    Parameters
    ----------
    small, large
        Squared norms: the mean of those of gradients over ``few`` samples, and that over ``many``.
    few, many
        Numbers of samples.
    """

    small: float
    large: float
    few: int
    many: int

    def estimates(self) -> tuple[float, float]:
        """Estimate ``(tr Σ, ‖G‖²)`` without bias (appendix A.1); the second may be negative.

        Returns
        -------
        tuple of float
            The variance of one sample's gradient, and the squared norm of the mean.

        Examples
        --------
        >>> Norms(small=3.0, large=2.0, few=10, many=20).estimates()
        (20.0, 1.0)
        """
        signal = (self.many * self.large - self.few * self.small) / (self.many - self.few)
        noise = (self.small - self.large) / (1.0 / self.few - 1.0 / self.many)
        return noise, signal


@dataclass(frozen=True)
class NoiseScale:
    """Keep exponential averages of the two estimates, whose ratio is the noise scale.

    They are averaged one by one, because a ratio of noisy numbers is biased (appendix A.1), and debiased as
    Adam's are.

    Parameters
    ----------
    decay
        Of the averages, in [0, 1).

    Examples
    --------
    >>> scale = NoiseScale(decay=0.9)
    >>> state = scale.observe(scale.init(), Norms(small=3.0, large=2.0, few=10, many=20))
    >>> round(scale.value(state), 9)
    20.0
    """

    decay: float = 0.99

    def __post_init__(self) -> None:
        if not isinstance(self.decay, int | float) or not 0 <= self.decay < 1:
            raise InputError(f"NoiseScale: decay = {self.decay!r}; expected a number in [0, 1)")

    def init(self) -> State:
        """Return the state before anything was observed.

        Returns
        -------
        dict
            Plain numbers.
        """
        return {"noise": 0.0, "signal": 0.0, "weight": 0.0}

    def observe(self, state: Mapping[str, float], norms: Norms | None) -> State:
        """Return the state after an update; ``None``, or norms that tell nothing, change nothing.

        Parameters
        ----------
        state
            The state before it.
        norms
            Of the update's gradients.

        Returns
        -------
        dict
            Plain numbers.
        """
        if norms is None or not 0 < norms.few < norms.many:
            return dict(state)
        noise, signal = norms.estimates()
        if not (math.isfinite(noise) and math.isfinite(signal)):
            return dict(state)
        new = {"noise": noise, "signal": signal, "weight": 1.0}
        return {k: self.decay * state[k] + (1.0 - self.decay) * x for k, x in new.items()}

    def value(self, state: Mapping[str, float]) -> float | None:
        """Return B: ``None`` before the first observation, infinite where no signal shows above the noise.

        Parameters
        ----------
        state
            What was observed.

        Returns
        -------
        float or None
            Number of samples.
        """
        if not state["weight"]:
            return None
        if state["signal"] <= 0:
            return math.inf
        return max(state["noise"], 0.0) / state["signal"]


@dataclass(frozen=True)
class DynamicSize:
    """Let a batch size follow the noise scale.

    Parameters
    ----------
    initial
        Before anything is known.
    micro
        Sizes are multiples of it. At least two micro-batches are taken, or there would be nothing to compare.
    maximum
        The largest size.
    factor
        The size is ``factor`` times the noise scale: 1 costs twice the samples and twice the updates of the
        least (eq. 2.11).
    change
        By what factor the size may change from one update to the next.
    decay
        Of the averages: see ``NoiseScale``.

    Examples
    --------
    >>> size = DynamicSize(64, micro=16, maximum=1024, decay=0.0)
    >>> state = size.init()
    >>> size.value(state)
    64
    >>> for _ in range(3):
    ...     state = size.observe(state, Norms(small=21.0, large=6.0, few=16, many=64))
    >>> size.value(state)
    320
    """

    initial: int
    micro: int
    maximum: int
    factor: float = 1.0
    change: float = 2.0
    decay: float = 0.99

    def __post_init__(self) -> None:
        for name in ("micro", "initial", "maximum"):
            _check_size("DynamicSize", name, getattr(self, name), self.micro)
        if not 2 * self.micro <= self.initial <= self.maximum:
            raise InputError(
                f"DynamicSize: initial = {self.initial}; expected from {2 * self.micro}, two micro-batches, "
                f"to maximum = {self.maximum}"
            )
        for name, low in (("factor", 0.0), ("change", 1.0)):
            value: Any = getattr(self, name)
            if not isinstance(value, int | float) or not low < value < math.inf:
                raise InputError(f"DynamicSize: {name} = {value!r}; expected a finite number above {low:g}")
        NoiseScale(self.decay)

    def init(self) -> State:
        """Return the state at first: plain numbers, to be saved as they are.

        Returns
        -------
        dict
            Plain numbers.
        """
        return NoiseScale(self.decay).init() | {"size": float(self.initial)}

    def observe(self, state: Mapping[str, float], norms: Norms | None) -> State:
        """Return the state after an update that gave ``norms``; ``None`` changes nothing.

        Parameters
        ----------
        state
            The state before it.
        norms
            Of the update's gradients.

        Returns
        -------
        dict
            Plain numbers.
        """
        scale = NoiseScale(self.decay)
        averages = scale.observe({k: state[k] for k in scale.init()}, norms)
        size, noise = state["size"], scale.value(averages)
        if norms is not None and noise is not None:
            # The wish itself is kept, unrounded: by steps of less than a micro-batch it would never move.
            size = min(max(self.factor * noise, size / self.change), size * self.change)
            size = min(max(size, 2.0 * self.micro), float(self.maximum))
        return averages | {"size": size}

    def value(self, state: Mapping[str, float]) -> int:
        """Return how many samples the coming update takes.

        Parameters
        ----------
        state
            What was observed.

        Returns
        -------
        int
            A multiple of ``micro``.
        """
        return int(rounded(host, state["size"], self.micro, 2 * self.micro, self.maximum))

    def noise_scale(self, state: Mapping[str, float]) -> float | None:
        """Return B as ``NoiseScale.value`` has it.

        Parameters
        ----------
        state
            What was observed.

        Returns
        -------
        float or None
            Number of samples.
        """
        return NoiseScale(self.decay).value(state)
