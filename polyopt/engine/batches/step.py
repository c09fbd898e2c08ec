"""A step over any number of samples, in micro-batches of one fixed size: compiled once for all sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from polyopt.backend import registry
from polyopt.core import tree
from polyopt.core.errors import InputError
from polyopt.core.ops import Array
from polyopt.core.tree import Tree
from polyopt.engine.batches.accumulated import Accumulated, Outcome
from polyopt.engine.batches.fetch import Fetch, checked
from polyopt.engine.optimizer import Optimizer, State

Losses = Callable[..., Array]
"""``losses(xp, params, *shared, *data)``: the loss of each sample, of shape (micro,)."""


class AccumulatedStep:
    """Take loss, gradients and update over a batch of any size, in as many micro-batches as it takes.

    The gradient is the mean over the batch's samples. A micro-batch that is not full is padded by samples
    that count nothing, so every array has the same shape, and nothing is compiled again. For a whole number
    k of micro-batches the update has the bits of ``Optimizer(rule, accumulate=k)`` for the same gradients.

    Parameters
    ----------
    losses
        ``losses(xp, params, *shared, *data)``: the loss of each sample on its own, of shape (micro,). A sum
        or mean over samples inside (as batch normalization has) sees the micro-batch alone.
    optimizer
        Makes the update; it must not accumulate itself.
    micro
        Samples in a micro-batch.
    measure
        Measure the norms that ``NoiseScale`` wants, in an order that gives
        the same bits on every backend.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt import SGD, Optimizer
    >>> def losses(xp, params, x, y):
    ...     return (params["w"] * x - y) ** 2
    >>> step = AccumulatedStep(losses, Optimizer(SGD(lr=0.25)), micro=2)
    >>> params = {"w": np.array([0.0])}
    >>> state = step.optimizer.init(params)
    >>> x, y = np.array([1.0, 1.0, 1.0]), np.array([1.0, 2.0, 6.0])
    >>> params, state, outcome = step(params, state, (x, y), np.array([0, 1, 2]))
    >>> params["w"].tolist(), round(float(outcome.loss), 4)
    ([1.5], 13.6667)
    """

    def __init__(self, losses: Losses, optimizer: Optimizer, micro: int, *, measure: bool = False) -> None:
        if isinstance(micro, bool) or not isinstance(micro, int) or micro < 1:
            raise InputError(f"AccumulatedStep: micro = {micro!r}; expected an integer >= 1")
        if optimizer.accumulate != 1:
            raise InputError(
                f"AccumulatedStep: the optimizer has accumulate = {optimizer.accumulate}; expected 1: "
                "the step accumulates by itself"
            )
        self.losses, self.optimizer, self.micro, self.measure = losses, optimizer, micro, measure

        def loss(xp: Any, params: Tree, counted: Array, shared: Any, data: Any) -> Array:
            each = losses(xp, params, *shared, *data)
            if tuple(each.shape) != (micro,):
                raise InputError(
                    f"AccumulatedStep: losses has shape {tuple(each.shape)}; "
                    f"expected one loss a sample, ({micro},)"
                )
            # Divided by what a full one has: the parts of a batch are then added up unweighted.
            return xp.sum(xp.astype(counted, each.dtype) * each) / float(micro)

        self._mean = Accumulated(loss, micro, measure=measure, compiled=optimizer.compiled)

    def __call__(
        self,
        params: Tree,
        state: State,
        data: Sequence[Any],
        indices: Any,
        *,
        shared: Sequence[Any] = (),
        donate: bool = False,
    ) -> tuple[Tree, State, Outcome]:
        """Return ``(next params, next state, outcome)`` after one update.

        Parameters
        ----------
        params, state
            As ``Optimizer.step`` takes them; a leaf that is ``None`` is left alone.
        data
            The whole data set, (x, y), say: trees of arrays whose first axis is the samples, of the
            parameters' framework or on the host, from where each micro-batch is brought over.
        indices
            The batch: at least one index into the samples, a host array or a list.
        shared
            What ``losses`` gets before the samples, whole: the frozen part of a
            ``trainable`` loss.
        donate
            Give up ``params`` and ``state``, as in ``Optimizer.step``.

        Raises
        ------
        InputError
            For no indices, or one out of range, and for data of different lengths. Nothing was changed.
        """
        leaves = [x for x in tree.flatten(params).leaves if x is not None]
        backend = registry.of(*leaves)
        rows, micro = checked(type(self).__name__, tuple(data), indices), self.micro
        fetch = Fetch(backend, backend.device_name(leaves[0]), micro)
        batches = (rows[start : start + micro] for start in range(0, len(rows), micro))
        # One after the other: on the device there is but one at a time.
        parts = ((fetch.counted(part), tuple(shared), fetch(data, part)) for part in batches)
        outcome, gradients = self._mean(params, parts, len(rows))
        params, state = self.optimizer.step(params, gradients, state, donate=donate)
        return params, state, outcome
