"""A run that moves from framework to framework in mid-training."""

from __future__ import annotations

import numpy as np

from polyopt import Adam, Optimizer, convert, value_and_grad
from polyopt.backend.protocol import Backend
from polyopt.core.random import generator
from polyopt.testing import assert_close, assert_same_bits


def test_a_run_visits_all_four_and_ends_in_the_bits_of_one_that_stayed(backends: list[Backend]) -> None:
    draw = generator(0, "test")
    params = {"w": draw.normal(size=(5, 3)), "b": [draw.normal(size=3).astype(np.float32)]}
    grads = [{"w": draw.normal(size=(5, 3)), "b": [draw.normal(size=3).astype(np.float32)]} for _ in range(8)]
    opt = Optimizer(Adam(lr=0.01))

    def run(route: list[str]) -> tuple[object, dict[str, object]]:
        p, s = params, opt.init(params)
        for name, g in zip(route, grads, strict=True):
            p, s = convert(p, name), convert(s, name)
            p, s = opt.step(p, convert(g, name), s)
        return convert(p, "numpy"), convert(s, "numpy")

    stayed, stayed_state = run(["numpy"] * 8)
    moved, moved_state = run([b.name for b in backends] * 2)
    assert_same_bits(moved["w"], stayed["w"])  # type: ignore[index]
    assert_same_bits(moved["b"][0], stayed["b"][0])  # type: ignore[index]
    assert moved_state["step"] == stayed_state["step"] == 8
    for slot, leaves in stayed_state["slots"].items():  # type: ignore[attr-defined]
        for path, value in leaves.items():
            assert_same_bits(moved_state["slots"][slot][path], value, what=f"{slot} of {path}")  # type: ignore[index]


def test_every_dtype_survives_the_way_there_and_back(backend: Backend) -> None:
    from polyopt.core.ops import DTYPES
    from polyopt_numpy import backend as numpy

    for name in DTYPES:
        x = np.array([[0, 1, 2], [3, 100, 7]]).astype(numpy.dtype(name))
        back = convert({"x": convert(x, backend.name)}, "numpy")["x"]
        assert_same_bits(back, x, what=name)


def test_one_loss_has_the_same_gradient_everywhere(backend: Backend) -> None:
    params = {"w": np.array([1.0, -2.0]), "b": np.array(0.5)}
    x = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    loss = value_and_grad(lambda xp, p, x: xp.mean(xp.square(xp.matmul(x, p["w"]) + p["b"])))
    value, grads = loss(convert(params, backend.name), convert(x, backend.name))
    residual = x @ params["w"] + 0.5
    why = "a few float64 roundings, in an order that frameworks choose"
    assert_close(value, np.mean(residual**2), rtol=1e-14, because=why)
    assert_close(grads["w"], 2 * x.T @ residual / 3, rtol=1e-14, because=why)
    assert_close(grads["b"], 2 * residual.mean(), rtol=1e-14, because=why)
