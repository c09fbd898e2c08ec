"""Decoupled knowledge distillation: how sure the teacher is, apart from what else it considers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from polyopt.distillation.base import DistillationLoss, divergence, log_sum_exp, logit_pair
from polyopt.errors import InputError
from polyopt.losses import cross_entropy, log_softmax, one_hot
from polyopt.ops import Array, Ops
from polyopt.rule import hyper

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

    def __call__(self, xp: Ops, student: Array, teacher: Array, target: Array) -> Array:
        """The loss, a 0-d array, from logits (n, classes) of both and integer labels (n,).

        Raises
        ------
        InputError
            Where the teacher has other classes or samples, or the target is no vector of labels.
        """
        owner = type(self).__name__
        student, teacher = logit_pair(xp, owner, student, teacher)
        rows, classes = tuple(student.shape)
        if tuple(target.shape) != (rows,):
            raise InputError(
                f"{owner}: the target has shape {tuple(target.shape)}; expected integer labels ({rows},)"
            )
        if classes < 2:
            raise InputError(f"{owner}: the logits have {classes} class; expected at least 2")
        label = one_hot(xp, target, classes, student)
        log_p, log_p_rest = _decoupled(xp, teacher / self.temperature, label)
        log_q, log_q_rest = _decoupled(xp, student / self.temperature, label)
        target_term = xp.mean(divergence(xp, log_p, log_q))
        rest_term = xp.mean(divergence(xp, log_p_rest, log_q_rest))
        square = self.temperature * self.temperature
        soft = square * (self.alpha * target_term + self.beta * rest_term)
        if isinstance(self.label_weight, int | float) and self.label_weight == 0:
            return soft
        return self.label_weight * cross_entropy(xp, student, target) + soft


def _decoupled(xp: Ops, logits: Array, label: Array) -> tuple[Array, Array]:
    """``log (p_t, 1 - p_t)`` of shape (n, 2), and log-probabilities of the other classes, (n, classes)."""
    is_label = xp.greater(label, xp.zeros_like(label))
    others = xp.where(is_label, xp.full_like(logits, HIDDEN), logits)
    mine = xp.sum(xp.where(is_label, logits, xp.zeros_like(logits)), axis=-1)
    both = xp.stack([mine, log_sum_exp(xp, others)], axis=-1)
    return log_softmax(xp, both), log_softmax(xp, others)
