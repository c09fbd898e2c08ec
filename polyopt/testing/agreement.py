"""One piece of work on the backend under test and on NumPy: its results by name, and whether they agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from polyopt.backend import registry
from polyopt.backend.protocol import Backend
from polyopt.core import tree
from polyopt.testing.ops_inputs import info

Place: TypeAlias = Callable[[Any], Any]
"""Puts a tree of host arrays onto a backend."""
Work: TypeAlias = Callable[[Place], Mapping[str, Any]]
"""Gives arrays of the backend, ``{name: array or None}``."""


def outcome(backend: Backend, work: Work) -> dict[str, Any]:
    """Return what ``work`` gives on ``backend``, as host arrays.

    Everything must be an array of the backend.
    """
    with registry.forced(backend):
        found = work(lambda host: tree.map_leaves(backend.from_numpy, host))
        made = {}
        for name, x in found.items():
            if x is None:
                continue
            assert backend.is_array(x), f"{name} is {type(x).__name__}; expected an array of {backend.name}"
            made[name] = np.array(backend.to_numpy(x))
        return made


def in_numpys_bits(backend: Backend, work: Work, what: str) -> dict[str, Any]:
    """Return what ``work`` gives on ``backend``, after checking that its bits are NumPy's."""
    got, want = outcome(backend, work), outcome(registry.by_name("numpy"), work)
    assert got.keys() == want.keys(), f"{what}: has {list(got)}; NumPy has {list(want)}"
    for name, x in want.items():
        same_bits(f"{what}: {name}", got[name], x)
    return got


def same_bits(what: str, got: Any, want: Any, whose: str = "NumPy") -> None:
    """Assert the same dtype, shape and bits of two host arrays; every NaN counts as the same NaN."""
    kinds = f"{got.dtype}{list(got.shape)}", f"{want.dtype}{list(want.shape)}"
    assert kinds[0] == kinds[1], f"{what}: {kinds[0]}; {whose} has {kinds[1]}"
    kind = f"u{got.dtype.itemsize}"
    a, w = (np.ascontiguousarray(x).reshape(-1) for x in (got, want))
    wrong = a.view(kind) != w.view(kind)
    if a.dtype.kind not in "biu":
        wrong &= ~(np.isnan(a) & np.isnan(w))
    if wrong.any():
        i = int(np.flatnonzero(wrong)[0])
        raise AssertionError(
            f"{what}: element {i} is {a[i].item()!r}; {whose} has {w[i].item()!r} "
            f"({int(wrong.sum())} of {wrong.size} differ in their bits)"
        )


def within(what: str, got: Any, want: Any, bound: Any) -> None:
    """Assert ``|got - want| <= bound``, element by element, and equal shapes."""
    a, w = (np.asarray(x).astype(np.float64) for x in (got, want))
    assert a.shape == w.shape, f"{what}: shape {a.shape}; the reference has {w.shape}"
    limit = np.broadcast_to(bound, w.shape).reshape(-1)
    wrong = ~(np.abs(a - w).reshape(-1) <= limit)
    if wrong.any():
        i = int(np.flatnonzero(wrong)[0])
        raise AssertionError(
            f"{what}: element {i} is {a.reshape(-1)[i].item()!r}; the reference has "
            f"{w.reshape(-1)[i].item()!r} (allowed difference: {float(limit[i]):.2g})"
        )


def unit(dtype: str) -> float:
    """Return the spacing of numbers at 1."""
    return float(info(dtype).eps)
