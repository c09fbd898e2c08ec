"""The clients of a simulation: whose samples are whose, and who takes part in a round.

All of it is drawn on the host from the seed: the same clients on every backend.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from polyopt.core import random
from polyopt.core.errors import InputError


def split_iid(samples: int, clients: int, *, seed: int = 0, imbalance: float = 0.0) -> tuple[Any, ...]:
    """Deal samples out at random.

    Parameters
    ----------
    samples
        How many there are; each goes to one client.
    clients
        Number of clients.
    imbalance
        σ >= 0: sizes are as exp(σ·z), z standard normal; 0 makes them equal, but for one sample.
    seed
        Of the draws.

    Returns
    -------
    tuple of array
        For each client its row numbers, ascending, int64.

    Raises
    ------
    InputError
        Where a client would have no sample.

    Examples
    --------
    >>> [rows.tolist() for rows in split_iid(5, 2, seed=1)]
    [[0, 1, 2], [3, 4]]
    """
    sizes = _sizes(samples, clients, seed, imbalance, "split_iid")
    order = random.permutation(samples, seed, "split")
    return tuple(np.sort(rows) for rows in np.split(order, np.cumsum(sizes)[:-1]))


def split_labels(labels: Any, clients: int, *, shards: int = 2, seed: int = 0) -> tuple[Any, ...]:
    """Give each client few labels: sorted samples, cut into shards and dealt at random.

    Each client gets ``shards`` of the ``clients·shards`` pieces. Samples of one label stand in random order.

    McMahan et al., 2017, section 3.

    Parameters
    ----------
    labels
        Of all samples, of shape (samples,).
    clients
        Number of clients.
    shards
        How many each gets.
    seed
        Of the draws.

    Returns
    -------
    tuple of array
        For each client its row numbers, int64.

    Raises
    ------
    InputError
        Where there are more shards than samples.

    Examples
    --------
    >>> labels = np.array([0, 1, 2, 0, 1, 2])
    >>> [labels[rows].tolist() for rows in split_labels(labels, 3, shards=1)]
    [[0, 0], [2, 2], [1, 1]]
    """
    labels = _checked(labels, "split_labels")
    _count("split_labels", "clients", clients)
    _count("split_labels", "shards", shards)
    pieces = clients * shards
    if pieces > len(labels):
        raise InputError(
            f"split_labels: {clients} clients with {shards} shards each; expected at most as many shards as "
            f"the {len(labels)} samples"
        )
    mixed = random.permutation(len(labels), seed, "split")
    cut = np.array_split(mixed[np.argsort(labels[mixed], kind="stable")], pieces)
    dealt = random.permutation(pieces, seed, "shards").reshape(clients, shards)
    return tuple(np.sort(np.concatenate([cut[i] for i in own])) for own in dealt)


def split_dirichlet(
    labels: Any, clients: int, *, alpha: float = 0.5, seed: int = 0, imbalance: float = 0.0
) -> tuple[Any, ...]:
    """Give each client labels in other shares (Hsu et al., 2019, section 2): q ~ Dir(α·p), p those of all.

    A client's samples are drawn by q without replacement; where a label has run out, by the rest of q, and
    where nothing of q is left, by another q over the labels that are. So the last clients take what the
    others left.

    Parameters
    ----------
    labels
        Of all samples, of shape (samples,).
    alpha
        α > 0: small values give a client few labels, large ones the shares of all.
    imbalance
        As of ``split_iid``.
    clients
        Number of clients.
    seed
        Of the draws.

    Returns
    -------
    tuple of array
        For each client its row numbers, int64.

    Examples
    --------
    >>> labels = np.repeat([0, 1], 50)
    >>> [int(labels[rows].sum()) for rows in split_dirichlet(labels, 4, alpha=0.1)]
    [5, 4, 25, 16]
    """
    labels = _checked(labels, "split_dirichlet")
    if not (_is_number(alpha) and math.isfinite(alpha) and alpha > 0):
        raise InputError(f"split_dirichlet: alpha = {alpha!r}; expected a finite number above 0")
    sizes = _sizes(len(labels), clients, seed, imbalance, "split_dirichlet")
    mixed = random.permutation(len(labels), seed, "split")
    kinds = np.unique(labels)
    pools = [list(mixed[labels[mixed] == kind]) for kind in kinds]
    prior = np.array([len(pool) / len(labels) for pool in pools])
    draw = random.generator(seed, "dirichlet")
    return tuple(np.sort(np.array(_drawn(pools, alpha, prior, int(size), draw))) for size in sizes)


def participants(clients: int, fraction: float, round_: int, *, seed: int = 0) -> tuple[int, ...]:
    """Draw who takes part in a round: max(⌊C·K⌋, 1) of K clients (McMahan et al., 2017, Algorithm 1).

    ⌊⌋ of the decimal that was written.

    Parameters
    ----------
    clients
        K.
    fraction
        C, in (0, 1].
    round_
        The round's number, from 0; it keys the draw with ``seed``.
    seed
        Of the draws.

    Returns
    -------
    tuple of int
        The clients' numbers, ascending.

    Examples
    --------
    >>> participants(10, 0.3, 0), participants(10, 0.3, 1), participants(3, 1.0, 0)
    ((3, 4, 9), (0, 3, 7), (0, 1, 2))
    """
    _count("participants", "clients", clients)
    if not (_is_number(fraction) and 0 < fraction <= 1):
        raise InputError(f"participants: fraction = {fraction!r}; expected a number in (0, 1]")
    chosen = random.permutation(clients, seed, "participants", round_)[: taking_part(clients, fraction)]
    return tuple(sorted(int(k) for k in chosen))


def taking_part(clients: int, fraction: float) -> int:
    """Return how many that are."""
    return max(math.floor(fraction * clients + 1e-9), 1)


def _drawn(pools: list[list[Any]], alpha: float, prior: Any, size: int, draw: Any) -> list[int]:
    """Return ``size`` rows out of the pools by shares of their own; they are taken away."""
    rows: list[int] = []
    q = draw.dirichlet(alpha * prior)
    while len(rows) < size:
        there = np.array([len(pool) > 0 for pool in pools])
        mass = np.where(there, q, 0.0)
        if not mass.sum() > 0:
            q = np.where(there, prior, 0.0)
            q[there] = draw.dirichlet(alpha * prior[there])
            mass = q if q.sum() > 0 else np.where(there, prior, 0.0)
        kinds = np.flatnonzero(mass)
        edges = np.cumsum(mass[kinds])[:-1]
        pool = None
        while len(rows) < size and pool != []:
            pool = pools[kinds[np.searchsorted(edges, draw.random() * mass.sum(), side="right")]]
            rows.append(int(pool.pop()))
    return rows


def _sizes(samples: int, clients: int, seed: int, imbalance: float, owner: str) -> Any:
    _count(owner, "clients", clients)
    if clients > samples:
        raise InputError(f"{owner}: clients = {clients}; expected at most the {samples} samples")
    if not (_is_number(imbalance) and math.isfinite(imbalance) and imbalance >= 0):
        raise InputError(f"{owner}: imbalance = {imbalance!r}; expected a finite number >= 0")
    if not imbalance:
        return np.array([samples // clients + (k < samples % clients) for k in range(clients)])
    powers = min(imbalance, 1e300) * random.generator(seed, "sizes").normal(size=clients)
    # Only their ratios count: where exp would overflow, the largest part is 1.
    parts = np.exp(powers - max(powers.max() - 600.0, 0.0))
    edges = np.floor(np.cumsum(parts) / parts.sum() * samples + 0.5)
    edges[-1] = samples
    sizes = np.diff(edges, prepend=0).astype(np.int64)
    if not sizes.all():
        raise InputError(
            f"{owner}: client {int(np.argmin(sizes))} of {clients} would have no sample, with imbalance = "
            f"{imbalance!r} and {samples} samples; expected fewer clients or a smaller imbalance"
        )
    return sizes


def _checked(labels: Any, owner: str) -> Any:
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(
            f"{owner}: labels have shape {labels.shape} and dtype {labels.dtype}; expected integers of shape "
            "(samples,)"
        )
    return labels


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(owner: str, name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{owner}: {name} = {value!r}; expected an integer >= 1")
