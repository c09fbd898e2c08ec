"""Compute training losses and test metrics of a model, as functions of arrays of any backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from polyopt.core.ops import Array, Ops
from polyopt.core.tree import Tree
from polyopt.models import losses


@dataclass(frozen=True)
class Objective:
    """Measure a model's loss on samples and their targets; ``classes`` is 0 for regression.

    Targets are rows with a one at the class, or numbers: arrays of shape (n, outputs).
    """

    model: Any
    classes: int
    label_smoothing: float

    def __call__(self, xp: Ops, params: Tree, x: Array, y: Array) -> Array:
        """Return the mean loss that training makes small."""
        return self.of_output(xp, self.model.apply(xp, params, x), y)

    def of_output(self, xp: Ops, output: Array, y: Array, weights: Array | None = None) -> Array:
        """Return the same, of what the model said; ``weights`` of shape (n,) are those of the samples."""
        return self._loss(xp, output, y, self.label_smoothing, weights)

    def smoothed(self, y: Array) -> Array:
        """Return ``y`` as the loss takes it."""
        share = self.label_smoothing
        return (1.0 - share) * y + share / self.classes if share else y

    def metrics(self, xp: Ops, output: Array, y: Array) -> list[Array]:
        """Return the loss on the labels as they are, and the share that is right where there are classes."""
        loss = self._loss(xp, output, y, 0.0)
        return [loss, losses.accuracy(xp, output, y)] if self.classes else [loss]

    def _loss(
        self, xp: Ops, output: Array, y: Array, label_smoothing: float, weights: Array | None = None
    ) -> Array:
        if self.classes:
            return losses.cross_entropy(xp, output, y, label_smoothing=label_smoothing, weights=weights)
        return losses.mean_squared_error(xp, output, y, weights=weights)


def targets(y: Any, classes: int) -> Any:
    """Labels as rows with a one; numbers as they are: host arrays of float64.

    >>> targets(np.array([1, 0]), 2).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    return np.eye(classes)[y] if classes else y


def as_read(x: Any, dtype: str) -> Any:
    """Host samples as models read them: numbers in ``dtype``, tokens as int32.

    >>> as_read(np.array([1.0]), "float32").dtype.name, as_read(np.array([7]), "float32").dtype.name
    ('float32', 'int32')
    """
    return x.astype(dtype if x.dtype.kind == "f" else np.int32)
