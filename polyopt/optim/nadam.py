"""NAdam."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from polyopt.core.ops import Array
from polyopt.core.rule import Slot, Slots, hyper, static
from polyopt.core.scalars import one_minus_power
from polyopt.optim.base import Descent, quotient, root


@dataclass(frozen=True)
class NAdam(Descent):
    """NAdam, Adam with Nesterov's momentum (Dozat, 2016, Algorithm 2).

    ``m = μ_t·m + (1-μ_t)g``, ``v = β2·v + (1-β2)g²``, ``p -= lr·m̂/(√v̂ + ε)`` with
    ``m̂ = μ_{t+1}·m/(1-μ_1⋯μ_{t+1}) + (1-μ_t)·g/(1-μ_1⋯μ_t)``, ``μ_t = β1·(1 - 0.96^(t·ψ)/2)`` and
    ``v̂ = β2·v/(1-β2^t)``.

    Parameters
    ----------
    lr
        α, in [0, inf): 2e-3 (paper, torch), 1e-3 (keras, optax); optax has no default.
    b1, b2
        β1 (paper: μ), in [0, 1): 0.99 (paper), else 0.9. β2 (paper: ν), in (0, 1): 0.999.
    eps
        ε, in [0, inf): 1e-7 (keras), else 1e-8.
    eps_root
        In [0, inf): √(v̂ + eps_root); optax' alone, 0 by default.
    momentum_decay
        ψ, in [0, inf): 4e-3 (paper, torch), 1 (keras).
    schedule
        ``"warming"``: μ_t as above; ``"constant"``: μ_t = β1 (optax).
    average
        The coefficient of the running mean m: ``"mu"`` is μ_t (paper), ``"b1"`` is β1 (torch, optax, keras).
    second
        ``"shrunk"``: v̂ = β2·v/(1-β2^t), as Algorithm 2 has it (paper); ``"plain"``: v̂ = v/(1-β2^t).
    convention, weight_decay, decay, mask
        See ``Descent``. λ is 0; ``"l2"`` (paper, torch; torch's
        ``decoupled_weight_decay=True`` is ``"decoupled"``), ``"decoupled"`` (keras), ``"none"`` (optax).

    Notes
    -----
    Slots: ``exp_avg`` (m), ``exp_avg_sq`` (v), and the scalar ``mu_product`` (μ_1⋯μ_t) if μ_t warms up. It is
    kept in double precision: torch keeps it in float32, so that parity with torch ends at about 1e-9.

    Examples
    --------
    >>> from polyopt import NAdam
    >>> [s.name for s in NAdam(convention="optax").slots()]
    ['exp_avg', 'exp_avg_sq']
    """

    lr: Any = hyper(None, low=0.0)
    b1: Any = hyper(None, low=0.0, high=1.0, open_high=True)
    b2: Any = hyper(None, low=0.0, high=1.0, open_low=True, open_high=True)
    eps: Any = hyper(None, low=0.0)
    momentum_decay: Any = hyper(None, low=0.0)
    eps_root: Any = hyper(0.0, low=0.0)
    schedule: str = static(None, "warming", "constant")
    average: str = static(None, "mu", "b1")
    second: str = static(None, "shrunk", "plain")

    def slots(self) -> tuple[Slot, ...]:
        """Keep m, v, the weights of scheduled betas and, if μ_t warms up, the product of all μ so far."""
        both = (Slot("exp_avg"), Slot("exp_avg_sq"), *self.weights("b2"))
        if self.schedule == "constant":
            both = (*both, *self.weights("b1"))
        return (*both, Slot("mu_product", 1.0, "scalar")) if self.schedule == "warming" else both

    def scalars(self, xp: Any, t: Any, h: Any) -> dict[str, Any]:
        """Fold lr, √v̂'s correction and the weights of m and g in m̂ into coefficients.

        With ``s = bc2/β2`` (``"shrunk"``) or ``bc2`` (``"plain"``), ``bc2 = 1-β2^t``:

        - ``mean``, ``one_minus_mean``: the coefficient of the running mean, μ_t or β1, and 1 less it.
        - ``b2``, ``one_minus_beta2``: β2 and 1-β2.
        - ``ahead``, ``now``: m̂ = ahead·m + now·g, so μ_{t+1}/(1-μ_1⋯μ_{t+1}) and (1-μ_t)/(1-μ_1⋯μ_t).
        - ``scale``, ``eps``, ``eps_inside``: -lr·√s, ε√s and ``eps_root``·s, so that ``scale·m̂/(√v + eps)``
          is ``-lr·m̂/(√v̂ + ε)`` with ``v̂ = v/s``.
        """
        values = self._momentum(xp, t, h)
        mean = values["mu"] if self.average == "mu" else h.b1
        bc2, second = self.correction(xp, "b2", t, h)
        shrunk = bc2 / h.b2 if self.second == "shrunk" else bc2
        correction = xp.sqrt(shrunk)
        return (
            values
            | second
            | {
                "mean": mean,
                "one_minus_mean": 1 - mean,
                "b2": h.b2,
                "one_minus_beta2": 1 - h.b2,
                "bc2": bc2,
                "scale": -(h.lr * correction),
                "eps": h.eps * correction,
                "eps_inside": h.eps_root * shrunk,
            }
        )

    def _momentum(self, xp: Any, t: Any, h: Any) -> dict[str, Any]:
        """Return μ_t, what m and g weigh in m̂, and the running product."""
        if self.schedule == "constant":
            bc1, first = self.correction(xp, "b1", t, h)
            # The next β as this one: what a schedule will say is not known here.
            later = h.b1 * bc1 + (1 - h.b1) if first else one_minus_power(xp, h.b1, t + 1)
            return {"mu": h.b1, "ahead": h.b1 / later, "now": (1 - h.b1) / bc1} | first
        mu = h.b1 * (1 - 0.5 * xp.pow(0.96, t * h.momentum_decay))
        mu_next = h.b1 * (1 - 0.5 * xp.pow(0.96, (t + 1) * h.momentum_decay))
        product = h.mu_product * mu
        return {
            "mu": mu,
            "mu_next": mu_next,
            "mu_product": product,
            "ahead": mu_next / (1 - product * mu_next),
            "now": (1 - mu) / (1 - product),
        }

    def direction(self, xp: Any, g: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
        """Return ``scale·(ahead·m + now·g)/(√(v + eps_inside) + eps)`` and the moments after it."""
        m = c.mean * slots["exp_avg"] + c.one_minus_mean * g
        v = c.b2 * slots["exp_avg_sq"] + c.one_minus_beta2 * (g * g)
        d = root(xp, v, self.eps, self.eps_root, c=c)
        update = c.scale * quotient(xp, c.ahead * m + c.now * g, d, self.eps, self.eps_root)
        return update, {"exp_avg": m, "exp_avg_sq": v}

    _PAPER: ClassVar[dict[str, Any]] = {
        "lr": 2e-3,
        "b1": 0.99,
        "b2": 0.999,
        "eps": 1e-8,
        "momentum_decay": 4e-3,
        "schedule": "warming",
        "average": "mu",
        "second": "shrunk",
        "weight_decay": 0.0,
        "decay": "l2",
    }
    _TORCH: ClassVar[dict[str, Any]] = _PAPER | {"b1": 0.9, "average": "b1", "second": "plain"}
    CONVENTIONS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": _PAPER,
        "torch": _TORCH,
        "optax": _TORCH | {"lr": 1e-3, "momentum_decay": 0.0, "schedule": "constant", "decay": "none"},
        "keras": _TORCH | {"lr": 1e-3, "eps": 1e-7, "momentum_decay": 1.0, "decay": "decoupled"},
    }
