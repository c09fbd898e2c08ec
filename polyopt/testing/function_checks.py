"""Check what a backend does with functions: gradients, compilation, randomness, threads."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from polyopt.backend import registry
from polyopt.backend.protocol import Backend
from polyopt.testing.case import Context
from polyopt.testing.compare_arrays import check_values


def _mlp(xp: Any, params: Any, x: Any, y: Any) -> Any:
    hidden = xp.tanh(xp.add(xp.matmul(x, params["layers"][0]["w"]), params["layers"][0]["b"]))
    out = xp.add(xp.matmul(hidden, params["layers"][1]["w"]), params["layers"][1]["b"])
    return xp.mean(xp.square(xp.subtract(out, y)))


def _mlp_values() -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    sizes = ((3, 4), (4, 2))
    params = {"layers": [{"w": rng.normal(size=s), "b": rng.normal(size=s[1:])} for s in sizes]}
    return params, rng.normal(size=(5, 3)), rng.normal(size=(5, 2))


def _mlp_by_hand(params: Any, x: Any, y: Any) -> tuple[float, Any]:
    """Compute the loss and its gradient, by the chain rule on paper."""
    first, second = params["layers"]
    hidden = np.tanh(x @ first["w"] + first["b"])
    out = hidden @ second["w"] + second["b"]
    error = 2 * (out - y) / out.size
    back = (error @ second["w"].T) * (1 - hidden**2)
    grads = [{"w": x.T @ back, "b": back.sum(0)}, {"w": hidden.T @ error, "b": error.sum(0)}]
    return float(np.mean((out - y) ** 2)), {"layers": grads}


def _to(backend: Backend, tree: Any) -> Any:
    if isinstance(tree, dict):
        return {k: _to(backend, v) for k, v in tree.items()}
    return [_to(backend, v) for v in tree] if isinstance(tree, list) else backend.from_numpy(tree)


def value_and_grad(context: Context) -> None:
    """Check a small network's loss and gradient against the chain rule by hand, to 1e-12.

    Compiled and not.
    """
    backend = context.backend
    params, x, y = _mlp_values()
    loss, grads = _mlp_by_hand(params, x, y)
    for compiled in (False, True):
        f = backend.value_and_grad(_mlp, compiled=compiled)
        given = _to(backend, params)
        value, got = f(given, backend.from_numpy(x), backend.from_numpy(y))
        assert tuple(value.shape) == (), f"the loss has shape {tuple(value.shape)}; expected ()"
        a = float(np.asarray(backend.to_numpy(value)))
        assert abs(a - loss) <= 1e-12 * loss, (
            f"value_and_grad(compiled={compiled}): loss {a!r}; expected {loss!r}"
        )
        for i in range(2):
            for n in ("w", "b"):
                g = np.asarray(backend.to_numpy(got["layers"][i][n]))
                w = grads["layers"][i][n]
                assert g.shape == w.shape, (
                    f"gradient of layers.{i}.{n} has shape {g.shape}; expected {w.shape}"
                )
                assert np.abs(g - w).max() <= 1e-12, (
                    f"value_and_grad(compiled={compiled}), layers.{i}.{n}[0]: {g.reshape(-1)[0]!r}; "
                    f"expected {w.reshape(-1)[0]!r} within 1e-12"
                )
                kept = np.asarray(backend.to_numpy(given["layers"][i][n]))
                assert (kept == params["layers"][i][n]).all(), (
                    "value_and_grad changed the caller's parameters"
                )


def auxiliary_arguments(context: Context) -> None:
    """Gradients of float32 parameters are float32, of a lone array a lone array; integers are fine."""
    backend = context.backend

    def loss(xp: Any, p: Any, indices: Any) -> Any:
        return xp.sum(xp.square(xp.take(p, indices, axis=0)))

    p = backend.from_numpy(np.arange(4.0), dtype="float32")
    value, g = backend.value_and_grad(loss)(p, backend.from_numpy(np.array([1, 3, 3])))
    assert backend.dtype_name(value) == "float32", f"the loss has dtype {backend.dtype_name(value)}"
    assert backend.dtype_name(g) == "float32", f"the gradient has dtype {backend.dtype_name(g)}"
    want = np.array([0, 2, 0, 12], dtype=np.float32)
    check_values(
        "gradient of sum(take(p, [1, 3, 3])**2)", np.asarray(backend.to_numpy(g)), want, dtype="float32"
    )


def stop_gradient(context: Context) -> None:
    """Check that x * stop_gradient(x) has the gradient x."""
    backend = context.backend

    def loss(xp: Any, p: Any) -> Any:
        return xp.sum(xp.multiply(p, backend.stop_gradient(p)))

    x = np.array([1.0, -2.0, 3.0])
    _, g = backend.value_and_grad(loss, compiled=False)(backend.from_numpy(x))
    check_values("gradient of sum(p * stop_gradient(p))", np.asarray(backend.to_numpy(g)), x, dtype="float64")


def compiles_once(context: Context) -> str:
    """Check that the second call with other values of the same shapes traces nothing.

    Trees go in and come out.
    """
    backend, calls = context.backend, [0]

    def function(xp: Any, tree: Any, k: Any) -> Any:
        calls[0] += 1
        return {"sum": xp.add(tree["a"], tree["b"][0]), "scaled": [xp.multiply(tree["a"], k)]}

    f = backend.compile(function)
    made = []
    for i in range(3):
        a = np.full((3,), float(i))
        tree = {"a": backend.from_numpy(a), "b": [backend.from_numpy(a + 1)]}
        out = f(tree, backend.from_numpy(np.array(2.0)))
        made.append(calls[0])
        check_values("compile: sum", np.asarray(backend.to_numpy(out["sum"])), 2 * a + 1, dtype="float64")
        check_values(
            "compile: scaled", np.asarray(backend.to_numpy(out["scaled"][0])), 2 * a, dtype="float64"
        )
    if made == [1, 2, 3]:
        return "runs the Python function at every call: does not trace"
    assert made[1] == made[0] and made[2] == made[0], (  # noqa: PT018
        f"compile traced again for the same shapes: the function had run {made} times after three calls"
    )
    return "traces once"


def exact_compilation(context: Context) -> None:
    """Check that with ``exact=True`` a*b + c is rounded twice and roots are correct: NumPy's bits."""
    backend = context.backend

    def function(xp: Any, a: Any, b: Any, c: Any) -> Any:
        return (
            xp.add(xp.multiply(a, b), c),
            xp.sqrt(xp.multiply(a, a)),
            xp.subtract(xp.square(a), xp.multiply(b, c)),
        )

    f = backend.compile(function, exact=True)
    for d in ("float32", "float64"):
        a, b, c = (np.random.default_rng(i).normal(size=(1001,)).astype(d) for i in range(3))
        out = f(*(backend.from_numpy(x) for x in (a, b, c)))
        for text, got, want in zip(
            ("a*b + c", "sqrt(a*a)", "a**2 - b*c"),
            out,
            (a * b + c, np.sqrt(a * a), a * a - b * c),
            strict=True,
        ):
            check_values(
                f"compile(exact=True) {text} in {d}",
                np.asarray(backend.to_numpy(got)),
                want,
                dtype=d,
                inputs=(a, b, c),
            )


def randomness(context: Context) -> None:
    """Keyed draws give the same bits as on the host, whatever was drawn before."""
    from polyopt.core.random import generator

    backend = context.backend
    for d in ("float32", "float64"):
        want = generator(7, "layer.weight", 3).normal(size=(50,)).astype(d)
        generator(7, "other").normal(size=(3,))
        got = backend.from_numpy(generator(7, "layer.weight", 3).normal(size=(50,)), dtype=d)
        check_values(
            f"draw keyed by (7, 'layer.weight', 3) in {d}", np.asarray(backend.to_numpy(got)), want, dtype=d
        )


def threads(context: Context) -> None:
    """Check that steps in four threads at once, each with its own default backend, give the usual bits."""
    from polyopt import SGD, Optimizer

    backend = context.backend
    results: dict[int, Any] = {}

    def work(i: int) -> None:
        try:
            params = {"w": backend.from_numpy(np.full((9,), float(i)))}
            optimizer = Optimizer(SGD(lr=0.5))
            state = optimizer.init(params)
            for _ in range(5):
                params, state = optimizer.step(params, {"w": backend.from_numpy(np.ones((9,)))}, state)
            results[i] = np.array(backend.to_numpy(params["w"])), registry.default().name
        except Exception as e:
            results[i] = e

    started = []
    for i in range(4):
        # Each thread in a copy of this context: the backend under test need not be registered.
        started.append(threading.Thread(target=contextvars.copy_context().run, args=(work, i)))
        started[-1].start()
    for thread in started:
        thread.join(60)
    for i in range(4):
        got = results.get(i)
        assert isinstance(got, tuple), f"thread {i}: {got!r}"
        check_values(f"thread {i}", got[0], np.full((9,), i - 2.5), dtype="float64")


CHECKS: Final[tuple[Callable[[Context], str | None], ...]] = (
    value_and_grad,
    auxiliary_arguments,
    stop_gradient,
    compiles_once,
    exact_compilation,
    randomness,
    threads,
)
