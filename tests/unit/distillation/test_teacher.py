"""Teachers of one framework, students of another: all pairs, and a PyTorch teacher of a JAX student."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from conftest import ALL, load
from polyopt import Adam, Optimizer, TrainStep, convert, value_and_grad
from polyopt.backend.protocol import Backend
from polyopt.core.errors import InputError
from polyopt.core.random import generator, permutation
from polyopt.distillation import SoftTargets, Teacher, TeacherLogits, transfer
from polyopt.models.initializers import Glorot, Zeros
from polyopt.models.networks import MLP, Softmax
from polyopt.testing import assert_close, assert_same_bits

DRAW = generator(0, "teachers")
X = DRAW.normal(size=(12, 6)).astype(np.float32)
W = DRAW.normal(size=(6, 4)).astype(np.float32)
ORDER = "a float32 product of six terms, in an order that frameworks choose"


def native(name: str) -> Callable[[Any], Any]:
    """A function of that framework's own: no polyopt in it."""
    if name == "torch":
        import torch

        module = torch.nn.Linear(6, 4, bias=False)
        with torch.no_grad():
            module.weight.copy_(torch.from_numpy(W.T.copy()))
        return module.eval()
    if name == "jax":
        import jax

        return jax.jit(lambda x: x @ W)  # type: ignore[no-any-return]
    if name == "tensorflow":
        import tensorflow as tf

        return tf.function(lambda x: tf.matmul(x, W))  # type: ignore[no-any-return]
    return lambda x: x @ W


@pytest.mark.parametrize("teacher_name", ALL)
def test_a_teacher_of_each_framework_for_a_student_of_each(teacher_name: str, backend: Backend) -> None:
    load(teacher_name)
    teacher = Teacher(native(teacher_name), backend=teacher_name)
    x = backend.from_numpy(X)
    logits = teacher(x)
    assert backend.is_array(logits)
    assert backend.dtype_name(logits) == "float32"
    assert backend.device_name(logits) == backend.device_name(x)
    assert_close(logits, X.astype(np.float64) @ W, rtol=1e-5, atol=1e-6, because=ORDER)
    assert_same_bits(x, X, what="the student's samples")
    # A loss of the student's takes them, and is differentiated.
    f = value_and_grad(lambda xp, p, x, v: SoftTargets(2.0, 1.0)(xp, xp.matmul(x, p["w"]), v))
    value, gradients = f({"w": backend.from_numpy(W)}, x, logits)
    assert_close(value, 0.0, atol=1e-6, because=ORDER)
    assert_close(gradients["w"], np.zeros_like(W), atol=1e-5, because=ORDER)


@pytest.mark.parametrize("teacher_name", ALL)
def test_a_model_with_parameters_teaches_too(teacher_name: str, backend: Backend) -> None:
    load(teacher_name)
    model = Softmax(6, 4, Glorot(), Zeros())
    params = model.init(0, "float32")
    teacher = Teacher(model.apply, convert(params, teacher_name))
    assert_close(teacher(backend.from_numpy(X)), X @ params["weight"], rtol=1e-5, atol=1e-6, because=ORDER)


def test_logits_cross_by_shared_memory_where_both_frameworks_can() -> None:
    numpy, torch, jax = (load(name) for name in ("numpy", "torch", "jax"))
    x = np.arange(64 * 64, dtype=np.float32).reshape(64, 64)
    for source, target in ((torch, jax), (jax, torch), (torch, numpy), (jax, numpy), (numpy, torch)):
        # The result of an operation: aligned as JAX wants it, which copies what isn't.
        made = source.ops.multiply(source.from_numpy(x), 1.0)
        moved = transfer(made, source, target, target.from_numpy(x[:1]))
        assert target.is_array(moved)
        assert_same_bits(moved, x)
        shared = np.shares_memory(source.to_numpy(made), target.to_numpy(moved))
        assert shared, f"{source.name} to {target.name} was copied"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_every_floating_dtype_crosses_all_pairs_bit_by_bit(dtype: str, backends: list[Backend]) -> None:
    for source in backends:
        x = source.from_numpy(X, dtype=dtype)
        for target in backends:
            moved = transfer(x, source, target, target.from_numpy(X[:1]))
            assert target.dtype_name(moved) == dtype
            assert_same_bits(moved, source.to_numpy(x), what=f"{source.name} to {target.name}")


def test_no_gradient_flows_into_a_teacher() -> None:
    torch = pytest.importorskip("torch")
    module = native("torch")
    student = torch.tensor(X, requires_grad=True)
    logits = Teacher(module, backend="torch")(student)
    assert not logits.requires_grad
    assert logits.grad_fn is None


def test_a_module_that_writes_into_its_input_does_not_write_into_the_student_s() -> None:
    torch = pytest.importorskip("torch")
    load("jax")
    import jax.numpy as jnp

    module = torch.nn.Sequential(torch.nn.ReLU(inplace=True), native("torch")).eval()
    x = jnp.asarray(X)
    Teacher(module, backend="torch")(x)
    assert_same_bits(x, X)


def test_a_training_module_is_refused() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(InputError, match=r"the Dropout is in training mode; expected \.eval\(\) before"):
        Teacher(torch.nn.Dropout(), backend="torch")(X)
    module = torch.nn.Dropout()
    wrapped = Teacher(torch.no_grad()(module), backend="torch")
    with pytest.raises(InputError, match="the Dropout is in training mode"):
        wrapped(X)
    module.eval()
    assert_same_bits(wrapped(X), X)


def test_inside_a_compiled_loss_of_another_framework_it_says_what_to_do() -> None:
    jax_backend = load("jax")
    teacher = Teacher(native("numpy"), backend="numpy")
    f = value_and_grad(lambda xp, p, x: xp.sum(teacher(x)) * p["a"])
    with pytest.raises(InputError, match="traced by jax, which numpy can't compute with"):
        f({"a": jax_backend.from_numpy(np.float32(1.0))}, jax_backend.from_numpy(X))
    own = Teacher(native("jax"), backend="jax")
    g = value_and_grad(lambda xp, p, x: xp.sum(own(x)) * p["a"])
    value, _ = g({"a": jax_backend.from_numpy(np.float32(1.0))}, jax_backend.from_numpy(X))
    assert_close(value, (X @ W).sum(), rtol=1e-4, atol=1e-4, because="a float32 sum of 48")


def test_the_cache_is_computed_once_in_batches(backend: Backend) -> None:
    calls, seen = [], []

    def function(x: Any) -> Any:
        calls.append(len(x))
        return x @ W

    cached = Teacher(function, backend="numpy").cache(
        backend.from_numpy(X), batch_size=5, progress=lambda done, total: seen.append((done, total))
    )
    assert calls == [5, 5, 2]
    assert seen == [(5, 12), (10, 12), (12, 12)]
    assert (len(cached), cached.classes) == (12, 4)
    batch = cached.batch([3, 0, 11], like=backend.from_numpy(X))
    assert backend.is_array(batch)
    assert_close(batch, (X @ W)[[3, 0, 11]], rtol=1e-5, because=ORDER)
    assert len(calls) == 3


def broken(row: int) -> Callable[[Any], Any]:
    def function(x: Any) -> Any:
        z = x @ W
        z[x[:, 0] == X[row, 0]] = np.nan
        return z

    return function


BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: Teacher(native("numpy")), "neither of params and backend"),
    (lambda: Teacher(native("numpy"), {"w": W}, backend="numpy"), "both of params and backend"),
    (lambda: Teacher(3, backend="numpy"), "function = 3; expected something that can be called"),  # type: ignore[arg-type]
    (
        lambda: Teacher(lambda x: [1.0], backend="numpy")(X),
        "gave a builtins.list; expected logits as an array",
    ),
    (
        lambda: Teacher(lambda x: x[:2] @ W, backend="numpy")(X),
        r"logits have shape \(2, 4\); expected \(12, classes",
    ),
    (lambda: Teacher(native("numpy"), backend="numpy").cache(X[:0]), "there are no samples"),
    (lambda: Teacher(native("numpy"), backend="numpy").cache(X.tolist()), "builtins.list is not an array"),
    (lambda: TeacherLogits(W).batch([0.5], like=X), "indices have dtype float64; expected integers"),
    (lambda: Teacher(native("numpy"), backend="numpy").cache(X, batch_size=0), "batch_size = 0"),
    (
        lambda: Teacher(broken(7), backend="numpy").cache(X, batch_size=5),
        "logits of sample 7 hold inf or NaN",
    ),
    (lambda: TeacherLogits(W).batch([6], like=X), r"index 6 is no sample; expected one in \[0, 6\)"),
]


@pytest.mark.parametrize(("act", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_bad_input_is_named(act: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        act()


def test_a_torch_teacher_distils_a_jax_student() -> None:
    """On digits: a student a quarter the size comes nearer to the teacher than the same one alone does."""
    torch = pytest.importorskip("torch")
    jax = load("jax")
    from polyopt.models.datasets import load as load_data

    data = load_data("digits")
    x, y, test = (np.asarray(a) for a in (data.x_train, data.y_train, data.x_test))
    x, test = x.astype(np.float32), test.astype(np.float32)
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    weights = dict(module.named_parameters())
    optimizer = Optimizer(Adam(lr=3e-3))
    state = optimizer.init(weights)
    for _ in range(60):
        error = torch.nn.functional.cross_entropy(module(torch.tensor(x)), torch.tensor(y))
        grads = dict(zip(weights, torch.autograd.grad(error, list(weights.values())), strict=True))
        weights, state = optimizer.step(weights, grads, state, donate=True)
    teacher = Teacher(torch.no_grad()(module.eval()), backend="torch")
    cached = teacher.cache(jax.from_numpy(x), batch_size=500)
    model = MLP(64, 10, Glorot(), Zeros(), hidden=(16,))

    def loss(xp: Any, params: Any, x: Any, logits: Any, labels: Any, alpha: Any) -> Any:
        return SoftTargets(temperature=4.0, alpha=alpha)(xp, model.apply(xp, params, x), logits, labels)

    step = TrainStep(loss, Optimizer(Adam(lr=1e-2)))

    def student(alpha: float) -> Any:
        weight = jax.from_numpy(np.float32(alpha))
        carry = step.init(convert(model.init(0, "float32"), "jax"))
        for epoch in range(4):
            order = permutation(len(x), 0, step=epoch)
            for i in range(0, 1408, 64):
                chosen = order[i : i + 64]
                batch = jax.from_numpy(x[chosen])
                logits = cached.batch(chosen, like=batch)
                carry, _ = step(carry, batch, logits, jax.from_numpy(y[chosen]), weight)
        params, _ = step.unload(carry)
        return np.asarray(model.apply(jax.ops, params, jax.from_numpy(test)))

    with torch.no_grad():
        its = module(torch.tensor(test)).numpy()

    def divergence(logits: Any) -> float:
        return float(SoftTargets(4.0, 1.0)(load("numpy").ops, logits, its))

    distilled, alone = student(0.9), student(0.0)
    assert divergence(distilled) < 0.75 * divergence(alone)
    assert (distilled.argmax(axis=1) == data.y_test).mean() > 0.9
