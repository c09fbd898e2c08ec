"""Pruning whole units: neurons, channels and heads, with every slice that belongs to them.

To prune a unit of a ``Coupling`` is to mask all of its slices: in the weight that makes
it, in that one's bias and scale, and in the weight that reads it. So what is left computes as if it had never
been there, whatever the activation function gives for 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polyopt.backend import registry
from polyopt.backend.protocol import Backend
from polyopt.core import tree
from polyopt.core.errors import InputError, nearest
from polyopt.core.ops import Array
from polyopt.core.tree import Tree
from polyopt.pruning.couplings import Coupling, Member, check_coupling
from polyopt.pruning.leaves import Masks, check_sparsity, host, mask_like
from polyopt.pruning.ranking import keep_highest


def unit_scores(params: Tree, couplings: Sequence[Coupling], *, norm: float = 2) -> dict[str, Any]:
    """Return for each coupling the Ln norm of every unit's scored slices together.

    Parameters
    ----------
    params
        A tree of floating-point arrays of any framework.
    couplings
        The units, and where they lie.
    norm
        n: any number above 0, or ``math.inf`` for the largest magnitude.

    Returns
    -------
    dict
        By the coupling's name a float64 host array of shape (units,).

    Raises
    ------
    InputError
        For couplings that don't belong to ``params``.

    Examples
    --------
    >>> from polyopt.pruning import chain_couplings
    >>> params = {"w0": np.array([[3.0, 0.0], [4.0, 1.0]]), "w1": np.ones((2, 1))}
    >>> unit_scores(params, chain_couplings(params, ["w0", "w1"]))["w0"].tolist()
    [5.0, 1.0]
    """
    number = isinstance(norm, int | float) and not isinstance(norm, bool)
    if not number or not norm > 0:
        raise InputError(f"unit_scores: norm = {norm!r}; expected a number above 0, or inf")
    named, backend = _checked("unit_scores", params, couplings)
    found = {}
    for coupling in couplings:
        rows = [
            _rows(host("unit_scores", backend, m.path, named[m.path]), m, coupling.units)
            for m in coupling.members
            if m.scored
        ]
        if not rows:
            raise InputError(
                f"unit_scores: coupling {coupling.name!r} has no member that is scored; expected one"
            )
        x = np.abs(np.concatenate(rows, axis=1).astype(np.float64))
        found[coupling.name] = _norms(x, norm)
        if not np.isfinite(found[coupling.name]).all() and np.isfinite(x).all():
            raise InputError(
                f"unit_scores: norms of {coupling.name!r} overflow for norm = {norm!r}; expected another one"
            )
    return found


def _norms(x: Any, norm: float) -> Any:
    """Return the norm of each row of magnitudes, in parts of its largest, whose powers stay in range."""
    largest = x.max(axis=1, initial=0.0)
    if norm == math.inf:
        return largest
    with np.errstate(over="ignore"):
        if norm == 1:
            return np.sum(x, axis=1)
        if norm == 2:
            return np.sqrt(np.sum(x * x, axis=1))
        unit = np.where((largest > 0) & np.isfinite(largest), largest, 1.0)
        return unit * np.sum((x / unit[:, None]) ** norm, axis=1) ** (1 / norm)


def structured_masks(
    params: Tree,
    sparsity: float,
    couplings: Sequence[Coupling],
    *,
    norm: float = 2,
    scope: str = "coupling",
    scores: Mapping[str, Any] | None = None,
) -> Masks:
    """Prune the units of the smallest Ln norm (Li et al., 2017), with all their slices.

    Parameters
    ----------
    params
        A tree of floating-point arrays of any framework.
    sparsity
        The share of units to prune, in [0, 1); of n, ``round(sparsity · n)``, the first of equal ones.
    couplings
        What the units are: ``chain_couplings``, ``head_coupling``, or by hand.
    norm
        As of ``unit_scores``; 2 is torch's ``ln_structured(n=2)``.
    scope
        ``"coupling"``: in each by itself; ``"global"``: of all together.
    scores
        Scores by coupling instead of the norms: host arrays of one number for each unit.

    Returns
    -------
    dict
        A mask for every leaf of the couplings. ``shrink`` removes what they prune.

    Raises
    ------
    InputError
        Where no unit of a coupling would be left, for shapes that don't fit it, and for a sparsity outside
        [0, 1).

    Examples
    --------
    >>> from polyopt.pruning import chain_couplings
    >>> params = {"w0": np.array([[3.0, 0.0], [4.0, 1.0]]), "w1": np.ones((2, 1))}
    >>> masks = structured_masks(params, 0.5, chain_couplings(params, ["w0", "w1"]))
    >>> masks["w0"].tolist(), masks["w1"].tolist()
    ([[True, False], [True, False]], [[True], [False]])
    """
    owner = "structured_masks"
    share = check_sparsity(owner, sparsity)
    if scope not in ("coupling", "global"):
        raise InputError(f"{owner}: scope = {scope!r}; {nearest(str(scope), ('coupling', 'global'))}")
    found = unit_scores(params, couplings, norm=norm) if scores is None else scores
    kept = _ranked_units(owner, couplings, found, share, scope)
    named, backend = _checked(owner, params, couplings)
    masks: dict[str, Any] = {}
    for coupling in couplings:
        for member in coupling.members:
            shape = tuple(named[member.path].shape)
            mask = masks.setdefault(member.path, np.ones(shape, bool))
            dropped = member.indices(coupling.units)[~kept[coupling.name]].reshape(-1)
            np.moveaxis(mask, member.axis, 0)[dropped] = False
    return {path: mask_like(backend, named[path], mask) for path, mask in masks.items()}


def _checked(owner: str, params: Tree, couplings: Sequence[Coupling]) -> tuple[dict[str, Array], Backend]:
    named = tree.named(params)
    if not couplings:
        raise InputError(f"{owner}: no couplings; expected at least one")
    names = [coupling.name for coupling in couplings]
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise InputError(f"{owner}: two couplings are called {twice!r}; expected a name for each")
    for coupling in couplings:
        check_coupling(owner, coupling, named)
    return named, registry.of(*named.values())


def _rows(x: Any, member: Member, units: int) -> Any:
    """Return ``x`` as one row for each unit."""
    moved = np.moveaxis(x, member.axis, 0)
    return moved[member.indices(units)].reshape(units, -1)


def _ranked_units(
    owner: str, couplings: Sequence[Coupling], scores: Mapping[str, Any], share: float, scope: str
) -> dict[str, Any]:
    """Rank the units of each coupling, and return which are kept."""
    given = []
    for coupling in couplings:
        if coupling.name not in scores:
            raise InputError(
                f"{owner}: coupling {coupling.name!r} has no scores; {nearest(coupling.name, scores)}"
            )
        x = np.ascontiguousarray(scores[coupling.name], np.float64)
        if x.shape != (coupling.units,):
            raise InputError(
                f"{owner}: the scores of {coupling.name!r} have shape {x.shape}; expected ({coupling.units},)"
            )
        given.append(x)
    names = [coupling.name for coupling in couplings]
    if scope == "global":
        kept = keep_highest(given, round(share * sum(x.size for x in given)), names)
    else:
        kept = [
            keep_highest([x], round(share * x.size), [name])[0] for x, name in zip(given, names, strict=True)
        ]
    for name, mask in zip(names, kept, strict=True):
        if not mask.any():
            raise InputError(
                f"{owner}: a sparsity of {share} would prune all {mask.size} units of {name!r}; expected one "
                "to be left. Nothing was changed"
            )
    return dict(zip(names, kept, strict=True))
