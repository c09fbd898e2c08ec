"""The same gradients give the same bits on all four backends, op by op and compiled."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from polyopt import Adam, ClipByGlobalNorm, Optimizer, chain
from polyopt.backend.protocol import Backend
from polyopt.backend.registry import by_name
from polyopt.core.rule import Elementwise, Stage
from polyopt.optim import OPTIMIZERS
from polyopt.schedules import Schedule
from polyopt.testing import assert_same_bits

STEPS = 200
SHAPES = {"scalar": (), "one": (1,), "empty": (0, 3), "vector": (7,), "matrix": (33, 5), "long": (1000,)}
DTYPES = ("float32", "float64")
LONG_EAGER = ("adam paper", "clipped adam", "sgd with momentum")


@dataclass(frozen=True)
class Wave(Schedule):
    """A rate that is another one at every step."""

    peak: float

    def value(self, xp: Any, t: Any) -> Any:
        return self.peak * (1.5 + xp.cos(t * 0.7)) / 2.5


def changing(rule: Stage) -> Stage:
    return dataclasses.replace(rule, lr=Wave(rule.lr if isinstance(rule.lr, float) else 1e-2))


def rules() -> dict[str, Stage]:
    found: dict[str, Stage] = {"clipped adam": chain(ClipByGlobalNorm(1.0), changing(Adam()))}
    for name, kind in OPTIMIZERS.items():
        if not issubclass(kind, Elementwise):
            continue
        for convention in kind.CONVENTIONS or (None,):
            given = {} if convention is None else {"convention": convention}
            try:
                rule = kind(**given)
            except TypeError:  # its rate has no default
                rule = kind(lr=1e-2, **given)
            found[f"{name} {convention or ''}".strip()] = changing(rule)
    sgd = OPTIMIZERS["sgd"]
    if "momentum" in {f.name for f in dataclasses.fields(sgd)}:
        found["sgd with momentum"] = changing(sgd(lr=1e-2, momentum=0.9))
    return found


RULES = rules()


def gradients() -> list[dict[str, Any]]:
    rng = np.random.default_rng(7)
    tree = [(f"{name}.{dtype}", shape, dtype) for dtype in DTYPES for name, shape in SHAPES.items()]
    # Every binade from 1e-6 to 1e3, so that sums round in all manners; no subnormal number arises.
    return [
        {
            key: np.asarray(rng.standard_normal(shape) * 10.0 ** rng.uniform(-6, 3, shape), dtype)
            for key, shape, dtype in tree
        }
        for _ in range(5)
    ]


GRADIENTS = gradients()


def run(backend: Backend, rule: Stage, compiled: bool, steps: int) -> tuple[Any, Any]:
    params = {k: backend.from_numpy(np.asarray(np.tanh(g))) for k, g in GRADIENTS[0].items()}
    grads = [{k: backend.from_numpy(g) for k, g in tree.items()} for tree in GRADIENTS]
    optimizer = Optimizer(rule, compiled=compiled)
    state = optimizer.init(params)
    with np.errstate(all="ignore"):
        for i in range(steps):
            params, state = optimizer.step(params, grads[i % len(grads)], state)
    return params, state["slots"]


_reference: dict[tuple[str, int], Any] = {}


# Op by op a framework's dispatch takes most of the time, and XLA compiles for seconds: one convention each,
# few all the steps. The conformance kit has all conventions op by op, and the switches, in shorter runs.
FEW = [name for name in RULES if name.endswith("paper") or name in LONG_EAGER]
COMPILED = {"numpy": RULES, "torch": RULES, "tensorflow": FEW, "jax": FEW}
EAGER = {"numpy": FEW, "torch": FEW, "tensorflow": LONG_EAGER, "jax": LONG_EAGER}
CASES = [(b, name, True) for b, names in COMPILED.items() for name in names]
CASES += [(b, name, False) for b, names in EAGER.items() for name in names]


@pytest.mark.full_for("tensorflow-clipped adam", "jax-clipped adam eager")
@pytest.mark.parametrize(
    ("backend", "name", "compiled"),
    CASES,
    indirect=["backend"],
    ids=[f"{b}-{n} {['eager', 'compiled'][c]}" for b, n, c in CASES],
)
def test_bits(backend: Backend, name: str, compiled: bool) -> None:
    steps = STEPS if compiled or name in LONG_EAGER else STEPS // 10
    if (name, steps) not in _reference:
        _reference[name, steps] = run(by_name("numpy"), RULES[name], False, steps)
    expected, expected_slots = _reference[name, steps]
    params, slots = run(backend, RULES[name], compiled, steps)
    for key, x in params.items():
        assert_same_bits(x, expected[key], what=f"{name}: {key}")
    for slot, values in slots.items():
        for key, x in values.items():
            assert_same_bits(x, expected_slots[slot][key], what=f"{name}: {slot} of {key}")
