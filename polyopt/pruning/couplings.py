"""Couple the slices of leaves that belong to one neuron, channel or head: plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from polyopt.core import tree
from polyopt.core.errors import InputError, nearest
from polyopt.core.ops import Array
from polyopt.core.tree import Tree
from polyopt.pruning.criteria import LAYOUTS


@dataclass(frozen=True)
class Member:
    """Locate a coupling's units in one leaf.

    Parameters
    ----------
    path, axis
        The leaf, and its axis that counts units.
    block
        Consecutive indices along it that one unit has: a head's width; the positions of a channel after a
        channels-first flatten.
    tiles
        How often all units stand there, one group after the other: 3 for a joint query-key-value weight, the
        positions after a channels-last flatten.
    scored
        Whether the unit's norm is measured here.

    Examples
    --------
    >>> Member("wq", axis=1, block=2).indices(3).tolist()
    [[0, 1], [2, 3], [4, 5]]
    >>> Member("wqkv", axis=1, tiles=2).indices(3).tolist()
    [[0, 3], [1, 4], [2, 5]]
    """

    path: str
    axis: int
    block: int = 1
    tiles: int = 1
    scored: bool = False

    def indices(self, units: int) -> Any:
        """Return for each unit its indices along the axis.

        Parameters
        ----------
        units
            The number of units.

        Returns
        -------
        array
            int64, on the host, of shape (units, tiles · block).
        """
        at = np.arange(self.tiles * units * self.block).reshape(self.tiles, units, self.block)
        return at.transpose(1, 0, 2).reshape(units, -1)


@dataclass(frozen=True)
class Coupling:
    """Name units that are pruned together, and all the slices that each of them has; plain data.

    Parameters
    ----------
    name
        What it is called: in errors, and in what ``kept_units`` returns.
    units
        How many there are.
    members
        Where they lie; the length of a member's axis is ``tiles · units · block``.

    Examples
    --------
    >>> neurons = Coupling("hidden", 4, (Member("w0", axis=1, scored=True), Member("w1", axis=0)))
    >>> [member.path for member in neurons.members]
    ['w0', 'w1']
    """

    name: str
    units: int
    members: tuple[Member, ...]


def chain_couplings(
    params: Tree, layers: Sequence[str | Sequence[str]], *, layout: str = "in_out"
) -> tuple[Coupling, ...]:
    """Couple linear or convolutional layers that follow one another, by the hidden units of an MLP.

    Parameters
    ----------
    params
        The parameters, whose shapes count.
    layers
        For each layer, in their order, the path of its weight, or ``(weight, *vectors)`` with its bias and
        whatever else has one number for each output (batch normalization's scale, mean, …). The last layer's
        outputs stay.
    layout
        ``"in_out"`` (Keras, JAX: …, in, out) or ``"out_in"`` (torch: out, in, …). Where a linear layer reads
        flattened channels, each is taken for a block with ``"out_in"`` and for every n-th index with
        ``"in_out"``, as the frameworks flatten.

    Returns
    -------
    tuple of Coupling
        One between each layer and the next, named like the first one's weight, by whose norm it is scored.

    Raises
    ------
    InputError
        For an unknown path, fewer than two layers, and shapes that don't follow one another.

    Examples
    --------
    >>> params = {"w0": np.ones((3, 4)), "b0": np.ones(4), "w1": np.ones((4, 2))}
    >>> (coupling,) = chain_couplings(params, [("w0", "b0"), "w1"])
    >>> coupling.name, coupling.units, [(m.path, m.axis) for m in coupling.members]
    ('w0', 4, [('w0', 1), ('b0', 0), ('w1', 0)])
    """
    owner = "chain_couplings"
    if layout not in LAYOUTS:
        raise InputError(f"{owner}: layout = {layout!r}; {nearest(str(layout), LAYOUTS)}")
    named = tree.named(params)
    groups = [(layer,) if isinstance(layer, str) else tuple(layer) for layer in layers]
    if len(groups) < 2:
        raise InputError(f"{owner}: {len(groups)} layers; expected at least two, of which the last is kept")
    for path in (path for group in groups for path in group):
        if path not in named:
            raise InputError(f"{owner}: no parameter is called {path!r}; {nearest(path, named)}")
    found = []
    for (weight, *vectors), (reader, *_) in pairwise(groups):
        shape, next_shape = tuple(named[weight].shape), tuple(named[reader].shape)
        if min(len(shape), len(next_shape)) < 2:
            raise InputError(
                f"{owner}: {weight!r} has shape {shape} and {reader!r} {next_shape}; expected weights of at "
                "least two axes"
            )
        out, into = (0, 1) if layout == "out_in" else (len(shape) - 1, len(next_shape) - 2)
        units, reads = shape[out], next_shape[into]
        if not units or reads % units:
            raise InputError(
                f"{owner}: {weight!r} of shape {shape} has {units} outputs and {reader!r} of shape "
                f"{next_shape} {reads} inputs; expected as many, or a multiple ({layout})"
            )
        times = reads // units
        last = Member(reader, into, times) if layout == "out_in" else Member(reader, into, tiles=times)
        middle = tuple(Member(path, 0) for path in vectors)
        found.append(Coupling(weight, units, (Member(weight, out, scored=True), *middle, last)))
    for coupling in found:
        check_coupling(owner, coupling, named)
    return tuple(found)


def head_coupling(
    name: str,
    heads: int,
    inputs: Sequence[str],
    output: str,
    params: Tree,
    *,
    biases: Sequence[str] = (),
    tiles: int = 1,
    layout: str = "in_out",
) -> Coupling:
    """Couple the heads of one attention layer.

    Parameters
    ----------
    name
        What to call it in errors.
    heads
        How many heads there are.
    inputs, biases
        The paths of the query, key and value projections, and of their biases.
    output
        The path of the output projection, by whose norm the heads are scored, with the others'.
    tiles
        3 where ``inputs`` is one joint weight with all queries, then all keys, then all values.
    layout
        As of ``chain_couplings``.
    params
        The parameters, whose shapes count.

    Returns
    -------
    Coupling
        One whose units are the heads.

    Raises
    ------
    InputError
        For an unknown path, and for a width that isn't a multiple of ``heads``.

    Examples
    --------
    >>> params = {name: np.ones((8, 8)) for name in ("q", "k", "v", "o")}
    >>> [(m.path, m.axis, m.block) for m in head_coupling("self", 4, ["q", "k", "v"], "o", params).members]
    [('q', 1, 2), ('k', 1, 2), ('v', 1, 2), ('o', 0, 2)]
    """
    if layout not in LAYOUTS:
        raise InputError(f"head_coupling: layout = {layout!r}; {nearest(str(layout), LAYOUTS)}")
    for what, x in (("heads", heads), ("tiles", tiles)):
        if isinstance(x, bool) or not isinstance(x, int) or x < 1:
            raise InputError(f"head_coupling: {what} = {x!r}; expected an integer >= 1")
    named = tree.named(params)
    out, into = (0, 1) if layout == "out_in" else (1, 0)
    members = []
    wanted = [(p, out, tiles, True) for p in inputs] + [(p, 0, tiles, False) for p in biases]
    for path, axis, times, scored in [*wanted, (output, into, 1, True)]:
        if path not in named:
            raise InputError(f"head_coupling: no parameter is called {path!r}; {nearest(path, named)}")
        shape = tuple(named[path].shape)
        if axis >= len(shape) or shape[axis] % (heads * times):
            raise InputError(
                f"head_coupling: {path!r} has shape {shape}; expected a multiple of {heads} heads times "
                f"{times} along axis {axis}"
            )
        members.append(Member(path, axis, shape[axis] // (heads * times), times, scored))
    return Coupling(name, heads, tuple(members))


def check_coupling(owner: str, coupling: Coupling, named: Mapping[str, Array]) -> None:
    """Refuse a coupling whose members aren't there or whose axes have another length."""
    if coupling.units < 1 or not coupling.members:
        raise InputError(
            f"{owner}: coupling {coupling.name!r} has {coupling.units} units and {len(coupling.members)} "
            "members; expected at least one of each"
        )
    for m in coupling.members:
        if m.path not in named:
            raise InputError(
                f"{owner}: coupling {coupling.name!r} has the leaf {m.path!r}, which is no parameter; "
                f"{nearest(m.path, named)}"
            )
        shape, wanted = tuple(named[m.path].shape), m.tiles * coupling.units * m.block
        if not 0 <= m.axis < len(shape) or shape[m.axis] != wanted:
            raise InputError(
                f"{owner}: leaf {m.path!r} of shape {shape} doesn't couple: expected a length of {wanted} "
                f"along axis {m.axis} ({m.tiles} · {coupling.units} units · {m.block} of {coupling.name!r})"
            )
