"""Federated averaging."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from polyopt.core.tree import Tree
from polyopt.federated.clients import Client, gather, weights


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
        clients of one id: it names client and leaf.

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
    means = {}
    for i, column in round_.columns():
        summed = np.zeros(tuple(round_.server.leaves[i].shape))
        for weight, x in zip(n, column, strict=True):
            summed += weight * x
        means[i] = summed / total
    return round_.finished(means)
