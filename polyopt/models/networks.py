"""Models for recipes, written once against ``Ops``.

A model is a frozen dataclass with ``init(seed, dtype)``, a tree of host arrays, ``apply(xp, params, x)``,
and ``features(xp, params, x)``, what each of its layers gives. Weights have the shape (inputs, outputs), as
Keras' and Flax' do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Protocol

from polyopt.core.ops import Array, Ops
from polyopt.core.tree import Tree


def relu(xp: Ops, x: Array) -> Array:
    """Return ``max(x, 0)`` with the gradient 0 at 0, where the frameworks' own maxima differ.

    Examples
    --------
    >>> import numpy as np
    >>> import polyopt_numpy.ops as xp
    >>> relu(xp, np.array([-1.0, 0.0, 2.0, np.nan])).tolist()
    [0.0, 0.0, 2.0, nan]
    """
    own = getattr(xp, "relu", None)
    if own is not None:
        return own(x)
    zero = xp.zeros_like(x)
    return xp.where(xp.less_equal(x, zero), zero, x)


def tanh(xp: Ops, x: Array) -> Array:
    """Return the hyperbolic tangent of each element."""
    return xp.tanh(x)


ACTIVATIONS: dict[str, Callable[[Ops, Array], Array]] = {"relu": relu, "tanh": tanh}


OUTPUT = "output"
"""What the last layer of any model is called among its features."""


class Initializer(Protocol):
    """See ``polyopt.models.initializers``."""

    def sample(self, shape: tuple[int, ...], seed: int, name: str, dtype: str = "float32") -> Any:
        """Draw the host array of (``seed``, ``name``)."""


class Model(Protocol):
    """A function of parameters and samples."""

    tasks: ClassVar[tuple[str, ...]]

    def init(self, seed: int, dtype: str) -> Tree:
        """Draw initial parameters: host arrays, the same bits for the same seed."""

    def apply(self, xp: Ops, params: Tree, x: Array) -> Array:
        """Return outputs of shape (n, outputs) for samples of shape (n, inputs)."""

    def features(self, xp: Ops, params: Tree, x: Array) -> dict[str, Array]:
        """Return what each layer gives, by its name, the lowest first.

        Arrays whose first axis is the samples.

        The last is ``"output"``, in the bits of ``apply``.
        """


@dataclass(frozen=True)
class Linear:
    """``x·W + b``: linear regression under the squared error.

    >>> import numpy as np
    >>> from polyopt.models.initializers import Constant
    >>> model = Linear(2, 1, Constant(0.5), Constant(0.0))
    >>> model.apply(np, model.init(0, "float64"), np.array([[1.0, 3.0]])).tolist()
    [[2.0]]
    """

    tasks: ClassVar[tuple[str, ...]] = ("regression",)
    inputs: int
    outputs: int
    weight: Initializer
    bias: Initializer

    def init(self, seed: int, dtype: str) -> Tree:
        """Draw the weight, of shape (inputs, outputs), and the bias."""
        return {
            "weight": self.weight.sample((self.inputs, self.outputs), seed, "weight", dtype),
            "bias": self.bias.sample((self.outputs,), seed, "bias", dtype),
        }

    def apply(self, xp: Ops, params: Tree, x: Array) -> Array:
        """Return ``x·weight + bias``."""
        return xp.matmul(x, params["weight"]) + params["bias"]

    def features(self, xp: Ops, params: Tree, x: Array) -> dict[str, Array]:
        """Return the outputs, the only layer's."""
        return {OUTPUT: self.apply(xp, params, x)}


@dataclass(frozen=True)
class Softmax(Linear):
    """Softmax regression: the logits ``x·W + b``, under the cross-entropy."""

    tasks: ClassVar[tuple[str, ...]] = ("classification",)


@dataclass(frozen=True)
class MLP:
    """Compute a multilayer perceptron: ``hidden`` layers with an activation, and a linear one on top.

    Parameters are named ``layers.0.weight``, ``layers.0.bias``, …; what the hidden layers give, after the
    activation, ``layers.0``, ….

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt.models.initializers import Constant
    >>> model = MLP(1, 1, Constant(1.0), Constant(0.0), hidden=(2,))
    >>> features = model.features(np, model.init(0, "float64"), np.array([[3.0], [-3.0]]))
    >>> {name: values.tolist() for name, values in features.items()}
    {'layers.0': [[3.0, 3.0], [0.0, 0.0]], 'output': [[6.0], [0.0]]}
    """

    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression")
    inputs: int
    outputs: int
    weight: Initializer
    bias: Initializer
    hidden: tuple[int, ...] = (64,)
    activation: str = "relu"

    def init(self, seed: int, dtype: str) -> Tree:
        """Draw each layer's weight, of shape (inputs, outputs), and its bias."""
        widths = (self.inputs, *self.hidden, self.outputs)
        return {
            "layers": [
                {
                    "weight": self.weight.sample((n, m), seed, f"layers.{i}.weight", dtype),
                    "bias": self.bias.sample((m,), seed, f"layers.{i}.bias", dtype),
                }
                for i, (n, m) in enumerate(pairwise(widths))
            ]
        }

    def apply(self, xp: Ops, params: Tree, x: Array) -> Array:
        """Return the last layer's outputs, of shape (n, outputs)."""
        return self.features(xp, params, x)[OUTPUT]

    def features(self, xp: Ops, params: Tree, x: Array) -> dict[str, Array]:
        """Return what each layer gives: ``layers.<i>`` after its activation, and the outputs."""
        *hidden, last = params["layers"]
        found = {}
        for i, layer in enumerate(hidden):
            x = ACTIVATIONS[self.activation](xp, xp.matmul(x, layer["weight"]) + layer["bias"])
            found[f"layers.{i}"] = x
        return found | {OUTPUT: xp.matmul(x, last["weight"]) + last["bias"]}


MODELS: dict[str, type[Linear] | type[MLP]] = {"linear": Linear, "mlp": MLP, "softmax": Softmax}
"""By the names that recipes use."""
