"""The server's optimizers of Reddi et al. (2021): rules over the pseudo-gradient."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar

from polyopt.core.errors import InputError
from polyopt.core.ops import Array
from polyopt.core.rule import Elementwise, Slot, Slots, hyper, static
from polyopt.core.scalars import one_minus_power

_FLOWER_SHIFT = 1
"""Flower corrects the bias of round t with the exponent t + 1."""


@dataclass(frozen=True)
class _Server(Elementwise):
    """Share the update of the three: ``m = β1·m + (1-β1)·g``, ``p -= η·m/(√v + τ)``; they differ in v.

    Here g is the pseudo-gradient, -Δ_t of the paper, so that m is the paper's with its sign turned.
    """

    CONVENTIONS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"initial": "tau"},
        "flower": {"initial": "zero"},
    }

    lr: Any = hyper(0.1, low=0.0)
    b1: Any = hyper(0.9, low=0.0, high=1.0, open_high=True)
    b2: Any = hyper(0.99, low=0.0, high=1.0, open_high=True)
    tau: float = static(1e-3)
    convention: str = static("paper")
    initial: str = static(None, "tau", "zero")

    def __post_init__(self) -> None:
        super().__post_init__()
        tau: Any = self.tau
        if isinstance(tau, bool) or not isinstance(tau, int | float) or not (isfinite(tau) and tau > 0):
            raise InputError(f"{type(self).__name__}: tau = {tau!r}; expected a finite number above 0")

    def slots(self) -> tuple[Slot, ...]:
        start = float(self.tau) ** 2 if self.initial == "tau" else 0.0
        return (Slot("exp_avg"), Slot("exp_avg_sq", init=start))

    def coefficients(self, xp: Any, t: Any, h: Any) -> dict[str, Any]:
        values = {"b1": h.b1, "one_minus_beta1": 1 - h.b1, "b2": h.b2, "one_minus_beta2": 1 - h.b2}
        return values | {"scale": -(h.lr * self.correction(xp, t, h)), "tau": float(self.tau)}

    def correction(self, xp: Any, t: Any, h: Any) -> Any:
        """Return what the rate of round ``t`` is multiplied by."""
        return 1.0

    @abstractmethod
    def second(self, xp: Any, v: Array, square: Array, c: Any) -> Array:
        """Return the next v."""

    def leaf(self, xp: Any, g: Array, p: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
        m = c.b1 * slots["exp_avg"] + c.one_minus_beta1 * g
        v = self.second(xp, slots["exp_avg_sq"], g * g, c)
        return c.scale * (m / (xp.sqrt(v) + c.tau)), {"exp_avg": m, "exp_avg_sq": v}


@dataclass(frozen=True)
class FedAdagrad(_Server):
    """FedAdagrad (Reddi et al., 2021, Algorithm 2): ``v += Δ²``.

    With ``b1=0``, as in the paper's experiments and by default, it is ``AdaGrad`` with
    ``eps=tau, initial_accumulator=tau**2``. β2 has no part in it.

    Parameters
    ----------
    lr, b1, tau, convention, initial
        As of ``FedYogi``; β1 is 0.
    b2
        Has no part in it.

    Examples
    --------
    >>> FedAdagrad(lr=0.1).slots()[1].init
    1e-06
    """

    b1: Any = hyper(0.0, low=0.0, high=1.0, open_high=True)

    def second(self, xp: Any, v: Array, square: Array, c: Any) -> Array:
        """Return ``v + Δ²``."""
        return v + square


@dataclass(frozen=True)
class FedAdam(_Server):
    """FedAdam (Reddi et al., 2021, Algorithm 2): ``v = β2·v + (1-β2)·Δ²``, without bias correction.

    Parameters
    ----------
    lr, b1, b2, tau, convention, initial
        As of ``FedYogi``. With ``"flower"`` the rate is multiplied by √(1 - β2^(t+1))/(1 - β1^(t+1)) in
        round t, too, as Flower does (Kingma & Ba have the exponent t: that is ``Adam``, which
        can be the server's rule as well).

    Examples
    --------
    >>> FedAdam(lr=0.1).slots()[1].init
    1e-06
    """

    def correction(self, xp: Any, t: Any, h: Any) -> Any:
        """Return 1, or Flower's bias correction of both moments."""
        if self.convention != "flower":
            return 1.0
        t = t + _FLOWER_SHIFT
        return xp.sqrt(one_minus_power(xp, h.b2, t)) / one_minus_power(xp, h.b1, t)

    def second(self, xp: Any, v: Array, square: Array, c: Any) -> Array:
        """Return ``β2·v + (1-β2)·Δ²``."""
        return c.b2 * v + c.one_minus_beta2 * square


@dataclass(frozen=True)
class FedYogi(_Server):
    """FedYogi (Reddi et al., 2021, Algorithm 2): ``v -= (1-β2)·Δ²·sign(v - Δ²)``.

    Yogi (Zaheer et al., 2018, Algorithm 2) on the pseudo-gradient: v comes down no faster than by (1-β2)·Δ²,
    where Adam's forgets at the rate β2. Slots: ``exp_avg`` (-m of the paper), ``exp_avg_sq`` (v).

    Parameters
    ----------
    lr
        η, in [0, inf): the server's rate, 0.1; tune it.
    b1, b2
        In [0, 1): 0.9 and 0.99, as in the paper's experiments.
    tau
        τ, above 0: how adaptive it is; 1e-3 there.
    convention
        ``"paper"`` or ``"flower"``, which fills in ``initial``.
    initial
        v before the first round: ``"tau"`` for τ² (paper), ``"zero"`` (flower).

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt import Optimizer
    >>> opt = Optimizer(FedYogi(lr=1.0, b1=0.0, b2=0.0, tau=1.0))
    >>> p = {"w": np.array([0.0])}
    >>> opt.step(p, {"w": np.array([-2.0])}, opt.init(p))[0]["w"].round(6).tolist()
    [0.618034]
    """

    def second(self, xp: Any, v: Array, square: Array, c: Any) -> Array:
        """Return ``v - (1-β2)·Δ²·sign(v - Δ²)``."""
        return v - c.one_minus_beta2 * (square * xp.sign(v - square))


SERVER_RULES: dict[str, type[Elementwise]] = {
    "fedadagrad": FedAdagrad,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
}
"""The names that recipes use."""
