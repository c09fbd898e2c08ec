"""When the update of one XLA computation must wait for its loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polyopt.models.losses import cross_entropy
from polyopt.models.networks import relu

jax = pytest.importorskip("jax")
from polyopt_jax import compiled_update  # noqa: E402

WIDE = 256


def net(xp: Any, p: Any, x: Any) -> Any:
    h = relu(xp, xp.matmul(x, p["in"]) + p["bias"])
    return cross_entropy(xp, xp.matmul(h, xp.matrix_transpose(p["out"])), xp.asarray([0, 3]))


LOSSES = {
    "a network": (net, True),
    "a network jitted inside": (lambda xp, p, x: jax.jit(lambda p, x: net(xp, p, x))(p, x), True),
    "each element": (lambda xp, p, x: xp.sum(xp.square(p["in"])), False),
    "a network with a penalty": (lambda xp, p, x: net(xp, p, x) + xp.sum(p["out"] * p["out"]), False),
    "rows that are looked up": (lambda xp, p, x: xp.sum(xp.take(p["in"], xp.asarray([1, 2]), axis=0)), False),
    "each element, jitted inside": (lambda xp, p, x: jax.jit(lambda p: xp.sum(p["in"] * 2))(p), False),
}


@pytest.mark.parametrize("name", LOSSES)
def test_it_waits_unless_large_parameters_are_factors_alone(name: str) -> None:
    loss, alone = LOSSES[name]
    params = {"in": np.ones((WIDE, WIDE), "float32"), "out": np.ones((WIDE, WIDE), "float32")}
    params["bias"] = np.ones(WIDE, "float32")
    x = np.ones((2, WIDE), "float32")
    assert compiled_update._factors_alone(loss, jax.tree.map(jax.numpy.asarray, params), (x,)) == alone
