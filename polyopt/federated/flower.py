"""Flower: a strategy whose aggregation is polyopt's. Needs the extra ``flower``; nothing is imported before.

Flower samples the clients, sends the parameters out and brings them back; a ``Server`` makes the next
ones of them. Clients may run different frameworks: what travels is Flower's ``ArrayRecord``, keyed by path.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any

import numpy as np

from polyopt.backend import registry
from polyopt.core import tree
from polyopt.core.errors import BackendError, InputError, nearest
from polyopt.core.install import pip_install
from polyopt.core.tree import Tree
from polyopt.federated.clients import Client
from polyopt.federated.server import Server


def flower_strategy(server: Server, **options: Any) -> Any:
    """Make a Flower strategy that aggregates with ``server`` and samples as Flower's FedAvg.

    A client's id is its node's, its weight the metric ``num-examples`` that it replies with. The strategy
    holds the server's state in ``.state``: plain data, ``None`` before the first round.

    Parameters
    ----------
    server
        What makes the next parameters.
    **options
        Flower's ``FedAvg`` options: ``fraction_train``, ``min_train_nodes``, ``weighted_by_key``, ….
        Flower works out its sample's size before it waits for ``min_available_nodes``, so that the first
        round may have ``min_train_nodes`` clients only: give it too.

    Returns
    -------
    flwr.serverapp.strategy.Strategy
        For ``strategy.start(grid, …)``.

    Raises
    ------
    BackendError
        Where Flower is not installed: it says what to install.
    InputError
        In a round: where a reply lacks its record of arrays or its weight, or its arrays don't fit.

    Examples
    --------
    >>> from polyopt import Optimizer
    >>> from polyopt.federated import FedYogi, flower_strategy
    >>> strategy = flower_strategy(Server(Optimizer(FedYogi(lr=0.1))), fraction_train=0.5)  # doctest: +SKIP
    >>> strategy.start(grid, initial_arrays=array_record(params), num_rounds=3)  # doctest: +SKIP
    """
    if not isinstance(server, Server):
        raise InputError(f"flower_strategy: server = {server!r}; expected a polyopt.federated.Server")
    base: Any = _flwr("flwr.serverapp.strategy").FedAvg

    class PolyoptStrategy(base):  # type: ignore[misc]  # flwr is not there when types are checked
        """Flower's sampling, polyopt's aggregation."""

        def __init__(self) -> None:
            super().__init__(**options)
            self.server = server
            self.state: Any = None
            self.params: dict[str, Any] | None = None

        def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
            self.params = {name: x.numpy() for name, x in arrays.items()}
            if self.state is None:
                self.state = self.server.init(self.params)
            return super().configure_train(server_round, arrays, config, grid)

        def aggregate_train(self, server_round: int, replies: Iterable[Any]) -> tuple[Any, Any]:
            answers = sorted(
                (m for m in replies if not m.has_error()), key=lambda m: int(m.metadata.src_node_id)
            )
            if not answers or self.params is None:
                return None, None
            clients = [_client(m, self.weighted_by_key) for m in answers]
            self.params, self.state = self.server.step(self.params, clients, self.state)
            metrics = self.train_metrics_aggr_fn([m.content for m in answers], self.weighted_by_key)
            return array_record(self.params), metrics

    return PolyoptStrategy()


def array_record(params: Tree) -> Any:
    """Make Flower's ``ArrayRecord`` of ``params``: host arrays by path, from any framework.

    Parameters
    ----------
    params
        A tree of arrays.

    Returns
    -------
    flwr.app.ArrayRecord
        The leaves by path.

    Raises
    ------
    InputError
        For bfloat16, which Flower's format doesn't have: it names the leaf.
    """
    flower = _flwr("flwr.app")
    arrays = {}
    for path, x in tree.named(params).items():
        host = np.asarray(registry.of(x).to_numpy(x))
        if not host.dtype.isbuiltin:
            raise InputError(
                f"array_record: leaf {path!r} has dtype {host.dtype.name}; expected one of NumPy's own "
                "(cast it)"
            )
        arrays[path] = flower.Array(np.ascontiguousarray(host).reshape(host.shape))
    return flower.ArrayRecord(arrays)


def params_of(record: Any, like: Tree) -> Tree:
    """Return what ``array_record`` made, in the tree, dtypes, framework and devices of ``like``.

    Parameters
    ----------
    record
        An ``ArrayRecord``.
    like
        The tree that it was made of, or one like it.

    Returns
    -------
    tree
        The structure of ``like``.

    Raises
    ------
    InputError
        Where the record has other paths or shapes: it names the first.
    """
    flat = tree.flatten(like)
    named = tree.named(like)
    for path in record:
        if path not in named:
            raise InputError(f"params_of: unknown array {path!r} in the record; {nearest(path, named)}")
    leaves: list[Any] = []
    for path, x in zip(flat.paths, flat.leaves, strict=True):
        if x is None:
            leaves.append(None)
            continue
        if path not in record:
            raise InputError(f"params_of: array {path!r} is missing in the record; {nearest(path, record)}")
        values = record[path].numpy()
        if tuple(values.shape) != tuple(x.shape):
            raise InputError(f"params_of: array {path!r} has shape {values.shape}; expected {tuple(x.shape)}")
        backend = registry.of(x)
        device = backend.device_name(x)
        leaves.append(backend.from_numpy(values, dtype=backend.dtype_name(x), device=device))
    return flat.unflatten(leaves)


def _client(message: Any, weighted_by_key: str) -> Client:
    """Make a client of a reply."""
    node, content = int(message.metadata.src_node_id), message.content
    arrays, metrics = list(content.array_records.values()), list(content.metric_records.values())
    for found, what in ((arrays, "ArrayRecord"), (metrics, "MetricRecord")):
        if len(found) != 1:
            raise InputError(f"client {node}: its reply has {len(found)} {what}s; expected one")
    weight = metrics[0].get(weighted_by_key)
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise InputError(
            f"client {node}: its metric {weighted_by_key!r} is {weight!r}; expected a number, its weight; "
            f"{nearest(weighted_by_key, metrics[0])}"
        )
    return Client(node, {name: x.numpy() for name, x in arrays[0].items()}, weight)


def _flwr(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as e:
        raise BackendError(
            f"the Flower adapter needs flwr, which can't be imported ({e}): {pip_install('flower')}"
        ) from e
