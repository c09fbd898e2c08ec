"""Federated averaging: aggregates by exact fractions, the servers' rules, FedProx; NumPy's bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any, Final

import numpy as np

from polyopt import SGD, Optimizer, chain
from polyopt.core import tree
from polyopt.federated import (
    Client,
    FedAdagrad,
    FedAdam,
    FedYogi,
    Proximal,
    Server,
    fedavg,
    median,
    trimmed_mean,
    trimming,
)
from polyopt.testing.agreement import Place, in_numpys_bits, outcome, same_bits, unit, within
from polyopt.testing.case import Case, Context
from polyopt.testing.ops_inputs import dtypes_of, host_dtype
from polyopt.testing.stages import Leaf, StageCase, Step, stage_cases

WEIGHTS: Final = (3, 1, 7, 2, 5)


def values(context: Context, seed: int) -> Any:
    """Draw a parameter for each floating dtype that the backend has."""
    rng = np.random.default_rng([31, seed])
    kinds = dtypes_of(context.backend, ("float32", "float64", "bfloat16", "float16"))
    return {d: {"w": rng.normal(size=(3, 4)).astype(host_dtype(d))} for d in kinds}


def clients(context: Context, place: Place) -> list[Client]:
    """Clients of the backend, not in the order of their ids."""
    made = [Client(k, place(values(context, k)), weight) for k, weight in enumerate(WEIGHTS)]
    return made[2:] + made[:2]


def _average(column: list[Fraction]) -> Fraction:
    return sum((n * x for n, x in zip(WEIGHTS, column, strict=True)), Fraction(0)) / sum(WEIGHTS)


@dataclass(frozen=True)
class Aggregate:
    """A function of server and clients, and of the values of one coordinate by the clients' ids."""

    name: str
    make: Callable[..., Any]
    want: Callable[[list[Fraction]], Fraction]


AGGREGATES: Final[tuple[Aggregate, ...]] = (
    Aggregate("fedavg", fedavg, _average),
    Aggregate("median", median, lambda column: sorted(column)[2]),
    Aggregate(
        "trimmed_mean",
        lambda server, clients: trimmed_mean(server, clients, trim=0.2),
        lambda column: sum(sorted(column)[1:-1], Fraction(0)) / 3,
    ),
)


def cases() -> Iterator[Case]:
    """Yield a case for each aggregation, for the order of arrival, for rounds and for the stages."""
    for aggregate in AGGREGATES:
        yield Case("federated", aggregate.name, partial(aggregated, aggregate))
    yield Case("federated", "order of arrival", arrival)
    yield Case("federated", "rounds", rounds)
    yield from stage_cases("federated", STAGES)


def aggregated(aggregate: Aggregate, context: Context) -> None:
    """Coordinate by coordinate the exact value, rounded to the server's dtype; NumPy's bits."""
    server = values(context, 99)

    def work(place: Place) -> dict[str, Any]:
        return tree.named(aggregate.make(place(server), clients(context, place)))

    got = in_numpys_bits(context.backend, work, aggregate.name)
    sent = [tree.named(values(context, k)) for k in range(len(WEIGHTS))]
    for path, x in got.items():
        columns = zip(*(named[path].reshape(-1) for named in sent), strict=True)
        exact = [float(aggregate.want([Fraction(float(v)) for v in column])) for column in columns]
        largest = max(float(np.abs(named[path].astype(np.float64)).max()) for named in sent)
        # Half a unit for the rounding to the server's dtype; a few of float64 for the sum.
        bound = 0.5 * unit(x.dtype.name) * np.abs(exact) + 8 * unit("float64") * largest
        within(f"{aggregate.name} of {path!r}", x.reshape(-1), exact, bound)


def arrival(context: Context) -> None:
    """Check that the order in which clients arrive changes no bit."""
    server = values(context, 99)

    def work(place: Place, turned: bool) -> dict[str, Any]:
        came = clients(context, place)
        return tree.named(fedavg(place(server), came[::-1] if turned else came))

    first, second = (outcome(context.backend, partial(work, turned=turned)) for turned in (False, True))
    for path, x in first.items():
        same_bits(f"fedavg of {path!r} in another order", second[path], x, "the first order")


def rounds(context: Context) -> None:
    """Three rounds of a server with an optimizer, parameters and slots in NumPy's bits."""

    def work(place: Place) -> dict[str, Any]:
        server = Server(Optimizer(FedYogi(lr=0.1)), aggregate=trimming(0.2))
        params = place(values(context, 99))
        state = server.init(params)
        for _ in range(3):
            params, state = server.step(params, clients(context, place), state)
        slots = {f"{s}: {p}": x for s, leaves in state["slots"].items() for p, x in leaves.items()}
        return tree.named(params) | slots

    in_numpys_bits(context.backend, work, "a server's rounds")


def algorithm_2(second: Callable[[Any, Any, float], Any], b1: float, b2: float, *, flower: bool) -> Step:
    """Reddi et al., 2021, Algorithm 2, of the pseudo-gradient -Δ."""
    tau = 1e-3

    def step(memory: Any, p: Any, g: Any, t: int, lr: float, leaf: Leaf) -> Any:
        delta = -g
        memory["m"] = b1 * memory.get("m", 0.0) + (1 - b1) * delta
        memory["exp_avg_sq"] = second(memory.get("exp_avg_sq", 0.0 if flower else tau**2), delta**2, b2)
        return p + lr * memory["m"] / (np.sqrt(memory["exp_avg_sq"]) + tau)

    return step


def corrected(step: Step, b1: float, b2: float) -> Step:
    """Flower's FedAdam: the rate with Adam's corrections of the round after."""

    def other(memory: Any, p: Any, g: Any, t: int, lr: float, leaf: Leaf) -> Any:
        rate = lr * np.sqrt(1 - b2 ** (t + 1)) / (1 - b1 ** (t + 1))
        return step(memory, p, g, t, rate, leaf)

    return other


def _adagrad(v: Any, square: Any, b2: float) -> Any:
    return v + square


def _adam(v: Any, square: Any, b2: float) -> Any:
    return b2 * v + (1 - b2) * square


def _yogi(v: Any, square: Any, b2: float) -> Any:
    return v - (1 - b2) * square * np.sign(v - square)


def _proximal(memory: Any, p: Any, g: Any, t: int, lr: float, leaf: Leaf) -> Any:
    """Li et al., 2020, eq. 2: descent on the loss + μ/2·‖p - start‖²."""
    return p - lr * (g + 0.25 * (p - leaf.start))


_V: Final = ("exp_avg_sq",)
STAGES: Final[tuple[StageCase, ...]] = (
    StageCase(
        "FedAdagrad",
        lambda lr: FedAdagrad(lr=lr),
        algorithm_2(_adagrad, 0.0, 0.0, flower=False),
        slots=_V,
    ),
    StageCase("FedAdam", lambda lr: FedAdam(lr=lr), algorithm_2(_adam, 0.9, 0.99, flower=False), slots=_V),
    StageCase("FedYogi", lambda lr: FedYogi(lr=lr), algorithm_2(_yogi, 0.9, 0.99, flower=False), slots=_V),
    StageCase(
        "FedAdam, flower",
        lambda lr: FedAdam(lr=lr, convention="flower"),
        corrected(algorithm_2(_adam, 0.9, 0.99, flower=True), 0.9, 0.99),
        slots=_V,
    ),
    StageCase(
        "FedYogi, flower",
        lambda lr: FedYogi(lr=lr, convention="flower"),
        algorithm_2(_yogi, 0.9, 0.99, flower=True),
        slots=_V,
    ),
    StageCase("Proximal, SGD", lambda lr: chain(Proximal(mu=0.25), SGD(lr=lr)), _proximal),
)
