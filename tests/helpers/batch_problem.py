"""A small problem for the tests of the steps with batches of changing size."""

from __future__ import annotations

from typing import Any

import numpy as np

from polyopt import convert
from polyopt.backend.protocol import Backend
from polyopt.models.losses import log_softmax
from polyopt.models.networks import MLP

MODEL_SEED = 0


def model() -> MLP:
    from polyopt.models.initializers import Glorot, Zeros

    return MLP(5, 3, Glorot(), Zeros(), hidden=(8,), activation="tanh")


def losses(xp: Any, params: Any, x: Any, y: Any) -> Any:
    return -xp.sum(y * log_softmax(xp, model().apply(xp, params, x)), axis=-1)


def problem(backend: Backend, dtype: str, where: str) -> tuple[Any, Any]:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(40, 5)).astype(dtype), np.eye(3, dtype=dtype)[rng.integers(0, 3, size=40)]
    params = convert(model().init(MODEL_SEED, dtype), backend)
    return params, (x, y) if where == "host" else (backend.from_numpy(x), backend.from_numpy(y))
