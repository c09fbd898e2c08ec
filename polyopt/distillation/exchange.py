"""An array from one framework to another, over shared memory where both can."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_compat

from polyopt.backend.protocol import Backend
from polyopt.core.ops import Array

REFUSALS = (AttributeError, BufferError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What frameworks raise where they can't take an array over DLPack."""


def transfer(x: Array, source: Backend, target: Backend, like: Array) -> Array:
    """Move ``x`` to another framework, in the same dtype and values, to the device of ``like``.

    Through DLPack where both frameworks and the device can: no copy is made, so the array must not be written
    to. Else through the host.

    Parameters
    ----------
    x
        An array of ``source``.
    source
        The backend that it is of.
    target
        The backend that it goes to.
    like
        An array of ``target``, on whose device the result lies.

    Returns
    -------
    Array
        Of ``target``, a constant to any gradient.

    Raises
    ------
    InputError
        Where the target lacks the dtype: it says which.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt import get_backend
    >>> numpy = get_backend("numpy")
    >>> transfer(np.array([1.0]), numpy, numpy, like=np.zeros(1)).tolist()
    [1.0]
    """
    x = source.stop_gradient(x)
    if source is target and target.is_traced(like):
        return x  # what is traced lies nowhere yet
    device = target.device_name(like)
    if source is target:
        return x if source.device_name(x) == device else source.to_device(x, device)
    take = _taker(target, like)
    if take is not None:
        try:
            taken = take(x)
            if target.dtype_name(taken) == source.dtype_name(x) and target.device_name(taken) == device:
                return taken
        except REFUSALS:
            pass
    return target.from_numpy(source.to_numpy(x), dtype=source.dtype_name(x), device=device)


def _taker(target: Backend, like: Array) -> Callable[[Any], Array] | None:
    """Return ``from_dlpack`` of the framework of ``like``; ``None`` where it offers none (TensorFlow)."""
    try:
        namespace = array_api_compat.array_namespace(target.stop_gradient(like))
    except REFUSALS:
        return None
    return getattr(namespace, "from_dlpack", None)
