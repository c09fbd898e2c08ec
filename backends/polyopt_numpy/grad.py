"""Gradients on NumPy, through the autograd library."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
from autograd.core import VJPNode, add_outgrads, sparse_object_types, vspace
from autograd.extend import Box
from autograd.tracer import isbox, new_box, toposort

from polyopt.backend.gradients import check_loss
from polyopt.backend.protocol import LossFunction
from polyopt.core import tree
from polyopt.core.errors import InputError
from polyopt.core.tree import Tree
from polyopt_numpy import differentiable, ops
from polyopt_numpy.recording import Recorded, Recording, as_one_call

_traces = count()
"""Identities of traces, the inner one the larger. autograd's own counter isn't safe between threads."""


def value_and_grad(loss: LossFunction) -> Callable[..., tuple[Any, Tree]]:
    """Return ``f(params, *args) -> (loss, gradients)``; each gradient has its parameter's dtype and shape.

    A parameter that the loss doesn't depend on has gradient zero, and a leaf that is ``None`` has ``None``.

    Raises ``InputError`` for a leaf that isn't floating, and for a loss that isn't 0-d.
    """

    def run(params: Tree, *args: Any) -> tuple[Any, Tree]:
        flat = tree.flatten(params)
        present = [i for i, x in enumerate(flat.leaves) if x is not None]
        leaves = tuple(_leaf(flat.paths[i], flat.leaves[i]) for i in present)

        def of_leaves(values: tuple[Any, ...]) -> Any:
            filled: list[Any] = [None] * len(flat.leaves)
            for i, x in zip(present, values, strict=True):
                filled[i] = x
            return check_loss(loss(differentiable, flat.unflatten(filled), *args))

        with np.errstate(all="ignore"):
            value, found = _differentiate(of_leaves, leaves)
            gradients = [_like(g, x) for g, x in zip(found, leaves, strict=True)]
        by_leaf = dict(zip(present, gradients, strict=True))
        return value, flat.unflatten(by_leaf.get(i) for i in range(len(flat.leaves)))

    return run


def _differentiate(function: Callable[..., Any], leaves: tuple[Any, ...]) -> tuple[Any, Any]:
    """Return ``function(leaves)`` and its gradients; zeros where it doesn't depend on them."""
    trace = next(_traces)
    nodes = [VJPNode.new_root() for _ in leaves]
    end = function(tuple(new_box(x, trace, node) for x, node in zip(leaves, nodes, strict=True)))
    if not isbox(end) or end._trace != trace:
        return end, [np.zeros_like(differentiable.unboxed(x)) for x in leaves]
    found: dict[Any, Any] = {}
    gradients = {end._node: (np.ones((), end.dtype), False)}
    recording = next((x.recording for x in leaves if isinstance(x, Recorded)), None)
    add = add_outgrads if recording is None else _adding(recording)
    for node in toposort(end._node):
        outer = gradients.pop(node)
        if not node.parents:
            found[node] = outer
        for parent, g in zip(node.parents, node.vjp(outer[0]), strict=True):
            gradients[parent] = add(gradients.get(parent), g)
    zeros = (np.zeros_like(differentiable.unboxed(x)) for x in leaves)
    return end._value, [found.get(node, (z,))[0] for node, z in zip(nodes, zeros, strict=True)]


def _leaf(path: str, x: Any) -> Any:
    if not isinstance(x, np.ndarray | np.generic | Box | Recorded) or not ops.isdtype(
        x.dtype, "real floating"
    ):
        raise InputError(
            f"parameter {path!r} is {getattr(x, 'dtype', type(x).__name__)}; expected a floating array"
        )
    return x


def _like(g: Any, x: Any) -> Any:
    """Round a gradient to the dtype of ``x``: autograd gives a float64 where a bare operator widened."""
    if isinstance(g, Recorded):
        g = g if g.dtype == x.dtype else g.astype(x.dtype)
        return g if g.shape == x.shape != () else _shaped(g, x.shape)
    return g if isinstance(g, Box) else np.asarray(g, dtype=x.dtype).reshape(x.shape)


_shaped = as_one_call(lambda g, shape: np.asarray(g).reshape(shape))


def _adding(recording: Recording) -> Callable[[Any, Any], tuple[Any, bool]]:
    """Make autograd's sum of gradients without its changes in place, which a recording can't say."""

    def add(before: Any, g: Any) -> tuple[Any, bool]:
        if type(g) in sparse_object_types:
            start = vspace(g).zeros() if before is None else before[0]
            added: tuple[Any, bool] = add_outgrads((recording.call(np.copy, (start,), {}), True), g)
            return added
        if before is None:
            return g, False
        total = before[0] + g
        kept = before[0].dtype if before[1] else total.dtype  # what was added in place keeps its dtype
        return (total if total.dtype == kept else total.astype(kept)), True

    return add
