"""Check what clients send and bring it to the host: the input of every aggregation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from polyopt.backend import registry
from polyopt.backend.protocol import Backend
from polyopt.core import tree
from polyopt.core.errors import InputError
from polyopt.core.ops import FLOATING, Array
from polyopt.core.tree import Flat, Tree


@dataclass(frozen=True)
class Client:
    """One client's parameters after its training of a round.

    Parameters
    ----------
    id
        A name or a number, its own: the order in which clients are added up, so that it isn't that of
        arrival.
    params
        A tree with the paths and shapes of the server's, of any framework and floating dtypes.
    weight
        Its part in a weighted mean, >= 0: usually the number of its samples.
    """

    id: str | int
    params: Tree
    weight: float = 1.0


@dataclass(frozen=True)
class Round:
    """The clients of one round, in the order of their ids, checked against the server's parameters."""

    server: Flat
    backend: Backend
    clients: tuple[Client, ...]
    leaves: tuple[tuple[Array | None, ...], ...]
    """``leaves[client][leaf]``: arrays of each client's own framework."""

    def columns(self) -> Iterator[tuple[int, Iterator[Any]]]:
        """``(leaf, float64 host arrays, client by client)`` for every leaf of the server's but ``None``.

        They are brought to the host one by one: a sum needs no more than one at a time.
        """
        for i, like in enumerate(self.server.leaves):
            if like is not None:
                yield i, map(partial(self._host, i), range(len(self.clients)))

    def _host(self, leaf: int, client: int) -> Any:
        x, path = self.leaves[client][leaf], self.server.paths[leaf]
        values = np.asarray(registry.of(x).to_numpy(x)).astype(np.float64)
        if not np.isfinite(values).all():
            raise InputError(
                f"client {self.clients[client].id!r}: leaf {path!r} holds inf or NaN; expected finite numbers"
            )
        return values

    def finished(self, values: dict[int, Any]) -> Tree:
        """``values[leaf]`` in the server's tree, rounded once to its dtypes, on its framework and devices."""
        leaves = list(self.server.leaves)
        for i, value in values.items():
            like = leaves[i]
            leaves[i] = self.backend.from_numpy(
                value, dtype=self.backend.dtype_name(like), device=self.backend.device_name(like)
            )
        return self.server.unflatten(leaves)


def gather(server: Tree, clients: Sequence[Client], owner: str) -> Round:
    """Put the clients in the order of their ids, each with the server's leaves.

    Raises
    ------
    InputError
        It names the client, and the leaf where it has others, or of another shape or dtype.
    """
    flat = tree.flatten(server)
    if not clients:
        raise InputError(f"{owner}: there are no clients; expected at least one")
    backend = registry.of(*(x for x in flat.leaves if x is not None))
    for path, x in zip(flat.paths, flat.leaves, strict=True):
        if x is not None and backend.dtype_name(x) not in FLOATING:
            raise InputError(
                f"{owner}: the server's leaf {path!r} has dtype {backend.dtype_name(x)}; expected one of "
                f"{', '.join(FLOATING)} (leave it out of what is aggregated)"
            )
    ordered = tuple(sorted(clients, key=lambda c: (isinstance(c.id, str), c.id)))
    for a, b in pairwise(ordered):
        if a.id == b.id:
            raise InputError(f"{owner}: two clients have the id {a.id!r}; expected an id of its own for each")
    return Round(flat, backend, ordered, tuple(_leaves(flat, client) for client in ordered))


def _leaves(server: Flat, client: Client) -> tuple[Array | None, ...]:
    leaves = tree.aligned(client.params, server, f"client {client.id!r}")
    for path, like, x in zip(server.paths, server.leaves, leaves, strict=True):
        if (like is None) != (x is None):
            found, expected = ("None", "an array") if x is None else ("an array", "None, as on the server")
            raise InputError(f"client {client.id!r}: leaf {path!r} is {found}; expected {expected}")
        if x is None:
            continue
        if tuple(x.shape) != tuple(like.shape):
            raise InputError(
                f"client {client.id!r}: leaf {path!r} has shape {tuple(x.shape)}; expected the server's "
                f"{tuple(like.shape)}"
            )
        dtype = registry.of(x).dtype_name(x)
        if dtype not in FLOATING:
            raise InputError(
                f"client {client.id!r}: leaf {path!r} has dtype {dtype}; expected one of "
                f"{', '.join(FLOATING)}"
            )
    return tuple(leaves)


def weights(clients: Sequence[Client], owner: str) -> list[float]:
    """Their weights as floats, none below 0, with a sum above 0."""
    found = []
    for client in clients:
        w = client.weight
        if isinstance(w, bool) or not hasattr(w, "__float__") or not (math.isfinite(w) and w >= 0):
            raise InputError(
                f"{owner}: client {client.id!r} has the weight {w!r}; expected a finite number >= 0"
            )
        found.append(float(w))
    if not math.fsum(found) > 0:
        raise InputError(f"{owner}: the weights of {len(found)} clients add up to 0; expected a sum above 0")
    return found
