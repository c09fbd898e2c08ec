"""The grids of activations, from a stream of batches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyopt.backend import registry
from polyopt.core import tree
from polyopt.core.errors import InputError
from polyopt.core.ops import FLOATING
from polyopt.core.tree import Tree
from polyopt.quantization.host import choose
from polyopt.quantization.observers import Histogram, MinMax, Observer, histogram, merged
from polyopt.quantization.scheme import Integer

ACTIVATIONS = Integer(per="tensor", symmetric=False)
"""The usual scheme of activations: 8 bits, one scale, affine."""


@dataclass(frozen=True)
class Grid:
    """Hold a grid of plain numbers: codes q in [``low``, ``high``] stand for ``scale``·(q - ``zero_point``).

    For ``fake_quantize(xp, x, grid.scale, grid.zero_point, grid.low, grid.high)``.

    Parameters
    ----------
    scale
        The step of the grid; a float32's value.
    zero_point
        The code of 0.
    low, high
        The range of codes, both included.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt import get_backend
    >>> from polyopt.quantization import fake_quantize
    >>> grid, xp = Grid(scale=0.5, zero_point=0, low=-127, high=127), get_backend("numpy").ops
    >>> fake_quantize(xp, np.array([0.6, 1.3]), grid.scale, grid.zero_point, grid.low, grid.high).tolist()
    [0.5, 1.5]
    """

    scale: float
    zero_point: int
    low: int
    high: int


@dataclass(frozen=True)
class Calibration:
    """Gather statistics of activations, by path: plain host data that goes on with the next batch.

    Parameters
    ----------
    batches
        How many were seen.
    seen
        For each path its histogram.

    Examples
    --------
    >>> import numpy as np
    >>> seen = Calibration()
    >>> for batch in (np.float32([0.0, 0.5]), np.float32([2.55, 1.0])):
    ...     seen = seen.observe({"hidden": batch})
    >>> seen.grids()["hidden"]
    Grid(scale=0.009999999776482582, zero_point=-128, low=-128, high=127)
    """

    batches: int = 0
    seen: tuple[tuple[str, Histogram], ...] = ()

    def observe(self, batch: Tree) -> Calibration:
        """Take in one more batch.

        Parameters
        ----------
        batch
            A tree of floating arrays of any framework, the same paths each time.

        Returns
        -------
        Calibration
            A new one; this one isn't changed.

        Raises
        ------
        InputError
            For a batch that is empty or holds what is not finite: it names the batch (from 0), the leaf and
            the index. Nothing was changed.
        """
        before, after = dict(self.seen), {}
        leaves = tree.named(batch)
        if not leaves:
            raise InputError(f"calibration batch {self.batches} has no array")
        if before and leaves.keys() != before.keys():
            name = sorted(leaves.keys() ^ before.keys())[0]
            there = "is missing from" if name in before else "is new in"
            raise InputError(f"leaf {name!r} {there} calibration batch {self.batches}; expected the same")
        for path, x in leaves.items():
            new = histogram(_checked(x, path, self.batches))
            after[path] = merged(before[path], new) if path in before else new
        return Calibration(self.batches + 1, tuple(after.items()))

    def grids(self, observer: Observer | None = None, scheme: Integer = ACTIVATIONS) -> dict[str, Grid]:
        """Make a ``Grid`` for every path.

        Parameters
        ----------
        observer
            ``MinMax`` by default, ``Percentile``, ``MSE`` or ``Entropy``.
        scheme
            ``per="tensor"``: one scale for each path, by the formulas of the scheme's convention in float32.

        Returns
        -------
        dict
            ``{path: Grid}``.

        Raises
        ------
        InputError
            Where no batch was observed.
        """
        if not self.seen:
            raise InputError("the calibration set is empty: observe at least one batch")
        chosen = MinMax() if observer is None else observer
        if not isinstance(chosen, Observer):
            raise InputError(f"calibration: observer = {observer!r}; expected an observer such as MinMax()")
        if not isinstance(scheme, Integer):
            raise InputError(f"calibration: scheme = {scheme!r}; expected an Integer")
        if scheme.per != "tensor":
            raise InputError(
                f'calibration: per = {scheme.per!r}; expected per="tensor": activations share one scale'
            )
        return {path: _grid(chosen, h, scheme) for path, h in self.seen}


def calibrate(
    batches: Iterable[Tree], observer: Observer | None = None, scheme: Integer = ACTIVATIONS
) -> dict[str, Grid]:
    """Make the grids of all paths of ``batches``, seen one after the other: see ``Calibration``.

    Parameters
    ----------
    batches
        Trees of floating arrays of any framework, the same paths each time.
    observer, scheme
        As of ``Calibration.grids``.

    Returns
    -------
    dict
        ``{path: Grid}``.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt.quantization import Entropy, Integer
    >>> x = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    >>> sorted(calibrate([{"x": x[:5000]}, {"x": x[5000:]}]))
    ['x']
    """
    seen = Calibration()
    for batch in batches:
        seen = seen.observe(batch)
    return seen.grids(observer, scheme)


def _grid(observer: Observer, seen: Histogram, scheme: Integer) -> Grid:
    low, high = observer.interval(seen, scheme)
    bounds = np.float32(min(low, 0.0)), np.float32(max(high, 0.0))
    scale, zero = choose(scheme, *map(np.asarray, bounds))
    return Grid(float(scale), 0 if zero is None else int(zero), *scheme.range)


def _checked(x: Any, path: str, batch: int) -> Any:
    backend = registry.of(x)
    where = f"calibration batch {batch}, leaf {path!r}"
    if backend.dtype_name(x) not in FLOATING:
        raise InputError(f"{where}: dtype {backend.dtype_name(x)}; expected one of {', '.join(FLOATING)}")
    if backend.is_traced(x):
        raise InputError(f"{where} is traced; calibrate outside of compiled functions")
    host = np.asarray(backend.to_numpy(x), np.float64)
    if not host.size:
        raise InputError(f"{where} is empty: shape {host.shape}")
    limit = float(np.finfo(np.float32).max) / 2
    wrong = np.flatnonzero(~(np.abs(host.reshape(-1)) <= limit))
    if wrong.size:
        index = tuple(int(k) for k in np.unravel_index(int(wrong[0]), host.shape))
        raise InputError(
            f"{where}: the element at {index} is {float(host[index]):.6g}; expected finite numbers "
            f"of at most {limit:.6g}"
        )
    return host
