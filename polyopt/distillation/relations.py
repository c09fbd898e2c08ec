"""Relational distillation: the student's samples lie to each other as the teacher's do."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from polyopt.core.ops import Array, Ops
from polyopt.core.rule import static
from polyopt.distillation.base import InnerLoss, safe_root


@dataclass(frozen=True)
class _Relational(InnerLoss):
    """Huber's loss between a relation of the student's samples, (n, s), and the teacher's, (n, t).

    With weights a pair or triplet of samples has the product of theirs.
    """

    ORDER: ClassVar[int]
    """How many samples a relation is between."""

    CONVENTIONS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"reduction": "sum"},
        "torch": {"reduction": "mean"},
    }

    convention: str = static("paper")
    reduction: str = static(None, "sum", "mean")

    def _unfit(self, student: tuple[int, ...], teacher: tuple[int, ...]) -> str | None:
        fit = len(student) == len(teacher) == 2 and student[0] == teacher[0] >= 2
        return None if fit else "(n, s) and (n, t) of the same n samples, at least 2"

    def _apart(self, xp: Ops, student: Array, teacher: Array, weights: Array | None) -> Array:
        if weights is None:
            losses = _huber(xp, self._relation(xp, student, None) - self._relation(xp, teacher, None))
            return xp.mean(losses) if self.reduction == "mean" else xp.sum(losses)
        w = xp.astype(weights, student.dtype)
        mine, its = (self._relation(xp, x, w) for x in (student, teacher))
        total = xp.sum(_products(xp, w, self.ORDER) * _huber(xp, mine - its))
        if self.reduction == "sum":
            return total
        count = xp.sum(w)
        for _ in range(self.ORDER):
            total = total / count
        return total

    @abstractmethod
    def _relation(self, xp: Ops, x: Array, weights: Array | None) -> Array:
        """Return the relation of all pairs or triplets, (n, n) or (n, n, n)."""


@dataclass(frozen=True)
class RelationalDistance(_Relational):
    """RKD-D (Park et al., 2019, section 3.2.1): distances between samples, in units of their mean.

    ``Σ_(i,j) huber(d_ij/μ of the student, d_ij/μ of the teacher)`` over the ordered pairs i ≠ j, with
    ``d_ij = ‖t_i - t_j‖₂`` and Huber's threshold 1. ``"paper"`` sums; μ is the mean over the pairs.
    ``"torch"`` is the authors' code: the mean over all n² entries (those with i = j are 0), μ that of the
    distances above 0.

    Student and teacher have features of shape (n, s) and (n, t) of the same n >= 2 samples.

    Parameters
    ----------
    convention
        ``"paper"`` or ``"torch"``; it fills in ``reduction``.
    reduction
        ``"sum"`` or ``"mean"``, as above.

    Examples
    --------
    >>> import numpy as np
    >>> import polyopt_numpy.ops as xp
    >>> x = np.array([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
    >>> float(RelationalDistance()(xp, x, 2 * x))
    0.0
    """

    ORDER: ClassVar[int] = 2

    def _relation(self, xp: Ops, x: Array, weights: Array | None) -> Array:
        e = _differences(xp, x)
        distance = safe_root(xp, xp.sum(e * e, axis=-1))
        mean = self._unit(xp, distance, weights)
        none = xp.equal(mean, xp.zeros_like(mean))
        return distance / xp.where(none, xp.ones_like(mean), mean)

    def _unit(self, xp: Ops, distance: Array, weights: Array | None) -> Array:
        """μ, the mean distance."""
        n, zero = int(distance.shape[0]), xp.zeros_like(distance)
        both = xp.ones_like(distance) if weights is None else _products(xp, weights, 2)
        if self.reduction == "mean":
            pairs = xp.sum(xp.where(xp.greater(distance, zero), both, zero))
        elif weights is None:
            return xp.sum(distance) / (n * (n - 1))
        else:
            pairs = xp.sum(both) - xp.sum(weights * weights)
        none = xp.equal(pairs, xp.zeros_like(pairs))
        return xp.sum(both * distance) / xp.where(none, xp.ones_like(pairs), pairs)


@dataclass(frozen=True)
class RelationalAngle(_Relational):
    """RKD-A (Park et al., 2019, section 3.2.2): the cosines of the angles that triplets of samples form.

    ``Σ_(i,j,k) huber(cos∠t_i t_j t_k of the student, of the teacher)``. ``"paper"`` sums over the triplets of
    distinct samples; ``"torch"`` is the authors' code: the mean over all n³ entries, those with i = k (1 for
    both) and with j among them (0) included. Memory grows as n³ + n²·features.

    Student and teacher have features of shape (n, s) and (n, t) of the same n >= 2 samples.

    Parameters
    ----------
    convention
        ``"paper"`` or ``"torch"``; it fills in ``reduction``.
    reduction
        ``"sum"`` or ``"mean"``, as above.

    Examples
    --------
    >>> import numpy as np
    >>> import polyopt_numpy.ops as xp
    >>> x = np.array([[0.0, 0.0], [3.0, 4.0], [6.0, 0.0]])
    >>> round(float(RelationalAngle()(xp, x, 2 * x + 1)), 12)
    0.0
    """

    ORDER: ClassVar[int] = 3

    def _relation(self, xp: Ops, x: Array, weights: Array | None) -> Array:
        e = _differences(xp, x)
        length = safe_root(xp, xp.sum(e * e, axis=-1, keepdims=True))
        none = xp.equal(length, xp.zeros_like(length))
        unit = e / xp.where(none, xp.ones_like(length), length)
        return xp.matmul(unit, xp.matrix_transpose(unit))


def _differences(xp: Ops, x: Array) -> Array:
    """Return ``e[j, i] = x_i - x_j``, of shape (n, n, features)."""
    return xp.expand_dims(x, axis=0) - xp.expand_dims(x, axis=1)


def _products(xp: Ops, weights: Array, order: int) -> Array:
    """Return ``w_i·w_j`` of shape (n, n), or ``w_i·w_j·w_k``."""
    found = xp.expand_dims(weights, axis=0) * xp.expand_dims(weights, axis=1)
    if order == 2:
        return found
    return xp.expand_dims(found, axis=0) * xp.reshape(weights, (-1, 1, 1))


def _huber(xp: Ops, x: Array) -> Array:
    size = xp.abs(x)
    return xp.where(xp.less_equal(size, xp.ones_like(size)), 0.5 * x * x, size - 0.5)
