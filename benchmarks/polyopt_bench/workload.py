"""Whole training steps: the losses as polyopt takes them, and their data. The peers write theirs by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from polyopt.models.losses import cross_entropy
from polyopt.models.networks import relu
from polyopt_bench.sets import Arrays, Shapes, arrays, mlp, shapes

NETS: dict[str, tuple[int, ...]] = {
    "mlp-small": (64, 64, 64, 10),
    "mlp-medium": (784, 512, 512, 10),
    "mlp-large": (784, 2048, 2048, 10),
}
"""Widths of the multilayer perceptrons."""
BATCH = 128
TARGET = 0.25
"""The cheap loss draws every parameter here."""


@dataclass(frozen=True)
class Network:
    """A multilayer perceptron with ReLU under the cross-entropy, on one batch."""

    params: Arrays
    x: Any
    y: Any

    @property
    def layers(self) -> int:
        """Count the layers."""
        return len(self.params) // 2

    def loss(self, xp: Any, params: Any, x: Any, y: Any) -> Any:
        """Compute the cross-entropy, for ``value_and_grad``; ``y`` holds integer labels."""
        for i in range(self.layers):
            x = xp.matmul(x, params[f"{i}.weight"]) + params[f"{i}.bias"]
            if i + 1 < self.layers:
                x = relu(xp, x)
        return cross_entropy(xp, x, y)


def network(name: str) -> Network:
    """Make the network of that name with weights from a fixed seed."""
    widths = NETS[name]
    params = arrays(mlp(*widths), seed=0)
    for key, w in params.items():
        w *= 0.0 if key.endswith("bias") else float(np.sqrt(24 / w.shape[0]))
    random = np.random.default_rng(1)
    x = random.standard_normal((BATCH, widths[0])).astype(np.float32)
    return Network(params, x, random.integers(0, widths[-1], BATCH))


def cheap(xp: Any, params: Any, target: Any) -> Any:
    """Return ½ Σ (p - target)² over all leaves: a loss that costs next to nothing, for any parameter set."""
    total = None
    for p in params.values():
        part = 0.5 * xp.sum(xp.square(p - target))
        total = part if total is None else total + part
    return total


def task_shapes(name: str) -> Shapes:
    """Return the shapes of what a training case trains: a network of ``NETS`` or a parameter set."""
    return mlp(*NETS[name]) if name in NETS else shapes(name)
