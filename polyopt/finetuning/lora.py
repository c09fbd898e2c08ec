"""LoRA: low-rank adapters beside weights that are kept as they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

from polyopt.backend import registry
from polyopt.backend.protocol import LossFunction
from polyopt.core import tree
from polyopt.core.aliases import CheckedKeywords
from polyopt.core.errors import InputError, nearest
from polyopt.core.ops import Array
from polyopt.core.rule import Pattern
from polyopt.core.tree import Tree
from polyopt.finetuning.freezing import constant
from polyopt.finetuning.placing import beside
from polyopt.finetuning.selection import select
from polyopt.models.initializers import He, Initializer, Zeros

Adapters: TypeAlias = dict[str, dict[str, Array]]
"""``{path: {"A": array, "B": array}}``: a tree whose leaves are called ``layers.0.weight.A``, …"""


@dataclass(frozen=True)
class LoRA(CheckedKeywords):
    """Train ``W + s·A·B`` by A and B alone: Hu et al., "LoRA", 2022, section 4.1.

    The paper writes ΔW = B·A for weights of shape (out, in). A is the factor on the side of the input here
    too: it is drawn, B is zero, so training starts from W.

    Parameters
    ----------
    patterns
        Which weights: regular expressions or predicates on the path. They must have two axes.
    rank
        r, from 1 to the shorter axis.
    alpha
        α, in (0, inf).
    layout
        ``"in_out"``: W is (in, out), A is (in, r), B is (r, out) and ΔW = s·A·B (Keras, JAX, this
        library's models). ``"out_in"``: W is (out, in), A is (r, in), B is (out, r) and ΔW = s·B·A (torch).
    scaling
        ``"paper"``: s = α/r. ``"rank_stabilized"``: s = α/√r (Kalajdzievski, 2023).
    initializer
        Draws A, given the shape (in, r); both layouts have the same numbers. He's normal by default. The
        authors' code draws ``He(distribution="uniform", nonlinearity="leaky_relu", slope=5**0.5)``.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt import SGD, Optimizer, value_and_grad
    >>> def loss(xp, params, x, y):
    ...     return xp.mean((xp.matmul(x, params["w"]) - y) ** 2)
    >>> lora = LoRA(["^w$"], rank=1, alpha=2.0)
    >>> params = {"w": np.ones((3, 2))}
    >>> adapters = lora.init(params, seed=0)
    >>> {k: x.shape for k, x in adapters["w"].items()}
    {'A': (3, 1), 'B': (1, 2)}
    >>> value, grads = value_and_grad(lora.loss(loss))(adapters, params, np.ones((1, 3)), np.ones((1, 2)))
    >>> float(value)
    4.0
    >>> adapters = {"w": {"A": np.array([[1.0], [0.0], [0.0]]), "B": np.array([[0.5, 0.0]])}}
    >>> merged, originals = lora.merge(params, adapters)
    >>> merged["w"].tolist()
    [[2.0, 1.0], [1.0, 1.0], [1.0, 1.0]]
    >>> unmerge(merged, originals)["w"] is params["w"]
    True
    """

    patterns: Pattern | Sequence[Pattern]
    rank: int
    alpha: float
    layout: str = "in_out"
    scaling: str = "paper"
    initializer: Initializer = field(default_factory=lambda: He(distribution="normal", convention="paper"))

    def __post_init__(self) -> None:
        given = self.patterns
        several = (given,) if isinstance(given, str) or callable(given) else tuple(given)
        object.__setattr__(self, "patterns", several)
        if not several:
            raise InputError("LoRA: patterns is empty; expected at least one")
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise InputError(f"LoRA: rank = {self.rank!r}; expected an integer >= 1")
        if not isinstance(self.alpha, int | float) or not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise InputError(f"LoRA: alpha = {self.alpha!r}; expected a finite number above 0")
        for name, choices in (("layout", ("in_out", "out_in")), ("scaling", ("paper", "rank_stabilized"))):
            value = getattr(self, name)
            if value not in choices:
                raise InputError(f"LoRA: {name} = {value!r}; {nearest(str(value), choices)}")

    @property
    def scale(self) -> float:
        """s, what the product of the adapters is multiplied by."""
        return self.alpha / (self.rank if self.scaling == "paper" else math.sqrt(self.rank))

    def init(self, params: Tree, seed: int = 0, *, dtype: str | None = None) -> Adapters:
        """Make adapters of the weights that match: A drawn by (``seed``, path), the same everywhere; B 0.

        Parameters
        ----------
        params
            The pre-trained parameters.
        seed
            Of the draws.
        dtype
            Of the adapters; that of each weight by default.

        Returns
        -------
        dict
            ``{path: {"A": array, "B": array}}``.
        """
        paths = select(params, *cast(tuple[Pattern, ...], self.patterns))
        leaves = tree.named(params)
        return {path: self._adapter(path, leaves.get(path), seed, dtype) for path in paths}

    def loss(self, loss: LossFunction) -> LossFunction:
        """Make of ``loss(xp, params, *args)`` a function of the adapters.

        For ``value_and_grad`` and ``TrainStep``. No gradient is computed for
        ``params``.

        Parameters
        ----------
        loss
            ``loss(xp, params, *args)`` of the whole tree.

        Returns
        -------
        Callable
            ``f(xp, adapters, params, *args)``.
        """

        def of_adapters(xp: Any, adapters: Adapters, params: Tree, *args: Any) -> Array:
            return loss(xp, self.apply(xp, constant(params), adapters), *args)

        return of_adapters

    def apply(self, xp: Any, params: Tree, adapters: Adapters) -> Tree:
        """Put W + s·A·B in the places of the adapted W, computed by ``xp``, differentiable.

        Parameters
        ----------
        xp
            The backend's operations.
        params
            The pre-trained parameters.
        adapters
            What ``init`` made, trained or not.

        Returns
        -------
        tree
            The structure of ``params``.
        """

        def adapted(path: str, w: Array) -> Array:
            a, b = self._factors(path, w, adapters[path])
            product = xp.matmul(a, b) if self.layout == "in_out" else xp.matmul(b, a)
            return w + xp.astype(product * self.scale, w.dtype)

        _check_paths(params, adapters)
        flat = tree.flatten(params)
        return flat.unflatten(
            adapted(path, x) if path in adapters else x
            for path, x in zip(flat.paths, flat.leaves, strict=True)
        )

    def merge(self, params: Tree, adapters: Adapters) -> tuple[Tree, dict[str, Array]]:
        """Put W + s·A·B in the places of the adapted W for good.

        It is computed on the host in double precision and rounded once to W's dtype, so the same adapters
        give the same bits on every backend. ``unmerge`` gives W itself back, which a subtraction
        can't.

        Parameters
        ----------
        params
            The pre-trained parameters.
        adapters
            What was trained.

        Returns
        -------
        tuple
            ``(merged, originals)``; ``originals`` is ``{path: W}``, to go back by.
        """
        import numpy as np

        def merged(path: str, w: Array) -> Array:
            backend = registry.of(w)
            wide, a, b = (
                backend.to_numpy(x).astype(np.float64) for x in (w, *self._factors(path, w, adapters[path]))
            )
            product = a @ b if self.layout == "in_out" else b @ a
            return beside(w, wide + self.scale * product)

        _check_paths(params, adapters)
        flat = tree.flatten(params)
        pairs = list(zip(flat.paths, flat.leaves, strict=True))
        originals = {path: x for path, x in pairs if path in adapters}
        new = {path: merged(path, x) for path, x in originals.items()}
        return flat.unflatten(new.get(path, x) for path, x in pairs), originals

    def _factors(self, path: str, w: Array, adapter: Mapping[str, Array]) -> tuple[Array, Array]:
        """Return A and B, of whose shapes none may be broadcast."""
        found = tuple(tuple(map(int, adapter[k].shape)) if k in adapter else None for k in "AB")
        first, second = map(int, w.shape)
        if self.layout == "in_out":
            wanted = ((first, self.rank), (self.rank, second))
        else:
            wanted = ((self.rank, second), (first, self.rank))
        if found != wanted:
            raise InputError(
                f"LoRA: the adapters A, B of leaf {path!r} have the shapes {found[0]}, {found[1]}; expected "
                f"{wanted[0]}, {wanted[1]} ({self.layout})"
            )
        return adapter["A"], adapter["B"]

    def _adapter(self, path: str, w: Any, seed: int, dtype: str | None) -> dict[str, Array]:
        shape = None if w is None else tuple(w.shape)
        if shape is None or len(shape) != 2:
            raise InputError(f"LoRA: leaf {path!r} has shape {shape}; expected two axes")
        if self.rank > min(shape):
            raise InputError(
                f"LoRA: rank = {self.rank} for leaf {path!r} of shape {shape}; expected at most {min(shape)}"
            )
        kind = dtype or registry.of(w).dtype_name(w)
        inputs, outputs = shape if self.layout == "in_out" else shape[::-1]
        a = self.initializer.sample((inputs, self.rank), seed, f"{path}.A", kind)
        b = Zeros().sample((self.rank, outputs), seed, f"{path}.B", kind)
        host = {"A": a, "B": b} if self.layout == "in_out" else {"A": a.T.copy(), "B": b.T.copy()}
        return {name: beside(w, x, kind) for name, x in host.items()}


def unmerge(merged: Tree, originals: Mapping[str, Array]) -> Tree:
    """Put the original weights back in their places, bit for bit; other leaves stay as they are.

    Parameters
    ----------
    merged, originals
        What ``LoRA.merge`` gave.

    Returns
    -------
    tree
        The structure of ``merged``.

    Examples
    --------
    >>> import numpy as np
    >>> lora, params = LoRA("weight", rank=1, alpha=1.0), {"weight": np.ones((2, 3))}
    >>> merged, originals = lora.merge(params, lora.init(params))
    >>> unmerge(merged, originals)["weight"] is params["weight"]
    True
    """
    _check_paths(merged, originals)
    flat = tree.flatten(merged)
    return flat.unflatten(originals.get(path, x) for path, x in zip(flat.paths, flat.leaves, strict=True))


def _check_paths(params: Tree, given: Mapping[str, Any]) -> None:
    known = tree.flatten(params).paths
    for path in given:
        if path not in known:
            raise InputError(f"LoRA: adapted leaf {path!r} is no parameter; {nearest(path, known)}")
