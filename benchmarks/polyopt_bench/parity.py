"""Measure the deviation of each convention from torch.optim, optax and Keras over many steps.

    python -m polyopt_bench.parity [--steps 10000] [--json]

Every pair gets the same gradients, fixed beforehand, and a learning rate that falls by ten in mid-run. The
deviation is relative to the largest parameter of its leaf; "element" is the worst of any single element
relative to itself, which grows without bound where one passes through zero. The bounds are those that polyopt
promises.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from polyopt import Optimizer
from polyopt.optim import OPTIMIZERS
from polyopt.schedules import Schedule

SHAPES = {"bias": (16,), "weight": (12, 16), "kernel": (3, 3, 4, 4)}
LR, FACTOR = 1e-2, 0.1

Arrays = dict[str, Any]
Run = Callable[["Work", Any], Arrays]
"""``run(work, make)``: the parameters at the end; ``make`` builds that framework's optimizer."""


@dataclass(frozen=True)
class Drop(Schedule):
    """``LR`` for the first ``at`` updates, then ``LR * FACTOR``."""

    at: int

    def value(self, xp: Any, t: Any) -> Any:
        """Return the rate, which drops once."""
        return xp.where(t < self.at, LR, LR * FACTOR)


@dataclass(frozen=True)
class Work:
    """The same start and the same gradients for everyone; each array stacks all steps."""

    params: Arrays
    gradients: Arrays
    steps: int

    @property
    def rate(self) -> Drop:
        """Return a rate that drops in the middle of the run."""
        return Drop(self.steps // 2)

    def at(self, i: int) -> Arrays:
        """Return the gradients of step ``i``."""
        return {name: g[i] for name, g in self.gradients.items()}


@dataclass(frozen=True)
class Pair:
    """One algorithm under one convention, its peer, and how close they are promised to be."""

    label: str
    convention: str
    algorithm: str
    settings: dict[str, Any]
    peer: Callable[[Any], Any]
    bound: float


@dataclass(frozen=True)
class Row:
    """The outcome of one pair."""

    algorithm: str
    convention: str
    steps: int
    deviation: float
    element: float
    bound: float

    @property
    def ok(self) -> bool:
        """Return True if the deviation is within its bound."""
        return self.deviation <= self.bound


def work(steps: int, seed: int = 0) -> Work:
    """Parameters and gradients from a fixed seed."""
    random = np.random.default_rng(seed)
    params = {name: random.normal(size=shape) for name, shape in SHAPES.items()}
    gradients = {name: random.normal(size=(steps, *shape)) for name, shape in SHAPES.items()}
    return Work(params, gradients, steps)


def pairs() -> list[Pair]:
    """Return what the foundation promises, and for every other algorithm the same bound as for Adam."""
    return [*_torch_pairs(), *_optax_pairs(), *_keras_pairs()]


def _torch_pairs() -> list[Pair]:
    import torch.optim as o

    momentum = {"momentum": 0.9}
    nesterov = momentum | {"nesterov": True}
    rows: list[tuple[str, str, dict[str, Any], Any, float]] = [
        ("SGD", "sgd", {}, o.SGD, 1e-13),
        ("momentum", "sgd", momentum, o.SGD, 1e-13),
        ("Nesterov", "sgd", nesterov, o.SGD, 1e-13),
        ("Adam", "adam", {}, o.Adam, 1e-13),
        ("AdamW", "adamw", {}, o.AdamW, 1e-11),
        ("AMSGrad", "adam", {"amsgrad": True}, o.Adam, 1e-13),
        ("AdaGrad", "adagrad", {}, o.Adagrad, 1e-13),
        ("RMSprop", "rmsprop", {"centered": True, **momentum}, o.RMSprop, 1e-13),
        ("Adadelta", "adadelta", {}, o.Adadelta, 1e-13),
        ("Adamax", "adamax", {}, o.Adamax, 1e-13),
        ("NAdam", "nadam", {}, o.NAdam, 2e-9),
        ("RAdam", "radam", {}, o.RAdam, 1e-13),
    ]
    return [
        Pair(label, "torch", name, kw, partial(make, lr=LR, **kw), bound)
        for label, name, kw, make, bound in rows
    ]


def _optax_pairs() -> list[Pair]:
    import optax as o

    momentum = {"momentum": 0.9}
    nesterov = momentum | {"nesterov": True}
    rows: list[tuple[str, str, dict[str, Any], Any, float]] = [
        ("SGD", "sgd", {}, o.sgd, 1e-13),
        ("momentum", "sgd", momentum, o.sgd, 1e-13),
        ("Nesterov", "sgd", nesterov, o.sgd, 1e-13),
        ("Adam", "adam", {}, o.adam, 1e-13),
        ("AdamW", "adamw", {"weight_decay": 1e-2}, o.adamw, 1e-11),
        ("AdaGrad", "adagrad", {}, o.adagrad, 1e-13),
        ("RMSprop", "rmsprop", {"centered": True, **momentum}, o.rmsprop, 1e-13),
        ("Adadelta", "adadelta", {}, o.adadelta, 1e-13),
        ("Adamax", "adamax", {}, o.adamax, 1e-13),
        ("NAdam", "nadam", {}, o.nadam, 1e-13),
        ("RAdam", "radam", {}, o.radam, 1e-13),
    ]
    return [
        Pair(label, "optax", name, kw, partial(make, **kw), bound) for label, name, kw, make, bound in rows
    ]


def _keras_pairs() -> list[Pair]:
    import keras.optimizers as o

    momentum = {"momentum": 0.9}
    rows: list[tuple[str, str, dict[str, Any], Any]] = [
        ("SGD", "sgd", {}, o.SGD),
        ("momentum", "sgd", momentum, o.SGD),
        ("Nesterov", "sgd", momentum | {"nesterov": True}, o.SGD),
        ("Adam", "adam", {}, o.Adam),
        ("AdamW", "adamw", {}, o.AdamW),
    ]
    return [Pair(label, "keras", name, kw, partial(make, **kw), 1e-5) for label, name, kw, make in rows]


def run_ours(job: Work, pair: Pair) -> Arrays:
    """polyopt, on NumPy."""
    rule = OPTIMIZERS[pair.algorithm](lr=job.rate, convention=pair.convention, **pair.settings)
    optimizer = Optimizer(rule)
    params = job.params
    state = optimizer.init(params)
    for i in range(job.steps):
        params, state = optimizer.step(params, job.at(i), state)
    return params


def run_torch(job: Work, make: Any) -> Arrays:
    """Return ``torch.optim``."""
    import torch

    params = {name: torch.tensor(x, requires_grad=True) for name, x in job.params.items()}
    optimizer = make(list(params.values()))
    for i in range(job.steps):
        optimizer.param_groups[0]["lr"] = job.rate(i)
        for name, g in job.at(i).items():
            params[name].grad = torch.from_numpy(g)
        optimizer.step()
    return {name: p.detach().numpy() for name, p in params.items()}


def run_optax(job: Work, make: Any) -> Arrays:
    """optax, jitted, all steps in one scan."""
    import jax
    import jax.numpy as jnp
    import optax

    with jax.enable_x64(True):
        transformation = make(lambda t: jnp.where(t < job.rate.at, LR, LR * FACTOR))
        params = {name: jnp.asarray(x) for name, x in job.params.items()}

        def step(carry: Any, g: Any) -> Any:
            params, state = carry
            updates, state = transformation.update(g, state, params)
            return (optax.apply_updates(params, updates), state), None

        gradients = {name: jnp.asarray(g) for name, g in job.gradients.items()}
        start = (params, transformation.init(params))
        (params, _), _ = jax.jit(lambda start, g: jax.lax.scan(step, start, g))(start, gradients)
        return {name: np.asarray(p) for name, p in params.items()}


def run_keras(job: Work, make: Any) -> Arrays:
    """Keras on TensorFlow."""
    import keras
    import tensorflow as tf

    optimizer = make(LR)
    params = {name: keras.Variable(x, dtype="float64", name=name) for name, x in job.params.items()}
    variables = list(params.values())
    for i in range(job.steps):
        if i == job.rate.at:
            optimizer.learning_rate = LR * FACTOR
        optimizer.apply([tf.constant(g) for g in job.at(i).values()], variables)
    return {name: np.asarray(p.value) for name, p in params.items()}


RUNS: dict[str, Run] = {"torch": run_torch, "optax": run_optax, "keras": run_keras}


def compare(pair: Pair, steps: int) -> Row:
    """Run both and measure how far apart they end."""
    job = work(steps)
    mine, theirs = run_ours(job, pair), RUNS[pair.convention](job, pair.peer)
    apart = {name: np.abs(mine[name] - theirs[name]) for name in theirs}
    deviation = max(float(apart[n].max() / np.abs(x).max()) for n, x in theirs.items())
    element = max(float((apart[n] / np.abs(x)).max()) for n, x in theirs.items())
    return Row(pair.label, pair.convention, steps, deviation, element, pair.bound)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 1 where a bound does not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    options = parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    rows = []
    if not options.json:
        print(f"{'algorithm':10} {'convention':10} {'deviation':>10} {'element':>10} {'bound':>8}")
    for pair in pairs():
        rows.append(row := compare(pair, options.steps))
        if not options.json:
            mark = "" if row.ok else "  EXCEEDED"
            print(
                f"{row.algorithm:10} {row.convention:10} {row.deviation:10.1e} {row.element:10.1e} "
                f"{row.bound:8.0e}{mark}",
                flush=True,
            )
    if options.json:
        print(json.dumps({"steps": options.steps, "rows": [asdict(row) | {"ok": row.ok} for row in rows]}))
    return 0 if all(row.ok for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
