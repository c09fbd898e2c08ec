"""Removing pruned units for good: a smaller model that computes the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polyopt.backend import registry
from polyopt.core import tree
from polyopt.core.errors import InputError
from polyopt.core.ops import Array
from polyopt.core.tree import Tree
from polyopt.engine.optimizer import State
from polyopt.pruning.couplings import Coupling, check_coupling
from polyopt.pruning.leaves import aligned_masks, pruned


def kept_units(params: Tree, masks: Mapping[str, Array], couplings: Sequence[Coupling]) -> dict[str, Any]:
    """Tell for each coupling which units are left.

    A unit is gone where all its slices are pruned whole, in every leaf of its coupling.

    Parameters
    ----------
    params
        A tree of arrays of any framework.
    masks
        Such as ``structured_masks`` makes.
    couplings
        The same as they were made with.

    Returns
    -------
    dict
        By the coupling's name a host array of bools: ``False`` for the units of which nothing is left.

    Examples
    --------
    >>> from polyopt.pruning import chain_couplings, structured_masks
    >>> params = {"w0": np.array([[3.0, 0.0], [4.0, 1.0]]), "w1": np.ones((2, 1))}
    >>> couplings = chain_couplings(params, ["w0", "w1"])
    >>> kept_units(params, structured_masks(params, 0.5, couplings), couplings)
    {'w0': array([ True, False])}
    """
    owner = "kept_units"
    flat, named = tree.flatten(params), tree.named(params)
    known = aligned_masks(owner, flat, masks)
    hosts = {path: np.asarray(registry.of(mask).to_numpy(mask)) for path, mask in known.items()}
    found = {}
    for coupling in couplings:
        check_coupling(owner, coupling, named)
        alive = np.zeros(coupling.units, bool)
        for m in coupling.members:
            if m.path not in hosts:
                alive[:] = True
                break
            rows = np.moveaxis(hosts[m.path], m.axis, 0)[m.indices(coupling.units)]
            alive |= rows.reshape(coupling.units, -1).any(axis=1)
        if not alive.any():
            raise InputError(f"{owner}: nothing is left of {coupling.name!r}; expected one unit to be")
        found[coupling.name] = alive
    return found


def shrink(params: Tree, masks: Mapping[str, Array], couplings: Sequence[Coupling]) -> Tree:
    """Return ``params`` without the pruned units: smaller leaves, and a model that computes the same.

    Its outputs are those of the masked model but for the rounding of sums with fewer terms. Weights that are
    pruned one by one in units that stay are set to 0.

    Parameters
    ----------
    params
        A tree of arrays; it isn't changed.
    masks
        Such as ``structured_masks`` makes.
    couplings
        The same as they were made with.

    Returns
    -------
    tree
        The structure of ``params``.

    Raises
    ------
    InputError
        For masks or couplings that don't belong to ``params``, or where nothing of a coupling is left.

    Examples
    --------
    >>> from polyopt.pruning import chain_couplings, structured_masks
    >>> params = {"w0": np.array([[3.0, 0.0], [4.0, 1.0]]), "w1": np.ones((2, 1))}
    >>> couplings = chain_couplings(params, ["w0", "w1"])
    >>> small = shrink(params, structured_masks(params, 0.5, couplings), couplings)
    >>> small["w0"].tolist(), small["w1"].tolist()
    ([[3.0], [4.0]], [[1.0]])
    """
    cuts = _cuts(kept_units(params, masks, couplings), couplings)
    return _cut(pruned(params, masks), cuts)


def shrink_state(
    state: State, params: Tree, masks: Mapping[str, Array], couplings: Sequence[Coupling]
) -> State:
    """Cut the slots of an optimizer's state as ``shrink`` cuts their parameters.

    A slot that has not its parameter's shape stays whole.

    Parameters
    ----------
    state
        The optimizer's, for ``params``.
    params
        The parameters before.
    masks, couplings
        As of ``shrink``.

    Returns
    -------
    dict
        The state for what ``shrink`` gives.

    Examples
    --------
    >>> from polyopt import SGD, Optimizer
    >>> from polyopt.pruning import chain_couplings, structured_masks
    >>> params = {"w0": np.array([[3.0, 0.0], [4.0, 1.0]]), "w1": np.ones((2, 1))}
    >>> couplings = chain_couplings(params, ["w0", "w1"])
    >>> masks = structured_masks(params, 0.5, couplings)
    >>> state = Optimizer(SGD(lr=0.1, momentum=0.9)).init(params)
    >>> shrink_state(state, params, masks, couplings)["slots"]["momentum_buffer"]["w0"].shape
    (2, 1)
    """
    cuts = _cuts(kept_units(params, masks, couplings), couplings)
    shapes = {path: tuple(x.shape) for path, x in tree.named(params).items()}
    slots = {
        name: {
            path: _take(x, cuts[path])
            if path in cuts and tuple(getattr(x, "shape", ())) == shapes[path]
            else x
            for path, x in values.items()
        }
        for name, values in state["slots"].items()
    }
    return state | {"slots": slots}


Cuts = dict[str, list[tuple[int, Any]]]
"""For each leaf the indices to keep along some of its axes."""


def _cuts(kept: Mapping[str, Any], couplings: Sequence[Coupling]) -> Cuts:
    found: dict[str, dict[int, Any]] = {}
    for coupling in couplings:
        for m in coupling.members:
            indices = m.indices(coupling.units)
            axes = found.setdefault(m.path, {})
            stay = axes.setdefault(m.axis, np.ones(indices.size, bool))
            stay[indices[~kept[coupling.name]].reshape(-1)] = False
    return {path: [(a, np.flatnonzero(x)) for a, x in axes.items()] for path, axes in found.items()}


def _cut(values: Tree, cuts: Cuts) -> Tree:
    flat = tree.flatten(values)
    return flat.unflatten(
        _take(x, cuts[path]) if x is not None and path in cuts else x
        for path, x in zip(flat.paths, flat.leaves, strict=True)
    )


def _take(x: Array, cuts: Sequence[tuple[int, Any]]) -> Array:
    backend = registry.of(x)
    values = np.asarray(backend.to_numpy(x))
    for axis, indices in cuts:
        values = np.take(values, indices, axis=axis)
    values = np.ascontiguousarray(values)
    return backend.from_numpy(values, dtype=backend.dtype_name(x), device=backend.device_name(x))
