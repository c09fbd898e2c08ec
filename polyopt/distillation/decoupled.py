"""Decoupled knowledge distillation: how sure the teacher is, apart from what else it considers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from polyopt.core.errors import InputError
from polyopt.core.ops import Array, Ops
from polyopt.core.rule import hyper, static
from polyopt.core.sample_weights import counted, weighted_mean
from polyopt.distillation.base import (
    DistillationLoss,
    check_weights,
    divergence,
    fitting_target,
    log_sum_exp,
    logit_pair,
)
from polyopt.distillation.standardization import standardized
from polyopt.models.losses import cross_entropy, log_softmax, one_hot

HIDDEN = -1e30
"""A logit whose exponential is 0 beside any other's, and which is finite in float32."""


@dataclass(frozen=True)
class DecoupledKD(DistillationLoss):
    """DKD: ``λ·CE + T²·(α·TCKD + β·NCKD)``, batch mean (Zhao et al., 2022, eq. 7).

    TCKD = KL(b_teacher ‖ b_student), with b = (p_t, 1 - p_t) for the label t, softened by T; NCKD is KL of
    the probabilities of the other classes among themselves. Hinton's KL is TCKD + (1 - p_t)·NCKD with the
    teacher's p_t (eq. 6), so a sure teacher says nothing about the other classes there.

    Deviations: T² and the cross-entropy stand in the authors' code, not in eq. 7. Their code hides the label
    by subtracting 1000 from its logit and takes the logarithm of p_t and of 1 - p_t, which rounds to 0
    where the student is sure; here 1 - p_t comes from the other logits, so that nothing is lost. Their linear
    warm-up of the term is a schedule of yours.

    Parameters
    ----------
    temperature
        T, above 0; 4 in their experiments on CIFAR-100.
    alpha, beta
        Weights >= 0; 1 and 8 there (β differs from teacher to teacher).
    label_weight
        λ >= 0, of the cross-entropy with the labels; 0 leaves it out.
    standardize
        Standardize the logits of both in TCKD and NCKD first (``standardized``, Sun et al., 2024), in the
        ``"paper"``'s or in the authors' code's (``"torch"``) way; ``None`` doesn't.

    Examples
    --------
    >>> import numpy as np
    >>> import polyopt_numpy.ops as xp
    >>> z = np.array([[3.0, 1.0, 0.0]])
    >>> float(DecoupledKD(label_weight=0.0)(xp, z, z, np.array([0])))
    0.0
    """

    temperature: Any = hyper(4.0, low=0.0, open_low=True)
    alpha: Any = hyper(1.0, low=0.0)
    beta: Any = hyper(8.0, low=0.0)
    label_weight: Any = hyper(1.0, low=0.0)
    standardize: str | None = static(None, None, "paper", "torch")

    def __call__(
        self, xp: Ops, student: Array, teacher: Array, target: Array, *, weights: Array | None = None
    ) -> Array:
        """Return the loss, a 0-d array, of the student's dtype, at least float32.

        Parameters
        ----------
        student, teacher
            Logits of shape (n, classes).
        target
            Integer labels of shape (n,), or probabilities of shape (n, classes): the cross-entropy takes them
            as they are, and t is the likeliest class.
        weights
            Of the samples, of shape (n,): all means are weighted (``weighted_mean``).

        Raises
        ------
        InputError
            Where the teacher has other classes or samples, or the target other ones than they.
        """
        owner = type(self).__name__
        student, teacher = logit_pair(xp, owner, student, teacher)
        rows, classes = tuple(student.shape)
        check_weights(owner, weights, rows)
        target = fitting_target(xp, owner, student, target)
        student, teacher = counted(xp, weights, student, teacher)
        if classes < 2:
            raise InputError(f"{owner}: the logits have {classes} class; expected at least 2")
        likeliest = target if len(target.shape) == 1 else xp.argmax(target, axis=-1)
        label = one_hot(xp, likeliest, classes, student)
        log_p, log_p_rest = self._decoupled(xp, teacher, label)
        log_q, log_q_rest = self._decoupled(xp, student, label)
        target_term = weighted_mean(xp, divergence(xp, log_p, log_q), weights)
        rest_term = weighted_mean(xp, divergence(xp, log_p_rest, log_q_rest), weights)
        square = self.temperature * self.temperature
        soft = square * (self.alpha * target_term + self.beta * rest_term)
        if isinstance(self.label_weight, int | float) and self.label_weight == 0:
            return soft
        return self.label_weight * cross_entropy(xp, student, target, weights=weights) + soft

    def _decoupled(self, xp: Ops, logits: Array, label: Array) -> tuple[Array, Array]:
        """Return ``log (p_t, 1 - p_t)``, (n, 2), and log-probabilities of the others, (n, classes)."""
        if self.standardize is not None:
            logits = standardized(xp, logits, self.standardize)
        logits = logits / self.temperature
        is_label = xp.greater(label, xp.zeros_like(label))
        others = xp.where(is_label, xp.full_like(logits, HIDDEN), logits)
        mine = xp.sum(xp.where(is_label, logits, xp.zeros_like(logits)), axis=-1)
        both = xp.stack([mine, log_sum_exp(xp, others)], axis=-1)
        return log_softmax(xp, both), log_softmax(xp, others)
