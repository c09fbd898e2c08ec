"""Masks inside the optimizer: nothing pruned moves, nor is felt by anything that does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polyopt as po
from polyopt import Optimizer, Packing, chain, checkpoint, partition
from polyopt import pruning as pr
from polyopt.backend.convert import convert
from polyopt.backend.protocol import Backend
from polyopt.core import tree
from polyopt.core.errors import InputError
from polyopt.core.rule import Stage
from polyopt.engine.plan import plan
from polyopt.schedules import Plateau
from polyopt.testing import assert_close, assert_same_bits

STEPS = 4


def parameters(dtype: str = "float32") -> dict[str, Any]:
    random = np.random.default_rng(0)

    def some(*shape: int) -> Any:
        return random.normal(size=shape).astype(dtype)

    return {
        "layers": [{"w": some(6, 8), "b": some(8)}, {"w": some(8, 3), "b": some(3)}],
        "big": some(40, 900),
    }


def gradients(dtype: str = "float32") -> list[Any]:
    random = np.random.default_rng(1)
    return [
        tree.map_leaves(lambda x: (random.normal(size=x.shape) * 3).astype(dtype), parameters())
        for _ in range(STEPS)
    ]


RULES: dict[str, Stage] = {
    "sgd": po.SGD(lr=po.Cosine(0.1, 10), momentum=0.9, nesterov=True),
    "adam": po.Adam(lr=0.01),
    "adamw": po.AdamW(lr=0.01, weight_decay=0.1, amsgrad=True),
    "adagrad": po.AdaGrad(lr=0.1, convention="optax"),
    "rmsprop": po.RMSprop(lr=0.01, momentum=0.9, centered=True),
    "nadam": po.NAdam(lr=0.01),
    "clipped": chain(po.ClipByGlobalNorm(0.1), po.Adam(lr=0.01), po.EMA(0.9)),
    "twice": chain(po.SGD(lr=0.5, momentum=0.9), po.SGD(lr=0.1, momentum=0.5)),
    "leafwise": chain(po.ClipByNorm(0.1), po.SGD(lr=0.1, momentum=0.9)),
    "parted": partition(
        {r"b$": None, r"^big": po.SGD(lr=0.1), r".*": chain(po.ClipByGlobalNorm(0.2), po.Adam(lr=0.01))}
    ),
}


def masks_for(params: Any, sparsity: float = 0.6) -> Any:
    return pr.magnitude_masks(params, sparsity, scope="global")


def same(a: Any, b: Any) -> None:
    """Two trees of plain data with the same paths, numbers and bits."""
    first, second = tree.named(a), tree.named(b)
    assert first.keys() == second.keys()
    for path, x in first.items():
        if hasattr(x, "shape"):
            assert_same_bits(x, second[path], what=path)
        else:
            assert x == second[path], path


def check_pruned(params: Any, state: Any, masks: Any, what: str = "") -> None:
    """All that is pruned is +0 or -0, in weights and slots alike."""
    named = tree.named(params)
    for path, mask in convert(masks, "numpy").items():
        x = convert({"x": named[path]}, "numpy")["x"]
        assert not np.any(x[~mask]), f"{what} {path}"
        assert not np.signbit(x[~mask]).any(), f"{what} {path}"
        for slot, values in state["slots"].items():
            if path in values and getattr(values[path], "shape", ()) == mask.shape:
                x = convert({"x": values[path]}, "numpy")["x"]
                assert not np.any(x[~mask]), f"{what} {slot} {path}"
                assert slot != "mask" or np.all(x[mask] == 1)


def pruned_run(values: Any, grads: list[Any], name: str, **how: Any) -> tuple[Any, Any]:
    """Dense steps, then masks, then steps in place: parameters and state."""
    optimizer = Optimizer(pr.masked(RULES[name]), **how)
    state = optimizer.init(values)
    masks: Any = {}
    for i, g in enumerate(grads):
        if i == 1:
            masks = masks_for(values)
            values, state = pr.with_masks(optimizer, values, state, masks)
            check_pruned(values, state, masks, name)
        values, state = optimizer.step(values, g, state, donate=i >= 1)
    check_pruned(values, state, masks, name)
    return values, state


@pytest.mark.parametrize("name", RULES)
def test_pruned_weights_and_slots_stay_zero(name: str) -> None:
    values, state = pruned_run(parameters(), gradients(), name)
    expected, expected_state = pruned_run(parameters(), gradients(), name, compiled=False)
    same(values, expected)
    same(state, expected_state)


@pytest.mark.parametrize("name", ["clipped", "leafwise"])
def test_pruned_weights_and_slots_stay_zero_in_the_same_bits(backend: Backend, name: str) -> None:
    grads = [convert(g, backend) for g in gradients()]
    values, state = pruned_run(convert(parameters(), backend), grads, name)
    expected, expected_state = pruned_run(parameters(), gradients(), name)
    same(convert(values, "numpy"), expected)
    same(convert(state, "numpy"), expected_state)


@pytest.mark.parametrize("name", RULES)
def test_without_masks_it_is_the_rule_itself(name: str) -> None:
    plain, wrapped = Optimizer(RULES[name]), Optimizer(pr.masked(RULES[name]))
    a = b = parameters()
    state, other = plain.init(a), wrapped.init(b)
    for g in gradients():
        a, state = plain.step(a, g, state)
        b, other = wrapped.step(b, g, other)
    same(a, b)
    final, bare = pr.finalize(wrapped, b, other)
    same(final, a)
    same(bare, state)
    assert bare["slots"].keys() == state["slots"].keys()


@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop", "clipped"])
def test_the_rest_moves_as_if_the_pruned_had_never_been(name: str) -> None:
    params = parameters("float64")
    optimizer = Optimizer(pr.masked(RULES[name]))
    masks = masks_for(params)
    alone = {path: tree.named(params)[path][mask] for path, mask in masks.items()}
    rest = {path: x for path, x in tree.named(params).items() if path not in masks}
    small = Optimizer(RULES[name])
    left = alone | rest
    small_state = small.init(left)
    params, state = pr.with_masks(optimizer, params, optimizer.init(params), masks)
    for g in gradients("float64"):
        params, state = optimizer.step(params, g, state)
        named = tree.named(g)
        left, small_state = small.step(
            left, {p: named[p][masks[p]] if p in masks else named[p] for p in left}, small_state
        )
    for path, x in tree.named(params).items():
        kept = x[masks[path]] if path in masks else x
        assert_close(kept, left[path], rtol=1e-13, because="the global norm is summed in another order")


def test_gradients_of_pruned_weights_may_be_anything(backend: Backend) -> None:
    params = {"w": backend.from_numpy(np.array([[3.0, 1.0, -4.0]], "float32"))}
    rule = pr.masked(chain(po.ClipByGlobalNorm(1.0), po.Adam(lr=0.1)))
    optimizer = Optimizer(rule)
    masks = pr.magnitude_masks(params, 0.34)
    params, state = pr.with_masks(optimizer, params, optimizer.init(params), masks)
    for bad in (np.nan, np.inf, 1e30):
        g = {"w": backend.from_numpy(np.array([[0.3, bad, 0.4]], "float32"))}
        params, state = optimizer.step(params, g, state)
    check_pruned(params, state, masks)
    assert np.isfinite(backend.to_numpy(params["w"])).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_weights_of_other_dtypes_stay_zero_too(backend: Backend, dtype: str) -> None:
    host = {"a": parameters()["layers"][0]["w"]}
    params = tree.map_leaves(lambda x: backend.from_numpy(x, dtype=dtype), host)
    optimizer = Optimizer(pr.masked(po.AdamW(lr=0.1)))
    masks = masks_for(params)
    params, state = pr.with_masks(optimizer, params, optimizer.init(params), masks)
    g = {"a": backend.from_numpy(gradients()[0]["layers"][0]["w"], dtype=dtype)}
    for _ in range(2):
        params, state = optimizer.step(params, g, state)
    check_pruned(params, state, masks)
    wide = "float64" if dtype == "float64" else "float32"
    assert backend.dtype_name(state["slots"]["mask"]["a"]) == wide


def test_an_elementwise_rule_is_still_one_kernel() -> None:
    for rule in (po.Adam(), chain(po.ClipByValue(1.0), po.AdamW(), po.EMA())):
        (pipeline,) = plan(pr.masked(rule), ["w"]).pipelines
        assert pipeline is not None
        (segment,) = pipeline
        assert [name for part in segment.parts for name, _ in part.names].count("mask") == 2
    optimizer = Optimizer(pr.masked(po.Adam()))
    params = {"w": np.ones((4, 4), "float32")}
    state = optimizer.init(params)
    mask, moment = state["slots"]["mask"]["w"], state["slots"]["exp_avg"]["w"]
    for _ in range(3):
        params, state = optimizer.step(params, {"w": np.ones((4, 4), "float32")}, state, donate=True)
    assert state["slots"]["mask"]["w"] is mask
    assert state["slots"]["exp_avg"]["w"] is moment
    assert optimizer._replay is not None


# With everything else that an optimizer does


@pytest.mark.parametrize("name", ["clipped", "parted"])
def test_packed_and_whole_steps_have_the_same_bits(backend: Backend, name: str) -> None:
    rule = pr.masked(RULES[name])
    optimizer = Optimizer(rule)
    params = convert(parameters(), backend)
    masks = masks_for(params)
    params, state = pr.with_masks(optimizer, params, optimizer.init(params), masks)

    def loss(xp: Any, p: Any, g: Any) -> Any:
        return sum(xp.sum(p["layers"][i][k] * g["layers"][i][k]) for i in (0, 1) for k in "wb") + xp.sum(
            p["big"] * g["big"]
        )

    step = po.TrainStep(loss, optimizer)
    carry = step.load(params, state)
    packing = Packing(params, rule, state=state)
    packed, buffers = Optimizer(packing.rule), packing.pack(params)
    packed_state = packing.pack_state(state)
    for g in gradients()[:2]:
        g = convert(g, backend)
        params, state = optimizer.step(params, g, state)
        buffers, packed_state = packed.step(buffers, packing.pack(g), packed_state, donate=True)
        carry, _ = step(carry, g)
    same(packing.unpack(buffers), params)
    same(packing.unpack_state(packed_state), state)
    whole, whole_state = step.unload(carry)
    same(whole, params)
    same(whole_state, state)
    check_pruned(params, state, masks)


def test_masks_change_between_whole_steps_without_compiling_anew(backend: Backend) -> None:
    optimizer = Optimizer(pr.masked(po.Adam(lr=0.1)))
    calls = []

    def loss(xp: Any, p: Any, x: Any) -> Any:
        calls.append(xp)
        return xp.sum(xp.square(p["w"] * x))

    step = po.TrainStep(loss, optimizer)
    carry = step.init(convert({"w": parameters()["layers"][0]["w"]}, backend))
    x = backend.from_numpy(np.ones((6, 8), "float32"))
    first = 0
    for sparsity in (0.25, 0.75):
        carry, _ = step(carry, x)
        first = first or len(calls)
        params, state = step.unload(carry)
        masks = pr.magnitude_masks(params, sparsity, within=pr.masks_of(state))
        carry = step.load(*pr.with_masks(optimizer, params, state, masks))
    carry, _ = step(carry, x)
    params, state = step.unload(carry)
    check_pruned(params, state, masks)
    assert pr.sparsity_report(params).kept == 12
    if backend.name in ("jax", "tensorflow"):  # the others call the loss at each step
        assert len(calls) == first


def test_accumulated_gradients_of_pruned_weights_are_forgotten(backend: Backend) -> None:
    optimizer = Optimizer(pr.masked(po.SGD(lr=0.1, momentum=0.9)), accumulate=3)
    params = convert({"layers": parameters()["layers"]}, backend)
    state = optimizer.init(params)
    masks = masks_for(params)
    grads = [convert({"layers": g["layers"]}, backend) for g in gradients()]
    params, state = optimizer.step(params, grads[0], state)
    params, state = pr.with_masks(optimizer, params, state, masks)
    check_pruned(params, state, masks)
    for g in grads[1:3]:
        params, state = optimizer.step(params, g, state)
    check_pruned(params, state, masks)
    _, bare = pr.finalize(optimizer, params, state)
    assert sorted(bare["slots"]) == ["grad_accumulator", "momentum_buffer"]


def test_the_parameters_of_a_module_are_pruned_in_place() -> None:
    import torch

    module = torch.nn.Linear(6, 8)
    params = dict(module.named_parameters())
    optimizer = Optimizer(pr.masked(po.Adam(lr=0.1)))
    new, state = pr.prune(optimizer, params, optimizer.init(params), pr.OneShot(0.5), donate=True)
    assert new["weight"] is module.weight
    assert module.weight.requires_grad
    optimizer.step(params, {k: torch.ones_like(x) for k, x in params.items()}, state, donate=True)
    assert int((module.weight == 0).sum()) == 24


def test_variables_are_pruned_in_place() -> None:
    import tensorflow as tf

    params = {"w": tf.Variable(np.ones((4, 6), "float32"))}
    optimizer = Optimizer(pr.masked(po.Adam(lr=0.1)))
    new, _ = pr.prune(optimizer, params, optimizer.init(params), pr.OneShot(0.5), donate=True)
    assert new["w"] is params["w"]
    assert np.count_nonzero(params["w"].numpy()) == 12


def test_a_leaf_without_a_gradient_waits(backend: Backend) -> None:
    optimizer = Optimizer(pr.masked(po.Adam(lr=0.1)))
    params = convert(parameters(), backend)
    masks = masks_for(params)
    params, state = pr.with_masks(optimizer, params, optimizer.init(params), masks)
    g = convert(gradients()[0], backend)
    new, state = optimizer.step(params, g | {"big": None}, state)
    assert_same_bits(new["big"], params["big"])
    assert state["missed"] == {"big": 1}
    new, state = optimizer.step(new, g, state)
    check_pruned(new, state, masks)


def test_masks_are_saved_resumed_and_moved_to_another_framework(backend: Backend, tmp_path: Path) -> None:
    optimizer = Optimizer(pr.masked(po.Adam(lr=0.1)))
    params = convert(parameters(), backend)
    masks = masks_for(params)
    params, state = pr.with_masks(optimizer, params, optimizer.init(params), masks)
    grads = [convert(g, backend) for g in gradients()]
    params, state = optimizer.step(params, grads[0], state)
    checkpoint.save(tmp_path / "run.safetensors", params, state)
    loaded = checkpoint.load(tmp_path / "run.safetensors", backend="numpy")
    for path, mask in pr.masks_of(loaded.state).items():
        expected = masks[path] if path in masks else np.ones(mask.shape, bool)
        assert_same_bits(mask, expected, what=path)
    expected, _ = optimizer.step(params, grads[1], state)
    resumed, _ = Optimizer(optimizer.rule).step(loaded.params, gradients()[1], loaded.state)
    for path, x in tree.named(resumed).items():
        assert_same_bits(x, tree.named(expected)[path], what=path)


def test_new_masks_take_the_place_of_the_old() -> None:
    optimizer = Optimizer(pr.masked(po.SGD(lr=1.0, momentum=0.5)))
    params = {"w": np.array([1.0, 2.0]), "b": np.array([3.0, 4.0])}
    first = {"w": np.array([True, False]), "b": np.array([False, True])}
    params, state = pr.with_masks(optimizer, params, optimizer.init(params), first)
    params, state = optimizer.step(params, {"w": np.ones(2), "b": np.ones(2)}, state)
    params, state = pr.with_masks(optimizer, params, state, {"w": np.array([False, True])})
    assert params["w"].tolist() == [0.0, 0.0]
    params, state = optimizer.step(params, {"w": np.ones(2), "b": np.ones(2)}, state)
    assert params["w"].tolist() == [0.0, -1.0]
    assert state["slots"]["momentum_buffer"]["b"].tolist() == [1.0, 1.5]
    assert [m.tolist() for m in pr.masks_of(state).values()] == [[True, True], [False, True]]


def test_a_run_that_began_without_masks_goes_on_with_them() -> None:
    rule = chain(po.SGD(lr=Plateau(0.1), momentum=0.9), po.SGD(lr=1.0, momentum=0.5))
    plain, wrapped = Optimizer(rule), Optimizer(pr.masked(rule))
    params = parameters()
    state = plain.observe(plain.init(params), 0.5)
    for g in gradients()[:3]:
        params, state = plain.step(params, g, state)
    masks = masks_for(params)
    new, masked_state = pr.with_masks(wrapped, params, state, masks)
    assert masked_state["observed"].keys() == wrapped.init(params)["observed"].keys()
    assert masked_state["slots"].keys() == wrapped.init(params)["slots"].keys()
    check_pruned(new, masked_state, masks)
    done, bare = pr.finalize(wrapped, *wrapped.step(new, gradients()[3], masked_state))
    assert bare.keys() == state.keys()
    assert bare["observed"].keys() == state["observed"].keys()
    plain.step(done, gradients()[0], bare)


def test_a_frozen_leaf_needs_no_slot_and_a_stage_before_sees_all() -> None:
    rule = chain(
        pr.Movement(lr=1.0),
        partition({r"^big": None, "b$": po.SGD(lr=0.1), ".*": pr.masked(po.SGD(lr=0.1))}),
    )
    optimizer = Optimizer(rule)
    params = parameters()
    masks = masks_for(params)
    new, state = pr.with_masks(optimizer, params, optimizer.init(params), masks)
    assert sorted(state["slots"]["mask"]) == ["layers.0.w", "layers.1.w"]
    assert pr.sparsity_report(new, masks).kept == np.count_nonzero(new["big"]) + sum(
        np.count_nonzero(x) for layer in new["layers"] for x in layer.values()
    )
    new, state = optimizer.step(new, gradients()[0], state)
    check_pruned({"big": new["big"]}, {"slots": {}}, {"big": masks["big"]})
    with pytest.raises(InputError, match=r"'layers.0.b' has a mask, but its rule Movement stands outside"):
        pr.with_masks(optimizer, params, state, {"layers.0.b": np.ones(8, bool)})
    bare = pr.unmasked(rule)
    assert plan(bare, ["layers.0.w", "big", "layers.0.b"]).pipelines[1] is None


def test_movement_in_the_kernel_is_movement_by_hand(backend: Backend) -> None:
    optimizer = Optimizer(chain(pr.Movement(lr=0.5), pr.masked(po.SGD(lr=0.1))))
    params = convert(parameters(), backend)
    state = optimizer.init(params)
    scores = None
    for g in gradients():
        g = convert(g, backend)
        scores = pr.movement_scores(params, g, scores, lr=0.5)
        params, state = optimizer.step(params, g, state)
    for path, x in scores.items():
        assert_same_bits(state["slots"]["movement"][path], x, what=path)
    masks = pr.score_masks(state["slots"]["movement"], 0.5, scope="global")
    params, state = pr.with_masks(optimizer, params, state, masks)
    assert_same_bits(state["slots"]["movement"]["big"], scores["big"])


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"layers.0.ww": np.ones((6, 8), bool)}, "did you mean 'layers.0.w'"),
        ({"big": np.ones((40, 9), bool)}, r"has shape \(40, 9\); expected its parameter's \(40, 900\)"),
        ({"big": np.ones((40, 900))}, "dtype float64; expected bool"),
    ],
)
def test_masks_that_do_not_belong_are_refused(masks: Any, message: str) -> None:
    optimizer = Optimizer(pr.masked(po.SGD(lr=0.1, momentum=0.9)))
    params = parameters()
    state = optimizer.init(params)
    with pytest.raises(InputError, match=message):
        pr.with_masks(optimizer, params, state, masks)
    same(params, parameters())
    same(state, optimizer.init(parameters()))


def test_other_mistakes_are_named() -> None:
    params = parameters()
    plain = Optimizer(po.Adam())
    with pytest.raises(InputError, match="no slot 'mask'"):
        pr.masks_of(plain.init(params))
    with pytest.raises(InputError, match=r"stands outside of masked\(…\)"):
        pr.with_masks(plain, params, plain.init(params), masks_for(params))
    masked = Optimizer(pr.masked(po.SGD(lr=0.1, momentum=0.9)))
    with pytest.raises(InputError, match="'momentum_buffer' has no leaf"):
        pr.with_masks(masked, params, plain.init(params), masks_for(params))
    with pytest.raises(InputError, match="masked: expected a rule"):
        pr.masked("adam")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="HoldAtZero stands before"):
        Optimizer(chain(pr.masked(po.SGD(lr=0.1)), po.DecoupledWeightDecay(0.1))).init(params)


def test_the_formula_can_be_printed() -> None:
    text = po.explain(pr.masked(po.SGD(lr=0.1)))
    assert "mask" in text
    assert "Stage 2" in text
