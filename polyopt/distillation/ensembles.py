"""Several teachers for one student."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from polyopt.core.errors import InputError
from polyopt.core.ops import Array, Ops
from polyopt.core.rule import static
from polyopt.distillation.base import DistillationLoss, constant, logit_pair
from polyopt.distillation.soft_targets import SoftTargets
from polyopt.models.losses import log_softmax


@dataclass(frozen=True)
class Ensemble(DistillationLoss):
    """Average several teachers with weights: their probabilities, or the losses against each.

    ``"probabilities"``: the loss against ``Σ w_k·p_k``, each teacher softened by T first (Hinton et al.,
    2015, section 2: an arithmetic mean of the ensemble's predictions). ``"losses"``: ``Σ w_k·loss_k``. For KL
    the two differ by ``α·T²·Σ w_k·KL(p_k ‖ Σ w_j·p_j)``, which the student can't change: their gradients are
    the same.

    Parameters
    ----------
    loss
        A ``SoftTargets``, or any loss over logits where losses are averaged.
    average
        ``"probabilities"`` or ``"losses"``.
    weights
        One number >= 0 a teacher, with a sum above 0, which they are divided by; ``None``: all alike.

    Examples
    --------
    >>> import numpy as np
    >>> import polyopt_numpy.ops as xp
    >>> loss = Ensemble(SoftTargets(temperature=2.0, alpha=1.0), weights=(3.0, 1.0))
    >>> a, b = np.array([[2.0, 0.0]]), np.array([[0.0, 2.0]])
    >>> round(float(loss(xp, np.array([[0.0, 0.0]]), [a, b])), 6)
    0.107747
    """

    loss: DistillationLoss
    average: str = static("probabilities", "probabilities", "losses")
    weights: tuple[float, ...] | None = static(None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.loss, DistillationLoss):
            raise InputError(f"Ensemble: loss = {self.loss!r}; expected a distillation loss")
        if self.average == "probabilities" and not isinstance(self.loss, SoftTargets):
            raise InputError(
                f'Ensemble: average = "probabilities" with {type(self.loss).__name__}; expected a '
                'SoftTargets, or average = "losses"'
            )
        if self.weights is None:
            return
        given: tuple[Any, ...] = self.weights
        for i, w in enumerate(given):
            if isinstance(w, bool) or not isinstance(w, Real) or not (math.isfinite(w) and float(w) >= 0):
                raise InputError(f"Ensemble: weights[{i}] = {w!r}; expected a finite number >= 0")
        if not sum(self.weights) > 0:
            raise InputError(f"Ensemble: weights = {self.weights!r} add up to 0; expected a sum above 0")

    def __call__(
        self,
        xp: Ops,
        student: Array,
        teachers: Sequence[Array],
        target: Array | None = None,
        *,
        weights: Array | None = None,
    ) -> Array:
        """Return the loss: a 0-d array.

        Parameters
        ----------
        student
            Logits of shape (n, classes).
        teachers
            What ``loss`` takes of a teacher, from each of them.
        target
            As in ``loss``.
        weights
            Of the samples, as in ``loss``.

        Raises
        ------
        InputError
            Where a teacher doesn't fit (it says which), or there are none, or not one for each weight.
        """
        shares = self._shares(len(teachers))
        for i, teacher in enumerate(teachers):
            logit_pair(xp, f"Ensemble: teacher {i}", student, teacher)
        if self.average == "losses" or not isinstance(self.loss, SoftTargets):
            loss: Any = self.loss
            counted = {} if weights is None else {"weights": weights}
            return _weighted(shares, [loss(xp, student, t, target, **counted) for t in teachers])
        pairs = [logit_pair(xp, "Ensemble", student, teacher) for teacher in teachers]
        mean = _weighted(
            shares, [xp.exp(log_softmax(xp, self.loss.soften(xp, teacher))) for _, teacher in pairs]
        )
        return self.loss.against(xp, pairs[0][0], constant(xp.log(mean)), target, weights=weights)

    def _shares(self, teachers: int) -> list[float]:
        weights = self.weights if self.weights is not None else (1.0,) * teachers
        if teachers == 0 or len(weights) != teachers:
            expected = "at least one" if self.weights is None else f"{len(weights)}, one for each weight"
            raise InputError(f"Ensemble: {teachers} teachers; expected {expected}")
        total = math.fsum(weights)
        return [w / total for w in weights]


def _weighted(weights: Sequence[float], terms: Sequence[Array]) -> Array:
    total = weights[0] * terms[0]
    for w, term in zip(weights[1:], terms[1:], strict=True):
        total = total + w * term
    return total
