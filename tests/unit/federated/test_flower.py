"""The adapter in Flower's own round loop, with clients in this process; needs flwr."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterable
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from polyopt import SGD, Optimizer, chain, value_and_grad
from polyopt.core.errors import InputError
from polyopt.core.random import generator
from polyopt.federated import (
    Client,
    FedAdagrad,
    FedAdam,
    FedYogi,
    Proximal,
    Server,
    array_record,
    fedavg,
    flower_strategy,
    params_of,
    trimming,
)
from polyopt.testing import assert_close, assert_same_bits

if "flower" in os.environ.get("POLYOPT_REQUIRED_EXTRAS", "").split(","):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # typer's, of click
        import_module("flwr.simulation")
else:
    pytest.importorskip("flwr", reason="Flower has an environment of its own: make flower")

LIKE = {"layer": {"weight": np.zeros((3, 2), np.float32)}, "bias": np.zeros(2, np.float32)}
NODES = (11, 2, 30, 7)


def trained(node: int, round_: int, arrays: Any) -> tuple[dict[str, Any], int]:
    """What a node makes of the parameters, and from how many samples."""
    params = params_of(arrays, LIKE)
    draw = generator(node, "node", round_)
    moved = {
        "layer": {"weight": params["layer"]["weight"] + draw.normal(size=(3, 2)).astype(np.float32)},
        "bias": params["bias"] + draw.normal(size=2).astype(np.float32),
    }
    return moved, node * 10


def grid(reply: Callable[[Any], Any]) -> Any:
    """Flower's ``Grid`` as far as a strategy uses it."""

    class InProcess:
        def get_node_ids(self) -> Iterable[int]:
            return NODES

        def send_and_receive(self, messages: Iterable[Any], *, timeout: float | None = None) -> Iterable[Any]:
            return [reply(m) for m in reversed(list(messages))]

    return InProcess()


def answer(message: Any) -> Any:
    from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

    config = message.content["config"]
    assert isinstance(config, ConfigRecord)
    node = message.metadata.dst_node_id
    moved, samples = trained(node, int(config["server-round"]), message.content["arrays"])
    records = {
        "arrays": array_record(moved),
        "metrics": MetricRecord({"num-examples": samples, "loss": 1.0 / node}),
    }
    return Message(RecordDict(records), reply_to=message)


def run(strategy: Any, rounds: int = 3, reply: Callable[[Any], Any] = answer) -> Any:
    result = strategy.start(grid(reply), initial_arrays=array_record(LIKE), num_rounds=rounds)
    return params_of(result.arrays, LIKE)


@pytest.fixture(autouse=True)
def inside_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's messages ask for the run that they belong to, which its server process sets."""
    from flwr.supercore.task_identity import TaskIdentity

    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


OPTIONS: dict[str, Any] = {"fraction_evaluate": 0.0, "min_available_nodes": 4}


def test_rounds_of_flower_are_those_of_the_server() -> None:
    server = Server(Optimizer(FedYogi(lr=0.1)), aggregate=trimming(0.25))
    strategy = flower_strategy(server, **OPTIONS)
    found = run(strategy)
    params: Any = LIKE
    state = server.init(params)
    for t in range(1, 4):
        sent = [Client(n, *trained(n, t, array_record(params))) for n in NODES]
        params, state = server.step(params, sent, state)
    assert_same_bits(found["layer"]["weight"], params["layer"]["weight"])
    assert_same_bits(found["bias"], params["bias"])
    assert strategy.state["step"] == 3


@pytest.mark.parametrize("kind", ["FedAvg", "FedAdagrad", "FedAdam", "FedYogi", "FedMedian", "FedTrimmedAvg"])
def test_flower_s_own_strategies_give_the_same_within_float32(kind: str) -> None:
    from flwr.serverapp import strategy as flower

    from polyopt.federated import median

    numbers = {"lr": 0.1, "b1": 0.9, "b2": 0.99, "tau": 1e-2, "convention": "flower"}
    servers = {
        "FedAvg": Server(),
        "FedAdagrad": Server(Optimizer(FedAdagrad(**{**numbers, "b1": 0.0}))),
        "FedAdam": Server(Optimizer(FedAdam(**numbers))),
        "FedYogi": Server(Optimizer(FedYogi(**numbers))),
        "FedMedian": Server(aggregate=median),
        "FedTrimmedAvg": Server(aggregate=trimming(0.25)),
    }
    extra: dict[str, Any] = {"eta": 0.1, "tau": 1e-2} if kind in ("FedAdagrad", "FedAdam", "FedYogi") else {}
    if kind in ("FedAdam", "FedYogi"):
        extra |= {"beta_1": 0.9, "beta_2": 0.99}
    if kind == "FedTrimmedAvg":
        extra = {"beta": 0.25}
    theirs = run(getattr(flower, kind)(**OPTIONS, **extra))
    mine = run(flower_strategy(servers[kind], **OPTIONS))
    assert_close(mine["bias"], theirs["bias"], rtol=1e-5, atol=1e-6, because="Flower computes in float32")
    assert_close(mine["layer"]["weight"], theirs["layer"]["weight"], rtol=1e-5, atol=1e-6, because="as above")


def test_a_failed_client_is_left_out_and_none_changes_nothing() -> None:
    from flwr.app import Error, Message

    def some(message: Any) -> Any:
        if message.metadata.dst_node_id in (2, 30):
            return Message(Error(code=1, reason="lost"), reply_to=message)
        return answer(message)

    strategy = flower_strategy(Server(), **OPTIONS)
    found = run(strategy, rounds=1, reply=some)
    expected = fedavg(LIKE, [Client(n, *trained(n, 1, array_record(LIKE))) for n in (7, 11)])
    assert_same_bits(found["bias"], expected["bias"])
    assert strategy.aggregate_train(2, []) == (None, None)


def test_a_reply_without_its_weight_is_named() -> None:
    from flwr.app import Message, MetricRecord, RecordDict

    def weightless(message: Any) -> Any:
        records = {"arrays": message.content["arrays"], "metrics": MetricRecord({"num-samples": 3})}
        return Message(RecordDict(records), reply_to=message)

    with pytest.raises(InputError, match=r"'num-examples' is None.*did you mean 'num-samples'"):
        run(flower_strategy(Server(), **OPTIONS), reply=weightless)


def test_records_keep_values_and_refuse_what_does_not_fit() -> None:
    record = array_record(LIKE)
    assert sorted(record) == ["bias", "layer.weight"]
    with pytest.raises(InputError, match=r"'bias' has shape \(2,\); expected \(3,\)"):
        params_of(record, {**LIKE, "bias": np.zeros(3)})
    with pytest.raises(InputError, match="'extra' is missing"):
        params_of(record, {**LIKE, "extra": np.zeros(3)})
    with pytest.raises(InputError, match="unknown array 'bias'"):
        params_of(record, {"layer": LIKE["layer"]})


class InProcess:
    """A worker of Flower's simulation in this process, in the place of Ray's actors."""

    num_workers = 1

    def __init__(self, config: Any) -> None:
        self.app: Callable[[], Any] | None = None

    def build(self, app_fn: Callable[[], Any]) -> None:
        self.app = app_fn

    def is_worker_idle(self) -> bool:
        return True

    def process_message(self, message: Any, context: Any) -> tuple[Any, Any]:
        assert self.app is not None
        return self.app()(message, context), context

    def terminate(self) -> None:
        pass


SAMPLES = (20, 30, 40)


def least_squares(k: int, params: Any) -> dict[str, Any]:
    """What the client with the k-th part of the data makes of the parameters: ten steps of SGD."""
    draw = generator(k, "samples")
    x = draw.normal(size=(SAMPLES[k], 3)) + k
    y = x @ np.array([1.0, -2.0, 0.5])
    loss = value_and_grad(lambda xp, p, x, y: xp.mean(xp.square(xp.matmul(x, p["w"]) - y)))
    opt = Optimizer(chain(Proximal(mu=0.01), SGD(lr=0.01)))
    state = opt.init(params)
    for _ in range(10):
        params, state = opt.step(params, loss(params, x, y)[1], state)
    return params  # type: ignore[no-any-return]


def test_a_simulation_of_flower_is_the_rounds_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's own server app, link, nodes and client apps; its nodes alone are threads, not Ray's actors."""
    from flwr.app import Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation

    monkeypatch.setitem(
        sys.modules,
        "flwr.server.superlink.fleet.vce.backend.raybackend",
        SimpleNamespace(RayBackend=InProcess),
    )
    like = {"w": np.zeros(3)}
    server = Server(Optimizer(FedAdam(lr=0.1)))
    client_app, server_app = ClientApp(), ServerApp()
    found = {}

    @client_app.train()
    def train(message: Any, context: Any) -> Any:
        k = int(context.node_config["partition-id"])
        mine = least_squares(k, params_of(message.content["arrays"], like))
        metrics = MetricRecord({"num-examples": SAMPLES[k]})
        return Message(RecordDict({"arrays": array_record(mine), "metrics": metrics}), reply_to=message)

    @server_app.main()
    def main(grid: Any, context: Any) -> None:
        # Flower counts the nodes that it samples before it waits for the last to connect: min_train_nodes.
        strategy = flower_strategy(server, fraction_evaluate=0.0, min_available_nodes=3, min_train_nodes=3)
        result = strategy.start(grid, initial_arrays=array_record(like), num_rounds=4)
        found["params"], found["step"] = params_of(result.arrays, like), strategy.state["step"]

    run_simulation(server_app, client_app, num_supernodes=len(SAMPLES), backend_name="in process")
    params: Any = like
    state = server.init(params)
    for _ in range(4):
        sent = [Client(k, least_squares(k, params), n) for k, n in enumerate(SAMPLES)]
        params, state = server.step(params, sent, state)
    assert found["step"] == 4
    because = "float64; Flower numbers its nodes at random, and sums are in the order of their numbers"
    assert_close(found["params"]["w"], params["w"], rtol=1e-12, because=because)
