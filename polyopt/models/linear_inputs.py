"""The products of a function with its parameters, seen from outside: what goes into each, and in its place.

A linear layer is a ``matmul`` by a parameter, or by one that is transposed. So a function written against
``xp`` needs no hooks: it is given operations that know the parameters when they come by.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from polyopt.backend import registry
from polyopt.core import tree
from polyopt.core.ops import Array, Ops
from polyopt.core.tree import Tree


@dataclass(frozen=True)
class LinearInput:
    """A parameter on the right of a product."""

    path: str
    layout: str
    """``"in_out"``, or ``"out_in"`` where the product is with its transpose: how its axes lie."""


Product: TypeAlias = Callable[[LinearInput, Array, Array], Array]
"""``product(factor, x, w)``: what takes the place of ``xp.matmul(x, w)``, w as (in, out)."""


class Products:
    """The operations ``xp``, whose ``matmul(x, w)`` is ``product(factor, x, w)`` where w is of ``params``.

    A parameter is known by its identity: one that was changed on the way, but for ``matrix_transpose``, is
    none.

    >>> import numpy as np
    >>> params = {"layer": {"weight": np.ones((2, 3))}}
    >>> seen = Products(np, params, lambda factor, x, w: print(factor.path, factor.layout) or x @ w)
    >>> seen.matmul(np.ones((1, 2)), params["layer"]["weight"]).tolist()
    layer.weight in_out
    [[2.0, 2.0, 2.0]]
    """

    def __init__(self, xp: Any, params: Tree, product: Product) -> None:
        self._xp, self._product = xp, product
        # The arrays too: an identity lives as long as its object.
        self._known = {id(w): (LinearInput(path, "in_out"), w) for path, w in tree.named(params).items()}

    def matmul(self, x: Array, w: Array) -> Array:
        """Multiply, and note the input where ``w`` is a parameter."""
        known = self._known.get(id(w))
        return self._xp.matmul(x, w) if known is None else self._product(known[0], x, w)

    def matrix_transpose(self, w: Array) -> Array:
        """Transpose, and remember of which parameter the result is the transpose."""
        turned = self._xp.matrix_transpose(w)
        known = self._known.get(id(w))
        if known is not None:
            other = "in_out" if known[0].layout == "out_in" else "out_in"
            self._known[id(turned)] = LinearInput(known[0].path, other), turned
        return turned

    def __getattr__(self, name: str) -> Any:
        return getattr(self._xp, name)


def layer_inputs(apply: Callable[..., Any], params: Tree, *args: Any) -> dict[str, Array]:
    """Record the input of every matrix product with a parameter, by the parameter's path.

    Of a matrix with several products it is the last one's.

    Parameters
    ----------
    apply
        The model, ``apply(xp, params, *args)``, written against ``Ops``.
    params
        The parameters: a tree of arrays of any framework.
    *args
        What else ``apply`` takes, a batch for one.

    Returns
    -------
    dict
        ``{path: array}``, arrays of the framework of ``params``, in the order of the products.

    Examples
    --------
    >>> import numpy as np
    >>> params = [np.ones((2, 3)), np.ones((3, 1))]
    >>> apply = lambda xp, params, x: xp.matmul(xp.matmul(x, params[0]), params[1])
    >>> {path: x.tolist() for path, x in layer_inputs(apply, params, np.array([[1.0, 2.0]])).items()}
    {'0': [[1.0, 2.0]], '1': [[3.0, 3.0, 3.0]]}
    """
    return {path: x for path, (_, x) in _products(apply, params, args).items()}


def factors(apply: Callable[..., Any], params: Tree, *args: Any) -> dict[str, LinearInput]:
    """Find the parameters that stand on the right of a product in ``apply(xp, params, *args)``, by path.

    Examples
    --------
    >>> import numpy as np
    >>> apply = lambda xp, params, x: xp.matmul(x, xp.matrix_transpose(params["w"])) + params["b"]
    >>> factors(apply, {"w": np.ones((3, 2)), "b": np.ones(3)}, np.ones((1, 2)))
    {'w': LinearInput(path='w', layout='out_in')}
    """
    return {path: factor for path, (factor, _) in _products(apply, params, args).items()}


def _products(
    apply: Callable[..., Any], params: Tree, args: tuple[Any, ...]
) -> dict[str, tuple[LinearInput, Array]]:
    xp: Ops = registry.of(*tree.named(params).values()).ops
    found: dict[str, tuple[LinearInput, Array]] = {}

    def noted(factor: LinearInput, x: Array, w: Array) -> Array:
        found[factor.path] = factor, x
        return xp.matmul(x, w)

    apply(Products(xp, params, noted), params, *args)
    return found
