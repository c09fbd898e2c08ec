"""A pre-trained transformer as a model that recipes name: the whole of it is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from polyopt.models import Initializer
from polyopt.ops import Array, Ops
from polyopt.tree import Tree


@dataclass(frozen=True)
class MiniLM:
    """all-MiniLM-L6-v2 under one linear layer: ``mean pooled hidden states · W + b``.

    Its samples are rows of ``inputs`` token numbers, int32, 0 for padding. Parameters are named
    ``body.encoder.layer.0…`` as they were published, and ``head.weight``, ``head.bias``. The body starts as
    it was published, the head as the recipe's initializers draw it. See :mod:`polyopt.pretrained.minilm` for
    what must be installed.
    """

    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    layout: ClassVar[str] = "out_in"
    """How the body's matrices lie, which are nearly all of it."""
    inputs: int
    outputs: int
    weight: Initializer
    bias: Initializer

    def init(self, seed: int, dtype: str) -> Tree:
        from polyopt.pretrained import minilm

        return self.under_new_head(minilm.load("numpy", dtype=dtype), seed, dtype)

    def under_new_head(self, body: Tree, seed: int, dtype: str) -> Tree:
        """The parameters ``body``, and a head as the initializers draw it."""
        from polyopt.pretrained import minilm

        shape = (minilm.WIDTH, self.outputs)
        return {
            "body": body,
            "head": {
                "weight": self.weight.sample(shape, seed, "head.weight", dtype),
                "bias": self.bias.sample(shape[1:], seed, "head.bias", dtype),
            },
        }

    def apply(self, xp: Ops, params: Tree, x: Array) -> Array:
        from polyopt.pretrained import minilm

        head = params["head"]
        there = xp.astype(xp.greater(x, xp.zeros_like(x)), head["weight"].dtype)
        return xp.matmul(minilm.features(xp, params["body"], x, there), head["weight"]) + head["bias"]
