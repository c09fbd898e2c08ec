"""Federated averaging."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from polyopt.core.tree import Tree
from polyopt.federated.clients import Client, gather, weights, without_overflow


def fedavg(server: Tree, clients: Sequence[Client]) -> Tree:
    """Average the clients, ``Σ n_k·w_k / Σ n_k`` (McMahan et al., 2017, Algorithm 1).

    Summed in float64 in the order of the clients' ids and rounded once, so the bits depend neither on the
    order of arrival nor on the frameworks.

    Parameters
    ----------
    server
        The server's parameters: their tree, framework, dtypes and devices are the result's.
    clients
        At least one; ``weight`` is n_k.

    Returns
    -------
    tree
        The structure of ``server``.

    Raises
    ------
    InputError
        For other leaves or shapes, weights that are negative or add up to 0, values that are not finite, two
        clients of one id, a mean that the server's dtype can't hold: it names client or leaf.

    Examples
    --------
    >>> import numpy as np
    >>> a, b = Client("a", {"w": np.array([1.0])}, 3), Client("b", {"w": np.array([5.0])}, 1)
    >>> fedavg({"w": np.zeros(1)}, [b, a])["w"].tolist()
    [2.0]
    """
    round_ = gather(server, clients, "fedavg")
    n = weights(round_.clients, "fedavg")
    total = math.fsum(n)
    shares = [x / total for x in n]
    means = {}
    for i, column in round_.columns():
        with np.errstate(over="ignore", invalid="ignore"):
            mean = _sum(n, column) / total
        means[i] = without_overflow(mean, partial(_sum, shares, round_.column(i)))
    return round_.finished(means, "fedavg")


def _sum(weights: Sequence[float], arrays: Iterable[Any]) -> Any:
    summed: Any = 0.0
    for weight, x in zip(weights, arrays, strict=True):
        product = weight * x
        product += summed
        summed = product
    return summed
