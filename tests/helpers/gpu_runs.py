"""What the lift for accelerators must have the bits of, on tensors of any device.

Run as a program, under ``TRITON_INTERPRET=1``, it is the Triton kernels' test without a GPU: Triton's
interpreter runs them on the CPU. It truncates to bfloat16 where a GPU rounds: that dtype is left out there.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from helpers.edges import ROUNDINGS, rounding_edges, rounding_program

from polyopt import ClipByGlobalNorm, Optimizer, chain
from polyopt.backend import registry
from polyopt.core.rule import Elementwise
from polyopt.core.trace import BINARY, PREDICATES, UNARY, Program, Symbol, Tracer
from polyopt.engine.lift import lifted
from polyopt.optim import OPTIMIZERS
from polyopt.testing import assert_same_bits
from polyopt.testing.rules_cases import VARIANTS
from polyopt_torch import TorchBackend
from polyopt_torch.gpu import lift as gpu_lift
from polyopt_torch.gpu.lift import DeviceLift
from polyopt_torch.gpu.triton_kernel import BLOCK, EXACT, Kernel, interpreted

NUMPY, TORCH = registry.by_name("numpy"), registry.by_name("torch")
ARRAYS = ("g", "p", "m")
NUMBERS = sorted((UNARY & EXACT) - PREDICATES)
PAIRS = sorted((BINARY & EXACT) - PREDICATES)
TESTS = sorted(BINARY & PREDICATES - {"logical_and", "logical_or"})
SHAPES = ((), (1,), (0,), (0, 3), (7,), (33, 5), (BLOCK,), (2 * BLOCK + 1,), (4, BLOCK))
DTYPES = ("float32", "float64", "float16") if interpreted() else ("float32", "float64", "float16", "bfloat16")


def everything() -> Program:
    """A program that uses every operation that the kernel knows, on arrays and on scalars."""
    t = Tracer()
    g, p, m, s, r = (Symbol(t, n) for n in (*ARRAYS, "s", "r"))
    x = g
    for op in NUMBERS:
        x = x + t.emit(op, t.emit("multiply", p, s))
    for op in PAIRS:
        x = t.emit(op, x, m)
        x = t.emit(op, t.emit("where", t.emit("isfinite", x), x, p), s) + t.emit(op, r, g)
    conditions = [t.emit(op, g, p) for op in TESTS]
    conditions += [t.emit(op, m) for op in ("isnan", "isinf", "isfinite")]
    condition = conditions[0]
    for i, c in enumerate(conditions[1:]):
        condition = t.emit(("logical_and", "logical_or")[i % 2], condition, c)
        x = t.emit("where", c, x, t.emit("subtract", m, x))
    x = t.emit("where", t.emit("logical_not", condition), x, p)
    x = t.emit("where", t.emit("greater", s, 0.25), x, g)
    x = t.emit("where", t.emit("less", r, s), x * (r + s), g)
    outputs = {
        "p": x,
        "m": t.emit("maximum", m, g),
        "extra": x - p,
        "same": x,
        "number": s * s,
        "other": r * r,
    }
    return t.program(ARRAYS, ("s", "r"), outputs)


def values(rng: Any, shape: tuple[int, ...], dtype: str) -> Any:
    x = rng.normal(size=shape) * 10.0 ** rng.integers(-20, 15, size=shape)
    special = rng.choice([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-42], size=shape)
    x = np.where(rng.random(shape) < 0.1, special, x)
    with np.errstate(over="ignore"):
        return NUMPY.ops.astype(np.asarray(x), NUMPY.dtype(dtype))


@contextmanager
def by_device_lift() -> Iterator[None]:
    """Tensors in host memory take the accelerators' way as well."""

    def lift(self: Any, program: Program, *, compiled: bool = True) -> Any:
        taken = DeviceLift(program, None)  # type: ignore[arg-type]

        def run(*args: Any, **options: Any) -> Any:
            with torch.no_grad():
                found = taken(*args, **options)
            assert found is not None
            return found

        return run

    lifted.cache_clear()
    with (
        mock.patch.object(TorchBackend, "lift", lift),
        mock.patch.object(gpu_lift, "_on_host", return_value=False),
    ):
        yield
    lifted.cache_clear()


def every_operation(device: str) -> None:
    program = everything()
    rng = np.random.default_rng(0)
    mixes = [("float32",) * 3, ("float32", "bfloat16", "float16"), ("float64", "float16", "float32")]
    for kinds in [*mixes, ("float64",) * 3, ("bfloat16", "float64", "float32")]:
        if not set(DTYPES).issuperset(kinds):
            continue
        dtype = "float64" if kinds[1] == "float64" else "float32"
        host = {n: [values(rng, s, k) for s in SHAPES] for n, k in zip(ARRAYS, kinds, strict=True)}
        scalars = {"s": 0.37, "r": -1.3}
        with np.errstate(all="ignore"):
            expected = NUMPY.lift(program, compiled=False)(host, scalars, dtype)
        for donate in (False, True):
            for resident in (False, True):
                own = {n: [TORCH.from_numpy(x, device=device) for x in xs] for n, xs in host.items()}
                given = dict(scalars)
                if resident:
                    given["r"] = torch.full((), -1.3, dtype=torch.float64, device=device)  # type: ignore[assignment]
                got = TORCH.lift(program)(own, given, dtype, donate=donate)
                for name, xs in expected.items():
                    for i, x in enumerate(xs):
                        assert_same_bits(got[name][i], x, what=f"{name}[{i}] of {kinds}")
                for name in ARRAYS if not donate else ("g",):
                    for x, before in zip(own[name], host[name], strict=True):
                        assert_same_bits(x, before, what=f"the caller's {name}")
                if donate:
                    assert all(x is y for n in ("p", "m") for x, y in zip(got[n], own[n], strict=True))


def rounding(device: str) -> None:
    """Rounding to integers and signs, where they are easily wrong."""
    for dtype in ("float32", "float64"):
        x = rounding_edges(dtype)
        for op, function in ROUNDINGS.items():
            arrays = {n: [TORCH.from_numpy(x, device=device)] for n in ("g", "p")}
            got = TORCH.lift(rounding_program(op))(arrays, {"s": 0.37}, dtype)
            assert_same_bits(got["p"][0], function(x), what=f"{op} of {dtype}")


def optimizers(device: str, steps: int) -> None:
    """Every optimizer against NumPy, leaves of all dtypes, in place and not."""
    shapes = {"a": (33, 7), "b": (), "c": (0,), "d": (BLOCK + 5,), "e": (2, 3, 4)}
    rules: list[Any] = [
        OPTIMIZERS[name](lr=0.01, **variant)
        for name, variants in VARIANTS.items()
        if issubclass(OPTIMIZERS[name], Elementwise)
        for variant in variants
    ]
    rules.append(chain(ClipByGlobalNorm(1.0), OPTIMIZERS["adam"](lr=0.01)))
    for rule in rules:
        runs = []
        for backend, compiled in ((NUMPY, False), (TORCH, True)):
            rng = np.random.default_rng(1)

            def leaves(backend: Any = backend, rng: Any = rng) -> dict[str, Any]:
                return {
                    f"{k}.{d}": backend.from_numpy(
                        rng.normal(size=s) * 0.1, dtype=d, device=None if backend is NUMPY else device
                    )
                    for d in DTYPES
                    for k, s in shapes.items()
                }

            params = leaves()
            opt = Optimizer(rule, compiled=compiled)
            state = opt.init(params)
            for i in range(steps):
                params, state = opt.step(params, leaves(), state, donate=compiled and i % 3 != 0)
            runs.append((params, state["slots"]))
        for path, expected in runs[0][0].items():
            assert_same_bits(runs[1][0][path], expected, what=f"{rule}: {path}")
        for name, slots in runs[0][1].items():
            for path, expected in slots.items():
                if not isinstance(expected, float):
                    assert_same_bits(runs[1][1][name][path], expected, what=f"{rule}: {name} of {path}")


def launches(device: str) -> None:
    """All leaves of a device and its dtypes are one launch; a table is made when an address changes."""
    t = Tracer()
    program = t.program(("g", "p"), ("s",), {"p": Symbol(t, "p") - Symbol(t, "s") * Symbol(t, "g")})
    lift = DeviceLift(program, None)  # type: ignore[arg-type]

    def launch(self: Any, *args: Any) -> bool:
        counted()
        return original(self, *args)

    original = Kernel.launch
    counted = mock.Mock()
    params = [torch.ones(n, 3, device=device, requires_grad=True) for n in (5, 400, 1, 0, 70)]
    grads = [torch.ones_like(p) for p in params]
    tables = mock.patch("polyopt_torch.gpu.pointers.uploaded", wraps=gpu_lift.uploaded)
    with torch.no_grad(), mock.patch.object(Kernel, "launch", launch), tables as copies:
        for i in range(4):
            version = params[0]._version
            out = lift({"g": grads, "p": params}, {"s": 0.1 * i}, "float32", donate=True)
            assert out is not None
            assert all(x is y for x, y in zip(out["p"], params, strict=True))
            assert params[0]._version > version
        assert (counted.call_count, copies.call_count) == (4, 2)
        grads[1] = grads[1].clone()
        lift({"g": grads, "p": params}, {"s": 0.1}, "float32", donate=True)
        assert (counted.call_count, copies.call_count) == (5, 3)
        fresh = lift({"g": grads, "p": params}, {"s": 0.1}, "float32")
    assert fresh is not None
    assert all(x.requires_grad and x is not y for x, y in zip(fresh["p"], params, strict=True))


def layouts(device: str) -> None:
    """Channels last, pieces of larger tensors, shared memory: the bits of the operations one by one."""
    t = Tracer()
    program = t.program(("g", "p"), ("s",), {"p": Symbol(t, "p") - Symbol(t, "s") * Symbol(t, "g")})

    def leaves() -> dict[str, list[Any]]:
        torch.manual_seed(0)
        whole = torch.randn(50).to(device)
        last = torch.randn(2, 3, 4, 5).to(device).contiguous(memory_format=torch.channels_last)
        part = torch.randn(6, 8).to(device)[:, 1:5]
        p = [
            last.clone(),
            part,
            whole[:-1],
            whole[1:],
            torch.randn(9).to(device)[1:],
            torch.randn(3).to(device),
        ]
        g = [last.sin(), part.cos(), whole[1:], whole[:-1], p[4].clone(), p[5]]
        return {"g": g, "p": p}

    for keep in ([0], [1], [4], [0, 1, 4], [2, 3], [5], [0, 1, 2, 3, 4, 5]):
        for donate in (False, True):
            runs = []
            for compiled in (False, True):
                own = {n: [xs[i] for i in keep] for n, xs in leaves().items()}
                lift = TORCH.lift(program, compiled=True) if compiled else _reference(program)
                runs.append(lift(own, {"s": 0.3}, "float32", donate=donate)["p"])
            for i, x, y in zip(keep, *runs, strict=True):
                assert_same_bits(y, x, what=f"leaf {i} of {keep}")


def _reference(program: Program) -> Any:
    from polyopt_torch.lift import _op_by_op

    def run(*args: Any, **options: Any) -> Any:
        with torch.no_grad():
            return _op_by_op(TorchBackend(), program, *args, **options)

    return run


def main() -> None:
    """All of it, interpreted. A kernel that can't be built warns, which is an error here."""
    warnings.simplefilter("error")
    with np.errstate(all="ignore"):
        with by_device_lift():
            every_operation("cpu")
            rounding("cpu")
            layouts("cpu")
            optimizers("cpu", 2)
        launches("cpu")
    print("same bits")


if __name__ == "__main__":
    main()
