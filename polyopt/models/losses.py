"""Losses and metrics, written once against ``Ops``."""

from __future__ import annotations

from polyopt.backend import registry
from polyopt.core.ops import Array, Ops
from polyopt.core.sample_weights import weighted_mean


def default_loss(task: str) -> str:
    """The loss that suits a task.

    >>> default_loss("regression")
    'mean_squared_error'
    """
    return "mean_squared_error" if task == "regression" else "cross_entropy"


def one_hot(xp: Ops, labels: Array, classes: int, like: Array) -> Array:
    """Integer labels (n,) as rows with a one: shape (n, classes), dtype of ``like``."""
    # Beside the labels, but for what is traced: that lies nowhere yet.
    device = None if registry.of(labels).is_traced(labels) else labels.device
    columns = xp.arange(classes, dtype=labels.dtype, device=device)
    return xp.astype(xp.equal(xp.expand_dims(labels, axis=1), columns), like.dtype)


def mean_squared_error(xp: Ops, prediction: Array, target: Array, *, weights: Array | None = None) -> Array:
    """The mean of ``(prediction - target)²`` over all elements, shapes alike: a 0-d array.

    ``weights`` of shape (n,) are those of the samples, the first axis: see ``weighted_mean``.

    >>> import numpy as np
    >>> float(mean_squared_error(np, np.array([[1.0], [2.0]]), np.array([[1.0], [4.0]])))
    2.0
    """
    difference = prediction - target
    square = difference * difference
    if weights is None:
        return xp.mean(square)
    return weighted_mean(xp, xp.mean(xp.reshape(square, (int(square.shape[0]), -1)), axis=-1), weights)


def log_softmax(xp: Ops, logits: Array) -> Array:
    """``log(exp(z) / Σ exp(z))`` over the last axis, without overflow: z - max z first.

    >>> import numpy as np
    >>> log_softmax(np, np.array([[1e4, 0.0]])).tolist()
    [[0.0, -10000.0]]
    """
    own = getattr(xp, "log_softmax", None)
    if own is not None:
        return own(logits)
    shifted = logits - xp.max(logits, axis=-1, keepdims=True)
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))


def cross_entropy(
    xp: Ops, logits: Array, target: Array, *, label_smoothing: float = 0.0, weights: Array | None = None
) -> Array:
    """The mean of ``-Σ q·log softmax(z)`` over the samples: a 0-d array.

    Parameters
    ----------
    logits
        z, of shape (n, classes).
    target
        Integer labels of shape (n,), or probabilities of shape (n, classes).
    label_smoothing
        α in [0, 1): q = (1-α)·target + α/classes (Szegedy et al., 2016, section 7).
    weights
        Of the samples, of shape (n,): see ``weighted_mean``.

    Two classes are a softmax over two columns.

    >>> import numpy as np
    >>> round(float(cross_entropy(np, np.zeros((3, 4)), np.array([0, 1, 3]))), 6)
    1.386294
    """
    own = getattr(xp, "cross_entropy", None)
    if own is not None and weights is None:
        return own(logits, target, label_smoothing)
    classes = int(logits.shape[-1])
    if len(target.shape) == 1:
        target = one_hot(xp, target, classes, logits)
    if label_smoothing:
        target = target * (1.0 - label_smoothing) + label_smoothing / classes
    return -weighted_mean(xp, xp.sum(target * log_softmax(xp, logits), axis=-1), weights)


def accuracy(xp: Ops, logits: Array, target: Array) -> Array:
    """The fraction of samples whose largest logit is the label's: a 0-d array; ``target`` as above.

    >>> import numpy as np
    >>> float(accuracy(np, np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([1, 1])))
    0.5
    """
    if len(target.shape) == 1:
        target = one_hot(xp, target, int(logits.shape[-1]), logits)
    right = xp.equal(xp.argmax(logits, axis=-1), xp.argmax(target, axis=-1))
    return xp.mean(xp.astype(right, logits.dtype))
