"""What only JAX has: x64 as a switch, tracers, donation, and compilations that can be counted."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polyopt import SGD, Adam, ClipByGlobalNorm, Optimizer, chain
from polyopt.backend import registry
from polyopt.backend.protocol import Backend
from polyopt.core.errors import InputError
from polyopt.testing import assert_close, assert_same_bits
from polyopt_jax.lift import BATCH, batches

CPU = "XLA compiles the user's whole function: contracted products and float32 scalars, a few ulps a step"


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Backend:
    found = registry.by_name("jax")
    found.enable_float64()
    with jax.numpy_dtype_promotion("strict"):
        yield found


def problem() -> tuple[dict, dict]:
    rng = np.random.default_rng(0)
    params = {k: jnp.asarray(rng.standard_normal(s), dtype="float32") for k, s in (("a", ()), ("b", (3, 4)))}
    return params, {k: 0.5 * x + 1 for k, x in params.items()}


def test_without_x64_nothing_is_narrowed_in_silence() -> None:
    code = """
import jax.numpy as jnp, numpy as np
from polyopt_jax import backend as b
for make in (lambda: b.from_numpy(np.zeros(2)), lambda: b.ops.zeros(2, dtype=jnp.float64),
             lambda: b.ops.asarray(np.zeros(2)), lambda: b.ops.astype(jnp.zeros(2), jnp.float64),
             lambda: b.ops.full_like(jnp.zeros(2), 1.0, dtype=jnp.float64), lambda: b.dtype("float64"),
             lambda: b.from_numpy(np.arange(2)), lambda: b.ops.sum(jnp.zeros(2), dtype=jnp.float64)):
    try:
        make()
    except ValueError as e:
        assert "enable_float64" in str(e) and "jax_enable_x64" in str(e), e
    else:
        raise SystemExit("a wide dtype passed")
assert b.from_numpy(np.zeros(2), dtype="float32").dtype == jnp.float32
b.enable_float64()
assert b.from_numpy(np.zeros(2)).dtype == jnp.float64
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_from_numpy_copies(backend: Backend) -> None:
    host = np.ones(64, dtype="float32")
    x = backend.from_numpy(host)
    host[:] = 2
    assert float(x.sum()) == 64


def test_unknown_devices_and_dtypes_are_named(backend: Backend) -> None:
    with pytest.raises(InputError, match="usable: cpu"):
        backend.device("cuda:7")
    with pytest.raises(InputError, match="did you mean 'float32'"):
        backend.dtype("float3")


def test_exact_compilation_survives_what_xla_rewrites(backend: Backend) -> None:
    rng = np.random.default_rng(1)
    formulas = {
        "a*b+c": lambda x, a, b, c, s: x.add(x.multiply(a, b), c),
        "a^2+c": lambda x, a, b, c, s: x.add(x.square(a), c),
        "ab+ac": lambda x, a, b, c, s: x.add(x.multiply(a, b), x.multiply(a, c)),
        "a/sqrt(b)": lambda x, a, b, c, s: x.divide(a, x.sqrt(b)),
        "(a/b)/c": lambda x, a, b, c, s: x.divide(x.divide(a, b), c),
        "a/(b/c)": lambda x, a, b, c, s: x.divide(a, x.divide(b, c)),
        "a/s": lambda x, a, b, c, s: x.divide(a, s),
        "a/3": lambda x, a, b, c, s: x.divide(a, 3.0),
        "adam": lambda x, a, b, c, s: x.divide(x.divide(a, s), x.add(x.sqrt(x.divide(b, s)), c)),
    }
    for dtype in ("float32", "float64"):
        host = [
            np.abs(rng.standard_normal(s)).astype(dtype) + np.asarray(0.1, dtype) for s in [501] * 3 + [()]
        ]
        args = [backend.from_numpy(x) for x in host]
        for name, formula in formulas.items():
            expected = formula(np, *host)
            assert_same_bits(backend.compile(formula, exact=True)(*args), expected, what=f"{name}, compiled")
            assert_same_bits(formula(backend.ops, *args), expected, what=f"{name}, eager")


def test_gradients(backend: Backend) -> None:
    traces = []

    def loss(xp, p, x, scale):
        traces.append(0)
        return scale * xp.sum(xp.square(xp.matmul(x, p["w"])))

    params = {"w": jnp.asarray([1.0, -2.0]), "unused": jnp.ones(3), "absent": None}
    x = jnp.asarray([[1.0, 2.0], [3.0, 4.0]])
    for compiled in (True, False):
        traces.clear()
        f = backend.value_and_grad(loss, compiled=compiled)
        for scale in (1.0, 2.0, 3.0):
            value, grads = f(params, x, scale)
        assert len(traces) == (1 if compiled else 3)
        assert_close(value, 3 * 34.0, because="small integers are exact")
        assert_close(grads["w"], 3 * 2 * np.array([-18.0, -26.0]), because="small integers are exact")
        assert_close(grads["unused"], np.zeros(3), because="the loss does not use it")
        assert grads["absent"] is None
        with pytest.raises(InputError, match="'n' has dtype int"):
            backend.value_and_grad(lambda xp, p: xp.sum(p["n"]), compiled=compiled)({"n": jnp.arange(3)})


def test_the_second_step_compiles_nothing(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    params, grads = problem()
    rules = [chain(ClipByGlobalNorm(1.0), Adam(lr=lr)) for lr in (0.1, 0.2, 0.3)]
    state = Optimizer(rules[0]).init(params)
    for i, rule in enumerate(rules):
        if i == 1:
            jax.config.update("jax_log_compiles", True)
        try:
            params, state = Optimizer(rule).step(params, grads, state, donate=True)
        finally:
            jax.config.update("jax_log_compiles", False)
    assert [r.message for r in caplog.records if "Compiling" in r.message] == []


def test_donation_gives_the_memory_up_and_only_then(backend: Backend) -> None:
    params, grads = problem()
    optimizer = Optimizer(Adam())
    state = optimizer.init(params)
    kept, _ = optimizer.step(params, grads, state)
    given, _ = optimizer.step(params, grads, state, donate=True)
    for name in params:
        assert_same_bits(given[name], kept[name])
        assert params[name].is_deleted()
        assert not grads[name].is_deleted()


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        (SGD(lr=0.1), {}),
        (Adam(lr=0.1), {}),
        (Adam(lr=0.1), {"nonfinite": "skip"}),
        (Adam(lr=0.1), {"accumulate": 3}),
        (chain(ClipByGlobalNorm(1.0), Adam(lr=0.1)), {}),
    ],
)
def test_inside_the_users_jit_and_scan(backend: Backend, rule, options) -> None:
    start, grads = problem()
    optimizer = Optimizer(rule, **options)
    params, state = start, optimizer.init(start)
    jitted, traced_state = start, optimizer.init(start)
    traces = []

    def step(p, g, s):
        traces.append(0)
        return optimizer.step(p, g, s)

    fast = jax.jit(step)
    for _ in range(12):
        params, state = optimizer.step(params, grads, state)
        jitted, traced_state = fast(jitted, grads, traced_state)
    assert len(traces) == 1
    for initial in (optimizer.init(start), jax.tree.map(jnp.asarray, optimizer.init(start))):
        carry = (start, initial)
        (scanned, end), _ = jax.lax.scan(
            lambda c, _: (optimizer.step(c[0], grads, c[1]), None), carry, length=12
        )
        assert int(end["step"]) == int(traced_state["step"]) == state["step"]
        for name in params:
            assert_close(jitted[name], params[name], rtol=2e-6, atol=2e-6, because=CPU)
            assert_close(scanned[name], params[name], rtol=2e-6, atol=2e-6, because=CPU)


def test_inside_the_users_grad_and_vmap(backend: Backend) -> None:
    params, grads = problem()
    optimizer = Optimizer(SGD(lr=0.5))
    state = optimizer.init(params)

    def after(g):
        return jnp.sum(optimizer.step(params, g, state)[0]["b"])

    assert_close(jax.grad(after)(grads)["b"], np.full((3, 4), -0.5), because="p - lr * g: a constant slope")
    many = jax.tree.map(lambda g: jnp.stack([g, 2 * g]), grads)
    out = jax.vmap(lambda g: optimizer.step(params, g, state)[0])(many)
    assert_same_bits(out["b"][0], optimizer.step(params, grads, state)[0]["b"])


def test_a_traced_counter_neither_sticks_nor_wraps(backend: Backend) -> None:
    params, grads = problem()
    optimizer = Optimizer(Adam())
    step = jax.jit(lambda p, s: optimizer.step(p, grads, s))
    state = optimizer.init(params)
    for before, after in ((2**24, 2**24 + 1), (2**31 - 1, 2**31 - 1)):
        moved, end = step(params, state | {"step": jnp.int32(before)})
        assert int(end["step"]) == after
        assert bool(jnp.isfinite(moved["b"]).all())
    assert int(step(params, state | {"step": jnp.uint32(2**31)})[1]["step"]) == 2**31 + 1
    with pytest.raises(InputError, match="expected an integer"):
        step(params, state | {"step": jnp.float32(3)})


def test_a_leaf_without_gradient_in_a_jit(backend: Backend) -> None:
    params, grads = problem()
    optimizer = Optimizer(Adam(lr=0.1))
    step = jax.jit(lambda p, s: optimizer.step(p, {"a": grads["a"], "b": None}, s))
    moved, state = step(params, optimizer.init(params))
    moved, state = step(moved, state)
    assert int(state["missed"]["b"]) == 2
    assert_same_bits(moved["b"], params["b"])
    late, _ = jax.jit(lambda p, s: optimizer.step(p, grads, s))(moved, state)
    first, _ = optimizer.step(params, grads, optimizer.init(params))
    assert_close(late["b"], first["b"], rtol=2e-6, atol=2e-7, because=CPU)


@pytest.mark.parametrize("donate", [False, True])
def test_leaves_in_batches_keep_their_bits_and_places(backend: Backend, donate: bool) -> None:
    rng = np.random.default_rng(3)
    shapes = {"scalar": (), "empty": (0, 3)} | {f"few{i}": (3,) for i in range(3)}
    shapes |= {f"many{i}": (2, 2) for i in range(201)} | {f"half{i}": (2, 2) for i in range(70)}
    host = {k: rng.standard_normal(s).astype("float32") for k, s in shapes.items()}
    host |= {k: x.astype("float16") for k, x in host.items() if "half" in k}
    params = {k: backend.from_numpy(host[k]) for k in rng.permutation(list(host))}
    grads = {k: backend.from_numpy(x) for k, x in host.items()}
    optimizer = Optimizer(Adam(lr=0.1))
    expected, wanted = Optimizer(Adam(lr=0.1), compiled=False).step(host, host, optimizer.init(host))
    moved, state = optimizer.step(params, grads, optimizer.init(params), donate=donate)
    for name in host:
        assert_same_bits(moved[name], expected[name], what=name)
        assert_same_bits(state["slots"]["exp_avg_sq"][name], wanted["slots"]["exp_avg_sq"][name], what=name)
        assert params[name].is_deleted() is donate
        assert not grads[name].is_deleted()


def test_one_function_serves_all_batches_of_a_kind() -> None:
    kinds = tuple(((2, 2) if i % 3 else (5,), "float32") for i in range(1000))
    found = [batch.members for batch in batches(kinds)]
    assert sorted(i for members in found for i in members) == list(range(1000))
    full = [members for members in found if len({kinds[i] for i in members}) == 1]
    assert len({(kinds[m[0]], len(m)) for m in full}) == 2
    assert max(map(len, found)) <= BATCH
    assert batches(()) == ()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_small_leaves_of_many_shapes_are_compiled_as_one(dtype: str) -> None:
    """By themselves they took a tenth of a second each, at the first step; the slots' zeros too."""
    rng = np.random.default_rng(0)
    shapes: list[tuple[int, ...]] = [(), (0, 3), (200, 200), *((1 + i, 3) for i in range(100))]
    host = {f"{i}": rng.standard_normal(s).astype(np.float32) for i, s in enumerate(shapes)}
    compiled = 0

    def count(event: str, _: float, **__: Any) -> None:
        nonlocal compiled
        compiled += event == "/jax/core/compile/backend_compile_duration"

    results = []
    for name in ("numpy", "jax"):
        there = registry.by_name(name)
        params = {k: there.from_numpy(x, dtype=dtype) for k, x in host.items()}
        grads = {k: there.from_numpy(np.cos(x), dtype=dtype) for k, x in host.items()}
        jax.monitoring.register_event_duration_secs_listener(count)
        try:
            opt = Optimizer(Adam(lr=0.1))
            state = opt.init(params)
            for _ in range(3):
                params, state = opt.step(params, grads, state, donate=True)
        finally:
            jax.monitoring.unregister_event_duration_listener(count)
        results.append((params, state))
    assert 0 < compiled < 10
    (p, s), (q, t) = results
    for k in host:
        assert_same_bits(q[k], p[k], what=k)
        assert_same_bits(t["slots"]["exp_avg_sq"][k], s["slots"]["exp_avg_sq"][k], what=k)
