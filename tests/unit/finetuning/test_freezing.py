"""Selecting, freezing, re-initializing and thawing layers; states that go from one partition to the next."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyopt import (
    SGD,
    Adam,
    ClipByGlobalNorm,
    Optimizer,
    TrainStep,
    chain,
    convert,
    partition,
    value_and_grad,
)
from polyopt.backend.protocol import Backend
from polyopt.core import tree
from polyopt.core.errors import InputError
from polyopt.finetuning import (
    GradualUnfreezing,
    freeze,
    layer_rates,
    merge,
    numbered_layers,
    reinitialize,
    reset,
    select,
    split,
    trainable,
    transfer,
)
from polyopt.finetuning.selection import assigned
from polyopt.models.initializers import Constant, Glorot, Zeros
from polyopt.models.losses import cross_entropy
from polyopt.models.networks import MLP
from polyopt.schedules import Plateau
from polyopt.testing import assert_close, assert_same_bits
from polyopt.testing.compare import host

MODEL = MLP(5, 3, Glorot(), Zeros(), hidden=(8, 6), activation="tanh")
LAYERS = tuple(rf"^layers\.{i}\." for i in range(3))


def loss(xp: Any, params: Any, x: Any, y: Any) -> Any:
    return cross_entropy(xp, MODEL.apply(xp, params, x), y)


def parameters(backend: Backend) -> Any:
    return convert(MODEL.init(0, "float32"), backend)


def batch(backend: Backend, seed: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(16, 5)), np.eye(3)[rng.integers(0, 3, size=16)]
    return backend.from_numpy(x, dtype="float32"), backend.from_numpy(y, dtype="float32")


def same(found: Any, expected: Any) -> None:
    found, expected = tree.named(found), tree.named(expected)
    assert found.keys() == expected.keys()
    for path, x in expected.items():
        assert_same_bits(found[path], host(x), what=path)


# Selecting


def test_a_pattern_that_matches_nothing_names_the_nearest_paths() -> None:
    params = MODEL.init(0, "float32")
    for call in (
        lambda: select(params, r"layers\.0", "layers.1.wieght"),
        lambda: split(params, "layers.1.wieght"),
        lambda: reinitialize(params, {"layers.1.wieght": Zeros()}),
        lambda: assigned(params, {"layers.1.wieght": 1}),
    ):
        with pytest.raises(InputError, match=r"'layers.1.wieght' matches no parameter.*'layers.1.weight'"):
            call()
    with pytest.raises(InputError, match=r"'isupper' matches no parameter; known: 'layers\.0\.bias'"):
        select(params, str.isupper)
    with pytest.raises(InputError, match="not a regular expression"):
        select(params, "(")
    assert select(params, lambda path: path.endswith("bias"), r"2") == (
        "layers.0.bias",
        "layers.1.bias",
        "layers.2.bias",
        "layers.2.weight",
    )
    assert select(params) == ()


def test_layers_from_numbered_paths() -> None:
    block = {"w": 0, "b": 0}
    params = {"embed": block, "layers": [block] * 12, "norm": block, "head": block}
    found = numbered_layers(params, bottom=["^embed"], top=["^norm|^head"])
    assert len(found) == 14
    # Layer 1 is not layer 10 or 11.
    assert [len(select(params, pattern)) for pattern in found] == [2] * 13 + [4]
    with pytest.raises(InputError, match=r"'head.b' has no number; expected a pattern of bottom or top"):
        numbered_layers(params, bottom=["^embed"])
    twins = {"encoder": {"layer1": block, "layer10": block}, "decoder": {"layer1": block, "layer10": block}}
    found = numbered_layers(twins, pattern=r"layer(\d+)")
    assert [len(select(twins, pattern)) for pattern in found] == [4, 4]
    two = {"encoder": [block], "decoder": [block]}
    with pytest.raises(
        InputError, match=r"'decoder.0.b' and 'encoder.0.b' are numbered under different names"
    ):
        numbered_layers(two)
    with pytest.raises(InputError, match="expected one group"):
        numbered_layers(twins, pattern=r"layer\d+")


# Freezing


def test_no_gradient_is_computed_for_what_is_frozen(backend: Backend) -> None:
    params, seen = parameters(backend), []
    trained, frozen = split(params, *LAYERS[:2])

    def watched(xp: Any, params: Any, x: Any, y: Any) -> Any:
        seen.append(params["layers"][0]["weight"])
        return loss(xp, params, x, y)

    value, grads = value_and_grad(trainable(watched), compiled=False)(trained, frozen, *batch(backend, 1))
    assert sorted(tree.named(grads)) == ["layers.2.bias", "layers.2.weight"]
    whole, all_grads = value_and_grad(loss, compiled=False)(params, *batch(backend, 1))
    assert_same_bits(value, host(whole))
    assert_same_bits(grads["layers"][2]["weight"], host(all_grads["layers"][2]["weight"]))
    # What the loss got for a frozen leaf is a plain array, not one that records.
    assert type(seen[0]).__name__ not in ("ArrayBox", "JVPTracer", "LinearizeTracer", "GradTracer")
    assert not getattr(seen[0], "requires_grad", False)
    same(merge(trained, frozen), params)
    state = Optimizer(freeze(Adam(), *LAYERS[:2])).init(params)
    assert list(state["slots"]["exp_avg"]) == ["layers.2.bias", "layers.2.weight"]


def test_torch_parameters_that_are_frozen_record_nothing() -> None:
    import torch

    params = {"a": torch.nn.Parameter(torch.ones(2)), "b": torch.nn.Parameter(torch.ones(2))}
    trained, frozen = split(params, "a")
    kept = []

    def product(xp: Any, p: Any) -> Any:
        kept.append(p["a"] * 2)
        return xp.sum(p["a"] * p["b"])

    value_and_grad(trainable(product))(trained, frozen)
    assert not kept[0].requires_grad
    assert params["a"].grad is None
    assert params["a"].requires_grad


@pytest.mark.parametrize("way", ["step", "train_step"])
def test_split_training_has_the_bits_of_a_partition(backend: Backend, way: str) -> None:
    rule = freeze(chain(ClipByGlobalNorm(0.5), Adam(lr=0.01)), LAYERS[0])
    expected, optimizer = parameters(backend), Optimizer(rule)
    state = optimizer.init(expected)
    gradient = value_and_grad(loss)
    trained, frozen = split(expected, LAYERS[0])
    if way == "train_step":
        step = TrainStep(trainable(loss), Optimizer(rule))
        carry = step.init(trained)
    else:
        found, found_state = trained, optimizer.init(trained)
        of_trained = value_and_grad(trainable(loss))
    for i in range(5):
        data = batch(backend, i)
        _, grads = gradient(expected, *data)
        expected, state = optimizer.step(expected, grads, state)
        if way == "train_step":
            carry, _ = step(carry, frozen, *data)
        else:
            _, grads = of_trained(found, frozen, *data)
            found, found_state = optimizer.step(found, grads, found_state)
    if way == "train_step":
        found, found_state = step.unload(carry)
    if way == "step":
        same(merge(found, frozen), expected)
        same(found_state["slots"], state["slots"])
    for path, x in tree.named(merge(found, frozen)).items():
        because = "the loss is compiled together with the update: sums in another order"
        assert_close(x, host(tree.named(expected)[path]), rtol=2e-5, atol=2e-6, because=because)
    assert found_state["step"] == 5


def test_what_does_not_fit_is_not_merged() -> None:
    with pytest.raises(InputError, match="'a' is both trained and frozen"):
        merge({"a": 1, "b": 2}, {"a": 1, "b": None})
    with pytest.raises(InputError, match="frozen parameters: leaf 'b' is missing"):
        merge({"a": 1, "b": 2}, {"a": None})
    with pytest.raises(InputError, match=r"partition: pattern '\^embd' matches no parameter.*'embed'"):
        Optimizer(freeze(Adam(), "^embd")).init({"embed": np.ones(1)})


@settings(max_examples=50, deadline=None)
@given(st.sets(st.sampled_from("abcdef"), min_size=1), st.sets(st.sampled_from("abcdef"), min_size=1))
def test_a_split_tree_is_whole_again(names: set[str], frozen: set[str]) -> None:
    params = {name: ord(name) for name in names} | {"z": [None, 1]}
    trained, rest = split(params, *(f"^{name}$" for name in frozen & names))
    assert merge(trained, rest) == params
    assert not set(tree.named(trained)) & set(tree.named(rest))


# Drawing anew


def test_re_initialized_layers_are_the_same_bits_everywhere(backend: Backend) -> None:
    params = parameters(backend)
    drawn = reinitialize(params, {r"2\.weight$": Glorot(), r"2\.bias$": Constant(0.5)}, seed=7)
    expected = MODEL.init(7, "float32")["layers"][2]["weight"]
    assert_same_bits(drawn["layers"][2]["weight"], expected)
    assert_same_bits(drawn["layers"][2]["bias"], np.full(3, 0.5, np.float32))
    assert drawn["layers"][0]["weight"] is params["layers"][0]["weight"]
    half = backend.from_numpy(np.zeros(4), dtype="bfloat16" if backend.name != "numpy" else "float16")
    assert reinitialize({"w": half}, {"w": Glorot()})["w"].dtype == half.dtype
    with pytest.raises(InputError, match=r"leaf 'w' has 0.5; expected an initializer"):
        reinitialize({"w": half}, {"w": 0.5})  # type: ignore[dict-item]


def test_a_layer_that_starts_again_is_as_new(backend: Backend) -> None:
    """Its next updates are those of an optimizer that never saw it before; the others' go on."""
    optimizer, params = Optimizer(Adam(lr=0.1)), parameters(backend)
    state = optimizer.init(params)
    gradient = value_and_grad(loss)
    for i in range(3):
        params, state = optimizer.step(params, gradient(params, *batch(backend, i))[1], state)
    before = {k: dict(v) for k, v in state["slots"].items()}
    params = reinitialize(params, {r"2\.weight$": Glorot()}, seed=1)
    again = reset(state, params, optimizer, r"2\.weight$")
    assert again["missed"] == {"layers.2.weight": 3}
    assert again["step"] == 3
    for name, slots in before.items():
        for path, x in slots.items():
            if path != "layers.2.weight":
                assert again["slots"][name][path] is x
    assert state["missed"] == {}
    alone = {"w": params["layers"][2]["weight"]}
    fresh = optimizer.init(alone)
    for i in range(3, 6):
        _, grads = gradient(params, *batch(backend, i))
        alone, fresh = optimizer.step(alone, {"w": grads["layers"][2]["weight"]}, fresh)
        params, again = optimizer.step(params, grads, again)
    assert_same_bits(params["layers"][2]["weight"], host(alone["w"]))


# From one partition to the next


def test_gradual_unfreezing_keeps_what_was_there(backend: Backend) -> None:
    """Every layer has the bits of being trained alone from the moment when it thaws."""
    rule = chain(Adam(lr=0.05), SGD(lr=1.0, momentum=0.5))
    schedule = GradualUnfreezing(layer_rates(rule, {LAYERS[0]: 0.5}), LAYERS, steps=[2, 5])
    params = parameters(backend)
    grads = [batch_of(params, backend, i) for i in range(7)]
    optimizer = schedule.optimizer(0)
    state = optimizer.init(params)
    alone = {}
    for step, g in enumerate(grads):
        if schedule.changes(step):
            before = {k: dict(v) for k, v in state["slots"].items()}
            state = schedule.advance(state, params)
            optimizer = schedule.optimizer(step)
            kept = [(k, p) for k, slots in state["slots"].items() for p in slots if p in before.get(k, {})]
            assert len(kept) == sum(map(len, before.values()))
            assert all(state["slots"][k][p] is before[k][p] for k, p in kept)
        for i in range(3 - schedule.thawed(step), 3):
            layer = Optimizer(layer_rates(rule, {".*": 0.5}) if i == 0 else rule)
            own, own_state = alone.get(i) or (params["layers"][i], layer.init(params["layers"][i]))
            alone[i] = layer.step(own, g["layers"][i], own_state)
        params, state = optimizer.step(params, g, state)
    assert state["missed"] == {p: n for n, i in ((2, 1), (5, 0)) for p in select(params, LAYERS[i])}
    for i in range(3):
        same(params["layers"][i], alone[i][0])


def test_a_whole_step_goes_on_after_a_thaw(backend: Backend) -> None:
    schedule = GradualUnfreezing(Adam(lr=0.02), LAYERS, steps=[2])
    params = parameters(backend)
    optimizer = schedule.optimizer(0)
    state, found, found_state = optimizer.init(params), params, optimizer.init(params)
    for t in range(4):
        if schedule.changes(t):
            state, found_state = schedule.advance(state, params), schedule.advance(found_state, found)
            optimizer = schedule.optimizer(t)
        trained, frozen = schedule.split(found, t)
        step = TrainStep(trainable(loss), optimizer)
        carry, _ = step(step.load(trained, found_state), frozen, *batch(backend, t))
        trained, found_state = step.unload(carry)
        found = merge(trained, frozen)
        params, state = optimizer.step(params, value_and_grad(loss)(params, *batch(backend, t))[1], state)
    assert found_state["missed"] == state["missed"] == dict.fromkeys(select(params, LAYERS[1]), 2)
    for path, x in tree.named(found).items():
        because = "the loss is compiled together with the update: sums in another order"
        assert_close(x, host(tree.named(params)[path]), rtol=2e-5, atol=2e-6, because=because)


def batch_of(params: Any, backend: Backend, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return tree.map_leaves(
        lambda x: backend.from_numpy(rng.normal(size=tuple(x.shape)), dtype="float32"), params
    )


def test_unfreezing_resumes_from_a_step_alone() -> None:
    schedule = GradualUnfreezing(Adam(), ["a", "b", "c", "d"], steps=10)
    assert [schedule.thawed(t) for t in (0, 9, 10, 19, 20, 30, 99)] == [1, 1, 2, 2, 3, 4, 4]
    assert [t for t in range(100) if schedule.changes(t)] == [10, 20, 30]
    assert schedule.frozen(15) == ("a", "b")
    assert GradualUnfreezing(Adam(), ["a", "b", "c"], [4]).frozen(1000) == ("a",)
    assert GradualUnfreezing(Adam(), ["a"], 4).stage(0) == Adam()
    assert GradualUnfreezing(Adam(), ["a"], 4, {"accumulate": 3}).optimizer(0).accumulate == 3
    trained, frozen = schedule.split(dict.fromkeys("abcd", 1), 10)
    assert (trained, frozen) == (
        {"a": None, "b": None, "c": 1, "d": 1},
        {"a": 1, "b": 1, "c": None, "d": None},
    )


@pytest.mark.parametrize(
    ("layers", "steps", "message"),
    [
        ([], 1, "layers is empty"),
        (["a", "b"], 0, r"steps = 0; expected integers >= 1"),
        (["a", "b"], [1.5], r"steps = \[1.5\]; expected integers >= 1"),
        (["a", "b"], [1, 2], "2 steps and 1 layers below the top"),
        (["a", "b", "c"], [3, 2], r"steps\[1\] = 2 is below steps\[0\] = 3"),
    ],
)
def test_bad_unfreezing_is_refused(layers: Any, steps: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        GradualUnfreezing(Adam(), layers, steps)


def test_slots_go_along_where_positions_change() -> None:
    """Two rules with a slot of one name qualify it by position, which a partition shifts."""
    twice = chain(SGD(lr=1.0, momentum=0.5), SGD(lr=1.0, momentum=0.25))
    before, after = Optimizer(freeze(twice, "a")), Optimizer(twice)
    params = {"a": np.ones(2), "b": np.ones(2)}
    params, state = before.step(params, params, before.init(params))
    assert sorted(state["slots"]) == ["1.0.momentum_buffer", "1.1.momentum_buffer"]
    moved = transfer(state, params, before, after)
    assert sorted(moved["slots"]) == ["0.momentum_buffer", "1.momentum_buffer"]
    for i in range(2):
        assert moved["slots"][f"{i}.momentum_buffer"]["b"] is state["slots"][f"1.{i}.momentum_buffer"]["b"]
    back = transfer(moved, params, after, before)
    assert back["slots"].keys() == state["slots"].keys()
    assert list(back["slots"]["1.0.momentum_buffer"]) == ["b"]
    assert back["missed"] == {}


def test_a_plateau_goes_along() -> None:
    rule = Adam(lr=Plateau(0.4, factor=0.5, patience=0))
    before, after = Optimizer(freeze(rule, "a")), Optimizer(rule)
    params = {"a": np.ones(2), "b": np.ones(2)}
    state = before.init(params)
    for _ in range(3):
        state = before.observe(state, 1.0)
    moved = transfer(state, params, before, after)
    assert after.hyperparameters(moved)["lr"] == before.hyperparameters(state)["1.lr"] == 0.1


def test_accumulated_gradients_go_along() -> None:
    before = Optimizer(freeze(SGD(lr=1.0), "a"), accumulate=2)
    after = Optimizer(SGD(lr=1.0), accumulate=2)
    params, grads = {"a": np.ones(2), "b": np.ones(2)}, {"a": np.ones(2), "b": np.ones(2)}
    _, state = before.step(params, grads, before.init(params))
    moved = transfer(state, params, before, after)
    assert (moved["micro_step"], moved["accumulated"]) == (1, {"a": 0, "b": 1})
    stepped, end = after.step(params, grads, moved)
    assert {k: x.tolist() for k, x in stepped.items()} == {"a": [0.5, 0.5], "b": [0.0, 0.0]}
    assert end["step"] == 1
    with pytest.raises(InputError, match="accumulate = 2 before and 1 after"):
        transfer(state, params, before, Optimizer(SGD(lr=1.0)))


def test_a_state_of_a_split_tree_thaws_too() -> None:
    """Where the frozen leaves were ``None``, the optimizer itself may be one and the same."""
    optimizer, params = Optimizer(Adam(lr=0.1)), {"a": np.ones(2), "b": np.ones(2)}
    trained, frozen = split(params, "a")
    trained, state = optimizer.step(trained, {"a": None, "b": np.ones(2)}, optimizer.init(trained))
    whole = merge(trained, frozen)
    moved = transfer(state, whole, optimizer, optimizer)
    assert moved["missed"] == {"a": 1}
    assert moved["slots"]["exp_avg"]["b"] is state["slots"]["exp_avg"]["b"]
    assert list(moved["slots"]["exp_avg"]) == ["a", "b"]


def test_what_can_not_go_along_is_named() -> None:
    params = {"a": np.ones(2), "b": np.ones(2)}
    before, after = Optimizer(Adam()), Optimizer(partition({"a": Adam(), "b": SGD(lr=0.1, momentum=0.9)}))
    state = before.init(params)
    with pytest.raises(InputError, match="leaf 'b' has the rules SGD after; expected those before, Adam"):
        transfer(state, params, before, after)
    moved = transfer(state, params, before, after, fresh=["b"])
    assert sorted(moved["slots"]["momentum_buffer"]) == ["b"]
    broken = state | {"slots": {"exp_avg": state["slots"]["exp_avg"], "exp_avg_sq": {}}}
    with pytest.raises(InputError, match="slot 'exp_avg_sq' has no leaf 'a'"):
        transfer(broken, params, before, before)
    with pytest.raises(InputError, match="'c' matches no parameter"):
        reset(state, params, before, "c")
