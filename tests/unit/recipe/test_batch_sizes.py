"""Batch sizes that follow a schedule, in recipes: from the file to the run."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from polyopt.backend.protocol import Backend
from polyopt.core.errors import InputError
from polyopt.engine.batches.plan import Cursor
from polyopt.recipe import Recipe
from polyopt.testing import assert_close, assert_same_bits
from polyopt.training import Result, train

SAMPLES = 456
SIZES = {
    "size": {"schedule": "exponential", "initial": 40, "rate": 2.0, "steps": 8},
    "multiple": 8,
    "maximum": 160,
}


def recipe(sizes: Any = None, **changes: Any) -> Recipe:
    table: dict[str, Any] = {
        "data": {"name": "breast_cancer"},
        "model": {"name": "softmax"},
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
        "train": {"epochs": 2, "batch_size": SIZES if sizes is None else sizes},
    }
    table = copy.deepcopy(table) | {"dtype": "float64"}
    for key, value in changes.items():
        if isinstance(value, dict):
            table[key] = table.get(key, {}) | value
        else:
            table[key] = value
    return Recipe.from_dict(table)


def test_it_is_written_as_it_was_read() -> None:
    found = recipe(SIZES | {"buckets": [40, 80, 160], "scaling": "sqrt", "base": 32})
    assert Recipe.parse(found.to_toml(), "toml") == found
    assert Recipe.parse(found.to_json(), "json") == found
    table = found.to_dict()["train"]["batch_size"]
    assert table == SIZES | {"buckets": [40, 80, 160], "scaling": "sqrt", "base": 32}
    assert recipe().replace(batch_size=16).train.batch_size == 16


def test_where_passes_end() -> None:
    """The sizes are 40, 40, 48, 48, 56, 64, 64, 72, 80, …; each pass takes every sample once."""
    found = recipe()
    course = found.course(SAMPLES)
    first = course.steps(1)
    assert first == 9  # 40 + 40 + 48 + 48 + 56 + 64 + 64 + 72 = 432, and 24 are left
    assert found.total_steps(SAMPLES) == course.steps(2) == 14
    assert [course.epochs(t) for t in (1, 9, 10, 14)] == [1, 1, 2, 2]
    seen: list[int] = []
    for place, parts in places(found, first):
        assert len(parts) == 1
        rows, counted = parts[0]
        assert len(rows) == len(counted)
        assert len(rows) in (8, 16, 32, 64, 128, 160)
        seen += rows[counted > 0].tolist()
        assert len(seen) > place.position
    assert sorted(seen) == list(range(SAMPLES))


def places(recipe: Recipe, steps: int) -> Iterator[tuple[Cursor, list[Any]]]:
    """Where each batch begins, and its arrays."""
    course = recipe.course(SAMPLES)
    place = course.start()
    for _ in range(steps):
        rows = course.rows(place)
        yield place, course.parts(rows)
        place = course.after(place, len(rows))
    assert course.steps(2) != steps or place.position == 2 * SAMPLES


def test_rates_follow_the_size() -> None:
    lr = recipe(SIZES | {"scaling": "sqrt"}).build_optimizer()
    assert_close(lr.hyperparameters({"step": 8})["lr"], 0.1 * 2**0.5, rtol=1e-15, because="one root")
    parts = [{"pattern": "bias", "optimizer": {"name": "sgd", "lr": 0.2}}]
    both = recipe(SIZES | {"scaling": "linear", "base": 80}, partition=parts).build_optimizer()
    rates = {k: v for k, v in both.hyperparameters({"step": 0}).items() if k.endswith("lr")}
    assert rates == {"0.lr": 0.1, "1.lr": 0.05}
    with pytest.raises(InputError, match=r"^train\.batch_size\.scaling: .*depends on the step alone"):
        recipe(SIZES | {"scaling": "sqrt"}, optimizer={"lr": {"schedule": "plateau", "initial": 0.1}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"siez": 1}, r"^train\.batch_size\.siez: unknown key; did you mean 'size'\?"),
        ({"size": 3}, r"^train\.batch_size\.size = 3; expected a table"),
        (
            {"size": {"schedule": "step", "initial": 8}},
            r"^train\.batch_size\.size\.steps: this key is missing",
        ),
        ({"multiple": 0}, r"^train\.batch_size\.multiple = 0; expected greater than or equal to 1"),
        ({"minimum": 12}, r"^train\.batch_size: minimum = 12; expected a multiple of 8"),
        (
            {"buckets": [80, 40]},
            r"^train\.batch_size\.buckets: sizes\[1\] = 40 follows 80; expected a larger",
        ),
        ({"scaling": "lin"}, r"^train\.batch_size\.scaling = 'lin'; did you mean 'linear'\?"),
        ({"base": 8}, r"^train\.batch_size\.base: nothing is scaled"),
        ({"micro": 0}, r"^train\.batch_size\.micro = 0; expected greater than or equal to 1"),
        (
            {"micro": 8, "buckets": [160]},
            r"^train\.batch_size\.buckets: arrays have the size of micro; leave out one of the two",
        ),
    ],
)
def test_one_line_for_what_is_wrong(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        recipe(SIZES | change)


def test_what_does_not_go_together() -> None:
    for sizes in (SIZES, SIZES | {"micro": 16}):
        for key, value in (("accumulate", 2), ("drop_last", True)):
            with pytest.raises(InputError, match=rf"^train\.{key} = {value}: .* leave it out$"):
                recipe(train={"batch_size": sizes, key: value})
    with pytest.raises(InputError, match=r"^train\.batch_size\.micro = 500; .* at most the 456 training"):
        train(recipe(SIZES | {"micro": 500}), backend="numpy")
    short = recipe(SIZES | {"buckets": [40, 80]})
    with pytest.raises(InputError, match=r"^train\.batch_size\.buckets: the last is 80, .* 160 samples"):
        train(short, backend="numpy")


def apart(a: Result, b: Result, because: str) -> None:
    assert_close(a.history.loss, b.history.loss, rtol=1e-10, because=because)
    for path, x in a.params.items():
        assert_close(b.params[path], x, rtol=1e-9, atol=1e-12, because=because)


@pytest.fixture(scope="module")
def reference() -> Result:
    """In one size that holds every batch."""
    return train(recipe(SIZES | {"buckets": [456]}), backend="numpy")


def test_every_backend_makes_the_same_run_and_compiles_little(
    backend: Backend, reference: Result, caplog: pytest.LogCaptureFixture
) -> None:
    if backend.name == "jax":
        import jax

        jax.config.update("jax_log_compiles", True)
        caplog.clear()
    try:
        found = train(recipe(), backend=backend)
    finally:
        if backend.name == "jax":
            jax.config.update("jax_log_compiles", False)
    apart(found, reference, "means of at most 160 samples in another order, 14 updates in float64")
    assert [(e.step, e.epoch) for e in found.history.evaluations] == [(9, 1), (14, 2)]
    if backend.name == "jax":
        messages = [r.getMessage().split(" with ")[0] for r in caplog.records]
        count = Counter(m for m in messages if m.startswith("Compiling jit(run)"))
        sizes = {len(rows) for _, parts in places(recipe(), 14) for rows, _ in parts}
        assert 0 < sum(count.values()) <= len(sizes) + 1, count


def test_it_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    whole = train(recipe(), backend="numpy")
    train(recipe(), backend="numpy", out=tmp_path / "run", max_steps=7)
    found = train(recipe(), backend="numpy", out=tmp_path / "run", resume=True)
    assert found.history.loss == whole.history.loss
    for path, x in whole.params.items():
        assert_same_bits(found.params[path], x, what=path)


def test_a_student_learns_from_padded_batches_the_same() -> None:
    student = {"name": "softmax"}
    results = []
    for buckets in ([160], [32, 48, 160]):
        sizes = SIZES | {"buckets": buckets}
        phase = {
            "name": "student",
            "train": {"epochs": 1, "batch_size": sizes},
            "distil": {"model": student, "temperature": 2.0},
        }
        results.append(train(recipe(64, phase=[phase]), backend="numpy"))
    apart(results[0], results[1], because="the padding alone differs")


def test_a_regression_has_weights_too() -> None:
    results = []
    for buckets in ([160], [32, 48, 160]):
        found = recipe(SIZES | {"buckets": buckets}, data={"name": "diabetes"}, model={"name": "linear"})
        results.append(train(found, backend="numpy"))
    apart(results[0], results[1], because="the padding alone differs")


# By micro-batches


def test_micro_batches_make_the_same_run(backend: Backend, reference: Result) -> None:
    found = train(recipe(SIZES | {"micro": 24}), backend=backend)
    apart(found, reference, "the same batches in portions: sums in another order, 14 updates in float64")
    assert found.history.size == reference.history.size
    assert found.history.size[:9] == [40, 40, 48, 48, 56, 64, 64, 72, 24]


def test_a_run_by_micro_batches_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    made = recipe(SIZES | {"micro": 16, "scaling": "sqrt"})
    whole = train(made, backend="numpy")
    train(made, backend="numpy", out=tmp_path / "run", max_steps=7)
    found = train(made, backend="numpy", out=tmp_path / "run", resume=True)
    assert (found.history.loss, found.history.size) == (whole.history.loss, whole.history.size)
    for path, x in whole.params.items():
        assert_same_bits(found.params[path], x, what=path)


NET = {"name": "mlp", "hidden": [4]}
AROUND: dict[str, Any] = {
    "clipping and an average": {
        "clip": {"name": "clip_by_global_norm", "max_norm": 0.2},
        "ema": {"decay": 0.9},
    },
    "gradients that are skipped": {"train": {"nonfinite": "skip"}},
    "a regression": {"data": {"name": "diabetes"}, "model": {"name": "linear"}},
    "masks": {"phase": [{"prune": {"sparsity": 0.5}}]},
    "layers that stay": {"model": NET, "phase": [{"finetune": {"freeze": [r"layers\.0"]}}]},
    "layers that thaw": {"model": NET, "phase": [{"finetune": {"unfreeze": {"steps": 2}}}]},
    "adapters": {"model": NET, "phase": [{"finetune": {"lora": {"rank": 2, "alpha": 4.0}}}]},
    "a student": {"phase": [{"distil": {"model": {"name": "softmax"}, "temperature": 2.0}}]},
    "rounded weights": {"phase": [{"quantize": {"bits": 8, "aware": True}}]},
}


@pytest.mark.parametrize("what", AROUND)
def test_micro_batches_go_with_all_that_padded_ones_go_with(what: str) -> None:
    results = []
    for arrays in ({"buckets": [456]}, {"micro": 24}):
        changes = copy.deepcopy(AROUND[what])
        sizes = SIZES | arrays
        for phase in changes.get("phase", ()):
            phase |= {"name": "next", "train": {"epochs": 1, "batch_size": sizes}}
        changes["train"] = {"epochs": 1, "batch_size": sizes} | changes.get("train", {})
        results.append(train(recipe(sizes, **changes), backend="numpy"))
    apart(results[0], results[1], because="the same batches in portions, float64")
    assert [p.sparsity for p in results[0].phases] == [p.sparsity for p in results[1].phases]


def test_a_fixed_size_in_micro_batches() -> None:
    """A batch of all samples, in the memory of a few."""
    one = {"size": {"schedule": "constant", "initial": 1000}, "micro": 50}
    whole, portions = (train(recipe(size, train={"epochs": 3}), backend="numpy") for size in ("full", one))
    apart(portions, whole, "one sum of 456 in another order, float64")
    assert portions.history.size == [456] * 3
