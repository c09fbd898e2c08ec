"""Quantize a model by a recipe's ``quantize`` section: weights as codes, activations on grids.

All of it is worked out on the host, by NumPy, from copies of the weights and from training samples: the same
weights have the same codes and grids on every backend.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyopt.core import random, tree
from polyopt.core.errors import InputError
from polyopt.core.ops import Ops
from polyopt.core.tree import Tree
from polyopt.models.linear_inputs import factors, layer_inputs
from polyopt.quantization import (
    Calibration,
    Grid,
    Integer,
    Quantized,
    dequantize,
    fake_quantize_weight,
    gptq_layers,
    quantize,
)
from polyopt.quantization.weights import selected
from polyopt.recipe.quantization import Quantize
from polyopt.training.phases import structure


@dataclass(frozen=True)
class Quantizer:
    """A ``quantize`` section for a model, with what it looks at besides the weights."""

    section: Quantize
    model: Any
    x: Any
    """The training samples, as the model takes them."""
    seed: int

    def stored(self, params: Tree, masks: dict[str, Any]) -> Tree:
        """Return ``params``, host arrays, with codes for what is selected; what ``masks`` prune stays 0."""
        section = self.section
        if section.method == "nearest":
            return self._nearest(params, self._chosen(params))
        options = {key: getattr(section, key) for key in ("damping", "block", "order")}
        x = self._looked_at("samples", section.samples)
        # What no product tells the layout of lies as most of the model.
        scheme = self._integers(structure.layout(self.model))
        return gptq_layers(self.model.apply, params, x, scheme, select=section.select, masks=masks, **options)

    def rehearsed(self, params: Tree) -> Tree:
        """Do as ``stored`` as far as names, shapes and samples go, and quickly: round to nearest."""
        section = self.section
        self.grids(params, few=True)
        chosen = self._chosen(params)
        if section.method == "gptq":
            x = self._looked_at("samples", section.samples)
            if not chosen & factors(self.model.apply, params, x[:1]).keys():
                raise InputError(_no_layer("method = 'gptq'", self.model, chosen))
        return self._nearest(params, chosen)

    def grids(self, params: Tree, *, few: bool = False) -> dict[str, Grid]:
        """Return what the layers with quantized weights read, by the path of the weight.

        None, unless asked for.

        ``params`` are floats, or codes in part. What is seen are floats, as the quantized weights before make
        them; of ``few`` samples to see whether it can be done.
        """
        section = self.section.activations
        if section is None:
            return {}
        x = self._looked_at("activations.samples", section.samples)[: 1 if few else None]
        leaves = tree.named(params).values()
        there = any(isinstance(w, Quantized) for w in leaves)
        stored = params if there else self._nearest(params, self._chosen(params))
        chosen = {path for path, w in tree.named(stored).items() if isinstance(w, Quantized)}
        inputs = layer_inputs(self.model.apply, dequantize(stored), x)
        seen = {path: values for path, values in inputs.items() if path in chosen}
        if not seen:
            raise InputError(_no_layer("activations", self.model, chosen))
        return Calibration().observe(seen).grids(section.built(), section.scheme())

    def rounding(self, params: Tree) -> Callable[[Ops, Tree], Tree]:
        """Make the weights as they will be stored, with a gradient through the rounding."""
        layouts = structure.by_layout(self.model, self._chosen(params))
        schemes = {path: self._integers(layout) for layout, paths in layouts.items() for path in paths}

        def view(xp: Ops, params: Tree) -> Tree:
            flat = tree.flatten(params)
            return flat.unflatten(
                fake_quantize_weight(xp, x, schemes[path]) if path in schemes else x
                for path, x in zip(flat.paths, flat.leaves, strict=True)
            )

        return view

    def _chosen(self, params: Tree) -> set[str]:
        return selected(tree.flatten(params), self.section.select)

    def _nearest(self, params: Tree, chosen: set[str]) -> Tree:
        """Round each weight, with a scale of its own for what each output of the model is made from."""
        for layout, paths in structure.by_layout(self.model, chosen).items():
            params = quantize(params, self.section.scheme(layout), set(paths).__contains__)
        return params

    def _integers(self, layout: str) -> Integer:
        scheme = self.section.scheme(layout)
        assert isinstance(scheme, Integer)
        return scheme

    def _looked_at(self, key: str, count: int | None) -> Any:
        """Draw some training samples with the seed."""
        number, there = count or 1, len(self.x)
        if number > there:
            raise InputError(f"quantize.{key} = {number}; expected at most the {there} training samples")
        chosen = random.permutation(there, self.seed, "quantize")[:number]
        x = self.x[chosen]
        wrong = np.argwhere(~np.isfinite(x))
        if len(wrong):
            row, *rest = (int(k) for k in wrong[0])
            raise InputError(
                f"quantize.{key}: training sample {int(chosen[row])} has {float(x[tuple(wrong[0])])!r} at "
                f"{tuple(rest)}; expected finite numbers"
            )
        return x


def _no_layer(key: str, model: Any, chosen: set[str]) -> str:
    return (
        f"quantize.{key}: {type(model).__name__} multiplies nothing with the selected weights, "
        f"{', '.join(sorted(chosen)[:3])}; expected one of a linear layer"
    )
