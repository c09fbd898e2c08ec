"""A step over real batches of any size, compiled once for each bucket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from polyopt.core import tree
from polyopt.core.errors import InputError
from polyopt.core.ops import Array
from polyopt.core.sample_weights import weighted_mean
from polyopt.core.tree import Tree
from polyopt.engine.batches.buckets import Buckets
from polyopt.engine.batches.fetch import Fetch, checked
from polyopt.engine.batches.step import Losses
from polyopt.engine.optimizer import Optimizer, State
from polyopt.engine.train_step import TrainState, TrainStep


class PaddedStep:
    """Take loss, gradients and update over a real batch of any size: one gradient, of all its samples.

    The arrays have the size of the smallest bucket that holds the batch; what fills up counts nothing. So it
    makes the update of the batch alone, up to the order of a sum, and JAX and TensorFlow compile at most once
    for each bucket. Otherwise it is a ``TrainStep``.

    Parameters
    ----------
    losses
        ``losses(xp, params, *shared, *data)``: the loss of each sample on its own, of shape (bucket,). A sum
        or mean over samples inside (as batch normalization has) would see those that fill up.
    optimizer
        Makes the update.
    buckets
        The sizes of the arrays.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt import SGD, Optimizer
    >>> def losses(xp, params, x, y):
    ...     return (params["w"] * x - y) ** 2
    >>> step = PaddedStep(losses, Optimizer(SGD(lr=0.25)), Buckets((2, 4)))
    >>> carry = step.init({"w": np.array([0.0])})
    >>> x, y = np.array([1.0, 1.0, 1.0]), np.array([1.0, 2.0, 6.0])
    >>> carry, loss = step(carry, (x, y), [0, 1, 2])
    >>> params, state = step.unload(carry)
    >>> params["w"].tolist(), round(float(loss), 4)
    ([1.5], 13.6667)
    """

    def __init__(self, losses: Losses, optimizer: Optimizer, buckets: Buckets) -> None:
        self.losses, self.buckets = losses, buckets

        def loss(xp: Any, params: Tree, batch: Any, shared: Any, whole: Any, brought: Any) -> Array:
            rows, counted = batch
            flat, size = tree.flatten(whole), int(counted.shape[0])
            pairs = zip(flat.leaves, tree.flatten(brought).leaves, strict=True)
            data = flat.unflatten(y if x is None else xp.take(x, rows, axis=0) for x, y in pairs)
            each = losses(xp, params, *shared, *data)
            if tuple(each.shape) != (size,):
                raise InputError(
                    f"PaddedStep: losses has shape {tuple(each.shape)}; expected one loss a sample, ({size},)"
                )
            return weighted_mean(xp, each, counted)

        self._step = TrainStep(loss, optimizer)

    @property
    def optimizer(self) -> Optimizer:
        """Return what makes the update."""
        return self._step.optimizer

    def init(self, params: Tree) -> TrainState:
        """Begin, as ``TrainStep.init`` does.

        Parameters
        ----------
        params
            They are copied.

        Returns
        -------
        TrainState
            What the first step takes.
        """
        return self._step.init(params)

    def load(self, params: Tree, state: State) -> TrainState:
        """Go on from parameters and a state by path, which are copied.

        Parameters
        ----------
        params
            They are copied.
        state
            By path, as ``Optimizer.step`` has it.

        Returns
        -------
        TrainState
            What the next step takes.
        """
        return self._step.load(params, state)

    def unload(self, carry: TrainState, *, copy: bool = True) -> tuple[Tree, State]:
        """Return ``(params, state)`` by path, as ``Optimizer.step`` has them.

        Parameters
        ----------
        carry
            What the last step gave.
        copy
            ``False`` may give arrays that the next step gives up.

        Returns
        -------
        tuple
            ``(params, state)``.
        """
        return self._step.unload(carry, copy=copy)

    def observe(self, carry: TrainState, value: float, what: str = "metric") -> TrainState:
        """Report ``value`` to the schedules that wait for ``what``, a ``"size"`` say.

        Parameters
        ----------
        carry
            What the last step gave.
        value
            What is reported.
        what
            ``"metric"`` or ``"size"``.

        Returns
        -------
        TrainState
            What the next step takes.
        """
        return self._step.observe(carry, value, what)

    def __call__(
        self, carry: TrainState, data: Sequence[Any], indices: Any, *, shared: Sequence[Any] = ()
    ) -> tuple[TrainState, Array]:
        """Make a step: ``(carry after it, mean loss of the batch before it)``; the carry given is given up.

        Parameters
        ----------
        carry
            Of ``init``, ``load`` or the last step.
        data, indices, shared
            The samples, the batch and what comes before them, as ``AccumulatedStep`` takes them.

        Raises
        ------
        InputError
            As of ``AccumulatedStep``, and for more indices than the largest bucket holds.
        """
        rows = checked(type(self).__name__, tuple(data), indices)
        backend, size = carry.backend, self.buckets(len(rows))
        first = next(x for x in tree.flatten(carry.params).leaves if x is not None)
        fetch = Fetch(backend, backend.device_name(first), size)
        # What lies on the device is taken from inside the compiled step.
        whole = tree.map_leaves(lambda x: x if fetch.has(x) else None, tuple(data))
        brought = tree.map_leaves(lambda x: None if fetch.has(x) else fetch.brought(x, rows), tuple(data))
        return self._step(carry, (fetch.rows(rows), fetch.counted(rows)), tuple(shared), whole, brought)
