"""Lift programs once each, give slots their initial values, and evaluate scalars of a traced step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import polyopt.core.scalars as host
from polyopt.backend.evaluate import full_like
from polyopt.backend.protocol import Backend, Lifted
from polyopt.core.errors import InputError
from polyopt.core.ops import Array
from polyopt.core.reductions import finite
from polyopt.core.rule import Slot
from polyopt.core.trace import Program
from polyopt.engine.checks import LARGEST


def initial(backend: Backend, leaf: Array, slot: Slot, dtype: str) -> Any:
    """Make the initial value of ``slot`` for ``leaf``; a scalar slot is a float.

    Raises
    ------
    InputError
        For a finite value that ``dtype`` can't hold: frameworks differ in what they make of it.
    """
    if slot.shape == "scalar":
        return float(slot.init)
    if slot.init == "param":
        return backend.ops.astype(backend.stop_gradient(leaf), backend.dtype(dtype), copy=True)
    if LARGEST[dtype if dtype in LARGEST else "float64"] < abs(slot.init) < math.inf:
        raise InputError(f"slot {slot.name!r} starts at {slot.init!r}, which is beyond {dtype}")
    return full_like(backend, leaf, float(slot.init), dtype)


@lru_cache(maxsize=512)
def lifted(backend: Backend, program: Program, compiled: bool) -> Lifted:
    """Return ``backend.lift``, once for every program."""
    return backend.lift(program, compiled=compiled)


def all_finite(backend: Backend, leaves: Sequence[Array]) -> Array:
    """Return a 0-d bool: True if no element of any leaf is inf or NaN."""
    return _all_finite(backend)(list(leaves)) if leaves else backend.ops.asarray(True)


@lru_cache(maxsize=16)
def _all_finite(backend: Backend) -> Callable[[list[Array]], Array]:
    # Exact, for the operations of one pass over host memory come with it.
    return backend.compile(finite, exact=True)


class TracedScalars:
    """Scalar arithmetic where the step is traced: the framework's operations, taking floats as well.

    What depends on floats alone stays in double precision on the host: log(0.999) of a float32 0.999 is off
    by 1.3e-5.
    """

    pi = 3.141592653589793

    def __init__(self, backend: Backend, dtype: str) -> None:
        self._ops, self._dtype = backend.ops, backend.dtype(dtype)

    def __getattr__(self, op: str) -> Callable[..., Array]:
        function, on_host = getattr(self._ops, op), getattr(host, op, None)

        def apply(*args: Any) -> Any:
            if on_host is not None and all(isinstance(a, bool | int | float) for a in args):
                return on_host(*args)
            return function(*(self._scalar(a) for a in args))

        return apply

    def _scalar(self, x: Any) -> Array:
        if isinstance(x, bool):
            return self._ops.asarray(x)
        if isinstance(x, int | float):
            return self._ops.asarray(float(x), dtype=self._dtype)
        return x
