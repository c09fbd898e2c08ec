"""Run one recipe on several backends, from the same bits, and measure how far apart they come."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from polyopt.backend import registry
from polyopt.backend.protocol import Backend
from polyopt.core.errors import InputError
from polyopt.recipe import Recipe
from polyopt.training.events import Result
from polyopt.training.loop import Listener
from polyopt.training.run import train

SNAPSHOTS = 40
"""Places of a run at which the parameters are compared."""


@dataclass(frozen=True)
class Pair:
    """Hold the deviation between two backends' runs.

    Parameters
    ----------
    first, second
        The backends.
    loss_deviation
        The largest relative one over the batches.
    parameter_deviation
        The largest one over the places of the run.
    """

    first: str
    second: str
    loss_deviation: float
    parameter_deviation: float


@dataclass(frozen=True)
class Comparison:
    """Compare a recipe's runs on several backends.

    Two values that are the same, NaN included, deviate by 0; where one alone is NaN, or infinite, the
    deviation is infinite. Where the batch size follows the noise, two backends that find another size see
    other samples from there on, and the one may take more batches than the other: what both have is compared.

    Parameters
    ----------
    backends
        Their names, the first one being what the curves are measured against.
    steps
        Number of batches.
    dtype
        ``"float32"`` or ``"float64"``.
    losses
        For each backend the training loss of each batch.
    loss_deviation
        For each backend its relative deviation from the first one in the loss of each batch, |a - b| / |a|.
    parameter_deviation
        For each backend ``(batches done, deviation)`` at up to 40 places of the run, the last batch among
        them: the largest over leaves of max|a - b| / max|a|, a leaf's largest difference against its largest
        element.
    pairs
        Each two backends.
    max_relative_loss_deviation
        The largest over batches and *pairs*.
    max_relative_parameter_deviation
        The largest over places and pairs.
    results
        For each backend its run.
    """

    backends: tuple[str, ...]
    steps: int
    dtype: str
    losses: dict[str, list[float]]
    loss_deviation: dict[str, list[float]]
    parameter_deviation: dict[str, list[tuple[int, float]]]
    pairs: tuple[Pair, ...]
    max_relative_loss_deviation: float
    max_relative_parameter_deviation: float
    results: dict[str, Result]


def compare(
    recipe: Recipe,
    backends: Sequence[str | Backend] | None = None,
    *,
    dtype: str | None = None,
    steps: int | None = None,
    on_event: Listener | None = None,
) -> Comparison:
    """Run ``recipe`` on each of ``backends``, by default all that are installed, NumPy first.

    Its phases are left out: what is compared is the run before them, step by step.

    Parameters
    ----------
    recipe
        What to run.
    backends
        Names, or backend objects; the first one is what the curves are measured against.
    dtype
        ``"float32"`` or ``"float64"`` in the place of the recipe's.
    steps
        Number of batches, in the place of the recipe's (which may go on longer than the recipe does).
    on_event
        As of ``train``; an event says which backend it is of.

    Returns
    -------
    Comparison
        All runs, and how far they are apart.

    Raises
    ------
    InputError
        Where no backend is given, or the recipe can't be run on one.

    Examples
    --------
    >>> recipe = Recipe.from_dict({
    ...     "data": {"name": "diabetes"},
    ...     "model": {"name": "linear"},
    ...     "optimizer": {"name": "sgd", "lr": 0.1},
    ...     "train": {"steps": 3, "batch_size": "full"},
    ... })
    >>> compare(recipe, ["numpy"]).losses["numpy"][0] > 20000
    True
    """
    if backends is None:
        backends = sorted(registry.installed(), key=lambda name: name != "numpy")
    if not backends:
        raise InputError("compare: no backends given")
    recipe = recipe.replace(dtype=dtype, steps=steps)
    recipe = recipe.of_phase(0) if recipe.phase else recipe
    names = tuple(b if isinstance(b, str) else b.name for b in backends)
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"compare: backend {name!r} is given twice")
    results = {
        name: train(recipe, backend=backend, on_event=on_event, snapshots=SNAPSHOTS)
        for name, backend in zip(names, backends, strict=True)
    }
    pairs = tuple(
        Pair(
            a,
            b,
            max(losses_apart(results[a], results[b]), default=0.0),
            max((d for _, d in drift(results[a], results[b])), default=0.0),
        )
        for a, b in combinations(names, 2)
    )
    return Comparison(
        backends=names,
        steps=results[names[0]].steps,
        dtype=recipe.dtype,
        losses={name: result.history.loss for name, result in results.items()},
        loss_deviation={name: losses_apart(results[names[0]], result) for name, result in results.items()},
        parameter_deviation={name: drift(results[names[0]], result) for name, result in results.items()},
        pairs=pairs,
        max_relative_loss_deviation=max((p.loss_deviation for p in pairs), default=0.0),
        max_relative_parameter_deviation=max((p.parameter_deviation for p in pairs), default=0.0),
        results=results,
    )


def losses_apart(a: Result, b: Result) -> list[float]:
    """Return the relative deviation of ``b`` from ``a``, batch by batch, as far as both go."""
    return [_apart(x, y, x) for x, y in zip(a.history.loss, b.history.loss, strict=False)]


def drift(a: Result, b: Result) -> list[tuple[int, float]]:
    """Return ``(batches done, deviation)`` of the parameters of ``b`` from those of ``a``, as both kept."""
    both = ((step, params) for step, params in a.snapshots.items() if step in b.snapshots)
    return [(step, parameters_apart(params, b.snapshots[step])) for step, params in both]


def parameters_apart(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    """Return the largest over the leaves of max|a - b| / max|a|."""
    largest = 0.0
    for path, x in a.items():
        x, y = (np.asarray(v, np.float64) for v in (x, b[path]))
        differs = ~((x == y) | (np.isnan(x) & np.isnan(y)))
        if differs.any():
            gap, size = np.max(np.abs(x - y)[differs]), np.max(np.abs(x))
            largest = max(largest, _apart(float(gap), 0.0, float(size)))
    return largest


def _apart(x: float, y: float, size: float) -> float:
    if x == y or (math.isnan(x) and math.isnan(y)):
        return 0.0
    if size == 0 or not (math.isfinite(x) and math.isfinite(y) and math.isfinite(size)):
        return math.inf
    return abs(x - y) / abs(size)
