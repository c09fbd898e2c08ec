"""The driver at its edges: memory given up, steps inside the user's functions, odd trees and states."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

from polyopt import EMA, SGD, Adam, ClipByNorm, Optimizer, apply, averaged, chain, partition
from polyopt.backend import registry
from polyopt.backend.protocol import Backend
from polyopt.core.errors import InputError
from polyopt.testing import assert_close, assert_same_bits


def test_gradients_in_another_order() -> None:
    params = {"a": np.zeros(3), "b": np.ones(2)}
    grads = OrderedDict(b=np.full(2, 2.0), a=np.ones(3))
    new, _ = Optimizer(SGD(lr=1.0)).step(params, grads, Optimizer(SGD(lr=1.0)).init(params))
    assert new["a"].tolist() == [-1.0, -1.0, -1.0]
    assert new["b"].tolist() == [-1.0, -1.0]


@pytest.mark.parametrize("rule", [SGD(lr=1.0), partition({".*": None})])
def test_nothing_to_train_while_accumulating(rule: Any) -> None:
    params = {} if isinstance(rule, SGD) else {"w": np.ones(2)}
    opt = Optimizer(rule, accumulate=2)
    state = opt.init(params)
    for _ in range(2):
        params, state = opt.step(params, dict.fromkeys(params), state)
    assert (state["step"], state["micro_step"]) == (1, 0)


def test_a_state_of_something_else_is_refused_by_name() -> None:
    params = {"w": np.ones(2)}
    with pytest.raises(InputError, match="no slot 'exp_avg'"):
        Optimizer(Adam()).step(params, params, Optimizer(SGD(lr=1.0)).init(params))
    with pytest.raises(InputError, match=r"'exp_avg' has no leaf 'w'.*'v'"):
        Optimizer(Adam()).step(params, params, Optimizer(Adam()).init({"v": np.ones(2)}))
    with pytest.raises(InputError, match=r"'micro_step'.*accumulate = 2"):
        Optimizer(SGD(lr=1.0), accumulate=2).step(params, params, Optimizer(SGD(lr=1.0)).init(params))


@pytest.mark.parametrize("compiled", [True, False])
def test_a_last_leafwise_stage_writes_in_place(compiled: bool) -> None:
    import torch

    opt = Optimizer(chain(SGD(lr=1.0), ClipByNorm(1.0)), compiled=compiled)
    w, s = torch.nn.Parameter(torch.zeros(2)), np.array(1.0)
    (kept,), state = opt.step([w], [torch.tensor([3.0, 4.0])], opt.init([w]))
    assert kept.requires_grad
    assert kept.is_leaf
    assert_close(kept, [-0.6, -0.8], rtol=1e-7, because="the update has norm 1")
    (given,), _ = opt.step([w], [torch.tensor([3.0, 4.0])], state, donate=True)
    assert given is w
    assert_same_bits(w, kept)
    (scalar,), _ = opt.step([s], [np.array(0.5)], opt.init([s]))
    assert isinstance(scalar, np.ndarray)
    update, _ = Optimizer(ClipByNorm(1.0)).update([w], opt.init([w]), [w])
    assert not update[0].requires_grad


def test_a_backward_through_overwritten_parameters_is_refused() -> None:
    import torch

    w = torch.nn.Parameter(torch.ones(10_000))
    loss = (w * w).sum()
    opt = Optimizer(SGD(lr=1.0))
    opt.step([w], [torch.ones(10_000)], opt.init([w]), donate=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def in_user_function(backend: Backend, function: Any) -> Any:
    """``function`` in the user's own jit or tf.function."""
    if backend.name == "jax":
        import jax

        return jax.jit(function)
    import tensorflow as tf

    return tf.function(function, autograph=False)


@pytest.mark.parametrize("name", ["jax", "tensorflow"])
@pytest.mark.parametrize(("accumulate", "nonfinite"), [(1, "skip"), (2, "propagate"), (2, "skip")])
def test_a_missing_gradient_where_a_traced_flag_decides(name: str, accumulate: int, nonfinite: Any) -> None:
    backend = registry.by_name(name)
    opt = Optimizer(SGD(lr=1.0), accumulate=accumulate, nonfinite=nonfinite)
    one = backend.from_numpy(np.ones(2, np.float32))
    params, state = {"a": one, "b": one}, opt.init({"a": one, "b": one})
    traced = {k: backend.from_numpy(np.asarray(v, np.int32)) for k, v in state.items() if isinstance(v, int)}
    if accumulate > 1:
        traced["accumulated"] = {k: backend.from_numpy(np.asarray(0, np.int32)) for k in params}
    step = in_user_function(backend, lambda p, s: opt.step(p, {"a": one, "b": None}, s))
    state |= traced
    for _ in range(accumulate):
        params, state = step(params, state)
    assert backend.to_numpy(params["a"]).tolist() == [0.0, 0.0]
    assert backend.to_numpy(params["b"]).tolist() == [1.0, 1.0]
    assert int(state["missed"]["b"]) == 1


def test_jax_gives_up_memory_where_a_traced_flag_decides() -> None:
    import jax
    import jax.numpy as jnp

    opt = Optimizer(SGD(lr=1.0), nonfinite="skip")
    step = jax.jit(lambda p, s, g: opt.step(p, g, s, donate=True))
    params = [jnp.ones(2)]
    params, state = step(params, opt.init(params), [jnp.asarray([jnp.nan, 1.0])])
    params, state = step(params, state, [jnp.ones(2)])
    assert np.asarray(params[0]).tolist() == [0.0, 0.0]
    assert int(state["step"]) == 1


@pytest.mark.parametrize(("accumulate", "nonfinite"), [(1, "skip"), (2, "propagate"), (2, "skip")])
def test_variables_get_what_a_traced_flag_decides(accumulate: int, nonfinite: Any) -> None:
    import tensorflow as tf

    opt = Optimizer(SGD(lr=1.0), accumulate=accumulate, nonfinite=nonfinite)
    w = tf.Variable([1.0, 2.0])
    state = tf.nest.map_structure(tf.convert_to_tensor, opt.init([w]))
    step = tf.function(lambda s, g: opt.step([w], [g], s, donate=True)[1], autograph=False)
    for i in range(accumulate):
        assert w.numpy().tolist() == [1.0, 2.0], f"changed before its time: micro-step {i}"
        state = step(state, tf.ones(2))
    assert w.numpy().tolist() == [0.0, 1.0]
    if nonfinite == "skip":
        step(state, tf.constant([np.inf, 1.0]))
        assert w.numpy().tolist() == [0.0, 1.0]


def test_a_tensorflow_variable_as_a_rate() -> None:
    import tensorflow as tf

    lr = tf.Variable(0.5)
    opt = Optimizer(SGD(lr=lr))
    params = [tf.ones(2)]
    params, state = opt.step(params, [tf.ones(2)], opt.init(params))
    lr.assign(0.25)
    params, state = opt.step(params, [tf.ones(2)], state)
    assert params[0].numpy().tolist() == [0.25, 0.25]
    assert opt.hyperparameters(state)["lr"] == 0.25
    assert type(opt.hyperparameters(state)["lr"]) is float


def test_every_hyperparameter_of_adam_may_be_traced() -> None:
    import jax
    import jax.numpy as jnp

    one = jnp.ones(3)

    def stepped(eps_root: Any) -> Any:
        opt = Optimizer(Adam(eps_root=eps_root))
        return opt.step(one, one, opt.init(one))[0]

    assert_close(jax.jit(stepped)(1e-8), stepped(1e-8), rtol=1e-6, because="the same formula")


def test_the_average_after_a_skipped_first_step() -> None:
    import jax
    import jax.numpy as jnp

    opt = Optimizer(chain(SGD(lr=1.0), EMA(0.5, debias=True)), nonfinite="skip")
    params = [jnp.ones(2)]
    _, state = jax.jit(lambda s, g: opt.step(params, g, s))(opt.init(params), [jnp.full(2, jnp.nan)])
    assert np.asarray(averaged(state, params)[0]).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("value", [np.float32(-1.0), [0.1], np.array([0.1, 0.2]), np.int64(-1)])
def test_numbers_of_other_kinds_are_held_to_their_range(value: Any) -> None:
    with pytest.raises(InputError, match=r"SGD: lr = .*expected a"):
        SGD(lr=value)


def test_a_rate_of_low_precision_computes_in_high_precision() -> None:
    assert type(SGD(lr=np.float32(0.1)).lr) is float


def test_an_average_that_is_not_last_is_refused() -> None:
    with pytest.raises(InputError, match=r"EMA stands before SGD for parameter 'w'; expected it last"):
        Optimizer(chain(EMA(0.9), SGD(lr=1.0))).init({"w": np.ones(2)})


@pytest.mark.parametrize("kind", [np.int64, np.complex128])
def test_a_gradient_of_another_kind_is_named(kind: Any) -> None:
    opt, params = Optimizer(SGD(lr=1.0)), {"w": np.ones(2)}
    with pytest.raises(InputError, match=r"leaf 'w': its gradient or update has dtype (int64|complex128)"):
        opt.step(params, {"w": np.ones(2, kind)}, opt.init(params))


def test_torch_parameters_go_on_requiring_gradients_through_update_and_apply() -> None:
    import torch

    opt = Optimizer(Adam(lr=0.1))
    params = {"w": torch.ones(3, requires_grad=True), "fixed": torch.ones(2)}
    state, before = opt.init(params), params["w"]
    for _ in range(3):
        torch.sum(params["w"] ** 2).backward()  # type: ignore[no-untyped-call]
        updates, state = opt.update({"w": params["w"].grad, "fixed": None}, state, params)
        params = apply(params, updates)
    assert params["w"].is_leaf
    assert params["w"].requires_grad
    assert not params["fixed"].requires_grad
    assert before.tolist() == [1.0, 1.0, 1.0]
