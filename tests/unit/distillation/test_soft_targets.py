"""Distillation losses against published formulas in float64, the frameworks' own, and differences."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import polyopt_numpy.ops as nops
from polyopt import convert, value_and_grad
from polyopt.backend.protocol import Backend
from polyopt.core.errors import InputError
from polyopt.core.random import generator
from polyopt.distillation import (
    DISTILLATION_LOSSES,
    AttentionTransfer,
    DecoupledKD,
    Ensemble,
    FeatureHint,
    RelationalAngle,
    RelationalDistance,
    SoftTargets,
    check_target,
    standardized,
)
from polyopt.models.losses import cross_entropy
from polyopt.schedules import Exponential
from polyopt.testing import assert_close
from polyopt.testing.distillation_reference import decoupled, hint, kl, slope, soft_targets, softmax

ROUNDING = "float64 roundings, in an order that frameworks choose"
DRAW = generator(0, "distillation")
STUDENT, TEACHER, SECOND = (DRAW.normal(size=(6, 5)) * 3 for _ in range(3))
LABELS = DRAW.integers(0, 5, size=6)
SOFT = DRAW.dirichlet(np.ones(5), size=6)
MAPS, THEIR_MAPS = DRAW.normal(size=(3, 4, 2, 3)), DRAW.normal(size=(3, 4, 2, 7))
POINTS, THEIR_POINTS = DRAW.normal(size=(5, 4)), DRAW.normal(size=(5, 3))


# The others stand in the conformance kit, which runs here too.
CASES: dict[str, tuple[Callable[..., Any], Any, tuple[Any, ...], Callable[[Any], Any]]] = {
    "soft labels": (
        SoftTargets(1.0, 0.2),
        STUDENT,
        (TEACHER, SOFT),
        lambda z: soft_targets(z, TEACHER, SOFT, 1.0, 0.2),
    ),
    "no labels": (
        SoftTargets(2.0, 1.0),
        STUDENT,
        (TEACHER,),
        lambda z: 4 * np.mean(kl(softmax(TEACHER / 2), softmax(z / 2))),
    ),
    "hint": (
        FeatureHint(),
        POINTS,
        (THEIR_POINTS, np.arange(12.0).reshape(4, 3)),
        lambda x: hint(x @ np.arange(12.0).reshape(4, 3), THEIR_POINTS),
    ),
    "hint, mean": (
        FeatureHint(convention="keras"),
        MAPS,
        (MAPS[::-1],),
        lambda x: np.mean((x - MAPS[::-1]) ** 2),
    ),
    "ensemble of losses": (
        Ensemble(DecoupledKD(), average="losses"),
        STUDENT,
        ([TEACHER, SECOND], LABELS),
        lambda z: sum(decoupled(z, v, LABELS, 4.0, 1.0, 8.0) for v in (TEACHER, SECOND)) / 2,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_those_of_the_published_formula(name: str, backend: Backend) -> None:
    loss, student, rest, reference = CASES[name]
    f = value_and_grad(lambda xp, params, *args: loss(xp, params["student"], *args))
    value, gradients = f(convert({"student": student}, backend.name), *convert(list(rest), backend.name))
    assert_close(value, reference(student), rtol=1e-12, because=ROUNDING)
    because = "differences of fourth order: 1e-16/1e-5 is what their subtraction loses"
    assert_close(gradients["student"], slope(reference, student), rtol=2e-8, atol=2e-8, because=because)


def test_the_projection_of_a_hint_is_trained_with_the_student(backend: Backend) -> None:
    r = generator(0, "r").normal(size=(4, 3))
    f = value_and_grad(lambda xp, p, teacher: FeatureHint()(xp, p["x"], teacher, p["r"]))
    _, gradients = f(convert({"x": POINTS, "r": r}, backend.name), convert(THEIR_POINTS, backend.name))
    assert_close(gradients["r"], POINTS.T @ (POINTS @ r - THEIR_POINTS) / 5, rtol=1e-12, because=ROUNDING)


@pytest.mark.parametrize("name", ["soft targets", "decoupled", "attention", "distance"])
def test_nothing_flows_into_the_teacher(name: str, backend: Backend) -> None:
    labels = (LABELS,)
    loss, student, teacher, rest = {
        "soft targets": (SoftTargets(3.0, 0.7), STUDENT, TEACHER, labels),
        "decoupled": (DecoupledKD(), STUDENT, TEACHER, labels),
        "attention": (AttentionTransfer(), MAPS, THEIR_MAPS, ()),
        "distance": (RelationalDistance(), POINTS, THEIR_POINTS, ()),
    }[name]
    f = value_and_grad(lambda xp, p, *args: loss(xp, p["s"], p["t"], *args))
    _, gradients = f(convert({"s": student, "t": teacher}, backend.name), *convert(list(rest), backend.name))
    none = gradients["t"] is None
    values = np.zeros_like(teacher) if none else backend.to_numpy(gradients["t"])
    assert_close(values, np.zeros_like(teacher), because="a constant has no gradient")


@pytest.mark.parametrize(
    "name", ["attention", "distance", "angle", "soft targets", "standardized", "decoupled"]
)
def test_where_student_and_teacher_agree_the_soft_gradient_is_0_and_finite(
    name: str, backend: Backend
) -> None:
    loss: Any = {
        "attention": AttentionTransfer(),
        "distance": RelationalDistance(),
        "angle": RelationalAngle(),
        "soft targets": SoftTargets(3.0, 1.0),
        "standardized": SoftTargets(3.0, 1.0, standardize="torch"),
        "decoupled": DecoupledKD(label_weight=0.0),
    }[name]
    student = MAPS if name == "attention" else POINTS
    if name in ("distance", "angle"):
        student = np.concatenate([POINTS, POINTS[:1]])  # two samples in one place
    if name == "standardized":
        student = np.concatenate([POINTS, np.ones((1, 4))])  # nothing to divide by
    rest = [np.array([0, 1, 2, 3, 0])] if name == "decoupled" else []
    f = value_and_grad(lambda xp, p, *args: loss(xp, p["s"], *args))
    value, gradients = f(convert({"s": student}, backend.name), *convert([student, *rest], backend.name))
    assert_close(value, 0.0, atol=1e-15, because="a compiler may round the two alike computations apart")
    largest = np.abs(backend.to_numpy(gradients["s"])).max()
    # The paper's attention is a norm: where it isn't 0 by a rounding, its gradient is a unit vector.
    assert largest <= (1.0 if name == "attention" else 1e-15)


def test_a_certain_teacher_and_huge_logits_stay_finite(backend: Backend) -> None:
    student = np.array([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0]])
    certain = np.array([[0.0, 1.0, 0.0], [0.5, 0.5, 0.0]])
    loss = SoftTargets(2.0, 1.0, teacher="probabilities")
    f = value_and_grad(lambda xp, p, t: loss(xp, p["s"], t))
    value, gradients = f(convert({"s": student}, backend.name), convert(certain, backend.name))
    q = np.array([1 / 3, 1 / 3, 1 / 3])
    soft = np.array([0.5, 0.5, 0.0])
    assert_close(value, 4 * np.mean([2e4 / 2, kl(soft, q)]), rtol=1e-12, because=ROUNDING)
    wanted = 2 * np.array([[1.0, -1.0, 0.0], q - soft]) / 2
    assert_close(gradients["s"], wanted, rtol=1e-12, atol=1e-15, because=ROUNDING)
    decoupled = value_and_grad(lambda xp, p, t, y: DecoupledKD()(xp, p["s"], t, y))
    value, gradients = decoupled(
        convert({"s": student}, backend.name), *convert([student[::-1] / 1e3, np.array([0, 1])], backend.name)
    )
    assert np.isfinite(backend.to_numpy(value))
    assert np.isfinite(backend.to_numpy(gradients["s"])).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_low_precision_students_have_a_loss_in_float32(dtype: str, backend: Backend) -> None:
    student = backend.from_numpy(STUDENT, dtype=dtype)
    f = value_and_grad(lambda xp, p, t, y: SoftTargets(3.0, 0.7)(xp, p["s"], t, y))
    value, gradients = f({"s": student}, *convert([TEACHER, LABELS], backend.name))
    assert backend.dtype_name(value) == "float32"
    assert backend.dtype_name(gradients["s"]) == dtype
    rounded = backend.to_numpy(student).astype(np.float64)
    expected = soft_targets(rounded, TEACHER.astype(np.float32).astype(np.float64), LABELS, 3.0, 0.7)
    assert_close(value, expected, rtol=2e-6, because="float32 sums of 5 classes")


def test_the_paper_is_torch_s_kl_div_by_batchmean_and_torch_is_its_default() -> None:
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    z, v, y = torch.tensor(STUDENT), torch.tensor(TEACHER), torch.tensor(LABELS)
    t = 3.0
    for convention, reduction in (("paper", "batchmean"), ("torch", "mean")):
        mine = SoftTargets(t, 0.4, convention=convention)(nops, STUDENT, TEACHER, LABELS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it advises against its own default
            divergence = functional.kl_div(
                torch.log_softmax(z / t, 1), torch.softmax(v / t, 1), reduction=reduction
            )
        its = 0.6 * functional.cross_entropy(z, y) + 0.4 * t * t * divergence
        assert_close(mine, its, rtol=1e-13, because=ROUNDING)
    mse = functional.mse_loss(torch.tensor(MAPS), torch.tensor(MAPS[::-1].copy()))
    assert_close(FeatureHint(convention="torch")(nops, MAPS, MAPS[::-1]), mse, rtol=1e-13, because=ROUNDING)


def test_the_authors_code_of_attention_relations_and_standardization_in_torch() -> None:
    torch = pytest.importorskip("torch")
    normalize = torch.nn.functional.normalize
    huber_loss = torch.nn.functional.smooth_l1_loss
    first = [torch.tensor(m.transpose(0, 3, 1, 2).copy()) for m in (MAPS, THEIR_MAPS)]
    a, b = (normalize(m.pow(2).mean(1).view(m.size(0), -1)) for m in first)
    mine = AttentionTransfer(channels="first", convention="torch")(
        nops, *(m.transpose(0, 3, 1, 2) for m in (MAPS, THEIR_MAPS))
    )
    assert_close(mine, (a - b).pow(2).mean(), rtol=1e-12, because=ROUNDING)

    def relations(x: Any) -> tuple[Any, Any]:
        d = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
        e = normalize(x.unsqueeze(0) - x.unsqueeze(1), p=2, dim=2)
        return d / d[d > 0].mean(), torch.bmm(e, e.transpose(1, 2))

    s, t = relations(torch.tensor(POINTS)), relations(torch.tensor(THEIR_POINTS))
    for loss, i in ((RelationalDistance(convention="torch"), 0), (RelationalAngle(convention="torch"), 1)):
        assert_close(loss(nops, POINTS, THEIR_POINTS), huber_loss(s[i], t[i]), rtol=1e-12, because=ROUNDING)
    z = torch.tensor(TEACHER)
    theirs = (z - z.mean(dim=-1, keepdims=True)) / (1e-7 + z.std(dim=-1, keepdims=True))
    assert_close(standardized(nops, TEACHER, "torch"), theirs, rtol=1e-13, because=ROUNDING)


def test_keras_distillation_is_the_keras_convention() -> None:
    keras = pytest.importorskip("keras")
    z, v = STUDENT.astype(np.float32), TEACHER.astype(np.float32) * 5
    # By the name that is its default, keras 3.15 finds a function, not the class that it looks for, and clips
    # the logits themselves to [1e-7, 1], without softmax and T².
    divergence = keras.losses.KLDivergence()
    soft = keras.distillation.LogitsDistillation(temperature=3.0, loss=divergence).compute_loss(v, z)
    supervised = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(LABELS, z)
    its = 0.3 * float(supervised) + 0.7 * float(soft)
    mine = SoftTargets(3.0, 0.3, convention="keras")(nops, z, v, LABELS)
    assert_close(mine, its, rtol=1e-6, because="float32")
    hint = keras.losses.MeanSquaredError()(THEIR_POINTS, POINTS[:, :3])
    assert_close(
        FeatureHint(convention="keras")(nops, POINTS[:, :3], THEIR_POINTS),
        float(hint),
        rtol=1e-6,
        because="keras computes in float32",
    )


@given(st.integers(0, 2**32 - 1), st.floats(0.5, 20.0), st.integers(2, 9))
@settings(max_examples=30, deadline=None)
def test_decoupled_puts_hinton_together(seed: int, temperature: float, classes: int) -> None:
    """KL = TCKD + (1 - p_t)·NCKD, sample by sample: eq. 6 of the paper."""
    draw = generator(seed, "decoupled")
    z, v, y = draw.normal(size=(1, classes)), draw.normal(size=(1, classes)), draw.integers(0, classes, 1)
    others = 1 - softmax(v / temperature)[0, y[0]]
    whole = SoftTargets(temperature, 1.0)(nops, z, v)
    parts = DecoupledKD(temperature, alpha=1.0, beta=float(others), label_weight=0.0)(nops, z, v, y)
    assert_close(whole, parts, rtol=1e-9, atol=1e-12, because="KL of near equals cancels")


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 10.0), st.floats(-5.0, 5.0))
@settings(max_examples=30, deadline=None)
def test_standardized_logits_forget_scale_and_shift(seed: int, scale: float, shift: float) -> None:
    z = generator(seed, "standardized").normal(size=(3, 6))
    assert_close(
        standardized(nops, z * scale + shift), standardized(nops, z), atol=1e-11, because="shift/scale rounds"
    )


def test_averaging_probabilities_or_losses_has_one_gradient(backend: Backend) -> None:
    base, found = SoftTargets(2.0, 0.5), []
    for average in ("probabilities", "losses"):
        loss = Ensemble(base, average, weights=(2.0, 1.0))
        f = value_and_grad(lambda xp, p, a, b, y, loss=loss: loss(xp, p["s"], [a, b], y))
        arguments = convert([TEACHER, SECOND, LABELS], backend.name)
        found.append(f(convert({"s": STUDENT}, backend.name), *arguments))
    assert_close(found[0][1]["s"], backend.to_numpy(found[1][1]["s"]), atol=1e-14, because=ROUNDING)
    p = [softmax(x / 2) for x in (TEACHER, SECOND)]
    mean = (2 * p[0] + p[1]) / 3
    gap = 0.5 * 4 * np.mean((2 * kl(p[0], mean) + kl(p[1], mean)) / 3)
    difference = backend.to_numpy(found[1][0]) - backend.to_numpy(found[0][0])
    assert_close(difference, gap, rtol=1e-9, because="a difference of losses")


def test_alpha_0_is_the_cross_entropy_and_a_traced_temperature_works(backend: Backend) -> None:
    z, v, y = convert([STUDENT, TEACHER, LABELS], backend.name)
    assert_close(
        SoftTargets(2.0, 0.0)(backend.ops, z, v, y),
        backend.to_numpy(cross_entropy(backend.ops, z, y)),
        rtol=1e-15,
        because="nothing is added",
    )
    f = value_and_grad(lambda xp, p, v, y, t, a: SoftTargets(t, a)(xp, p["s"], v, y))
    value, _ = f({"s": z}, v, y, *convert([np.asarray(3.0), np.asarray(0.7)], backend.name))
    assert_close(value, soft_targets(STUDENT, TEACHER, LABELS, 3.0, 0.7), rtol=1e-12, because=ROUNDING)


BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: SoftTargets(0.0, 0.5), r"temperature = 0\.0; expected a finite number in \(0\.0"),
    (lambda: SoftTargets(2.0, 1.5), r"alpha = 1\.5; expected a finite number in \[0\.0, 1\.0\]"),
    (lambda: SoftTargets(2.0, float("nan")), "alpha = nan"),
    (lambda: SoftTargets(2.0, 0.5, convention="kears"), "did you mean 'keras'"),
    (lambda: SoftTargets(Exponential(1.0, 0.5), 0.5), "temperature is a schedule; expected a number"),
    (lambda: SoftTargets(2.0, 0.5)(nops, STUDENT, TEACHER[:, :3], LABELS), "has 3 classes, the student 5"),
    (lambda: SoftTargets(2.0, 0.5)(nops, STUDENT, TEACHER[:3], LABELS), "has 3 samples, the student 6"),
    (lambda: SoftTargets(2.0, 0.5)(nops, STUDENT[0], TEACHER, LABELS), r"student's logits have shape \(5,\)"),
    (
        lambda: SoftTargets(2.0, 0.5)(nops, STUDENT, TEACHER),
        "target is None, but the labels have the weight 0.5",
    ),
    (lambda: SoftTargets(2.0, 0.5)(nops, STUDENT, TEACHER, LABELS[:2]), r"target has shape \(2,\)"),
    (lambda: DecoupledKD(beta=-1.0), r"beta = -1\.0"),
    (lambda: DecoupledKD()(nops, STUDENT, TEACHER, SOFT[:, :3]), r"\(6, 3\); expected labels \(6,\)"),
    (lambda: FeatureHint()(nops, POINTS, THEIR_POINTS, name="layer3"), r"'layer3'.*\(5, 4\).*\(5, 3\)"),
    (lambda: FeatureHint()(nops, POINTS, THEIR_POINTS, np.ones((3, 4))), r"projection has shape \(3, 4\)"),
    (lambda: AttentionTransfer()(nops, MAPS, THEIR_MAPS[:, :2], name="stage2"), "'stage2'.*same places"),
    (lambda: AttentionTransfer(power=3), "power = 3"),
    (lambda: RelationalAngle()(nops, POINTS, THEIR_POINTS[:2], name="pool"), r"'pool'.*\(2, 3\)"),
    (
        lambda: RelationalDistance()(nops, POINTS[:1], THEIR_POINTS[:1]),
        r"\(1, 4\).*expected \(n, s\) and .* at least 2",
    ),
    (
        lambda: Ensemble(SoftTargets(2.0, 1.0), weights=(1.0,))(nops, STUDENT, [TEACHER, SECOND]),
        "expected 1, one",
    ),
    (lambda: Ensemble(SoftTargets(2.0, 1.0))(nops, STUDENT, []), "0 teachers; expected at least one"),
    (
        lambda: Ensemble(SoftTargets(2.0, 1.0))(nops, STUDENT, [TEACHER, SECOND[:, :2]]),
        "teacher 1: .* 2 classes",
    ),
    (lambda: Ensemble(SoftTargets(2.0, 1.0), weights=(0.0, 0.0)), "add up to 0"),
    (lambda: Ensemble(SoftTargets(2.0, 1.0), weights=(np.float32(-1.0), 1.0)), r"weights\[0\] = .*-1\.0"),
    (lambda: Ensemble(SoftTargets(2.0, 1.0), weights=(1.0, -1.0)), r"weights\[1\] = -1\.0"),
    (lambda: Ensemble(DecoupledKD()), "expected a SoftTargets"),
    (lambda: SoftTargets(2.0, 1.0)(nops, STUDENT.astype(int), TEACHER), "the student's array is int64"),
    (lambda: standardized(nops, STUDENT, "tourch"), "did you mean 'torch'"),
    (lambda: check_target(np.array([0, 7]), 5), r"sample 1 has the label 7; expected one in \[0, 5\)"),
    (lambda: check_target(SOFT * 2, 5), "sample 0 has probabilities with the sum 2; expected 1"),
    (lambda: check_target(SOFT - 1, 5), "sample 0 has the probability -"),
    (lambda: check_target(SOFT, 4), r"probabilities \(n, 4\)"),
]


@pytest.mark.parametrize(("act", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_bad_input_is_named(act: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        act()


def test_a_teacher_s_array_of_another_framework_is_refused(backend: Backend) -> None:
    loss, its = SoftTargets(2.0, 1.0), convert({"t": TEACHER}, backend)["t"]
    mine = convert({"s": STUDENT}, backend)["s"]
    assert_close(loss(backend.ops, mine, TEACHER), loss(nops, STUDENT, TEACHER), rtol=1e-12, because=ROUNDING)
    if backend.name != "numpy":
        with pytest.raises(InputError, match=f"teacher's array is of {backend.name}, the student's of numpy"):
            loss(nops, STUDENT, its)


def test_sound_labels_pass_the_check(backend: Backend) -> None:
    check_target(backend.from_numpy(LABELS), 5)
    check_target(backend.from_numpy(SOFT, dtype="float32"), 5)


def test_the_table_of_names_is_whole() -> None:
    assert sorted(DISTILLATION_LOSSES) == list(DISTILLATION_LOSSES)
    assert all(kind.__doc__ for kind in DISTILLATION_LOSSES.values())


@pytest.mark.parametrize("temperature", [1.0, 10.0, 100.0, 1e3, 1e4])
def test_kl_is_accurate_at_every_temperature(backend: Backend, temperature: float) -> None:
    """Float32, against float64: far below the rounding of the log-probabilities, and never negative."""
    teacher, student = np.float32([[0.0, 1.0, 3.0]]), np.float32([[0.3, 0.9, 3.2]])
    p, q = (z.astype(np.float64) / temperature for z in (teacher, student))
    p, q = (z - np.log(np.exp(z).sum(-1, keepdims=True)) for z in (p, q))
    # Of float64 too: the terms are small differences, of 1e-16 beside 1e-10.
    expected = temperature**2 * np.sum(np.exp(p) * (p - q))
    loss = SoftTargets(temperature=temperature, alpha=1.0)
    got = np.asarray(backend.to_numpy(loss(backend.ops, *map(backend.from_numpy, (student, teacher)))))
    assert got >= 0
    assert_close(got.astype(np.float64), np.array(expected), rtol=1e-5, because="float32, some ten roundings")
