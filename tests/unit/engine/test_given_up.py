"""Refuse to give up what shares memory or can't be written, before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from polyopt import SGD, Adam, Optimizer, partition
from polyopt.backend import registry
from polyopt.backend.host.overlap import Extent, folds, meeting, placed, share
from polyopt.backend.protocol import Backend
from polyopt.core.errors import InputError
from polyopt.testing import assert_same_bits

HOSTS = [registry.by_name("numpy"), registry.by_name("torch")]
RULES = {
    "one group": lambda: SGD(lr=1.0),
    "two groups": lambda: partition({"a": SGD(lr=1.0), ".*": SGD(lr=1.0, momentum=0.5)}),
}
SIZES = [12, 12_000]
"""A leaf that is packed where there is no compiled kernel, and one that runs alone."""

VIEWS: dict[str, Callable[[Any], tuple[Any, Any]]] = {
    "all of it": lambda x: (x, x[:]),
    "reshaped": lambda x: (x, x.reshape(-1)),
    "transposed": lambda x: (x, x.T),
    "overlapping": lambda x: (x[:-1], x[1:]),
    "a part": lambda x: (x[0], x),
    "crossing": lambda x: (x[1, :], x[:, 1]),
}
APART: dict[str, Callable[[Any], tuple[Any, Any]]] = {
    "halves": lambda x: (x[:2], x[2:]),
    "interleaved": lambda x: (x[::2], x[1::2]),
    "columns": lambda x: (x[:, 0], x[:, 1]),
    "nothing of it": lambda x: (x, x[:0]),
}


def host(backend: Backend, x: Any) -> Any:
    return np.array(backend.to_numpy(x))


def whole(backend: Backend, size: int, dtype: str = "float32") -> Any:
    return backend.from_numpy(np.arange(float(size)).reshape(4, -1), dtype=dtype)


def ones(backend: Backend, like: Any, value: float = 1.0) -> Any:
    return backend.from_numpy(np.full(tuple(like.shape), value), dtype=backend.dtype_name(like))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("backend", HOSTS, ids=lambda b: b.name)
def test_parameters_that_share_memory_are_refused(
    backend: Backend, view: str, rule: str, size: int, compiled: bool, dtype: str
) -> None:
    x = whole(backend, size, dtype)
    before = host(backend, x)
    params = dict(zip("ab", VIEWS[view](x), strict=True)) | {"c": ones(backend, x)}
    optimizer = Optimizer(RULES[rule](), compiled=compiled)
    state = optimizer.init(params)
    gradients = {k: ones(backend, p) for k, p in params.items()}
    with pytest.raises(InputError, match="leaves 'a' and 'b' share memory, which donate=True"):
        optimizer.step(params, gradients, state, donate=True)
    assert_same_bits(host(backend, x), before)
    assert (host(backend, params["c"]) == 1).all()
    optimizer.step(params, gradients, state)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("view", APART)
@pytest.mark.parametrize("backend", HOSTS, ids=lambda b: b.name)
def test_views_that_share_no_element_are_updated_in_place(
    backend: Backend, view: str, rule: str, size: int, compiled: bool
) -> None:
    x = whole(backend, size)
    params = dict(zip("ab", APART[view](x), strict=True))
    optimizer = Optimizer(RULES[rule](), compiled=compiled)
    state = optimizer.init(params)
    expected = host(backend, x)
    for part, value in zip(APART[view](expected), (1.0, 10.0), strict=True):
        part -= 2 * value if part.size or rule == "one group" else 0
    if rule == "two groups":  # b's momentum: 1 + 1.5
        part = APART[view](expected)[1]
        part -= 5.0
    for _ in range(2):
        gradients = {"a": ones(backend, params["a"]), "b": ones(backend, params["b"], 10.0)}
        _, state = optimizer.step(params, gradients, state, donate=True)
    assert_same_bits(host(backend, x), expected)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("backend", HOSTS, ids=lambda b: b.name)
def test_gradients_in_what_is_written_are_read_before(
    backend: Backend, rule: str, size: int, compiled: bool
) -> None:
    for take in (lambda x: x, lambda x: x[:], lambda x: x.reshape(-1)[::-1].reshape(x.shape)):
        if backend.name == "torch" and take(np.arange(4.0)[None])[0, 0]:
            continue  # no negative strides
        params = {k: whole(backend, size) for k in "ab"}
        optimizer = Optimizer(RULES[rule](), compiled=compiled)
        state = optimizer.init(params)
        gradients = {"a": take(params["b"]), "b": take(params["a"])}
        copies = {k: backend.from_numpy(host(backend, x)) for k, x in gradients.items()}
        expected, _ = optimizer.step(params, copies, state)
        found, _ = optimizer.step(params, gradients, state, donate=True)
        for k, x in expected.items():
            assert_same_bits(host(backend, found[k]), host(backend, x), what=k)
            assert found[k] is params[k]


def test_slots_that_share_memory_are_refused(backend: Backend) -> None:
    views = {"are the same array": lambda x: x}
    if backend.name in ("numpy", "torch"):  # the others' share none that can be written to
        views["share memory"] = lambda x: x[:]
    for how, view in views.items():
        optimizer = Optimizer(Adam(lr=0.1))
        params = {k: whole(backend, 12) for k in "ab"}
        state = optimizer.init(params)
        state["slots"]["exp_avg"]["b"] = view(state["slots"]["exp_avg_sq"]["a"])
        named = f"slot 'exp_avg' of leaf 'b' and slot 'exp_avg_sq' of leaf 'a' {how}"
        with pytest.raises(InputError, match=named):
            optimizer.step(params, params, state, donate=True)
        assert_same_bits(host(backend, params["a"]), np.arange(12, dtype=np.float32).reshape(4, 3))


@pytest.mark.parametrize("which", ["frozen", "without a gradient"])
def test_what_is_kept_shares_no_memory_with_what_is_written(which: str) -> None:
    x = np.ones(4)
    rule = partition({"b": None, "a": SGD(lr=1.0)}) if which == "frozen" else SGD(lr=1.0)
    optimizer = Optimizer(rule)
    params = {"a": x, "b": x[:2]}
    gradients = {"a": np.ones(4), "b": None if which == "without a gradient" else np.ones(2)}
    with pytest.raises(InputError, match="leaves 'a' and 'b' share memory"):
        optimizer.step(params, gradients, optimizer.init(params), donate=True)
    assert x.tolist() == [1.0] * 4


TENSORS: dict[str, Callable[[Any, int, Any], Any]] = {
    "expanded": lambda torch, n, d: torch.ones(1, dtype=d).expand(n),
    "a window": lambda torch, n, d: torch.ones(n, dtype=d).as_strided((n // 2, 3), (1, 1)),
    "negative": lambda torch, n, d: torch._neg_view(torch.ones(n, dtype=d)),
    "meta": lambda torch, n, d: torch.ones(n, dtype=d, device="meta"),
}


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_that_cannot_be_written_are_refused(kind: str, size: int, compiled: bool, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    x = TENSORS[kind](torch, size, getattr(torch, dtype))
    params = {"a": torch.ones(3), "b": x, "c": torch.ones(3)}
    like = {k: torch.ones(p.shape, dtype=p.dtype) for k, p in params.items()}
    optimizer = Optimizer(Adam(lr=0.1), compiled=compiled)
    state = optimizer.init(like)
    with pytest.raises(InputError, match=r"leaf 'b' (has|stands).*; give a copy"):
        optimizer.step(params, like, state, donate=True)
    state["slots"]["exp_avg"]["b"] = x if dtype != "bfloat16" else TENSORS[kind](torch, size, torch.float32)
    with pytest.raises(InputError, match=r"slot 'exp_avg' of leaf 'b' (has|stands)"):
        optimizer.step(like | {"a": params["a"]}, like, state, donate=True)
    assert (params["a"] == 1).all()
    assert not state["slots"]["exp_avg"]["a"].any()


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["expanded", "a window", "negative"])
def test_such_tensors_may_be_gradients(kind: str, size: int, compiled: bool, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    x = TENSORS[kind](torch, size, getattr(torch, dtype))
    optimizer = Optimizer(SGD(lr=0.5), compiled=compiled)
    params = {"a": torch.zeros(x.shape, dtype=x.dtype)}
    found, _ = optimizer.step(params, {"a": x}, optimizer.init(params), donate=True)
    assert_same_bits(host(HOSTS[1], found["a"]), host(HOSTS[1], x.contiguous() * -0.5))


def _inference(torch: Any, n: int, dtype: Any) -> Any:
    with torch.inference_mode():
        return torch.ones(n, dtype=dtype)


MADE: dict[str, Callable[[Any, int, Any], Any]] = {
    "inference": _inference,
    "unbind": lambda torch, n, d: torch.ones(2, n, dtype=d, requires_grad=True).unbind(0)[0],
    "split": lambda torch, n, d: torch.ones(2 * n, dtype=d, requires_grad=True).split(n)[1],
    "detached": lambda torch, n, d: torch.ones(n, dtype=d, requires_grad=True).detach(),
    "computed": lambda torch, n, d: torch.ones(n, dtype=d, requires_grad=True) * 1,
    "parameter": lambda torch, n, d: torch.nn.Parameter(torch.ones(n, dtype=d)),
    "strided": lambda torch, n, d: torch.ones(n, 2, dtype=d)[:, 0],
}


@pytest.mark.parametrize("inside", [False, True], ids=["outside", "in inference mode"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", MADE)
def test_tensors_of_every_making_are_updated_in_place(
    kind: str, size: int, compiled: bool, dtype: str, inside: bool
) -> None:
    torch = pytest.importorskip("torch")
    x = MADE[kind](torch, size, getattr(torch, dtype))
    params = {"a": torch.ones(3), "b": x}
    optimizer = Optimizer(SGD(lr=0.5, momentum=0.5), compiled=compiled)
    with torch.inference_mode(inside):
        state = optimizer.init(params)
        for _ in range(3):
            gradients = {k: torch.ones(p.shape, dtype=p.dtype) for k, p in params.items()}
            found, state = optimizer.step(params, gradients, state, donate=True)
    assert found["b"] is x
    for leaf in (params["a"], x):  # 1 - 0.5 * (1 + 1.5 + 1.75)
        assert (host(HOSTS[1], leaf).astype(np.float32) == -1.125).all()
    assert state["step"] == 3


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_arrays_that_are_read_only_or_folded(size: int, compiled: bool) -> None:
    """Read-only ones are left alone, and new ones are given; a writable window over an array is refused."""
    optimizer = Optimizer(SGD(lr=0.5), compiled=compiled)
    for fixed in (np.broadcast_to(1.0, (size,)), np.ones(size)):
        fixed.flags.writeable = False
        params = {"a": np.ones(3), "b": fixed, "c": fixed[:2]}
        gradients = {k: np.ones(x.shape) for k, x in params.items()}
        found, _ = optimizer.step(params, gradients, optimizer.init(params), donate=True)
        assert all((x == 0.5).all() for x in found.values())
        assert (fixed == 1.0).all()
    window = np.lib.stride_tricks.sliding_window_view(np.ones(size), 3, writeable=True)
    params = {"a": np.ones(3), "b": window}
    gradients = {k: np.ones(x.shape) for k, x in params.items()}
    with pytest.raises(InputError, match="leaf 'b' has elements that share their memory"):
        optimizer.step(params, gradients, optimizer.init(params), donate=True)
    assert params["a"].tolist() == [1.0] * 3


def test_the_last_update_of_a_run_is_held_to_the_same() -> None:
    x = np.ones(4)
    params = {"a": x, "b": x[:2]}
    optimizer = Optimizer(SGD(lr=1.0), accumulate=3)
    _, state = optimizer.step(params, {"a": np.ones(4), "b": np.ones(2)}, optimizer.init(params))
    with pytest.raises(InputError, match="leaves 'a' and 'b' share memory"):
        optimizer.flush(params, state, donate=True)
    assert x.tolist() == [1.0] * 4


def test_overlap_is_what_sets_of_bytes_say() -> None:
    rng = np.random.default_rng(0)
    memory = np.zeros(200, np.int8)
    views = []
    for _ in range(300):
        shape = tuple(rng.integers(1, 4, rng.integers(1, 4)).tolist())
        strides = tuple((rng.integers(0, 10, len(shape)) * 2).tolist())
        start = int(rng.integers(0, 40))
        at = np.array([start + np.dot(i, strides) for i in np.ndindex(*shape)])
        views.append((placed(memory.ctypes.data + start, shape, strides, 4), at))
        assert folds(shape, strides, 4) == (len({b for a in at for b in range(a, a + 4)}) < 4 * at.size)
    extents = [Extent(int(at.min()), int(at.max()) + 4) for _, at in views]
    pairs = set(meeting(extents, 40))
    for i in range(40):
        for j in range(i + 1, len(views)):
            (x, here), (y, there) = views[i], views[j]
            bytes_ = [{b for a in at for b in range(a, a + 4)} for at in (here, there)]
            assert ((i, j) in pairs and share(x, y)) == bool(bytes_[0] & bytes_[1])
