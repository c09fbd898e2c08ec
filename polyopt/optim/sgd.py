"""Gradient descent and SGD, with momentum in its forms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from polyopt.core.errors import InputError
from polyopt.core.ops import Array
from polyopt.core.rule import Slot, Slots, hyper, static
from polyopt.optim.base import Descent, is_zero


@dataclass(frozen=True)
class SGD(Descent):
    """Gradient descent with momentum (Robbins & Monro, 1951; Polyak, 1964; Sutskever et al., 2013).

    Without momentum ``p -= lr·g``. Whether that is gradient descent, mini-batch or stochastic gradient
    descent is a matter of how many samples ``g`` is the gradient of. With momentum μ and dampening
    τ, by ``form``:

    - ``"heavy_ball"``: ``b = μb + (1-τ)g``, ``p -= lr·b``; Nesterov: ``p -= lr·(g + μb)``.
    - ``"averaged"``: ``b = μb + (1-μ)g``, ``p -= lr·b``; Nesterov: ``p -= lr·(μb + (1-μ)g)``.
    - ``"lr_in_buffer"``: ``b = μb - lr·g``, ``p += b``; Nesterov: ``p += μb - lr·g``. This is Polyak's
      and Sutskever's own recurrence; it equals the heavy ball for as long as lr is constant.

    Parameters
    ----------
    lr
        In [0, inf). 1e-3 (torch), else 1e-2; optax and the papers have no default.
    momentum
        μ, in [0, 1].
    dampening
        τ, in [0, 1], of the heavy ball without Nesterov alone.
    nesterov
        Look ahead by one step of momentum.
    form
        As above: ``"heavy_ball"`` (paper, torch, optax) or ``"lr_in_buffer"`` (keras); ``"averaged"`` is
        never a default.
    first
        ``"undamped"`` (torch): the first step sets b = g, whatever τ is. ``"damped"``: b = (1-τ)g.
    convention, weight_decay, decay, mask
        See ``Descent``. λ is 0; ``"l2"`` (paper, torch), ``"decoupled"`` (keras),
        ``"none"`` (optax).

    Notes
    -----
    Slots: ``momentum_buffer`` where there is momentum.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt import SGD, Optimizer
    >>> opt = Optimizer(SGD(lr=0.5, momentum=0.5))
    >>> p, state = np.array([1.0]), opt.init(np.array([1.0]))
    >>> for _ in range(2):
    ...     p, state = opt.step(p, np.array([1.0]), state)
    >>> p.tolist(), state["slots"]["momentum_buffer"]["param"].tolist()
    ([-0.25], [1.5])
    """

    lr: Any = hyper(None, low=0.0)
    momentum: Any = hyper(0.0, low=0.0, high=1.0)
    dampening: Any = hyper(0.0, low=0.0, high=1.0)
    nesterov: bool = static(False, False, True)
    form: str = static(None, "heavy_ball", "averaged", "lr_in_buffer")
    first: str = static(None, "damped", "undamped")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and is_zero(self.momentum):
            raise InputError("SGD: nesterov = True with momentum = 0; expected a momentum above 0")
        if not is_zero(self.dampening) and (self.nesterov or self.form != "heavy_ball"):
            raise InputError(
                f"SGD: dampening = {self.dampening!r} with nesterov = {self.nesterov} and "
                f"form = {self.form!r}; only the heavy ball without Nesterov is damped"
            )

    def slots(self) -> tuple[Slot, ...]:
        """Keep the momentum buffer, where there is momentum."""
        return () if is_zero(self.momentum) else (Slot("momentum_buffer"),)

    def scalars(self, xp: Any, t: Any, h: Any) -> dict[str, Any]:
        """Name the formula's numbers.

        ``scale`` is -lr, ``momentum`` μ and ``gradient_weight`` what g weighs in the buffer: 1-τ of the heavy
        ball (1 at the first step if ``"undamped"``), 1-μ of ``"averaged"``.
        """
        values = {"scale": -h.lr, "momentum": h.momentum}
        if self.form == "averaged":
            return values | {"gradient_weight": 1 - h.momentum}
        weight = 1 - h.dampening
        if self.first == "undamped":
            weight = xp.where(t > 1, weight, 1.0)
        return values | {"gradient_weight": weight}

    def direction(self, xp: Any, g: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
        """Return ``-lr·g``, or the buffer's step where there is momentum."""
        if is_zero(self.momentum):
            return c.scale * g, {}
        if self.form == "lr_in_buffer":
            fresh = c.scale * g
        elif self.form == "heavy_ball" and is_zero(self.dampening):
            fresh = g
        else:
            fresh = c.gradient_weight * g
        b = c.momentum * slots["momentum_buffer"] + fresh
        d = c.momentum * b + fresh if self.nesterov else b
        return d if self.form == "lr_in_buffer" else c.scale * d, {"momentum_buffer": b}

    _PAPER: ClassVar[dict[str, Any]] = {
        "lr": 1e-2,
        "weight_decay": 0.0,
        "decay": "l2",
        "form": "heavy_ball",
        "first": "damped",
    }
    CONVENTIONS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": _PAPER,
        "torch": _PAPER | {"lr": 1e-3, "first": "undamped"},
        "optax": _PAPER | {"decay": "none"},
        "keras": _PAPER | {"decay": "decoupled", "form": "lr_in_buffer"},
    }
