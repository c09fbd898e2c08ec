"""Every algorithm, convention and parameter dtype against the float64 reference."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import numpy as np

from polyopt import Optimizer
from polyopt.ops import FLOATING
from polyopt.testing.case import Case, Context, Missing
from polyopt.testing.ops_inputs import dtypes_of, host_dtype, info
from polyopt.testing.reference import REFERENCES, State, reference
from polyopt.testing.rules_cases import DEFAULTS, RATE, RATES, Halved, Setting, pairs, settings

SHAPES: Final[dict[str, tuple[int, ...]]] = {"a": (), "b": (7,), "c": (3, 4), "d": (2, 3, 1, 2)}
STEPS: Final = 60
STEPS_QUICK: Final = 12
TOLERANCE: Final = {"float64": 1e-11, "float32": 3e-5, "bfloat16": 3e-5, "float16": 3e-5}
"""Of the step's size, relative: float64 from the textbook's 1 - b**t (eps/(1-b2), 2e-13, over some operations)
and, centred, v - a**2, which cancels two more digits; float32, in which all smaller dtypes are computed, from
about ten roundings of 6e-8 and the same cancellation. To it comes one unit of the parameter's own dtype, for
its rounding after the addition."""


def cases() -> Iterator[Case]:
    for algorithm, convention in pairs():
        name = f"{algorithm}/{convention}"
        yield Case("reference", name, partial(check, algorithm, convention))
        yield Case("reference", f"{name}: inf and NaN", partial(check_nonfinite, algorithm, convention))


def gradients(seed: int, steps: int, dtype: str) -> Iterator[dict[str, Any]]:
    """A gradient per step for every leaf: magnitudes from 1e-3 to 10, zeros here and there after the second."""
    rng = np.random.default_rng(seed)
    for t in range(steps):
        g = {}
        for name, shape in SHAPES.items():
            x = rng.normal(size=shape) * 10.0 ** rng.uniform(-3, 1, size=shape)
            x = np.where(np.abs(x) < 1e-3, 1e-3, x)
            zero = (rng.random(shape) < 0.2) | (t % 10 == 7)
            g[name] = np.where(zero & (t > 1), 0.0, x).astype(host_dtype(dtype))
        yield g


def parameters(dtype: str) -> dict[str, Any]:
    rng = np.random.default_rng(99)
    return {name: rng.normal(size=shape).astype(host_dtype(dtype)) for name, shape in SHAPES.items()}


def known(algorithm: str, convention: str) -> list[Setting]:
    """The settings to check, or :class:`Missing`."""
    found = settings(algorithm, convention)
    if not found or convention not in REFERENCES.get(algorithm, {}):
        raise Missing(f"no float64 reference for {algorithm!r} by the convention {convention!r}")
    return found


def check(algorithm: str, convention: str, context: Context) -> None:
    """Defaults, then every variant in lockstep with the reference, all dtypes at once."""
    found = known(algorithm, convention)
    check_defaults(algorithm, convention)
    for setting in found:
        _follow(context, setting, STEPS_QUICK if context.quick else STEPS)


def check_defaults(algorithm: str, convention: str) -> None:
    from polyopt.optim import OPTIMIZERS

    rule = OPTIMIZERS[algorithm](convention=convention)
    expected = dict(DEFAULTS[algorithm][convention])
    if algorithm in RATES[convention]:
        expected["lr"] = RATES[convention][algorithm]
    for field, want in expected.items():
        got = getattr(rule, field)
        assert got == want, f"{algorithm}({convention}).{field} is {got!r} by default; expected {want!r}"


def _follow(context: Context, setting: Setting, steps: int) -> None:
    """Float64 runs free; smaller dtypes start every step from the backend's parameter, so that only the step
    is compared and not the sum of the parameter's roundings."""
    backend = context.backend
    dtypes = dtypes_of(backend, FLOATING)
    schedule = Halved(RATE, steps // 2)
    optimizer = Optimizer(setting.rule(schedule))
    step = reference(setting.algorithm, setting.convention, setting.hyperparameters)
    host = {d: parameters(d) for d in dtypes}
    params = {d: {n: backend.from_numpy(x) for n, x in leaves.items()} for d, leaves in host.items()}
    exact = {d: {n: x.astype(np.float64) for n, x in leaves.items()} for d, leaves in host.items()}
    memory: dict[tuple[str, str], State] = {(d, n): {} for d in dtypes for n in SHAPES}
    state = optimizer.init(params)
    for t, given in enumerate(zip(*(gradients(3, steps, d) for d in dtypes), strict=True), start=1):
        g = dict(zip(dtypes, given, strict=True))
        grads = {d: {n: backend.from_numpy(x) for n, x in leaves.items()} for d, leaves in g.items()}
        params, state = optimizer.step(params, grads, state)
        for d in dtypes:
            for n in SHAPES:
                p = exact[d][n]
                want = step(memory[d, n], p, g[d][n].astype(np.float64), t, schedule(t - 1))
                got = np.asarray(backend.to_numpy(params[d][n])).astype(np.float64)
                _compare(setting, d, n, t, got, want, p)
                exact[d][n] = want if d == "float64" else got


def _compare(setting: Setting, dtype: str, leaf: str, t: int, got: Any, want: Any, before: Any) -> None:
    unit = np.maximum(np.abs(want), np.abs(before)) * float(info(dtype).eps) + float(
        info(dtype).smallest_normal
    )
    bound = TOLERANCE[dtype] * np.abs(want - before) + unit
    if dtype == "float64":  # free running: the differences of earlier steps are still there
        bound = TOLERANCE[dtype] * (1.0 + np.abs(want))
    wrong = ~(np.abs(got - want) <= bound)
    if wrong.any():
        i = int(np.flatnonzero(np.reshape(wrong, -1))[0])
        raise AssertionError(
            f"{setting} on {dtype}, leaf {leaf!r}{SHAPES[leaf]} element {i}, step {t}: {np.reshape(got, -1)[i]!r}; "
            f"the reference has {np.reshape(want, -1)[i]!r} (allowed: {np.reshape(bound, -1)[i]:.2g})"
        )


def check_nonfinite(algorithm: str, convention: str, context: Context) -> None:
    """An inf or NaN in one element leaves the others as they are, and does there what the formula says."""
    setting, backend = known(algorithm, convention)[0], context.backend
    optimizer = Optimizer(setting.rule(RATE))
    step = reference(setting.algorithm, setting.convention, setting.hyperparameters)
    p = np.random.default_rng(5).normal(size=(6,))
    params, memory = {"w": backend.from_numpy(p)}, dict[str, Any]()
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
