"""Average over samples that count differently."""

from __future__ import annotations

from polyopt.core.errors import InputError
from polyopt.core.ops import Array, Ops


def weighted_mean(xp: Ops, values: Array, weights: Array | None) -> Array:
    """Return ``Σ w·v / Σ w`` over samples, 0-d, of the dtype of ``values``; the mean without weights.

    A sample of weight 0 counts nothing, also where its value is infinite or NaN. Values of a batch and of
    that batch with such samples added have the same mean up to the order of the sum.

    Parameters
    ----------
    values
        Of shape (n,).
    weights
        w >= 0 of shape (n,), not all 0, in any floating dtype; they are summed in float32 at least.

    Raises
    ------
    InputError
        For weights of another shape or of no floating dtype.

    Examples
    --------
    >>> import numpy as np
    >>> import polyopt_numpy.ops as xp
    >>> float(weighted_mean(xp, np.array([1.0, 4.0, np.inf]), np.array([1.0, 2.0, 0.0])))
    3.0
    """
    if weights is None:
        return xp.mean(values)
    check_weights(xp, weights, values)
    own = xp.astype(weights, values.dtype)
    counted = xp.where(xp.greater(own, xp.zeros_like(own)), values, xp.zeros_like(values))
    total = xp.sum(own * counted)
    wide = xp.astype(weights, xp.float32) if xp.finfo(weights.dtype).bits < 32 else weights
    return total / xp.astype(xp.sum(wide), values.dtype)


def check_weights(xp: Ops, weights: Array, samples: Array) -> None:
    """Refuse weights that are not one floating number for each of ``samples``: they would be broadcast.

    Raises
    ------
    InputError
        It says what the weights are.
    """
    shape = getattr(weights, "shape", None)
    if shape is None:
        raise InputError(f"weights are a {type(weights).__name__}; expected an array of shape (n,)")
    if len(shape) != 1 or (None not in (shape[0], samples.shape[0]) and shape[0] != samples.shape[0]):
        raise InputError(
            f"weights have shape {tuple(shape)}; expected one for each sample: ({samples.shape[0]},)"
        )
    if not xp.isdtype(weights.dtype, "real floating"):
        name = getattr(weights.dtype, "name", str(weights.dtype).removeprefix("torch."))
        raise InputError(f"weights have dtype {name}; expected a floating one")


def counted(xp: Ops, weights: Array | None, *arrays: Array) -> tuple[Array, ...]:
    """Replace the samples of weight 0 in ``arrays`` by zeros, so that nothing they hold reaches a gradient.

    Multiplying a loss by 0 is not enough: the gradient of a sample that holds NaN would be 0·NaN.

    Parameters
    ----------
    weights
        Of shape (n,), or ``None``: nothing is replaced.
    arrays
        Floating arrays whose first axis are the n samples.

    Returns
    -------
    tuple
        The arrays, in the same order, shapes and dtypes.

    Examples
    --------
    >>> import numpy as np
    >>> import polyopt_numpy.ops as xp
    >>> counted(xp, np.array([1.0, 0.0]), np.array([[1.0], [np.nan]]))[0].tolist()
    [[1.0], [0.0]]
    """
    if weights is None:
        return arrays
    check_weights(xp, weights, arrays[0])
    there = xp.greater(weights, xp.zeros_like(weights))
    found = []
    for x in arrays:
        rows = xp.reshape(there, (int(x.shape[0]), *(1,) * (len(x.shape) - 1)))
        found.append(xp.where(xp.broadcast_to(rows, tuple(x.shape)), x, xp.zeros_like(x)))
    return tuple(found)
