"""Hinton's distillation: the student follows the teacher's softened probabilities, and the labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from polyopt.core.errors import InputError
from polyopt.core.ops import Array, Ops
from polyopt.core.rule import hyper, static
from polyopt.core.sample_weights import counted, weighted_mean
from polyopt.distillation.base import (
    DistillationLoss,
    check_weights,
    divergence,
    divergence_of_logits,
    fitting_target,
    logit_pair,
    wide,
)
from polyopt.distillation.standardization import standardized
from polyopt.models.losses import cross_entropy, log_softmax

_PAPER: Mapping[str, Any] = {"alpha_weighs": "soft", "reduction": "batchmean", "floor": 0.0}


@dataclass(frozen=True)
class SoftTargets(DistillationLoss):
    """Learn from a teacher's probabilities at a temperature (Hinton, Vinyals & Dean, 2015).

    ``teacher_T = softmax(z/T)``; both terms are means over the batch. Section 2 of the paper: T² keeps the
    size of the soft gradients, which go as 1/T². The paper writes the soft term as a cross-entropy, which
    differs from KL by the teacher's entropy, a constant.

    ``(1 - α)·CE(target, student) + α·T²·KL(teacher_T ‖ student_T)``.

    Parameters
    ----------
    temperature
        T, above 0.
    alpha
        α, in [0, 1].
    teacher
        What the teacher's argument is: ``"logits"``, or ``"probabilities"`` at T = 1, which are softened to
        p^(1/T)/Σ p^(1/T): exactly what their logits would give.
    standardize
        Standardize the logits of both first (``standardized``, Sun et al., 2024), in the ``"paper"``'s or
        in the authors' code's (``"torch"``) way; ``None`` doesn't. A teacher's probabilities must be above 0
        then.
    convention
        Fills in what is below. ``"torch"`` is ``F.kl_div`` by its default reduction; PyTorch's own tutorial
        says ``reduction="batchmean"``, which is ``"paper"``.
    alpha_weighs
        Which term has α, the other has 1 - α: ``"soft"`` (paper, torch), ``"hard"`` (keras: α is the
        ``student_loss_weight`` of ``keras.distillation.Distiller``).
    reduction
        Of KL: ``"batchmean"`` (paper, keras), or ``"mean"`` over samples and classes (torch), which is
        smaller by the number of classes.
    floor
        What probabilities are held above inside KL: 0 (paper, torch) or 1e-7 (keras; ``KLDivergence``
        clips).

    Examples
    --------
    >>> import numpy as np
    >>> import polyopt_numpy.ops as xp
    >>> loss = SoftTargets(temperature=2.0, alpha=0.5)
    >>> student, teacher = np.array([[0.0, 0.0]]), np.array([[2.0, 0.0]])
    >>> round(float(loss(xp, student, teacher, np.array([0]))), 6)
    0.568462
    """

    CONVENTIONS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": _PAPER,
        "torch": {**_PAPER, "reduction": "mean"},
        "keras": {"alpha_weighs": "hard", "reduction": "batchmean", "floor": 1e-7},
    }

    temperature: Any = hyper(low=0.0, open_low=True)
    alpha: Any = hyper(low=0.0, high=1.0)
    teacher: str = static("logits", "logits", "probabilities")
    standardize: str | None = static(None, None, "paper", "torch")
    convention: str = static("paper")
    alpha_weighs: str = static(None, "soft", "hard")
    reduction: str = static(None, "batchmean", "mean")
    floor: Any = hyper(None, low=0.0, high=1.0, open_high=True)

    def __call__(
        self,
        xp: Ops,
        student: Array,
        teacher: Array,
        target: Array | None = None,
        *,
        weights: Array | None = None,
    ) -> Array:
        """Return the loss: a 0-d array, of the student's dtype, at least float32.

        Parameters
        ----------
        student
            Logits of shape (n, classes).
        teacher
            Logits or probabilities of that shape, in any floating dtype.
        target
            Integer labels of shape (n,), or probabilities of shape (n, classes); ``None`` where the labels
            have no weight.
        weights
            Of the samples, of shape (n,): both means are weighted (``weighted_mean``).

        Raises
        ------
        InputError
            Where the teacher has other classes or samples, or a target is missing.
        """
        student, teacher = logit_pair(xp, type(self).__name__, student, teacher)
        return self.against(xp, student, self.soften(xp, teacher), target, weights=weights)

    def soften(self, xp: Ops, teacher: Array) -> Array:
        """Return the teacher's logits at the temperature T.

        Parameters
        ----------
        xp
            As the loss gets it.
        teacher
            Logits or probabilities of shape (n, classes).

        Returns
        -------
        Array
            Logits of shape (n, classes).
        """
        logits = xp.log(teacher) if self.teacher == "probabilities" else teacher
        return self._standard(xp, logits) / self.temperature

    def against(
        self,
        xp: Ops,
        student: Array,
        soft: Array,
        target: Array | None = None,
        *,
        weights: Array | None = None,
    ) -> Array:
        """Return the loss against logits that have the temperature already (``soften``).

        Log-probabilities are logits too, but rounded ones: at high temperatures they lose what KL is made of.

        Parameters
        ----------
        xp
            As the loss gets it.
        student
            Logits of shape (n, classes).
        soft
            What ``soften`` returned, of that shape.
        target
            Integer labels of shape (n,), or probabilities of shape (n, classes).
        weights
            Of the samples, of shape (n,).

        Returns
        -------
        Array
            0-d, of the student's dtype, at least float32.
        """
        student, owner = wide(xp, student), type(self).__name__
        check_weights(owner, weights, int(student.shape[0]))
        student, soft = counted(xp, weights, student, soft)
        soft = weighted_mean(xp, self._divergence(xp, student, soft), weights)
        hard_weight = self.alpha if self.alpha_weighs == "hard" else 1.0 - self.alpha
        soft_weight = 1.0 - self.alpha if self.alpha_weighs == "hard" else self.alpha
        soft = soft_weight * (self.temperature * self.temperature * soft)
        if target is None:
            if not (isinstance(hard_weight, int | float) and hard_weight == 0):
                raise InputError(
                    f"{owner}: target is None, but the labels have the weight {hard_weight!r}; "
                    f"expected labels, or alpha = {1.0 if self.alpha_weighs == 'soft' else 0.0}"
                )
            return soft
        target = fitting_target(xp, owner, student, target)
        hard = cross_entropy(xp, student, target, weights=weights)
        return hard_weight * hard + soft

    def _standard(self, xp: Ops, logits: Array) -> Array:
        return logits if self.standardize is None else standardized(xp, logits, self.standardize)

    def _divergence(self, xp: Ops, student: Array, soft: Array) -> Array:
        """Return KL of each sample, of shape (n,)."""
        mine = self._standard(xp, student) / self.temperature
        if isinstance(self.floor, int | float) and self.floor == 0:
            rows = divergence_of_logits(xp, soft, mine)
        else:
            log_p, log_q = (log_softmax(xp, z) for z in (soft, mine))
            rows = divergence(xp, *(xp.log(xp.clip(xp.exp(x), self.floor, 1.0)) for x in (log_p, log_q)))
        return rows / int(student.shape[-1]) if self.reduction == "mean" else rows
