"""The driver: runs a rule, a chain or a partition over a tree of parameters, on whatever framework they are.

Pure functions of plain data: ``Optimizer.init``, ``Optimizer.update``, ``apply``, and
``Optimizer.step`` for update and apply in one fused kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, Literal, TypeAlias

from polyopt.backend import registry
from polyopt.backend.evaluate import full_like
from polyopt.backend.protocol import Backend
from polyopt.core import tree
from polyopt.core.aliases import HintedMethods
from polyopt.core.errors import InputError
from polyopt.core.opaque import opaque
from polyopt.core.ops import FLOATING, Array
from polyopt.core.rule import Stage
from polyopt.core.tree import Tree
from polyopt.engine import accumulate, repeat_step
from polyopt.engine.checks import UnchangedVariables, check_leaves, check_options, check_swapped
from polyopt.engine.execution import Execution
from polyopt.engine.given_up import alone
from polyopt.engine.gradient_pass import GradientPass, Policy, verdict
from polyopt.engine.hyperparameters import Hyperparameters, Resolve
from polyopt.engine.lift import initial
from polyopt.engine.outcome import select, write_back
from polyopt.engine.plan import Plan, compute_dtype, plan
from polyopt.engine.repeat_step import CachedStep
from polyopt.engine.state_checks import (
    check_accumulated,
    check_nothing_held,
    check_slots,
    check_state,
    check_step,
)

State: TypeAlias = dict[str, Any]
"""``{"step": int, "missed": {path: int}, "slots": {slot: {path: array}}, …}``: plain data, see ``init``."""


class Optimizer(HintedMethods):
    """A rule at work.

    Parameters
    ----------
    rule
        A ``Rule``, a ``chain`` or a ``partition``.
    accumulate
        Number of gradients to average before each update (1: none is held back). Schedules and bias
        corrections count updates, not gradients.
    reduce
        ``"mean"`` of the accumulated gradients (optax, Keras) or their ``"sum"`` (torch's ``backward``).
    nonfinite
        What an inf or NaN in any gradient does: ``"propagate"`` computes on, ``"skip"`` leaves parameters,
        state and step bit-identical, ``"raise"`` raises ``NonFiniteError`` naming
        the leaf.
    compiled
        ``False`` runs op by op, in the same bits.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt import SGD, Optimizer
    >>> opt = Optimizer(SGD(lr=0.5))
    >>> params = {"w": np.array([1.0, 2.0])}
    >>> state = opt.init(params)
    >>> params, state = opt.step(params, {"w": np.array([1.0, -1.0])}, state)
    >>> params["w"].tolist(), state["step"]
    ([0.5, 2.5], 1)
    """

    def __init__(
        self,
        rule: Stage,
        *,
        accumulate: int = 1,
        reduce: Literal["mean", "sum"] = "mean",
        nonfinite: Policy = "propagate",
        compiled: bool = True,
    ) -> None:
        check_options(rule, accumulate, reduce, nonfinite, compiled)
        self.rule = rule
        self.accumulate = accumulate
        self.reduce = reduce
        self.nonfinite: Policy = nonfinite
        self.compiled = compiled
        self._prepare()

    def _prepare(self) -> None:
        """Make what is kept from step to step."""
        self._plan = lru_cache(maxsize=16)(partial(plan, self.rule))
        self._replay: CachedStep | None = None
        self._hyperparameters = Hyperparameters(self.rule)
        self._first = True
        self._unchanged = UnchangedVariables()

    def __getstate__(self) -> dict[str, Any]:
        return {name: x for name, x in vars(self).items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._prepare()

    @opaque
    def init(self, params: Tree) -> State:
        """Make the state before the first update: a dict of plain data.

        ``step`` counts the updates made; ``missed`` how many of them each leaf had no gradient for (its own
        bias corrections count without them, as torch's do); ``slots`` holds ``{slot: {path: array}}``.

        Parameters
        ----------
        params
            A tree of arrays of one framework; ``None`` leaves are left out.

        Returns
        -------
        dict
            To be handed to ``step``, saved by ``checkpoint.save``, moved by ``convert``.

        Raises
        ------
        InputError
            For a leaf that no pattern of a partition matches, and for patterns that match no leaf.
        """
        flat = tree.flatten(params)
        backend = registry.of_leaves(flat.paths, flat.leaves)
        slots: dict[str, dict[str, Any]] = {}
        pipelines = self._plan(flat.paths).pipelines
        for path, leaf, pipeline in zip(flat.paths, flat.leaves, pipelines, strict=True):
            if leaf is None or pipeline is None:
                continue
            dtype = compute_dtype(_floating(backend, path, leaf))
            for part in (part for segment in pipeline for part in segment.parts):
                for name, slot in part.names:
                    value = initial(backend, leaf, slot, slot.dtype or dtype)
                    slots.setdefault(name, {})[path] = value
            if self.accumulate > 1:
                zeros = full_like(backend, leaf, 0.0, dtype)
                slots.setdefault("grad_accumulator", {})[path] = zeros
        state: State = {"step": 0, "missed": {}, "slots": slots}
        if self.accumulate > 1:
            state |= {"micro_step": 0, "accumulated": dict.fromkeys(slots.get("grad_accumulator", {}), 0)}
        observed = self._hyperparameters.initial()
        return state | ({"observed": observed} if observed else {})

    @opaque
    def update(self, grads: Tree, state: State, params: Tree) -> tuple[Tree, State]:
        """Compute the updates to add; a leaf without a gradient has the update ``None``.

        Updates are in the compute dtype (float32, or float64 for float64 parameters): add them with
        ``apply``, which rounds once.

        Parameters
        ----------
        grads
            A tree like ``params``; ``None`` for a leaf without a gradient.
        state
            What ``init`` or the last update gave.
        params
            The parameters; they stay as they are.

        Returns
        -------
        tuple
            ``(updates, next state)``.

        Raises
        ------
        InputError
            For what doesn't belong together: it names the leaf.
        """
        return self._run(params, grads, state, "update", donate=False)

    @opaque
    def step(self, params: Tree, grads: Tree, state: State, *, donate: bool = False) -> tuple[Tree, State]:
        """Update the parameters: ``update`` and ``apply`` in one.

        The caller's arrays are left as they are unless ``donate=True``, which gives them up: they are
        changed in place where the framework can (NumPy, PyTorch, ``tf.Variable``) or their memory is
        reused (JAX).

        Parameters
        ----------
        params
            A tree of arrays of one framework.
        grads
            A tree like ``params``; ``None`` for a leaf without a gradient.
        state
            What ``init`` or the last step gave.
        donate
            Give the arrays of ``params`` and ``state`` up.

        Returns
        -------
        tuple
            ``(next params, next state)``.

        Raises
        ------
        InputError
            For what doesn't belong together, before anything is written: it names the leaf.
        NonFiniteError
            Where a gradient holds inf or NaN and ``nonfinite`` is ``"raise"``.
        """
        if donate and self._replay is not None and type(state) is dict:
            done = self._again(self._replay, params, grads, state)
            if done is not None:
                return done
        return self._run(params, grads, state, "p", donate=donate)

    @opaque
    def flush(self, params: Tree, state: State, *, donate: bool = False) -> tuple[Tree, State]:
        """Make an update of the gradients that are held back, if there are any: the last of a run.

        Parameters
        ----------
        params, state
            As of ``step``; with ``accumulate=1``, or right after an update, they come back as they are.
        donate
            Give the arrays up, as of ``step``.

        Returns
        -------
        tuple
            ``(next params, next state)``: updated by the mean (or sum) of as many gradients as were held.

        Examples
        --------
        >>> import numpy as np
        >>> from polyopt import SGD, Optimizer
        >>> opt = Optimizer(SGD(lr=1.0), accumulate=8)
        >>> params, state = np.zeros(1), opt.init(np.zeros(1))
        >>> for gradient in (1.0, 3.0):
        ...     params, state = opt.step(params, np.array([gradient]), state)
        >>> opt.flush(params, state)[0].tolist()
        [-2.0]
        """
        check_state(state)
        micro = int(state.get("micro_step", 0))
        if not micro:
            return params, state
        flat = tree.flatten(params)
        backend = registry.of_leaves(flat.paths, flat.leaves)
        execution = Execution(backend, flat, state, self.resolver(state), self.compiled)
        plan_, slots = self._plan(flat.paths), state["slots"]
        held = slots.get("grad_accumulator", {})
        active = [path for path in flat.paths if state["accumulated"].get(path, 0) > 0]
        usable = self._released(execution, held, state["accumulated"], active, micro, micro)
        g = [usable.get(path) for path in flat.paths]
        check_slots(backend, plan_, flat, g, slots, True)
        if donate:
            g = alone(backend, plan_, flat, g, slots)
        leaves, new = execution.advance(plan_, g, "p", donate)
        return flat.unflatten(leaves), new

    def _released(
        self,
        execution: Execution,
        held: dict[str, Array],
        counts: dict[str, Any],
        active: list[str],
        micro: Any,
        number: int,
    ) -> dict[str, Array]:
        """Return the mean (or sum) of ``number`` held gradients; the state's own are zeros from here on."""
        backend, state = execution.backend, execution.state
        total = number if self.reduce == "mean" else 1
        usable = accumulate.mean(backend, active, held, total, self.compiled)
        zeros = {path: backend.ops.zeros_like(x) for path, x in held.items()}
        execution.state = state | {
            "micro_step": micro - number,
            "accumulated": {path: count - count for path, count in counts.items()},
            "slots": state["slots"] | {"grad_accumulator": zeros},
        }
        return usable

    @opaque
    def observe(self, state: State, value: float, what: str = "metric") -> State:
        """Report ``value`` to the schedules that wait for ``what``.

        A plateau waits for a ``"metric"``, a ``RateByReportedSize`` for a ``"size"``.

        Parameters
        ----------
        state
            What ``init`` or the last step gave.
        value
            A finite number.
        what
            ``"metric"`` or ``"size"``.

        Returns
        -------
        dict
            The next state.
        """
        check_state(state)
        return self._hyperparameters.observe(state, value, what)

    def hyperparameters(self, state: State) -> dict[str, float]:
        """Return the hyperparameters at the coming update.

        Parameters
        ----------
        state
            What ``init`` or the last step gave.

        Returns
        -------
        dict
            ``{"lr": value}``; names are qualified by position inside a composition.
        """
        check_step(state)
        return self._hyperparameters.by_name(state)

    # How it runs

    def _run(
        self, params: Tree, grads: Tree, state: State, output: str, *, donate: bool
    ) -> tuple[Tree, State]:
        check_state(state)
        flat = tree.flatten(params)
        try:
            gradients = tree.aligned(grads, flat, "gradients")
        except InputError:
            registry.of_leaves(flat.paths, flat.leaves)  # what the parameters are is said before
            raise
        if donate is not True and donate is not False:
            raise InputError(f"step: donate = {donate!r}; expected True or False")
        backend = registry.of_leaves(flat.paths, flat.leaves, gradients)
        if self._first and output == "p":
            check_swapped(backend, flat, gradients)
            self._first = False
        plan_ = self._plan(flat.paths)
        frozen = plan_.pipelines
        g = [None if frozen[i] is None or flat.leaves[i] is None else x for i, x in enumerate(gradients)]
        check_leaves(backend, flat.paths, flat.leaves, g)
        check_slots(backend, plan_, flat, g, state["slots"], self.accumulate > 1 and "micro_step" in state)
        if self.accumulate == 1:
            check_nothing_held(state)
        if donate:
            g = alone(backend, plan_, flat, g, state["slots"])
        unchanged: list[Array | None] = flat.leaves if output == "p" else [None] * len(g)
        if output == "p" and not donate:
            self._unchanged.check(backend, flat, state)
        reading = self._read(backend, flat, g)
        ok = verdict(reading, self.nonfinite, flat.paths, g)
        if ok is False:
            return flat.unflatten(unchanged), state
        execution = Execution(backend, flat, state, self.resolver(state), self.compiled, reading)
        # Where a traced flag decides, only the outcome may be written into what is given up.
        flags = (ok, state.get("micro_step") if self.accumulate > 1 else None)
        decided = not any(backend.is_array(x) and backend.is_traced(x) for x in flags)
        give = donate and decided
        if self.accumulate == 1:
            leaves, new = execution.advance(plan_, g, output, give)
        else:
            leaves, new = self._accumulated(execution, plan_, g, output, give, unchanged)
        if ok is not None and ok is not True:
            leaves = select(backend, ok, leaves, unchanged)
            new = select(backend, ok, new, state)
        if donate and not decided:
            leaves = write_back(backend, flat.leaves, leaves)
            new = new | {"slots": write_back(backend, state["slots"], new["slots"])}
        if give and output == "p" and self.accumulate == 1 and self.compiled:
            finite = self.nonfinite != "propagate"
            self._replay = repeat_step.record(backend, params, flat, g, execution.groups, new, finite)
        if output == "p" and not donate:
            self._unchanged.remember(backend, flat, leaves, state["step"])
        return flat.unflatten(leaves), new

    def _again(self, last: CachedStep, params: Tree, grads: Tree, state: State) -> tuple[Tree, State] | None:
        """Make the step as the last one was made, ``None`` where it differs."""
        if not last.lock.acquire(blocking=False):
            return None
        try:
            ready = last.ready(params, grads, state)
            if ready is None:
                return None
            if last.alone:
                return last.run(params, ready, state, None)
            backend, flat, g = last.backend, last.flat(ready), last.gradients(ready)
            reading = self._read(backend, flat, g)
            if verdict(reading, self.nonfinite, flat.paths, g) is False:
                return params, state
            execution = Execution(backend, flat, state, self.resolver(state), self.compiled, reading)
            return last.run(params, ready, state, execution)
        finally:
            last.lock.release()

    def resolver(self, state: State) -> Resolve:
        """Return what gives a rule's hyperparameters at a step, ``state`` having what schedules were told.

        Parameters
        ----------
        state
            What ``init`` or the last step gave.

        Returns
        -------
        Callable
            ``f(key, rule, xp, step)``.
        """
        return self._hyperparameters.resolver(state)

    def _accumulated(
        self,
        execution: Execution,
        plan_: Plan,
        g: list[Array | None],
        output: str,
        donate: bool,
        unchanged: list[Array | None],
    ) -> tuple[list[Array | None], State]:
        """Hold the gradients back, or use those held at the end of a round."""
        backend, paths, state = execution.backend, execution.flat.paths, execution.state
        check_accumulated(state, self.accumulate)
        before = state["slots"].get("grad_accumulator", {})  # none where every leaf is frozen
        held = accumulate.add(backend, paths, g, before, self.compiled)
        counts = dict(state["accumulated"])
        for path, x in zip(paths, g, strict=True):
            if x is not None:
                counts[path] = counts[path] + 1
        micro = state["micro_step"] + 1
        slots = state["slots"] | {"grad_accumulator": held}
        waiting = state | {"micro_step": micro, "accumulated": counts, "slots": slots}
        traced = backend.is_array(micro) and backend.is_traced(micro)
        if not traced and int(micro) < self.accumulate:
            return unchanged, waiting
        # A traced count has no value; but a leaf with a gradient in this trace gets one at every step.
        present = {path for path, x in zip(paths, g, strict=True) if x is not None}
        active = [path for path in paths if (path in present if traced else counts.get(path, 0) > 0)]
        execution.state = waiting
        usable = self._released(execution, held, counts, active, micro, self.accumulate)
        leaves, new = execution.advance(plan_, [usable.get(p) for p in paths], output, donate)
        if not traced:
            return leaves, new
        ready = backend.ops.equal(micro, self.accumulate)
        if output == "update":
            unchanged = [None if x is None else backend.ops.zeros_like(x) for x in leaves]
        return select(backend, ready, leaves, unchanged), select(backend, ready, new, waiting)

    def _read(self, backend: Backend, flat: tree.Flat, g: Sequence[Array | None]) -> GradientPass | None:
        """Return the pass over the gradients that is due before anything else, if one is."""
        if self.nonfinite == "propagate":
            return None
        norm = None
        if self.accumulate == 1 and self._plan(flat.paths).norm_first:
            kinds = {p.dtype: p for p, x in zip(flat.leaves, g, strict=True) if x is not None}
            norm = "float64" if "float64" in map(backend.dtype_name, kinds.values()) else "float32"
        return GradientPass(backend, [x for x in g if x is not None], norm, self.compiled)


@opaque
def apply(params: Tree, updates: Tree) -> Tree:
    """Add updates to parameters, rounded once to each one's dtype; a leaf whose update is None stays.

    Parameters
    ----------
    params
        A tree of arrays.
    updates
        A tree like it, of ``Optimizer.update``.

    Returns
    -------
    tree
        New arrays in the structure of ``params``.

    Examples
    --------
    >>> import numpy as np
    >>> apply({"w": np.array([1.0])}, {"w": np.array([-0.25])})["w"].tolist()
    [0.75]
    """
    flat = tree.flatten(params)
    u = tree.aligned(updates, flat, "updates")
    backend = registry.of_leaves(flat.paths, flat.leaves, u, other="update")
    check_leaves(backend, flat.paths, flat.leaves, u)
    present = {p: x for p, x in zip(flat.paths, flat.leaves, strict=True) if x is not None}
    moves = [x if path in present else None for path, x in zip(flat.paths, u, strict=True)]
    moved = accumulate.add(backend, flat.paths, moves, present, compiled=True)
    return flat.unflatten(moved.get(path) for path in flat.paths)


def _floating(backend: Backend, path: str, leaf: Array) -> str:
    dtype = backend.dtype_name(leaf)
    if dtype not in FLOATING:
        raise InputError(
            f"parameter {path!r} has dtype {dtype}; expected one of {', '.join(FLOATING)} "
            "(leave it out, or freeze it with partition)"
        )
    return dtype
