"""Arrays and whole runs from one framework to another."""

from __future__ import annotations

from typing import Any

from polyopt.backend import registry
from polyopt.backend.protocol import Backend
from polyopt.core import tree
from polyopt.core.errors import InputError
from polyopt.core.tree import Tree


def convert(values: Tree, backend: str | Backend, *, device: str | None = None) -> Tree:
    """Copy a tree to another framework: same dtypes, same bits.

    It may be parameters, gradients or an optimizer's state; what is no array (a step count, ``None``) stays
    as it is. So a run moves in mid-training: convert its parameters and its state, and go on.

    Parameters
    ----------
    values
        A tree of arrays of any framework.
    backend
        A name, or a backend.
    device
        Where the arrays go; by default the framework's own.

    Returns
    -------
    tree
        The structure of ``values``.

    Raises
    ------
    InputError
        Where the framework lacks a leaf's dtype: it names the leaf.

    Examples
    --------
    >>> import numpy as np
    >>> convert({"w": np.ones(2), "step": 3}, "numpy")
    {'w': array([1., 1.]), 'step': 3}
    """
    target = registry.by_name(backend) if isinstance(backend, str) else backend
    flat = tree.flatten(values)

    def one(path: str, x: Any) -> Any:
        if x is None or isinstance(x, bool | int | float | str):
            return x
        source = registry.of(x)
        try:
            return target.from_numpy(source.to_numpy(x), dtype=source.dtype_name(x), device=device)
        except InputError as e:
            raise InputError(f"leaf {path!r}: {e}") from e

    return flat.unflatten(one(path, x) for path, x in zip(flat.paths, flat.leaves, strict=True))
