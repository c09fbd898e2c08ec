"""AdaGrad."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar

from polyopt.core.errors import InputError
from polyopt.core.ops import Array
from polyopt.core.rule import Slot, Slots, hyper, static
from polyopt.optim.base import Descent, is_zero, quotient, root


@dataclass(frozen=True)
class AdaGrad(Descent):
    """AdaGrad (Duchi, Hazan & Singer, 2011, Figure 1, diagonal).

    ``s += g²``, ``p -= lr_t·g/(√s + ε)``, with ``lr_t = lr/(1 + (t-1)·lr_decay)``.

    Parameters
    ----------
    lr
        η, in [0, inf). 1e-2 (paper, torch), 1e-3 (keras, optax); optax and the paper have no default.
    lr_decay
        In [0, inf); torch's alone, 0 by default.
    eps
        δ of the paper, in [0, inf). 1e-10 (paper, torch) or 1e-7 (optax, keras).
    eps_placement
        ``"outside"``: √s + ε (paper, torch); ``"inside"``: √(s + ε) (optax, keras).
    initial_accumulator
        s before the first step, in [0, inf): 0 (paper, torch) or 0.1 (optax, keras).
    convention, weight_decay, decay, mask
        See ``Descent``. λ is 0; ``"l2"`` (paper, torch), ``"decoupled"`` (keras),
        ``"none"`` (optax).

    Notes
    -----
    Slots: ``sum``. With ε = 0, 0/0 counts as 0.

    Examples
    --------
    >>> from polyopt import AdaGrad
    >>> AdaGrad(convention="keras").initial_accumulator
    0.1
    """

    lr: Any = hyper(None, low=0.0)
    lr_decay: Any = hyper(0.0, low=0.0)
    eps: Any = hyper(None, low=0.0)
    eps_placement: str = static(None, "outside", "inside")
    initial_accumulator: float = static(None)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_accumulator("AdaGrad", self.initial_accumulator)

    def slots(self) -> tuple[Slot, ...]:
        """Keep s, the sum of squared gradients, from ``initial_accumulator`` on."""
        return (Slot("sum", init=float(self.initial_accumulator)),)

    def scalars(self, xp: Any, t: Any, h: Any) -> dict[str, Any]:
        """Name the formula's numbers: ``scale`` is -lr_t, ``eps`` or ``eps_inside`` δ, by where it stands."""
        lr = h.lr if is_zero(self.lr_decay) else h.lr / (1 + (t - 1) * h.lr_decay)
        return {"scale": -lr} | {"eps_inside" if self.eps_placement == "inside" else "eps": h.eps}

    def direction(self, xp: Any, g: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
        """Return ``-lr_t·g/(√s + δ)`` and s after it."""
        s = slots["sum"] + g * g
        inside = self.eps_placement == "inside"
        d = root(xp, s, 0.0 if inside else self.eps, self.eps if inside else 0.0, c=c)
        return c.scale * quotient(xp, g, d, self.eps), {"sum": s}

    _TORCH: ClassVar[dict[str, Any]] = {
        "lr": 1e-2,
        "eps": 1e-10,
        "eps_placement": "outside",
        "initial_accumulator": 0.0,
        "weight_decay": 0.0,
        "decay": "l2",
    }
    _OPTAX: ClassVar[dict[str, Any]] = _TORCH | {
        "lr": 1e-3,
        "eps": 1e-7,
        "eps_placement": "inside",
        "initial_accumulator": 0.1,
        "decay": "none",
    }
    CONVENTIONS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": _TORCH,
        "torch": _TORCH,
        "optax": _OPTAX,
        "keras": _OPTAX | {"decay": "decoupled"},
    }


def check_accumulator(owner: str, value: Any) -> None:
    """Refuse an initial accumulator that is not a finite number >= 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not (value >= 0 and isfinite(value)):
        raise InputError(f"{owner}: initial_accumulator = {value!r}; expected a finite number in [0.0, inf)")
