"""Make small transformers with weights of the published names, and compute them by torch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from polyopt.core import random, tree

WIDTH, INNER, WORDS, PLACES = 12, 20, 30, 9


def small(dtype: str = "float64") -> Any:
    """Parameters of two layers, large enough that attention is far from uniform."""
    draw = random.generator(0, "small BERT")

    def dense(outputs: int, inputs: int) -> dict[str, Any]:
        scale = 1.5 / math.sqrt(inputs)
        return {
            "weight": (draw.standard_normal((outputs, inputs)) * scale).astype(dtype),
            "bias": draw.standard_normal(outputs).astype(dtype),
        }

    def norm() -> dict[str, Any]:
        return {
            "weight": (1 + 0.3 * draw.standard_normal(WIDTH)).astype(dtype),
            "bias": (0.3 * draw.standard_normal(WIDTH)).astype(dtype),
        }

    def layer() -> dict[str, Any]:
        heads = {name: dense(WIDTH, WIDTH) for name in ("query", "key", "value")}
        return {
            "attention": {"self": heads, "output": {"dense": dense(WIDTH, WIDTH), "LayerNorm": norm()}},
            "intermediate": {"dense": dense(INNER, WIDTH)},
            "output": {"dense": dense(WIDTH, INNER), "LayerNorm": norm()},
        }

    tables = {"word": WORDS, "position": PLACES, "token_type": 2}
    embeddings: dict[str, Any] = {
        f"{name}_embeddings": {"weight": draw.standard_normal((rows, WIDTH)).astype(dtype)}
        for name, rows in tables.items()
    }
    return {
        "embeddings": embeddings | {"LayerNorm": norm()},
        "encoder": {"layer": [layer() for _ in range(2)]},
    }


def reference(named: dict[str, torch.Tensor], ids: Any, mask: Any, heads: int, eps: float) -> torch.Tensor:
    """BERT from torch's own functions: the pooled hidden states."""
    (n, length), p = ids.shape, named

    def norm(x: torch.Tensor, at: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], p[f"{at}.LayerNorm.weight"], p[f"{at}.LayerNorm.bias"], eps)

    def dense(x: torch.Tensor, at: str) -> torch.Tensor:
        return F.linear(x, p[f"{at}.weight"], p[f"{at}.bias"])

    e = "embeddings"
    x = F.embedding(torch.tensor(ids, dtype=torch.int64), p[f"{e}.word_embeddings.weight"])
    x = x + p[f"{e}.position_embeddings.weight"][:length] + p[f"{e}.token_type_embeddings.weight"][0]
    x = norm(x, e)
    seen = torch.tensor(mask)[:, None, None, :]
    depth = 1 + max(int(name.split(".")[2]) for name in p if name.startswith("encoder."))
    for at in (f"encoder.layer.{i}" for i in range(depth)):
        q, k, v = (
            dense(x, f"{at}.attention.self.{name}").view(n, length, heads, -1).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).reshape(x.shape)
        x = norm(dense(mixed, f"{at}.attention.output.dense") + x, f"{at}.attention.output")
        inner = F.gelu(dense(x, f"{at}.intermediate.dense"))
        x = norm(dense(inner, f"{at}.output.dense") + x, f"{at}.output")
    weight = torch.tensor(mask, dtype=x.dtype)[..., None]
    return (x * weight).sum(1) / weight.sum(1)


def tensors(params: Any, *, grad: bool = False) -> dict[str, torch.Tensor]:
    """As float64 of their own memory."""
    named = tree.named(params)
    return {k: torch.tensor(np.array(x), dtype=torch.float64, requires_grad=grad) for k, x in named.items()}
