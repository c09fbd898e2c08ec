"""The models that recipes name, and which data each can read."""

from __future__ import annotations

from typing import TypeAlias

from polyopt.models import networks
from polyopt.models.networks import MLP, Linear
from polyopt.recipe.encoder import MiniLM

AnyModel: TypeAlias = MLP | Linear | MiniLM
MODELS: dict[str, type[Linear] | type[MLP] | type[MiniLM]] = {**networks.MODELS, "minilm": MiniLM}
"""By name."""
TOKENS = "vader_tokens"
"""The data of token numbers; all others are numbers."""


def fitting(data: str, task: str) -> list[str]:
    """Return the names of the models for ``data``, which is for ``task``.

    Examples
    --------
    >>> fitting("digits", "classification"), fitting("vader_tokens", "classification")
    (['mlp', 'softmax'], ['minilm'])
    """
    reads = [name for name in MODELS if (name == "minilm") == (data == TOKENS)]
    return [name for name in reads if task in MODELS[name].tasks]
