"""Check what an update refuses before anything is written, and what can't happen in silence."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import polyopt
from polyopt import (
    SGD,
    Adam,
    AdamW,
    ClipByGlobalNorm,
    Cosine,
    NAdam,
    Optimizer,
    Plateau,
    Schedule,
    TrainStep,
    chain,
    get_backend,
    partition,
    value_and_grad,
)
from polyopt.backend.protocol import Backend
from polyopt.core.errors import InputError, UnchangedWarning
from polyopt.testing import assert_same_bits


def host(backend: Backend, x: Any) -> Any:
    return np.asarray(backend.to_numpy(x))


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("shape", [(3, 4), (1, 3), (2, 3), (12,)])
def test_slots_of_another_shape_are_refused_before_anything_is_written(
    backend: Backend, shape: tuple[int, ...], donate: bool
) -> None:
    optimizer = Optimizer(Adam(lr=0.1))
    params = {k: backend.from_numpy(np.ones((4, 3), np.float32)) for k in "ab"}
    state = optimizer.init(params)
    state["slots"]["exp_avg"]["b"] = backend.from_numpy(np.ones(shape, np.float32))
    with pytest.raises(
        InputError, match=r"'exp_avg' of leaf 'b' has shape .*; expected the parameter's \(4, 3\)"
    ):
        optimizer.step(params, params, state, donate=donate)
    for x in (params["a"], params["b"]):
        assert_same_bits(host(backend, x), np.ones((4, 3), np.float32))
    assert not host(backend, state["slots"]["exp_avg"]["a"]).any()


def test_slots_that_change_shape_after_a_step_are_refused(backend: Backend) -> None:
    """Also where steps are repeated as the one before."""
    optimizer = Optimizer(Adam(lr=0.1))
    params = {"w": backend.from_numpy(np.ones((4, 3), np.float32))}
    state = optimizer.init(params)
    for _ in range(3):
        gradients = {"w": backend.from_numpy(np.ones((4, 3), np.float32))}
        params, state = optimizer.step(params, gradients, state, donate=True)
    state["slots"]["exp_avg"]["w"] = backend.from_numpy(np.ones((3, 4), np.float32))
    with pytest.raises(InputError, match="'exp_avg' of leaf 'w'"):
        optimizer.step(params, gradients, state, donate=True)


def test_one_array_at_two_paths_is_refused_where_it_is_given_up(backend: Backend) -> None:
    x = backend.from_numpy(np.zeros(3))
    params, optimizer = {"a": x, "b": x}, Optimizer(SGD(lr=1.0))
    gradients = {k: backend.from_numpy(np.full(3, v)) for k, v in (("a", 1.0), ("b", 10.0))}
    state = optimizer.init(params)
    with pytest.raises(InputError, match="'a' and 'b' are the same array"):
        optimizer.step(params, gradients, state, donate=True)
    found, _ = optimizer.step(params, gradients, state)
    assert [host(backend, found[k])[0] for k in "ab"] == [-1.0, -10.0]


@pytest.mark.parametrize("step", [-1, "5", None, 2.5, True, np.array([1, 2])])
def test_a_step_that_is_no_count_is_refused(backend: Backend, step: Any) -> None:
    optimizer = Optimizer(Adam(lr=0.1))
    params = {"w": backend.from_numpy(np.ones(3))}
    with pytest.raises(InputError, match=r"state\['step'\] = .*; expected an integer >= 0"):
        optimizer.step(params, params, optimizer.init(params) | {"step": step})


def test_what_is_no_state_is_refused(backend: Backend) -> None:
    optimizer = Optimizer(Adam(lr=0.1))
    params = {"w": backend.from_numpy(np.ones(3))}
    state = optimizer.init(params)
    with pytest.raises(InputError, match="the state is None; expected the dict that init"):
        optimizer.step(params, params, None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"the order is step\(params, gradients, state\)"):
        optimizer.step(params, state, params)


def test_a_loop_that_never_changes_the_modules_parameters_is_noticed() -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(2, 1)
    optimizer = Optimizer(SGD(lr=0.1))
    params = dict(model.named_parameters())
    gradients = {k: torch.ones_like(v) for k, v in params.items()}
    state = optimizer.init(params)
    with pytest.warns(UnchangedWarning, match=r"the model's own parameters \('bias', …\) as they are"):
        _, state = optimizer.step(params, gradients, state)
    with pytest.raises(InputError, match=r"'bias' is as it was before the last step.*donate=True"):
        optimizer.step(params, gradients, state)


@pytest.mark.parametrize("how", ["returned", "copied", "donated", "zero"])
def test_loops_that_do_change_them_are_left_alone(how: str) -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(2, 1)
    optimizer = Optimizer(SGD(lr=0.1))
    params: Any = dict(model.named_parameters())
    gradients = {k: torch.full_like(v, 0.0 if how == "zero" else 1.0) for k, v in params.items()}
    state = optimizer.init(params)
    for _ in range(3):
        found, state = optimizer.step(params, gradients, state, donate=how == "donated")
        if how == "returned":
            params = found
        elif how == "copied":
            with torch.no_grad():
                for k, x in params.items():
                    x.copy_(found[k])


def test_variables_are_noticed_too() -> None:
    tf = pytest.importorskip("tensorflow")
    params = {"w": tf.Variable([1.0, 2.0])}
    optimizer = Optimizer(SGD(lr=0.1))
    _, state = optimizer.step(params, {"w": tf.ones(2)}, optimizer.init(params))
    with pytest.raises(InputError, match="'w' is as it was before the last step"):
        optimizer.step(params, {"w": tf.ones(2)}, state)


def test_a_first_step_inside_a_graph_leaves_nothing_of_it_behind(caplog: pytest.LogCaptureFixture) -> None:
    """Neither a graph's tensor in a cache, nor a warning of AutoGraph."""
    tf = pytest.importorskip("tensorflow")
    from polyopt.engine import execution

    execution._measurement.cache_clear()
    optimizer = Optimizer(chain(ClipByGlobalNorm(max_norm=1.25), SGD(lr=0.1)))

    @tf.function
    def inside(w: Any) -> Any:
        return optimizer.step({"w": w}, {"w": w}, optimizer.init({"w": w}))[0]["w"]

    with caplog.at_level(logging.WARNING):
        got = inside(tf.ones(3))
    assert not [r for r in caplog.records if "AutoGraph" in r.getMessage()]
    params = {"w": tf.ones(3)}
    outside, _ = optimizer.step(params, params, optimizer.init(params))
    np.testing.assert_allclose(got.numpy(), outside["w"].numpy(), rtol=1e-6)


def test_tensors_of_inference_mode_can_be_given_up() -> None:
    torch = pytest.importorskip("torch")
    with torch.inference_mode():
        params = {"w": torch.ones(3)}
        optimizer = Optimizer(SGD(lr=0.5))
        state = optimizer.init(params)
    params, state = optimizer.step(params, {"w": torch.ones(3)}, state, donate=True)
    assert params["w"].tolist() == [0.5] * 3
    assert state["step"] == 1


@pytest.mark.parametrize(
    "copied", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy], ids=["pickle", "copy"]
)
def test_optimizers_can_be_copied_after_a_step(copied: Callable[[Any], Any]) -> None:
    rule = partition({"w": chain(ClipByGlobalNorm(max_norm=1.0), AdamW(lr=Cosine(0.1, steps=9))), "b": None})
    optimizer = Optimizer(rule, nonfinite="skip")
    params = {"w": np.ones(3), "b": np.ones(1)}
    state = optimizer.init(params)
    params, state = optimizer.step(params, {"w": np.ones(3), "b": np.ones(1)}, state, donate=True)
    other = copied(optimizer)
    assert (other.rule, other.nonfinite) == (optimizer.rule, "skip")
    expected = optimizer.step(params, params, state)[0]
    assert_same_bits(other.step(params, params, state)[0]["w"], expected["w"])


MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "betas": (
        lambda: Adam(lr=0.1, betas=(0.9, 0.99)),
        "Adam has no 'betas'; it is called 'b1' and 'b2' here",
    ),
    "learning_rate": (lambda: SGD(learning_rate=0.1), "SGD has no 'learning_rate'; it is called 'lr' here"),
    "T_max": (lambda: Cosine(0.1, T_max=5), "Cosine has no 'T_max'; it is called 'steps' here"),
    "misspelt": (lambda: Adam(lr=0.1, epz=1e-8), "Adam has no 'epz'; did you mean 'eps'"),
    "params": (lambda: Adam(params=[], lr=0.1), "Adam has no 'params'; .*Optimizer"),
    "plateau": (lambda: Plateau(0.1, paitence=3), "Plateau has no 'paitence'; did you mean 'patience'"),
    "no xp": (lambda: value_and_grad(lambda p: p), r"the loss takes \(p\); expected loss\(xp, params"),
    "no xp in a step": (lambda: TrainStep(lambda p: p, Optimizer(SGD(lr=0.1))), r"the loss takes \(p\)"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_plain_mistakes_are_named(mistake: str) -> None:
    make, message = MISTAKES[mistake]
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("name", "here"),
    [
        ("ReduceLROnPlateau", "Plateau"),
        ("CosineAnnealingLR", "Cosine"),
        ("Adagrad", "AdaGrad"),
        ("adamw", "AdamW"),
    ],
)
def test_other_libraries_names_are_known(name: str, here: str) -> None:
    with pytest.raises(AttributeError, match=f"polyopt has no '{name}'; it is called '{here}' here"):
        getattr(polyopt, name)


def test_a_module_in_the_place_of_parameters_is_told_what_to_give() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(InputError, match=r"give dict\(model.named_parameters\(\)\)"):
        Optimizer(SGD(lr=0.1)).init(torch.nn.Linear(2, 1))


def test_every_public_schedule_and_rule_says_which_field_it_lacks() -> None:
    for name in polyopt.__all__:
        kind = getattr(polyopt, name)
        if isinstance(kind, type) and issubclass(kind, Schedule) and kind is not Schedule:
            with pytest.raises(InputError, match=f"{name} has no 'nonsense'"):
                kind(nonsense=1)


def test_a_mask_that_matches_nothing_is_refused() -> None:
    params = {"layer.weight": np.ones((2, 2)), "layer.bias": np.ones(2)}
    with pytest.raises(InputError, match=r"AdamW: mask = 'wieght\$' matches no parameter; .*'layer.weight'"):
        Optimizer(AdamW(mask="wieght$")).init(params)
    Optimizer(AdamW(mask="weight$")).init(params)


def _other(name: str, backend: Backend, x: Any) -> Any:
    """A slot like ``x`` that this optimizer's init would not have made."""
    if name == "dtype":
        return backend.from_numpy(np.ones((4, 3)), dtype="float64")
    if name == "narrow":
        return backend.from_numpy(np.ones((4, 3)), dtype="bfloat16")
    if name == "integers":
        return backend.from_numpy(np.ones((4, 3), np.int32))
    if name == "framework":
        other = "torch" if backend.name == "numpy" else "numpy"
        return get_backend(other).from_numpy(np.ones((4, 3), np.float32))
    return {"list": [[1.0] * 3] * 4, "number": 1.0, "none": None}[name]


SLOTS = {
    "dtype": r"slot 'exp_avg' of leaf 'b' has dtype float64; expected float32; nothing was changed",
    "narrow": r"slot 'exp_avg' of leaf 'b' has dtype bfloat16; expected float32",
    "integers": r"slot 'exp_avg' of leaf 'b' has dtype int32; expected float32",
    "framework": r"slot 'exp_avg' of leaf 'b' is a (torch.Tensor|numpy.ndarray); expected an array of \w+",
    "list": r"slot 'exp_avg' of leaf 'b' is a list; expected an array",
    "number": r"slot 'exp_avg' of leaf 'b' is a float; expected an array",
    "none": r"slot 'exp_avg' of leaf 'b' is None",
}


@pytest.mark.parametrize("after", [0, 3], ids=["at the first step", "later"])
@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("slot", SLOTS)
def test_slots_of_another_kind_are_refused_before_anything_is_written(
    backend: Backend, slot: str, donate: bool, after: int
) -> None:
    if slot == "framework":
        pytest.importorskip("torch" if backend.name == "numpy" else "numpy")
    optimizer, params = Optimizer(Adam(lr=0.1)), _parameters(backend)
    state = optimizer.init(params)
    for _ in range(after):
        params, state = optimizer.step(params, _parameters(backend), state, donate=donate)
    before = {k: np.array(host(backend, x)) for k, x in params.items()}
    values = state["slots"]["exp_avg"]
    good, values["b"] = values["b"], _other(slot, backend, values["b"])
    for change in (
        lambda: optimizer.step(params, _parameters(backend), state, donate=donate),
        lambda: TrainStep(lambda xp, p: xp.sum(p["a"]), optimizer).load(params, state),
    ):
        with pytest.raises(InputError, match=SLOTS[slot]):
            change()
    values["b"] = good
    for k, x in params.items():
        assert_same_bits(host(backend, x), before[k])


def _parameters(backend: Backend) -> dict[str, Any]:
    return {k: backend.from_numpy(np.ones((4, 3), np.float32)) for k in "ab"}


def test_gradients_that_are_held_back_are_not_lost(backend: Backend) -> None:
    params = _parameters(backend)
    held = Optimizer(Adam(lr=0.1), accumulate=2)
    params, state = held.step(params, params, held.init(params))
    with pytest.raises(InputError, match=r"holds the gradients of 1 steps? back"):
        Optimizer(Adam(lr=0.1)).step(params, params, state)
    params, state = held.flush(params, state)
    assert Optimizer(Adam(lr=0.1)).step(params, params, state)[1]["step"] == 2


def test_a_leaf_cannot_miss_more_updates_than_were_made(backend: Backend) -> None:
    optimizer, params = Optimizer(Adam(lr=0.1)), _parameters(backend)
    state = optimizer.init(params) | {"step": 2, "missed": {"a": 3}}
    with pytest.raises(InputError, match=r"\['missed'\]\['a'\] = 3; expected at most state"):
        optimizer.step(params, params, state)


def test_slots_that_are_no_dicts_are_refused(backend: Backend) -> None:
    optimizer, params = Optimizer(Adam(lr=0.1)), _parameters(backend)
    state = optimizer.init(params)
    with pytest.raises(InputError, match=r"state\['slots'\] = \[\]; expected"):
        optimizer.step(params, params, state | {"slots": []})
    slots = state["slots"] | {"exp_avg": list(state["slots"]["exp_avg"].values())}
    with pytest.raises(InputError, match="slot 'exp_avg' is a list; expected the state that"):
        optimizer.step(params, params, state | {"slots": slots})


def test_held_gradients_and_scalar_slots_are_checked_too(backend: Backend) -> None:
    params = _parameters(backend)
    optimizer = Optimizer(NAdam(lr=0.1), accumulate=2)
    state = optimizer.init(params)
    scalar = next(name for name, values in state["slots"].items() if isinstance(values["a"], float))
    for name, value, found in (
        ("grad_accumulator", backend.from_numpy(np.ones((3, 4), np.float32)), r"has shape \(3, 4\)"),
        ("grad_accumulator", backend.from_numpy(np.ones((4, 3))), "has dtype float64"),
        (scalar, "1", "is a str; expected .* or a number"),
    ):
        slots = state["slots"] | {name: state["slots"][name] | {"b": value}}
        with pytest.raises(InputError, match=f"slot '{name}' of leaf 'b' {found}"):
            optimizer.step(params, params, state | {"slots": slots})


@pytest.mark.parametrize("policy", ["skip", "raise", "propagate"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_under_autocast_is_the_step_outside(policy: Any, dtype: str) -> None:
    """PyTorch's autocast changes what the operations of a model compute, not what an update does."""
    torch = pytest.importorskip("torch")
    kind = getattr(torch, dtype)
    rule = chain(ClipByGlobalNorm(max_norm=1.25), AdamW(lr=0.1))
    outcomes = []
    for compiled in (True, False):
        for enabled in (False, True):
            optimizer = Optimizer(rule, nonfinite=policy, compiled=compiled)
            params = {
                "w": torch.linspace(-1, 1, 12, dtype=kind).reshape(4, 3),
                "b": torch.ones(3, dtype=kind),
            }
            state = optimizer.init(params)
            for i in range(4):
                with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                    gradients = {k: (x.float() * (i + 1)).to(kind) for k, x in params.items()}
                    if i == 2 and policy == "skip":
                        gradients["b"][1] = float("inf")
                    params, state = optimizer.step(params, gradients, state, donate=i % 2 == 0)
            assert state["step"] == (3 if policy == "skip" else 4)
            outcomes.append([params, *state["slots"].values()])
    for outcome in outcomes[1:]:
        for one, other in zip(outcome, outcomes[0], strict=True):
            for path, x in one.items():
                assert_same_bits(x.float().numpy(), other[path].float().numpy(), what=path)


def test_a_training_step_under_autocast() -> None:
    torch = pytest.importorskip("torch")

    def loss(xp: Any, params: Any, x: Any) -> Any:
        return xp.sum((x @ params["w"] - params["b"]) ** 2)

    step = TrainStep(loss, Optimizer(Adam(lr=0.1), nonfinite="skip"))
    carry = step.init({"w": torch.ones(4, 3), "b": torch.zeros(3)})
    with torch.autocast("cpu", torch.bfloat16):
        for scale in (1.0, float("inf"), 1.0):
            carry, _ = step(carry, torch.ones(2, 4) * scale)
    params, state = step.unload(carry)
    assert state["step"] == 2
    assert all(x.dtype == torch.float32 and bool(torch.isfinite(x).all()) for x in params.values())
