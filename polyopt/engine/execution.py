"""One update: group the leaves that share a pipeline, a dtype and a step, and run their segments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import polyopt.core.scalars as host
from polyopt.backend.evaluate import cast
from polyopt.backend.protocol import Backend
from polyopt.core.errors import InputError, PolyoptError
from polyopt.core.ops import FLOATING, Array
from polyopt.core.rule import Global, Leafwise
from polyopt.core.tree import Flat
from polyopt.engine.checks import check_coefficients, check_hyperparameters, make_infinite
from polyopt.engine.contract import explain_coefficients, measured, unknown_coefficient
from polyopt.engine.gradient_pass import GradientPass, KnownNorm
from polyopt.engine.hyperparameters import Resolve
from polyopt.engine.leafwise import leafwise
from polyopt.engine.lift import TracedScalars, lifted
from polyopt.engine.plan import Part, Plan, Segment, program
from polyopt.engine.state_checks import whole_step


def compute_dtype(dtype: str) -> str:
    """Return the dtype in which a leaf of ``dtype`` is updated, and in which its slots are kept.

    Examples
    --------
    >>> compute_dtype("bfloat16"), compute_dtype("float64")
    ('float32', 'float64')
    """
    return "float64" if dtype == "float64" else "float32"


@dataclass
class Group:
    """Leaves that share a pipeline, a compute dtype, a step count and their scalar slots."""

    pipeline: tuple[Segment, ...]
    indices: list[int]
    dtype: str
    missed: Any
    scalar_slots: dict[str, Any]
    updates: list[Array]
    done: int = 0
    results: dict[str, Any] = field(default_factory=dict)
    coefficients: list[dict[str, Any]] = field(default_factory=list)
    """Of each segment, but for what is measured."""

    @property
    def segment(self) -> Segment | None:
        """Return the segment that comes next."""
        return self.pipeline[self.done] if self.done < len(self.pipeline) else None


class Execution:
    """The arrays of one update and how far they have come."""

    def __init__(
        self,
        backend: Backend,
        flat: Flat,
        state: dict[str, Any],
        resolve: Resolve,
        compiled: bool,
        reading: GradientPass | None = None,
    ) -> None:
        self.backend, self.flat, self.state = backend, flat, state
        self.resolve, self.compiled, self.reading = resolve, compiled, reading
        step = state["step"]
        if self._traced(step) and backend.dtype_name(step) in FLOATING:
            raise InputError(
                f"state['step'] is traced and of dtype {backend.dtype_name(step)}; expected an integer: a "
                "floating counter sticks (float32 at 2^24)"
            )
        self.step = step if type(step) is int or self._traced(step) else whole_step(step)
        self.measured: dict[str, dict[str, Array]] = {}
        self.groups: list[Group] = []

    def advance(
        self, plan: Plan, g: Sequence[Array | None], output: str, donate: bool
    ) -> tuple[list[Array | None], dict[str, Any]]:
        """Run every leaf with a gradient through its pipeline: ``(new leaves or updates, new state)``."""
        self.groups = groups = self.grouped(plan, g)
        for group in groups:  # before anything is written: one that is refused changes nothing
            group.coefficients = [self.scalars(group, segment) for segment in group.pipeline]
        waiting = [group for group in groups if group.pipeline]
        while waiting:
            for group in waiting:
                self._run_until_unmeasured(group, output, donate)
            waiting = [group for group in waiting if group.segment]
            if waiting:
                self._measure(waiting)
        return self._collect(plan, groups, g, output)

    def grouped(self, plan: Plan, g: Sequence[Array | None]) -> list[Group]:
        """Group the leaves that have a gradient, by what they share."""
        groups: dict[tuple[Any, ...], Group] = {}
        dtypes: dict[Any, str] = {}
        missed, paths, leaves = self.state["missed"], self.flat.paths, self.flat.leaves
        for pipeline, indices in plan.classes:
            scalar = [
                name
                for segment in pipeline
                for part in segment.parts
                for name, slot in part.names
                if slot.shape == "scalar"
            ]
            for i in indices:
                gradient = g[i]
                if gradient is None:
                    continue
                kind = leaves[i].dtype
                if kind not in dtypes:
                    dtypes[kind] = compute_dtype(self.backend.dtype_name(leaves[i]))
                key: tuple[Any, ...] = (id(pipeline), dtypes[kind])
                late, values = 0, {}
                # Asked of no leaf in vain: a thousand small ones must not cost more than their update.
                if missed or scalar:
                    late = missed.get(paths[i], 0)
                    values = {name: self._slot(name, [paths[i]])[0] for name in scalar}
                    same = tuple(v if isinstance(v, float) else id(v) for v in values.values())
                    key += (id(late) if self._traced(late) else int(late), same)
                if (group := groups.get(key)) is None:
                    group = groups[key] = Group(pipeline, [], dtypes[kind], late, values, [])
                    for part in (part for segment in pipeline for part in segment.parts):
                        check_hyperparameters(part.rule, dtypes[kind], traced=self._traced(self.step))
                group.indices.append(i)
                group.updates.append(gradient)
        return list(groups.values())

    def _run_until_unmeasured(self, group: Group, output: str, donate: bool) -> None:
        while (segment := group.segment) is not None:
            if self._awaits(segment):
                return
            last = group.done == len(group.pipeline) - 1
            self._run_segment(group, segment, output if last else "update", donate)
            group.done += 1

    def _run_segment(self, group: Group, segment: Segment, output: str, donate: bool) -> None:
        paths = [self.flat.paths[i] for i in group.indices]
        arrays = {"g": group.updates, "p": [self.flat.leaves[i] for i in group.indices]}
        for part in segment.parts:
            for name, slot in part.names:
                if slot.shape == "like":
                    arrays[name] = self._slot(name, paths)
        scalars = group.coefficients[group.done] | self.measured_for(segment)
        if segment.leafwise:
            group.results |= self._leafwise(segment.parts[0], arrays, scalars, group.dtype)
            group.updates = group.results.pop("update")
            if output == "update":
                return
            # The addition is a program like any other, so that parameters are replaced in one way.
            code, arrays = program((), output), {"g": group.updates, "p": arrays["p"]}
        else:
            code = program(segment.parts, output)
        lift = lifted(self.backend, code, self.compiled)
        try:
            wanted = {name: scalars[name] for name in code.scalars}
        except KeyError as e:
            unknown_coefficient([(x.key, x.rule) for x in segment.parts], str(e.args[0]), scalars)
        outputs = lift(arrays, wanted, group.dtype, donate=donate)
        group.updates = outputs.pop(output)
        group.results |= outputs

    def scalars(self, group: Group, segment: Segment) -> dict[str, Any]:
        """Compute the coefficients of all of ``segment`` by their names in its program; scalar slots move on.

        What is measured is not among them: see ``measured_for``.
        """
        return {n: x for part in segment.parts for n, x in self._scalars(group, part).items()}

    def measured_for(self, segment: Segment) -> dict[str, Any]:
        """Return what was measured for ``segment``, by its names in the program."""
        parts = (part for part in segment.parts if part.key in self.measured)
        return {f"{part.key}{n}": x for part in parts for n, x in self.measured[part.key].items()}

    def measure_heads(self, groups: list[Group]) -> None:
        """Measure what the next segments of ``groups`` await."""
        while waiting := [x for x in groups if x.segment and self._awaits(x.segment)]:
            self._measure(waiting)

    def _awaits(self, segment: Segment) -> bool:
        return segment.awaits is not None and segment.parts[0].key not in self.measured

    def _slot(self, name: str, paths: Sequence[str]) -> list[Any]:
        """Return the state's ``name`` for each of ``paths``."""
        values = self.state["slots"][name]
        return [values[path] for path in paths]

    def _leafwise(
        self, part: Part, arrays: dict[str, Any], scalars: dict[str, Any], dtype: str
    ) -> dict[str, list[Array]]:
        own = {slot.name: name for name, slot in part.names if slot.shape == "like"}
        inner = {n: arrays[own.get(n, n)] for n in ("g", "p", *own)}
        assert isinstance(part.rule, Leafwise)
        run = _leafwise(self.backend, part, self.compiled)
        xp = self.backend.ops
        c = {
            n.removeprefix(part.key): v
            if self.backend.is_array(v)
            else xp.asarray(v, dtype=self.backend.dtype(dtype))
            for n, v in scalars.items()
        }
        return {own.get(n, n): v for n, v in run(inner, c, dtype).items()}

    def _scalars(self, group: Group, part: Part) -> dict[str, Any]:
        """Compute the coefficients of ``part`` by their names in the program; move scalar slots on."""
        xp, step, h = self.hyperparameters(part, group.dtype)
        missed = group.missed
        if self._traced(missed):
            missed = cast(self.backend, missed, group.dtype)
        elif self.backend.is_array(missed):
            missed = int(missed)
        t = step + 1 - missed
        own = {slot.name: name for name, slot in part.names if slot.shape == "scalar"}
        vars(h).update({slot: group.scalar_slots[name] for slot, name in own.items()})
        values: Any = None
        try:
            values = part.rule.coefficients(xp, t, h)
            if xp is host:
                check_coefficients(
                    part.rule, vars(h), values, group.dtype, step, self.flat.paths[group.indices[0]]
                )
            group.results |= {name: [values[slot]] * len(group.indices) for slot, name in own.items()}
        except PolyoptError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as e:
            explain_coefficients(part.rule, values, own, e)
        return {f"{part.key}{n}": v for n, v in values.items()}

    def hyperparameters(self, part: Part, dtype: str) -> tuple[Any, Any, SimpleNamespace]:
        """Return ``(xp, step, values)``: on the host, unless the step or one of them is traced."""
        xp: Any = host
        step: Any = self.step
        given = part.rule.hyperparameters().values()
        if self._traced(step) or any(map(self._traced, given)):
            xp = TracedScalars(self.backend, dtype)
            step = cast(self.backend, step, dtype) if self._traced(step) else float(step)
        h = self.resolve(part.key, part.rule, xp, step)
        for name, value in vars(h).items():
            if not isinstance(value, int | float) and not self._traced(value):
                setattr(h, name, float(value))
        if part.rule.limits():
            make_infinite(part.rule, vars(h), dtype)
        return xp, step, h

    def _traced(self, x: Any) -> bool:
        return type(x) not in (int, float) and self.backend.is_array(x) and self.backend.is_traced(x)

    def _measure(self, waiting: list[Group]) -> None:
        """Measure for a rule that all of its leaves have come to."""
        arrived = [(s.parts[0], group) for group in waiting if (s := group.segment) is not None]
        ahead = {
            segment.parts[0].key
            for group in waiting
            for segment in group.pipeline[group.done + 1 :]
            if segment.awaits is not None
        }
        part = next(part for part, _ in arrived if part.key not in ahead)
        here = [group for at, group in arrived if at.key == part.key]
        dtype = "float64" if any(group.dtype == "float64" for group in here) else "float32"
        by_index = {i: u for group in here for i, u in zip(group.indices, group.updates, strict=True)}
        leaves = [by_index[i] for i in sorted(by_index)]
        _, _, h = self.hyperparameters(part, dtype)
        xp, kind = self.backend.ops, self.backend.dtype(dtype)
        c = {
            name: cast(self.backend, x, dtype) if self._traced(x) else xp.asarray(x, dtype=kind)
            for name, x in vars(h).items()
        }
        known = None
        if self.reading is not None and isinstance(part.rule, Global) and part.rule.NORM_ALONE:
            known = self.reading.norm(leaves, dtype)
        if known is not None:
            leaves = []
        self.measured[part.key] = _measurement(self.backend, part, dtype, self.compiled)(leaves, c, known)

    def next_step(self) -> Any:
        """Count one more; a traced counter stays at its dtype's largest value rather than wrap around."""
        if isinstance(self.step, int):
            return self.step + 1
        xp = self.backend.ops
        return xp.where(xp.greater(self.step + 1, self.step), self.step + 1, self.step)

    def _collect(
        self, plan: Plan, groups: list[Group], g: Sequence[Array | None], output: str
    ) -> tuple[list[Array | None], dict[str, Any]]:
        leaves = list(self.flat.leaves) if output == "p" else [None] * len(g)
        slots = {name: dict(values) for name, values in self.state["slots"].items()}
        for group in groups:
            for j, i in enumerate(group.indices):
                leaves[i] = group.updates[j]
            for name, values in group.results.items():
                slots[name].update(zip((self.flat.paths[i] for i in group.indices), values, strict=True))
        missed = self.state["missed"]
        idle = [
            path
            for path, pipeline, leaf, x in zip(
                self.flat.paths, plan.pipelines, self.flat.leaves, g, strict=True
            )
            if pipeline is not None and leaf is not None and x is None
        ]
        if idle:
            missed = missed | {path: missed.get(path, 0) + 1 for path in idle}
        return leaves, self.state | {"step": self.next_step(), "missed": missed, "slots": slots}


@lru_cache(maxsize=256)
def _leafwise(backend: Backend, part: Part, compiled: bool) -> Callable[..., Any]:
    assert isinstance(part.rule, Leafwise)
    return leafwise(backend, part.rule, compiled)


@lru_cache(maxsize=256)
def _measurement(backend: Backend, part: Part, dtype: str, compiled: bool) -> Callable[..., Any]:
    rule = part.rule
    assert isinstance(rule, Global)

    def measure(
        xp: Any, leaves: Sequence[Array], c: dict[str, Array], known: tuple[Array, Array] | None
    ) -> dict[str, Array]:
        xp = xp if known is None else KnownNorm(xp, known)
        return measured(rule, xp, [cast(backend, x, dtype) for x in leaves], SimpleNamespace(**c))

    if not compiled:
        return lambda leaves, c, known: measure(backend.ops, leaves, c, known)
    return backend.compile(measure, exact=True)
