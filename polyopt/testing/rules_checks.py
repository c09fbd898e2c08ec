"""Every algorithm, convention and parameter dtype against the float64 reference."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import numpy as np

from polyopt import Optimizer
from polyopt.testing import trajectories
from polyopt.testing.case import Case, Context, Missing
from polyopt.testing.ops_inputs import info
from polyopt.testing.reference import REFERENCES, State, reference
from polyopt.testing.rules_cases import DEFAULTS, RATE, RATES, Setting, pairs, settings
from polyopt.testing.trajectories import KEPT, SHAPES

TOLERANCE: Final = {"float64": 1e-11, "float32": 3e-5, "bfloat16": 3e-5, "float16": 3e-5}
"""Relative to the size of the step and of those just before. float64: the textbook's 1 - b**t loses 2e-13,
eps/(1-b2), over some operations, and the centred v - a**2 two digits more. float32, in which smaller dtypes
are computed too: about ten roundings of 6e-8, and the same cancellation. One unit of the parameter's
own dtype is allowed on top, for its rounding after the addition."""


def cases() -> Iterator[Case]:
    """Yield two cases for each algorithm and convention: one of usual gradients, one of inf and NaN."""
    for algorithm, convention in pairs():
        name = f"{algorithm}/{convention}"
        yield Case("reference", name, partial(check, algorithm, convention))
        yield Case("reference", f"{name}: inf and NaN", partial(check_nonfinite, algorithm, convention))


def known(algorithm: str, convention: str, context: Context) -> list[Setting]:
    """Return the settings to check, or raise ``Missing``."""
    found = settings(algorithm, convention, sparse=context.sparse or context.quick)
    if not found or convention not in REFERENCES.get(algorithm, {}):
        raise Missing(f"no float64 reference for {algorithm!r} by the convention {convention!r}")
    return found


def check(algorithm: str, convention: str, context: Context) -> str:
    """Defaults, then every variant against the reference, all dtypes at once."""
    found = known(algorithm, convention, context)
    check_defaults(algorithm, convention)
    for setting in found:
        _follow(context, setting)
    return f"{len(found)} settings"


def check_defaults(algorithm: str, convention: str) -> None:
    """Check that a convention fills in the values that the kit has on record."""
    from polyopt.optim import OPTIMIZERS

    kind: Any = OPTIMIZERS[algorithm]
    rule = kind(convention=convention)
    expected = dict(DEFAULTS[algorithm][convention])
    if algorithm in RATES[convention]:
        expected["lr"] = RATES[convention][algorithm]
    for field, want in expected.items():
        got = getattr(rule, field)
        assert got == want, f"{algorithm}({convention}).{field} is {got!r} by default; expected {want!r}"


def _follow(context: Context, setting: Setting) -> None:
    """Compare a run with its reference, step by step.

    Float64 runs free; smaller dtypes start every step from the backend's parameter, so that only the step is
    compared and not the sum of the parameter's roundings.
    """
    backend = context.backend
    kinds, steps = trajectories.dtypes(backend), context.updates
    made = trajectories.run(backend, setting, steps)
    step = reference(setting.algorithm, setting.convention, setting.hyperparameters)
    grads = trajectories.gradients(kinds, False, steps)
    lr = trajectories.rate()
    start = trajectories.parameters(kinds, False)
    for d in kinds:
        for n in SHAPES[d]:
            p, memory, size = start[d][n].astype(np.float64), State(), 0.0
            for t in range(1, min(steps, KEPT) + 1):
                want = step(memory, p, grads[t - 1][d][n].astype(np.float64), t, lr(t - 1))
                got = made.steps[t - 1][d][n].astype(np.float64)
                # A buffer may cancel to a small step; its error stays that of what went into it.
                size = np.maximum(0.9 * size, np.abs(want - p))
                _compare(setting, d, n, t, (got, want, p, size))
                p = want if d == "float64" else got


def _compare(setting: Setting, dtype: str, leaf: str, t: int, values: tuple[Any, ...]) -> None:
    got, want, before, size = values
    limits = info(dtype)
    unit = np.maximum(np.abs(want), np.abs(before)) * float(limits.eps) + float(limits.smallest_normal)
    bound = TOLERANCE[dtype] * size + unit
    if dtype == "float64":  # free running: the differences of earlier steps are still there
        bound = TOLERANCE[dtype] * (1.0 + np.abs(want))
    wrong = ~(np.abs(got - want) <= bound)
    if wrong.any():
        i = int(np.flatnonzero(np.reshape(wrong, -1))[0])
        a, w, b = (np.reshape(x, -1)[i].item() for x in (got, want, bound))
        raise AssertionError(
            f"{setting} on {dtype}, leaf {leaf!r}{SHAPES[dtype][leaf]} element {i}, step {t}: "
            f"parameter {a!r}; the reference has {w!r} (allowed difference: {b:.2g})"
        )


def check_nonfinite(algorithm: str, convention: str, context: Context) -> None:
    """Check that an inf or NaN in one element leaves the others as they are.

    In its own place it does what the formula says.
    """
    setting, backend = known(algorithm, convention, context)[0], context.backend
    optimizer = Optimizer(setting.rule(RATE))
    step = reference(setting.algorithm, setting.convention, setting.hyperparameters)
    p, memory = np.random.default_rng(5).normal(size=(6,)), State()
    params = {"w": backend.from_numpy(p)}
    state = optimizer.init(params)
    for t in range(1, 6):
        g = np.random.default_rng(t).normal(size=(6,))
        if t == 3:
            g[1:4] = np.inf, -np.inf, np.nan
        p = step(memory, p, g, t, RATE)
        params, state = optimizer.step(params, {"w": backend.from_numpy(g)}, state)
        got = np.asarray(backend.to_numpy(params["w"]))
        same = (np.abs(got - p) <= 1e-11) | (got == p) | (np.isnan(got) & np.isnan(p))
        assert same.all(), (
            f"{setting} on float64 with gradients [inf, -inf, nan] at elements 1 to 3 of step 3: "
            f"parameters {got.tolist()} after step {t}; the reference has {p.tolist()}"
        )
