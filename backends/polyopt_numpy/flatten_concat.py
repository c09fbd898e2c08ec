"""Arrays one after the other in a flat one, and back, also inside a loss that is being differentiated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np


def join(arrays: Sequence[Any]) -> Any:
    """Put the elements of ``arrays`` one after the other, also in a loss that is being differentiated."""
    if all(isinstance(x, np.ndarray | np.generic) for x in arrays):
        return np.concatenate([np.ravel(x) for x in arrays])
    from polyopt_numpy import differentiable

    return differentiable.concat(list(arrays), axis=None)


def split(x: Any, shapes: Sequence[tuple[int, ...]]) -> list[Any]:
    """Cut ``x`` into views; autograd adds each one's gradient into place, without zeros for the rest."""
    ends = accumulate(map(math.prod, shapes), initial=0)
    parts = zip(pairwise(ends), shapes, strict=True)
    return [x[a:b].reshape(shape) for (a, b), shape in parts]
