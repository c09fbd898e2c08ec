"""Whole units: couplings, masks, models that are really smaller, and sparsity over time."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import polyopt as po
from polyopt import Optimizer
from polyopt import pruning as pr
from polyopt.backend.convert import convert
from polyopt.backend.protocol import Backend
from polyopt.core import tree
from polyopt.core.errors import InputError
from polyopt.testing import assert_close, assert_same_bits

EXACT = "the same products, summed without zeros"


def some(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype("float32")


def mlp() -> dict[str, Any]:
    widths = [5, 12, 9, 3]
    return {
        "layers": [
            {"weight": some(n, m, seed=i), "bias": some(m, seed=i)}
            for i, (n, m) in enumerate(pairwise(widths))
        ]
    }


LAYERS = [(f"layers.{i}.weight", f"layers.{i}.bias") for i in range(3)]


def forward(xp: Any, params: Any, x: Any) -> Any:
    """With an activation that isn't 0 at 0."""
    *hidden, last = params["layers"]
    for layer in hidden:
        x = xp.cos(xp.matmul(x, layer["weight"]) + layer["bias"])
    return xp.matmul(x, last["weight"]) + last["bias"]


@pytest.mark.parametrize("scope", ["coupling", "global"])
def test_a_shrunk_mlp_computes_what_the_masked_one_does(backend: Backend, scope: str) -> None:
    params = convert(mlp(), backend)
    couplings = pr.chain_couplings(params, LAYERS)
    masks = pr.structured_masks(params, 0.5, couplings, scope=scope)
    masked, small = pr.pruned(params, masks), pr.shrink(params, masks, couplings)
    kept = pr.kept_units(params, masks, couplings)
    n, m = (int(kept[f"layers.{i}.weight"].sum()) for i in (0, 1))
    assert (n, m) == (6, 5) if scope == "coupling" else n + m == 21 - 10
    shapes = [tuple(layer["weight"].shape) for layer in small["layers"]]
    assert shapes == [(5, n), (n, m), (m, 3)]
    x = backend.from_numpy(some(7, 5, seed=9))
    assert_close(
        forward(backend.ops, small, x), forward(backend.ops, masked, x), rtol=1e-5, atol=1e-5, because=EXACT
    )
    expected = pr.structured_masks(mlp(), 0.5, couplings, scope=scope)
    for path, mask in masks.items():
        assert_same_bits(mask, expected[path], what=path)


def test_a_shrunk_model_trains_on_as_the_masked_one_does() -> None:
    params = tree.map_leaves(lambda x: x.astype("float64"), mlp())
    optimizer = Optimizer(pr.masked(po.Adam(lr=0.01)))
    couplings = pr.chain_couplings(params, LAYERS)
    masks = pr.structured_masks(params, 0.4, couplings)
    params, state = pr.with_masks(optimizer, params, optimizer.init(params), masks)
    x = some(11, 5, seed=3).astype("float64")

    def loss(xp: Any, p: Any) -> Any:
        return xp.sum(xp.square(forward(xp, p, x)))

    def train(optimizer: Optimizer, params: Any, state: Any, steps: int) -> tuple[Any, Any]:
        for _ in range(steps):
            _, grads = po.value_and_grad(loss)(params)
            params, state = optimizer.step(params, grads, state)
        return params, state

    params, state = train(optimizer, params, state, 5)
    small = pr.shrink(params, masks, couplings)
    small_state = pr.shrink_state(state, params, masks, couplings)
    assert {x.shape for x in small_state["slots"]["mask"].values()} == {
        x.shape for x in tree.named(small).values()
    }
    small, _ = train(optimizer, small, small_state, 5)
    params, _ = train(optimizer, params, state, 5)
    again = pr.shrink(params, masks, couplings)
    for path, x in tree.named(again).items():
        assert_close(tree.named(small)[path], x, rtol=1e-9, because=EXACT)


def conv(x: Any, w: Any, layout: str) -> Any:
    """A valid convolution of (n, c, h, w) by (out, in, k, k), or of (n, h, w, c) by (k, k, in, out)."""
    if layout == "in_out":
        return np.moveaxis(conv(np.moveaxis(x, -1, 1), w.transpose(3, 2, 0, 1), "out_in"), 1, -1)
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, w)


@pytest.mark.parametrize("layout", ["in_out", "out_in"])
def test_channels_go_with_their_scales_and_the_linear_layer_behind_a_flatten(layout: str) -> None:
    first, second, linear = some(6, 3, 3, 3), some(4, 6, 3, 3), some(10, 4 * 2 * 3)
    params = {"c1": first, "s1": some(6), "c2": second, "b2": some(4), "fc": linear, "out": some(10)}
    if layout == "in_out":
        params |= {"c1": first.transpose(2, 3, 1, 0), "c2": second.transpose(2, 3, 1, 0)}
        params["fc"] = np.ascontiguousarray(linear.T)
    params = tree.map_leaves(np.ascontiguousarray, params)

    def apply(p: Any, x: Any) -> Any:
        channel = (1, -1, 1, 1) if layout == "out_in" else (1, 1, 1, -1)
        x = np.tanh(conv(x, p["c1"], layout) * p["s1"].reshape(channel))
        x = np.cos(conv(x, p["c2"], layout) + p["b2"].reshape(channel))
        x = x.reshape(x.shape[0], -1)
        return x @ (p["fc"].T if layout == "out_in" else p["fc"]) + p["out"]

    couplings = pr.chain_couplings(params, [("c1", "s1"), ("c2", "b2"), ("fc", "out")], layout=layout)
    masks = pr.structured_masks(params, 0.5, couplings, norm=1)
    small = pr.shrink(params, masks, couplings)
    assert small["s1"].shape == (3,)
    assert small["b2"].shape == (2,)
    assert small["fc"].size == params["fc"].size // 2
    assert "out" not in masks
    x = some(2, 3, 6, 7) if layout == "out_in" else some(2, 6, 7, 3)
    assert_close(apply(small, x), apply(pr.pruned(params, masks), x), rtol=2e-4, atol=1e-5, because=EXACT)


def attention(p: Any, x: Any, heads: int, joint: bool) -> Any:
    if joint:
        q, k, v = np.split(x @ p["qkv"] + p["b"], 3, axis=-1)
    else:
        q, k, v = (x @ p[n] for n in "qkv")
    q, k, v = (np.swapaxes(y.reshape(*y.shape[:-1], heads, -1), -2, -3) for y in (q, k, v))
    weights = np.exp(q @ np.swapaxes(k, -1, -2) / math.sqrt(q.shape[-1]))
    weights /= weights.sum(axis=-1, keepdims=True)
    y = np.swapaxes(weights @ v, -2, -3)
    return y.reshape(*y.shape[:-2], -1) @ p["o"]


@pytest.mark.parametrize("joint", [False, True])
def test_heads_go_with_their_queries_keys_values_and_outputs(joint: bool) -> None:
    params = {"o": some(12, 7)}
    if joint:
        params |= {"qkv": some(7, 36), "b": some(36)}
        coupling = pr.head_coupling("h", 4, ["qkv"], "o", params, biases=["b"], tiles=3)
    else:
        params |= {n: some(7, 12, seed=ord(n)) for n in "qkv"}
        coupling = pr.head_coupling("h", 4, ["q", "k", "v"], "o", params)
    masks = pr.structured_masks(params, 0.5, [coupling])
    small = pr.shrink(params, masks, [coupling])
    assert small["o"].shape == (6, 7)
    x = some(3, 5, 7)
    masked = attention(pr.pruned(params, masks), x, 4, joint)
    assert_close(attention(small, x, 2, joint), masked, rtol=1e-4, atol=1e-5, because=EXACT)


@pytest.mark.parametrize("norm", [1, 2, 3.0, math.inf])
@pytest.mark.parametrize("axis", [0, 1])
def test_units_are_those_that_torchs_ln_structured_keeps(norm: float, axis: int) -> None:
    import torch
    from torch.nn.utils import prune

    layer = torch.nn.Conv2d(6, 8, 3)
    value = some(8, 6, 3, 3)
    layer.weight.data = torch.from_numpy(value.copy())
    prune.ln_structured(layer, "weight", amount=0.5, n=norm, dim=axis)
    coupling = pr.Coupling("c", value.shape[axis], (pr.Member("w", axis, scored=True),))
    ours = pr.structured_masks({"w": torch.from_numpy(value)}, 0.5, [coupling], norm=norm)["w"]
    assert_same_bits(ours, layer.weight_mask.numpy().astype(bool))


def test_high_norms_of_small_weights_still_rank() -> None:
    w = np.array([[0.03, 0.01, 0.02, np.inf], [0.0, 0.0, 0.02, 0.0]])
    coupling = pr.Coupling("c", 4, (pr.Member("w", 1, scored=True),))
    for norm in (1000.0, 2, 0.5):
        scores = pr.unit_scores({"w": w}, [coupling], norm=norm)["c"]
        assert scores.argsort().tolist() == ([1, 2, 0, 3] if norm > 1 else [1, 0, 2, 3])
    assert_close(scores[2], 0.08, rtol=1e-14, because="(2·√0.02)²")
    with pytest.raises(InputError, match=r"norms of 'c' overflow for norm = 0\.001"):
        pr.unit_scores({"w": np.ones((3, 4))}, [coupling], norm=0.001)


def test_scores_of_ones_own_decide_and_the_first_of_equals_go() -> None:
    params = {"w0": np.ones((3, 4)), "w1": np.ones((4, 2))}
    couplings = pr.chain_couplings(params, ["w0", "w1"])
    assert pr.structured_masks(params, 0.5, couplings)["w0"][0].tolist() == [False, False, True, True]
    scores = {"w0": [4.0, 1.0, 3.0, 2.0]}
    masks = pr.structured_masks(params, 0.5, couplings, scores=scores)
    assert masks["w1"][:, 0].tolist() == [True, False, True, False]


def test_units_without_all_their_slices_pruned_stay() -> None:
    params = {"w0": np.ones((3, 4)), "b0": np.ones(4), "w1": np.ones((4, 2))}
    couplings = pr.chain_couplings(params, [("w0", "b0"), "w1"])
    masks = pr.structured_masks(params, 0.5, couplings)
    masks["b0"] = np.array([True, False, True, True])
    assert pr.kept_units(params, masks, couplings)["w0"].tolist() == [True, False, True, True]
    del masks["b0"]
    assert pr.shrink(params, masks, couplings)["w0"].shape == (3, 4)


def test_leaves_of_another_kind_keep_their_dtype(backend: Backend) -> None:
    params = tree.map_leaves(lambda x: backend.from_numpy(x, dtype="bfloat16"), mlp())
    couplings = pr.chain_couplings(params, LAYERS)
    small = pr.shrink(params, pr.structured_masks(params, 0.5, couplings), couplings)
    assert {backend.dtype_name(x) for x in tree.named(small).values()} == {"bfloat16"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, c: pr.structured_masks(p, 0.97, c), "would prune all 12 units of 'layers.0.weight'"),
        (lambda p, c: pr.structured_masks(p, 1.0, c), r"expected a number in \[0, 1\)"),
        (lambda p, c: pr.structured_masks(p, 0.5, []), "no couplings"),
        (lambda p, c: pr.structured_masks(p, 0.5, [c[0], c[0]]), "two couplings are called"),
        (lambda p, c: pr.structured_masks(p, 0.5, c, norm=0), "expected a number above 0"),
        (lambda p, c: pr.structured_masks(p, 0.5, c, scope="gobal"), "did you mean 'global'"),
        (lambda p, c: pr.structured_masks(p, 0.5, c, scores={}), "has no scores"),
        (lambda p, c: pr.structured_masks(p, 0.5, c[:1], scores={c[0].name: [1.0]}), r"expected \(12,\)"),
        (lambda p, c: pr.structured_masks({"layers": p["layers"][:1]}, 0.5, c), "which is no parameter"),
        (lambda p, c: pr.chain_couplings(p, LAYERS[:1]), "at least two"),
        (lambda p, c: pr.chain_couplings(p, ["layers.0.wieght", "layers.1.weight"]), "did you mean"),
        (lambda p, c: pr.chain_couplings(p, LAYERS, layout="out_in"), "expected as many, or a multiple"),
        (lambda p, c: pr.chain_couplings(p, LAYERS, layout="oi"), "layout = 'oi'"),
        (
            lambda p, c: pr.chain_couplings(p, ["layers.0.weight", ("layers.1.weight",), "layers.2.bias"]),
            "at least two axes",
        ),
        (
            lambda p, c: pr.chain_couplings(p, [("layers.0.weight", "layers.1.bias"), "layers.1.weight"]),
            r"'layers.1.bias' of shape \(9,\) doesn't couple: expected a length of 12 along axis 0",
        ),
        (lambda p, c: pr.head_coupling("h", 5, ["layers.0.weight"], "layers.1.weight", p), "multiple of 5"),
        (
            lambda p, c: pr.head_coupling("h", 1, ["layers.0.weight"], "layers.1.weight", p, tiles=0),
            "tiles = 0; expected an integer >= 1",
        ),
        (
            lambda p, c: pr.structured_masks(
                p, 0.5, [pr.Coupling("c", 12, (pr.Member("layers.0.weight", 1),))]
            ),
            "'c' has no member that is scored",
        ),
        (lambda p, c: pr.head_coupling("h", 5, ["layers.0.wight"], "layers.1.weight", p), "did you mean"),
        (lambda p, c: pr.shrink(p, {"a": np.ones(3, bool)}, c), "belongs to no parameter"),
        (
            lambda p, c: pr.shrink(p, {k: np.zeros(x.shape, bool) for k, x in tree.named(p).items()}, c),
            "nothing is left of 'layers.0.weight'",
        ),
    ],
)
def test_errors_of_structure(call: Callable[..., Any], message: str) -> None:
    params = mlp()
    with pytest.raises(InputError, match=message):
        call(params, pr.chain_couplings(params, LAYERS))
    for path, x in tree.named(params).items():
        assert_same_bits(x, tree.named(mlp())[path], what=path)


# Sparsity over time


def test_gradual_sparsity_is_zhu_and_guptas() -> None:
    schedule = pr.Gradual(0.9, steps=200, every=20, start=30, initial=0.2)
    for t in range(0, 400, 7):
        done = min(max(t - 30, 0) / 200, 1.0)
        expected = 0.9 + (0.2 - 0.9) * (1 - done) ** 3 if t >= 30 else 0.0
        assert_close(schedule(t), expected, rtol=1e-14, because="the same formula, blended otherwise")
    assert [t for t in range(400) if schedule.due(t)] == list(range(30, 231, 20))
    assert schedule(230) == 0.9


@pytest.mark.parametrize(
    "schedule", [pr.OneShot(0.5, at=7), pr.Gradual(0.5, steps=6, every=3, start=2), pr.Iterative(0.5, 3, 4)]
)
def test_the_last_pruning_reaches_the_end(schedule: pr.SparsitySchedule) -> None:
    assert schedule.last == max(t for t in range(99) if schedule.due(t))
    assert schedule(schedule.last) == schedule(999) == 0.5


def test_rounds_prune_the_same_share_of_what_is_left() -> None:
    schedule = pr.Iterative(1 - 0.8**5, rounds=5, every=10)
    for r in range(6):
        assert_close(schedule.of_round(r), 1 - 0.8**r, atol=1e-15, because="one power")
    assert [t for t in range(100) if schedule.due(t)] == [10, 20, 30, 40, 50]
    assert (schedule(0), schedule(9), schedule(500)) == (0.0, 0.0, schedule.end)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: pr.OneShot(1.0), r"sparsity = 1.0; expected a number in \[0, 1\)"),
        (lambda: pr.OneShot(-0.1), "sparsity = -0.1"),
        (lambda: pr.Gradual(1.5, steps=3), "end = 1.5"),
        (lambda: pr.Gradual(0.5, steps=10, every=3), "multiple of every = 3"),
        (lambda: pr.Gradual(0.5, steps=10, initial=0.6), "is above end"),
        (lambda: pr.Iterative(0.5, rounds=0), "rounds = 0"),
    ],
)
def test_schedules_refuse_what_is_no_sparsity(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()


def test_pruning_follows_its_schedule_in_training(backend: Backend) -> None:
    optimizer = Optimizer(pr.masked(po.Adam(lr=0.05)))
    params = convert({"w": some(8, 10)}, backend)
    state = optimizer.init(params)
    schedule = pr.Gradual(0.8, steps=4, every=2, start=1)
    criterion = partial(pr.magnitude_masks, scope="global")
    seen, before = [], pr.masks_of(state)["w"]
    for i in range(7):
        params, state = pr.prune(optimizer, params, state, schedule, criterion)
        kept = pr.masks_of(state)["w"]
        assert not (backend.to_numpy(kept) & ~backend.to_numpy(before)).any()
        before = kept
        seen.append(pr.sparsity_report(params).kept)
        g = {"w": backend.from_numpy(some(8, 10, seed=i))}
        params, state = optimizer.step(params, g, state, donate=True)
    assert seen == [80, 80, 80, 24, 24, 16, 16]


def test_a_ticket_is_found_and_rewound() -> None:
    early = {"layers": [{"weight": some(6, 8), "bias": some(8)}]}
    optimizer = Optimizer(pr.masked(po.SGD(lr=0.1, momentum=0.9)))
    given: list[Any] = []

    def train(params: Any, masks: Any) -> Any:
        given.append(params)
        params, state = pr.with_masks(optimizer, params, optimizer.init(params), masks)
        for i in range(3):
            g = tree.map_leaves(lambda x, i=i: some(*x.shape, seed=10 + i), params)
            params, state = optimizer.step(params, g, state)
        return params

    tickets = list(pr.lottery(early, pr.Iterative(1 - 0.5**3, rounds=3), train))
    assert [np.count_nonzero(t.masks["layers.0.weight"]) for t in tickets] == [24, 12, 6]
    assert [t.round for t in tickets] == [1, 2, 3]
    for before, ticket in zip([None, *tickets], tickets, strict=False):
        mask = ticket.masks["layers.0.weight"]
        weight, start = ticket.params["layers"][0]["weight"], early["layers"][0]["weight"]
        assert_same_bits(weight, np.where(mask, start, np.float32(0)))
        assert_same_bits(ticket.params["layers"][0]["bias"], early["layers"][0]["bias"])
        if before is not None:
            assert not (mask & ~before.masks["layers.0.weight"]).any()
            assert not ticket.trained["layers"][0]["weight"][~before.masks["layers.0.weight"]].any()
    assert given[1] is tickets[0].params
