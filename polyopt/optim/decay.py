"""Weight decay as stages of a chain of their own."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from polyopt.core.ops import Array
from polyopt.core.rule import Elementwise, Pattern, Slots, hyper, matches, pattern
from polyopt.optim.base import is_zero


@dataclass(frozen=True)
class _Decay(Elementwise):
    """Take hold of the parameters that ``mask`` selects."""

    weight_decay: Any = hyper(low=0.0)
    mask: Pattern | None = pattern()

    def at(self, path: str) -> _Decay:
        """Return the rule for ``path``: one with λ = 0 where the mask leaves it out."""
        if self.mask is None or matches(self.mask, path):
            return self
        return dataclasses.replace(self, weight_decay=0.0)


@dataclass(frozen=True)
class AddDecayedWeights(_Decay):
    """L2 regularization before an optimizer: ``g + λp``, the gradient of the loss + λ/2·|p|².

    Parameters
    ----------
    weight_decay
        λ, in [0, inf).
    mask
        Which parameters decay: a regular expression searched for in the parameter's path, or a
        predicate on it.

    Notes
    -----
    After an optimizer that does not scale by lr it is optax' ``add_decayed_weights``. No slots.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt import SGD, AddDecayedWeights, Optimizer, chain
    >>> opt = Optimizer(chain(AddDecayedWeights(0.5, mask="weight"), SGD(lr=1.0)))
    >>> p, g = ({"bias": np.array(x), "weight": np.array(x)} for x in ([2.0], [0.0]))
    >>> {k: x.tolist() for k, x in opt.step(p, g, opt.init(p))[0].items()}
    {'bias': [2.0], 'weight': [1.0]}
    """

    def leaf(self, xp: Any, g: Array, p: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
        """Return ``g + λp``."""
        return (g if is_zero(self.weight_decay) else g + c.weight_decay * p), {}


@dataclass(frozen=True)
class DecoupledWeightDecay(_Decay):
    """Decoupled weight decay after an optimizer: ``u - lr·λ·p`` (Loshchilov & Hutter, 2019).

    Parameters
    ----------
    weight_decay
        λ, in [0, inf).
    mask
        Which parameters decay: a regular expression searched for in the parameter's path, or a
        predicate on it.
    lr
        What λ is multiplied by, in [0, inf): the optimizer's own lr for what the frameworks do; 1, the
        default, for the paper's λ that does not know lr.

    Notes
    -----
    No slots.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt import SGD, DecoupledWeightDecay, Optimizer, chain
    >>> opt = Optimizer(chain(SGD(lr=1.0), DecoupledWeightDecay(0.5, lr=0.5)))
    >>> p = np.array([4.0])
    >>> opt.step(p, np.array([1.0]), opt.init(p))[0].tolist()
    [2.0]
    """

    lr: Any = hyper(1.0, low=0.0)

    def coefficients(self, xp: Any, t: Any, h: Any) -> dict[str, Any]:
        """Return ``decay``: lr·λ, the fraction that is taken off a parameter."""
        return {"decay": h.lr * h.weight_decay}

    def leaf(self, xp: Any, g: Array, p: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
        """Return the update less ``decay·p``."""
        return (g if is_zero(self.weight_decay) else g - c.decay * p), {}
