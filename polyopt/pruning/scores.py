"""Scores that look at more than the weights: SNIP's, movement pruning's and Wanda's.

Gradients and activations come in as trees of arrays; what comes out is ``{path: array}`` for
``score_masks``. They are computed on the host in the leaf's dtype (halves in float32),
so equal inputs give equal bits on every backend.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyopt.backend import registry
from polyopt.core import tree
from polyopt.core.errors import InputError, nearest
from polyopt.core.ops import Array
from polyopt.core.rule import Elementwise, Pattern, Slot, Slots, hyper
from polyopt.core.tree import Tree
from polyopt.pruning.criteria import LAYOUTS
from polyopt.pruning.leaves import Selected, host, selected


def snip_scores(params: Tree, grads: Tree, *, select: Pattern | None = None) -> dict[str, Array]:
    """Score by ``|g·w|``, the effect on the loss of removing each connection (Lee et al., 2019, eq. 6).

    Take ``grads`` at the initial weights on one batch, and prune with ``score_masks(scores, sparsity,
    scope="global")`` before training. The paper divides by the sum of all, which orders nothing.

    Parameters
    ----------
    params, grads
        Trees of the same leaves.
    select
        As of ``magnitude_masks``.

    Returns
    -------
    dict
        ``{path: array}`` of the leaf's shape and dtype, on its framework.

    Raises
    ------
    InputError
        Where a gradient is missing or of another shape.

    Examples
    --------
    >>> snip_scores({"w": np.array([[1.0, -2.0]])}, {"w": np.array([[3.0, 0.5]])})["w"].tolist()
    [[3.0, 1.0]]
    """
    chosen, slopes = _with_gradients("snip_scores", params, grads, select)
    return _scored(chosen, [np.abs(g * w) for g, w in zip(slopes, chosen.hosts, strict=True)])


def movement_scores(
    params: Tree,
    grads: Tree,
    scores: Mapping[str, Array] | None = None,
    *,
    lr: float = 1.0,
    select: Pattern | None = None,
) -> dict[str, Array]:
    """Score by ``S - lr·w·g``: positive for weights that move away from zero (Sanh et al., 2020, eq. 4).

    Call it with each batch's gradients and the scores so far (0 before the first); ``Movement`` does the
    same inside the optimizer's kernel.

    Parameters
    ----------
    params, grads
        Trees of the same leaves.
    scores
        S so far: ``{path: array}``.
    lr
        What the product is multiplied by, at least 0.
    select
        As of ``magnitude_masks``.

    Returns
    -------
    dict
        ``{path: array}`` of the leaf's shape and dtype, on its framework.

    Raises
    ------
    InputError
        As of ``snip_scores``; and where a score is missing or of another shape.

    Examples
    --------
    >>> params, grads = {"w": np.array([[1.0, -2.0]])}, {"w": np.array([[-3.0, -0.5]])}
    >>> movement_scores(params, grads, movement_scores(params, grads))["w"].tolist()
    [[6.0, -2.0]]
    """
    owner = "movement_scores"
    if isinstance(lr, bool) or not isinstance(lr, int | float | np.floating) or not 0 <= lr < math.inf:
        raise InputError(f"{owner}: lr = {lr!r}; expected a finite number >= 0")
    chosen, slopes = _with_gradients(owner, params, grads, select)
    before: list[Any] = [w.dtype.type(0) for w in chosen.hosts]
    if scores is not None:
        before = [_of(owner, "score", chosen, i, scores) for i in range(len(chosen.paths))]
    rate = [w.dtype.type(lr) for w in chosen.hosts]
    moved = zip(before, rate, chosen.hosts, slopes, strict=True)
    return _scored(chosen, [s - r * (w * g) for s, r, w, g in moved])


@dataclass(frozen=True)
class Movement(Elementwise):
    """Accumulate movement scores in the optimizer: ``movement -= lr·w·g`` (Sanh et al., 2020, eq. 4).

    A stage that hands its gradient on, to stand first: ``chain(Movement(), masked(Adam()))``. Its slot
    ``movement`` is saved with the state; prune with ``score_masks(state["slots"]["movement"], sparsity)``.

    Deviation: the paper keeps the values of pruned weights, which may come back; under
    ``masked`` they are 0, so their scores stand still.

    Parameters
    ----------
    lr
        α_S, in [0, inf).

    Examples
    --------
    >>> from polyopt import SGD, Optimizer, chain
    >>> opt = Optimizer(chain(Movement(), SGD(lr=0.0)))
    >>> params = {"w": np.array([1.0, -2.0])}
    >>> _, state = opt.step(params, {"w": np.array([-3.0, -0.5])}, opt.init(params))
    >>> state["slots"]["movement"]["w"].tolist()
    [3.0, -1.0]
    """

    lr: Any = hyper(1.0, low=0.0)

    def slots(self) -> tuple[Slot, ...]:
        """Keep the scores."""
        return (Slot("movement"),)

    def leaf(self, xp: Any, g: Array, p: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
        """Return the gradient unchanged, and the scores after it."""
        return g, {"movement": slots["movement"] - c.lr * (p * g)}


def input_norms(x: Array) -> Array:
    """Return the L2 norm of each input feature over all samples: what ``wanda_scores`` wants of a layer.

    The sums are taken in float64 on the host.

    Parameters
    ----------
    x
        A linear layer's input, of shape (…, features), of any framework.

    Returns
    -------
    array
        Float64, on the host, of shape (features,).

    Raises
    ------
    InputError
        Without a sample, and for inf or NaN.

    Examples
    --------
    >>> input_norms(np.array([[3.0, 1.0], [4.0, 0.0]])).tolist()
    [5.0, 1.0]
    """
    backend = registry.of(x)
    values = host("input_norms", backend, "x", x)
    if values.ndim < 1 or not values.size:
        raise InputError(f"input_norms: x has shape {values.shape}; expected at least one sample of features")
    if not np.isfinite(values).all():
        raise InputError("input_norms: x holds inf or NaN; expected finite activations")
    rows = values.reshape(-1, values.shape[-1]).astype(np.float64)
    norms = np.sqrt(np.sum(rows * rows, axis=0)).astype(values.dtype)
    return backend.from_numpy(norms, dtype=norms.dtype.name, device=backend.device_name(x))


def wanda_scores(
    params: Tree, norms: Mapping[str, Array], *, layout: str = "in_out", select: Pattern | None = None
) -> dict[str, Array]:
    """Score by ``|W_ij|·‖X_j‖₂`` (Sun et al., 2023, eq. 1), for ``score_masks(…, scope="row")``.

    Parameters
    ----------
    params
        A tree of floating-point arrays of any framework.
    norms
        For the path of each weight, the norms of its inputs' features (``input_norms``), of shape (in,).
    layout
        ``"in_out"`` (Keras, JAX: inputs along the last axis but one) or ``"out_in"`` (torch: along the
        second).
    select
        By default the leaves that ``norms`` has.

    Returns
    -------
    dict
        ``{path: array}`` of the leaf's shape and dtype, on its framework.

    Raises
    ------
    InputError
        Where a norm is missing, belongs to no parameter, or has not as many features as the weight.

    Examples
    --------
    >>> w = np.array([[1.0, -2.0], [0.5, 3.0]])
    >>> wanda_scores({"w": w}, {"w": np.array([4.0, 1.0])})["w"].tolist()
    [[4.0, 8.0], [0.5, 3.0]]
    """
    owner = "wanda_scores"
    if layout not in LAYOUTS:
        raise InputError(f"{owner}: layout = {layout!r}; {nearest(str(layout), LAYOUTS)}")
    paths = tree.flatten(params).paths
    for path in norms:
        if path not in paths:
            raise InputError(f"{owner}: norms of {path!r} belong to no parameter; {nearest(path, paths)}")
    chosen = selected(owner, params, (lambda path: path in norms) if select is None else select)
    found = []
    for path, w in zip(chosen.paths, chosen.hosts, strict=True):
        if path not in norms:
            raise InputError(f"{owner}: the norms of {path!r} are missing; {nearest(path, norms)}")
        x = host(owner, registry.of(norms[path]), path, norms[path]).astype(w.dtype)
        axis = 1 if layout == "out_in" else w.ndim - 2
        if w.ndim < 2 or x.shape != (w.shape[axis],):
            raise InputError(
                f"{owner}: the norms of {path!r} have shape {x.shape}; expected one for each input of a "
                f"weight of shape {w.shape}, {layout}"
            )
        found.append(np.abs(w) * x.reshape([-1 if i == axis else 1 for i in range(w.ndim)]))
    return _scored(chosen, found)


def _with_gradients(
    owner: str, params: Tree, grads: Tree, select: Pattern | None
) -> tuple[Selected, list[Any]]:
    chosen = selected(owner, params, select)
    flat = tree.flatten(params)
    slopes = dict(zip(flat.paths, tree.aligned(grads, flat, f"{owner}: gradients"), strict=True))
    return chosen, [_of(owner, "gradient", chosen, i, slopes) for i in range(len(chosen.paths))]


def _of(owner: str, what: str, chosen: Selected, i: int, values: Mapping[str, Any]) -> Any:
    """Return the host array that ``values`` has for the i-th chosen leaf, in that one's dtype."""
    path, w = chosen.paths[i], chosen.hosts[i]
    x = values.get(path)
    if x is None:
        raise InputError(f"{owner}: leaf {path!r} has no {what}; expected one of shape {w.shape}")
    found = host(owner, registry.of(chosen.leaves[i], x), path, x)
    if found.shape != w.shape:
        raise InputError(f"{owner}: the {what} of {path!r} has shape {found.shape}; expected {w.shape}")
    return found.astype(w.dtype, copy=False)


def _scored(chosen: Selected, values: list[Any]) -> dict[str, Array]:
    backend = chosen.backend
    return {
        path: backend.from_numpy(np.asarray(x), dtype=x.dtype.name, device=backend.device_name(leaf))
        for path, leaf, x in zip(chosen.paths, chosen.leaves, values, strict=True)
    }
