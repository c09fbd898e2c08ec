"""A donated update that is like the one before takes the short way with the same outcome; no other does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import pytest

from polyopt import SGD, Adam, ClipByGlobalNorm, Cosine, Exponential, NAdam, Optimizer, chain, partition
from polyopt.backend import registry
from polyopt.backend.host import numba_kernel
from polyopt.core.errors import InputError, NonFiniteError
from polyopt.core.reductions import root_sum_squares
from polyopt.core.rule import Elementwise, Global, hyper
from polyopt.engine import optimizer
from polyopt.engine.repeat_step import CachedStep, LeafOrder
from polyopt.testing import assert_close, assert_same_bits

pytest.importorskip("numba")

HOSTS = [registry.by_name("numpy"), registry.by_name("torch")]
REPEATING = [*HOSTS, registry.by_name("jax")]
"""JAX' arrays are replaced, not changed."""
RULES: dict[str, Callable[[], Any]] = {
    "adam": lambda: Adam(lr=Exponential(0.1, 0.5, steps=2)),
    "clipped": lambda: chain(ClipByGlobalNorm(0.5), Adam(lr=0.1)),
    "clipped and scheduled": lambda: chain(
        ClipByGlobalNorm(Cosine(0.5, 10, end=0.1)), Adam(lr=Cosine(0.1, 10), b1=0.5, convention="keras")
    ),
    "clipped, two groups": lambda: chain(
        ClipByGlobalNorm(0.5, convention="torch"),
        partition({"b": SGD(lr=Cosine(0.1, 9), momentum=0.9), ".*": NAdam(lr=0.1)}),
    ),
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
@pytest.mark.parametrize("backend", REPEATING, ids=lambda b: b.name)
def test_the_short_way_has_the_bits_of_the_long_one(
    backend: Any, rule: str, container: str, short: Taken
) -> None:
    if container == "list" and rule in ("two groups", "clipped, two groups", "frozen"):
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
    assert not isinstance(p, dict) or list(p) == list(q)
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


@pytest.mark.parametrize("backend", REPEATING, ids=lambda b: b.name)
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


@pytest.mark.parametrize("backend", REPEATING, ids=lambda b: b.name)
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
@pytest.mark.parametrize("backend", REPEATING, ids=lambda b: b.name)
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


SCALES = {
    "ordinary": 1.0,
    "zero": 0.0,
    "vanishing": 1e-30,
    "overflowing": 1e30,
    "barely": 1e-38,
    "inf": np.inf,
}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("policy", ["propagate", "skip"])
@pytest.mark.parametrize("backend", REPEATING, ids=lambda b: b.name)
def test_a_norm_of_any_size_has_the_bits_of_the_long_way(backend: Any, policy: Any, scale: str) -> None:
    """The host finds the norm by itself where it is ordinary; one step is like the others but for it."""

    def make(i: int) -> dict[str, Any]:
        with np.errstate(all="ignore"):
            factor = np.float32(SCALES[scale] if i == 4 else 1.0)
            return {
                n: backend.from_numpy(backend.to_numpy(x) * factor) for n, x in arrays(backend, i).items()
            }

    results = []
    for donate in (False, True):
        opt = Optimizer(chain(ClipByGlobalNorm(0.5), SGD(lr=0.1, momentum=0.9)), nonfinite=policy)
        results.append(runs(opt, make, arrays(backend, 0), donate))
    (p, s), (q, t) = results
    assert s["step"] == t["step"]
    for name, x in p.items():
        assert_same_bits(q[name], x, what=name)
        slot = "momentum_buffer"
        assert_same_bits(t["slots"][slot][name], s["slots"][slot][name], what=f"{slot} of {name}")


@pytest.mark.parametrize("policy", ["propagate", "skip", "raise"])
@pytest.mark.parametrize("backend", HOSTS, ids=lambda b: b.name)
def test_nothing_is_measured_by_the_framework_again(
    backend: Any, policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a clipped step costs on a small model is its norm, if a framework's scalars compute it."""
    rule = chain(ClipByGlobalNorm(0.5), Adam(lr=Cosine(0.1, 10)))
    opt = Optimizer(rule, nonfinite=policy)
    params, state = runs(opt, lambda i: arrays(backend, i), arrays(backend, 0), True, steps=2)

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the repeated step made an Execution")

    monkeypatch.setattr(optimizer, "Execution", refuse)
    _, state = opt.step(params, arrays(backend, 5), state, donate=True)
    assert state["step"] == 3


def test_a_measurement_out_of_inexact_operations_is_left_to_the_framework(short: Taken) -> None:
    @dataclass(frozen=True)
    class Softened(Global):
        NORM_ALONE = True
        lr: float = hyper(0.1)

        def measure(self, xp: Any, leaves: Any, c: Any) -> dict[str, Any]:
            root, scale = root_sum_squares(xp, leaves)
            return {"size": xp.exp(xp.negative(xp.divide(root, scale)))}

        def leaf(self, xp: Any, g: Any, p: Any, slots: Any, c: Any) -> Any:
            return -c.lr * c.size * g, {}

    results = []
    for donate in (False, True):
        opt = Optimizer(Softened())
        results.append(runs(opt, lambda i: arrays(HOSTS[0], i), arrays(HOSTS[0], 0), donate))
    assert short.count == 4
    for name, x in results[0][0].items():
        assert_same_bits(results[1][0][name], x, what=name)


@pytest.mark.parametrize(
    "change",
    [
        lambda p, g, s: g.__setitem__("w", g["w"].astype("float16")),
        lambda p, g, s: p.__setitem__("w", p["w"].astype("float16")),
        lambda p, g, s: g.__setitem__("w", p["w"]),
    ],
)
def test_what_differs_on_jax_has_the_long_ways_outcome(change: Any, short: Taken) -> None:
    """Another dtype, a parameter as its own gradient."""
    jax = REPEATING[-1]
    outcomes = []
    for forget in (True, False):
        opt = Optimizer(Adam(lr=0.1))
        params, state = runs(opt, lambda i: arrays(jax, i), arrays(jax, 0), True, steps=2)
        grads = arrays(jax, 7)
        change(params, grads, state)
        short.count = 0
        if forget:
            opt._replay = None
        outcomes.append(opt.step(params, grads, state, donate=True))
        assert short.count == 0
    for name, x in outcomes[0][0].items():
        assert_same_bits(outcomes[1][0][name], x, what=name)


@pytest.mark.parametrize("backend", REPEATING, ids=lambda b: b.name)
def test_one_array_at_two_paths_is_refused_again(backend: Any) -> None:
    """In two groups too, each of which sees one of them alone."""
    opt = Optimizer(partition({"b": SGD(lr=0.1), ".*": Adam(lr=0.1)}))
    make = lambda i: {n: arrays(backend, i)["w"] for n in ("a", "b")}  # noqa: E731
    params, state = runs(opt, make, make(0), True, steps=3)
    params["a"] = params["b"]
    with pytest.raises(InputError, match="'a' and 'b' are the same array"):
        opt.step(params, make(5), state, donate=True)


@dataclass(frozen=True)
class Inexact(Elementwise):
    """A rule that no compiled kernel takes."""

    lr: float = hyper(0.1)

    def leaf(self, xp: Any, g: Any, p: Any, slots: Any, c: Any) -> Any:
        return -c.lr * xp.tanh(g), {}


@pytest.mark.parametrize("backend", REPEATING, ids=lambda b: b.name)
@pytest.mark.parametrize("first", [True, False])
def test_a_group_reads_what_another_one_replaces_as_it_was(backend: Any, first: bool) -> None:
    """Also where one of the groups is a compiled kernel and the other isn't."""
    rules: list[Any] = [SGD(lr=0.5), Inexact()]
    outcomes = []
    for donate in (False, True):
        opt = Optimizer(partition({"a": rules[first], ".*": rules[not first]}))
        make = lambda i: {n: arrays(backend, i)["w"] for n in ("a", "b")}  # noqa: E731
        params, state = runs(opt, make, make(0), donate, steps=3)
        grads = {"a": params["b"], "b": params["a"]}
        outcomes.append(opt.step(params, grads, state, donate=donate)[0])
    for name, x in outcomes[0].items():
        assert_same_bits(outcomes[1][name], x, what=name)


def test_a_step_that_is_traced_goes_the_long_way(short: Taken) -> None:
    import jax

    backend, opt = REPEATING[-1], Optimizer(SGD(lr=0.5))
    params, state = runs(opt, lambda i: arrays(backend, i), arrays(backend, 0), True, steps=2)
    grads = arrays(backend, 5)
    expected, _ = opt.step(params, grads, state)
    assert short.count == 1
    traced = jax.jit(lambda p, g: opt.step(p, g, state, donate=True)[0])(params, grads)
    assert short.count == 1
    for name, x in expected.items():
        assert_close(traced[name], x, rtol=1e-6, because="inside a user's jit products are contracted")


@pytest.mark.parametrize("backend", [HOSTS[0], REPEATING[-1]], ids=lambda b: b.name)
def test_it_holds_no_array(backend: Any) -> None:
    import weakref

    opt = Optimizer(Adam(lr=0.1))
    params, _ = runs(opt, lambda i: arrays(backend, i), arrays(backend, 0), True, steps=3)
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


def test_without_surveys_numpys_calls_are_kept(short: Taken) -> None:
    from polyopt_numpy import lift

    with mock.patch.object(lift, "_survey", return_value=None):
        runs(Optimizer(Adam(lr=0.1)), lambda i: arrays(HOSTS[0], i), arrays(HOSTS[0], 0), True)
    assert short.count == 4


def test_without_surveys_every_update_of_tensors_goes_the_long_way(short: Taken) -> None:
    from polyopt_torch.cpu import memory

    with mock.patch.object(memory, "tensors", return_value=None):
        runs(Optimizer(Adam(lr=0.1)), lambda i: arrays(HOSTS[1], i), arrays(HOSTS[1], 0), True)
    assert short.count == 0


def test_without_numba_nothing_of_tensors_is_kept_and_no_time_is_spent_on_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(numba_kernel, "_numba", lambda: None)
    monkeypatch.setattr(LeafOrder, "of", lambda *_: pytest.fail("the leaves were put in order for nothing"))
    opt = Optimizer(Adam(lr=0.1))
    runs(opt, lambda i: arrays(HOSTS[1], i), arrays(HOSTS[1], 0), True, steps=2)
    assert opt._replay is None
