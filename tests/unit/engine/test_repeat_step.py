"""A donated update that is like the one before takes the short way with the same outcome; no other does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest

from polyopt import SGD, Adam, ClipByGlobalNorm, Exponential, NAdam, Optimizer, chain, partition
from polyopt.backend import registry
from polyopt.core.errors import InputError, NonFiniteError
from polyopt.engine.repeat_step import CachedStep
from polyopt.testing import assert_same_bits

pytest.importorskip("numba")

HOSTS = [registry.by_name("numpy"), registry.by_name("torch")]
RULES: dict[str, Callable[[], Any]] = {
    "adam": lambda: Adam(lr=Exponential(0.1, 0.5, steps=2)),
    "clipped": lambda: chain(ClipByGlobalNorm(0.5), Adam(lr=0.1)),
    "scalar slots": lambda: NAdam(lr=0.1),
    "two groups": lambda: partition({"b": SGD(lr=0.1, momentum=0.9), ".*": NAdam(lr=0.1)}),
    "frozen": lambda: partition({"b": None, ".*": Adam(lr=0.1)}),
}


def flat(x: dict[str, Any]) -> Any:
    return {"w": x["w"], "b": x["b"], "a": x["a"]}  # not in the order of its keys


CONTAINERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "flat": flat,
    "nested": lambda x: {"one": [x["w"], {"b": x["b"]}], "a": (x["a"],)},
    "list": lambda x: [x["w"], x["b"], x["a"]],
}


def arrays(backend: Any, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"w": (5, 3), "b": (3,), "a": ()}
    return {n: backend.from_numpy(rng.normal(size=s).astype(np.float32)) for n, s in shapes.items()}


class Taken:
    """How many updates went the short way."""

    count = 0


def runs(opt: Optimizer, make: Callable[[int], Any], params: Any, donate: bool, steps: int = 5) -> Any:
    state = opt.init(params)
    for i in range(steps):
        params, state = opt.step(params, make(i + 1), state, donate=donate)
    return params, state


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Taken:
    taken = Taken()
    run = CachedStep.run

    def counted(*args: Any) -> Any:
        taken.count += 1
        return run(*args)

    monkeypatch.setattr(CachedStep, "run", counted)
    return taken


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("backend", HOSTS, ids=lambda b: b.name)
def test_the_short_way_has_the_bits_of_the_long_one(
    backend: Any, rule: str, container: str, short: Taken
) -> None:
    if container == "list" and rule in ("two groups", "frozen"):
        container = "flat"
    wrap = CONTAINERS[container]
    results = []
    for donate in (False, True):
        opt = Optimizer(RULES[rule]())
        make = lambda i: wrap(arrays(backend, i))  # noqa: E731
        results.append(runs(opt, make, wrap(arrays(backend, 0)), donate))
    assert short.count == 4
    (p, s), (q, t) = results
    import optree

    expected, structure = optree.tree_flatten(p)
    got, same = optree.tree_flatten(q)
    assert structure == same
    for x, y in zip(got, expected, strict=True):
        assert_same_bits(x, y, what=f"{rule}: parameters")
    assert t["step"] == s["step"] == 5
    assert {n: list(v) for n, v in t["slots"].items()} == {n: list(v) for n, v in s["slots"].items()}
    for name, values in s["slots"].items():
        for path, x in values.items():
            if isinstance(x, float):
                assert t["slots"][name][path] == x
            else:
                assert_same_bits(t["slots"][name][path], x, what=f"{rule}: {name} of {path}")


@pytest.mark.parametrize("backend", HOSTS, ids=lambda b: b.name)
def test_a_leaf_without_a_gradient_goes_the_long_way(backend: Any, short: Taken) -> None:
    opt = Optimizer(Adam(lr=0.1))
    params = arrays(backend, 0)
    state = opt.init(params)
    for i in range(3):
        params, state = opt.step(params, arrays(backend, i), state, donate=True)
    assert short.count == 2
    before = np.array(backend.to_numpy(params["b"]))
    params, state = opt.step(params, arrays(backend, 9) | {"b": None}, state, donate=True)
    assert short.count == 2
    assert state["missed"] == {"b": 1}
    assert_same_bits(params["b"], before, what="b")


@pytest.mark.parametrize("backend", HOSTS, ids=lambda b: b.name)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g.__setitem__("w", g["w"][:2]), "leaf 'w'.*shape"),
        (lambda g: g.__setitem__("w", g["w"].reshape(3, 5)), "leaf 'w'.*shape"),
        (lambda g: g.pop("b"), "leaf 'b' is missing"),
        (lambda g: g.__setitem__("c", g["b"]), "leaf 'c' has no parameter"),
    ],
)
def test_errors_are_those_of_the_long_way(backend: Any, change: Any, message: str) -> None:
    opt = Optimizer(Adam(lr=0.1))
    params, state = runs(opt, lambda i: arrays(backend, i), arrays(backend, 0), True, steps=2)
    grads = arrays(backend, 3)
    change(grads)
    with pytest.raises(InputError, match=message):
        opt.step(params, grads, state, donate=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda p, s: p.__setitem__("w", np.asfortranarray(p["w"])),
        lambda p, s: p.__setitem__("w", p["w"].astype(np.float16)),
        lambda p, s: p["w"].setflags(write=False),
    ],
)
def test_what_differs_in_memory_has_the_long_ways_outcome(change: Any, short: Taken) -> None:
    """Fortran order, another dtype, a parameter that can't be written to."""
    numpy = HOSTS[0]
    outcomes = []
    for forget in (True, False):
        opt = Optimizer(Adam(lr=0.1))
        params, state = runs(opt, lambda i: arrays(numpy, i), arrays(numpy, 0), True, steps=2)
        change(params, state)
        short.count = 0
        if forget:
            opt._replay = None
        outcomes.append(opt.step(params, arrays(numpy, 7), state, donate=True))
        assert short.count == 0
    for name, x in outcomes[0][0].items():
        assert_same_bits(outcomes[1][0][name], x, what=name)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda p, s: p.__setitem__("b", p["w"].reshape(-1)[:3]), "leaves 'b' and 'w' share memory"),
        (
            lambda p, s: s["slots"]["exp_avg"].__setitem__("b", s["slots"]["exp_avg_sq"]["b"]),
            "slot 'exp_avg' of leaf 'b' and slot 'exp_avg_sq' of leaf 'b' are the same array",
        ),
        (
            lambda p, s: s["slots"]["exp_avg"].__setitem__("b", p["b"][:]),
            "leaf 'b' and slot 'exp_avg' of leaf 'b' share memory",
        ),
    ],
)
@pytest.mark.parametrize("rule", [Adam(lr=0.1), partition({"b": Adam(lr=0.1), ".*": NAdam(lr=0.1)})])
@pytest.mark.parametrize("backend", HOSTS, ids=lambda b: b.name)
def test_memory_that_is_shared_from_a_later_step_on_is_refused(
    backend: Any, rule: Any, change: Any, named: str, short: Taken
) -> None:
    opt = Optimizer(rule)
    params, state = runs(opt, lambda i: arrays(backend, i), arrays(backend, 0), True, steps=3)
    short.count = 0
    change(params, state)
    with pytest.raises(InputError, match=named):
        opt.step(params, arrays(backend, 7), state, donate=True)
    assert short.count == 0


@pytest.mark.parametrize("backend", HOSTS, ids=lambda b: b.name)
def test_a_gradient_in_what_another_group_writes_is_read_before(backend: Any, short: Taken) -> None:
    opt = Optimizer(partition({"b": SGD(lr=0.5, momentum=0.5), ".*": SGD(lr=0.5)}))
    params = {"b": backend.from_numpy(np.ones(3)), "w": backend.from_numpy(np.ones(3))}
    state = opt.init(params)
    for _ in range(3):
        gradients = {name: backend.from_numpy(np.ones(3)) for name in params}
        params, state = opt.step(params, gradients, state, donate=True)
    assert short.count == 2
    expected, _ = opt.step(params, {"b": params["w"], "w": params["b"]}, state)
    found, _ = opt.step(params, {"b": params["w"][:], "w": params["b"][:]}, state, donate=True)
    for name, x in expected.items():
        assert_same_bits(found[name], x, what=name)
    assert short.count == 2


def test_arrays_that_moved_are_found_again(short: Taken) -> None:
    torch = pytest.importorskip("torch")
    backend = HOSTS[1]
    opt = Optimizer(SGD(lr=1.0))
    params, state = runs(opt, lambda i: arrays(backend, i), arrays(backend, 0), True, steps=2)
    params["w"].data = torch.ones(5, 3)
    grads = {n: torch.ones_like(x) for n, x in params.items()}
    params, state = opt.step(params, grads, state, donate=True)
    assert short.count == 2
    assert_same_bits(params["w"], np.zeros((5, 3), np.float32), what="w")


@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
@pytest.mark.parametrize("backend", HOSTS, ids=lambda b: b.name)
def test_bad_gradients_change_nothing(backend: Any, nonfinite: Any) -> None:
    opt = Optimizer(Adam(lr=0.1), nonfinite=nonfinite)
    params, state = runs(opt, lambda i: arrays(backend, i), arrays(backend, 0), True, steps=3)
    before = {n: np.array(backend.to_numpy(x)) for n, x in params.items()}
    bad = arrays(backend, 9) | {"b": backend.from_numpy(np.array([1.0, np.nan, 2.0], np.float32))}
    if nonfinite == "raise":
        with pytest.raises(NonFiniteError, match="'b'"):
            opt.step(params, bad, state, donate=True)
    else:
        params, after = opt.step(params, bad, state, donate=True)
        assert after["step"] == state["step"] == 3
    for n, x in before.items():
        assert_same_bits(params[n], x, what=n)


def test_it_holds_no_array() -> None:
    import weakref

    opt = Optimizer(Adam(lr=0.1))
    params, _ = runs(opt, lambda i: arrays(HOSTS[0], i), arrays(HOSTS[0], 0), True, steps=3)
    assert opt._replay is not None
    seen = weakref.ref(params["w"])
    del params
    assert seen() is None


def test_a_second_thread_goes_the_long_way(short: Taken) -> None:
    opt = Optimizer(Adam(lr=0.1))
    numpy = HOSTS[0]
    params, state = runs(opt, lambda i: arrays(numpy, i), arrays(numpy, 0), True, steps=2)
    assert opt._replay is not None
    done = []
    with opt._replay.lock:
        worker = threading.Thread(
            target=lambda: done.append(opt.step(params, arrays(numpy, 3), state, donate=True))
        )
        worker.start()
        worker.join()
    assert short.count == 1
    assert done[0][1]["step"] == 3


def test_without_surveys_every_update_goes_the_long_way(short: Taken) -> None:
    from polyopt_numpy import lift

    with mock.patch.object(lift, "_survey", return_value=None):
        runs(Optimizer(Adam(lr=0.1)), lambda i: arrays(HOSTS[0], i), arrays(HOSTS[0], 0), True)
    assert short.count == 0
