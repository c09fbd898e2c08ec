"""The same gradients give the same bits as NumPy op by op: parameters and slots, eager and compiled."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final

from polyopt.backend import registry
from polyopt.core.rule import Elementwise
from polyopt.testing import trajectories
from polyopt.testing.agreement import same_bits
from polyopt.testing.case import Case, Context
from polyopt.testing.rules_cases import Setting, pairs
from polyopt.testing.rules_checks import known
from polyopt.testing.trajectories import Trajectory

STEPS_EAGER: Final = 20
"""Op by op, the first setting of an algorithm and convention takes all the steps, the others this many."""


def cases() -> Iterator[Case]:
    """Yield a case for each algorithm and convention, compiled and eager."""
    from polyopt.optim import OPTIMIZERS

    for algorithm, convention in pairs():
        if issubclass(OPTIMIZERS[algorithm], Elementwise):
            for how, compiled in (("compiled", True), ("eager", False)):
                name = f"{algorithm}/{convention}: {how}"
                yield Case("bits", name, partial(check, algorithm, convention, compiled))


def check(algorithm: str, convention: str, compiled: bool, context: Context) -> str:
    """Compare all leaves and slots after the last step, for every setting."""
    found = known(algorithm, convention, context)
    for i, setting in enumerate(found):
        steps = context.updates
        if not compiled and i:
            steps = min(steps, STEPS_EAGER)
        numpy = registry.by_name("numpy")
        got = trajectories.run(context.backend, setting, steps, compiled=compiled, eager_tree=not compiled)
        want = trajectories.run(numpy, setting, steps, compiled=False, eager_tree=not compiled)
        _same(setting, steps, got, want)
    return f"{len(found)} settings"


def _same(setting: Setting, steps: int, got: Trajectory, want: Trajectory) -> None:
    for dtype, leaves in got.params.items():
        for leaf, a in leaves.items():
            same_bits(
                f"{setting} on {dtype}, leaf {leaf!r}, after {steps} steps", a, want.params[dtype][leaf]
            )
    for slot, values in got.slots.items():
        for path, a in values.items():
            same_bits(f"{setting} slot {slot} of {path!r}, after {steps} steps", a, want.slots[slot][path])
