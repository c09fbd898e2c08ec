"""Distillation losses and their gradients against the published formulas, in float64 on the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, Final

import numpy as np

from polyopt import value_and_grad
from polyopt.core import tree
from polyopt.distillation import (
    AttentionTransfer,
    DecoupledKD,
    Ensemble,
    FeatureHint,
    RelationalAngle,
    RelationalDistance,
    SoftTargets,
)
from polyopt.testing.agreement import within
from polyopt.testing.case import Case, Context
from polyopt.testing.distillation_reference import (
    angles,
    attention,
    cross_entropy,
    decoupled,
    distances,
    hint,
    kl,
    slope,
    soft_targets,
    softmax,
    standard,
)

ROUNDING: Final = {"float64": 1e-12, "float32": 1e-5}
"""Of a loss: sums of tens of terms, in an order that the framework chooses, and its own exp and log."""
DIFFERENCES: Final = {"float64": 2e-8, "float32": 1e-4}
"""Of a gradient, held against differences of fourth order: 1e-16/1e-5 is what their subtraction loses."""

_DRAW: Final = np.random.default_rng(21)
Z, V, V2 = (2.0 * _DRAW.normal(size=(6, 5)) for _ in range(3))
LABELS: Final = _DRAW.integers(0, 5, size=6)
MAPS, THEIR_MAPS = _DRAW.normal(size=(3, 2, 4, 3)), _DRAW.normal(size=(3, 2, 4, 6))
POINTS, THEIR_POINTS = _DRAW.normal(size=(5, 4)), _DRAW.normal(size=(5, 3))


def standardized_targets(z: Any) -> float:
    """Compute by hand the loss with standardized logits, at T = 2 and α = 0.1."""
    p, q = softmax(standard(V) / 2.0), softmax(standard(z) / 2.0)
    return 0.1 * cross_entropy(z, LABELS) + 0.9 * 4.0 * float(np.mean(kl(p, q)))


def ensemble(z: Any) -> float:
    """Hinton's, of the mean of two teachers' softened probabilities, three to one."""
    p = 0.75 * softmax(V / 2.0) + 0.25 * softmax(V2 / 2.0)
    return 0.5 * cross_entropy(z, LABELS) + 0.5 * 4.0 * float(np.mean(kl(p, softmax(z / 2.0))))


@dataclass(frozen=True)
class Loss:
    """``loss(xp, student, *others)`` and its formula as a function of the student alone."""

    name: str
    loss: Callable[..., Any]
    student: Any
    others: tuple[Any, ...]
    want: Callable[[Any], float]


LOSSES: Final[tuple[Loss, ...]] = (
    Loss(
        "soft targets", SoftTargets(3.0, 0.7), Z, (V, LABELS), lambda z: soft_targets(z, V, LABELS, 3.0, 0.7)
    ),
    Loss(
        "soft targets, torch",
        SoftTargets(3.0, 0.7, convention="torch"),
        Z,
        (V, LABELS),
        lambda z: 0.3 * cross_entropy(z, LABELS) + soft_targets(z, V, LABELS, 3.0, 1.0) * 0.7 / 5,
    ),
    Loss(
        "soft targets, keras",
        SoftTargets(3.0, 0.7, convention="keras"),
        Z,
        (V, LABELS),
        lambda z: soft_targets(z, V, LABELS, 3.0, 0.3),
    ),
    Loss(
        "soft targets of probabilities",
        SoftTargets(2.0, 0.5, teacher="probabilities"),
        Z,
        (softmax(V), LABELS),
        lambda z: soft_targets(z, V, LABELS, 2.0, 0.5),
    ),
    Loss(
        "standardized logits",
        SoftTargets(2.0, 0.9, standardize="paper"),
        Z,
        (V, LABELS),
        standardized_targets,
    ),
    Loss(
        "decoupled",
        DecoupledKD(2.0, 1.0, 4.0),
        Z,
        (V, LABELS),
        lambda z: decoupled(z, V, LABELS, 2.0, 1.0, 4.0),
    ),
    Loss(
        "feature hint",
        FeatureHint(),
        POINTS,
        (THEIR_POINTS @ np.eye(3, 4),),
        lambda x: hint(x, THEIR_POINTS @ np.eye(3, 4)),
    ),
    Loss(
        "feature hint, projected, torch",
        FeatureHint(convention="torch"),
        POINTS,
        (THEIR_POINTS, np.ones((4, 3)) / 2),
        lambda x: float(np.mean((x @ np.ones((4, 3)) / 2 - THEIR_POINTS) ** 2)),
    ),
    Loss("attention", AttentionTransfer(), MAPS, (THEIR_MAPS,), lambda x: attention(x, THEIR_MAPS)),
    Loss(
        "attention, torch",
        AttentionTransfer(convention="torch"),
        MAPS,
        (THEIR_MAPS,),
        lambda x: attention(x, THEIR_MAPS, squares=True),
    ),
    Loss(
        "relations, distances",
        RelationalDistance(),
        POINTS,
        (THEIR_POINTS,),
        lambda x: distances(x, THEIR_POINTS),
    ),
    Loss("relations, angles", RelationalAngle(), POINTS, (THEIR_POINTS,), lambda x: angles(x, THEIR_POINTS)),
    Loss(
        "ensemble",
        Ensemble(SoftTargets(2.0, 0.5), weights=(3.0, 1.0)),
        Z,
        ([V, V2], LABELS),
        ensemble,
    ),
    Loss(
        "ensemble of losses",
        Ensemble(SoftTargets(2.0, 0.5), average="losses", weights=(3.0, 1.0)),
        Z,
        ([V, V2], LABELS),
        lambda z: 0.75 * soft_targets(z, V, LABELS, 2.0, 0.5) + 0.25 * soft_targets(z, V2, LABELS, 2.0, 0.5),
    ),
)

OP_BY_OP: Final = ("soft targets", "attention")
"""What is tried so where every operation is compiled; the others are made of the same operations."""


def cases() -> Iterator[Case]:
    """Yield a case for each loss, and one for the teacher."""
    for loss in LOSSES:
        yield Case("distillation", loss.name, partial(check, loss))
    yield Case("distillation", "the teacher is a constant", teacher)


def check(case: Loss, context: Context) -> None:
    """Value and gradient, compiled and not, in both dtypes; ``sparse``: few op by op, in float64 alone."""
    backend = context.backend
    value, gradient = case.want(case.student), slope(case.want, case.student)

    def loss(xp: Any, student: Any, others: Any) -> Any:
        return case.loss(xp, student, *others)

    for d, compiled in product(("float64", "float32"), (False, True)):
        if context.sparse and not compiled and (d == "float32" or case.name not in OP_BY_OP):
            continue
        others = tree.map_leaves(
            lambda x, d=d: backend.from_numpy(x if x.dtype.kind == "i" else x.astype(d)), list(case.others)
        )
        student = backend.from_numpy(case.student, dtype=d)
        got, g = value_and_grad(loss, compiled=compiled)(student, others)
        what = f"{case.name} in {d}, compiled={compiled}"
        assert tuple(got.shape) == (), f"{what}: shape {tuple(got.shape)}; expected ()"
        assert backend.dtype_name(got) == d, f"{what}: dtype {backend.dtype_name(got)}"
        within(what, backend.to_numpy(got), value, ROUNDING[d] * (1 + abs(value)))
        largest = float(np.abs(gradient).max())
        within(f"{what}: gradient", backend.to_numpy(g), gradient, DIFFERENCES[d] * (1 + largest))


def teacher(context: Context) -> None:
    """Check that no gradient flows into what the teacher gives."""
    backend = context.backend

    def loss(xp: Any, both: Any, labels: Any) -> Any:
        return SoftTargets(2.0, 0.5)(xp, both["student"], both["teacher"], labels)

    given = {"student": backend.from_numpy(Z), "teacher": backend.from_numpy(V)}
    _, g = value_and_grad(loss)(given, backend.from_numpy(LABELS))
    found = g["teacher"]
    none = found is None or not np.asarray(backend.to_numpy(found)).any()
    assert none, "a gradient flows into the teacher's logits"
    within(
        "the student's gradient",
        backend.to_numpy(g["student"]),
        slope(lambda z: soft_targets(z, V, LABELS, 2.0, 0.5), Z),
        DIFFERENCES["float64"],
    )
