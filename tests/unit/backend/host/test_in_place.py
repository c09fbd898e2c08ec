"""Without numba, a donated update like the one before runs kept calls, with the bits of the operations."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from polyopt import SGD, Adam, ClipByGlobalNorm, NAdam, Optimizer, RMSprop, chain, partition
from polyopt.backend.host import numba_kernel
from polyopt.backend.host.in_place import InPlaceLift
from polyopt.backend.host.lift import SMALL
from polyopt.backend.host.numpy_kernel import BLOCK
from polyopt.core.errors import InputError
from polyopt.engine.lift import lifted
from polyopt.testing import assert_same_bits

SHAPES: dict[str, tuple[int, ...]] = {
    "large": (2, BLOCK // 2 + 5),
    "block": (BLOCK,),
    "w": (5, 3),
    "b": (3,),
    "a": (),
    "none": (0,),
    "most": (SMALL,),
    "pack": (BLOCK - SMALL - 10,),  # what is packed is more than one block
    "first": (5, 3),
}
RULES: dict[str, Callable[[], Any]] = {
    "adam": lambda: Adam(lr=0.1),
    "amsgrad": lambda: Adam(lr=0.1, amsgrad=True, eps=0.0),
    "clipped": lambda: chain(ClipByGlobalNorm(0.5), Adam(lr=0.1)),
    "rmsprop": lambda: RMSprop(lr=0.1, centered=True, weight_decay=0.1),
    "scalar slots": lambda: NAdam(lr=0.1),
    "two groups": lambda: partition({"b|large": SGD(lr=0.1, momentum=0.9), ".*": Adam(lr=0.1)}),
}


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The plans that were run; there is no numba."""
    monkeypatch.setattr(numba_kernel, "_numba", lambda: None)
    lifted.cache_clear()
    taken: list[Any] = []
    run = InPlaceLift.rerun

    def counted(self: InPlaceLift, look: Any, *rest: Any) -> Any:
        taken.append(look)
        return run(self, look, *rest)

    monkeypatch.setattr(InPlaceLift, "rerun", counted)
    yield taken
    lifted.cache_clear()


def arrays(seed: int, dtypes: tuple[str, ...] = ("float32",)) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    dtype = [dtypes[i % len(dtypes)] for i in range(len(SHAPES))]
    return {
        n: np.asarray(rng.normal(size=s).astype(d)) for (n, s), d in zip(SHAPES.items(), dtype, strict=True)
    }


def runs(opt: Optimizer, dtypes: tuple[str, ...], steps: int = 5) -> tuple[Any, Any]:
    params = arrays(0, dtypes)
    state = opt.init(params)
    for i in range(steps):
        params, state = opt.step(params, arrays(i + 1, dtypes), state, donate=True)
    return params, state


@pytest.mark.parametrize(
    "dtypes", [("float32",), ("float64",), ("float16", "float32"), ("float32", "float64")]
)
@pytest.mark.parametrize("rule", RULES)
def test_the_bits_are_those_of_the_operations(rule: str, dtypes: tuple[str, ...], kept: list[Any]) -> None:
    params, state = runs(Optimizer(RULES[rule]()), dtypes)
    groups = len(kept) // 4
    assert kept == [*kept[:groups]] * 4
    assert groups >= 1
    expected, before = runs(Optimizer(RULES[rule](), compiled=False), dtypes)
    assert len(kept) == 4 * groups
    for name, x in expected.items():
        assert_same_bits(params[name], x, what=name)
    for slot, values in before["slots"].items():
        for name, x in values.items():
            assert_same_bits(np.asarray(state["slots"][slot][name]), np.asarray(x), what=f"{slot} of {name}")


CHANGES: dict[str, Callable[[Any, Any, Any], Any]] = {
    "gradient in pieces": lambda p, g, s: g.__setitem__("w", np.asfortranarray(g["w"])),
    "gradient of another dtype": lambda p, g, s: g.__setitem__("w", g["w"].astype(np.float64)),
    "gradient is the parameter": lambda p, g, s: g.__setitem__("w", p["w"]),
    "gradients in the parameter": lambda p, g, s: g.__setitem__("b", p["w"].reshape(-1)[:3]),
    "parameter in pieces": lambda p, g, s: p.__setitem__("w", np.asfortranarray(p["w"])),
    "parameter of another dtype": lambda p, g, s: p.__setitem__("w", p["w"].astype(np.float16)),
    "read-only parameter": lambda p, g, s: p["large"].setflags(write=False),
    "a subclass": lambda p, g, s: p.__setitem__("w", p["w"].view(type("Own", (np.ndarray,), {}))),
}


REFUSED: dict[str, Callable[[Any, Any], Any]] = {
    "parameters overlap": lambda p, s: p.__setitem__("b", p["w"].reshape(-1)[:3]),
    "one slot for two": lambda p, s: s["exp_avg"].__setitem__("b", s["exp_avg_sq"]["b"]),
}


@pytest.mark.parametrize("change", REFUSED)
def test_what_overlaps_is_refused_as_at_the_first_step(change: str, kept: list[Any]) -> None:
    opt = Optimizer(Adam(lr=0.1))
    params, state = runs(opt, ("float32",), steps=2)
    kept.clear()
    REFUSED[change](params, state["slots"])
    with pytest.raises(InputError, match="donate=True would update twice"):
        opt.step(params, arrays(9), state, donate=True)
    assert not kept


@pytest.mark.parametrize("change", CHANGES)
def test_what_differs_is_found_out(change: str, kept: list[Any]) -> None:
    outcomes = []
    for forget in (True, False):
        opt = Optimizer(Adam(lr=0.1))
        params, state = runs(opt, ("float32",), steps=2)
        assert kept
        kept.clear()
        if forget:
            opt._replay = None
        grads = arrays(9)
        CHANGES[change](params, grads, state["slots"])
        outcomes.append(opt.step(params, grads, state, donate=True))
        assert not kept
    for name, x in outcomes[0][0].items():
        assert_same_bits(outcomes[1][0][name], x, what=name)


def test_it_holds_no_array(kept: list[Any]) -> None:
    opt = Optimizer(Adam(lr=0.1))
    params, state = runs(opt, ("float32",), steps=3)
    assert len(kept) == 2
    seen = [weakref.ref(x) for x in (*params.values(), *state["slots"]["exp_avg"].values())]
    del params, state
    assert [x() for x in seen] == [None] * len(seen)
