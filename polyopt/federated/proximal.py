"""FedProx: clients that don't stray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from polyopt.backend import registry
from polyopt.core import tree
from polyopt.core.errors import InputError, nearest
from polyopt.core.ops import Array
from polyopt.core.rule import Elementwise, Slot, Slots, hyper
from polyopt.core.tree import Tree
from polyopt.engine.lift import initial
from polyopt.engine.optimizer import State


@dataclass(frozen=True)
class Proximal(Elementwise):
    """Hold a client near the server: ``g + μ·(p - anchor)`` (FedProx: Li et al., 2020, eq. 2).

    A stage before the client's optimizer. The anchor is a slot, a copy of the parameters that ``init`` was
    given: those that the server sent. So a client that starts each round with a fresh state has the right
    one; one that keeps its state sets it by ``anchored``.

    It is the gradient of the loss plus ``μ/2·‖p - anchor‖²``.

    Parameters
    ----------
    mu
        μ, in [0, inf); the paper tries 0.001 to 1.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt import SGD, Optimizer, chain
    >>> opt = Optimizer(chain(Proximal(mu=0.5), SGD(lr=1.0)))
    >>> params, state = {"w": np.array([2.0])}, opt.init({"w": np.array([0.0])})
    >>> opt.step(params, {"w": np.array([0.25])}, state)[0]["w"].tolist()
    [0.75]
    """

    mu: Any = hyper(low=0.0)

    def slots(self) -> tuple[Slot, ...]:
        """Keep the anchor: the parameter when the state is made."""
        return (Slot("anchor", init="param"),)

    def leaf(self, xp: Any, g: Array, p: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
        """Return ``g + μ·(p - anchor)``."""
        anchor = slots["anchor"]
        return g + c.mu * (p - anchor), {"anchor": anchor}


def anchored(state: State, params: Tree) -> State:
    """Move the anchors of a state's ``Proximal`` to ``params``; its other slots stay.

    Parameters
    ----------
    state
        Of an optimizer whose rule has a ``Proximal``.
    params
        The server's parameters, of the client's framework.

    Returns
    -------
    dict
        A new state.

    Raises
    ------
    InputError
        Where it has none, or ``params`` lack a leaf.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt import SGD, Optimizer, chain
    >>> state = Optimizer(chain(Proximal(mu=0.5), SGD(lr=1.0))).init({"w": np.zeros(1)})
    >>> anchored(state, {"w": np.ones(1)})["slots"]["anchor"]["w"].tolist()
    [1.0]
    """
    slots = state["slots"]
    found = [name for name in slots if name.rpartition(".")[2] == "anchor"]
    if not found:
        raise InputError(
            f"anchored: the state has no slot 'anchor'; expected one made with Proximal; "
            f"{nearest('anchor', slots)}"
        )
    leaves = tree.named(params)
    new = dict(slots)
    for name in found:
        values = {}
        for path, old in slots[name].items():
            if path not in leaves:
                raise InputError(f"anchored: leaf {path!r} is missing; {nearest(path, leaves)}")
            if tuple(leaves[path].shape) != tuple(old.shape):
                raise InputError(
                    f"anchored: leaf {path!r} has shape {tuple(leaves[path].shape)}; expected the state's "
                    f"{tuple(old.shape)}"
                )
            backend = registry.of(leaves[path], old)
            values[path] = initial(backend, leaves[path], Slot(name, init="param"), backend.dtype_name(old))
        new[name] = values
    return {**state, "slots": new}
