"""Find the units of a recipe's models, their layout, and the inputs of their matrices."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from polyopt import pruning
from polyopt.backend import registry
from polyopt.core import tree
from polyopt.core.errors import InputError
from polyopt.core.rule import Pattern, matches
from polyopt.core.tree import Tree
from polyopt.finetuning import numbered_layers
from polyopt.models.linear_inputs import LinearInput, Products
from polyopt.models.networks import MLP, Linear
from polyopt.models.pretrained import minilm
from polyopt.pruning import Coupling
from polyopt.pruning.encoder import encoder_couplings
from polyopt.recipe.encoder import MiniLM


def couplings(model: Any, params: Tree) -> list[tuple[Coupling, ...]]:
    """Units that may be pruned, in groups of one kind: hidden neurons; attention heads and neurons."""
    if isinstance(model, MiniLM):
        return list(encoder_couplings(minilm.MINILM, params, root="body."))
    layers = len(params["layers"]) if isinstance(model, MLP) else 1
    if layers < 2:
        raise InputError("prune.criterion = 'structured': this model has no hidden neurons")
    named = [(f"layers.{i}.weight", f"layers.{i}.bias") for i in range(layers)]
    return [pruning.chain_couplings(params, named)]


def layers(model: Any, params: Tree) -> tuple[Pattern, ...]:
    """Return a pattern for each layer of what is trained of ``model``, the lowest first."""
    if isinstance(model, Linear):
        return (".",)
    if not isinstance(model, MiniLM):
        return numbered_layers(params)
    paths = tree.flatten(params).paths
    bottom, top = ([x] if any(matches(x, p) for p in paths) else [] for x in (r"^body\.embeddings", "^head"))
    return numbered_layers(params, bottom=bottom, top=top)


def resized(model: Any, params: Tree) -> Any:
    """Return ``model`` with the sizes of ``params``; those of an encoder are its parameters' to say."""
    if not isinstance(model, MLP):
        return model
    return replace(model, hidden=tuple(int(layer["weight"].shape[1]) for layer in params["layers"][:-1]))


def fresh(model: Any, seed: int, dtype: str, initial: Tree) -> Tree:
    """Return what ``model`` begins with, in the sizes of ``initial``, with which it began."""
    if isinstance(model, MiniLM):
        return model.under_new_head(initial["body"], seed, dtype)
    return model.init(seed, dtype)


def layout(model: Any) -> str:
    """Return the input axis of most weight matrices of ``model``."""
    return str(getattr(model, "layout", "in_out"))


def by_layout(model: Any, paths: Iterable[str]) -> dict[str, list[str]]:
    """Group ``paths`` by which of their axes counts inputs: the last but one (in_out), or the second."""
    found: dict[str, list[str]] = {}
    for path in paths:
        own = "in_out" if path.startswith("head.") else layout(model)
        found.setdefault(own, []).append(path)
    return found


def input_norms(model: Any, params: Tree, x: Any) -> dict[str, Any]:
    """Norms of what each matrix of ``params``, host arrays, is multiplied with when ``model`` sees ``x``.

    By path; of tokens, those that are no padding.

    >>> import numpy as np
    >>> from polyopt.models.initializers import Constant
    >>> model = MLP(2, 1, Constant(1.0), Constant(0.0), hidden=(3,))
    >>> norms = input_norms(model, model.init(0, "float64"), np.array([[3.0, 1.0], [4.0, 0.0]]))
    >>> {path: values.round(3).tolist() for path, values in norms.items()}
    {'layers.0.weight': [5.0, 1.0], 'layers.1.weight': [5.657, 5.657, 5.657]}
    """
    ops = registry.by_name("numpy").ops
    counted = x > 0 if isinstance(model, MiniLM) else None
    rows = None if counted is None else counted.reshape(-1)
    norms: dict[str, Any] = {}

    def noted(factor: LinearInput, x: Any, w: Any) -> Any:
        tokens = counted is not None and len(x) == counted.size
        norms[factor.path] = pruning.input_norms(x[rows] if tokens else x)
        return ops.matmul(x, w)

    model.apply(Products(ops, params, noted), params, x)
    return norms
