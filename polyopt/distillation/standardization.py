"""Logit standardization: the student follows the shape of the teacher's logits, not their size."""

from __future__ import annotations

from polyopt.core.errors import InputError, nearest
from polyopt.core.ops import Array, Ops
from polyopt.distillation.base import safe_root, wide

CONVENTIONS = {"paper": (0, 0.0), "torch": (1, 1e-7)}
"""``(degrees of freedom taken off, ε)`` of the deviation."""


def standardized(xp: Ops, logits: Array, convention: str = "paper") -> Array:
    """Give each row of the logits mean 0 and deviation 1.

    Sun et al., "Logit standardization in knowledge distillation", 2024, Algorithm 1: ``(z - mean z)/σ(z)``,
    before the division by the temperature. Their code (``"torch"``) divides by the deviation with
    classes - 1 in it, plus 1e-7; the paper's has classes and adds nothing. A constant row becomes 0, with
    the gradient 0.

    Parameters
    ----------
    xp
        As the loss gets it.
    logits
        Of shape (n, classes), floating.
    convention
        ``"paper"`` or ``"torch"``, as above.

    Returns
    -------
    Array
        Of shape (n, classes), at least float32.

    Examples
    --------
    >>> import numpy as np
    >>> import polyopt_numpy.ops as xp
    >>> standardized(xp, np.array([[1.0, 3.0], [5.0, 5.0]])).tolist()
    [[-1.0, 1.0], [0.0, 0.0]]
    """
    if convention not in CONVENTIONS:
        raise InputError(f"standardized: convention = {convention!r}; {nearest(convention, CONVENTIONS)}")
    less, eps = CONVENTIONS[convention]
    logits = wide(xp, logits)
    classes = int(logits.shape[-1])
    if classes < 2:
        raise InputError(f"standardized: the logits have {classes} classes; expected at least 2")
    centred = logits - xp.mean(logits, axis=-1, keepdims=True)
    variance = xp.sum(centred * centred, axis=-1, keepdims=True) / (classes - less)
    deviation = safe_root(xp, variance)
    none = xp.equal(deviation, xp.zeros_like(deviation))
    return centred / (xp.where(none, xp.ones_like(deviation), deviation) + eps)
