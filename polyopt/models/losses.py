"""Losses and metrics, written once against ``Ops``."""

from __future__ import annotations

from collections.abc import Sequence

from polyopt.backend import registry
from polyopt.core.errors import InputError
from polyopt.core.ops import Array, Ops
from polyopt.core.sample_weights import counted, weighted_mean

NAN = float("nan")


def default_loss(task: str) -> str:
    """Name the loss that suits a task.

    Examples
    --------
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
    """Return the mean of ``(prediction - target)²`` over all elements: a 0-d array.

    Parameters
    ----------
    xp
        The backend's operations.
    prediction
        An array of any shape.
    target
        An array of the same shape.
    weights
        Of the samples, of shape (n,), the first axis: see ``weighted_mean``. A sample of weight 0 counts
        nothing in the loss and in its gradient, whatever it holds.

    Returns
    -------
    Array
        0-d, of the prediction's dtype.

    Raises
    ------
    InputError
        For shapes that differ: (n, 1) and (n,) would be broadcast to (n, n).

    Examples
    --------
    >>> import numpy as np
    >>> float(mean_squared_error(np, np.array([[1.0], [2.0]]), np.array([[1.0], [4.0]])))
    2.0
    """
    _check_shapes("mean_squared_error", "prediction", prediction, target)
    prediction, target = counted(xp, weights, prediction, target)
    difference = prediction - target
    square = difference * difference
    if weights is None:
        return xp.mean(square)
    return weighted_mean(xp, xp.mean(xp.reshape(square, (int(square.shape[0]), -1)), axis=-1), weights)


def log_softmax(xp: Ops, logits: Array) -> Array:
    """Return ``log(exp(z) / Σ exp(z))`` over the last axis, without overflow: z - max z first.

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
    xp: Ops,
    logits: Array,
    target: Array,
    *,
    label_smoothing: float = 0.0,
    weights: Array | None = None,
    ignore_index: int | None = None,
) -> Array:
    """Return the mean of ``-Σ q·log softmax(z)`` over the samples, with 0·log 0 = 0.

    Parameters
    ----------
    logits
        z, of shape (n, classes).
    target
        Integer labels of shape (n,), or probabilities of shape (n, classes).
    label_smoothing
        α in [0, 1): q = (1-α)·target + α/classes (Szegedy et al., 2016, section 7).
    weights
        Of the samples, of shape (n,): see ``weighted_mean``. A sample of weight 0 counts nothing in the loss
        and in its gradient, whatever it holds.
    ignore_index
        A label whose samples count nothing, as if their weight were 0; -100 is PyTorch's.

    Returns
    -------
    Array
        0-d, of the logits' dtype. NaN where no sample counts.

    Raises
    ------
    InputError
        For a label of a sample that counts and is none of the classes. Where labels can't be looked at,
        inside of a compiled function or on an accelerator, the loss is NaN instead. For labels of another
        shape or of no integer dtype.

    Examples
    --------
    Two classes are a softmax over two columns.

    >>> import numpy as np
    >>> round(float(cross_entropy(np, np.zeros((3, 4)), np.array([0, 1, 3]))), 6)
    1.386294
    >>> round(float(cross_entropy(np, np.zeros((2, 4)), np.array([0, -100]), ignore_index=-100)), 6)
    1.386294
    """
    classes = int(logits.shape[-1])
    if len(target.shape) == 1:
        weights, inside = counted_labels(xp, "cross_entropy", target, classes, logits, weights, ignore_index)
        own = getattr(xp, "cross_entropy", None)
        if own is not None and weights is None and inside is None:
            return own(logits, target, label_smoothing)
        (logits,) = counted(xp, weights, logits)
        target = one_hot(xp, target, classes, logits)
        if inside is not None:
            rows = xp.expand_dims(inside, axis=1)
            target = xp.where(xp.broadcast_to(rows, tuple(target.shape)), target, xp.full_like(target, NAN))
    else:
        _check_shapes("cross_entropy", "logits", logits, target)
        logits, target = counted(xp, weights, logits, target)
    if label_smoothing:
        target = target * (1.0 - label_smoothing) + label_smoothing / classes
    none = xp.equal(target, xp.zeros_like(target))
    terms = target * xp.where(none, xp.zeros_like(logits), log_softmax(xp, logits))
    return -weighted_mean(xp, xp.sum(terms, axis=-1), weights)


def counted_labels(
    xp: Ops,
    owner: str,
    labels: Array,
    classes: int,
    like: Array,
    weights: Array | None,
    ignore_index: int | None,
) -> tuple[Array | None, Array | None]:
    """Return the samples' weights, 0 for ignored ones, and which labels are classes.

    The second is ``None`` where all labels that count could be looked at and are classes.

    Raises
    ------
    InputError
        For a label of a sample that counts and is none of the classes: it names the first. For labels of
        another shape or of no integer dtype.
    """
    if not xp.isdtype(labels.dtype, "integral"):
        raise InputError(
            f"{owner}: the labels have dtype {registry.of(labels).dtype_name(labels)}; expected integers, or "
            "probabilities of shape (n, classes)"
        )
    if len(like.shape) != 2 or not _alike(labels.shape[:1], like.shape[:1]):
        raise InputError(
            f"{owner}: the logits have shape {tuple(like.shape)}, for labels of shape {tuple(labels.shape)}; "
            "expected (n, classes) and (n,)"
        )
    if ignore_index is not None:
        used = xp.astype(xp.not_equal(labels, xp.full_like(labels, ignore_index)), like.dtype)
        # Not a product, which is NaN for a weight that isn't finite.
        weights = (
            used if weights is None else xp.where(xp.greater(used, 0.0), weights, xp.zeros_like(weights))
        )
    backend = registry.of(labels)
    given = [labels] if weights is None else [labels, weights]
    if any(backend.is_traced(x) or backend.device_name(x) != "cpu" for x in given):
        number = xp.astype(labels, xp.int32)
        inside = xp.logical_and(
            xp.greater_equal(number, xp.zeros_like(number)), xp.less(number, xp.full_like(number, classes))
        )
        if weights is not None:
            inside = xp.logical_or(inside, xp.logical_not(xp.greater(weights, xp.zeros_like(weights))))
        return weights, inside
    found = backend.to_numpy(labels)
    wrong = (found < 0) | (found >= classes)
    if weights is not None:
        wrong = wrong & (backend.to_numpy(weights) > 0)
    if wrong.any():
        i = int(wrong.argmax())
        raise InputError(
            f"{owner}: the label of sample {i} is {int(found[i])}; expected 0 to {classes - 1}, or "
            f"ignore_index={int(found[i])} to leave such samples out"
        )
    return weights, None


def _alike(one: Sequence[int | None], other: Sequence[int | None]) -> bool:
    """Return True if two shapes are the same, as far as they are known."""
    return len(one) == len(other) and all(None in (a, b) or a == b for a, b in zip(one, other, strict=True))


def _check_shapes(owner: str, name: str, found: Array, target: Array) -> None:
    if not _alike(found.shape, target.shape):
        raise InputError(
            f"{owner}: the {name} has shape {tuple(found.shape)} and the target {tuple(target.shape)}; "
            "expected the same, for they would be broadcast"
        )


def accuracy(
    xp: Ops,
    logits: Array,
    target: Array,
    *,
    weights: Array | None = None,
    ignore_index: int | None = None,
) -> Array:
    """Return the fraction of samples whose largest logit is the label's: a 0-d array.

    Arguments as of ``cross_entropy``. A sample with a NaN among its logits is wrong, whatever its label.

    Examples
    --------
    >>> import numpy as np
    >>> float(accuracy(np, np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([1, 1])))
    0.5
    """
    guess = xp.argmax(logits, axis=-1)
    if len(target.shape) == 1:
        classes = int(logits.shape[-1])
        weights, inside = counted_labels(xp, "accuracy", target, classes, logits, weights, ignore_index)
        right = xp.equal(guess, xp.astype(target, guess.dtype))
    else:
        inside = None
        _check_shapes("accuracy", "logits", logits, target)
        right = xp.equal(guess, xp.argmax(target, axis=-1))
    known = xp.all(xp.logical_not(xp.isnan(logits)), axis=-1)  # else frameworks differ in the largest
    hits = xp.astype(xp.logical_and(right, known), logits.dtype)
    if inside is not None:
        hits = xp.where(inside, hits, xp.full_like(hits, NAN))
    return weighted_mean(xp, hits, weights)
