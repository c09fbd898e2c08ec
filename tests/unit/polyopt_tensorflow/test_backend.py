"""What only TensorFlow has: variables, graphs, XLA, retracing, and a quiet import."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

import numpy as np
import pytest

from polyopt import SGD, Adam, ClipByGlobalNorm, Optimizer, chain
from polyopt.backend import registry
from polyopt.backend.protocol import Backend
from polyopt.core.errors import InputError
from polyopt.testing import assert_close, assert_same_bits

backend_module = pytest.importorskip("polyopt_tensorflow")
tf = pytest.importorskip("tensorflow")

GRAPH = "float32 scalars of a traced step, and Grappler's or XLA's rewrites: a few ulps a step"


@pytest.fixture
def backend() -> Backend:
    return registry.by_name("tensorflow")


def problem() -> tuple[dict, dict]:
    rng = np.random.default_rng(0)
    params = {k: tf.constant(rng.standard_normal(s), tf.float32) for k, s in (("a", ()), ("b", (3, 4)))}
    return params, {k: 0.5 * x + 1 for k, x in params.items()}


def test_the_import_prints_nothing() -> None:
    code = "import polyopt_tensorflow as t; t.backend.ops.sqrt(t.backend.ops.asarray(2.0))"
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout + done.stderr == ""


def test_from_numpy_copies(backend: Backend) -> None:
    host = np.ones(4096, dtype="float32")
    made = [backend.from_numpy(host), backend.ops.asarray(host)]
    host[:] = 2
    for x in made:
        assert_same_bits(x, np.ones(4096, dtype="float32"))


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
        "a/sqrt(b)": lambda x, a, b, c, s: x.divide(a, x.sqrt(b)),
        "(a/b)/c": lambda x, a, b, c, s: x.divide(x.divide(a, b), c),
        "a/(b/c)": lambda x, a, b, c, s: x.divide(a, x.divide(b, c)),
        "a/s": lambda x, a, b, c, s: x.divide(a, s),
        "a/3": lambda x, a, b, c, s: x.divide(a, 3.0),
        "adam": lambda x, a, b, c, s: x.divide(x.divide(a, s), x.add(x.sqrt(x.divide(b, s)), c)),
    }
    shapes = [(501,), (501,), (501,), ()]
    for dtype in ("float32", "float64"):
        host = [np.abs(rng.standard_normal(s)).astype(dtype) + np.asarray(0.1, dtype) for s in shapes]
        args = [backend.from_numpy(x) for x in host]
        for name, formula in formulas.items():
            expected = formula(np, *host)
            assert_same_bits(backend.compile(formula, exact=True)(*args), expected, what=f"{name}, compiled")
            assert_same_bits(formula(backend.ops, *args), expected, what=f"{name}, eager")


@pytest.mark.parametrize("variables", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_gradients(backend: Backend, compiled: bool, variables: bool) -> None:
    traces = []

    def loss(xp, p, x, scale):
        traces.append(0)
        rows = xp.take(p["table"], xp.asarray([1, 1]), axis=0)
        return scale * xp.sum(xp.square(xp.matmul(x, p["w"]))) + xp.sum(rows)

    make = tf.Variable if variables else tf.constant
    params = {"w": make([1.0, -2.0]), "table": make([[1.0], [2.0]]), "unused": make([1.0]), "absent": None}
    x = tf.constant([[1.0, 2.0], [3.0, 4.0]])
    f = backend.value_and_grad(loss, compiled=compiled)
    for scale in (1.0, 2.0, 3.0):
        value, grads = f(params, x, scale)
    assert len(traces) == (1 if compiled else 3)
    exact = "small integers are exact"
    assert_close(value, 3 * 34.0 + 4, because=exact)
    assert_close(grads["w"], 3 * 2 * np.array([-18.0, -26.0]), because=exact)
    assert_close(grads["table"], [[0.0], [2.0]], because="a row that is taken twice counts twice")
    assert_close(grads["unused"], [0.0], because="the loss does not use it")
    assert grads["absent"] is None
    with pytest.raises(InputError, match="'n' has dtype int32"):
        backend.value_and_grad(lambda xp, p: xp.sum(p["n"]), compiled=compiled)({"n": tf.constant([1])})
    with pytest.raises(InputError, match="expected a 0-d array"):
        backend.value_and_grad(lambda xp, p: p["w"], compiled=compiled)({"w": tf.constant([1.0])})


@pytest.mark.parametrize("compiled", [False, True])
def test_donated_variables_come_back_themselves(backend: Backend, compiled: bool) -> None:
    params, grads = problem()
    optimizer = Optimizer(Adam(lr=0.1), compiled=compiled)
    expected, _ = optimizer.step(params, grads, optimizer.init(params))
    variables = {k: tf.Variable(x) for k, x in params.items()}
    state = optimizer.init(variables)
    kept, _ = optimizer.step(variables, grads, state)
    for name in params:
        assert_same_bits(variables[name], params[name], what="not donated")
        assert_same_bits(kept[name], expected[name])
    given, _ = optimizer.step(variables, grads, state, donate=True)
    for name in params:
        assert given[name] is variables[name]
        assert_same_bits(variables[name], expected[name])


def test_the_second_step_traces_nothing(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    import polyopt_tensorflow.lift as lift

    params, grads = problem()
    traces = []
    real = lift.evaluate_leaves
    monkeypatch.setattr(lift, "evaluate_leaves", lambda *a, **k: traces.append(0) or real(*a, **k))
    state = Optimizer(SGD(lr=0.1, momentum=0.9)).init(params)
    for i in range(5):
        optimizer = Optimizer(SGD(lr=0.1 * (i + 1), momentum=0.9))
        params, state = optimizer.step(params, {k: x + 0 for k, x in grads.items()}, state)
    assert len(traces) <= 1


@pytest.mark.parametrize("xla", [False, True])
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
def test_inside_the_users_function(backend: Backend, rule, options, xla) -> None:
    start, grads = problem()
    optimizer = Optimizer(rule, **options)
    params, state = start, optimizer.init(start)
    graph, traced_state = start, tf.nest.map_structure(tf.convert_to_tensor, optimizer.init(start))
    traces = []

    @tf.function(jit_compile=xla, autograph=False)
    def step(p, g, s):
        traces.append(0)
        return optimizer.step(p, g, s)

    for _ in range(6):
        params, state = optimizer.step(params, grads, state)
        graph, traced_state = step(graph, grads, traced_state)
    assert len(traces) == 1
    assert int(traced_state["step"]) == state["step"]
    for name in params:
        assert_close(graph[name], params[name], rtol=2e-6, atol=2e-6, because=GRAPH)


def test_variables_inside_the_users_function(backend: Backend) -> None:
    params, grads = problem()
    optimizer = Optimizer(SGD(lr=0.5))
    variables = {k: tf.Variable(x) for k, x in params.items()}
    state = optimizer.init(params)
    tf.function(lambda g: optimizer.step(variables, g, state, donate=True)[1]["step"], autograph=False)(grads)
    expected, _ = optimizer.step(params, grads, state)
    for name in params:
        assert_close(variables[name], expected[name], rtol=1e-6, because=GRAPH)


def test_special_values_of_the_ops(backend: Backend) -> None:
    xp, nan, inf = backend.ops, float("nan"), float("inf")
    x = xp.asarray([nan, inf, -0.0, 2.5, -2.5])
    assert_same_bits(xp.round(x), np.float32([nan, inf, -0.0, 2, -2]))
    assert_same_bits(xp.sign(x), np.sign(np.float32([nan, inf, -0.0, 2.5, -2.5])))
    assert_same_bits(xp.argmax(xp.asarray([inf, nan, inf])), np.int64(1))
    assert_same_bits(xp.clip(x, -1.0, 1.0), np.float32([nan, 1, -0.0, 1, -1]))
    assert bool(xp.isnan(xp.max(x)))
    assert xp.sum(xp.asarray([100, 100], dtype=xp.int8)).dtype == xp.int64
    assert_same_bits(xp.take(xp.asarray([1.0, 2.0]), xp.asarray([-1]), axis=0), np.float32([2]))
    with pytest.raises(ValueError, match="no elements"):
        xp.max(xp.zeros((0, 3)), axis=0)
    assert xp.add(xp.asarray([1.0]), xp.asarray([1.0], dtype=xp.float64)).dtype == xp.float64
    assert xp.multiply(xp.asarray([1], dtype=xp.int8), 2.5).dtype == xp.float32


def test_stacked_small_leaves_keep_their_bits_and_places(backend: Backend) -> None:
    rng = np.random.default_rng(3)
    shapes = [(3,), (), (200, 200), (3,), (2, 2), (3,), (), (3,), (0, 3), (3,)]
    host = {f"p{i}": rng.standard_normal(s).astype("float32") for i, s in enumerate(shapes)}
    host["half"] = np.ones(3, dtype="float16")
    params = {k: backend.from_numpy(x) for k, x in host.items()}
    results = []
    for start, compiled in ((params, True), (host, False)):
        optimizer = Optimizer(Adam(lr=0.1), compiled=compiled)
        moved, state = optimizer.step(start, start, optimizer.init(start))
        results.append((moved, state["slots"]["exp_avg_sq"]))
    for got, want in zip(*results, strict=True):
        for name in host:
            assert_same_bits(got[name], want[name], what=name)


def variables_of_all_sizes() -> tuple[dict, dict]:
    """Alone and small, small and many enough to be stacked, too many for one function, and large."""
    rng = np.random.default_rng(5)
    shapes = {"scalar": (), "large": (200, 200), "empty": (0, 3)}
    shapes |= {f"few{i}": (3,) for i in range(5)} | {f"many{i}": (2, 2) for i in range(300)}
    host = {k: rng.standard_normal(s).astype("float32") for k, s in shapes.items()}
    return host, {k: tf.Variable(x) for k, x in host.items()}


def test_variables_given_up_are_written_and_nothing_else(backend: Backend) -> None:
    host, variables = variables_of_all_sizes()
    before = {k: tf.convert_to_tensor(x) for k, x in variables.items()}  # may share a variable's memory
    optimizer = Optimizer(Adam(lr=0.1))
    expected, wanted = optimizer.step(host, host, optimizer.init(host))
    moved, state = optimizer.step(variables, before, optimizer.init(variables), donate=True)
    for name, x in host.items():
        assert moved[name] is variables[name]
        assert_same_bits(moved[name], expected[name], what=name)
        assert_same_bits(state["slots"]["exp_avg_sq"][name], wanted["slots"]["exp_avg_sq"][name], what=name)
        assert_same_bits(before[name], x, what=f"{name}, read before")


def test_variables_given_up_are_let_go(backend: Backend) -> None:
    _, variables = variables_of_all_sizes()
    optimizer = Optimizer(SGD(lr=0.5))
    optimizer.step(variables, dict(variables), optimizer.init(variables), donate=True)
    watched = [weakref.ref(x) for x in variables.values()]
    variables.clear()
    gc.collect()
    assert not any(ref() is not None for ref in watched)


def test_variables_given_up_under_a_tape(backend: Backend) -> None:
    _, variables = variables_of_all_sizes()
    optimizer = Optimizer(SGD(lr=0.5))
    with tf.GradientTape() as tape:
        loss = tf.add_n([tf.reduce_sum(x * x) for x in variables.values()])
        grads = {k: tf.ones_like(x) for k, x in variables.items()}
        before = {k: x.numpy() for k, x in variables.items()}
        optimizer.step(variables, grads, optimizer.init(variables), donate=True)
    for name, g in tape.gradient(loss, variables).items():
        assert_same_bits(g, 2 * before[name], what=name)
