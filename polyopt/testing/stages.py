"""Stages around and before optimizers: a float64 reference, and NumPy's bits of parameters and slots."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeAlias

import numpy as np

from polyopt import Optimizer
from polyopt.backend import registry
from polyopt.backend.protocol import Backend
from polyopt.core.rule import Stage
from polyopt.pruning import with_masks
from polyopt.testing import trajectories
from polyopt.testing.agreement import same_bits, within
from polyopt.testing.case import Case, Context
from polyopt.testing.reference import State
from polyopt.testing.trajectories import HostTree, Trajectory, converted, host_tree, number

STEPS: Final = 60
STEPS_QUICK: Final = 20
TOLERANCE: Final = 1e-11
"""As of the algorithms by themselves: see ``polyopt.testing.rules_checks``."""

Step: TypeAlias = Callable[..., Any]
"""``step(memory, p, g, t, rate, leaf)`` gives the new parameter. ``leaf`` has the leaf's ``name``, its
``start`` and, where there are masks, its ``mask``."""


@dataclass(frozen=True)
class Leaf:
    """State that a reference keeps for a leaf."""

    name: str
    start: Any
    mask: Any
    """``None`` where there are no masks."""


@dataclass(frozen=True)
class StageCase:
    """``stage(rate)`` and what it has to do. ``slots`` are those that the reference's memory holds too."""

    name: str
    stage: Callable[[Any], Stage]
    step: Step
    masked: bool = False
    slots: tuple[str, ...] = ()


def stage_cases(check: str, table: tuple[StageCase, ...]) -> Iterator[Case]:
    """Two rows for each: compiled, and op by op."""
    for case in table:
        for how, compiled in (("compiled", True), ("eager", False)):
            yield Case(check, f"{case.name}: {how}", partial(_check, case, compiled))


def _check(case: StageCase, compiled: bool, context: Context) -> str:
    steps = STEPS_QUICK if context.quick or not compiled else STEPS
    kinds = trajectories.dtypes(context.backend)
    got = _run(context.backend, case, kinds, steps, compiled)
    want = _run(registry.by_name("numpy"), case, kinds, steps, False)
    _same(case, got, want)
    _follow(case, got, kinds, steps)
    return f"{steps} steps"


def _run(backend: Backend, case: StageCase, kinds: tuple[str, ...], steps: int, compiled: bool) -> Trajectory:
    """Parameters after each step, and slots at the end."""
    start = trajectories.parameters(kinds, True)
    optimizer = Optimizer(case.stage(trajectories.rate()), compiled=compiled)
    kept: list[HostTree] = []
    with registry.forced(backend):
        params = converted(backend, start)
        state = optimizer.init(params)
        if case.masked:
            masks = {path: backend.from_numpy(mask) for path, mask in _masks(start).items()}
            params, state = with_masks(optimizer, params, state, masks)
        for grads in trajectories.gradients(kinds, True, steps):
            params, state = optimizer.step(params, converted(backend, grads), state)
            kept.append(host_tree(backend, params))
        slots = {
            name: {path: number(backend, x) for path, x in values.items()}
            for name, values in state["slots"].items()
        }
    return Trajectory(kept, kept[-1], slots)


def _masks(start: HostTree) -> dict[str, Any]:
    """Two of three weights of each leaf, by path."""
    rng = np.random.default_rng(3)
    return {f"{d}.{n}": rng.random(x.shape) < 0.67 for d, leaves in start.items() for n, x in leaves.items()}


def _same(case: StageCase, got: Trajectory, want: Trajectory) -> None:
    for t, (ours, theirs) in enumerate(zip(got.steps, want.steps, strict=True), 1):
        for d, leaves in theirs.items():
            for n, x in leaves.items():
                same_bits(f"{case.name} on {d}, leaf {n!r}, after step {t}", ours[d][n], x)
    assert got.slots.keys() == want.slots.keys(), f"{case.name}: slots {list(got.slots)}"
    for slot, values in want.slots.items():
        for path, x in values.items():
            same_bits(f"{case.name} slot {slot} of {path!r}", got.slots[slot][path], x)


def _follow(case: StageCase, got: Trajectory, kinds: tuple[str, ...], steps: int) -> None:
    """Compare the float64 leaves with the reference, which runs free."""
    grads, rate = trajectories.gradients(kinds, True, steps), trajectories.rate()
    start = trajectories.parameters(kinds, True)
    masks: Mapping[str, Any] = _masks(start) if case.masked else {}
    for n, first in start["float64"].items():
        path = f"float64.{n}"
        leaf, memory = Leaf(path, first, masks.get(path)), State()
        p = first if leaf.mask is None else np.where(leaf.mask, first, 0.0)
        for t in range(1, steps + 1):
            p = case.step(memory, p, grads[t - 1]["float64"][n], t, rate(t - 1), leaf)
            found = got.steps[t - 1]["float64"][n]
            within(f"{case.name}, step {t}", found, p, TOLERANCE * (1.0 + np.abs(p)))
        for slot in case.slots:
            bound = TOLERANCE * (1.0 + np.abs(memory[slot]))
            within(f"{case.name}, slot {slot}", got.slots[slot][path], memory[slot], bound)
