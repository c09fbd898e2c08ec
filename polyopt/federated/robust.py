"""Aggregation that some clients may lie to: coordinate by coordinate, of sorted values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial, reduce
from typing import Any

import numpy as np

from polyopt.core.errors import InputError
from polyopt.core.tree import Tree
from polyopt.federated.clients import Client, Round, gather, without_overflow


def median(server: Tree, clients: Sequence[Client]) -> Tree:
    """Take the coordinate-wise median (Yin et al., 2018, Definition 1); weights don't count.

    The mean of the two in the middle where the number of clients is even. Right as long as fewer than half
    lie.

    Parameters
    ----------
    server
        The server's parameters: their tree, framework, dtypes and devices are the result's.
    clients
        At least one.

    Returns
    -------
    tree
        The structure of ``server``.

    Raises
    ------
    InputError
        As of ``fedavg``.

    Examples
    --------
    >>> import numpy as np
    >>> clients = [Client(i, {"w": np.array([x])}) for i, x in enumerate([1.0, 2.0, 1e9])]
    >>> median({"w": np.zeros(1)}, clients)["w"].tolist()
    [2.0]
    """
    round_ = gather(server, clients, "median")
    m = len(round_.clients)
    return round_.finished({i: _mean(x, (m - 1) // 2) for i, x in _sorted(round_)}, "median")


def trimmed_mean(server: Tree, clients: Sequence[Client], trim: float = 0.1) -> Tree:
    """Take the coordinate-wise β-trimmed mean (Yin et al., 2018, Definition 2); weights don't count.

    Of each coordinate the ⌊β·m⌋ largest and as many smallest values of the m clients are left out, and the
    others averaged, added up from the smallest. The rest is as of ``fedavg``.

    Parameters
    ----------
    trim
        β, in (0, 1/2): at least the part of the clients that may lie.
    server
        The server's parameters: their tree, framework, dtypes and devices are the result's.
    clients
        Enough of them for one to be left out at either end.

    Returns
    -------
    tree
        The structure of ``server``.

    Raises
    ------
    InputError
        As of ``fedavg``, and where there are too few clients for one to be left out.

    Examples
    --------
    >>> import numpy as np
    >>> clients = [Client(i, {"w": np.array([x])}) for i, x in enumerate([-1e9, 1.0, 2.0, 3.0, 1e9])]
    >>> trimmed_mean({"w": np.zeros(1)}, clients, trim=0.2)["w"].tolist()
    [2.0]
    """
    if isinstance(trim, bool) or not isinstance(trim, int | float) or not 0 < trim < 0.5:
        raise InputError(f"trimmed_mean: trim = {trim!r}; expected a number in (0, 0.5)")
    round_ = gather(server, clients, "trimmed_mean")
    cut = trimmed_away(trim, len(round_.clients))
    if cut == 0:
        raise InputError(
            f"trimmed_mean: {len(round_.clients)} clients are too few for trim = {trim!r}: none would be "
            f"left out; expected at least {math.ceil(min(1 / trim, 1e18) - 1e-9)}"
        )
    return round_.finished({i: _mean(x, cut) for i, x in _sorted(round_)}, "trimmed_mean")


def trimming(trim: float) -> Any:
    """Make an aggregation of two arguments of ``trimmed_mean``.

    Parameters
    ----------
    trim
        β, in (0, 1/2).

    Returns
    -------
    Callable
        ``f(server, clients)``.

    Examples
    --------
    >>> import numpy as np
    >>> clients = [Client(i, {"w": np.array([x])}) for i, x in enumerate([-1e9, 1.0, 2.0, 3.0, 1e9])]
    >>> trimming(0.2)({"w": np.zeros(1)}, clients)["w"].tolist()
    [2.0]
    """
    if not 0 < trim < 0.5:
        raise InputError(f"trimming: trim = {trim!r}; expected a number in (0, 0.5)")
    return partial(trimmed_mean, trim=trim)


def trimmed_away(trim: float, m: int) -> int:
    """Return how many of m clients are left out at either end: ⌊β·m⌋ of the decimal that was meant.

    0.29·100 is 28.999999999999996.
    """
    return math.floor(trim * m + 1e-9)


def _sorted(round_: Round) -> Iterator[tuple[int, Any]]:
    return ((i, np.sort(np.stack(list(column)), axis=0)) for i, column in round_.columns())


def _mean(ascending: Any, cut: int) -> Any:
    """Return the mean over the first axis without ``cut`` at either end, in the order that they stand."""
    kept = ascending[cut : len(ascending) - cut]
    with np.errstate(over="ignore", invalid="ignore"):
        mean = reduce(np.add, kept) / len(kept)
    return without_overflow(mean, lambda: reduce(np.add, kept / len(kept)))
