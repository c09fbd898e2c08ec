"""Fine-tuning: rates and decay by layer, L2-SP, LoRA, new layers, frozen ones, and accumulated batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from polyopt import SGD, Adam, AdamW, Optimizer, chain, value_and_grad
from polyopt.core import tree
from polyopt.engine.batches import AccumulatedStep
from polyopt.finetuning import (
    L2SP,
    LoRA,
    freeze,
    layer_decay,
    layer_rates,
    layer_weight_decay,
    reinitialize,
    unmerge,
)
from polyopt.models.initializers import He
from polyopt.testing.agreement import Place, in_numpys_bits, same_bits, unit, within
from polyopt.testing.case import Case, Context
from polyopt.testing.reference import reference
from polyopt.testing.rules_cases import DEFAULTS
from polyopt.testing.stages import Leaf, StageCase, stage_cases


def cases() -> Iterator[Case]:
    """Yield a case for each check of fine-tuning, and for the stages."""
    for function in (frozen, new_layers, lora_merged, lora_gradient, accumulated):
        yield Case("finetuning", function.__name__, function)
    yield from stage_cases("finetuning", STAGES)


def _weights(seed: int = 0) -> Any:
    rng = np.random.default_rng([41, seed])
    return {
        "body": {"w": rng.normal(size=(6, 5)).astype(np.float32)},
        "head": {"w": rng.normal(size=(5, 4))},
    }


def frozen(context: Context) -> None:
    """Frozen leaves keep their bits and have no slots; the others move as without them."""
    params, grads = _weights(), _weights(1)

    def work(place: Place, rule: Any = None) -> dict[str, Any]:
        optimizer = Optimizer(freeze(Adam(lr=0.125), "^body") if rule is None else rule)
        now, slopes = place(params), place(grads)
        state = optimizer.init(now)
        for _ in range(3):
            now, state = optimizer.step(now, slopes, state)
        slots = {f"{s}: {p}": x for s, leaves in state["slots"].items() for p, x in leaves.items()}
        return tree.named(now) | slots

    got = in_numpys_bits(context.backend, work, "freeze")
    trained = in_numpys_bits(context.backend, lambda place: work(place, Adam(lr=0.125)), "Adam")
    same_bits("freeze: 'body.w'", got["body.w"], params["body"]["w"], "the start")
    same_bits("freeze: 'head.w'", got["head.w"], trained["head.w"], "the optimizer that freezes nothing")
    kept = [name for name in got if name.endswith(": body.w")]
    assert not kept, f"freeze: a frozen leaf has slots: {kept}"


def new_layers(context: Context) -> None:
    """Check that a layer drawn anew has the bits that its seed and path say; the others keep theirs."""
    params, draw = _weights(), He(distribution="normal", convention="paper")

    def work(place: Place) -> dict[str, Any]:
        return tree.named(reinitialize(place(params), {"^head": draw}, seed=3))

    got = in_numpys_bits(context.backend, work, "reinitialize")
    same_bits("reinitialize: 'body.w'", got["body.w"], params["body"]["w"], "the start")
    want = np.asarray(draw.sample((5, 4), 3, "head.w", "float64"))
    same_bits("reinitialize: 'head.w'", got["head.w"], want, "the draw on the host")


def _adapters() -> Any:
    rng = np.random.default_rng(42)
    return {"body.w": {"A": rng.normal(size=(6, 2)), "B": rng.normal(size=(2, 5))}}


_LORA: Final = LoRA("^body", rank=2, alpha=3.0)


def lora_merged(context: Context) -> None:
    """W + (α/r)·A·B rounded once, in NumPy's bits; taken out again W has its own."""
    params, adapters = _weights(), _adapters()

    def work(place: Place) -> dict[str, Any]:
        merged, originals = _LORA.merge(place(params), place(adapters))
        back = unmerge(merged, originals)
        drawn = _LORA.init(place(params), seed=5)["body.w"]
        return {"merged": merged["body"]["w"], "unmerged": back["body"]["w"], "A": drawn["A"]}

    got = in_numpys_bits(context.backend, work, "LoRA")
    a, b = (adapters["body.w"][k] for k in "AB")
    start = params["body"]["w"]
    want = start.astype(np.float64) + 1.5 * (a @ b)
    within("LoRA.merge", got["merged"], want, unit("float32") * np.abs(want))
    same_bits("unmerge", got["unmerged"], start, "the start")


def lora_gradient(context: Context) -> None:
    """Check the gradient of Σ (W + s·A·B)·G by A and B: s·G·Bᵀ and s·Aᵀ·G."""
    backend = context.backend
    slope = np.random.default_rng(43).normal(size=(6, 5))
    params = {"body": {"w": _weights()["body"]["w"].astype(np.float64)}}
    adapters = _adapters()

    def loss(xp: Any, params: Any, slope: Any) -> Any:
        return xp.sum(xp.multiply(params["body"]["w"], slope))

    given = (tree.map_leaves(backend.from_numpy, x) for x in (adapters, params, slope))
    _, g = value_and_grad(_LORA.loss(loss))(*given)
    a, b = (adapters["body.w"][k] for k in "AB")
    for name, want in (("A", 1.5 * slope @ b.T), ("B", 1.5 * a.T @ slope)):
        got = backend.to_numpy(g["body.w"][name])
        within(f"LoRA: the gradient of {name}", got, want, 1e-12)


def accumulated(context: Context) -> None:
    """Batches of several sizes, in micro-batches of 4, move as their mean gradient says."""
    backend = context.backend
    rng = np.random.default_rng(44)
    x, y, w = rng.normal(size=(20, 3)), rng.normal(size=20), rng.normal(size=3)

    def losses(xp: Any, params: Any, x: Any, y: Any) -> Any:
        return xp.square(xp.matmul(x, params["w"]) - y)

    step = AccumulatedStep(losses, Optimizer(SGD(lr=0.0625)), micro=4)
    params = {"w": backend.from_numpy(w)}
    state = step.optimizer.init(params)
    for size in (4, 10, 3, 20):
        rows = np.arange(size)
        params, state, outcome = step(params, state, (x, y), rows)
        error = x[rows] @ w - y[rows]
        within("AccumulatedStep: the loss", backend.to_numpy(outcome.loss), np.mean(error**2), 1e-12)
        w = w - 0.0625 * 2 * x[rows].T @ error / size
        within(f"AccumulatedStep: a batch of {size}", backend.to_numpy(params["w"]), w, 1e-12)


def _scaled(algorithm: str, factor: float, weight_decay: float = 0.0) -> Any:
    """Return the reference of an algorithm at ``factor`` of its rate."""
    fields = {"weight_decay": weight_decay} if weight_decay else {}
    inner = reference(algorithm, "paper", DEFAULTS[algorithm]["paper"] | fields)

    def step(memory: Any, p: Any, g: Any, t: int, lr: float, leaf: Leaf) -> Any:
        return inner(memory, p, g, t, factor * lr)

    return step


def _l2sp(memory: Any, p: Any, g: Any, t: int, lr: float, leaf: Leaf) -> Any:
    """Li et al., 2018, eq. 4: descent on the loss + α/2·‖p - start‖²."""
    return p - lr * (g + 0.25 * (p - leaf.start))


def _l2(memory: Any, p: Any, g: Any, t: int, lr: float, leaf: Leaf) -> Any:
    return p - lr * (g + 0.125 * p)


STAGES: Final[tuple[StageCase, ...]] = (
    StageCase("L2SP, SGD", lambda lr: chain(L2SP(alpha=0.25), SGD(lr=lr)), _l2sp),
    StageCase(
        "L2SP of a new layer, SGD",
        lambda lr: chain(L2SP(alpha=0.25, beta=0.125, new="^float64"), SGD(lr=lr)),
        _l2,
    ),
    StageCase(
        "layer_rates(Adam)", lambda lr: layer_rates(Adam(lr=lr), {"^float64": 0.25}), _scaled("adam", 0.25)
    ),
    StageCase(
        "layer_decay(Adam)",
        lambda lr: layer_decay(Adam(lr=lr), ["^float64", "^float32"], 0.5),
        _scaled("adam", 0.5),
    ),
    StageCase(
        "layer_weight_decay(AdamW)",
        lambda lr: layer_weight_decay(AdamW(lr=lr), {"^float64": 0.0625}),
        _scaled("adamw", 1.0, 0.0625),
    ),
)
