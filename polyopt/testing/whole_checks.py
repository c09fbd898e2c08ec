"""Check a backend's packed buffers and compiled training steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from polyopt.testing.case import Context
from polyopt.testing.compare_arrays import check_values
from polyopt.testing.ops_inputs import dtypes_of, host_dtype

SHAPES: Final = ((2, 3), (2, 3), (), (4,), (0, 2), (2, 3))


def joining(context: Context) -> None:
    """Return ``split`` undoes ``join`` in every floating dtype and every shape; no bit is changed."""
    backend = context.backend
    for d in dtypes_of(backend, ("float32", "float64", "bfloat16", "float16")):
        host = [np.full(shape, i + 0.5, dtype=host_dtype(d)) for i, shape in enumerate(SHAPES)]
        whole = backend.join([backend.from_numpy(x) for x in host])
        flat = np.concatenate([x.reshape(-1) for x in host])
        assert backend.dtype_name(whole) == d, f"join({d}) has dtype {backend.dtype_name(whole)}"
        check_values(f"join({d})", np.asarray(backend.to_numpy(whole)), flat, dtype=d)
        parts = backend.split(whole, SHAPES)
        assert len(parts) == len(SHAPES), f"split gave {len(parts)} arrays; expected {len(SHAPES)}"
        for part, x in zip(parts, host, strict=True):
            assert tuple(part.shape) == x.shape, f"split gave {tuple(part.shape)}; expected {x.shape}"
            check_values(f"split({d})", np.asarray(backend.to_numpy(part)), x, dtype=d)


def joining_gradient(context: Context) -> None:
    """Check the gradients of a loss of split parts, and of joined ones, compiled and not."""
    backend = context.backend
    x = np.arange(1.0, 8.0)

    def of_parts(xp: Any, p: Any) -> Any:
        a, b, _ = backend.split(p, ((2, 2), (2,), (1,)))
        return xp.add(xp.sum(xp.square(a)), xp.multiply(xp.sum(b), 3.0))

    def of_joined(xp: Any, p: Any) -> Any:
        return xp.sum(xp.square(backend.join([p["a"], p["b"]])))

    for compiled in (False, True):
        _, g = backend.value_and_grad(of_parts, compiled=compiled)(backend.from_numpy(x))
        want = np.concatenate([2 * x[:4], [3.0, 3.0, 0.0]])
        check_values("gradient through split", np.asarray(backend.to_numpy(g)), want, dtype="float64")
        tree = {"a": backend.from_numpy(x.reshape(7, 1)), "b": backend.from_numpy(x[:2])}
        _, found = backend.value_and_grad(of_joined, compiled=compiled)(tree)
        for name, value in (("a", 2 * x.reshape(7, 1)), ("b", 2 * x[:2])):
            got = np.asarray(backend.to_numpy(found[name]))
            check_values("gradient through join", got, value, dtype="float64")


def whole_step(context: Context) -> str | None:
    """Return ``whole``: the loss, and an update in NumPy's bits from the gradients; it compiles once."""
    backend, calls = context.backend, [0]

    def loss(xp: Any, params: Any, k: Any) -> Any:
        return xp.sum(xp.multiply(xp.square(params["w"]), k))

    def update(xp: Any, arrays: Any, gradients: Any, vectors: Any) -> Any:
        calls[0] += 1
        c = vectors["float32"][0]
        momentum = xp.add(xp.multiply(arrays["slots"]["m"]["w"], c), gradients["w"])
        moved = xp.subtract(arrays["params"]["w"], xp.multiply(momentum, c))
        return {"arrays": {"params": {"w": moved}, "slots": {"m": {"w": momentum}}}}

    run = backend.whole(loss, update)
    if run is None:
        return "no compiled step: value_and_grad, then the lift"
    rng = np.random.default_rng(0)
    w, m = (rng.normal(size=(33,)).astype(np.float32) for _ in range(2))
    arrays = {"params": {"w": backend.from_numpy(w)}, "slots": {"m": {"w": backend.from_numpy(m)}}}
    for i in range(3):
        c = np.float32(0.1 + i)
        # A power of two: the gradient itself is then the same, however the framework computes it.
        k = np.float32(0.5)
        value, out = run(arrays, {"float32": np.array([c, 0.0], np.float32)}, (backend.from_numpy(k),))
        assert tuple(value.shape) == (), f"the loss has shape {tuple(value.shape)}; expected ()"
        arrays = out["arrays"]
        m = m * c + w
        w = w - m * c
        for name, got, want in (("m", arrays["slots"]["m"]["w"], m), ("w", arrays["params"]["w"], w)):
            check_values(f"whole: {name}", np.asarray(backend.to_numpy(got)), want, dtype="float32")
    assert calls[0] == 1, f"whole traced the update {calls[0]} times in three steps of one shape; expected 1"
    return None


CHECKS: Final[tuple[Callable[[Context], str | None], ...]] = (joining, joining_gradient, whole_step)
