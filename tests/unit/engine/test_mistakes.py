"""Test plain mistakes in calls: one named error in the user's words, the same on every backend."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from polyopt import (
    SGD,
    Adam,
    ClipByGlobalNorm,
    Cosine,
    Optimizer,
    Packing,
    Plateau,
    TrainStep,
    apply,
    chain,
    explain,
    partition,
    value_and_grad,
)
from polyopt.backend.protocol import Backend
from polyopt.core.errors import InputError

OPT = Optimizer(Adam(lr=0.1))
TOLD = Optimizer(SGD(lr=Plateau(0.1)))
TWICE = Optimizer(Adam(lr=0.1), accumulate=2)


def trees(backend: Backend) -> tuple[dict[str, Any], dict[str, Any]]:
    values = {"w": [1.0, 2.0], "b": [0.5]}
    p, g = ({k: backend.from_numpy(np.array(v, np.float32)) for k, v in values.items()} for _ in range(2))
    return p, g


def with_slot(state: dict[str, Any], value: Any) -> dict[str, Any]:
    return state | {"slots": state["slots"] | {"exp_avg": value}}


Call = Callable[[Any, Any, Any], Any]
STEPS: dict[str, tuple[Call, str]] = {
    "gradients as a list": (lambda p, g, s: OPT.step(p, list(g.values()), s), "gradients: found a list of 2"),
    "gradients as a generator": (
        lambda p, g, s: OPT.step(p, (x for x in g), s),
        "found a generator; .*a dict",
    ),
    "gradients as an array": (
        lambda p, g, s: OPT.step(p, g["w"], s),
        "found an array; .*a dict of 2 leaves: 'b'",
    ),
    "no gradients": (lambda p, g, s: OPT.step(p, None, s), "gradients: found None; expected"),
    "a loss among them": (lambda p, g, s: OPT.step(p, (g["w"], g), s), "found a tuple of 3 leaves"),
    "parameters as a generator": (lambda p, g, s: OPT.step((x for x in p), g, s), "parameter: .*generator"),
    "no parameters": (lambda p, g, s: OPT.step(None, None, s), "the parameters are None"),
    "state and gradients": (lambda p, g, s: OPT.step(p, s, g), r"order is step\(params, gradients, state\)"),
    "parameters last": (lambda p, g, s: OPT.update(g, p, s), r"order is step\(params, gradients, state\)"),
    "no state": (lambda p, g, s: OPT.step(p, g, None), "the state is None"),
    "donate": (lambda p, g, s: OPT.step(p, g, s, donate="no"), "donate = 'no'; expected True or False"),
    "a step below 0": (
        lambda p, g, s: OPT.step(p, g, s | {"step": -1}),
        r"\['step'\] = -1; expected an integer",
    ),
    "a step as a text": (lambda p, g, s: OPT.step(p, g, s | {"step": "5"}), r"\['step'\] = '5'; expected"),
    "a huge step": (lambda p, g, s: OPT.step(p, g, s | {"step": 10**400}), r"\['step'\] = 10+…"),
    "an array below 0": (
        lambda p, g, s: OPT.step(p, g, s | {"step": np.array(-1)}),
        r"\['step'\] = array\(-1\)",
    ),
    "half a step": (
        lambda p, g, s: OPT.step(p, g, s | {"step": np.array(1.5)}),
        r"\['step'\] = array\(1.5\)",
    ),
    "no missed": (
        lambda p, g, s: OPT.step(p, g, s | {"missed": None}),
        r"\['missed'\] = None; expected counts",
    ),
    "a missed text": (
        lambda p, g, s: OPT.step(p, g, s | {"missed": {"w": "x"}}),
        r"\['missed'\]\['w'\] = 'x'",
    ),
    "missed below 0": (lambda p, g, s: OPT.step(p, g, s | {"missed": {"w": -1}}), r"\['w'\] = -1; expected"),
    "no slots": (lambda p, g, s: OPT.step(p, g, s | {"slots": None}), r"\['slots'\] = None; expected"),
    "a slot of None": (lambda p, g, s: OPT.step(p, g, with_slot(s, None)), "slot 'exp_avg' is None"),
    "a slot's leaf": (lambda p, g, s: OPT.step(p, g, with_slot(s, dict.fromkeys("bw"))), "leaf 'b' is None"),
    "a slot's number": (
        lambda p, g, s: OPT.step(p, g, with_slot(s, {"w": 0.0, "b": 0.0})),
        "is a float; expected",
    ),
    "another optimizer's": (lambda p, g, s: OPT.step(p, g, TOLD.init(p)), "no slot 'exp_avg'"),
    "micro-steps": (
        lambda p, g, s: TWICE.step(p, g, TWICE.init(p) | {"micro_step": "1"}),
        r"\['micro_step'\] = '1'",
    ),
    "counts": (
        lambda p, g, s: TWICE.step(p, g, TWICE.init(p) | {"accumulated": None}),
        r"\['accumulated'\] = None",
    ),
    "updates": (lambda p, g, s: apply(p, OPT.update(g, s, p)), "updates: found a tuple"),
    "hyperparameters": (lambda p, g, s: OPT.hyperparameters(None), "the state is None"),
    "of parameters": (lambda p, g, s: OPT.hyperparameters(p), "the state has no 'step'"),
    "observe nothing": (lambda p, g, s: OPT.observe(None, 1.0), "the state is None"),
    "observe None": (lambda p, g, s: OPT.observe(s, None), "metric = None; expected a number"),
    "observe a text": (lambda p, g, s: TOLD.observe(TOLD.init(p), "1"), "metric = '1'; expected a number"),
    "observe two": (lambda p, g, s: TOLD.observe(TOLD.init(p), p["w"]), "metric = .*; expected a number"),
    "observe what": (lambda p, g, s: TOLD.observe(TOLD.init(p), 1.0, "metrics"), "did you mean 'metric'"),
    "observe another's": (lambda p, g, s: TOLD.observe(s, 1.0), "the schedule of 'lr'"),
    "step another's": (TOLD.step, "the schedule of 'lr'"),
    "flush": (lambda p, g, s: OPT.flush(s, p), r"order is step"),
    "init of nothing": (lambda p, g, s: OPT.init(None), "the parameters are None"),
    "init of numbers": (lambda p, g, s: OPT.init({"w": 1.0}), "parameter 'w': .*float is not an array"),
    "init of values": (lambda p, g, s: OPT.init(p.values()), "give a dict of arrays by name"),
    "init of texts": (lambda p, g, s: OPT.init({"w": "x"}), "parameter 'w': .*str is not an array"),
    "a gradient's number": (
        lambda p, g, s: OPT.step(p, g | {"b": 1.0}, s),
        "gradient 'b': .*float is not an array",
    ),
}


@pytest.mark.parametrize("which", STEPS)
def test_a_mistake_in_a_call_is_named(backend: Backend, which: str) -> None:
    params, grads = trees(backend)
    with pytest.raises(InputError, match=STEPS[which][1]) as e:
        STEPS[which][0](params, grads, OPT.init(params))
    assert len(str(e.value)) < 400


def test_slots_of_another_framework_are_refused(backends: list[Backend]) -> None:
    for backend in backends[1:]:
        params, grads = trees(backend)
        state = OPT.init(params)
        foreign = {k: np.zeros(x.shape, np.float32) for k, x in params.items()}
        with pytest.raises(InputError, match=r"is a numpy\.ndarray; expected an array of .*polyopt\.convert"):
            OPT.step(params, grads, with_slot(state, foreign))
    whole = {k: backends[0].from_numpy(np.zeros(x.shape, np.int32)) for k, x in params.items()}
    params, grads = trees(backends[0])
    with pytest.raises(InputError, match="slot 'exp_avg' of leaf 'b' has dtype int32; expected float32"):
        OPT.step(params, grads, with_slot(OPT.init(params), whole))


def loss(xp: Any, params: Any, x: Any) -> Any:
    return xp.sum(params["w"] * x)


STEP = TrainStep(loss, OPT)
TRAIN: dict[str, tuple[Call, str]] = {
    "no loss": (lambda p, g, s: TrainStep(None, OPT), "the loss is None; expected a function"),
    "a loss's name": (lambda p, g, s: TrainStep("cross_entropy", OPT), "the loss is 'cross_entropy'"),
    "no optimizer": (lambda p, g, s: TrainStep(loss, None), "expected an Optimizer, found None"),
    "swapped": (lambda p, g, s: TrainStep(OPT, loss), r"the order is TrainStep\(loss, optimizer\)"),
    "a rule": (lambda p, g, s: TrainStep(loss, SGD(lr=0.1)), r"wrap it: Optimizer\(rule\)"),
    "a gradient": (lambda p, g, s: TrainStep(loss, OPT, "x"), "gradient = 'x'; expected a function"),
    "no xp": (
        lambda p, g, s: STEP_OF(lambda params, x: x)(p, g["w"]),
        r"expected loss\(xp, params, and 1 more",
    ),
    "too few": (lambda p, g, s: STEP(STEP.init(p)), "missing|the loss takes"),
    "too many": (lambda p, g, s: STEP(STEP.init(p), g["w"], g["w"]), "and 2 more arguments"),
    "an operation": (
        lambda p, g, s: STEP_OF(lambda xp, q, x: xp.summ(x))(p, g["w"]),
        "no xp.summ; did you mean 'sum'",
    ),
    "no carry": (lambda p, g, s: STEP(None, g["w"]), "the first argument is None"),
    "a step's result": (
        lambda p, g, s: STEP(STEP(STEP.init(p), g["w"]), g["w"]),
        "returns two values: carry, loss",
    ),
    "unload": (lambda p, g, s: STEP.unload(None), "the first argument is None"),
    "observe": (lambda p, g, s: STEP.observe(None, 1.0), "the first argument is None"),
    "flush": (lambda p, g, s: STEP.flush((1, 2)), "the first argument is a tuple"),
    "load": (lambda p, g, s: STEP.load(p, None), "the state is None"),
    "load swapped": (lambda p, g, s: STEP.load(s, p), "the state has no 'step'"),
    "load a step": (lambda p, g, s: STEP.load(p, s | {"step": -1}), r"\['step'\] = -1"),
    "load no slot": (lambda p, g, s: STEP.load(p, with_slot(s, None)), "slot 'exp_avg' is None"),
    "load a shape": (
        lambda p, g, s: STEP.load(p, with_slot(s, dict.fromkeys(p, g["b"]))),
        r"shape \(1,\); expected",
    ),
    "init": (lambda p, g, s: STEP.init(None), "the parameters are None"),
    "value_and_grad": (lambda p, g, s: value_and_grad(None), "the loss is None"),
    "compiled": (
        lambda p, g, s: value_and_grad(loss, compiled="no"),
        "compiled = 'no'; expected True or False",
    ),
    "of nothing": (lambda p, g, s: value_and_grad(loss)(None, g["w"]), "the parameters are None"),
}


def STEP_OF(wrong: Any) -> Callable[..., Any]:
    step = TrainStep(wrong, OPT)
    return lambda params, *args: step(step.init(params), *args)


@pytest.mark.parametrize("which", TRAIN)
def test_a_mistake_in_a_training_step_is_named(backend: Backend, which: str) -> None:
    params, grads = trees(backend)
    if which == "too few":
        with pytest.raises(TypeError, match="missing"):
            TRAIN[which][0](params, grads, OPT.init(params))
        return
    with pytest.raises(InputError, match=TRAIN[which][1]):
        TRAIN[which][0](params, grads, OPT.init(params))


def test_a_carry_can_be_shown_after_a_step(backend: Backend) -> None:
    params, grads = trees(backend)
    carry, _ = STEP(STEP.init(params), grads["w"])
    assert repr(carry).startswith("TrainState(")


CONSTRUCTED: dict[str, tuple[Callable[[], Any], str]] = {
    "a class": (lambda: Optimizer(Adam), r"found the class Adam; give an instance of it: Adam\(\.\.\.\)"),
    "a text": (lambda: Optimizer("adam"), "found 'adam'; give an object"),
    "a list": (lambda: Optimizer([ClipByGlobalNorm(1.0), SGD(lr=0.1)]), r"one after the other with chain\("),
    "a schedule": (lambda: Optimizer(Cosine(0.1, steps=3)), "give a schedule to a rule"),
    "an optimizer": (lambda: Optimizer(OPT), "give its rule"),
    "compiled": (lambda: Optimizer(SGD(lr=0.1), compiled="no"), "compiled = 'no'; expected True or False"),
    "a chain of classes": (
        lambda: chain(ClipByGlobalNorm, SGD(lr=0.1)),
        "stage 0 is the class ClipByGlobalNorm",
    ),
    "a chain of a list": (lambda: chain([SGD(lr=0.1)]), "chain: expected rules, chains or partitions"),
    "a partition of None": (lambda: partition(None), "partition: expected {pattern: rule}, found None"),
    "a partition of a rule": (lambda: partition(SGD(lr=0.1)), "expected {pattern: rule}, found SGD"),
    "a partition of rules": (lambda: partition([SGD(lr=0.1)]), "expected {pattern: rule}, found"),
    "explain": (lambda: explain(Adam), "found the class Adam"),
    "packing": (lambda: Packing({"w": np.ones(2)}, Adam), "found the class Adam"),
}


@pytest.mark.parametrize("which", CONSTRUCTED)
def test_what_is_no_rule_is_told_what_to_give(which: str) -> None:
    with pytest.raises(InputError, match=CONSTRUCTED[which][1]):
        CONSTRUCTED[which][0]()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("zero_grad", "value_and_grad"),
        ("state_dict", "plain data"),
        ("minimize", "TrainStep"),
        ("stpe", "'step'"),
    ],
)
def test_a_method_of_another_librarys_optimizer_is_told_what_takes_its_place(name: str, hint: str) -> None:
    with pytest.raises(AttributeError, match=f"Optimizer has no {name!r}; ") as e:
        getattr(OPT, name)
    assert hint in str(e.value)
    assert not hasattr(OPT, "param_groups")
    assert pickle.loads(pickle.dumps(OPT)).rule == copy.deepcopy(OPT).rule == OPT.rule


def test_a_model_instead_of_parameters_is_told_what_to_give() -> None:
    torch = pytest.importorskip("torch")
    nnx, linen, keras = (pytest.importorskip(x) for x in ("flax.nnx", "flax.linen", "keras"))
    module, model = torch.nn.Linear(2, 1), nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    layers = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    for params, hint in (
        (module, r"dict\(model\.named_parameters\(\)\)"),
        (module.parameters(), r"a dict of arrays by name"),
        (model, r"nnx\.state\(model, nnx\.Param\)\.to_pure_dict\(\)"),
        (nnx.state(model), r"state\.to_pure_dict\(\)"),
        (linen.Dense(2), r'model\.init\(key, inputs\)\["params"\]'),
        (layers, r"\{v\.path: v\.value for v in model\.trainable_variables\}"),
        (layers.trainable_variables, r"\{v\.path: v\.value for v in model\.trainable_variables\}"),
        (STEP.init({"w": np.ones(2)}), r"TrainStep\.unload\(carry\)"),
    ):
        for take in (
            OPT.init,
            STEP.init,
            lambda x: value_and_grad(loss)(x, 1.0),
            lambda x: Packing(x, OPT.rule),
        ):
            with pytest.raises(InputError, match=hint):
                take(params)


def test_a_models_parameters_in_the_place_of_gradients_are_seen() -> None:
    torch = pytest.importorskip("torch")
    params = dict(torch.nn.Linear(2, 1).named_parameters())
    grads = {k: torch.ones_like(x).detach() for k, x in params.items()}
    with pytest.raises(InputError, match=r"the order is step\(params, gradients, state\)"):
        Optimizer(SGD(lr=0.1)).step(grads, params, OPT.init(params))
