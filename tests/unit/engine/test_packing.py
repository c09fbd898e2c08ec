"""Packed buffers: the layout, there and back, and the same bits as leaf by leaf."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import polyopt as po
from polyopt import Optimizer, Packing, chain, partition
from polyopt.backend.convert import convert
from polyopt.backend.protocol import Backend
from polyopt.core import tree
from polyopt.core.errors import InputError
from polyopt.core.rule import Stage
from polyopt.engine.packing import SMALL
from polyopt.testing import assert_same_bits


def parameters(dtype: str = "float32") -> dict[str, Any]:
    random = np.random.default_rng(0)

    def some(*shape: int) -> Any:
        return random.normal(size=shape).astype(dtype)

    return {
        "embed": some(SMALL // 8 + 1, 8),
        "layers": [{"w": some(3, 4), "b": some(4)} for _ in range(5)],
        "scale": some(),
        "head": some(4, 2),
    }


RULES: dict[str, Stage] = {
    "adam": po.Adam(lr=0.01),
    "masked": po.AdamW(lr=po.Cosine(0.01, 20), weight_decay=0.1, mask=r"w$"),
    "clipped": chain(po.ClipByGlobalNorm(0.1), po.NAdam(lr=0.01), po.EMA(0.9, debias=True)),
    "leafwise": chain(po.ClipByNorm(0.1), po.SGD(lr=0.1, momentum=0.9)),
    "parted": partition(
        {r"b$": po.SGD(lr=0.1), r"^embed": None, r".*": chain(po.ClipByGlobalNorm(0.2), po.Adam(lr=0.01))}
    ),
}


def same(backend: Backend, a: Any, b: Any) -> None:
    """Two trees of plain data with the same paths, numbers and bits."""
    first, second = tree.named(a), tree.named(b)
    assert first.keys() == second.keys()
    for path, x in first.items():
        if backend.is_array(x):
            assert_same_bits(backend.to_numpy(x), backend.to_numpy(second[path]))
        else:
            assert x == second[path], path


@pytest.mark.parametrize("name", RULES)
def test_packed_steps_have_the_bits_of_leaves_one_by_one(backend: Backend, name: str) -> None:
    rule = RULES[name]
    params = convert(parameters(), backend)
    grads = [convert(tree.map_leaves(lambda x, k=k: np.cos(x * k), parameters()), backend) for k in (1, 2, 3)]
    packing = Packing(params, rule)
    alone, packed = Optimizer(rule), Optimizer(packing.rule)
    state, buffers = alone.init(params), packing.pack(params)
    packed_state = packed.init(buffers)
    for g in grads:
        params, state = alone.step(params, g, state)
        buffers, packed_state = packed.step(buffers, packing.pack(g), packed_state, donate=True)
    same(backend, packing.unpack(buffers), params)
    same(backend, packing.unpack_state(packed_state), state)


@pytest.mark.parametrize("name", RULES)
def test_a_state_goes_there_and_back(backend: Backend, name: str) -> None:
    params = convert(parameters(), backend)
    optimizer = Optimizer(RULES[name], accumulate=3)
    state = optimizer.init(params)
    params, state = optimizer.step(params, params, state)
    packing = Packing(params, RULES[name], state=state)
    same(backend, packing.unpack_state(packing.pack_state(state)), state)
    same(backend, packing.unpack(packing.pack(params)), params)


def test_the_layout() -> None:
    packing = Packing(parameters(), partition({r"b$": po.SGD(lr=0.1), r".*": po.Adam()}))
    assert packing.names == ("embed", "head", "layers.0.b")
    assert [x.flat for x in packing.buffers] == [False, True, True]
    # Leaves of one shape stand together.
    assert packing.buffers[1].members == ("head", *(f"layers.{i}.w" for i in range(5)), "scale")
    assert {n: x.shape for n, x in packing.pack(parameters()).items()} == {
        "embed": (SMALL // 8 + 1, 8),
        "head": (69,),
        "layers.0.b": (20,),
    }


def test_what_stays_alone() -> None:
    params = parameters() | {"nothing": None, "half": np.zeros(3, np.float16)}
    leafwise = Packing(params, po.ClipByNorm(1.0))
    assert not any(buffer.flat for buffer in leafwise.buffers)
    frozen = Packing(params, partition({r"layers": None, r".*": po.Adam()}))
    assert {b.name for b in frozen.buffers if b.flat} == {"head"}
    assert frozen.pack(params)["nothing"] is None
    assert frozen.unpack(frozen.pack(params))["nothing"] is None
    assert frozen.alone("half")


def test_a_pattern_that_an_earlier_one_shadows_is_no_error() -> None:
    rule = partition({r"w$": po.SGD(lr=0.1), r"layers\.3\.w": po.Adam(), r".*": po.SGD(lr=0.2)})
    params = parameters()
    packing = Packing(params, rule)
    assert Optimizer(packing.rule).init(packing.pack(params))["step"] == 0


def test_hyperparameters_keep_their_names() -> None:
    rule = RULES["clipped"]
    packing = Packing(parameters(), rule)
    packed = Optimizer(packing.rule)
    state = packed.init(packing.pack(parameters()))
    assert packed.hyperparameters(state) == Optimizer(rule).hyperparameters(state)


def test_unpack_is_differentiated_as_one_concatenation(backend: Backend) -> None:
    params = convert(parameters(), backend)
    packing = Packing(params, po.Adam())

    def loss(xp: Any, p: Any) -> Any:
        return sum((xp.sum(xp.multiply(x, 0.5 * x)) for x in tree.flatten(p).leaves), start=xp.asarray(0.0))

    buffers = packing.pack(params)
    with pytest.MonkeyPatch.context():
        _, found = po.value_and_grad(lambda xp, p: xp.astype(loss(xp, packing.unpack(p)), xp.float32))(
            buffers
        )
    same(backend, found, buffers)


def test_histories_that_differ_are_kept_apart() -> None:
    params = parameters()
    optimizer = Optimizer(po.Adam())
    state = optimizer.init(params)
    grads = parameters()
    grads["head"] = None
    params, state = optimizer.step(params, grads, state)
    with pytest.raises(
        InputError, match=r"'missed' of leaf '(layers.*|head)' is .*Packing\(params, rule, state=state\)"
    ):
        Packing(params, po.Adam()).pack_state(state)
    packing = Packing(params, po.Adam(), state=state)
    assert packing.alone("head")
    packed = Optimizer(packing.rule)
    buffers, after = packed.step(packing.pack(params), packing.pack(parameters()), packing.pack_state(state))
    params, state = optimizer.step(params, parameters(), state)
    numpy = po.get_backend("numpy")
    same(numpy, packing.unpack_state(after), state)
    same(numpy, packing.unpack(buffers), params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": np.zeros((2, 4), np.float32)}, r"'head' has shape \(2, 4\); expected \(4, 2\)"),
        ({"head": np.zeros((4, 2), np.float64)}, r"has dtype float32; expected float64"),
        ({"head": None}, r"'head' is None or missing"),
        ({"haed": np.zeros(1)}, r"'haed' has no parameter; did you mean 'head'"),
    ],
)
def test_trees_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    packing = Packing(parameters(), po.Adam())
    with pytest.raises(InputError, match=message):
        packing.pack(parameters() | change)


def test_a_missing_buffer_is_named() -> None:
    packing = Packing(parameters(), po.Adam())
    with pytest.raises(InputError, match="buffer 'embed' is missing"):
        packing.unpack({"head": np.zeros(89, np.float32)})


def test_a_foreign_state_is_refused() -> None:
    packing = Packing(parameters(), po.Adam())
    state = {"step": 0, "missed": {}, "slots": {"exp_avg": {"haed": np.zeros(1)}}}
    with pytest.raises(InputError, match="unknown leaf 'haed'; did you mean 'head'"):
        packing.pack_state(state)


def test_a_global_rule_says_that_it_needs_all_gradients() -> None:
    packing = Packing(parameters(), po.ClipByGlobalNorm(1.0))
    optimizer = Optimizer(packing.rule)
    buffers = packing.pack(parameters())
    state = optimizer.init(buffers)
    with pytest.raises(InputError, match="1 of 2 buffers have a gradient"):
        optimizer.step(buffers, buffers | {"embed": None}, state)
