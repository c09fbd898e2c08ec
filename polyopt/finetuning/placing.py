"""New arrays where others lie."""

from __future__ import annotations

from typing import Any

from polyopt.backend import registry
from polyopt.core.ops import Array


def beside(like: Array, values: Any, dtype: str | None = None) -> Array:
    """Put the host array ``values`` on the framework and the device of ``like``, by default in its dtype.

    Examples
    --------
    >>> import numpy as np
    >>> beside(np.float32([1.0]), np.float64([2.0])).dtype.name
    'float32'
    """
    backend = registry.of(like)
    made, device = (
        backend.from_numpy(values, dtype=dtype or backend.dtype_name(like)),
        backend.device_name(like),
    )
    # Where it lies there already it is not bound to it, as others aren't: JAX compiles anew for that.
    return made if backend.device_name(made) == device else backend.to_device(made, device)
