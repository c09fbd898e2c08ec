"""Frozen parameters cost nothing: they have no slots, and no gradient is computed for them.

A tree is split into what is trained and what is frozen, both of its structure, with ``None`` in the places
of the other. A loss is differentiated by the trained part alone.
"""

from __future__ import annotations

from typing import Any

from polyopt.backend import registry
from polyopt.backend.protocol import LossFunction
from polyopt.core import tree
from polyopt.core.errors import InputError
from polyopt.core.ops import Array
from polyopt.core.rule import Partition, Pattern, Stage, partition
from polyopt.core.tree import Tree
from polyopt.finetuning.selection import select


def freeze(rule: Stage, *patterns: Pattern) -> Partition:
    """Keep ``rule`` for every parameter but those that ``patterns`` match, which have no slots and stay.

    The gradients of frozen parameters count in no global norm. Give them none at all by ``split``.

    Parameters
    ----------
    rule
        A rule, a chain or a partition.
    *patterns
        Regular expressions or predicates on the path. One that matches no parameter is an
        ``InputError`` of ``Optimizer.init``, which names the nearest paths.

    Returns
    -------
    Partition
        What ``Optimizer`` takes.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt import Adam, Optimizer
    >>> opt = Optimizer(freeze(Adam(lr=0.1), r"^embed"))
    >>> list(opt.init({"embed": np.zeros(2), "head": np.zeros(2)})["slots"]["exp_avg"])
    ['head']
    """
    return partition([*((pattern, None) for pattern in patterns), (r".*", rule)])


def split(params: Tree, *patterns: Pattern) -> tuple[Tree, Tree]:
    """Split a tree into what is trained and what is frozen.

    Parameters
    ----------
    params
        A tree of parameters; nothing is copied.
    *patterns
        What is frozen. Each must match a path.

    Returns
    -------
    tuple
        ``(trained, frozen)``: two trees like ``params``, each with ``None`` for the leaves of the other.

    Examples
    --------
    >>> split({"embed": 1.0, "head": 2.0}, r"^embed")
    ({'embed': None, 'head': 2.0}, {'embed': 1.0, 'head': None})
    """
    flat = tree.flatten(params)
    frozen = set(select(params, *patterns))
    pairs = list(zip(flat.paths, flat.leaves, strict=True))
    trained = flat.unflatten(None if path in frozen else x for path, x in pairs)
    return trained, flat.unflatten(x if path in frozen else None for path, x in pairs)


def merge(trained: Tree, frozen: Tree) -> Tree:
    """Put together the tree that was ``split``.

    Parameters
    ----------
    trained, frozen
        The two parts.

    Returns
    -------
    tree
        Each leaf from the part that has it.

    Raises
    ------
    InputError
        Where both have a leaf, or the structures differ: it names the leaf.

    Examples
    --------
    >>> merge({"embed": None, "head": 2.0}, {"embed": 1.0, "head": None})
    {'embed': 1.0, 'head': 2.0}
    """
    flat = tree.flatten(trained)
    others = tree.aligned(frozen, flat, "frozen parameters")
    for path, x, other in zip(flat.paths, flat.leaves, others, strict=True):
        if x is not None and other is not None:
            raise InputError(f"merge: leaf {path!r} is both trained and frozen; expected None in one of them")
    return flat.unflatten(other if x is None else x for x, other in zip(flat.leaves, others, strict=True))


def trainable(loss: LossFunction) -> LossFunction:
    """Make of ``loss`` a function of the trained part: ``f(xp, trained, frozen, *args)``.

    For ``value_and_grad`` and ``TrainStep``, which then compute no gradient for what
    is frozen, and go back no further than the lowest trained layer.

    Parameters
    ----------
    loss
        ``loss(xp, params, *args)`` of the whole tree.

    Returns
    -------
    Callable
        ``f(xp, trained, frozen, *args)``.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt import value_and_grad
    >>> def loss(xp, params, x):
    ...     return xp.sum(params["scale"] * params["shift"] * x)
    >>> trained, frozen = split({"scale": np.array([2.0]), "shift": np.array([3.0])}, "shift")
    >>> value, grads = value_and_grad(trainable(loss))(trained, frozen, np.array([5.0]))
    >>> float(value), grads["scale"].tolist(), grads["shift"]
    (30.0, [15.0], None)
    """

    def of_trained(xp: Any, trained: Tree, frozen: Tree, *args: Any) -> Array:
        return loss(xp, merge(trained, constant(frozen)), *args)

    return of_trained


def constant(params: Tree) -> Tree:
    """Make constants for differentiation of ``params``, whatever they are (torch's may ask for gradients)."""
    leaves = [x for x in tree.flatten(params).leaves if x is not None]
    return tree.map_leaves(registry.of(*leaves).stop_gradient, params) if leaves else params
