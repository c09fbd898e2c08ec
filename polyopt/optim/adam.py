"""Adam, AMSGrad and AdamW."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from polyopt.core.errors import InputError
from polyopt.core.ops import Array
from polyopt.core.rule import Slot, Slots, hyper, static
from polyopt.optim.base import Descent, quotient, root


@dataclass(frozen=True)
class Moments(Descent):
    """Make the step that Adam and AdamW share; they differ in what a convention fills in.

    The corrections are folded into scalars, with one division an element:
    m/bc1/(√(v/bc2) + ε) = (√bc2/bc1)·m/(√v + ε√bc2).
    """

    lr: Any = hyper(None, low=0.0)
    b1: Any = hyper(None, low=0.0, high=1.0, open_high=True)
    b2: Any = hyper(None, low=0.0, high=1.0, open_high=True)
    eps: Any = hyper(None, low=0.0)
    eps_root: Any = hyper(0.0, low=0.0)
    amsgrad: bool = static(False, False, True)
    eps_placement: str = static(None, "outside", "hat")
    amsgrad_max: str = static(None, "raw", "corrected")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self._corrects_first and self.eps_placement == "hat":
            raise InputError(
                f'{type(self).__name__}: amsgrad_max = "corrected" with eps_placement = "hat"; expected '
                '"outside": what is corrected before the maximum needs no corrected ε'
            )

    @property
    def _corrects_first(self) -> bool:
        return self.amsgrad and self.amsgrad_max == "corrected"

    def slots(self) -> tuple[Slot, ...]:
        """Keep m and v, with AMSGrad the largest v, and the weights of scheduled betas."""
        both = (Slot("exp_avg"), Slot("exp_avg_sq"), *self.weights("b1", "b2"))
        return (*both, Slot("max_exp_avg_sq")) if self.amsgrad else both

    def scalars(self, xp: Any, t: Any, h: Any) -> dict[str, Any]:
        """Fold the two corrections and the learning rate into one factor and one ε.

        With ``bc1 = 1-β1^t`` and ``bc2 = 1-β2^t`` (the products of the betas where they are scheduled), each
        of Algorithm 1's numbers is in one coefficient:

        - ``b1``, ``one_minus_beta1``, ``b2``, ``one_minus_beta2``: β1, 1-β1, β2, 1-β2.
        - ``scale``: -lr·√bc2/bc1, so that ``scale·m/(√v + ε√bc2)`` is ``-lr·m̂/(√v̂ + ε)``; -lr/bc1 where v is
          corrected before the maximum.
        - ``eps``: ε√bc2 for ``"outside"``; ε for ``"hat"``, and where v is corrected before the maximum.
        - ``eps_inside``: ``eps_root``·bc2 and ``eps_root``, likewise.
        """
        (bc1, first), (bc2, second) = (self.correction(xp, beta, t, h) for beta in ("b1", "b2"))
        values = {
            "b1": h.b1,
            "b2": h.b2,
            "one_minus_beta1": 1 - h.b1,
            "one_minus_beta2": 1 - h.b2,
            "bc1": bc1,
            "bc2": bc2,
        }
        values |= first | second
        if self._corrects_first:
            return values | {"scale": -(h.lr / bc1), "eps": h.eps, "eps_inside": h.eps_root}
        correction = xp.sqrt(bc2)
        values |= {"scale": -(h.lr * correction / bc1), "eps": h.eps, "eps_inside": h.eps_root}
        if self.eps_placement == "outside":
            values |= {"eps": h.eps * correction, "eps_inside": h.eps_root * bc2}
        return values

    def direction(self, xp: Any, g: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
        """Return ``scale·m/(√(v + eps_inside) + eps)`` and the moments after it."""
        m = c.b1 * slots["exp_avg"] + c.one_minus_beta1 * g
        v = c.b2 * slots["exp_avg_sq"] + c.one_minus_beta2 * (g * g)
        new = {"exp_avg": m, "exp_avg_sq": v}
        if self.amsgrad:
            v = xp.maximum(slots["max_exp_avg_sq"], v / c.bc2 if self._corrects_first else v)
            new["max_exp_avg_sq"] = v
        d = root(xp, v, self.eps, self.eps_root, c=c)
        return c.scale * quotient(xp, m, d, self.eps, self.eps_root), new


_PAPER: dict[str, Any] = {
    "lr": 1e-3,
    "b1": 0.9,
    "b2": 0.999,
    "eps": 1e-8,
    "eps_placement": "outside",
    "amsgrad_max": "raw",
    "weight_decay": 0.0,
    "decay": "l2",
}
_OPTAX: dict[str, Any] = {"amsgrad_max": "corrected", "decay": "none"}
_KERAS: dict[str, Any] = {"eps": 1e-7, "eps_placement": "hat", "decay": "decoupled"}
_W: dict[str, Any] = {"weight_decay": 1e-2, "decay": "decoupled"}


@dataclass(frozen=True)
class Adam(Moments):
    """Adam (Kingma & Ba, 2015, Algorithm 1); AMSGrad (Reddi, Kale & Kumar, 2018, Algorithm 2).

    ``m = β1·m + (1-β1)g``, ``v = β2·v + (1-β2)g²``, ``p -= lr·m̂/(√v̂ + ε)``, where ``m̂ = m/(1-β1^t)`` and
    ``v̂ = v/(1-β2^t)``. AMSGrad has x = max(x, v) in the place of v. With a β that follows a schedule β^t is
    the product of all β so far (1 minus it is in the scalar slots ``b1_weight`` and ``b2_weight``), but for
    the ``"torch"`` convention, which keeps β^t.

    Parameters
    ----------
    lr
        α, in [0, inf): 1e-3; optax has no default.
    b1, b2
        β1 and β2, in [0, 1): 0.9 and 0.999.
    eps
        ε, in [0, inf): 1e-7 (keras), else 1e-8.
    eps_root
        In [0, inf): √(v̂ + eps_root); optax' alone, 0 by default.
    amsgrad
        Divide by the largest v so far. The bias corrections stay, as in every framework; Reddi et al. leave
        them out "for simplicity".
    eps_placement
        ``"outside"``: √v̂ + ε (paper, torch, optax). ``"hat"``: lr·√(1-β2^t)/(1-β1^t)·m/(√v + ε), which the
        paper gives at the end of section 2 as the cheaper order (keras).
    amsgrad_max
        ``"raw"``: x = max(x, v), corrected after (paper, torch, keras); ``"corrected"``: x = max(x, v̂)
        (optax).
    convention, weight_decay, decay, mask
        See ``Descent``. λ is 0; ``"l2"`` (paper, torch), ``"decoupled"`` (keras),
        ``"none"`` (optax).

    Notes
    -----
    Slots: ``exp_avg`` (m), ``exp_avg_sq`` (v), ``max_exp_avg_sq`` (x) with AMSGrad. With ε = 0,
    0/0 counts as 0.

    Coefficients: ``Moments.scalars`` maps each of them to the formula.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt import Adam, Optimizer
    >>> opt = Optimizer(Adam(lr=0.5, eps=0.0))
    >>> p = np.array([1.0, 1.0])
    >>> opt.step(p, np.array([3.0, 0.0]), opt.init(p))[0].round(12).tolist()
    [0.5, 1.0]
    """

    CONVENTIONS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": _PAPER,
        "torch": _PAPER,
        "optax": _PAPER | _OPTAX,
        "keras": _PAPER | _KERAS,
    }


@dataclass(frozen=True)
class AdamW(Moments):
    """AdamW, Adam with decoupled weight decay (Loshchilov & Hutter, 2019, Algorithm 2).

    ``p -= lr·m̂/(√v̂ + ε) + lr·λ·p`` with Adam's m̂ and v̂.

    Parameters
    ----------
    lr, b1, b2, eps, eps_root, amsgrad, eps_placement, amsgrad_max
        As of ``Adam``.
    convention, weight_decay, decay, mask
        See ``Descent``. λ is 1e-2 (paper, torch), 1e-4 (optax) or 4e-3 (keras);
        ``"decoupled"``.

    Notes
    -----
    Slots: as of ``Adam``.

    Deviation: in the paper λ is multiplied by the schedule's multiplier η_t but not by the base rate α. All
    three frameworks multiply it by lr = η_t·α, and so does every convention here, "paper" too;
    ``decay="independent"`` is the paper's.

    Examples
    --------
    >>> from polyopt import AdamW
    >>> AdamW(convention="keras").weight_decay, AdamW(mask=r"weight$").at("layer.bias").weight_decay
    (0.004, 0.0)
    """

    CONVENTIONS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": _PAPER | _W,
        "torch": _PAPER | _W,
        "optax": _PAPER | _OPTAX | _W | {"weight_decay": 1e-4},
        "keras": _PAPER | _KERAS | _W | {"weight_decay": 4e-3},
    }
