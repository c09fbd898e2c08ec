"""NumPy: polyopt in place, beside hand-written expressions."""

from __future__ import annotations

from typing import Any

import numpy as np

from polyopt_bench.algorithms import Algorithm, algorithm
from polyopt_bench.contender import PEER_OF, Contender, Step
from polyopt_bench.numpy_expressions import expressions
from polyopt_bench.sets import Shapes, arrays, shapes
from polyopt_bench.workload import NETS, TARGET, Network, cheap, network, task_shapes

PEER = PEER_OF["numpy"]


def load(ours: bool, keras: bool) -> None:
    """Import what a process measures."""
    if ours:
        from polyopt.backend import registry

        registry.by_name("numpy")


def update(case: Any) -> list[Contender]:
    """Return those that make the update alone."""
    of, way = shapes(case.task), algorithm(case.optimizer)
    return [
        Contender("polyopt", lambda: _ours(of, way), ours=True),
        Contender(PEER, lambda: _expressions(of, way)),
    ]


def _ours(of: Shapes, way: Algorithm) -> Step:
    from polyopt import Optimizer

    optimizer = Optimizer(way.rule())
    params, grads = arrays(of, 0), arrays(of, 1)
    state = optimizer.init(params)

    def step() -> None:
        nonlocal params, state
        params, state = optimizer.step(params, grads, state, donate=True)

    return step


def _expressions(of: Shapes, way: Algorithm) -> Step:
    return expressions(way, list(arrays(of, 0).values()), list(arrays(of, 1).values()))


def train(case: Any) -> list[Contender]:
    """Return those that make the whole training step."""
    of, way = task_shapes(case.task), algorithm(case.optimizer)
    net = network(case.task) if case.task in NETS else None
    return [
        Contender("polyopt", lambda: _train_ours(of, way, net), ours=True),
        Contender(
            "hand-written gradients and expressions",
            lambda: _train_network(net, way) if net else _train_cheap(of, way),
        ),
    ]


def _train_ours(of: Shapes, way: Algorithm, net: Network | None) -> Step:
    from polyopt import Optimizer, TrainStep

    train_step = TrainStep(net.loss if net else cheap, Optimizer(way.rule()))
    carry = train_step.init(net.params if net else arrays(of, 0))
    data = (net.x, net.y) if net else (np.float32(TARGET),)

    def step() -> None:
        nonlocal carry
        carry, _ = train_step(carry, *data)

    return step


def _train_cheap(of: Shapes, way: Algorithm) -> Step:
    params = list(arrays(of, 0).values())
    grads = [np.empty_like(p) for p in params]
    move = expressions(way, params, grads)

    def step() -> float:
        loss = 0.0
        for p, g in zip(params, grads, strict=True):
            np.subtract(p, np.float32(TARGET), out=g)
            loss += 0.5 * float(np.vdot(g, g))
        move()
        return loss

    return step


def _train_network(net: Network, way: Algorithm) -> Step:
    params = {name: x.copy() for name, x in net.params.items()}
    grads = {name: np.empty_like(x) for name, x in params.items()}
    move = expressions(way, list(params.values()), list(grads.values()))
    last, rows = net.layers - 1, np.arange(len(net.y))

    def step() -> float:
        inputs = [net.x]
        for i in range(net.layers):
            z = inputs[-1] @ params[f"{i}.weight"] + params[f"{i}.bias"]
            inputs.append(z if i == last else np.maximum(z, 0))
        z = inputs.pop()
        z -= z.max(axis=1, keepdims=True)
        e = np.exp(z)
        total = e.sum(axis=1, keepdims=True)
        loss = float(np.mean(np.log(total[:, 0]) - z[rows, net.y]))
        d = e / total
        d[rows, net.y] -= 1
        d /= len(rows)
        for i in range(last, -1, -1):
            np.matmul(inputs[i].T, d, out=grads[f"{i}.weight"])
            np.sum(d, axis=0, out=grads[f"{i}.bias"])
            if i:
                d = (d @ params[f"{i}.weight"].T) * (inputs[i] > 0)
        move()
        return loss

    return step
