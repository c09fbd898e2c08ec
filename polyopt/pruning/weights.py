"""Clipping of the weights themselves: to a limit, to zero, or a random share of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from polyopt.backend import registry
from polyopt.core import tree
from polyopt.core.errors import InputError, nearest
from polyopt.core.ops import Array
from polyopt.core.rule import Pattern
from polyopt.core.tree import Tree
from polyopt.pruning.criteria import check_limits, draws, random_masks
from polyopt.pruning.leaves import mask_like, pruned, selected
from polyopt.pruning.ranking import keep_highest


def clip_weights(
    params: Tree,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    to: str = "limit",
    share: float = 1.0,
    seed: int = 0,
    step: int = 0,
    select: Pattern | None = None,
) -> Tree:
    """Bring weights below ``minimum`` and above ``maximum`` to the limit, or to zero.

    To the limit as in Wasserstein GANs (Arjovsky et al., 2017, Algorithm 1) by default; ``to="zero"`` drops
    them. A NaN stays. Limits are rounded to the leaf's dtype.

    Parameters
    ----------
    params
        A tree of floating-point arrays of any framework; it isn't changed.
    minimum, maximum
        The limits, at least one.
    to
        ``"limit"`` or ``"zero"``.
    share
        Which share of the weights is looked at, in (0, 1]: of a leaf of n, ``round(share · n)`` drawn by
        (``seed``, path, ``step``); the others stay, whatever they are. 1 looks at all.
    select
        Which leaves: a regular expression searched for in the path, or a predicate. By default all that are
        floating-point, biases too.
    seed, step
        They key the draw of a ``share`` below 1.

    Returns
    -------
    tree
        The structure of ``params``.

    Raises
    ------
    InputError
        Without a limit, where they cross, for an unknown ``to``, a share outside (0, 1] or a pattern that
        matches no parameter.

    Examples
    --------
    >>> import numpy as np
    >>> params = {"w": np.array([-3.0, 0.5, 2.0])}
    >>> clip_weights(params, minimum=-1.0, maximum=1.0)["w"].tolist()
    [-1.0, 0.5, 1.0]
    >>> clip_weights(params, maximum=1.0, to="zero")["w"].tolist()
    [-3.0, 0.5, 0.0]
    """
    owner = "clip_weights"
    if minimum is None and maximum is None:
        raise InputError(f"{owner}: no limit; expected minimum or maximum")
    check_limits(owner, {"minimum": minimum, "maximum": maximum, "share": share})
    if minimum is not None and maximum is not None and minimum > maximum:
        raise InputError(f"{owner}: minimum = {minimum!r} is above maximum = {maximum!r}")
    if to not in ("limit", "zero"):
        raise InputError(f"{owner}: to = {to!r}; {nearest(str(to), ('limit', 'zero'))}")
    if not 0 < share <= 1:
        raise InputError(f"{owner}: share = {share!r}; expected a number in (0, 1]")
    chosen = selected(owner, params, select, matrices=False)
    inside = dict(zip(chosen.paths, (_clipped(x, minimum, maximum, to) for x in chosen.leaves), strict=True))
    if share < 1:
        # Drawn as what is pruned is, so that the count is exact.
        xp = chosen.backend.ops
        drawn = draws(chosen, seed, step)
        for path, x, numbers in zip(chosen.paths, chosen.leaves, drawn, strict=True):
            spared = keep_highest([numbers.reshape(-1)], round(share * numbers.size), [path])[0]
            inside[path] = xp.where(mask_like(chosen.backend, x, spared), x, inside[path])
    flat = tree.flatten(params)
    return flat.unflatten(inside.get(path, x) for path, x in zip(flat.paths, flat.leaves, strict=True))


def drop_weights(
    params: Tree, share: float, *, seed: int = 0, step: int = 0, select: Pattern | None = None
) -> Tree:
    """Set a random share of the weights to 0: ``round(share · n)`` of a leaf of n.

    Drawn by (``seed``, path, ``step``), so the same bits on every backend.

    Parameters
    ----------
    params
        A tree of floating-point arrays of any framework; it isn't changed.
    share
        In [0, 1).
    seed, step
        With the leaf's path they key the draw.
    select
        As of ``magnitude_masks``.

    Returns
    -------
    tree
        The structure of ``params``.

    Raises
    ------
    InputError
        For a share outside [0, 1) or one that would drop all of a leaf, and a pattern that matches nothing.

    Examples
    --------
    >>> import numpy as np
    >>> int(drop_weights({"w": np.ones((4, 5))}, 0.25)["w"].sum())
    15
    """
    masks = random_masks(params, share, seed=seed, step=step, select=select)
    return pruned(params, masks)


def _clipped(x: Array, minimum: float | None, maximum: float | None, to: str) -> Array:
    backend = registry.of(x)
    xp: Any = backend.ops
    host = registry.by_name("numpy").dtype(backend.dtype_name(x))
    value = x
    for limit, beyond in ((minimum, xp.less), (maximum, xp.greater)):
        if limit is not None:
            with np.errstate(over="ignore"):  # a limit beyond the dtype is an infinite one
                bound = xp.full_like(x, float(np.float64(limit).astype(host)))
            value = xp.where(beyond(x, bound), bound if to == "limit" else xp.zeros_like(x), value)
    return value
