"""A whole training step: loss, gradients and update, in one compiled function where there is a compiler."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from polyopt import registry, tree
from polyopt.backend import Backend, LossFunction, WholeStep
from polyopt.errors import InputError, nearest
from polyopt.gradients import value_and_grad
from polyopt.ops import Array
from polyopt.optimizer import Optimizer, State
from polyopt.packing import Packing
from polyopt.plan import plan
from polyopt.tree import Tree
from polyopt.whole import WholeUpdate


@dataclass
class Carry:
    """What a :class:`TrainStep` goes on from; its arrays are given up at each step, so it is one alone.

    Made by :meth:`TrainStep.init` or :meth:`TrainStep.load`, read by :meth:`TrainStep.unload`.
    """

    backend: Backend
    params: Any
    state: dict[str, Any]
    packed: Packed | None


@dataclass
class Packed:
    """How a carry's arrays are laid out, and what the host keeps beside them.

    ``before`` is the host's part as it was before the last step, as long as it is not known whether that
    one was made: ``ok`` is the flag that the device has.
    """

    packing: Packing
    update: WholeUpdate
    run: WholeStep
    scalar_slots: list[dict[str, float]]
    before: tuple[dict[str, Any], list[dict[str, float]]] | None = None
    ok: Array | None = None
    ahead: tuple[dict[str, Any], list[dict[str, float]]] | None = None
    """What the host has for the coming step already, where it knows."""


class TrainStep:
    """Loss, gradients and update in one call.

    On JAX and TensorFlow it is one compiled function over packed buffers, which gives up its arrays;
    on NumPy and PyTorch, where nothing would be gained by that, :func:`polyopt.value_and_grad` and the
    in-place ``Optimizer.step``. So it is too with ``accumulate``, with ``nonfinite="raise"``, which must know
    the leaf, and with ``compiled=False``. In all cases the update has the bits of ``Optimizer.step`` for
    the same gradients.

    Parameters
    ----------
    loss
        ``loss(xp, params, *args)``, a 0-d array; ``params`` in the tree that :meth:`init` was given.
    optimizer
        Its rule, and what it does about gradients that are not finite. With ``nonfinite="skip"`` each step
        waits until it is known whether the one before was made.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt import SGD, Optimizer, TrainStep
    >>> step = TrainStep(lambda xp, params, x: xp.sum(params["w"] * x), Optimizer(SGD(lr=0.5)))
    >>> carry = step.init({"w": np.array([1.0, 2.0])})
    >>> carry, loss = step(carry, np.array([2.0, 4.0]))
    >>> params, state = step.unload(carry)
    >>> float(loss), params["w"].tolist(), state["step"]
    (10.0, [0.0, 0.0], 1)
    """

    def __init__(self, loss: LossFunction, optimizer: Optimizer) -> None:
        self.loss, self.optimizer = loss, optimizer
        self._gradient = value_and_grad(loss, compiled=optimizer.compiled)
        self._runs: dict[Hashable, WholeStep | None] = {}

    def init(self, params: Tree) -> Carry:
        """The beginning: ``params``, which are copied, and a fresh state."""
        return self._carry(params, None)

    def load(self, params: Tree, state: State) -> Carry:
        """Go on from parameters and a state by path, which are copied.

        Raises
        ------
        InputError
            Where they don't belong together or to the optimizer; it names the leaf.
        """
        return self._carry(params, state)

    def _carry(self, params: Tree, state: State | None) -> Carry:
        flat = tree.flatten(params)
        backend = registry.of(*(x for x in flat.leaves if x is not None))
        for path, x in zip(flat.paths, flat.leaves, strict=True):
            if x is not None and backend.is_traced(x):
                raise InputError(
                    f"TrainStep: parameter {path!r} is traced; expected a call from outside of any compiled "
                    "function: it compiles by itself"
                )
        optimizer = self.optimizer
        if optimizer.compiled and optimizer.accumulate == 1 and optimizer.nonfinite != "raise":
            packed = self._packed(backend, params, state)
            if packed is not None:
                return packed
        copied = optimizer.init(params) if state is None else _copy(backend, state)
        return Carry(backend, _copy(backend, params), copied, None)

    def __call__(self, carry: Carry, *args: Any) -> tuple[Carry, Array]:
        """``(carry after one step, loss before it)``; the carry that was given is given up."""
        packed = carry.packed
        if packed is None:
            loss, gradients = self._gradient(carry.params, *args)
            carry.params, carry.state = self.optimizer.step(carry.params, gradients, carry.state, donate=True)
            return carry, loss
        _settle(carry, packed)
        vectors, scalar_slots = packed.ahead or packed.update.host(carry.state, packed.scalar_slots)
        arrays = {"params": carry.params, "slots": carry.state["slots"]}
        loss, out = packed.run(arrays, vectors, args)
        packed.before, packed.ok = (carry.state, packed.scalar_slots), out.get("ok")
        carry.params = out["arrays"]["params"]
        carry.state = carry.state | {"step": carry.state["step"] + 1, "slots": out["arrays"]["slots"]}
        packed.scalar_slots = scalar_slots
        # The device is at work now: the next step's numbers cost nothing meanwhile.
        packed.ahead = packed.update.host(carry.state, scalar_slots)
        return carry, loss

    def unload(self, carry: Carry, *, copy: bool = True) -> tuple[Tree, State]:
        """``(params, state)`` by path, as ``Optimizer.step`` has them: what a checkpoint holds.

        ``copy=False`` may give arrays that the next step gives up: read them before it.
        """
        packed = carry.packed
        if packed is None:
            params, state = carry.params, carry.state
        else:
            _settle(carry, packed)
            whole = {**carry.state["slots"], **packed.update.by_leaf(packed.scalar_slots)}
            params = packed.packing.unpack(carry.params)
            state = packed.packing.unpack_state({**carry.state, "slots": whole})
        return (_copy(carry.backend, params), _copy(carry.backend, state)) if copy else (params, state)

    def observe(self, carry: Carry, metric: float) -> Carry:
        """Report ``metric`` to the schedules that wait for one (plateau)."""
        if carry.packed is not None:
            _settle(carry, carry.packed)
            carry.packed.ahead = None
        carry.state = self.optimizer.observe(carry.state, metric)
        return carry

    def _packed(self, backend: Backend, params: Tree, state: State | None) -> Carry | None:
        if backend.whole(self.loss, _unused) is None:
            return None
        packing = Packing(params, self.optimizer.rule, state=state)
        buffers = {
            name: _copy(backend, x) if packing.alone(name) else x for name, x in packing.pack(params).items()
        }
        if state is None:
            packed = Optimizer(packing.rule).init(buffers)
        else:
            self._check_state(params, state)
            packed = _copy(backend, packing.pack_state(state))
        flat = tree.flatten(buffers)
        update = WholeUpdate(
            backend,
            flat,
            plan(packing.rule, flat.paths),
            packed,
            self.optimizer.resolver,
            self.optimizer.nonfinite == "skip",
        )
        scalar_slots = update.scalar_slots(packed)
        numbers = update.by_leaf(scalar_slots)
        packed["slots"] = {name: values for name, values in packed["slots"].items() if name not in numbers}
        key = (backend, packing.structure, packing.buffers, update.key)
        if key not in self._runs:
            loss = self.loss
            self._runs[key] = backend.whole(
                lambda xp, buffers, *args: loss(xp, packing.unpack(buffers), *args), update.device
            )
        run = self._runs[key]
        assert run is not None
        return Carry(backend, buffers, packed, Packed(packing, update, run, scalar_slots))

    def _check_state(self, params: Tree, state: State) -> None:
        """Refuse a state that lacks a slot or a leaf of this optimizer."""
        wanted = "expected the state that this optimizer's init made for these parameters"
        flat = tree.flatten(params)
        for path, x, pipeline in zip(
            flat.paths, flat.leaves, plan(self.optimizer.rule, flat.paths).pipelines, strict=True
        ):
            for name in (n for s in pipeline or () for part in s.parts for n, _ in part.names):
                if x is None:
                    continue
                slots = state["slots"]
                if name not in slots:
                    raise InputError(f"the state has no slot {name!r}; {nearest(name, slots)}; {wanted}")
                if path not in slots[name]:
                    near = nearest(path, slots[name])
                    raise InputError(f"the state's slot {name!r} has no leaf {path!r}; {near}; {wanted}")


def _unused(*_: Any) -> Any:
    """An update that is never made: it asks whether there would be a compiled step at all."""


def _copy(backend: Backend, values: Any) -> Any:
    """Plain data with new arrays; what is no array stays."""

    def one(x: Any) -> Any:
        return backend.ops.asarray(backend.stop_gradient(x), copy=True) if backend.is_array(x) else x

    return tree.map_leaves(one, values)


def _settle(carry: Carry, packed: Packed) -> None:
    """Take back the host's part of a step that was not made."""
    if packed.ok is not None and packed.before is not None and not bool(carry.backend.to_numpy(packed.ok)):
        before, packed.scalar_slots = packed.before
        carry.state = before | {"slots": carry.state["slots"]}
        packed.ahead = None
    packed.before = packed.ok = None
