"""Every loss of distillation in a recipe: its keys, its numbers, several teachers, going on after a stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polyopt_numpy.ops as nops
from polyopt import checkpoint, quantization
from polyopt.backend.protocol import Backend
from polyopt.core import tree
from polyopt.core.errors import InputError
from polyopt.models.initializers import Zeros
from polyopt.models.networks import MLP
from polyopt.recipe import Recipe
from polyopt.recipe.distillation import Distil
from polyopt.testing import assert_close, assert_same_bits
from polyopt.testing.distillation_reference import (
    angles,
    cross_entropy,
    decoupled,
    distances,
    hint,
    kl,
    soft_targets,
    softmax,
)
from polyopt.training import Result, train
from polyopt.training.phases.plan import PhasePlan, tasks

SHORT = {"steps": 4, "batch_size": 16}
STUDENT = {"model": {"name": "mlp", "hidden": [5]}}
HINT = {"student": "layers.0", "teacher": "layers.0"}
ALL = STUDENT | {
    "teacher": ["base", "int8"],
    "weights": [3.0, 1.0],
    "loss": "decoupled",
    "beta": 2.0,
    "hint": HINT | {"weight": 0.1},
    "distance": {"weight": 0.02, "student": "layers.0", "teacher": "layers.1"},
    "angle": {"weight": 3.0, "student": "output", "teacher": "output", "convention": "torch"},
}


def recipe(*phases: dict[str, Any], **changes: Any) -> Recipe:
    """A run of four batches, its weights in eight bits, and these phases."""
    table: dict[str, Any] = {
        "dtype": "float64",
        "data": {"name": "digits", "labels": [0, 1, 2]},
        "model": {"name": "mlp", "hidden": [8, 6]},
        "optimizer": {"name": "adam", "lr": 0.01},
        "train": SHORT,
    }
    named = [{"name": chr(ord("a") + i)} | phase for i, phase in enumerate(phases)]
    return Recipe.from_dict(table | {"phase": [{"name": "int8", "quantize": {}}, *named]} | changes)


def student(**keys: Any) -> dict[str, Any]:
    return {"distil": STUDENT | keys, "train": SHORT}


# Keys


def section(**keys: Any) -> Distil:
    found = recipe(student(**keys)).phase[1].distil
    assert found is not None
    return found


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"loss": "decopled"}, r"loss = 'decopled'; did you mean 'decoupled'\?"),
    ({"beta": 2.0}, r"beta: only for loss = 'decoupled'; found 'soft_targets'"),
    ({"loss": "soft_targets", "label_weight": 1.0}, r"label_weight: only for loss = 'decoupled'"),
    ({"alpha": 1.5}, r"alpha = 1\.5; expected less than or equal to 1"),
    ({"loss": "decoupled", "alpha": -1.0}, r"alpha = -1\.0; expected greater than or equal to 0"),
    ({"teacher": []}, r"teacher = \[\]; expected a name in quotes, or a list of them"),
    ({"teacher": 3}, r"teacher = 3; expected a name in quotes, or a list of them"),
    ({"teacher": ["base", "base"]}, r"teacher\.1 = 'base': this teacher stands there twice"),
    ({"teacher": ["base", "int"]}, r"teacher = 'int': no earlier phase; did you mean 'int8'\?"),
    ({"weights": [1.0]}, r"weights: there is one teacher; leave it out, or give a list of them"),
    ({"teacher": ["base", "int8"], "weights": [1.0]}, r"weights = \[1\.0\]; expected 2, one for each"),
    ({"teacher": ["base", "int8"], "weights": [0, 0]}, r"weights = \[0\.0, 0\.0\]; expected a sum above 0"),
    ({"teacher": ["base", "int8"], "weights": [1, -1]}, r"weights\.1 = -1; expected greater than or equal"),
    ({"hnt": HINT}, r"hnt: unknown key; did you mean 'hint'\?"),
    ({"hint": HINT | {"wieght": 2.0}}, r"hint\.wieght: unknown key; did you mean 'weight'\?"),
    ({"hint": {"student": "layers.0"}}, r"hint\.teacher: this key is missing; add it"),
    ({"hint": 2.0}, r"hint = 2\.0; expected a table"),
    ({"hint": HINT | {"weight": 0.0}}, r"hint\.weight = 0\.0; expected greater than 0"),
    ({"hint": HINT | {"student": 0}}, r"hint\.student = 0; expected a layer's name in quotes, or a list of"),
    (
        {"hint": HINT | {"student": ["layers.0", "output"]}},
        r"hint\.teacher = 'layers\.0'; expected as many .* 2",
    ),
    ({"attention": HINT | {"power": 3}}, r"attention\.power = 3; "),
    ({"angle": HINT | {"convention": "keras"}}, r"angle\.convention = 'keras'; "),
]


@pytest.mark.parametrize(("keys", "message"), WRONG, ids=[m[:40] for _, m in WRONG])
def test_what_is_wrong_is_said_in_one_line(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=rf"^phase\.1\.distil\.{message}") as caught:
        recipe(student(**keys))
    assert "\n" not in str(caught.value)


UNFIT: list[tuple[dict[str, Any], str]] = [
    (
        {"hint": HINT | {"student": "layer.0"}},
        r"hint\.student = 'layer\.0': the student has no such layer; did you mean 'layers\.0'\?",
    ),
    (
        {"teacher": ["int8", "base"], "distance": HINT | {"teacher": "layers.2"}},
        r"distance\.teacher = 'layers\.2': teacher 'int8' has no such layer; did you mean 'layers\.[01]'",
    ),
    (
        {"attention": HINT},
        r"attention\.student = 'layers\.0' gives \(n, 5\): a vector has no places to attend to; expected a "
        r"layer that gives \(n, places, channels\), or hint, distance or angle$",
    ),
]


@pytest.mark.parametrize(("keys", "message"), UNFIT, ids=[m[:40] for _, m in UNFIT])
def test_layers_that_do_not_fit_are_refused_before_training(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=rf"^phase 'a': distil\.{message}"):
        tasks(recipe(student(**keys)))


def test_single_samples_have_no_relations() -> None:
    phase = student(angle=HINT) | {"train": {"steps": 1, "batch_size": 1}}
    with pytest.raises(InputError, match=r"^phase 'a': distil\.angle: one sample has no relations; expected"):
        tasks(recipe(phase))


def test_micro_batches_teach_the_same_but_for_relations() -> None:
    size = {"schedule": "exponential", "initial": 8, "rate": 2.0, "steps": 2}
    results = []
    for cut in ({"buckets": [40]}, {"micro": 8}):
        sizes = {"size": size, "multiple": 8, "maximum": 32} | cut
        short = {"steps": 4, "batch_size": sizes}
        results.append(train(recipe({"distil": STUDENT | {"hint": HINT}, "train": short}), backend="numpy"))
    a, b = results
    assert_close(a.history.loss, b.history.loss, rtol=1e-10, because="sums in another order")
    phase = {"distil": STUDENT | {"distance": HINT}, "train": short}
    with pytest.raises(InputError, match=r"^phase 'a': distil\.distance: samples of different micro-batches"):
        tasks(recipe(phase))


def test_keys_have_the_papers_defaults_and_are_written_as_they_were_read() -> None:
    soft, dkd = section(), section(loss="decoupled")
    assert (soft.alpha, soft.beta, soft.label_weight, soft.temperature) == (0.9, None, None, 4.0)
    assert (dkd.alpha, dkd.beta, dkd.label_weight, dkd.temperature) == (1.0, 8.0, 1.0, 4.0)
    several = {"student": ["layers.0", "output"], "teacher": ["layers.1", "output"]}
    for keys in (ALL, {"hint": several, "teacher": ["base"]}, {"loss": "decoupled", "standardize": True}):
        found = recipe(student(**keys))
        assert Recipe.parse(found.to_toml(), "toml") == found == Recipe.parse(found.to_json(), "json")
        assert Recipe.from_dict(found.to_dict()).to_dict() == found.to_dict()
        assert hash(found) == hash(Recipe.from_dict(found.to_dict()))
    written = recipe(student(**ALL)).to_dict()["phase"][1]["distil"]
    assert written["teacher"] == ["base", "int8"]
    assert written["hint"] == {"weight": 0.1, "convention": "paper"} | HINT


# Numbers


def mlp(params: dict[str, Any], x: Any) -> list[Any]:
    """What each layer gives, in float64, by another route than the model's."""
    found = []
    for i in range(len(params) // 2):
        x = x @ params[f"layers.{i}.weight"] + params[f"layers.{i}.bias"]
        x = np.maximum(x, 0.0) if i < len(params) // 2 - 1 else x
        found.append(x)
    return found


def first_batch(found: Recipe) -> tuple[PhasePlan, Any, Any]:
    """The last phase, the samples of its first batch, and their labels."""
    task = tasks(found)[-1]
    course = task.recipe.course(len(task.dataset.x_train))
    rows = course.rows(course.start())
    return task, task.dataset.x_train[rows], task.dataset.y_train[rows]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """All of it, on NumPy."""
    folder = tmp_path_factory.mktemp("run")
    return train(recipe(student(**ALL)), backend="numpy", out=folder), folder


def teachers(folder: Path) -> list[dict[str, Any]]:
    base = checkpoint.load(folder / "checkpoint.safetensors").params
    eight = quantization.dequantize(quantization.load(folder / "phases" / "1-int8" / "model.safetensors"))
    return [base, eight]


def drawn(task: PhasePlan, shape: tuple[int, int], number: int) -> Any:
    return task.model.weight.sample(shape, task.recipe.seed, f"regressor.{number}.weight", "float64")


def test_the_first_loss_is_that_of_the_formulas(reference: tuple[Result, Path]) -> None:
    result, folder = reference
    task, x, y = first_batch(recipe(student(**ALL)))
    mine = mlp(tree.named(task.model.init(task.recipe.seed, "float64")), x)
    total = 0.0
    for number, (params, share) in enumerate(zip(teachers(folder), (0.75, 0.25), strict=True)):
        its = mlp(params, x)
        total += share * (
            decoupled(mine[1], its[2], y, 4.0, 1.0, 2.0)
            + 0.1 * hint(mine[0] @ drawn(task, (5, 8), number), its[0])
            + 0.02 * distances(mine[0], its[1])
            + 3.0 * angles(mine[1], its[2]) / 16**3
        )
    assert_close(
        result.history.loss[4], total, rtol=1e-12, because="float64 roundings of some thousand terms"
    )


def test_soft_targets_of_two_teachers_are_the_mean_of_their_probabilities(tmp_path: Path) -> None:
    phase = student(teacher=["base", "int8"], weights=[3, 1], temperature=2.0, alpha=0.6)
    found = train(recipe(phase, loss={"label_smoothing": 0.1}), backend="numpy", out=tmp_path)
    task, x, y = first_batch(recipe(phase))
    z = mlp(tree.named(task.model.init(task.recipe.seed, "float64")), x)[-1]
    first, second = (softmax(mlp(params, x)[-1] / 2) for params in teachers(tmp_path))
    soft = float(np.mean(kl(0.75 * first + 0.25 * second, softmax(z / 2))))
    expected = 0.4 * cross_entropy(z, 0.9 * np.eye(3)[y] + 0.1 / 3) + 0.6 * 4 * soft
    assert_close(found.history.loss[4], expected, rtol=1e-12, because="float64 roundings")


PLAIN: dict[str, Any] = {"optimizer": {"name": "gradient_descent", "lr": 0.01}}
SOME = {key: ALL[key] for key in ("model", "teacher", "weights", "hint", "distance")}


@pytest.fixture(scope="module")
def own() -> Result:
    """Some of it, on NumPy."""
    return train(recipe(student(**SOME), **PLAIN), backend="numpy")


def test_every_backend_teaches_the_same(backend: Backend, own: Result) -> None:
    found = train(recipe(student(**SOME), **PLAIN), backend=backend)
    because = "eight updates in float64"
    assert_close(found.history.loss, own.history.loss, rtol=1e-10, because=because)
    for path, x in own.params.items():
        assert_close(found.params[path], x, rtol=1e-10, atol=1e-12, because=because)


def test_regressors_are_trained_along_kept_and_left_behind(reference: tuple[Result, Path]) -> None:
    result, folder = reference
    kept = checkpoint.load(folder / "phases" / "2-a" / "checkpoint.safetensors")
    own = {"layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"}
    assert set(kept.params) == own | {"regressor.0.weight", "regressor.1.weight"}
    assert result.model is not None
    assert set(result.params) == set(quantization.load(result.model)) == own
    assert kept.state is not None
    assert "regressor.1.weight" in kept.state["slots"]["exp_avg"]
    task, _, _ = first_batch(recipe(student(**ALL)))
    for number in (0, 1):
        start = drawn(task, (5, 8), number)
        moved = np.abs(kept.params[f"regressor.{number}.weight"] - start).max()
        assert 0 < moved <= 4 * 0.0101, "four updates of Adam at the rate 0.01"


@pytest.mark.parametrize("ema", [None, {"decay": 0.9}])
def test_resumed_is_the_same_run(tmp_path: Path, ema: Any, reference: tuple[Result, Path]) -> None:
    changes = {} if ema is None else {"ema": ema, "clip": {"name": "clip_by_global_norm", "max_norm": 1.0}}
    found = recipe(student(**ALL), **changes)
    whole = reference[0] if ema is None else train(found, backend="numpy")
    train(found, backend="numpy", out=tmp_path, max_steps=6)
    second = train(found, backend="numpy", out=tmp_path, resume=True)
    assert second.history.loss == whole.history.loss
    assert second.test_loss == whole.test_loss
    assert set(second.params) == set(whole.params)
    for path, x in whole.params.items():
        assert_same_bits(second.params[path], x, what=path)


def test_padded_batches_teach_the_same() -> None:
    """Sizes of a schedule, with all losses: the padding alone differs, down to batches of one sample."""
    size = {"schedule": "exponential", "initial": 1, "rate": 8.0, "steps": 1}
    results = []
    for buckets in ([50], [1, 9, 20, 50]):
        sizes = {"size": size, "maximum": 50, "buckets": buckets}
        phase = {"distil": ALL, "train": {"steps": 4, "batch_size": sizes}}
        results.append(train(recipe(phase), backend="numpy"))
    a, b = results
    assert_close(a.history.loss, b.history.loss, rtol=1e-10, because="sums in another order")
    for path, x in a.params.items():
        assert_close(b.params[path], x, rtol=1e-8, atol=1e-10, because="Adam divides by small roots")


def test_a_last_batch_of_one_sample_has_no_relations() -> None:
    count = len(recipe().data.load().x_train)
    batch = next(size for size in range(20, count) if count % size == 1)
    phase = student(distance=HINT, angle=HINT) | {"train": {"epochs": 1, "batch_size": batch}}
    history = train(recipe(phase), backend="numpy").history.loss
    assert len(history) == 4 + count // batch + 1
    assert history[-1] < 10 < history[-2], "sums over pairs and triplets, and one without any"


def test_a_teacher_may_have_become_smaller() -> None:
    """How wide it is, is known when it has been pruned: the regressor fits, and equal widths need none."""
    shrunk = {"prune": {"criterion": "structured", "scope": "global", "sparsity": 0.4, "shrink": True}}
    found = train(recipe(shrunk, student(hint=HINT)), backend="numpy")
    assert np.isfinite(found.history.loss).all()
    wide = {"model": {"name": "mlp", "hidden": [8]}, "hint": HINT}
    work = tasks(recipe({"distil": wide, "train": SHORT}))
    assert len(work) == 3
    same = recipe({"distil": wide, "train": SHORT})
    first = train(same, backend="numpy")
    task, x, y = first_batch(same)
    mine = mlp(tree.named(task.model.init(task.recipe.seed, "float64")), x)
    base = train(recipe(), backend="numpy")
    its = mlp({path: np.asarray(p) for path, p in base.params.items()}, x)
    expected = soft_targets(mine[1], its[2], y, 4.0, 0.9) + hint(mine[0], its[0])
    assert_close(first.history.loss[4], expected, rtol=1e-12, because="float64 roundings")


def test_a_student_of_the_logits_alone_is_what_it_was(reference: tuple[Result, Path]) -> None:
    """One teacher in a list, and by its name."""
    one, listed = (train(recipe(student(teacher=t)), backend="numpy") for t in ("int8", ["int8"]))
    assert one.history.loss == listed.history.loss
    task, x, y = first_batch(recipe(student()))
    z = mlp(tree.named(task.model.init(task.recipe.seed, "float64")), x)[-1]
    expected = soft_targets(z, mlp(teachers(reference[1])[1], x)[-1], y, 4.0, 0.9)
    assert_close(one.history.loss[4], expected, rtol=1e-12, because="float64 roundings")


def test_a_teacher_reads_numbers_on_its_grids(tmp_path: Path) -> None:
    """What lies inside of it, too."""
    grids = {"quantize": {"activations": {"samples": 60}}}
    found = train(recipe(grids, student(teacher="a", hint=HINT)), backend="numpy", out=tmp_path)
    task, x, y = first_batch(recipe(grids, student(teacher="a", hint=HINT)))
    file = tmp_path / "phases" / "2-a" / "model.safetensors"
    params = quantization.dequantize(quantization.load(file))
    layers = [{k: params[f"layers.{i}.{k}"] for k in ("weight", "bias")} for i in range(3)]
    features = quantization.quantize_inputs(
        MLP(64, 3, Zeros(), Zeros(), hidden=(8, 6)).features, quantization.load_grids(file)
    )
    its = features(nops, {"layers": layers}, x)
    assert not np.array_equal(its["layers.0"], mlp(params, x)[0])
    mine = mlp(tree.named(task.model.init(task.recipe.seed, "float64")), x)
    total = soft_targets(mine[1], its["output"], y, 4.0, 0.9)
    total += hint(mine[0] @ drawn(task, (5, 8), 0), its["layers.0"])
    assert_close(found.history.loss[4], total, rtol=1e-12, because="float64 roundings")
