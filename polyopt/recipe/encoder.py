"""A pre-trained transformer as a model that recipes name: the whole of it is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from polyopt.core.ops import Array, Ops
from polyopt.core.tree import Tree
from polyopt.models.networks import OUTPUT, Initializer


@dataclass(frozen=True)
class MiniLM:
    """all-MiniLM-L6-v2 under one linear layer: ``mean pooled hidden states · W + b``.

    Its samples are rows of ``inputs`` token numbers, int32, 0 for padding. Parameters are named
    ``body.encoder.layer.0…`` as they were published, and ``head.weight``, ``head.bias``. The body starts as
    it was published, the head as the recipe's initializers draw it. See
    ``polyopt.models.pretrained.minilm`` for     what must be installed.

    Its layers give hidden states of shape (n, tokens, 384), 0 for padding: ``body.encoder.layer.0``, …; their
    mean over the tokens, (n, 384), is ``pooled``.
    """

    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    layout: ClassVar[str] = "out_in"
    """How the body's matrices lie, which are nearly all of it."""
    inputs: int
    outputs: int
    weight: Initializer
    bias: Initializer

    def init(self, seed: int, dtype: str) -> Tree:
        """Load the published body, and draw a head."""
        from polyopt.models.pretrained import minilm

        return self.under_new_head(minilm.load("numpy", dtype=dtype), seed, dtype)

    def under_new_head(self, body: Tree, seed: int, dtype: str) -> Tree:
        """Return the parameters ``body``, and a head as the initializers draw it."""
        from polyopt.models.pretrained import minilm

        shape = (minilm.WIDTH, self.outputs)
        return {
            "body": body,
            "head": {
                "weight": self.weight.sample(shape, seed, "head.weight", dtype),
                "bias": self.bias.sample(shape[1:], seed, "head.bias", dtype),
            },
        }

    def apply(self, xp: Ops, params: Tree, x: Array) -> Array:
        """Return the head's outputs for token numbers."""
        from polyopt.models.pretrained import minilm

        there = self._there(xp, params, x)
        return self._head(xp, params, minilm.features(xp, params["body"], x, there))

    def features(self, xp: Ops, params: Tree, x: Array) -> dict[str, Array]:
        """Return what each layer gives, and the outputs."""
        from polyopt.models.pretrained import minilm
        from polyopt.models.pretrained.bert import mean_pool

        there = self._there(xp, params, x)
        hidden = list(minilm.MINILM.hidden(xp, params["body"], x, there))
        tokens = xp.expand_dims(there, axis=-1)
        found = {f"body.encoder.layer.{i}": states * tokens for i, states in enumerate(hidden)}
        pooled = mean_pool(xp, hidden[-1], there)
        return found | {"pooled": pooled, OUTPUT: self._head(xp, params, pooled)}

    def _there(self, xp: Ops, params: Tree, x: Array) -> Array:
        """Return 1 for tokens, 0 for padding."""
        return xp.astype(xp.greater(x, xp.zeros_like(x)), params["head"]["weight"].dtype)

    def _head(self, xp: Ops, params: Tree, pooled: Array) -> Array:
        return xp.matmul(pooled, params["head"]["weight"]) + params["head"]["bias"]
