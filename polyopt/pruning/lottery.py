"""Pruning while training: a step of a schedule, and rounds that go back to where they began."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from polyopt.core.ops import Array
from polyopt.core.tree import Tree
from polyopt.engine.optimizer import Optimizer, State
from polyopt.pruning.criteria import magnitude_masks
from polyopt.pruning.leaves import Masks, pruned
from polyopt.pruning.masking import masks_of, with_masks
from polyopt.pruning.schedules import Iterative, SparsitySchedule

Criterion: TypeAlias = Callable[..., Masks]
"""``criterion(params, sparsity, within=masks)``: ``magnitude_masks``, say."""


def prune(
    optimizer: Optimizer,
    params: Tree,
    state: State,
    schedule: SparsitySchedule,
    criterion: Criterion = magnitude_masks,
    *,
    donate: bool = False,
) -> tuple[Tree, State]:
    """Prune to the schedule's sparsity if it is due; to be called after every update.

    What is pruned stays pruned: the criterion gets the masks that the state holds.

    Parameters
    ----------
    optimizer
        One of ``masked``.
    schedule
        Asked about ``state["step"]``, the number of updates made.
    criterion
        With ``functools.partial``, for its scope and selection.
    donate
        As of ``with_masks``.
    params, state
        Those of ``optimizer``.

    Returns
    -------
    tuple
        ``(params, state)``, the same objects where nothing is due.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt import SGD
    >>> from polyopt.pruning import OneShot, masked
    >>> opt = Optimizer(masked(SGD(lr=0.1)))
    >>> params = {"w": np.array([[1.0, 2.0, 3.0, 4.0]])}
    >>> params, state = prune(opt, params, opt.init(params), OneShot(0.5))
    >>> params["w"].tolist()
    [[0.0, 0.0, 3.0, 4.0]]
    """
    step = int(state["step"])
    if not schedule.due(step):
        return params, state
    before = masks_of(state) if "mask" in state["slots"] else {}
    new = criterion(params, schedule(step), within=before)
    return with_masks(optimizer, params, state, before | new, donate=donate)


@dataclass(frozen=True)
class Ticket:
    """Hold the masks that a round of ``lottery`` found, and the values to start from.

    Parameters
    ----------
    round
        The round's number, from 1.
    sparsity
        Of all leaves that the criterion selects, in [0, 1).
    masks
        ``{path: bool array}``, ``True`` to keep.
    """

    round: int
    sparsity: float
    masks: Masks
    params: Tree
    """The weights rewound: those that are kept have their early values, the others are 0."""
    trained: Tree
    """What the round's training ended with, before it was pruned."""


def lottery(
    early: Tree,
    schedule: Iterative,
    train: Callable[[Tree, Masks], Tree],
    criterion: Criterion = magnitude_masks,
) -> Iterator[Ticket]:
    """Prune by magnitude and rewind, round after round: Frankle & Carbin, 2019, section 2, strategy 1.

    Each round trains from the weights it rewound to, prunes what is smallest of what is left, and goes back:
    to the initial weights, or to those of an early step (Frankle et al., 2020), whichever ``early`` is.

    Parameters
    ----------
    early
        The weights to go back to; not changed.
    schedule
        How many rounds there are, and each one's sparsity.
    train
        ``train(params, masks)`` gives the trained weights; in the first round ``masks`` is empty. To respect
        them, start by ``with_masks(optimizer, params, optimizer.init(params), masks)``, or with the state of
        the early step.
    criterion
        As of ``prune``.

    Yields
    ------
    Ticket
        After each round. The last one is to be trained by the caller.

    Examples
    --------
    >>> import numpy as np
    >>> early = {"w": np.array([[1.0, 2.0, 3.0, 4.0]])}
    >>> def train(params, masks):
    ...     return {"w": 1 / (params["w"] + 1e-9)}
    >>> [ticket.params["w"].tolist() for ticket in lottery(early, Iterative(0.5, rounds=1), train)]
    [[[1.0, 2.0, 0.0, 0.0]]]
    """
    params, masks = early, dict[str, Array]()
    for i in range(1, schedule.rounds + 1):
        trained = train(params, masks)
        sparsity = schedule.of_round(i)
        masks = masks | _pruned(criterion, trained, sparsity, masks)
        params = pruned(early, masks)
        yield Ticket(i, sparsity, masks, params, trained)


def _pruned(criterion: Criterion, trained: Tree, sparsity: float, before: Mapping[str, Any]) -> Masks:
    return criterion(trained, sparsity, within=before) if before else criterion(trained, sparsity)
