"""Average over samples that count differently."""

from __future__ import annotations

from polyopt.core.ops import Array, Ops


def weighted_mean(xp: Ops, values: Array, weights: Array | None) -> Array:
    """``Σ w·v / Σ w`` over samples: a 0-d array of the dtype of ``values``; their mean without weights.

    A sample of weight 0 counts nothing, also where its value is infinite or NaN. Values of a batch and of
    that batch with such samples added have the same mean up to the order of the sum.

    Parameters
    ----------
    values
        Of shape (n,).
    weights
        w >= 0 of shape (n,), not all 0, in any floating dtype; they are summed in float32 at least.

    >>> import numpy as np
    >>> import polyopt_numpy.ops as xp
    >>> float(weighted_mean(xp, np.array([1.0, 4.0, np.inf]), np.array([1.0, 2.0, 0.0])))
    3.0
    """
    if weights is None:
        return xp.mean(values)
    own = xp.astype(weights, values.dtype)
    counted = xp.where(xp.greater(own, xp.zeros_like(own)), values, xp.zeros_like(values))
    total = xp.sum(own * counted)
    wide = xp.astype(weights, xp.float32) if xp.finfo(weights.dtype).bits < 32 else weights
    return total / xp.astype(xp.sum(wide), values.dtype)
