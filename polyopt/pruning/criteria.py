"""Turn parameters into pruning masks by a criterion.

Masks are made on the host from the values alone, so they are the same bits on every backend. A sparsity is
met exactly: of n elements, ``round(sparsity · n)`` are pruned (Python's and torch's rounding), and of equal
ones those that come first, in the order of the leaves' paths and of a leaf's elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from polyopt.core import random
from polyopt.core.errors import InputError, nearest
from polyopt.core.ops import Array
from polyopt.core.rule import Pattern
from polyopt.core.tree import Tree
from polyopt.pruning.leaves import Masks, Selected, check_sparsity, host_masks, selected
from polyopt.pruning.ranking import keep_highest, keep_highest_in_rows

SCOPES = ("leaf", "global", "row")
LAYOUTS = ("in_out", "out_in")


def magnitude_masks(
    params: Tree,
    sparsity: float,
    *,
    scope: str = "leaf",
    select: Pattern | None = None,
    within: Mapping[str, Array] | None = None,
) -> Masks:
    """Prune the weights of the smallest magnitude (Han et al., 2015), to a sparsity that is met exactly.

    One weight's L1 and L2 norms order alike, so this is torch's ``l1_unstructured`` per leaf and its
    ``global_unstructured`` over all; they differ in which of equal magnitudes goes.

    Parameters
    ----------
    params
        A tree of floating-point arrays of any framework.
    sparsity
        The share to prune, in [0, 1).
    scope
        ``"leaf"`` prunes each leaf to it, ``"global"`` all selected leaves together.
    select
        Which leaves: a regular expression searched for in the path, or a predicate. By default those of at
        least two axes.
    within
        Masks made before: what they prune stays pruned, and counts.

    Returns
    -------
    dict
        A mask for each selected leaf.

    Raises
    ------
    InputError
        For a sparsity outside [0, 1), a pattern that matches nothing, a NaN, or masks of other parameters;
        where nothing would be left of a leaf: 0.99 of 40 weights are all of them.

    Examples
    --------
    >>> masks = magnitude_masks({"w": np.array([[0.1, -3.0], [2.0, -0.2]])}, 0.5)
    >>> masks["w"].tolist()
    [[False, True], [True, False]]
    """
    _scope("magnitude_masks", scope, SCOPES[:2])
    chosen = selected("magnitude_masks", params, select)
    return _ranked("magnitude_masks", chosen, chosen.hosts, sparsity, scope, within, magnitude=True)


def score_masks(
    scores: Tree,
    sparsity: float,
    *,
    scope: str = "leaf",
    layout: str = "in_out",
    select: Pattern | None = None,
    within: Mapping[str, Array] | None = None,
) -> Masks:
    """Prune the elements of the lowest score: what SNIP, movement pruning and Wanda do with theirs.

    Parameters
    ----------
    scores
        A tree, or ``{path: array}``, of floating-point arrays; negative ones count as lower than 0.
    sparsity, select, within
        As of ``magnitude_masks``.
    scope
        ``"leaf"``, ``"global"``, or ``"row"``: each output unit by itself (Wanda).
    layout
        Where the output units lie, for ``"row"``: along the first axis (``"out_in"``, torch) or along the
        last (``"in_out"``, Keras and JAX).

    Returns
    -------
    dict
        A mask for each selected leaf: ``{path: bool array}``, ``True`` to keep.

    Raises
    ------
    InputError
        As of ``magnitude_masks``; and for ``within`` with ``"row"``.

    Examples
    --------
    >>> score_masks({"w": np.array([[1.0, -9.0], [2.0, 3.0]])}, 0.5, scope="global")["w"].tolist()
    [[False, False], [True, True]]
    """
    owner = "score_masks"
    _scope(owner, scope, SCOPES)
    chosen = selected(owner, scores, select)
    if scope != "row":
        return _ranked(owner, chosen, chosen.hosts, sparsity, scope, within)
    if layout not in LAYOUTS:
        raise InputError(f"{owner}: layout = {layout!r}; {nearest(str(layout), LAYOUTS)}")
    if within is not None:
        raise InputError(f'{owner}: within has no meaning with scope = "row"; expected None')
    share = check_sparsity(owner, sparsity)
    kept = []
    for path, x in zip(chosen.paths, chosen.hosts, strict=True):
        if not x.ndim:
            raise InputError(f'{owner}: leaf {path!r} has shape (); expected an axis of outputs for "row"')
        axis = 0 if layout == "out_in" else x.ndim - 1
        moved = np.moveaxis(x, axis, 0)
        rows = np.ascontiguousarray(moved).reshape(moved.shape[0], math.prod(moved.shape[1:]))
        mask = keep_highest_in_rows(rows, round(share * rows.shape[1]), path)
        kept.append(np.moveaxis(mask.reshape(moved.shape), 0, axis))
    return chosen.masks(owner, f"a sparsity of {share}", kept, [None] * len(kept))


def random_masks(
    params: Tree,
    sparsity: float,
    *,
    seed: int = 0,
    step: int = 0,
    scope: str = "leaf",
    select: Pattern | None = None,
    within: Mapping[str, Array] | None = None,
) -> Masks:
    """Prune at random, to a sparsity that is met exactly; the same bits on every backend.

    Parameters
    ----------
    seed, step
        With the leaf's path they key the draw.
    params, sparsity, scope, select, within
        As of ``magnitude_masks``.

    Returns
    -------
    dict
        A mask for each selected leaf: ``{path: bool array}``, ``True`` to keep.

    Raises
    ------
    InputError
        As of ``magnitude_masks``.

    Examples
    --------
    >>> masks = random_masks({"w": np.ones((4, 5))}, 0.3, seed=1)
    >>> int(masks["w"].sum())
    14
    """
    _scope("random_masks", scope, SCOPES[:2])
    chosen = selected("random_masks", params, select)
    return _ranked("random_masks", chosen, draws(chosen, seed, step), sparsity, scope, within)


def draws(chosen: Selected, seed: int, step: int) -> list[Any]:
    """Return a random number in [0, 1) for every weight, by (``seed``, path, ``step``)."""
    return [
        random.generator(seed, f"prune:{path}", step).random(x.size).reshape(x.shape)
        for path, x in zip(chosen.paths, chosen.hosts, strict=True)
    ]


def threshold_masks(
    params: Tree,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    magnitude: float | None = None,
    select: Pattern | None = None,
    within: Mapping[str, Array] | None = None,
) -> Masks:
    """Prune weights below ``minimum``, above ``maximum`` or of a magnitude below ``magnitude``.

    A weight at a limit is kept. Limits are rounded to the leaf's dtype (float32 for halves). With several of
    them, whatever one prunes is pruned.

    Parameters
    ----------
    params, select, within
        As of ``magnitude_masks``.
    minimum, maximum, magnitude
        The limits, at least one.

    Returns
    -------
    dict
        A mask for each selected leaf: ``{path: bool array}``, ``True`` to keep.

    Raises
    ------
    InputError
        Without a limit, for one that is NaN, and as of ``magnitude_masks``.

    Examples
    --------
    >>> threshold_masks({"w": np.array([[-2.0, -0.1, 1.0]])}, minimum=-1.0, magnitude=0.5)["w"].tolist()
    [[False, False, True]]
    """
    owner = "threshold_masks"
    limits = {"minimum": minimum, "maximum": maximum, "magnitude": magnitude}
    if all(x is None for x in limits.values()):
        raise InputError(f"{owner}: no limit; expected minimum, maximum or magnitude")
    check_limits(owner, limits)
    chosen = selected(owner, params, select)
    alive = host_masks(owner, chosen, within)
    kept = []
    for path, x, before in zip(chosen.paths, chosen.hosts, alive, strict=True):
        if np.isnan(x if before is None else x.reshape(-1)[before]).any():
            raise InputError(f"{owner}: {path!r} holds NaN; expected numbers. Nothing was changed")
        keep = np.ones(x.shape, bool) if before is None else before.reshape(x.shape).copy()
        with np.errstate(over="ignore"):  # a limit beyond the dtype is an infinite one
            low, high, least = (None if v is None else np.float64(v).astype(x.dtype) for v in limits.values())
        if low is not None:
            keep &= x >= low
        if high is not None:
            keep &= x <= high
        if least is not None:
            keep &= np.abs(x) >= least
        kept.append(keep)
    given = ", ".join(f"{name} = {x!r}" for name, x in limits.items() if x is not None)
    return chosen.masks(owner, given, kept, alive)


def n_of_m_masks(
    params: Tree,
    n: int = 2,
    m: int = 4,
    *,
    axis: int = -1,
    scores: Tree | None = None,
    select: Pattern | None = None,
    within: Mapping[str, Array] | None = None,
) -> Masks:
    """Keep ``n`` of every ``m`` consecutive weights along ``axis`` (Zhou et al., 2021): 2:4 by default.

    Parameters
    ----------
    axis
        Along which groups lie; its length must be a multiple of ``m``. The hardware wants the axis that a
        product sums over: the last of torch's (out, in), the first of Keras' and JAX' (in, out).
    scores
        What decides instead of the magnitude; a tree like ``params``, or ``{path: array}``.
    params, select, within
        As of ``magnitude_masks``; a group of which fewer than ``n`` are left keeps those.
    n
        How many weights of a group are kept, in 1 … ``m``.
    m
        How many weights a group has.

    Returns
    -------
    dict
        A mask for each selected leaf: ``{path: bool array}``, ``True`` to keep.

    Raises
    ------
    InputError
        Where ``m`` doesn't divide a leaf's axis, and as of ``magnitude_masks``.

    Examples
    --------
    >>> n_of_m_masks({"w": np.array([[1.0, -4.0, 2.0, 0.5]])})["w"].tolist()
    [[False, True, True, False]]
    """
    owner = "n_of_m_masks"
    whole = all(isinstance(x, int) and not isinstance(x, bool) for x in (n, m))
    if not whole or not 0 < n <= m:
        raise InputError(f"{owner}: n = {n!r}, m = {m!r}; expected integers with 0 < n <= m")
    if isinstance(axis, bool) or not isinstance(axis, int):
        raise InputError(f"{owner}: axis = {axis!r}; expected an integer")
    chosen = selected(owner, params if scores is None else scores, select)
    kept = []
    for path, x, before in zip(chosen.paths, chosen.hosts, host_masks(owner, chosen, within), strict=True):
        if not -x.ndim <= axis < x.ndim or x.shape[axis] % m:
            raise InputError(
                f"{owner}: leaf {path!r} has shape {x.shape}; expected a multiple of {m} along axis {axis}"
            )
        magnitude = scores is None
        alive = None if before is None else before.reshape(x.shape)
        if alive is not None:
            # What is gone ranks below all else, also below a weight that is 0.
            x, magnitude = np.where(alive, np.abs(x) if magnitude else x, -np.inf), False
        moved = np.moveaxis(x, axis, -1)
        rows = np.ascontiguousarray(moved).reshape(-1, m)
        mask = keep_highest_in_rows(rows, m - n, path, magnitude=magnitude)
        mask = np.moveaxis(mask.reshape(moved.shape), -1, axis)
        kept.append(mask if alive is None else mask & alive)
    # Of a group of which something was left, something is left.
    return chosen.masks(owner, f"n = {n}", kept, kept)


def check_limits(owner: str, limits: Mapping[str, Any]) -> None:
    """Refuse a limit that is neither ``None`` nor a number."""
    for name, x in limits.items():
        number = isinstance(x, int | float | np.floating) and not isinstance(x, bool)
        if x is not None and (not number or math.isnan(x)):
            raise InputError(f"{owner}: {name} = {x!r}; expected a number")


def _scope(owner: str, scope: str, known: Sequence[str]) -> None:
    if scope not in known:
        raise InputError(f"{owner}: scope = {scope!r}; {nearest(str(scope), known)}")


def _ranked(
    owner: str,
    chosen: Selected,
    values: Sequence[Any],
    sparsity: float,
    scope: str,
    within: Mapping[str, Array] | None,
    *,
    magnitude: bool = False,
) -> Masks:
    """Masks that prune the lowest of ``values``, per leaf or of all together."""
    share = check_sparsity(owner, sparsity)
    before = host_masks(owner, chosen, within)
    flat = [x.reshape(-1) for x in values]
    if scope == "global":
        wide = np.result_type(*flat)
        flat = [x.astype(wide, copy=False) for x in flat]
        kept, cause = _within(flat, before, share, chosen.paths, magnitude), f"a global sparsity of {share}"
    else:
        one_by_one = zip(flat, before, chosen.paths, strict=True)
        kept = [_within([x], [b], share, [path], magnitude)[0] for x, b, path in one_by_one]
        cause = f"a sparsity of {share}"
    return chosen.masks(owner, cause, kept, before)


def _within(
    flat: Sequence[Any], before: Sequence[Any], share: float, names: Sequence[str], magnitude: bool
) -> list[Any]:
    """Return the masks of leaves ranked together, of which some elements may be pruned already."""
    alive = [x if mask is None else x[mask] for x, mask in zip(flat, before, strict=True)]
    total, left = (sum(x.size for x in leaves) for leaves in (flat, alive))
    prune = max(round(share * total) - (total - left), 0)
    masks = keep_highest(alive, prune, names, magnitude=magnitude)
    for mask, old in zip(range(len(masks)), before, strict=True):
        if old is not None:
            whole = np.zeros(old.size, bool)
            whole[old] = masks[mask]
            masks[mask] = whole
    return masks


CRITERIA: dict[str, Callable[..., Masks]] = {
    "magnitude": magnitude_masks,
    "n_of_m": n_of_m_masks,
    "random": random_masks,
    "threshold": threshold_masks,
}
"""The names that recipes use."""
