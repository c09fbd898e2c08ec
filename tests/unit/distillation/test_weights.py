"""Distillation losses of weighted samples: one of weight 0 is not there, on all four backends."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest

import polyopt_numpy.ops as nops
from polyopt import convert, value_and_grad
from polyopt.backend.protocol import Backend
from polyopt.core.errors import InputError
from polyopt.core.random import generator
from polyopt.distillation import (
    AttentionTransfer,
    DecoupledKD,
    DistillationLoss,
    Ensemble,
    FeatureHint,
    RelationalAngle,
    RelationalDistance,
    SoftTargets,
)
from polyopt.testing import assert_close
from polyopt.testing.distillation_reference import cross_entropy, decoupled, huber, standard

ROUNDING = "float64 roundings, in an order that frameworks choose"
DRAW = generator(0, "weights of samples")
COUNTED = np.array([1, 1, 0, 1, 0, 1], np.float32)
KEPT = np.flatnonzero(COUNTED)
Z, V, SECOND = (2.0 * DRAW.normal(size=(6, 4)) for _ in range(3))
LABELS = DRAW.integers(0, 4, size=6)
SMOOTH = 0.9 * np.eye(4)[LABELS] + 0.1 / 4
MAPS, THEIR_MAPS = DRAW.normal(size=(6, 3, 2)), DRAW.normal(size=(6, 3, 5))
X, Y = DRAW.normal(size=(6, 3)), DRAW.normal(size=(6, 2))
MATRIX = DRAW.normal(size=(3, 2))

both = Ensemble(DecoupledKD(), "losses", weights=(2.0, 1.0))
mean = Ensemble(SoftTargets(2.0, 0.5), weights=(2.0, 1.0))
LOSSES: dict[str, Callable[..., Any]] = {
    "decoupled": lambda xp, a, **w: DecoupledKD(standardize="torch")(xp, a["z"], a["v"], a["smooth"], **w),
    "ensemble of losses": lambda xp, a, **w: both(xp, a["z"], [a["v"], a["second"]], a["y"], **w),
    "ensemble": lambda xp, a, **w: mean(xp, a["z"], [a["v"], a["second"]], a["y"], **w),
    "hint": lambda xp, a, **w: FeatureHint()(xp, a["features"], a["its"], a["matrix"], **w),
    "hint, mean": lambda xp, a, **w: FeatureHint("torch")(xp, a["features"], a["its"], a["matrix"], **w),
    "attention": lambda xp, a, **w: AttentionTransfer()(xp, a["maps"], a["their maps"], **w),
    "attention, squares": lambda xp, a, **w: AttentionTransfer(convention="torch")(
        xp, a["maps"], a["their maps"], **w
    ),
    "distance": lambda xp, a, **w: RelationalDistance()(xp, a["features"], a["its"], **w),
    "distance, mean": lambda xp, a, **w: RelationalDistance("torch")(xp, a["features"], a["its"], **w),
    "angle": lambda xp, a, **w: RelationalAngle()(xp, a["features"], a["its"], **w),
    "angle, mean": lambda xp, a, **w: RelationalAngle("torch")(xp, a["features"], a["its"], **w),
}
TRAINED = ("features", "maps", "matrix", "z")


def arrays() -> dict[str, Any]:
    names = ("z", "v", "second", "y", "smooth", "maps", "their maps", "features", "its")
    return dict(zip(names, (Z, V, SECOND, LABELS, SMOOTH, MAPS, THEIR_MAPS, X, Y), strict=True))


def parts(of: dict[str, Any], backend: str) -> tuple[Any, Any]:
    """What is trained, and the rest."""
    of = of | {"matrix": MATRIX}
    rest = {name: x for name, x in of.items() if name not in TRAINED}
    return convert({name: of[name] for name in TRAINED}, backend), convert(rest, backend)


def padded(filling: float = np.nan) -> dict[str, Any]:
    """The batch, with anything in the place of samples of weight 0."""
    found = arrays()
    for name in ("z", "v", "second", "smooth", "maps", "their maps", "features", "its"):
        found[name] = found[name].copy()
        found[name][COUNTED == 0] = filling
    return found


def alone() -> dict[str, Any]:
    return {name: x[KEPT] for name, x in arrays().items()}


@pytest.mark.parametrize("filling", [1e3, 1e300, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", LOSSES)
def test_a_sample_of_weight_0_is_not_there(name: str, filling: float) -> None:
    params, rest = parts(padded(filling), "numpy")
    found = LOSSES[name](nops, params | rest, weights=COUNTED)
    params, rest = parts(alone(), "numpy")
    assert_close(found, LOSSES[name](nops, params | rest), rtol=1e-12, because=ROUNDING)


EVERYWHERE = ("decoupled", "ensemble", "hint", "attention", "distance", "angle")


def test_nor_does_it_have_a_gradient(backend: Backend) -> None:
    """The losses in one, so that one program is compiled."""

    def total(xp: Any, params: Any, rest: Any, *weights: Any) -> Any:
        counted = {"weights": weights[0]} if weights else {}
        terms = [LOSSES[name](xp, params | rest, **counted) for name in EVERYWHERE]
        return xp.sum(xp.stack([(i + 1.0) * term for i, term in enumerate(terms)]))

    value, got = value_and_grad(total)(*parts(padded(), backend.name), convert(COUNTED, backend.name))
    expected, want = value_and_grad(total)(*parts(alone(), "numpy"))
    assert_close(value, expected, rtol=1e-12, because=ROUNDING)
    for name in TRAINED:
        found = backend.to_numpy(got[name])
        if name != "matrix":
            assert not found[COUNTED == 0].any()
            found = found[KEPT]
        assert_close(found, want[name], rtol=1e-10, atol=1e-12, because=ROUNDING)


@pytest.mark.parametrize("reduction", ["paper", "torch"])
def test_a_relation_has_the_product_of_its_samples_weights(reduction: str) -> None:
    w = generator(1, "w").uniform(0.1, 2.0, size=6)
    size, n = w.sum(), range(6)
    relations = []
    for x in (X, Y):
        d = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
        mean = sum(w[i] * w[j] * d[i, j] for i, j in product(n, n)) / (size**2 - (w**2).sum())
        relations.append(d / mean)
    total = sum(w[i] * w[j] * huber(float(relations[0][i, j] - relations[1][i, j])) for i, j in product(n, n))
    total = total / size**2 if reduction == "torch" else total
    found = RelationalDistance(reduction)(nops, X, Y, weights=w)
    assert_close(found, total, rtol=1e-12, because=ROUNDING)

    total = 0.0
    for i, j, k in product(n, n, n):
        if len({i, j, k}) == 3:
            cosines = []
            for x in (X, Y):
                a, b = x[i] - x[j], x[k] - x[j]
                cosines.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
            total += w[i] * w[j] * w[k] * huber(float(cosines[0] - cosines[1]))
    total = total / size**3 if reduction == "torch" else total
    found = RelationalAngle(reduction)(nops, X, Y, weights=w)
    assert_close(found, total, rtol=1e-12, because=ROUNDING)


@pytest.mark.parametrize("loss", [RelationalDistance(), RelationalDistance("torch"), RelationalAngle()])
def test_one_sample_that_counts_has_no_relations(loss: DistillationLoss) -> None:
    f = value_and_grad(lambda xp, p, y, w: loss(xp, p, y, weights=w))
    value, slope = f(X, Y, np.array([0, 0, 0.3, 0, 0, 0]))
    assert value == 0
    assert not slope.any()


def test_decoupled_takes_probabilities_and_standardizes() -> None:
    """The label is the likeliest; the cross-entropy has the probabilities as they are."""
    kd = decoupled(standard(Z), standard(V), LABELS, 3.0, 1.0, 8.0) - cross_entropy(standard(Z), LABELS)
    loss = DecoupledKD(3.0, standardize="paper")
    for target in (SMOOTH, LABELS):
        found = loss(nops, Z, V, target)
        assert_close(found, kd + cross_entropy(Z, target), rtol=1e-12, because=ROUNDING)
    plain = DecoupledKD(3.0)(nops, Z, V, SMOOTH)
    kd = decoupled(Z, V, LABELS, 3.0, 1.0, 8.0) - cross_entropy(Z, LABELS)
    assert_close(plain, kd + cross_entropy(Z, SMOOTH), rtol=1e-12, because=ROUNDING)


@pytest.mark.parametrize("name", LOSSES)
def test_weights_are_one_a_sample(name: str) -> None:
    given = arrays() | {"matrix": MATRIX}
    with pytest.raises(InputError, match=r"weights have shape \(2,\); expected one a sample, \(6,\)"):
        LOSSES[name](nops, given, weights=np.ones(2))
