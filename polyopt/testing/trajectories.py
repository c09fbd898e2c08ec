"""Run an algorithm over one small tree of every shape and dtype, to compare with.

It is what the reference and the bits are compared with; made once and kept, because compiling costs more than
running.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np

from polyopt import Optimizer
from polyopt.backend import registry
from polyopt.backend.protocol import Backend
from polyopt.core.ops import FLOATING
from polyopt.testing.ops_inputs import dtypes_of, host_dtype
from polyopt.testing.rules_cases import RATE, Halved, Setting

SHAPES: Final[dict[str, dict[str, tuple[int, ...]]]] = {
    "float64": {"one": (1,), "kernel": (2, 3, 1, 2), "vector": (257,)},
    "float32": {"scalar": (), "empty": (0, 3), "matrix": (33, 5), "vector": (257,)},
    "bfloat16": {"vector": (7,)},
    "float16": {"scalar": (), "vector": (3,)},
}
"""Every rank, no element, odd lengths that fill no vector register: few leaves, as XLA compiles each anew."""

EAGER: Final[dict[str, dict[str, tuple[int, ...]]]] = {
    "float64": {"matrix": (33, 5)},
    "float32": {"vector": (257,)},
}
"""Op by op every leaf costs the same again."""

KEPT: Final = 60
"""Steps whose parameters are kept one by one."""

HostTree = dict[str, dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Host arrays: ``{dtype: {leaf: array}}`` after every kept step, and parameters and slots at the end."""

    steps: list[HostTree]
    params: HostTree
    slots: dict[str, dict[str, Any]]


def dtypes(backend: Backend) -> tuple[str, ...]:
    """Return the floating dtypes that the backend has."""
    return dtypes_of(backend, FLOATING)


@lru_cache(maxsize=16)
def parameters(kinds: tuple[str, ...], eager: bool) -> HostTree:
    """Draw initial parameters; the same values for a leaf whatever other dtypes there are."""
    rng = {d: np.random.default_rng([1, FLOATING.index(d)]) for d in kinds}
    shapes = EAGER if eager else SHAPES
    return {
        d: {n: rng[d].normal(size=s).astype(host_dtype(d)) for n, s in shapes[d].items()}
        for d in kinds
        if d in shapes
    }


@lru_cache(maxsize=16)
def gradients(kinds: tuple[str, ...], eager: bool, steps: int) -> list[HostTree]:
    """Draw a gradient tree a step: magnitudes from 1e-3 to 10, some elements (and each tenth step) zero."""
    return [
        {d: dict(_leaves(d, t, eager)) for d in kinds if d in (EAGER if eager else SHAPES)}
        for t in range(steps)
    ]


def _leaves(dtype: str, t: int, eager: bool) -> Iterator[tuple[str, Any]]:
    rng = np.random.default_rng([2, FLOATING.index(dtype), t])
    for name, shape in (EAGER if eager else SHAPES)[dtype].items():
        x = rng.normal(size=shape) * 10.0 ** rng.uniform(-3, 1, size=shape)
        x = np.where(np.abs(x) < 1e-3, 1e-3, x)
        zero = (rng.random(shape) < 0.2) | (t % 10 == 7)
        yield name, np.where(zero & (t > 1), 0.0, x).astype(host_dtype(dtype))


@lru_cache(maxsize=16)
def _on_backend(backend: Backend, kinds: tuple[str, ...], eager: bool, steps: int) -> list[Any]:
    return [converted(backend, tree) for tree in gradients(kinds, eager, steps)]


def converted(backend: Backend, tree: HostTree) -> Any:
    """Put a tree of host arrays on the backend."""
    return {d: {n: backend.from_numpy(x) for n, x in leaves.items()} for d, leaves in tree.items()}


def host_tree(backend: Backend, tree: Any) -> HostTree:
    """Copy a backend's tree to the host."""
    return {d: {n: np.array(backend.to_numpy(x)) for n, x in leaves.items()} for d, leaves in tree.items()}


def rate() -> Halved:
    """Return the rate of every run: halved twice within the steps kept, the second time before 20."""
    return Halved(RATE, (7, 30))


@lru_cache(maxsize=1024)
def run(
    backend: Backend, setting: Setting, steps: int, *, compiled: bool = True, eager_tree: bool = False
) -> Trajectory:
    """Run ``setting`` for ``steps`` updates on ``backend``."""
    kinds = dtypes(backend)
    grads = _on_backend(backend, kinds, eager_tree, steps)
    optimizer = Optimizer(setting.rule(rate()), compiled=compiled)
    kept: list[HostTree] = []
    with registry.forced(backend):
        params = converted(backend, parameters(kinds, eager_tree))
        state = optimizer.init(params)
        for t in range(steps):
            params, state = optimizer.step(params, grads[t], state)
            if t < KEPT and compiled:
                kept.append(host_tree(backend, params))
        slots = {
            name: {path: number(backend, x) for path, x in values.items()}
            for name, values in state["slots"].items()
        }
        return Trajectory(kept, host_tree(backend, params), slots)


def number(backend: Backend, x: Any) -> Any:
    """Return a slot's host array; a scalar slot is a Python float already."""
    return np.array(backend.to_numpy(x)) if backend.is_array(x) else np.float64(x)


def forget() -> None:
    """Let go of all that was kept."""
    for cached in (run, _on_backend, gradients, parameters):
        cached.cache_clear()
