"""One update as a pure function of arrays and a vector of scalars, to be compiled along with the loss.

What depends on the step, schedules and bias corrections, is computed on the host, in double precision as
ever, and crosses as one vector: so no step compiles anew, and the bits are those of ``Optimizer.step``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from polyopt.backend.evaluate import cast, evaluate_leaves
from polyopt.backend.protocol import Backend
from polyopt.core.ops import Array
from polyopt.core.rule import Global, Leafwise
from polyopt.core.trace import Program
from polyopt.core.tree import Flat
from polyopt.engine.contract import measured, unknown_coefficient
from polyopt.engine.execution import Execution, Group
from polyopt.engine.hyperparameters import Resolve
from polyopt.engine.leafwise import leafwise
from polyopt.engine.outcome import select
from polyopt.engine.plan import Part, Plan, Segment, program


@dataclass(frozen=True)
class Run:
    """The next segment of a group; ``output`` as of ``program``."""

    group: int
    segment: Segment
    output: str

    @property
    def code(self) -> Program:
        """Return what runs last in it.

        A leafwise rule is followed by the addition alone, where there is one.
        """
        return program(() if self.segment.leafwise else self.segment.parts, self.output)


@dataclass(frozen=True)
class Measure:
    """The measurement of a global rule that all of its leaves have come to."""

    part: Part
    groups: tuple[int, ...]
    dtype: str


Key = tuple[int, str]
"""Of a scalar: the position of the action that needs it, and its name there."""


class Inlined:
    """A backend inside a computation that is being compiled: what it compiles joins that one."""

    def __init__(self, backend: Backend, xp: Any) -> None:
        self._backend, self.ops = backend, xp

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def compile(self, function: Any, *, exact: bool = False) -> Any:
        """Return the function as it is: it joins the computation around."""
        return lambda *args: function(self.ops, *args)


class CompiledUpdate:
    """The update of all leaves, of which each has a gradient at every step.

    Parameters
    ----------
    backend, flat, plan
        Where, the leaves (their dtypes count, not their values), and what each goes through.
    state
        A state of these leaves: leaves that differ in what they missed or in a scalar slot are
        grouped apart, once and for all, for they move on together.
    resolver
        Gives, for a state, what evaluates the schedules.
    skip
        Leave everything as it was where a gradient is not finite.
    """

    def __init__(
        self,
        backend: Backend,
        flat: Flat,
        plan: Plan,
        state: dict[str, Any],
        resolver: Callable[[Any], Resolve],
        skip: bool,
    ) -> None:
        self._backend, self._resolver, self._skip = backend, resolver, skip
        self._paths = flat.paths
        self._flat = Flat(flat.paths, [], flat.structure)  # the leaves themselves are about to be given up
        given = [None if p is None else x for p, x in zip(plan.pipelines, flat.leaves, strict=True)]
        self._groups = Execution(backend, flat, state, resolver(state), True).grouped(plan, given)
        for group in self._groups:
            group.updates = []
        self._names = [[flat.paths[i] for i in group.indices] for group in self._groups]
        self._actions = _ordered(self._groups)
        columns, _ = self._columns(state, self.scalar_slots(state))
        self._layout = {dtype: tuple(column) for dtype, column in columns.items()}

    @property
    def key(self) -> Hashable:
        """Equal for updates that compile to the same function, the rule being the same."""
        return tuple((tuple(names), g.dtype) for names, g in zip(self._names, self._groups, strict=True))

    def scalar_slots(self, state: Mapping[str, Any]) -> list[dict[str, float]]:
        """For each group its scalar slots in ``state``."""
        return [
            {name: float(state["slots"][name][names[0]]) for name in group.scalar_slots}
            for group, names in zip(self._groups, self._names, strict=True)
        ]

    def by_leaf(self, scalar_slots: list[dict[str, float]]) -> dict[str, dict[str, float]]:
        """Scalar slots as a state holds them."""
        found: dict[str, dict[str, float]] = {}
        for names, values in zip(self._names, scalar_slots, strict=True):
            for name, value in values.items():
                found.setdefault(name, {}).update(dict.fromkeys(names, value))
        return found

    # On the host, before each step

    def host(
        self, state: dict[str, Any], scalar_slots: list[dict[str, float]]
    ) -> tuple[dict[str, Any], list[dict[str, float]]]:
        """Return ``(vectors, next scalar slots)``: what the coming update needs to know of the step."""
        columns, new = self._columns(state, scalar_slots)
        return {kind: np.array([*column.values(), 0.0], kind) for kind, column in columns.items()}, new

    def _columns(
        self, state: dict[str, Any], scalar_slots: list[dict[str, float]]
    ) -> tuple[dict[str, dict[Key, float]], list[dict[str, float]]]:
        execution = Execution(self._backend, self._flat, state, self._resolver(state), True)
        columns: dict[str, dict[Key, float]] = {}
        for group, values in zip(self._groups, scalar_slots, strict=True):
            group.scalar_slots, group.results = values, {}
        for i, action in enumerate(self._actions):
            if isinstance(action, Measure):
                dtype = action.dtype
                found = vars(execution.hyperparameters(action.part, dtype)[2])
            else:
                dtype = self._groups[action.group].dtype
                found = execution.scalars(self._groups[action.group], action.segment)
                found |= action.code.constants
            columns.setdefault(dtype, {}).update({(i, name): x for name, x in found.items()})
        new = [{name: float(group.results[name][0]) for name in group.scalar_slots} for group in self._groups]
        return columns or {"float32": {}}, new

    # On the device, while it is being compiled

    def device(self, xp: Any, arrays: Any, gradients: Any, vectors: Any) -> dict[str, Any]:
        """Return ``{"arrays": …}`` after the update and, with ``skip``, ``"ok"``: whether it was made."""
        trace = _Trace(self._backend, xp, arrays, gradients)
        scalars: list[dict[str, Array]] = [{} for _ in self._actions]
        for dtype, layout in self._layout.items():
            for j, (i, name) in enumerate(layout):
                scalars[i][name] = vectors[dtype][j]
        for action, values in zip(self._actions, scalars, strict=True):
            if isinstance(action, Measure):
                paths = sorted((i, g) for g in action.groups for i in self._groups[g].indices)
                trace.measure(action, [self._paths[i] for i, _ in paths], values)
            else:
                trace.run(action, self._names[action.group], values, self._groups[action.group].dtype)
        new = {"params": trace.params, "slots": trace.slots}
        if not self._skip:
            return {"arrays": new}
        given = [gradients[name] for names in self._names for name in names]
        ok = xp.all(xp.stack([xp.all(xp.isfinite(x)) for x in given])) if given else xp.asarray(True)
        return {"arrays": select(self._backend, ok, new, arrays), "ok": ok}


class _Trace:
    """The arrays of one update and how far they have come."""

    def __init__(self, backend: Backend, xp: Any, arrays: Any, gradients: Any) -> None:
        self.backend: Any = Inlined(backend, xp)
        self.params = dict(arrays["params"])
        self.slots = {name: dict(values) for name, values in arrays["slots"].items()}
        self.updates = dict(gradients)
        self.measured: dict[str, dict[str, Array]] = {}

    def measure(self, action: Measure, paths: list[str], values: dict[str, Array]) -> None:
        rule = action.part.rule
        assert isinstance(rule, Global)
        leaves = [cast(self.backend, self.updates[path], action.dtype) for path in paths]
        found = measured(rule, self.backend.ops, leaves, SimpleNamespace(**values))
        self.measured[action.part.key] = found

    def run(self, action: Run, paths: list[str], values: dict[str, Array], dtype: str) -> None:
        for part in action.segment.parts:
            for name, x in self.measured.get(part.key, {}).items():
                values[f"{part.key}{name}"] = cast(self.backend, x, dtype)
        arrays = {
            "g": [self.updates[path] for path in paths],
            "p": [self.params[path] for path in paths],
        }
        for part in action.segment.parts:
            for name, slot in part.names:
                if slot.shape == "like":
                    arrays[name] = [self.slots[name][path] for path in paths]
        if action.segment.leafwise:
            out = self._leafwise(action.segment.parts[0], arrays, values, dtype)
            if action.output == "p":
                arrays = {"g": out.pop("update"), "p": arrays["p"]}
                out |= self._elementwise(action.code, arrays, values, dtype)
        else:
            out = self._elementwise(action.code, arrays, values, dtype, action.segment.parts)
        target = self.params if action.output == "p" else self.updates
        target.update(zip(paths, out.pop(action.output), strict=True))
        for name, leaves in out.items():
            self.slots[name].update(zip(paths, leaves, strict=True))

    def _elementwise(
        self,
        code: Program,
        arrays: dict[str, Any],
        values: dict[str, Array],
        dtype: str,
        parts: tuple[Part, ...] = (),
    ) -> dict[str, list[Array]]:
        for name in code.scalars:
            if name not in values:
                unknown_coefficient([(part.key, part.rule) for part in parts], name, values)
        return evaluate_leaves(self.backend, self.backend.ops, code, arrays, values, dtype)

    def _leafwise(
        self, part: Part, arrays: dict[str, Any], values: dict[str, Array], dtype: str
    ) -> dict[str, list[Array]]:
        own = {slot.name: name for name, slot in part.names if slot.shape == "like"}
        inner = {name: arrays[own.get(name, name)] for name in ("g", "p", *own)}
        assert isinstance(part.rule, Leafwise)
        run = leafwise(self.backend, part.rule, True)
        c = {name.removeprefix(part.key): x for name, x in values.items()}
        return {own.get(name, name): x for name, x in run(inner, c, dtype).items()}


def _ordered(groups: list[Group]) -> list[Run | Measure]:
    """Return what is done to the groups, one after the other: the order in which the driver does it."""
    actions: list[Run | Measure] = []
    done = [0] * len(groups)
    measured: set[str] = set()
    while True:
        for g, group in enumerate(groups):
            while done[g] < len(group.pipeline):
                segment = group.pipeline[done[g]]
                if segment.awaits is not None and segment.parts[0].key not in measured:
                    break
                done[g] += 1
                output = "p" if done[g] == len(group.pipeline) else "update"
                actions.append(Run(g, segment, output))
        waiting = [g for g, group in enumerate(groups) if done[g] < len(group.pipeline)]
        if not waiting:
            return actions
        heads = {g: groups[g].pipeline[done[g]].parts[0] for g in waiting}
        ahead = {
            segment.parts[0].key
            for g in waiting
            for segment in groups[g].pipeline[done[g] + 1 :]
            if segment.awaits is not None
        }
        part = next(part for part in heads.values() if part.key not in ahead)
        here = tuple(g for g, head in heads.items() if head.key == part.key)
        wide = any(groups[g].dtype == "float64" for g in here)
        actions.append(Measure(part, here, "float64" if wide else "float32"))
        measured.add(part.key)
