"""Loss and gradients of a batch from its micro-batches: their mean, and what they tell of the noise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from polyopt.backend import registry
from polyopt.backend.evaluate import full_like
from polyopt.backend.global_norm import global_norm
from polyopt.backend.gradients import value_and_grad
from polyopt.backend.protocol import Backend, LossFunction
from polyopt.core import tree
from polyopt.core.ops import Array
from polyopt.core.tree import Tree
from polyopt.engine import accumulate
from polyopt.engine.batches.noise import Norms
from polyopt.engine.plan import compute_dtype


@dataclass(frozen=True)
class Outcome:
    """Hold the loss of an update over micro-batches, and the norms of its gradients.

    Parameters
    ----------
    loss
        The mean over the batch's samples, before the update: a 0-d array.
    norms
        Of the gradients, for the noise scale; ``None`` where they are not measured, or where there are less
        than two micro-batches.
    """

    loss: Array
    norms: Norms | None


class Accumulated:
    """``(outcome, gradients)`` of a batch, micro-batch by micro-batch: the ``gradient`` of a ``TrainStep``.

    Parameters
    ----------
    loss
        ``loss(xp, params, *args)`` of a micro-batch: the sum over its samples divided by ``micro``, so that
        one which is not full counts for as much less.
    micro
        Samples in a full micro-batch.
    measure
        Measure the norms.
    compiled
        Compile it where the framework compiles.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt import SGD, Optimizer, TrainStep
    >>> def loss(xp, params, counted, x, y):
    ...     return xp.sum(counted * (params["w"] * x - y) ** 2) / 2
    >>> step = TrainStep(loss, Optimizer(SGD(lr=0.25)), gradient=Accumulated(loss, micro=2))
    >>> x, full, half = np.ones(2), np.ones(2), np.array([1.0, 0.0])
    >>> parts = [(full, x, np.array([1.0, 2.0])), (half, x, np.array([6.0, 6.0]))]
    >>> carry, outcome = step(step.init({"w": np.array([0.0])}), parts, 3)
    >>> step.unload(carry)[0]["w"].tolist(), round(float(outcome.loss), 4)
    ([1.5], 13.6667)
    """

    def __init__(
        self, loss: LossFunction, micro: int, *, measure: bool = False, compiled: bool = True
    ) -> None:
        self.micro, self.measure, self.compiled = micro, measure, compiled
        self.gradient = value_and_grad(loss, compiled=compiled, pure=True)

    def __call__(self, params: Tree, parts: Iterable[Sequence[Any]], many: int) -> tuple[Outcome, Tree]:
        """Add up the gradients of ``many`` samples.

        ``parts`` are the arguments of the loss for each micro-batch, the last of which may be short.
        """
        flat = tree.flatten(params)
        present = {path: x for path, x in zip(flat.paths, flat.leaves, strict=True) if x is not None}
        backend, paths, compiled = registry.of(*present.values()), tuple(present), self.compiled
        alone = many <= self.micro
        held = {} if alone else {path: _zeros(backend, x) for path, x in present.items()}
        losses: list[Array] = []
        norms: list[Array] = []
        for i, args in enumerate(parts):
            value, gradients = self.gradient(params, *args)
            named = tree.named(gradients)
            found = {path: named[path] for path in paths}
            held = found if alone else accumulate.add(backend, paths, [*found.values()], held, compiled)
            losses.append(value)
            # A part that is not full has other noise, and one and a bit differ too little from one.
            if self.measure and (i + 1) * self.micro <= many >= 2 * self.micro:
                norms.append(global_norm(gradients))
        share = many / self.micro
        mean = held if share == 1 else accumulate.mean(backend, paths, held, share, compiled)
        gradients = flat.unflatten(mean.get(path) for path in flat.paths)
        total = losses[0]
        for value in losses[1:]:
            total = total + value
        return Outcome(total / share, self._norms(backend, norms, gradients, many)), gradients

    def _norms(self, backend: Backend, norms: list[Array], gradients: Tree, many: int) -> Norms | None:
        if not norms:
            return None
        found = [float(backend.to_numpy(x)) for x in (*norms, global_norm(gradients))]
        # Not x ** 2, which raises where x * x is infinite.
        squares = [x * x for x in found]
        return Norms(sum(squares[:-1]) / len(norms), squares[-1], self.micro, many)


def _zeros(backend: Backend, x: Array) -> Array:
    """Return where gradients of ``x`` are added up: in the dtype in which it is updated."""
    return full_like(backend, x, 0.0, compute_dtype(backend.dtype_name(x)))
