"""The server's part of a round: what the clients sent is a gradient, and an optimizer steps along it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from polyopt.core import tree
from polyopt.core.errors import InputError
from polyopt.core.tree import Tree
from polyopt.engine.optimizer import Optimizer, State
from polyopt.engine.plan import compute_dtype
from polyopt.federated.clients import Client, check_holds, gather
from polyopt.federated.mean import fedavg

Aggregate: TypeAlias = Callable[[Tree, Sequence[Client]], Tree]
"""``aggregate(server, clients) -> params``: ``fedavg``, ``median``, ``trimming(0.1)`` or your own."""


class Server:
    """Federated optimization (Reddi et al., 2021, Algorithm 1): rounds as pure functions.

    Parameters
    ----------
    optimizer
        The server's: ``Optimizer(FedAdam(...))``, FedYogi, FedAdagrad, or any of polyopt. ``None`` takes what
        ``aggregate`` gives as it is: plain federated averaging.
    aggregate
        How the clients' parameters are put together.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt import SGD, Optimizer
    >>> server = Server(Optimizer(SGD(lr=0.5)))
    >>> params = {"w": np.array([0.0])}
    >>> state = server.init(params)
    >>> clients = [Client("a", {"w": np.array([4.0])}, 1), Client("b", {"w": np.array([8.0])}, 3)]
    >>> params, state = server.step(params, clients, state)
    >>> params["w"].tolist(), state["step"]
    ([3.5], 1)
    """

    def __init__(self, optimizer: Optimizer | None = None, aggregate: Aggregate = fedavg) -> None:
        if optimizer is not None and not isinstance(optimizer, Optimizer):
            raise InputError(f"Server: optimizer = {optimizer!r}; expected an Optimizer or None")
        if not callable(aggregate):
            raise InputError(f"Server: aggregate = {aggregate!r}; expected fedavg, median or trimming(…)")
        self.optimizer, self.aggregate = optimizer, aggregate

    def init(self, params: Tree) -> State:
        """Return the state before the first round: plain data.

        Parameters
        ----------
        params
            The server's parameters.

        Returns
        -------
        dict
            As ``Optimizer.init`` makes it.
        """
        return (
            {"step": 0, "missed": {}, "slots": {}} if self.optimizer is None else self.optimizer.init(params)
        )

    def step(self, params: Tree, clients: Sequence[Client], state: State) -> tuple[Tree, State]:
        """Make the next parameters of the clients' after a round.

        Parameters
        ----------
        params
            The server's parameters.
        clients
            At least one.
        state
            What ``init`` or the last ``step`` returned.

        Returns
        -------
        tuple
            ``(next params, next state)``, on the framework of ``params``.
        """
        if self.optimizer is None:
            return self.aggregate(params, clients), {**state, "step": state["step"] + 1}
        gradient = pseudo_gradient(params, clients, aggregate=self.aggregate)
        return self.optimizer.step(params, gradient, state)


def pseudo_gradient(server: Tree, clients: Sequence[Client], *, aggregate: Aggregate = fedavg) -> Tree:
    """Return ``-Δ_t``: the server's parameters minus what ``aggregate`` makes of the clients'.

    In the compute dtype of each leaf (float32, or float64), aggregated and subtracted in float64. A
    difference that it can't hold, and a server's parameter that is not finite, are an ``InputError``.

    Parameters
    ----------
    server
        The server's parameters.
    clients
        At least one.
    aggregate
        ``f(server, clients)``, a tree like ``server``.

    Returns
    -------
    tree
        Like ``server``, in each leaf's compute dtype.

    Examples
    --------
    >>> import numpy as np
    >>> pseudo_gradient({"w": np.array([1.0])}, [Client("a", {"w": np.array([4.0])})])["w"].tolist()
    [-3.0]
    """
    round_ = gather(server, clients, "pseudo_gradient")
    flat, backend = round_.server, round_.backend
    hosts = [None if x is None else np.asarray(backend.to_numpy(x)).astype(np.float64) for x in flat.leaves]
    wide = flat.unflatten(hosts)
    combined = tree.flatten(aggregate(wide, clients)).leaves

    def leaf(path: str, like: Any, mine: Any, theirs: Any) -> Any:
        dtype = compute_dtype(backend.dtype_name(like))
        with np.errstate(over="ignore", invalid="ignore"):
            change = mine - theirs
        check_holds(dtype, change, path, "pseudo_gradient")
        return backend.from_numpy(change, dtype=dtype, device=backend.device_name(like))

    return flat.unflatten(
        None if like is None else leaf(path, like, mine, theirs)
        for path, like, mine, theirs in zip(flat.paths, flat.leaves, hosts, combined, strict=True)
    )
