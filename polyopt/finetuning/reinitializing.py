"""Selected layers drawn anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from polyopt.backend import registry
from polyopt.core import tree
from polyopt.core.errors import InputError
from polyopt.core.rule import Pattern
from polyopt.core.tree import Tree
from polyopt.finetuning.placing import beside
from polyopt.finetuning.selection import assigned
from polyopt.models.initializers import Initializer


def reinitialize(
    params: Tree,
    initializers: Mapping[str, Initializer] | Sequence[tuple[Pattern, Initializer]],
    seed: int = 0,
) -> Tree:
    """Draw the leaves that a pattern matches anew; the others are the same arrays.

    A draw is keyed by (``seed``, path), as ``Initializer.init``
    does it, so it is the same bits on every backend, whatever else is drawn. Shape, dtype and
    device stay. Reset the leaves' slots by ``reset``.

    Parameters
    ----------
    params
        A tree of arrays of any framework.
    initializers
        ``{pattern: initializer}``; the first pattern that matches a path counts.
    seed
        Another one gives other values.

    Returns
    -------
    tree
        The structure of ``params``.

    Raises
    ------
    InputError
        For a pattern that matches no path: it names the nearest ones. Nothing was changed.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt.models.initializers import Constant, Glorot
    >>> params = {"head": {"weight": np.zeros((3, 2)), "bias": np.ones(2)}}
    >>> new = reinitialize(params, {"bias$": Constant(0.5), "weight$": Glorot()}, seed=1)
    >>> new["head"]["bias"].tolist(), new["head"]["weight"].shape
    ([0.5, 0.5], (3, 2))
    """
    chosen = assigned(params, initializers)
    for path, initializer in chosen.items():
        if not isinstance(initializer, Initializer):
            raise InputError(f"reinitialize: leaf {path!r} has {initializer!r}; expected an initializer")
    flat = tree.flatten(params)
    return flat.unflatten(
        x if x is None or path not in chosen else _drawn(x, chosen[path], seed, path)
        for path, x in zip(flat.paths, flat.leaves, strict=True)
    )


def _drawn(like: Any, initializer: Initializer, seed: int, path: str) -> Any:
    values = initializer.sample(tuple(like.shape), seed, path, registry.of(like).dtype_name(like))
    return beside(like, values)
