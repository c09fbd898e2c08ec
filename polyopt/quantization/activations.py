"""A model whose layers read numbers on a grid: its activations quantized, in floats."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from polyopt.core.errors import InputError, nearest
from polyopt.core.ops import Array, Ops
from polyopt.core.tree import Tree
from polyopt.models.linear_inputs import LinearInput, Products
from polyopt.quantization.calibration import Grid
from polyopt.quantization.fake import fake_quantize


def quantize_inputs(
    apply: Callable[..., Any], grids: Mapping[str, Grid], *, gradient: str = "clipped"
) -> Callable[..., Any]:
    """Put the inputs of the linear layers in ``apply(xp, params, *args)`` on their grids.

    Wherever a parameter whose path has a grid stands on the right of a ``matmul``, transposed or not, the
    left side is first rounded: (clip(round(x·(1/s)) + z, low, high) - z)·s, by ``fake_quantize``. It is
    ``convention="torch"`` that multiplies by 1/s, and it is used here whatever the grids came from: compilers
    divide by a constant in this way in any case, so the codes are the same bits compiled and not, on every
    backend.

    Parameters
    ----------
    apply
        A model's ``apply``, written against ``xp``. The parameters that it is given must be the objects that
        it multiplies with.
    grids
        By path of the layer's weight: from ``calibrate`` or ``load_grids``. Without any, ``apply``
        is given back.
    gradient
        As of ``fake_quantize``.

    Returns
    -------
    Callable
        Called as ``apply`` is.

    Raises
    ------
    InputError
        When it is called: for a grid whose path no product has.

    Examples
    --------
    >>> import numpy as np
    >>> import polyopt_numpy.ops as xp
    >>> from polyopt.quantization import calibrate, layer_inputs
    >>> apply = lambda xp, params, x: xp.matmul(x, params["weight"])
    >>> params, x = {"weight": np.float32([[1.0], [10.0]])}, np.float32([[0.0, 2.55], [0.014, 1.0]])
    >>> grids = calibrate([layer_inputs(apply, params, x)])
    >>> quantize_inputs(apply, grids)(xp, params, x).astype(float).round(3).tolist()
    [[25.5], [10.01]]
    """
    if not grids:
        return apply

    def rounded(xp: Ops, params: Tree, *args: Any) -> Any:
        found: set[str] = set()

        def product(factor: LinearInput, x: Array, w: Array) -> Array:
            found.add(factor.path)
            grid = grids.get(factor.path)
            return xp.matmul(x if grid is None else on_grid(xp, x, grid, gradient), w)

        out = apply(Products(xp, params, product), params, *args)
        for path in sorted(grids.keys() - found):
            raise InputError(f"grid {path!r}: nothing is multiplied with it; {nearest(path, found)}")
        return out

    return rounded


def on_grid(xp: Ops, x: Array, grid: Grid, gradient: str = "clipped") -> Array:
    """Return ``x`` on ``grid``."""
    return fake_quantize(
        xp, x, grid.scale, grid.zero_point, grid.low, grid.high, convention="torch", gradient=gradient
    )
