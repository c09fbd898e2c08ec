"""Share among distillation losses: checks of shapes, the teacher as a constant, stable formulas."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from polyopt.backend import registry
from polyopt.core.aliases import CheckedKeywords
from polyopt.core.errors import InputError
from polyopt.core.ops import FLOATING, Array, Ops
from polyopt.core.rule import check_fields
from polyopt.core.sample_weights import counted
from polyopt.models.losses import log_softmax
from polyopt.schedules import Schedule


@dataclass(frozen=True)
class DistillationLoss(CheckedKeywords, ABC):
    """Base of every distillation loss: abstract; its fields are its hyperparameters.

    Calling one is a pure function of ``xp`` and arrays, differentiable by the student's side on all backends.
    No gradient flows into what the teacher gives. A hyperparameter may be a 0-d array, also a traced one:
    that is how it follows a schedule inside a compiled loss.
    """

    CONVENTIONS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __post_init__(self) -> None:
        for field in fields(self):
            if isinstance(getattr(self, field.name), Schedule):
                raise InputError(
                    f"{type(self).__name__}: {field.name} is a schedule; expected a number or a 0-d array: a "
                    "loss knows no step, so give the schedule's value to it as an argument of your loss"
                )
        check_fields(self)

    @abstractmethod
    def __call__(self, xp: Ops, student: Array, teacher: Any, *args: Any, **kwargs: Any) -> Array:
        """Return the loss, a 0-d array, of what student and teacher give, and labels where it takes them."""


@dataclass(frozen=True)
class InnerLoss(DistillationLoss):
    """Base of the losses between what both have inside, sample by sample: abstract."""

    def __call__(
        self,
        xp: Ops,
        student: Array,
        teacher: Array,
        *,
        name: str = "features",
        weights: Array | None = None,
    ) -> Array:
        """Return the loss of one layer: a 0-d array.

        Parameters
        ----------
        student, teacher
            What both have of the same samples, the first axis; the loss says which other axes may differ.
        name
            What the layer is called in errors.
        weights
            Of the samples, >= 0 and of shape (n,), not all 0: one of weight 0 counts nothing, as if it were
            not in the batch.

        Raises
        ------
        InputError
            Where the shapes don't fit: it names the layer and both shapes.
        """
        mine, its = tuple(student.shape), tuple(teacher.shape)
        expected = self._unfit(mine, its)
        if expected is not None:
            raise InputError(
                f"{type(self).__name__}: {name!r}: the student's have shape {mine}, the teacher's {its}; "
                f"expected {expected}"
            )
        check_weights(type(self).__name__, weights, mine[0])
        student, teacher = counted(xp, weights, *pair(xp, student, teacher))
        return self._apart(xp, student, teacher, weights)

    @abstractmethod
    def _unfit(self, student: tuple[int, ...], teacher: tuple[int, ...]) -> str | None:
        """Return what was expected, where the shapes don't fit."""

    @abstractmethod
    def _apart(self, xp: Ops, student: Array, teacher: Array, weights: Array | None) -> Array:
        """Return the loss of arrays of one dtype and shapes that fit."""


def check_weights(owner: str, weights: Array | None, samples: int) -> None:
    """Refuse weights that are not one a sample."""
    if weights is not None and tuple(weights.shape) != (samples,):
        raise InputError(
            f"{owner}: the weights have shape {tuple(weights.shape)}; expected one a sample, ({samples},)"
        )


def fitting_target(xp: Ops, owner: str, student: Array, target: Array) -> Array:
    """Integer labels (n,) as they are, probabilities (n, classes) in the dtype of the student's logits."""
    expected, found = tuple(student.shape), tuple(target.shape)
    if found not in (expected[:1], expected):
        raise InputError(
            f"{owner}: the target has shape {found}; expected labels {expected[:1]} or probabilities "
            f"{expected}"
        )
    return target if len(found) == 1 else xp.astype(target, student.dtype)


def logit_pair(xp: Ops, owner: str, student: Array, teacher: Array) -> tuple[Array, Array]:
    """Both as (n, classes) in the student's dtype, at least float32; the teacher as a constant."""
    mine, its = tuple(student.shape), tuple(teacher.shape)
    if len(mine) != 2 or len(its) != 2:
        which, shape = ("student", mine) if len(mine) != 2 else ("teacher", its)
        raise InputError(f"{owner}: the {which}'s logits have shape {shape}; expected (n, classes)")
    if mine[1] != its[1]:
        raise InputError(
            f"{owner}: the teacher has {its[1]} classes, the student {mine[1]}; expected the same"
        )
    if mine[0] != its[0]:
        raise InputError(
            f"{owner}: the teacher has {its[0]} samples, the student {mine[0]}; expected the same"
        )
    return pair(xp, student, teacher)


def pair(xp: Ops, student: Array, teacher: Array) -> tuple[Array, Array]:
    """Both in the student's dtype, at least float32; the teacher as a constant.

    The teacher's may be a host array; of a third framework it is refused.
    """
    mine, its = registry.of(student), registry.of(teacher)
    if mine is not its and not isinstance(teacher, np.ndarray):
        raise InputError(
            f"the teacher's array is of {its.name}, the student's of {mine.name}; expected the same: call a "
            "Teacher outside of the loss, which converts it"
        )
    if mine.dtype_name(student) not in FLOATING:
        raise InputError(
            f"the student's array is {mine.dtype_name(student)}; expected one of {', '.join(FLOATING)}"
        )
    if its is not mine and not mine.is_traced(student):
        teacher = mine.from_numpy(teacher, device=mine.device_name(student))
    student = wide(xp, student)
    return student, xp.astype(constant(teacher), student.dtype)


def wide(xp: Ops, x: Array) -> Array:
    """Return ``x``, in float32 where it has 16 bits: sums of exponentials need them."""
    return xp.astype(x, xp.float32) if xp.finfo(x.dtype).bits < 32 else x


def constant(x: Array) -> Array:
    """Return ``x`` without its history: nothing is differentiated by it."""
    return registry.of(x).stop_gradient(x)


def divergence(xp: Ops, log_p: Array, log_q: Array) -> Array:
    """KL(p ‖ q) = Σ p·(log p - log q) over the last axis, of log-probabilities; 0·log 0 = 0.

    >>> import numpy as np
    >>> import polyopt_numpy.ops as xp
    >>> p, q = np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]])
    >>> divergence(xp, xp.log(p), xp.log(q)).round(6).tolist()
    [0.693147]
    """
    p = xp.exp(log_p)
    some = xp.greater(p, xp.zeros_like(p))
    zero = xp.zeros_like(log_q)
    return xp.sum(p * (xp.where(some, log_p, zero) - xp.where(some, log_q, zero)), axis=-1)


SMALL = 0.25
"""Log-ratios up to which ``expm1(x) - x`` is a series: the difference would lose digits."""


def divergence_of_logits(xp: Ops, p: Array, q: Array) -> Array:
    """Return KL(softmax(p) ‖ softmax(q)) over the last axis, accurate where the two are nearly the same.

    At high temperatures KL is of the order of the squared difference of the logits, far below the rounding of
    the log-probabilities. With e = q - p and its mean m under softmax(p), KL = log Σ softmax(p)·exp(e - m) =
    ``log1p(Σ softmax(p)·φ(e - m))``, where φ(x) = exp(x) - 1 - x >= 0: no term is negative.

    Parameters
    ----------
    p, q
        Logits of shape (n, classes), of one dtype; -inf is a class of probability 0.

    Returns
    -------
    Array
        Of shape (n,).

    Examples
    --------
    >>> import numpy as np
    >>> import polyopt_numpy.ops as xp
    >>> z = np.array([[0.0, 1.0, 3.0]], np.float32) / np.float32(1e4)
    >>> divergence_of_logits(xp, z, z).tolist()
    [0.0]
    """
    log_p = log_softmax(xp, p)
    plain = divergence(xp, log_p, log_softmax(xp, q))
    share, zero = xp.exp(log_p), xp.zeros_like(p)
    finite = xp.all(xp.logical_and(xp.isfinite(p), xp.isfinite(q)), axis=-1)
    near = xp.logical_and(finite, xp.less(constant(plain), xp.full_like(plain, 0.5)))
    rows = xp.broadcast_to(xp.expand_dims(near, axis=-1), tuple(p.shape))
    e = xp.where(rows, q, zero) - xp.where(rows, p, zero)
    x = e - xp.sum(share * e, axis=-1, keepdims=True)
    tiny = xp.less_equal(xp.abs(x), xp.full_like(x, SMALL))
    inside, outside = xp.where(tiny, x, zero), xp.where(tiny, zero, x)
    series = xp.full_like(x, 1.0)
    for k in range(14, 2, -1):
        series = 1.0 + series * inside / float(k)
    # share·exp(x) as one exponential: exp(x) alone may overflow where the share is tiny.
    there = xp.where(rows, log_p, zero)
    terms = xp.where(
        tiny, share * (0.5 * inside * inside * series), xp.exp(there + outside) - share * (1.0 + x)
    )
    near_value = xp.log1p(xp.sum(xp.where(rows, terms, zero), axis=-1))
    return xp.where(near, near_value, plain)


def log_sum_exp(xp: Ops, x: Array) -> Array:
    """Return ``log Σ exp(x)`` over the last axis, without overflow: max x first."""
    largest = constant(xp.max(x, axis=-1, keepdims=True))
    return xp.log(xp.sum(xp.exp(x - largest), axis=-1)) + xp.squeeze(largest, -1)


def safe_root(xp: Ops, x: Array) -> Array:
    """Return ``√x`` of x >= 0, with the gradient 0 at 0, where that of the root is infinite."""
    some = xp.greater(x, xp.zeros_like(x))
    return xp.where(some, xp.sqrt(xp.where(some, x, xp.ones_like(x))), xp.zeros_like(x))
