"""Distillation of what lies inside: hints (features) and attention maps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from polyopt.core.errors import InputError
from polyopt.core.ops import Array, Ops
from polyopt.core.rule import static
from polyopt.core.sample_weights import counted, weighted_mean
from polyopt.distillation.base import DistillationLoss, InnerLoss, check_weights, pair, safe_root


@dataclass(frozen=True)
class FeatureHint(DistillationLoss):
    """FitNets' hint: the student's features, projected, come near the teacher's (Romero et al., 2015).

    ``½·‖r(student) - teacher‖²``, eq. 3, summed over the features and averaged over the batch (``"paper"``),
    or the mean of the squares over all elements (``"torch"``, ``"keras"``: ``F.mse_loss``,
    ``keras.distillation.FeatureDistillation``).

    Parameters
    ----------
    convention
        ``"paper"``, ``"torch"`` or ``"keras"``; it fills in ``reduction``.
    reduction
        ``"half_sum"`` or ``"mean"``, as above.

    Examples
    --------
    >>> import numpy as np
    >>> import polyopt_numpy.ops as xp
    >>> loss = FeatureHint(convention="torch")
    >>> student, projection = np.array([[1.0, 2.0]]), np.array([[1.0], [1.0]])
    >>> float(loss(xp, student, np.array([[5.0]]), projection))
    4.0
    """

    CONVENTIONS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"reduction": "half_sum"},
        "torch": {"reduction": "mean"},
        "keras": {"reduction": "mean"},
    }

    convention: str = static("paper")
    reduction: str = static(None, "half_sum", "mean")

    def __call__(
        self,
        xp: Ops,
        student: Array,
        teacher: Array,
        projection: Array | None = None,
        *,
        name: str = "features",
        weights: Array | None = None,
    ) -> Array:
        """Return the loss: a 0-d array.

        Parameters
        ----------
        student
            Features of shape (n, …, s).
        teacher
            Features of shape (n, …, t), with t = s where there is no projection.
        projection
            r, a matrix of shape (s, t) over the last axis (on channels: a 1x1 convolution); it may be a
            parameter, and is differentiated.
        name
            What the features are called in errors.
        weights
            Of the samples, of shape (n,): the mean over them is weighted
            (``weighted_mean``).

        Raises
        ------
        InputError
            Where the shapes don't fit: it names the features and both shapes.
        """
        owner = f"{type(self).__name__}: {name!r}"
        mine, its = tuple(student.shape), tuple(teacher.shape)
        if projection is not None:
            shape = tuple(projection.shape)
            if len(shape) != 2 or shape != (mine[-1], its[-1]):
                raise InputError(
                    f"{owner}: the projection has shape {shape}; expected {(mine[-1], its[-1])}, from the "
                    "student's features to the teacher's"
                )
        if not mine or (mine if projection is None else (*mine[:-1], its[-1])) != its:
            how = "the same shape" if projection is None else "the same shape but for the last axis"
            raise InputError(f"{owner}: the student's have shape {mine}, the teacher's {its}; expected {how}")
        check_weights(owner, weights, mine[0])
        student, teacher = counted(xp, weights, *pair(xp, student, teacher))
        if projection is not None:
            student = xp.matmul(student, xp.astype(projection, student.dtype))
        difference = student - teacher
        square = difference * difference
        if self.reduction == "mean":
            return _mean(xp, square, weights)
        return 0.5 * weighted_mean(xp, xp.sum(xp.reshape(square, (mine[0], -1)), axis=-1), weights)


@dataclass(frozen=True)
class AttentionTransfer(InnerLoss):
    """Activation-based attention transfer (Zagoruyko & Komodakis, 2017, section 3.1).

    An attention map is Q = vec(Σ_channels |A|^p), divided by its 2-norm. ``"paper"``, eq. 2:
    ``½·‖Q_S - Q_T‖₂``, averaged over the batch, for one layer and β = 1: add up layers, times β. ``"torch"``,
    the authors' code: the mean of the squared differences over samples and places.

    Activations are of shape (n, …, channels), or (n, channels, …); the numbers of channels may differ. A map
    of zeros is not divided; where the two maps agree, the gradient is 0.

    Parameters
    ----------
    power
        p: 1, 2 (theirs) or 4.
    channels
        Which axis of the activations is summed away: the ``"last"``, or the ``"first"`` after the batch.
    convention
        Fills in ``distance``: ``"norm"`` or ``"squares"``.
    distance
        ``"norm"``, of two maps, or ``"squares"``, the mean squared difference.

    Examples
    --------
    >>> import numpy as np
    >>> import polyopt_numpy.ops as xp
    >>> maps = np.arange(12.0).reshape(1, 2, 2, 3)
    >>> float(AttentionTransfer()(xp, maps, 5 * maps).round(12))
    0.0
    """

    CONVENTIONS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"distance": "norm"},
        "torch": {"distance": "squares"},
    }

    power: int = static(2, 1, 2, 4)
    channels: str = static("last", "last", "first")
    convention: str = static("paper")
    distance: str = static(None, "norm", "squares")

    def _unfit(self, student: tuple[int, ...], teacher: tuple[int, ...]) -> str | None:
        mine, its = self._places(student), self._places(teacher)
        if mine and mine == its:
            return None
        return "(n, …, channels) with the same places (interpolate one first)"

    def _apart(self, xp: Ops, student: Array, teacher: Array, weights: Array | None) -> Array:
        difference = self._map(xp, student) - self._map(xp, teacher)
        square = difference * difference
        if self.distance == "squares":
            return _mean(xp, square, weights)
        return 0.5 * weighted_mean(xp, safe_root(xp, xp.sum(square, axis=-1)), weights)

    def _places(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(shape) < 3:
            return ()
        return shape[:-1] if self.channels == "last" else (shape[0], *shape[2:])

    def _map(self, xp: Ops, x: Array) -> Array:
        power = xp.abs(x) if self.power == 1 else x * x
        if self.power == 4:
            power = power * power
        summed = xp.sum(power, axis=-1 if self.channels == "last" else 1)
        flat = xp.reshape(summed, (int(x.shape[0]), -1))
        norm = safe_root(xp, xp.sum(flat * flat, axis=-1, keepdims=True))
        none = xp.equal(norm, xp.zeros_like(norm))
        return flat / xp.where(none, xp.ones_like(norm), norm)


def _mean(xp: Ops, x: Array, weights: Array | None) -> Array:
    """Return the mean of all elements; with weights, of each sample's mean."""
    if weights is None:
        return xp.mean(x)
    return weighted_mean(xp, xp.mean(xp.reshape(x, (int(x.shape[0]), -1)), axis=-1), weights)
