"""What lifting has in common on every backend: casts, cached lifts, and reductions in a fixed order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import polyopt.scalar as host
from polyopt.backend import Arrays, Backend, Lifted, Scalars
from polyopt.ops import Array
from polyopt.reductions import finite
from polyopt.rule import Leafwise, Slot
from polyopt.trace import Program, evaluate


def cast(backend: Backend, x: Array, dtype: str) -> Array:
    """``x`` in ``dtype``; ``x`` itself where it is already."""
    if backend.dtype_name(x) == dtype:
        return x
    return backend.ops.astype(x, backend.dtype(dtype))


def full_like(backend: Backend, leaf: Array, value: float, dtype: str) -> Array:
    """A constant with the shape and device of ``leaf``."""
    return backend.ops.full_like(backend.stop_gradient(leaf), value, dtype=backend.dtype(dtype))


def initial(backend: Backend, leaf: Array, slot: Slot, dtype: str) -> Any:
    """The initial value of ``slot`` for ``leaf``; a scalar slot is a float."""
    if slot.shape == "scalar":
        return float(slot.init)
    if slot.init == "param":
        return backend.ops.astype(backend.stop_gradient(leaf), backend.dtype(dtype), copy=True)
    return full_like(backend, leaf, float(slot.init), dtype)


@lru_cache(maxsize=512)
def lifted(backend: Backend, program: Program, compiled: bool) -> Lifted:
    """``backend.lift``, once for every program."""
    return backend.lift(program, compiled=compiled)


def evaluate_leaves(
    backend: Backend,
    xp: Any,
    program: Program,
    arrays: Arrays,
    scalars: Scalars,
    dtype: str,
    call: Callable[[str, tuple[Any, ...]], Any] | None = None,
) -> dict[str, list[Array]]:
    """A program op by op over a list of leaves: the reference lift, and the body of the compiled ones.

    ``scalars`` are 0-d arrays of ``dtype`` here, constants included.
    """
    outputs: dict[str, list[Array]] = {name: [] for name, _ in program.outputs}
    for i in range(len(arrays["p"])):
        leaf = {name: arrays[name][i] for name in program.arrays}
        inputs = {n: cast(backend, x, dtype) for n, x in leaf.items() if n in program.used}
        results = evaluate(program, xp, {**scalars, **inputs}, call=call)
        shape = leaf["p"].shape
        for name, value in results.items():
            if tuple(value.shape) != tuple(shape):
                value = xp.broadcast_to(value, tuple(shape))
            like = backend.dtype_name(leaf[name]) if name in leaf else dtype
            outputs[name].append(cast(backend, value, like))
    return outputs


def leafwise(
    backend: Backend, rule: Leafwise, compiled: bool
) -> Callable[[Arrays, Scalars, str], dict[str, list[Array]]]:
    """Lift a leafwise rule: its leaf function on every leaf, compiled as one function where possible.

    Its outputs are the next slots and ``"update"``, in the compute dtype.
    """
    from types import SimpleNamespace

    def constant(x: Array) -> Array:
        # PyTorch would keep every step's graph alive through a parameter that requires gradients.
        return x if backend.is_traced(x) else backend.stop_gradient(x)

    def run(xp: Any, arrays: Arrays, scalars: Scalars, dtype: str) -> dict[str, list[Array]]:
        outputs: dict[str, list[Array]] = {}
        c = SimpleNamespace(**scalars)
        names = [slot.name for slot in rule.slots() if slot.shape == "like"]
        for i in range(len(arrays["p"])):
            wide = {n: cast(backend, constant(x[i]), dtype) for n, x in arrays.items()}
            slots = {n: wide[n] for n in names}
            update, new = rule.leaf(xp, wide["g"], wide["p"], slots, c)
            result = {n: cast(backend, new[n], backend.dtype_name(arrays[n][i])) for n in names}
            for name, value in (result | {"update": update}).items():
                outputs.setdefault(name, []).append(value)
        return outputs

    return _by_dtype(backend, run, compiled)


def _by_dtype(backend: Backend, run: Callable[..., Any], compiled: bool) -> Callable[..., Any]:
    if not compiled:
        return lambda arrays, scalars, dtype: run(backend.ops, arrays, scalars, dtype)

    @lru_cache(maxsize=2)
    def of(dtype: str) -> Callable[..., Any]:
        return backend.compile(lambda xp, arrays, scalars: run(xp, arrays, scalars, dtype), exact=True)

    return lambda arrays, scalars, dtype: of(dtype)(arrays, scalars)


def all_finite(backend: Backend, leaves: Sequence[Array]) -> Array:
    """A 0-d bool: whether no element of any leaf is inf or NaN."""
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
