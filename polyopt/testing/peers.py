"""Every convention against the framework's own optimizer, in float64, the rate changing in mid-run.

The peer gets no argument but what the setting sets, so that its defaults are compared as well. A convention
is checked on its framework's own backend: ``torch`` with torch.optim on tensors, ``optax`` on JAX arrays,
``keras`` on TensorFlow variables.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from typing import Any, Final

import numpy as np

from polyopt.testing import trajectories
from polyopt.testing.case import STEPS, Case, Context, Missing, Skip
from polyopt.testing.rules_cases import RATE, Setting, pairs, settings

HOMES: Final = {"torch": "torch", "optax": "jax", "keras": "tensorflow"}
"""Convention -> the backend on which it is checked."""

TOLERANCE: Final = {"torch": 1e-12, "optax": 1e-12, "keras": 1e-5}
"""Relative to 1 + |parameter|, over 60 steps: sixty float64 roundings and their feedback through the state.
Keras keeps its rate and coefficients in float32."""

LOOSER: Final = {("nadam", "torch"): 1e-7}
"""torch keeps the running product of NAdam's momentum schedule in float32."""

Peer = Iterator[list[Any]]
"""The float64 parameters after each step."""


def cases(backend_name: str) -> Iterator[Case]:
    """Yield a case for each algorithm under the convention of the backend's own framework."""
    for algorithm, convention in pairs():
        if HOMES.get(convention) == backend_name:
            yield Case("peer", f"{algorithm}/{convention}", partial(check, algorithm, convention))


def check(algorithm: str, convention: str, context: Context) -> str:
    """Compare every setting of the algorithm, leaf by leaf after every step."""
    try:
        run = RUNNERS[convention]
        version = _version(convention)
    except ImportError as e:
        kind = Missing if context.backend.name in context.required else Skip
        raise kind(f"the peer {convention!r} can't be imported: {e}") from e
    found = settings(algorithm, convention, sparse=context.sparse or context.quick)
    if not found:
        raise Missing(f"the kit knows no setting of {algorithm!r} by the convention {convention!r}")
    for setting in found:
        steps = context.updates
        made = trajectories.run(context.backend, setting, steps)
        kinds = trajectories.dtypes(context.backend)
        start = trajectories.parameters(kinds, False)["float64"]
        grads = [g["float64"] for g in trajectories.gradients(kinds, False, steps)]
        names = list(start)
        peer = run(setting, [start[n] for n in names], ([g[n] for n in names] for g in grads))
        for t, (ours, theirs) in enumerate(zip(made.steps, peer, strict=False), start=1):
            for n, w in zip(names, theirs, strict=True):
                _compare(setting, n, t, ours["float64"][n], w)
    return f"{len(found)} settings against {version}"


def _compare(setting: Setting, leaf: str, t: int, got: Any, want: Any) -> None:
    key = setting.algorithm, setting.convention
    bound = LOOSER.get(key, TOLERANCE[setting.convention]) * (1 + np.abs(want))
    wrong = ~(np.abs(got - want) <= bound)
    if wrong.any():
        i = int(np.flatnonzero(wrong.reshape(-1))[0])
        raise AssertionError(
            f"{setting} on float64, leaf {leaf!r} element {i}, step {t}: {got.reshape(-1)[i].item()!r}; "
            f"{setting.convention} has {want.reshape(-1)[i].item()!r} (allowed: {bound.reshape(-1)[i]:.2g})"
        )


def _version(convention: str) -> str:
    if convention == "keras":
        os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    return f"{convention} {import_module(convention).__version__}"


def _renamed(fields: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(k, k): v for k, v in fields.items() if k not in ("decay", "b1", "b2", "form")}


# PyTorch

TORCH: Final = {
    "adadelta": "Adadelta",
    "adagrad": "Adagrad",
    "adam": "Adam",
    "adamax": "Adamax",
    "adamw": "AdamW",
    "gradient_descent": "SGD",
    "nadam": "NAdam",
    "radam": "RAdam",
    "rmsprop": "RMSprop",
    "sgd": "SGD",
}


def _torch(setting: Setting, params: list[Any], grads: Iterator[list[Any]]) -> Peer:
    torch = import_module("torch")
    fields = dict(setting.fields)
    options = _renamed(fields, {"initial_accumulator": "initial_accumulator_value"})
    if fields.keys() & {"b1", "b2"}:
        options["betas"] = (fields.get("b1", 0.9), fields.get("b2", 0.999))
    if fields.get("decay") == "decoupled":
        options["decoupled_weight_decay"] = True
    tensors = [torch.tensor(p) for p in params]
    optimizer = getattr(torch.optim, TORCH[setting.algorithm])(tensors, lr=RATE, **options)
    lr = trajectories.rate()
    for t, g in enumerate(grads):
        optimizer.param_groups[0]["lr"] = lr(t)
        for p, x in zip(tensors, g, strict=True):
            p.grad = torch.tensor(x)
        optimizer.step()
        yield [p.numpy().copy() for p in tensors]


# optax


def _optax_transformation(setting: Setting, lr: Any) -> Any:
    optax = import_module("optax")
    fields = dict(setting.fields)
    amsgrad, b = fields.pop("amsgrad", False), {k: v for k, v in fields.items() if k in ("b1", "b2")}
    options = b | _renamed(fields, {"alpha": "decay"})
    if setting.algorithm == "adamw" and amsgrad:
        decay = options.pop("weight_decay")
        return optax.chain(
            optax.scale_by_amsgrad(**options),
            optax.add_decayed_weights(decay),
            optax.scale_by_learning_rate(lr),
        )
    names = {"gradient_descent": "sgd", "adam": "amsgrad" if amsgrad else "adam"}
    return getattr(optax, names.get(setting.algorithm, setting.algorithm))(lr, **options)


def _optax(setting: Setting, params: list[Any], grads: Iterator[list[Any]]) -> Peer:
    jax, optax = import_module("jax"), import_module("optax")
    lr = trajectories.rate()
    table = jax.numpy.asarray([lr(t) for t in range(STEPS)])
    transformation = _optax_transformation(setting, lambda count: table[count])

    @jax.jit  # type: ignore[untyped-decorator]
    def step(p: Any, g: Any, s: Any) -> Any:
        updates, s = transformation.update(g, s, p)
        return optax.apply_updates(p, updates), s

    p = [jax.numpy.asarray(x) for x in params]
    state = transformation.init(p)
    for g in grads:
        p, state = step(p, [jax.numpy.asarray(x) for x in g], state)
        yield [np.array(x) for x in p]


# Keras

KERAS: Final = {
    "adadelta": "Adadelta",
    "adagrad": "Adagrad",
    "adam": "Adam",
    "adamax": "Adamax",
    "adamw": "AdamW",
    "gradient_descent": "SGD",
    "nadam": "Nadam",
    "rmsprop": "RMSprop",
    "sgd": "SGD",
}
_KERAS_NAMES: Final = {"alpha": "rho", "eps": "epsilon", "initial_accumulator": "initial_accumulator_value"}


def _keras(setting: Setting, params: list[Any], grads: Iterator[list[Any]]) -> Peer:
    keras = import_module("keras")
    fields = dict(setting.fields)
    betas = {name: fields[k] for k, name in (("b1", "beta_1"), ("b2", "beta_2")) if k in fields}
    options = betas | _renamed(fields, _KERAS_NAMES)
    variables = [keras.Variable(p, dtype="float64") for p in params]
    optimizer = getattr(keras.optimizers, KERAS[setting.algorithm])(learning_rate=RATE, **options)
    lr = trajectories.rate()
    for t, g in enumerate(grads):
        optimizer.learning_rate = lr(t)
        tensors = [keras.ops.convert_to_tensor(x, dtype="float64") for x in g]
        optimizer.apply_gradients(zip(tensors, variables, strict=True))
        yield [np.array(keras.ops.convert_to_numpy(v)) for v in variables]


RUNNERS: Final[dict[str, Callable[[Setting, list[Any], Iterator[list[Any]]], Peer]]] = {
    "torch": _torch,
    "optax": _optax,
    "keras": _keras,
}
