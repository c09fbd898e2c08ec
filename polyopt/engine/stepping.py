"""The three ways of a training step: leaf by leaf, over packed buffers, or as one compiled function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from polyopt.backend.protocol import Backend, WholeStep
from polyopt.core import tree
from polyopt.core.ops import Array
from polyopt.core.tree import Tree
from polyopt.engine.compiled_update import CompiledUpdate
from polyopt.engine.optimizer import Optimizer, State
from polyopt.engine.packing import Packing

Gradient = Callable[..., tuple[Array, Any]]


@dataclass
class TrainState:
    """Carry state between steps.

    Made by ``TrainStep.init`` or ``TrainStep.load``, read by ``TrainStep.unload``.

    Its buffers are donated at each step: never reuse an old one. It is one alone.
    """

    backend: Backend
    params: Any
    state: dict[str, Any]
    way: StepMode = field(repr=False)
    gradients: Any = field(default=None, repr=False)
    """Those of the last step, until the next one begins: memory that is given back to the system between an
    update and a forward pass comes again page by page."""


class StepMode(Protocol):
    """Define how a training step is made: leaf by leaf, over buffers, or compiled as a whole."""

    def step(self, carry: TrainState, args: tuple[Any, ...]) -> Array:
        """Make one step, and return the loss before it."""

    def by_path(self, carry: TrainState) -> tuple[Tree, State]:
        """Parameters and state as ``Optimizer.step`` has them."""

    def observe(self, carry: TrainState, optimizer: Optimizer, value: float, what: str) -> None:
        """Report ``value`` to the schedules that wait for ``what``."""


@dataclass
class Leaves:
    """Gradients, then the update in place: leaf by leaf."""

    gradient: Gradient
    optimizer: Optimizer

    def step(self, carry: TrainState, args: tuple[Any, ...]) -> Array:
        """Compute the gradient, then update the leaves in place."""
        carry.gradients = None
        loss, carry.gradients = self.gradient(carry.params, *args)
        carry.params, carry.state = self.optimizer.step(
            carry.params, carry.gradients, carry.state, donate=True
        )
        return loss

    def by_path(self, carry: TrainState) -> tuple[Tree, State]:
        """Return the parameters and the state, which are by path."""
        return carry.params, carry.state

    def observe(self, carry: TrainState, optimizer: Optimizer, value: float, what: str) -> None:
        """Report a value to the schedules that wait for it."""
        carry.state = optimizer.observe(carry.state, value, what)


@dataclass
class Buffers:
    """The same over packed buffers: ``gradient`` and ``optimizer`` are those of the buffers."""

    leaves: Leaves
    packing: Packing

    def step(self, carry: TrainState, args: tuple[Any, ...]) -> Array:
        """Make a step over packed buffers."""
        return self.leaves.step(carry, args)

    def by_path(self, carry: TrainState) -> tuple[Tree, State]:
        """Unpack the parameters and the state."""
        return self.packing.unpack(carry.params), self.packing.unpack_state(carry.state)

    def observe(self, carry: TrainState, optimizer: Optimizer, value: float, what: str) -> None:
        """Report a value to the schedules that wait for it."""
        self.leaves.observe(carry, optimizer, value, what)


@dataclass
class Whole:
    """Loss, gradients and update in one compiled function over packed buffers.

    ``before`` is the host's part as it was before the last step, as long as it is not known whether that
    one was made: ``ok`` is the flag that the device has.
    """

    packing: Packing
    update: CompiledUpdate
    run: WholeStep
    scalar_slots: list[dict[str, float]]
    before: tuple[dict[str, Any], list[dict[str, float]]] | None = None
    ok: Array | None = None
    ahead: tuple[dict[str, Any], list[dict[str, float]]] | None = None
    """What the host has for the coming step already, where it knows."""

    def step(self, carry: TrainState, args: tuple[Any, ...]) -> Array:
        """Make a step in one compiled computation, its scalars computed ahead on the host."""
        self._settle(carry)
        vectors, scalar_slots = self.ahead or self.update.host(carry.state, self.scalar_slots)
        arrays = {"params": carry.params, "slots": carry.state["slots"]}
        loss, out = self.run(arrays, vectors, args)
        self.before, self.ok = (carry.state, self.scalar_slots), out.get("ok")
        carry.params = out["arrays"]["params"]
        carry.state = carry.state | {"step": carry.state["step"] + 1, "slots": out["arrays"]["slots"]}
        self.scalar_slots = scalar_slots
        # The device is at work now: the next step's numbers cost nothing meanwhile.
        self.ahead = self.update.host(carry.state, scalar_slots)
        return loss

    def by_path(self, carry: TrainState) -> tuple[Tree, State]:
        """Unpack the parameters and the state, after the steps made so far."""
        self._settle(carry)
        slots = {**carry.state["slots"], **self.update.by_leaf(self.scalar_slots)}
        state = self.packing.unpack_state({**carry.state, "slots": slots})
        return self.packing.unpack(carry.params), state

    def observe(self, carry: TrainState, optimizer: Optimizer, value: float, what: str) -> None:
        """Report a value to the schedules that wait for it; the scalars ahead no longer hold."""
        self._settle(carry)
        self.ahead = None
        carry.state = optimizer.observe(carry.state, value, what)

    def _settle(self, carry: TrainState) -> None:
        """Take back the host's part of a step that was not made."""
        if self.ok is not None and self.before is not None and not bool(carry.backend.to_numpy(self.ok)):
            before, self.scalar_slots = self.before
            carry.state = before | {"slots": carry.state["slots"]}
            self.ahead = None
        self.before = self.ok = None


def copied(backend: Backend, values: Any) -> Any:
    """Plain data with new arrays; what is no array stays."""

    def one(x: Any) -> Any:
        return backend.ops.asarray(backend.stop_gradient(x), copy=True) if backend.is_array(x) else x

    return tree.map_leaves(one, values)
