"""Batch sizes that follow the gradient noise, in recipes: the sizes, what is saved, and where a run ends."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyopt.backend import registry
from polyopt.backend.protocol import Backend
from polyopt.core.errors import InputError
from polyopt.models.datasets import Dataset
from polyopt.optim.explain import explain
from polyopt.recipe import Recipe
from polyopt.testing import assert_close, assert_same_bits
from polyopt.training import Event, Result, compare, train
from polyopt.training.compare import drift, losses_apart
from polyopt.training.objective import Objective
from polyopt.training.trainer import Trainer
from polyopt.training.tuning import tune

SAMPLES = 456
NOISE = {"initial": 32, "factor": 4.0, "decay": 0.8}
SIZES = {"noise": NOISE, "micro": 16, "maximum": 128}


def recipe(sizes: Any = None, **changes: Any) -> Recipe:
    table: dict[str, Any] = {
        "dtype": "float64",
        "data": {"name": "breast_cancer"},
        "model": {"name": "softmax"},
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
        "train": {"epochs": 3, "batch_size": SIZES if sizes is None else sizes},
    }
    table = copy.deepcopy(table)
    for key, value in changes.items():
        table[key] = table.get(key, {}) | value if isinstance(value, dict) else value
    return Recipe.from_dict(table)


SCALED = recipe(SIZES | {"scaling": "sqrt"})


@pytest.fixture(scope="module")
def reference() -> Result:
    return train(SCALED, backend="numpy")


# What it is


def test_it_is_written_as_it_was_read() -> None:
    found = recipe(SIZES | {"scaling": "linear", "base": 32})
    assert Recipe.parse(found.to_toml(), "toml") == found
    assert Recipe.parse(found.to_json(), "json") == found
    expected = SIZES | {"noise": NOISE | {"change": 2.0}, "scaling": "linear", "base": 32}
    assert found.to_dict()["train"]["batch_size"] == expected
    assert found.total_steps(SAMPLES) is None
    assert found.replace(steps=7).total_steps(SAMPLES) == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise": 3}, r"^train\.batch_size\.noise = 3; expected a table"),
        ({"noise": {}}, r"^train\.batch_size\.noise\.initial: this key is missing"),
        ({"noise": NOISE | {"decai": 1}}, r"^train\.batch_size\.noise\.decai: unknown key; .* 'decay'\?"),
        ({"noise": NOISE | {"change": 1.0}}, r"^train\.batch_size\.noise\.change = 1\.0; expected greater"),
        ({"noise": NOISE | {"initial": 16}}, r"^train\.batch_size\.noise\.initial = 16; expected from 32"),
        ({"noise": NOISE | {"initial": 40}}, r"^train\.batch_size\.noise\.initial = 40; .* multiple of 16"),
        ({"maximum": 100}, r"^train\.batch_size\.maximum = 100; expected a multiple of 16"),
        ({"micro": None}, r"^train\.batch_size\.micro: this key is missing; .* from micro-batches$"),
        ({"noise": None}, r"^train\.batch_size\.size: this key is missing; add it, or noise$"),
        ({"size": {"schedule": "constant", "initial": 8}}, r"^train\.batch_size\.noise: there is a size too"),
        ({"multiple": 16}, r"^train\.batch_size\.multiple: .* multiples of micro.*; leave it out$"),
        ({"minimum": 32}, r"^train\.batch_size\.minimum: .* leave it out$"),
        ({"buckets": [128]}, r"^train\.batch_size\.buckets: arrays have the size of micro"),
    ],
)
def test_one_line_for_what_is_wrong(change: dict[str, Any], message: str) -> None:
    table = {key: value for key, value in (SIZES | change).items() if value is not None}
    with pytest.raises(InputError, match=message):
        recipe(table)


def test_what_does_not_fit_is_said_before_anything_is_written(tmp_path: Path) -> None:
    large = recipe({"noise": NOISE | {"initial": 480}, "micro": 16})
    with pytest.raises(
        InputError, match=r"^train\.batch_size\.noise\.initial = 480; expected at most the 456"
    ):
        train(large, backend="numpy", out=tmp_path / "run")
    with pytest.raises(InputError, match=r"^train\.batch_size\.scaling: .*depends on the step alone"):
        recipe(SIZES | {"scaling": "sqrt"}, optimizer={"lr": {"schedule": "plateau", "initial": 0.1}})
    phase = {"name": "more", "train": {"epochs": 1, "batch_size": {"noise": NOISE, "micro": 600}}}
    with pytest.raises(
        InputError, match=r"^phase\.0\.train\.batch_size\.noise\.initial = 32; .*multiple of 600"
    ):
        recipe(phase=[phase])
    assert not (tmp_path / "run").exists()


# The sizes


def test_the_size_comes_to_the_noise_scale_of_a_known_problem() -> None:
    """Least squares at rest: tr Σ and ‖G‖² are sums over the samples; the size comes to factor times B."""
    rng = np.random.default_rng(0)
    n, features, micro, factor = 3000, 6, 20, 10.0
    x = rng.normal(size=(n, features))
    y = x @ rng.normal(size=(features, 1)) + 3.0 * rng.normal(size=(n, 1))
    data = Dataset("known", "regression", 0, x, y, x[:2], y[:2])
    sizes = {"noise": {"initial": 40, "factor": factor, "decay": 0.97}, "micro": micro, "maximum": 1000}
    still = recipe(
        sizes,
        data={"name": "diabetes"},
        model={"name": "linear", "init": "zeros"},
        optimizer={"lr": 0.0, "momentum": 0.0},
        train={"epochs": 4},
    )
    engine = Trainer(still, data, registry.by_name("numpy"), None, "step")
    at = engine.start()
    while not engine.ended(at):
        engine.advance(at)
    each = -2.0 * y * np.concatenate([x, np.ones((n, 1))], axis=1)
    mean, spread = each.mean(axis=0), each.var(axis=0).sum()
    # Drawn from n samples without putting back, both estimates lose a part in n - 1.
    expected = factor * (spread * n / (n - 1)) / (mean @ mean - spread / (n - 1))
    assert 4 * micro < expected < 500
    found = at.history.size[20:]
    because = "averages over some 30 updates: a few per cent; half a micro-batch of rounding"
    assert_close(np.median(found), expected, rtol=0.15, because=because)
    # The last of a pass takes what is left.
    assert sum(s % micro != 0 for s in found) <= 4


def test_sizes_and_numbers_are_those_of_every_backend(backend: Backend, reference: Result) -> None:
    found = train(SCALED, backend=backend)
    assert found.history.size == reference.history.size
    assert len(set(found.history.size)) > 3
    assert sum(found.history.size) == 3 * SAMPLES
    because = "means of at most 128 samples in another order, some 30 updates in float64"
    assert_close(found.history.loss, reference.history.loss, rtol=1e-9, because=because)
    for path, x in reference.params.items():
        assert_close(found.params[path], x, rtol=1e-8, atol=1e-11, because=because)


@pytest.mark.parametrize("name", ["jax", "tensorflow"])
def test_no_size_compiles_anything_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[int] = []
    original = Objective.of_output

    def watched(self: Objective, xp: Any, output: Any, y: Any, weights: Any = None) -> Any:
        traced.append(int(y.shape[0]))
        return original(self, xp, output, y, weights)

    monkeypatch.setattr(Objective, "of_output", watched)
    found = train(SCALED, backend=name)
    assert len(set(found.history.size)) > 3
    # JAX looks at a loss once before it differentiates it.
    assert traced in ([16], [16, 16])


# The rate


def test_the_rate_follows_the_size_and_its_own_schedule() -> None:
    """Without momentum and noise in the loss, a step is the rate times the gradient: it is read off."""
    step = {"schedule": "step", "initial": 0.1, "steps": 4, "rate": 0.5}
    made = recipe(SIZES | {"scaling": "linear", "base": 64}, optimizer={"lr": step})
    optimizer = made.build_optimizer()
    state = {"step": 0, "missed": {}, "slots": {}, "observed": {"lr": {"size": 64.0}}}
    assert optimizer.hyperparameters(state)["lr"] == 0.1
    state = optimizer.observe(state | {"step": 5}, 96, "size")
    assert_close(optimizer.hyperparameters(state)["lr"], 0.1 * 0.5 * 1.5, rtol=1e-15, because="two products")
    assert optimizer.observe(state, 3.0) == state
    engine = Trainer(made, made.data.load(), registry.by_name("numpy"), None, "step")
    at = engine.start()
    for _ in range(6):
        engine.advance(at)
        assert at.state["observed"]["lr"] == {"size": float(at.history.size[-1])}
    text = explain(optimizer.rule)
    assert "lr(t) = RateByReportedSize(rate=Step(" in text


def test_a_plateau_and_a_size_each_hear_of_their_own() -> None:
    """λ by the loss, the rate by the size, in one optimizer."""
    plateau = {"schedule": "plateau", "initial": 0.1, "patience": 0, "factor": 0.5, "threshold": 0.9}
    made = recipe(SIZES | {"scaling": "sqrt"}, optimizer={"weight_decay": plateau})
    found = train(made, backend="numpy")
    observed = found.state["observed"]
    assert observed["lr"] == {"size": float(found.history.size[-1])}
    ends = np.cumsum(found.history.size) % SAMPLES
    first = int(np.flatnonzero(ends == 0)[0]) + 1
    because = "the mean of the first pass was the best; a float64 sum in another order"
    best = observed["weight_decay"]["best"]
    assert_close(best, np.mean(found.history.loss[:first]), rtol=1e-12, because=because)


# Where it ends, and how it goes on


def test_epochs_end_where_every_sample_was_taken(reference: Result) -> None:
    ends = [i + 1 for i, x in enumerate(np.cumsum(reference.history.size)) if x % SAMPLES == 0]
    assert [(e.step, e.epoch) for e in reference.history.evaluations] == [
        (t, i + 1) for i, t in enumerate(ends)
    ]
    assert reference.steps == ends[-1] == len(reference.history.loss)
    twice = train(recipe(SIZES | {"scaling": "sqrt"}, train={"evaluate_every": 2}), backend="numpy")
    assert [e.epoch for e in twice.history.evaluations] == [2, 3]
    assert twice.history.loss == reference.history.loss
    by_steps = train(SCALED.replace(steps=11), backend="numpy")
    assert by_steps.history.loss == reference.history.loss[:11]
    assert by_steps.history.evaluations[-1].step == 11


def test_events_say_what_is_known() -> None:
    events: list[Event] = []
    train(SCALED, backend="numpy", on_event=events.append)
    assert {(e.steps, e.epochs, e.total_samples) for e in events} == {(None, 3, 3 * SAMPLES)}
    assert (events[0].samples, events[-1].samples, events[-1].epoch) == (0, 3 * SAMPLES, 3)
    events.clear()
    train(SCALED.replace(steps=5), backend="numpy", on_event=events.append)
    assert {(e.steps, e.epochs, e.total_samples) for e in events} == {(5, None, None)}


@pytest.mark.parametrize("name", ["numpy", "jax"])
def test_it_is_resumed_bit_for_bit(name: str, tmp_path: Path, reference: Result) -> None:
    whole = reference if name == "numpy" else train(SCALED, backend=name)
    run = tmp_path / "run"
    first = train(SCALED.replace(epochs=2), backend=name, out=run, max_steps=4)
    assert first.steps == 4
    # To the end of a shorter run, and beyond it.
    second = train(SCALED.replace(epochs=2), backend=name, out=run, resume=True)
    assert second.history.evaluations[-1].epoch == 2
    found = train(SCALED, backend=name, out=run, resume=True)
    assert found.history.size == whole.history.size
    assert found.history.loss == whole.history.loss
    # It was tested where it was stopped, too.
    assert found.history.evaluations[1:] == whole.history.evaluations
    for path, x in whole.params.items():
        assert_same_bits(found.params[path], x, what=path)
    assert found.state["observed"] == whole.state["observed"]
    with pytest.raises(InputError, match=r"is at sample 1368, beyond the recipe's 912; give more"):
        train(SCALED.replace(epochs=2), backend=name, out=run, resume=True)
    other = recipe(SIZES | {"noise": NOISE | {"factor": 2.0}, "scaling": "sqrt"})
    with pytest.raises(InputError, match=r"^train\.batch_size\.noise\.factor = 2\.0; the run in .* 4\.0"):
        train(other, backend=name, out=run, resume=True)


def test_phases_have_sizes_of_their_own(tmp_path: Path) -> None:
    """Pruning counts updates, the end counts samples; stopped in a phase, it goes on in the same bits."""
    sizes = SIZES | {"scaling": "sqrt"}
    gradual = {"schedule": "gradual", "end": 0.5, "steps": 4, "every": 2}
    phases = [
        {
            "name": "sparse",
            "prune": {"sparsity": gradual},
            "train": {"epochs": 2, "batch_size": sizes},
        },
        {
            "name": "student",
            "distil": {"model": {"name": "softmax"}},
            "train": {"steps": 5, "batch_size": sizes},
        },
    ]
    made = recipe(64, train={"epochs": 1}, phase=phases)
    whole = train(made, backend="numpy")
    assert [p.name for p in whole.phases] == ["base", "sparse", "student"]
    assert whole.phases[1].sparsity == 0.5
    base, sparse, student = (p.steps for p in whole.phases)
    assert (base, student) == (8, 5)
    assert sum(whole.history.size[base : base + sparse]) == 2 * SAMPLES
    train(made, backend="numpy", out=tmp_path, max_steps=base + 3)
    found = train(made, backend="numpy", out=tmp_path, resume=True)
    assert (found.history.loss, found.history.size) == (whole.history.loss, whole.history.size)
    for path, x in whole.params.items():
        assert_same_bits(found.params[path], x, what=path)


def test_gradients_that_are_skipped_tell_nothing() -> None:
    """Norms whose squares are infinite, too."""
    table = recipe(train={"nonfinite": "skip", "epochs": 1}, optimizer={"lr": 1e200}).to_dict()
    table |= {
        "data": {"name": "diabetes"},
        "model": {"name": "linear"},
        "loss": {"name": "mean_squared_error"},
    }
    found = train(Recipe.from_dict(table), backend="numpy")
    assert math.isfinite(found.history.loss[0])
    assert not math.isfinite(found.history.loss[-1])
    assert len(set(found.history.size[1:-1])) <= 2


# Other commands


def test_compare_and_tune_take_it() -> None:
    found = compare(SCALED, ["numpy", "torch"])
    assert found.max_relative_loss_deviation < 1e-9
    assert found.parameter_deviation["torch"][-1][0] == found.steps == len(found.losses["numpy"])
    space = {
        "train.batch_size.noise.factor": {"low": 0.5, "high": 8.0, "log": True},
        "train.batch_size.noise.initial": {"choices": [32, 64]},
    }
    study = tune(recipe(tune={"space": space, "trials": 2}), backend="numpy")
    assert [t.state for t in study.trials] == ["complete", "complete"]
    assert [epoch for epoch, _ in study.trials[0].reports] == [1, 2, 3]


def test_comparisons_go_as_far_as_both() -> None:
    """Two backends that find other sizes have other numbers of batches."""
    a, b = (train(SCALED.replace(epochs=e), backend="numpy", snapshots=40) for e in (1, 2))
    assert losses_apart(a, b) == losses_apart(b, a) == [0.0] * a.steps
    assert {deviation for _, deviation in drift(b, a)} == {0.0}
