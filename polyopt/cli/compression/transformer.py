"""MiniLM on film reviews: its head trained by a recipe, then the whole of it pruned and quantized."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from polyopt.backend.convert import convert
from polyopt.core import tree
from polyopt.core.tree import Tree
from polyopt.models.pretrained import minilm, vader
from polyopt.pruning import magnitude_masks, pruned, sparsity_report
from polyopt.quantization import Integer, dequantize, quantize
from polyopt.recipe import Recipe
from polyopt.recipe.datasets import SNIPPETS
from polyopt.training import train
from polyopt.training.phase_runner import stored_bytes

RECIPE = "minilm_vader"
MATRICES = r"^encoder\..*(query|key|value|dense)\.weight$"
"""What is pruned: the matrices of the encoder's layers.."""
EIGHT, FOUR = Integer(layout="out_in"), Integer(bits=4, per="group", group_size=32, layout="out_in")
"""One scale for each output, or for 32 inputs of an output; torch's layout, as it was published."""


def transformer(recipes: Path, backends: Sequence[str]) -> dict[str, Any]:
    """Measure the head's phases on every backend, and the whole model in each form.

    Accuracy, bytes and seconds.
    """
    recipe = Recipe.load(recipes / f"{RECIPE}.toml")
    heads = {backend: [asdict(p) for p in train(recipe, backend=backend).phases] for backend in backends}
    trained = train(recipe.of_phase(0), backend="numpy")
    judge = _Judge(recipe, trained.params)
    return {"heads": heads, "snippets": SNIPPETS, "whole": [judge.row(*form) for form in _forms()]}


def _forms() -> list[tuple[str, Tree]]:
    """Make the encoder as published, and smaller; in the order of the table."""
    params = minilm.load("numpy")
    sparse = {s: pruned(params, magnitude_masks(params, s, select=MATRICES)) for s in (0.3, 0.5)}
    return [
        ("float32, as published", params),
        ("30 % of the layers' matrices pruned", sparse[0.3]),
        ("50 % of the layers' matrices pruned", sparse[0.5]),
        ("int8 per channel", quantize(params, EIGHT)),
        ("int4 per group of 32", quantize(params, FOUR)),
        ("30 % pruned, int8 per channel", quantize(sparse[0.3], EIGHT)),
    ]


class _Judge:
    """Tests a form of the encoder under the head that was trained on the published one's embeddings."""

    def __init__(self, recipe: Recipe, head: dict[str, Any]) -> None:
        self.head = {path: np.asarray(x, np.float64) for path, x in head.items()}
        test = int(SNIPPETS * recipe.data.test_fraction)
        self.snippets = vader.load(SNIPPETS - test, test, split_seed=recipe.data.split_seed)
        x = minilm.embed(_fast(minilm.load("numpy")), self.snippets.train).astype(np.float64)
        deviation = x.std(axis=0)
        self.mean, self.scale = x.mean(axis=0), np.where(deviation > vader.CONSTANT, deviation, 1.0)

    def row(self, name: str, params: Tree) -> dict[str, Any]:
        """Accuracy on the test snippets, size in bytes and sparsity, and how long embedding took."""
        weights = dequantize(params)
        arrays = _fast(weights)
        begun = time.perf_counter()
        x = minilm.embed(arrays, self.snippets.test).astype(np.float64)
        seconds = time.perf_counter() - begun
        logits = ((x - self.mean) / self.scale) @ self.head["weight"] + self.head["bias"]
        right = float((logits.argmax(axis=1) == self.snippets.y_test).mean())
        chosen = {
            p: v for p, v in tree.named(weights).items() if p.startswith("encoder.") and len(v.shape) == 2
        }
        return {
            "name": name,
            "accuracy": right,
            "bytes": stored_bytes(params),
            "sparsity": sparsity_report(chosen).sparsity,
            "seconds": seconds,
        }


def _fast(params: Tree) -> Tree:
    """Choose the backend that is quickest at it, if it is there."""
    from polyopt.backend import registry

    names = registry.installed()
    return convert(params, next(name for name in ("jax", "torch", "tensorflow", "numpy") if name in names))
