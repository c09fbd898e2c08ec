"""Federated phases: the rounds of the papers on four backends, in one go or in many."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.cli_output import result
from helpers.recipes import check_round_trips

from polyopt import checkpoint, quantization
from polyopt.backend.protocol import Backend
from polyopt.cli import train as command
from polyopt.cli.app import run
from polyopt.core import random
from polyopt.core.errors import InputError, NonFiniteError
from polyopt.federated import participants, split_dirichlet
from polyopt.models import losses
from polyopt.recipe import Recipe
from polyopt.testing import assert_close, assert_same_bits
from polyopt.training import Event, Result, train
from polyopt.training.phases.plan import tasks

CLIENTS = {"clients": 5, "rounds": 3, "fraction": 0.6, "split": "dirichlet", "alpha": 1.0}
LOCAL = {"epochs": 1, "batch_size": 64}


def recipe(*phases: dict[str, Any], **changes: Any) -> Recipe:
    """Phases after one batch on the samples of three digits."""
    table: dict[str, Any] = {
        "name": "small",
        "data": {"name": "digits", "labels": [0, 1, 2]},
        "model": {"name": "softmax"},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "train": {"steps": 1, "batch_size": 32},
        "phase": [{"name": chr(ord("a") + i)} | phase for i, phase in enumerate(phases)],
    }
    return Recipe.from_dict(table | changes)


def federated(train: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    return {"federated": CLIENTS | options, "train": train or LOCAL}


def server_alone(found: Recipe) -> dict[str, Any]:
    return train(found.of_phase(0), backend="numpy").params


def by_hand(found: Recipe, aggregate: str, mu: float, server: str) -> tuple[dict[str, Any], list[float]]:
    """The phase in NumPy: softmax regression by its analytic gradient, Algorithm 1 of McMahan et al., 2 of
    Reddi et al., eq. 2 of Li et al.; and the losses."""
    data = found.data.load()
    x, y = data.x_train, np.eye(3)[data.y_train]
    seed, lr = found.seed + 1, 0.1
    theta = {k: np.asarray(v, np.float64) for k, v in server_alone(found).items()}
    m = {k: np.zeros_like(v) for k, v in theta.items()}
    v_t = {k: np.full_like(v, 1e-2**2) for k, v in theta.items()}
    shards, told = split_dirichlet(data.y_train, 5, alpha=1.0, seed=seed), []
    for r in range(3):
        sent, counts = [], []
        for k in participants(5, 0.6, r, seed=seed):
            own = {name: value.copy() for name, value in theta.items()}
            order = random.permutation(len(shards[k]), seed, f"client {k}, round {r}", 0)
            for start in range(0, len(order), 64):
                rows = shards[k][order[start : start + 64]]
                logits = x[rows] @ own["weight"] + own["bias"]
                p = np.exp(logits - logits.max(1, keepdims=True))
                p /= p.sum(1, keepdims=True)
                told.append(float(-np.mean(np.log((p * y[rows]).sum(1)))))
                g = {"weight": x[rows].T @ (p - y[rows]) / len(rows), "bias": np.mean(p - y[rows], 0)}
                own = {n: w - lr * (g[n] + mu * (w - theta[n])) for n, w in own.items()}
            sent.append(own)
            counts.append(len(shards[k]))
        for name, w in theta.items():
            stacked = np.stack([own[name] for own in sent])
            new = np.median(stacked, 0) if aggregate == "median" else np.average(stacked, 0, counts)
            if server == "fedadam":
                delta = new - w
                m[name] = 0.9 * m[name] + 0.1 * delta
                v_t[name] = 0.99 * v_t[name] + 0.01 * delta**2
                new = w + 0.05 * m[name] / (np.sqrt(v_t[name]) + 1e-2)
            theta[name] = new
    return theta, told


FEDADAM = {"name": "fedadam", "lr": 0.05, "tau": 1e-2}


def test_rounds_are_those_of_the_papers(backend: Backend) -> None:
    found = recipe(federated(server=FEDADAM, proximal=0.5), dtype="float64")
    mine = train(found, backend=backend)
    theirs, told = by_hand(found, "fedavg", 0.5, "fedadam")
    assert_close(mine.history.loss[1:], told, rtol=1e-9, because="float64, other roundings")
    for name, value in theirs.items():
        assert_close(mine.params[name], value, rtol=1e-8, atol=1e-11, because="float64, other roundings")


def test_medians_of_clients_are_numpy_s() -> None:
    found = recipe(federated(aggregate="median"), dtype="float64")
    mine, (theirs, _) = train(found, backend="numpy"), by_hand(found, "median", 0.0, "")
    for name, value in theirs.items():
        assert_close(mine.params[name], value, rtol=1e-9, atol=1e-12, because="float64, other roundings")


def test_one_client_with_all_samples_is_a_plain_phase() -> None:
    local = {"steps": 4, "batch_size": "full", "shuffle": False}
    alone = train(recipe({"train": local}), backend="numpy")
    found = recipe(federated(local, clients=1, rounds=1, fraction=1.0, split="iid", alpha=None))
    same = train(found, backend="numpy")
    assert_close(same.history.loss, alone.history.loss, rtol=1e-6, because="float32, of sums with weights")
    assert_close(same.params["weight"], alone.params["weight"], rtol=1e-5, atol=1e-7, because="as above")


def test_rounds_are_what_is_told_and_tested(tmp_path: Path) -> None:
    events: list[Event] = []
    found = recipe(federated({"steps": 4, "batch_size": 8, "evaluate_every": 2}, rounds=5))
    done = train(found, backend="numpy", out=tmp_path, on_event=events.append)
    own = [e for e in events if e.phase == "a"]
    assert [e.step for e in own if e.kind == "aggregated"] == [12, 24, 36, 48, 60]
    assert [(e.step, e.epoch) for e in own if e.kind == "evaluated"] == [(24, 2), (48, 4), (60, 5)]
    assert {(e.unit, e.epochs, e.steps) for e in own} == {("round", 5, 60)}
    assert {e.unit for e in events if not e.phase} == {"epoch"}
    assert done.phases[-1].kind == "federated"
    assert done.phases[-1].test_loss == done.history.evaluations[-1].test_loss
    assert done.phases[-1].test_accuracy is not None
    assert done.phases[-1].test_accuracy > 0.9


def same_runs(whole: Result, again: Result) -> None:
    assert again.history.loss == whole.history.loss
    for name, value in whole.params.items():
        assert_same_bits(again.params[name], value, what=name)
    assert [p.test_loss for p in again.phases] == [p.test_loss for p in whole.phases]


RESUMABLE = {
    "server": {"name": "fedyogi", "lr": {"schedule": "polynomial", "initial": 0.1, "steps": 3, "power": 1.0}},
    "proximal": 0.1,
    "aggregate": "trimmed_mean",
    "trim": 0.34,
}


@pytest.mark.parametrize(
    ("name", "stops"), [("numpy", [3, 5, 13]), ("torch", [2, 7])], ids=["numpy", "torch"]
)
def test_resumed_is_the_same_run(tmp_path: Path, name: str, stops: list[int]) -> None:
    """Stopped within a client's batches, between two clients, and between two rounds."""
    found = recipe(federated({"steps": 2, "batch_size": 16}, **RESUMABLE), {"train": {"steps": 2}})
    whole = train(found, backend=name)
    for steps in stops:
        assert train(found, backend=name, out=tmp_path / "parts", resume=steps > stops[0], max_steps=steps)
    same_runs(whole, train(found, backend=name, out=tmp_path / "parts", resume=True))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_lose_nothing(
    number: signal.Signals, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a round, by the command; it goes on in the same bits."""
    found = recipe(federated({"steps": 2, "batch_size": 16}, rounds=2))
    (tmp_path / "in.toml").write_text(found.to_toml())

    @contextmanager
    def interrupting(announcement: str) -> Iterator[Any]:
        def interrupt(event: Event) -> None:
            if event.phase == "a" and event.kind == "step" and event.step == 3:
                os.kill(os.getpid(), number)

        yield interrupt

    monkeypatch.setattr(command, "progress", interrupting)
    before = signal.getsignal(number)
    assert run(["train", str(tmp_path / "in.toml"), "--backend", "numpy", "--out", str(tmp_path)]) == code
    assert signal.getsignal(number) is before
    held = checkpoint.load(tmp_path / "phases/1-a/checkpoint.safetensors")
    assert held.meta["step"] == 3
    assert held.state is not None
    assert len(held.state["federated"]["sent"]) == 1
    events: list[Event] = []
    again = train(found, backend="numpy", out=tmp_path, resume=True, on_event=events.append)
    assert [e.step for e in events if e.kind == "step"] == [*range(4, 13)]
    same_runs(train(found, backend="numpy"), again)


def test_stopped_in_mid_round_it_is_the_server_that_is_tested(tmp_path: Path) -> None:
    found = recipe(federated({"steps": 2, "batch_size": 16}))
    stopped = train(found, backend="numpy", max_steps=4)
    start = train(found.of_phase(0), backend="numpy")
    assert stopped.test_loss == start.test_loss
    assert_same_bits(stopped.params["weight"], start.params["weight"])


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_what_is_pruned_stays_so_on_clients_and_server(tmp_path: Path, name: str) -> None:
    server = {"name": "sgd", "lr": 1.0, "momentum": 0.9}
    found = recipe(
        {"prune": {"sparsity": 0.6}}, federated(server=server, proximal=0.1), {"quantize": {"bits": 8}}
    )
    done = train(found, backend=name, out=tmp_path)
    assert [phase.sparsity for phase in done.phases] == [0.0, *[1 - 77 / 192] * 3]
    before, after = (quantization.load(done.phases[i].model)["weight"] for i in (1, 2))  # type: ignore[arg-type]
    zero = np.asarray(before) == 0
    assert not np.asarray(after)[zero].any()
    assert (np.asarray(after)[~zero] != np.asarray(before)[~zero]).mean() > 0.7, "but for dark pixels"


@pytest.mark.parametrize("nonfinite", ["raise", "propagate"])  # leaf by leaf, and as one function
def test_all_clients_share_what_is_compiled(nonfinite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients of other sizes, with smaller last batches, and rounds of other clients trace nothing."""
    traced: list[int] = []
    calls, loss = [0], losses.cross_entropy

    def counted(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        return loss(*args, **options)

    def on_event(event: Event) -> None:
        if event.phase and event.kind == "step":
            traced.append(calls[0])

    monkeypatch.setattr(losses, "cross_entropy", counted)
    local = LOCAL | {"nonfinite": nonfinite, "evaluate_every": 9}
    train(recipe(federated(local, imbalance=0.6, split="iid", alpha=None)), backend="jax", on_event=on_event)
    assert traced[0] > 0
    assert len(set(traced)) == 1


def test_the_server_s_plateau_is_told_the_loss_of_the_rounds(tmp_path: Path) -> None:
    plateau = {"schedule": "plateau", "initial": 1.0, "factor": 0.5, "patience": 0, "threshold": 1.0}
    train(recipe(federated(server={"name": "sgd", "lr": plateau})), backend="numpy", out=tmp_path)
    held = checkpoint.load(tmp_path / "phases/1-a/checkpoint.safetensors").state
    assert held is not None
    assert held["federated"]["state"]["step"] == 3
    assert held["federated"]["state"]["observed"]["lr"]["value"] == 0.25


def test_a_client_that_ends_in_infinity_is_named() -> None:
    local = {"steps": 1, "batch_size": 8, "nonfinite": "propagate"}
    with pytest.raises(NonFiniteError, match=r"^numpy, phase 'a', round 2: client \d: leaf 'bias' holds inf"):
        train(recipe(federated(local) | {"optimizer": {"name": "sgd", "lr": 3e38}}), backend="numpy")
    with pytest.raises(NonFiniteError, match=r"^numpy, phase 'a', round \d, client \d, step \d+: the grad"):
        train(recipe(federated() | {"optimizer": {"name": "sgd", "lr": 3e38}}), backend="numpy")


def test_the_command_shows_rounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "small.toml"
    path.write_text(recipe(federated(server="fedyogi"), {"quantize": {}}).to_toml())
    assert run(["train", str(path), "--out", str(tmp_path / "run"), "--json"]) == 0
    assert [p["kind"] for p in result(capsys)["phases"]] == ["train", "federated", "quantize"]
    assert run(["compare", str(path), "--backends", "numpy", "--out", str(tmp_path / "c")]) == 0
    assert run(["explain", "fedyogi"]) == 0
    assert "tau" in capsys.readouterr().out


def test_round_trips() -> None:
    found = recipe(
        federated(aggregate="trimmed_mean", trim=0.4, server=FEDADAM, proximal=0.1, imbalance=0.2),
        federated(split="labels", alpha=None),
    )
    check_round_trips(found)
    assert found.phase[1].federated is not None
    assert found.phase[1].federated.shards == 2
    assert "fedadam" in found.to_toml()


WRONG: list[tuple[Recipe | Any, str]] = [
    ({"federated": CLIENTS}, r"^phase\.0\.train: this key is missing; add it$"),
    (federated(client=3), r"^phase\.0\.federated\.client: unknown key; did you mean 'clients'\?$"),
    (federated(clients=0), r"^phase\.0\.federated\.clients = 0; expected"),
    (federated(fraction=0.0), r"^phase\.0\.federated\.fraction = 0\.0; expected"),
    (federated(split="label"), r"^phase\.0\.federated\.split = 'label'; did you mean 'labels'\?$"),
    (federated(split="iid"), r"^phase\.0\.federated\.alpha: only for split = 'dirichlet'; found 'iid'$"),
    (federated(shards=2), r"^phase\.0\.federated\.shards: only for split = 'labels'; found 'dirichlet'$"),
    (federated(trim=0.1), r"^phase\.0\.federated\.trim: only for aggregate = 'trimmed_mean'; found 'fedavg'"),
    (
        federated(aggregate="trimmed_mean"),
        r"^phase\.0\.federated\.trim = 0\.1 of the 3 clients of a round leaves none out; give more$",
    ),
    (
        federated(split="labels", alpha=None, imbalance=0.5),
        r"^phase\.0\.federated\.imbalance = 0\.5: shards are of one size; leave it out$",
    ),
    (
        federated(server="fedadm"),
        r"^phase\.0\.federated\.server\.name = 'fedadm': unknown server; did you mean 'fedadam'\?$",
    ),
    (
        federated(server={"name": "fedadam", "tau": 0.0}),
        r"^phase\.0\.federated\.server\.tau = 0\.0; expected a finite number above 0$",
    ),
    (federated(proximal=-1.0), r"^phase\.0\.federated\.proximal = -1\.0; expected"),
    (
        federated() | {"prune": {"sparsity": 0.5}},
        r"^phase\.0\.federated: this phase has 'prune' too",
    ),
    (
        federated({"steps": 1, "accumulate": 2}),
        r"^phase\.0\.train\.accumulate = 2: a client begins anew in each round; leave it out$",
    ),
    (
        federated({"steps": 1, "batch_size": {"size": {"schedule": "step", "initial": 4, "steps": 1}}}),
        r"^phase\.0\.train\.batch_size: clients have batches of one size; expected an integer or \"full\"",
    ),
]


@pytest.mark.parametrize(("phase", "message"), WRONG, ids=[m[:60] for _, m in WRONG])
def test_what_is_wrong_is_said_in_one_line(phase: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        recipe(phase)
    assert "\n" not in str(caught.value)


def test_what_other_tables_can_t_go_with() -> None:
    with pytest.raises(InputError, match=r"^phase\.0\.federated: \[ema\] averages the weights of one run"):
        recipe(federated(), ema={"decay": 0.9})
    with pytest.raises(
        InputError,
        match=r"^phase\.0\.federated\.split = 'dirichlet': 'diabetes' has no classes;",
    ):
        recipe(federated(), data={"name": "diabetes"}, model={"name": "linear"})


UNFIT: list[tuple[dict[str, Any], str]] = [
    (
        federated(clients=999),
        r"^phase 'a': federated: split_dirichlet: clients = 999; expected at most",
    ),
    (
        federated(clients=99, imbalance=4.0),
        r"^phase 'a': federated: split_dirichlet: client \d+ of 99 would have no sample, with imbalance = 4",
    ),
    (
        federated(clients=99, split="labels", alpha=None, shards=9),
        r"^phase 'a': federated: split_labels: 99 clients with 9 shards each; expected at most as many",
    ),
    (
        federated()
        | {"optimizer": {"name": "sgd", "lr": {"schedule": "plateau", "initial": 0.1, "factor": 0.5}}},
        r"^phase 'a': optimizer\.lr: a client's plateau would begin anew in each round; expected another",
    ),
    (
        federated(server={"name": "adamw", "lr": 0.1, "mask": "wieght"}),
        r"^phase 'a': AdamW: mask = 'wieght' matches no parameter; .*'weight'",
    ),
]


@pytest.mark.parametrize(("phase", "message"), UNFIT, ids=[m[:60] for _, m in UNFIT])
def test_what_does_not_fit_is_said_before_anything_is_trained(phase: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        tasks(recipe(phase))
    assert "\n" not in str(caught.value)


def test_a_regression_is_federated_too() -> None:
    found = recipe(
        federated(split="iid", alpha=None, imbalance=0.3),
        data={"name": "diabetes"},
        model={"name": "linear"},
        optimizer={"name": "sgd", "lr": 0.05},
    )
    done = train(found, backend="numpy")
    assert done.phases[1].test_loss < done.phases[0].test_loss
