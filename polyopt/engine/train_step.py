"""A whole training step: loss, gradients and update, in one compiled function where there is a compiler."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from polyopt.backend import registry
from polyopt.backend.gradients import check_takes_xp, explain_operation, gradient_on
from polyopt.backend.protocol import Backend, LossFunction
from polyopt.core import tree
from polyopt.core.aliases import CheckedKeywords, instead
from polyopt.core.errors import InputError
from polyopt.core.opaque import opaque
from polyopt.core.ops import Array
from polyopt.core.rule import Chain, Partition, Rule
from polyopt.core.tree import Tree
from polyopt.engine.compiled_update import CompiledUpdate
from polyopt.engine.optimizer import Optimizer, State
from polyopt.engine.packing import Packing
from polyopt.engine.plan import plan
from polyopt.engine.state_checks import check_slots, check_state
from polyopt.engine.stepping import Buffers, Gradient, Leaves, Whole, copied
from polyopt.engine.stepping import TrainState as TrainState


class TrainStep(CheckedKeywords):
    """Loss, gradients and update in one call.

    On JAX it is one compiled function over packed buffers, which gives up its arrays; so it is on TensorFlow
    with a GPU or without numba. On TensorFlow otherwise it is a compiled function for loss and gradients
    and then the in-place ``Optimizer.step``, over packed buffers; on NumPy and PyTorch, where nothing would
    be gained by packing, ``value_and_grad(loss, pure=True)`` and that step, leaf by leaf. So it is too with
    ``accumulate``, with ``nonfinite="raise"``, which must know the leaf, and with ``compiled=False``. In all
    cases the update has the bits of ``Optimizer.step`` for the same gradients.

    Parameters
    ----------
    loss
        ``loss(xp, params, *args)``, a 0-d array; ``params`` in the tree that ``init`` was given. It must
        depend on its arguments alone: JAX and TensorFlow compile it, and NumPy replays its recorded calls,
        so a captured variable that changes between steps isn't seen. ``Optimizer(..., compiled=False)`` runs
        it anew at each step.
    optimizer
        Its rule, and what it does about gradients that are not finite. With ``nonfinite="skip"`` each step
        waits until it is known whether the one before was made.
    gradient
        ``gradient(params, *args) -> (loss, gradients)``, made by hand: what there is instead of
        ``value_and_grad(loss)``, leaf by leaf. What it gives as the loss is handed on as it is.

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

    def __init__(self, loss: LossFunction, optimizer: Optimizer, gradient: Gradient | None = None) -> None:
        given: Any = optimizer
        if not isinstance(given, Optimizer):
            swapped = "; the order is TrainStep(loss, optimizer)" if isinstance(loss, Optimizer) else ""
            rule = isinstance(given, Rule | Chain | Partition)
            hint = "; wrap it: Optimizer(rule)" if rule else swapped
            raise InputError(f"TrainStep: expected an Optimizer, found {instead(given)}{hint}")
        if gradient is None:
            check_takes_xp(loss)
        elif not callable(gradient):
            raise InputError(f"TrainStep: gradient = {gradient!r:.80}; expected a function of (params, ...)")
        self._checked = -1
        self.loss, self.optimizer, self.gradient = loss, optimizer, gradient
        self._made: dict[Hashable, Any] = {}

    @opaque
    def init(self, params: Tree) -> TrainState:
        """Begin with ``params``, which are copied, and a fresh state.

        Parameters
        ----------
        params
            A tree of arrays of one framework.

        Returns
        -------
        TrainState
            What the first step takes.
        """
        return self._carry(params, None)

    @opaque
    def load(self, params: Tree, state: State) -> TrainState:
        """Go on from parameters and a state by path, which are copied.

        Parameters
        ----------
        params
            A tree of arrays of one framework.
        state
            By path, as ``Optimizer.step`` has it.

        Returns
        -------
        TrainState
            What the next step takes.

        Raises
        ------
        InputError
            Where they don't belong together or to the optimizer; it names the leaf.
        """
        check_state(state)
        return self._carry(params, state)

    def _carry(self, params: Tree, state: State | None) -> TrainState:
        flat = tree.flatten(params)
        backend = registry.of_leaves(flat.paths, flat.leaves)
        for path, x in zip(flat.paths, flat.leaves, strict=True):
            if x is not None and backend.is_traced(x):
                raise InputError(
                    f"TrainStep: parameter {path!r} is traced; expected a call from outside of any compiled "
                    "function: it compiles by itself"
                )
        optimizer, gradient = self.optimizer, self.gradient
        if state is not None:
            planned = plan(optimizer.rule, flat.paths)
            held = optimizer.accumulate > 1 and "micro_step" in state
            check_slots(backend, planned, flat, flat.leaves, state["slots"], held)
        whole = optimizer.accumulate == 1 and optimizer.nonfinite != "raise" and gradient is None
        if optimizer.compiled and whole:
            packed = self._packed(backend, params, state)
            if packed is not None:
                return packed
        state = optimizer.init(params) if state is None else copied(backend, state)
        key = ("leaves", backend)
        if key not in self._made:
            made = gradient or gradient_on(backend, self.loss, compiled=optimizer.compiled, pure=True)
            self._made[key] = made
        return TrainState(backend, copied(backend, params), state, Leaves(self._made[key], optimizer))

    @opaque
    def __call__(self, carry: TrainState, *args: Any) -> tuple[TrainState, Array]:
        """Return ``(carry after one step, loss before it)``; the carry that was given is given up."""
        _check_carry(carry)
        if len(args) != self._checked and self.gradient is None:
            check_takes_xp(self.loss, args)
            self._checked = len(args)
        try:
            return carry, carry.way.step(carry, args)
        except AttributeError as e:
            explain_operation(e)
            raise

    @opaque
    def unload(self, carry: TrainState, *, copy: bool = True) -> tuple[Tree, State]:
        """Return ``(params, state)`` by path, as ``Optimizer.step`` has them: what a checkpoint holds.

        Parameters
        ----------
        carry
            What the last step gave.
        copy
            ``False`` may give arrays that the next step gives up: read them before it.

        Returns
        -------
        tuple
            ``(params, state)``.
        """
        _check_carry(carry)
        params, state = carry.way.by_path(carry)
        return (copied(carry.backend, params), copied(carry.backend, state)) if copy else (params, state)

    @opaque
    def flush(self, carry: TrainState) -> TrainState:
        """Make an update of the gradients that the optimizer holds back, if it does: the last of a run.

        Parameters
        ----------
        carry
            What the last step gave.

        Returns
        -------
        TrainState
            What the next step takes.
        """
        _check_carry(carry)
        if self.optimizer.accumulate > 1:
            carry.params, carry.state = self.optimizer.flush(carry.params, carry.state, donate=True)
        return carry

    @opaque
    def observe(self, carry: TrainState, value: float, what: str = "metric") -> TrainState:
        """Report ``value`` to the schedules that wait for ``what``, as ``Optimizer.observe`` does.

        Parameters
        ----------
        carry
            What the last step gave.
        value
            A finite number.
        what
            ``"metric"`` or ``"size"``.

        Returns
        -------
        TrainState
            What the next step takes.
        """
        _check_carry(carry)
        carry.way.observe(carry, self.optimizer, value, what)
        return carry

    # Over packed buffers

    def _packed(self, backend: Backend, params: Tree, state: State | None) -> TrainState | None:
        whole = backend.whole(self.loss, _unused) is not None
        if not whole and backend.packed_gradient(self.loss, 1) is None:
            return None
        packing = Packing(params, self.optimizer.rule, state=state)
        buffers = {
            name: copied(backend, x) if packing.alone(name) else x for name, x in packing.pack(params).items()
        }
        if state is None:
            packed = Optimizer(packing.rule).init(buffers)
        else:
            packed = copied(backend, packing.pack_state(state))
        way = self._whole if whole else self._buffers
        return way(backend, packing, buffers, packed)

    def _whole(self, backend: Backend, packing: Packing, buffers: Any, state: State) -> TrainState:
        flat = tree.flatten(buffers)
        skip = self.optimizer.nonfinite == "skip"
        planned = plan(packing.rule, flat.paths)
        update = CompiledUpdate(backend, flat, planned, state, self.optimizer.resolver, skip)
        scalar_slots = update.scalar_slots(state)
        numbers = update.by_leaf(scalar_slots)
        state["slots"] = {name: values for name, values in state["slots"].items() if name not in numbers}
        key = (backend, packing.structure, packing.buffers, update.key)
        if key not in self._made:
            self._made[key] = backend.whole(self._over_buffers(packing), update.device)
        return TrainState(backend, buffers, state, Whole(packing, update, self._made[key], scalar_slots))

    def _buffers(self, backend: Backend, packing: Packing, buffers: Any, state: State) -> TrainState:
        key = (backend, packing.structure, packing.buffers)
        if key not in self._made:
            leaves = sum(len(buffer.members) for buffer in packing.buffers)
            gradient = backend.packed_gradient(self._over_buffers(packing), leaves)
            assert gradient is not None
            optimizer = Optimizer(packing.rule, nonfinite=self.optimizer.nonfinite)
            self._made[key] = Leaves(gradient, optimizer)
        return TrainState(backend, buffers, state, Buffers(self._made[key], packing))

    def _over_buffers(self, packing: Packing) -> Callable[..., Array]:
        loss = self.loss
        return lambda xp, buffers, *args: loss(xp, packing.unpack(buffers), *args)


def _check_carry(carry: Any) -> None:
    if isinstance(carry, TrainState):
        return
    found = "None" if carry is None else f"a {type(carry).__name__}"
    hint = " (a step returns two values: carry, loss)" if isinstance(carry, tuple) else ""
    raise InputError(
        f"TrainStep: the first argument is {found}; expected what init(params), load(params, state) or the "
        f"step before gave{hint}"
    )


def _unused(*_: Any) -> Any:
    """Stand for an update that is never made: it asks whether there would be a compiled step at all."""
