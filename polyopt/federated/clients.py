"""Check what clients send and bring it to the host: the input of every aggregation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from numbers import Integral
from typing import Any

import numpy as np

from polyopt.backend import registry
from polyopt.backend.protocol import Backend
from polyopt.core import tree
from polyopt.core.errors import InputError
from polyopt.core.ops import FLOATING, Array
from polyopt.core.tree import Flat, Tree
from polyopt.engine.checks import LARGEST

_LARGEST = LARGEST | {"float16": 65504.0, "bfloat16": (2 - 2**-7) * 2.0**127}


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
        """Yield for every leaf of the server's but ``None`` its number, and a host array of each client's.

        They are brought to the host one by one: a sum needs no more than one at a time.
        """
        for i, like in enumerate(self.server.leaves):
            if like is not None:
                yield i, self.column(i)

    def column(self, leaf: int) -> Iterator[Any]:
        """Return one leaf's float64 host arrays, client by client."""
        return map(partial(self._host, leaf), range(len(self.clients)))

    def _host(self, leaf: int, client: int) -> Any:
        x, path = self.leaves[client][leaf], self.server.paths[leaf]
        values = np.asarray(registry.of(x).to_numpy(x)).astype(np.float64)
        if not np.isfinite(values).all():
            raise InputError(
                f"client {self.clients[client].id!r}: leaf {path!r} holds inf or NaN; expected finite numbers"
            )
        return values

    def finished(self, values: dict[int, Any], owner: str) -> Tree:
        """Put ``values[leaf]`` in the server's tree, rounded once to its dtypes, on its framework and devices.

        Raises
        ------
        InputError
            For a value that the leaf's dtype can't hold.
        """
        leaves = list(self.server.leaves)
        for i, value in values.items():
            like = leaves[i]
            dtype = self.backend.dtype_name(like)
            check_holds(dtype, value, self.server.paths[i], owner)
            leaves[i] = self.backend.from_numpy(value, dtype=dtype, device=self.backend.device_name(like))
        return self.server.unflatten(leaves)


def check_holds(dtype: str, value: Any, path: str, owner: str) -> None:
    """Refuse host float64 values that are not finite, or will not be in ``dtype``."""
    largest = float(np.max(np.abs(value), initial=0.0))
    # What lies above by less than half of a last bit is rounded down.
    if not math.isfinite(largest) or largest > _LARGEST[dtype] * (1 + 1e-8):
        raise InputError(
            f"{owner}: leaf {path!r} would become {largest:.3g}; expected at most {_LARGEST[dtype]:.3g}, the "
            f"largest number of the server's {dtype}"
        )


def without_overflow(mean: Any, again: Callable[[], Any]) -> Any:
    """Return ``mean``, but ``again()`` where its sum was beyond float64: the mean itself never is."""
    finite = np.isfinite(mean)
    return mean if finite.all() else np.where(finite, mean, again())


def gather(server: Tree, clients: Sequence[Client], owner: str) -> Round:
    """Put the clients in the order of their ids, each with the server's leaves.

    Raises
    ------
    InputError
        It names the client, and the leaf where it has others, or of another shape or dtype.
    """
    flat = tree.flatten(server)
    if isinstance(clients, Client) or not all(isinstance(client, Client) for client in clients):
        raise InputError(f"{owner}: expected a list of Client(id, params, weight)")
    if not clients:
        raise InputError(f"{owner}: there are no clients; expected at least one")
    backend = registry.of(*(x for x in flat.leaves if x is not None))
    for path, x in zip(flat.paths, flat.leaves, strict=True):
        if x is not None and backend.dtype_name(x) not in FLOATING:
            raise InputError(
                f"{owner}: the server's leaf {path!r} has dtype {backend.dtype_name(x)}; expected one of "
                f"{', '.join(FLOATING)} (leave it out of what is aggregated)"
            )
    for client in clients:
        if not isinstance(client.id, str | Integral):
            raise InputError(f"{owner}: a client has the id {client.id!r}; expected a name or an integer")
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
    """Return their weights as floats, none below 0, with a sum above 0."""
    found = []
    for client in clients:
        w = client.weight
        try:
            number = math.nan if isinstance(w, bool | str) else float(w)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not (math.isfinite(number) and number >= 0):
            text = f"{w!r:.60}" if not isinstance(w, int) or w.bit_length() < 64 else "beyond float64"
            raise InputError(
                f"{owner}: client {client.id!r} has the weight {text}; expected a finite number >= 0"
            )
        found.append(number)
    if not max(found) > 0:
        raise InputError(f"{owner}: the weights of {len(found)} clients add up to 0; expected a sum above 0")
    # By a power of 2, which changes no bit of a mean, where sums or products might not be float64 numbers.
    exponent = math.frexp(max(found))[1]
    return [math.ldexp(w, -exponent) for w in found] if abs(exponent) > 500 else found
