"""Checks of labels on the host, before training: what a compiled loss can't look at."""

from __future__ import annotations

from typing import Any

import numpy as np

from polyopt.backend import registry
from polyopt.core.errors import InputError


def check_target(target: Any, classes: int, *, tolerance: float = 1e-3, what: str = "target") -> None:
    """Refuse labels that no distillation loss can use. A no-op on sound ones; run it once over a data set.

    Parameters
    ----------
    target
        An array of any framework: integer labels of shape (n,), each in [0, ``classes``), or probabilities of
        shape (n, ``classes``), none below 0, each row with the sum 1.
    classes
        The number of classes of student and teacher.
    tolerance
        How far from 1 a sum may be.
    what
        What the labels are called in errors.

    Raises
    ------
    InputError
        It names the first sample that is wrong, what was found there and what was expected.

    Examples
    --------
    >>> check_target(np.array([0, 2, 1]), classes=3)
    >>> check_target(np.array([[0.5, 0.6]]), classes=2)
    Traceback (most recent call last):
        ...
    polyopt.core.errors.InputError: target: sample 0 has probabilities with the sum 1.1; expected 1
    """
    host = np.asarray(registry.of(target).to_numpy(target))
    if host.ndim == 1 and host.dtype.kind in "iu":
        wrong = (host < 0) | (host >= classes)
        if wrong.any():
            i = int(np.flatnonzero(wrong)[0])
            raise InputError(f"{what}: sample {i} has the label {host[i]}; expected one in [0, {classes})")
        return
    if host.shape[1:] != (classes,) or host.dtype.kind in "iub":
        raise InputError(
            f"{what}: shape {host.shape} and dtype {host.dtype}; expected integer labels (n,) or "
            f"probabilities (n, {classes})"
        )
    host = host.astype(np.float64)
    bad = ~(np.isfinite(host) & (host >= 0)).all(axis=1)
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        j = int(np.flatnonzero(~(np.isfinite(host[i]) & (host[i] >= 0)))[0])
        raise InputError(
            f"{what}: sample {i} has the probability {host[i, j]:.6g} for class {j}; "
            "expected a number in [0, 1]"
        )
    sums = host.sum(axis=1)
    off = np.abs(sums - 1.0) > tolerance
    if off.any():
        i = int(np.flatnonzero(off)[0])
        raise InputError(f"{what}: sample {i} has probabilities with the sum {sums[i]:.6g}; expected 1")
