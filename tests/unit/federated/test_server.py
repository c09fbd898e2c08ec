"""Federated aggregation against the papers in float64; bits that no order and no framework changes."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyopt import SGD, AdaGrad, Adam, Optimizer, chain, convert, value_and_grad
from polyopt.backend.protocol import Backend
from polyopt.core.errors import BackendError, InputError
from polyopt.core.random import generator
from polyopt.federated import (
    SERVER_RULES,
    Client,
    FedAdagrad,
    FedAdam,
    FedYogi,
    Proximal,
    Server,
    anchored,
    fedavg,
    flower_strategy,
    median,
    pseudo_gradient,
    trimmed_mean,
    trimming,
)
from polyopt.testing import assert_close, assert_same_bits

Aggregation = Callable[[Any, Sequence[Client]], Any]
AGGREGATIONS: dict[str, Aggregation] = {"fedavg": fedavg, "median": median, "trimmed mean": trimming(0.2)}
SHAPES: dict[str, tuple[int, ...]] = {"w": (4, 3), "b": (3,), "s": ()}
ONCE = "summed in float64, rounded once"


def draw(seed: int, scale: float = 1.0) -> dict[str, Any]:
    g = generator(seed, "federated")
    return {name: np.asarray(g.normal(size=shape) * scale, np.float32) for name, shape in SHAPES.items()}


def tree_of(values: dict[str, Any]) -> dict[str, Any]:
    return {"layer": {"w": values["w"], "b": values["b"]}, "scale": [values["s"], None]}


def clients(n: int = 7, names: Sequence[str] = ("numpy",), scale: float = 1.0) -> list[Client]:
    """Clients on frameworks in turn, with different weights."""
    return [
        Client(f"client {i:02d}", convert(tree_of(draw(i, scale)), names[i % len(names)]), 1 + i * i)
        for i in range(n)
    ]


def leaves(params: Any) -> dict[str, Any]:
    return {"w": params["layer"]["w"], "b": params["layer"]["b"], "s": params["scale"][0]}


def reference(kind: str, n: int) -> dict[str, Any]:
    stacked = {k: np.stack([draw(i)[k].astype(np.float64) for i in range(n)]) for k in SHAPES}
    weights = np.array([1.0 + i * i for i in range(n)])
    cut = int(0.2 * n)
    how: dict[str, Callable[[Any], Any]] = {
        "fedavg": lambda x: np.average(x, axis=0, weights=weights),
        "median": lambda x: np.median(x, axis=0),
        "trimmed mean": lambda x: np.mean(np.sort(x, axis=0)[cut : n - cut], axis=0),
    }
    return {k: how[kind](x) for k, x in stacked.items()}


@pytest.mark.parametrize("n", [5, 8])
@pytest.mark.parametrize("kind", AGGREGATIONS)
def test_aggregates_are_those_of_the_papers(kind: str, n: int, backend: Backend) -> None:
    server = convert(tree_of(draw(99)), backend.name)
    found = leaves(AGGREGATIONS[kind](server, clients(n)))
    for name, expected in reference(kind, n).items():
        assert backend.is_array(found[name])
        assert backend.dtype_name(found[name]) == "float32"
        assert_close(found[name], expected, rtol=6e-8, because=ONCE)


@pytest.mark.parametrize("kind", AGGREGATIONS)
def test_neither_order_nor_frameworks_change_a_bit(kind: str, backends: list[Backend]) -> None:
    names = [b.name for b in backends]
    expected = leaves(AGGREGATIONS[kind](tree_of(draw(99)), clients()))
    for i, backend in enumerate(backends):
        mixed = clients(names=names[i:] + names[:i])
        random.Random(i).shuffle(mixed)
        found = leaves(AGGREGATIONS[kind](convert(tree_of(draw(99)), backend.name), mixed))
        for name, value in expected.items():
            assert_same_bits(found[name], value, what=f"{name} on {backend.name}")


def test_the_server_s_dtypes_stay_whatever_the_clients_have(backend: Backend) -> None:
    server = {"w": backend.from_numpy(np.zeros(3), dtype="bfloat16")}
    values = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.01]])
    found = fedavg(server, [Client(0, {"w": values[0]}), Client(1, {"w": values[1].astype(np.float32)})])
    assert backend.dtype_name(found["w"]) == "bfloat16"
    mean = (values[0] + values[1].astype(np.float32)) / 2
    assert_same_bits(found["w"], mean.astype(backend.to_numpy(server["w"]).dtype))


def test_numbered_clients_are_in_numeric_order() -> None:
    """2 before 10: as texts they would be added up in another order."""
    values = [1e16, 1.0, -1e16]
    some = [Client(i, {"w": np.array([x])}) for i, x in zip((2, 10, 11), values, strict=True)]
    for order in (some, some[::-1]):
        found = fedavg({"w": np.zeros(1)}, order)["w"][0]
        assert_close(found, ((values[0] + values[1]) + values[2]) / 3, because="the same roundings")


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_the_mean_of_equals_and_one_client_alone_are_themselves(seed: int, n: int) -> None:
    params = tree_of(draw(seed, 1e3))
    same = [Client(i, params, 1.0 + i) for i in range(n)]
    for aggregate in (fedavg, median):
        for name, value in leaves(aggregate(params, same)).items():
            assert_same_bits(value, leaves(params)[name], what=name)


def test_liars_below_the_breakdown_point_don_t_move_robust_aggregates() -> None:
    honest = clients(8, scale=1e-3)
    liars = [Client(f"liar {i}", tree_of(draw(50 + i, 1e8)), 1e6) for i in range(2)]
    for aggregate in (median, trimming(0.2)):
        for name, value in leaves(aggregate(tree_of(draw(99)), honest + liars)).items():
            assert np.abs(value).max() < 0.01, name
    assert np.abs(leaves(fedavg(tree_of(draw(99)), honest + liars))["w"]).max() > 1e6


# The server's optimizers


def algorithm_2(kind: str, deltas: Sequence[Any], lr: float, b1: float, b2: float, tau: float) -> Any:
    """Reddi et al., 2021, Algorithm 2, line by line, over Δ_t."""
    x, m, v = np.zeros_like(deltas[0]), np.zeros_like(deltas[0]), np.full_like(deltas[0], tau**2)
    for delta in deltas:
        m = b1 * m + (1 - b1) * delta
        square = delta**2
        if kind == "fedadagrad":
            v = v + square
        elif kind == "fedyogi":
            v = v - (1 - b2) * square * np.sign(v - square)
        else:
            v = b2 * v + (1 - b2) * square
        x = x + lr * m / (np.sqrt(v) + tau)
    return x


@pytest.mark.parametrize("kind", SERVER_RULES)
def test_server_rules_are_algorithm_2_over_60_rounds(kind: str, backend: Backend) -> None:
    g = generator(0, "rounds")
    deltas = [g.normal(size=7) * 10.0 ** g.integers(-5, 2) for _ in range(60)]
    deltas[10] = np.zeros(7)
    rule: Any = SERVER_RULES[kind]
    opt = Optimizer(rule(lr=0.05, b1=0.9, b2=0.97, tau=1e-2))
    params = {"x": backend.from_numpy(np.zeros(7))}
    state = opt.init(params)
    for delta in deltas:
        params, state = opt.step(params, {"x": backend.from_numpy(-delta)}, state)
    expected = algorithm_2(kind, deltas, 0.05, 0.9, 0.97, 1e-2)
    assert_close(params["x"], expected, rtol=1e-11, atol=1e-13, because="60 float64 steps")


@pytest.mark.parametrize("kind", SERVER_RULES)
def test_server_rules_have_the_same_bits_everywhere(kind: str, backends: list[Backend]) -> None:
    found = []
    for backend in backends:
        server = Server(Optimizer(SERVER_RULES[kind](lr=0.1)), aggregate=trimming(0.2))
        params: Any = convert(tree_of(draw(99)), backend.name)
        state = server.init(params)
        for t in range(5):
            params, state = server.step(params, clients(scale=0.5**t), state)
        assert state["step"] == 5
        found.append(leaves(params))
    for other in found[1:]:
        for name, value in found[0].items():
            assert_same_bits(other[name], value, what=name)


def test_fedadagrad_without_momentum_is_adagrad() -> None:
    deltas = [generator(i, "delta").normal(size=5) for i in range(20)]

    def run(rule: Any) -> Any:
        opt = Optimizer(rule)
        params: Any = {"x": np.ones(5)}
        state = opt.init(params)
        for delta in deltas:
            params, state = opt.step(params, {"x": -delta}, state)
        return params["x"]

    mine = run(FedAdagrad(lr=0.3, tau=1e-2))
    its = run(AdaGrad(lr=0.3, eps=1e-2, initial_accumulator=1e-4))
    assert_close(
        mine, its, rtol=1e-14, because="lr is multiplied before the division in the one, after in the other"
    )


def test_fedadam_of_flower_is_kingma_and_ba_s_but_for_one_round_more() -> None:
    """Flower's server_round + 1: with the exponents of round 1 alone, by hand."""
    opt = Optimizer(FedAdam(lr=0.1, b1=0.9, b2=0.99, tau=1e-3, convention="flower"))
    params = {"x": np.zeros(1)}
    params, _ = opt.step(params, {"x": np.array([-2.0])}, opt.init(params))
    rate = 0.1 * np.sqrt(1 - 0.99**2) / (1 - 0.9**2)
    expected = rate * 0.2 / (np.sqrt(0.01 * 4) + 1e-3)
    assert_close(params["x"], [expected], rtol=1e-13, because="a few roundings")


def test_a_rate_of_1_along_the_pseudo_gradient_is_fedavg(backend: Backend) -> None:
    params = convert(tree_of(draw(99)), backend.name)
    server = Server(Optimizer(SGD(lr=1.0)))
    moved, _ = server.step(params, clients(), server.init(params))
    plain, state = Server().step(params, clients(), Server().init(params))
    assert state["step"] == 1
    for name, value in leaves(plain).items():
        assert_close(
            leaves(moved)[name], backend.to_numpy(value), atol=3e-7, because="p - (p - q) rounds twice"
        )


def test_the_pseudo_gradient_keeps_what_float32_would_cancel() -> None:
    server = {"w": np.array([1.0], np.float32)}
    near = np.nextafter(np.float32(1.0), np.float32(2.0))
    some = [Client(0, {"w": np.array([near])}), Client(1, {"w": np.array([1.0], np.float32)}, 3.0)]
    found = pseudo_gradient(server, some)["w"]
    assert found.dtype == np.float32
    assert_close(found, [-(2.0**-23) / 4], because="exact: aggregated in float64")


# FedProx


def test_proximal_adds_the_gradient_of_its_term(backend: Backend) -> None:
    start, target = np.array([1.0, -2.0, 0.5]), np.array([3.0, 3.0, 3.0])
    mu, lr = 0.3, 0.1
    f = value_and_grad(lambda xp, p, y: 0.5 * xp.sum(xp.square(p["w"] - y)))
    opt = Optimizer(chain(Proximal(mu=mu), SGD(lr=lr)))
    params: Any = convert({"w": start}, backend.name)
    state, expected = opt.init(params), start.copy()
    for _ in range(50):
        _, gradients = f(params, backend.from_numpy(target))
        params, state = opt.step(params, gradients, state)
        expected = expected - lr * ((expected - target) + mu * (expected - start))
    assert_close(params["w"], expected, rtol=1e-12, because="50 float64 steps")
    assert_close(
        params["w"], (target + mu * start) / (1 + mu), rtol=2e-3, because="50 steps come near the minimum"
    )


def test_proximal_with_mu_0_is_the_optimizer_alone() -> None:
    def run(rule: Any) -> Any:
        opt, params = Optimizer(rule), {"w": np.ones(3, np.float32)}
        state = opt.init(params)
        for i in range(5):
            params, state = opt.step(params, {"w": np.full(3, i + 0.3, np.float32)}, state)
        return params["w"]

    assert_same_bits(run(chain(Proximal(mu=0.0), Adam(lr=0.1))), run(Adam(lr=0.1)))


def test_a_kept_state_gets_the_next_round_s_anchor(backend: Backend) -> None:
    opt = Optimizer(chain(Proximal(mu=0.5), Adam(lr=0.1)))
    params = convert({"w": np.ones(3, np.float32)}, backend.name)
    _, state = opt.step(params, params, opt.init(params))
    sent = convert({"w": np.full(3, 7.0, np.float32)}, backend.name)
    new = anchored(state, sent)
    assert_same_bits(new["slots"]["anchor"]["w"], np.full(3, 7.0, np.float32))
    assert_same_bits(state["slots"]["anchor"]["w"], np.ones(3, np.float32))
    assert_same_bits(new["slots"]["exp_avg"]["w"], backend.to_numpy(state["slots"]["exp_avg"]["w"]))


def test_rounds_with_clients_of_four_frameworks_learn(backends: list[Backend]) -> None:
    """Least squares split unevenly: each client sees other inputs, on its own framework."""
    g = generator(0, "data")
    truth = g.normal(size=(4, 1))
    shards = []
    for k, backend in enumerate(backends):
        x = g.normal(size=(20 + 10 * k, 4)) + k
        shards.append((backend, x, x @ truth))
    f = value_and_grad(lambda xp, p, x, y: xp.mean(xp.square(xp.matmul(x, p["w"]) - y)))

    def train(backend: Backend, params: Any, x: Any, y: Any) -> Any:
        opt = Optimizer(chain(Proximal(mu=0.01), SGD(lr=0.02)))
        mine = convert(params, backend.name)
        state = opt.init(mine)
        for _ in range(5):
            _, gradients = f(mine, backend.from_numpy(x), backend.from_numpy(y))
            mine, state = opt.step(mine, gradients, state)
        return mine

    server = Server(Optimizer(FedYogi(lr=0.1)))
    params: Any = {"w": np.zeros((4, 1))}
    state = server.init(params)
    start = np.abs(truth).max()
    for _ in range(40):
        sent = [Client(b.name, train(b, params, x, y), len(x)) for b, x, y in shards]
        params, state = server.step(params, sent, state)
    assert np.abs(params["w"] - truth).max() < 0.2 * start


# The largest and the smallest numbers

LARGE, TINY = 1.7e308, 5e-324
EXTREMES: list[tuple[Callable[[Any, list[Client]], Any], list[float], list[Any], float]] = [
    (fedavg, [1.0, 3.0], [1e308, 1e308], 2.0),
    (fedavg, [1.0, 3.0], [10**308, 10**308], 2.0),
    (fedavg, [1.0, 3.0, 5.0], [LARGE, LARGE, 1.0], 2.0),
    (fedavg, [0.25, 0.75], [TINY, TINY], 0.5),
    (fedavg, [LARGE, LARGE], [3.0, 1.0], LARGE),
    (fedavg, [LARGE, -LARGE], [1e10, 1e10], 0.0),
    (fedavg, [TINY, TINY], [3.0, 1.0], TINY),
    (median, [LARGE, LARGE], [1.0, 1.0], LARGE),
    (median, [TINY, TINY], [1.0, 1.0], TINY),
    (trimming(0.1), [LARGE] * 10, [1.0] * 10, LARGE),
    (trimming(0.1), [TINY] * 10, [1.0] * 10, TINY),
]


@pytest.mark.parametrize(("aggregate", "values", "weights", "expected"), EXTREMES)
def test_what_float64_holds_is_averaged(
    aggregate: Any, values: list[float], weights: list[Any], expected: float
) -> None:
    clients = [
        Client(i, {"w": np.array([x, 1.0])}, w) for i, (x, w) in enumerate(zip(values, weights, strict=True))
    ]
    found = aggregate({"w": np.zeros(2)}, clients)["w"]
    assert_close(found, np.array([expected, 1.0]), rtol=1e-15, because="float64, a few roundings")


@pytest.mark.parametrize("aggregate", [fedavg, median, trimming(0.1), pseudo_gradient])
def test_what_the_server_s_dtype_can_t_hold_is_named(aggregate: Any, backend: Backend) -> None:
    server = {"w": backend.from_numpy(np.zeros(1, np.float32))}
    clients = [Client(i, {"w": np.array([1e300])}) for i in range(10)]
    with pytest.raises(
        InputError, match=r"leaf 'w' would become 1e\+300; expected at most 3\.4e\+38.*float32"
    ):
        aggregate(server, clients)
    largest = np.finfo(np.float32).max
    clients = [Client(i, {"w": np.array([largest])}) for i in range(10)]
    if aggregate is not pseudo_gradient:
        found = aggregate(server, clients)["w"]
        assert_close(found, np.array([largest]), rtol=0.0, because="the mean of equals, rounded to float32")


def test_a_pseudo_gradient_that_is_not_finite_is_named() -> None:
    for mine in (LARGE, math.inf, math.nan):
        with pytest.raises(InputError, match="pseudo_gradient: leaf 'w' would become"):
            pseudo_gradient({"w": np.array([mine])}, [Client("a", {"w": np.array([-LARGE])})])


# Errors

GOOD = {"w": np.ones(2), "b": np.ones(1)}


def one(params: Any = GOOD, weight: Any = 1.0, name: Any = "a") -> Client:
    return Client(name, params, weight)


BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: fedavg(GOOD, []), "fedavg: there are no clients"),
    (lambda: fedavg(GOOD, [one({"w": np.ones(2)})]), "client 'a': leaf 'b' is missing"),
    (lambda: fedavg(GOOD, [one({**GOOD, "c": np.ones(1)})]), "client 'a': leaf 'c' has no parameter"),
    (
        lambda: fedavg(GOOD, [one({**GOOD, "w": np.ones(3)})]),
        r"client 'a': leaf 'w' has shape \(3,\).*\(2,\)",
    ),
    (lambda: fedavg(GOOD, [one({**GOOD, "w": None})]), "client 'a': leaf 'w' is None; expected an array"),
    (lambda: fedavg(GOOD, [one({**GOOD, "w": np.ones(2, np.int64)})]), "leaf 'w' has dtype int64"),
    (
        lambda: fedavg({"n": np.ones(1, np.int32)}, [one({"n": np.ones(1)})]),
        "server's leaf 'n' has dtype int32",
    ),
    (lambda: fedavg(GOOD, [one({**GOOD, "b": np.array([np.nan])})]), "client 'a': leaf 'b' holds inf or NaN"),
    (lambda: median(GOOD, [one({**GOOD, "b": np.array([np.inf])})]), "client 'a': leaf 'b' holds inf or NaN"),
    (lambda: fedavg(GOOD, [one(weight=0.0)]), "weights of 1 clients add up to 0"),
    (lambda: fedavg(GOOD, [one(weight=-1.0)]), "client 'a' has the weight -1.0"),
    (lambda: fedavg(GOOD, [one(weight=float("nan"))]), "client 'a' has the weight nan"),
    (lambda: fedavg(GOOD, [one(weight="3")]), "client 'a' has the weight '3'"),
    (lambda: fedavg(GOOD, [one(weight=10**400)]), "client 'a' has the weight beyond float64; expected a fin"),
    (lambda: fedavg(GOOD, [one(weight=np.ones(2))]), "client 'a' has the weight array"),
    (lambda: fedavg(GOOD, [one(name=None)]), "fedavg: a client has the id None; expected a name or an int"),
    (lambda: fedavg(GOOD, [GOOD]), r"fedavg: expected a list of Client\(id, params, weight\)"),  # type: ignore[list-item]
    (lambda: fedavg(GOOD, one()), r"fedavg: expected a list of Client\(id, params, weight\)"),  # type: ignore[arg-type]
    (lambda: trimmed_mean(GOOD, [one()], 5e-324), "1 clients are too few for trim = 5e-324.*at least 10000"),
    (lambda: fedavg(GOOD, [one(), one()]), "two clients have the id 'a'"),
    (lambda: trimmed_mean(GOOD, [one(name=i) for i in range(4)], 0.2), "4 clients are too few.*at least 5"),
    (lambda: trimmed_mean(GOOD, [one()], 0.5), r"trim = 0\.5; expected a number in \(0, 0\.5\)"),
    (lambda: trimming(0.0), r"trim = 0\.0"),
    (lambda: Server(Adam()), "expected an Optimizer or None"),  # type: ignore[arg-type]
    (lambda: FedYogi(tau=0.0), r"FedYogi: tau = 0\.0; expected a finite number above 0"),
    (lambda: FedAdam(convention="flowr"), "did you mean 'flower'"),
    (lambda: Proximal(mu=-1.0), r"mu = -1\.0"),
    (lambda: anchored(Optimizer(Adam()).init(GOOD), GOOD), "the state has no slot 'anchor'"),
    (lambda: flower_strategy(Optimizer(Adam())), "expected a polyopt.federated.Server"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("act", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_bad_input_is_named(act: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        act()


@pytest.mark.parametrize(
    ("trim", "m", "left_out"), [(0.29, 100, 29), (0.2, 5, 1), (0.2, 14, 2), (0.49, 3, 1)]
)
def test_how_many_are_left_out_is_the_decimal_s_floor(trim: float, m: int, left_out: int) -> None:
    values = np.sort(generator(m, "trim").normal(size=m))
    some = [Client(i, {"w": np.array([x])}) for i, x in enumerate(values)]
    expected = values[left_out : m - left_out].mean()
    assert_close(trimmed_mean({"w": np.zeros(1)}, some, trim)["w"], [expected], rtol=1e-12, because=ONCE)


def test_without_flower_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "flwr.serverapp.strategy", None)
    with pytest.raises(BackendError, match=r'pip install "flwr<2,>=1.42"'):
        flower_strategy(Server())
