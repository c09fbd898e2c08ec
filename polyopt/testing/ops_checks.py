"""A case for every operation of ``Ops``: one without a check is *missing*, not forgotten."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from polyopt.core.ops import Ops
from polyopt.testing import ops_arrays, ops_creation, ops_elementwise, ops_shapes
from polyopt.testing.case import Case, Context, Missing
from polyopt.testing.ops_inputs import dtypes_of
from polyopt.testing.ops_scalar import ELEMENTWISE

Check = Callable[[Context, str], str | None]


def operations(protocol: type = Ops) -> tuple[str, ...]:
    """Return the names that the protocol declares: functions and dtypes."""
    return tuple(sorted(name for name in vars(protocol) if not name.startswith("_")))


def known_checks() -> dict[str, Check]:
    """Return the check of each operation, by name."""
    return {
        **dict.fromkeys(ELEMENTWISE, ops_elementwise.check),
        **ops_arrays.checks(),
        **ops_shapes.CHECKS,
        **ops_creation.CHECKS,
    }


def cases(protocol: type = Ops) -> Iterator[Case]:
    """Yield a case for each operation, and one for subnormals."""
    checks = known_checks()
    for name in operations(protocol):
        yield Case("ops", name, partial(_run, name, checks.get(name)))
    yield Case("ops", "(subnormals)", subnormals)


def _run(name: str, check: Check | None, context: Context) -> str | None:
    if check is None:
        raise Missing(f"polyopt.core.ops.Ops declares {name!r}, but the kit has no check for it")
    if not hasattr(context.backend.ops, name):
        raise Missing(f"backend {context.backend.name!r} has no ops.{name}")
    return check(context, name)


def subnormals(context: Context) -> str:
    """Tell, without demanding it, if arithmetic keeps subnormal numbers or flushes them to zero."""
    backend, found = context.backend, []
    for dtype in dtypes_of(backend, ("float32", "float64")):
        small = np.array([np.finfo(dtype).smallest_normal / 4], dtype=dtype)
        x = backend.from_numpy(small)
        kept = bool(np.asarray(backend.to_numpy(backend.ops.add(x, x)))[0] != 0)
        found.append(f"{dtype}: {'kept' if kept else 'flushed to zero'}")
    return ", ".join(found)
