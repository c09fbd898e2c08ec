"""Sizes, index batches, the noise scale, and steps of any size that compile once."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from helpers.batch_problem import MODEL_SEED, losses, model, problem
from hypothesis import given, settings
from hypothesis import strategies as st

from polyopt import SGD, Adam, Optimizer, chain, value_and_grad
from polyopt.backend.protocol import Backend
from polyopt.core import tree
from polyopt.core.errors import InputError
from polyopt.core.random import permutation
from polyopt.engine.batches import (
    AccumulatedStep,
    Batches,
    BatchSize,
    DynamicSize,
    IndexSampler,
    InsteadOfDecay,
    NoiseScale,
    Norms,
    RateByPlannedSize,
    RateByReportedSize,
)
from polyopt.finetuning import layer_rates, split, trainable
from polyopt.schedules import Constant, Cosine, Exponential, MultiStep, Plateau, Polynomial, Step
from polyopt.testing import assert_close, assert_same_bits
from polyopt.testing.compare import host

# Sizes


def test_sizes_are_schedules() -> None:
    assert [BatchSize(48)(t) for t in (0, 99)] == [48, 48]
    assert [BatchSize(Step(32, steps=10, rate=5.0))(t) for t in (0, 9, 10, 20)] == [32, 32, 160, 800]
    growing = BatchSize(Exponential(32, rate=2.0, steps=10), multiple=8, maximum=128)
    assert [growing(t) for t in (0, 3, 5, 10, 20, 999)] == [32, 40, 48, 64, 128, 128]
    decaying = BatchSize(Polynomial(256, steps=10), multiple=32, minimum=64)
    assert [decaying(t) for t in (0, 5, 9, 10)] == [256, 128, 64, 64]
    assert BatchSize(Constant(20.0), multiple=8)(0) == 24  # a tie goes to the larger
    assert BatchSize(Exponential(1, rate=10.0), maximum=512)(400) == 512
    with pytest.raises(InputError, match="size = inf at step 400"):
        BatchSize(Exponential(1, rate=10.0))(400)


def test_growing_instead_of_decaying() -> None:
    """Smith et al., figure 1: where the rate would fall by 5, the batch grows by 5."""
    size = BatchSize(InsteadOfDecay(MultiStep(0.1, milestones=[60, 120, 160], rate=0.2), 128))
    assert [size(t) for t in (0, 59, 60, 120, 160)] == [128, 128, 640, 3200, 16000]
    rate, size = Cosine(0.1, 100, end=0.01), BatchSize(InsteadOfDecay(Cosine(0.1, 100, end=0.01), 100))
    for t in range(101):
        because = "rate/size is kept, up to half a sample"
        assert_close(0.1 / size(t), rate(t) / 100, rtol=0.5 / 100, because=because)
    ends = InsteadOfDecay(Cosine(0.1, 100), 128)
    assert BatchSize(ends, maximum=4096)(100) == 4096
    with pytest.raises(InputError, match="size = inf at step 100; expected a finite one, or a maximum"):
        BatchSize(ends)(100)
    with pytest.raises(InputError, match="expected one that doesn't fall below 0"):
        InsteadOfDecay(Constant(-0.1), 128)


@pytest.mark.parametrize(("scaling", "power"), [("linear", 1.0), ("sqrt", 0.5), ("none", 0.0)])
def test_the_rate_follows_the_size(backend: Backend, scaling: str, power: float) -> None:
    size = BatchSize(Step(32, steps=2, rate=4.0))
    lr = RateByPlannedSize(Step(0.1, steps=3, rate=0.5), size, base=64, scaling=scaling)
    optimizer = Optimizer(SGD(lr=lr))
    params = {"w": backend.from_numpy(np.zeros(1))}
    state, expected = optimizer.init(params), 0.0
    for t in range(5):
        params, state = optimizer.step(params, {"w": backend.from_numpy(np.ones(1))}, state)
        expected -= (0.1 if t < 3 else 0.05) * (32 * 4 ** (t // 2) / 64) ** power
    assert_close(params["w"], [expected], rtol=1e-14, because="five additions in float64")
    measured = RateByReportedSize(0.1, base=64, scaling=scaling)
    optimizer = Optimizer(SGD(lr=measured))
    state = optimizer.observe(optimizer.init(params), 256, "size")
    assert_close(optimizer.hyperparameters(state)["lr"], 0.1 * 4**power, rtol=1e-15, because="one rounding")


def test_rates_by_layer_follow_the_size_too() -> None:
    lr = RateByReportedSize(Step(0.1, steps=2, rate=0.5), base=8)
    optimizer = Optimizer(chain(layer_rates(SGD(lr=lr), {"^a": 0.5}), SGD(lr=Plateau(1.0))))
    state = optimizer.observe(optimizer.init({"a": np.ones(1), "b": np.ones(1)}), 16, "size")
    rates = [x for key, x in optimizer.hyperparameters(state).items() if key.endswith("lr")]
    assert rates == [0.1, 0.2, 1.0]
    rates = [x for key, x in optimizer.hyperparameters(state | {"step": 3}).items() if key.endswith("lr")]
    assert rates == [0.05, 0.1, 1.0]
    plateau = state["observed"]["1.lr"]
    assert plateau["seen"] == 0.0
    assert optimizer.observe(state, 0.25)["observed"]["1.lr"]["best"] == 0.25
    with pytest.raises(InputError, match="expected a schedule that depends on the step alone"):
        RateByReportedSize(Plateau(0.1), base=8)


def test_the_rate_in_a_users_jit() -> None:
    import jax
    import jax.numpy as jnp

    lr = RateByPlannedSize(0.1, BatchSize(Step(32, steps=2, rate=4.0), multiple=8), base=64)
    optimizer = Optimizer(SGD(lr=lr))
    step = jax.jit(lambda p, s: optimizer.step(p, {"w": jnp.ones(1, jnp.float32)}, s))
    params = {"w": jnp.zeros(1, jnp.float32)}
    state = optimizer.init(params)
    for _ in range(4):
        params, state = step(params, state)
    assert_close(params["w"], [-2 * 0.05 - 2 * 0.2], rtol=1e-6, because="float32, four additions")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BatchSize(0), "schedule = 0; expected a number >= 1 or a schedule"),
        (lambda: BatchSize(True), "schedule = True"),
        (lambda: BatchSize(math.inf), "schedule = inf"),
        (lambda: BatchSize(Plateau(1.0)), "expected a schedule that depends on the step alone"),
        (lambda: BatchSize(32, multiple=0), "multiple = 0; expected an integer >= 1"),
        (lambda: BatchSize(32, multiple=8, minimum=12), "minimum = 12; expected a multiple of 8"),
        (lambda: BatchSize(32, multiple=8, minimum=16, maximum=8), "maximum = 8 is below minimum = 16"),
        (lambda: RateByPlannedSize(0.1, 32, base=32), "size = 32; expected a BatchSize"),  # type: ignore[arg-type]
        (lambda: RateByPlannedSize(0.1, BatchSize(32), base=32, scaling="lin"), "scaling = 'lin'"),
        (lambda: SGD(lr=RateByPlannedSize(-0.1, BatchSize(32), base=32)), "lr.rate = -0.1"),
        (lambda: RateByReportedSize(0.1, 32).observe({"size": 32.0}, 0), "a batch of 0 samples"),
        (lambda: IndexSampler(0), "samples = 0; expected an integer >= 1"),
        (lambda: IndexSampler(3).take(-1, 2), "position = -1"),
        (lambda: Batches(IndexSampler(3), BatchSize(2)).batch(-1), "step = -1; expected an integer >= 0"),
        (lambda: NoiseScale(1.0), r"decay = 1.0; expected a number in \[0, 1\)"),
        (lambda: DynamicSize(16, micro=16, maximum=64), "initial = 16; expected from 32"),
        (lambda: DynamicSize(40, micro=16, maximum=64), "initial = 40; expected a multiple of 16"),
        (lambda: DynamicSize(32, 16, 64, factor=0.0), "factor = 0.0"),
        (lambda: DynamicSize(32, 16, 64, change=1.0), "change = 1.0; expected a finite number above 1"),
    ],
)
def test_bad_sizes_are_refused(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


# Which samples


@settings(max_examples=60, deadline=None)
@given(
    samples=st.integers(1, 50),
    first=st.integers(1, 20),
    rate=st.sampled_from([0.5, 1.0, 2.0]),
    seed=st.integers(0, 3),
    start=st.integers(0, 12),
)
def test_every_epoch_takes_every_sample_once(
    samples: int, first: int, rate: float, seed: int, start: int
) -> None:
    batches = Batches(IndexSampler(samples, seed), BatchSize(Step(first, steps=3, rate=rate), maximum=64))
    steps = batches.steps(epochs=3)
    taken = list(itertools.islice(batches.start(), steps))
    joined = np.concatenate(taken)
    for epoch in range(3):
        part = joined[epoch * samples : (epoch + 1) * samples]
        assert_same_bits(part, permutation(samples, seed, "shuffle", epoch))
    for t, batch in enumerate(taken):
        whole = len(batch) == batches.size(t)
        assert whole or batches.position(t + 1) % samples == 0
        assert batches.epoch(t) == batches.position(t) // samples
    for t, batch in zip(range(start, steps), batches.start(start), strict=False):
        assert_same_bits(batch, taken[t])
        assert_same_bits(batches.batch(t), taken[t])


def test_a_batch_is_the_callers_own() -> None:
    feed = IndexSampler(6, seed=2)
    feed.take(0, 6)[:] = 0
    assert sorted(feed.take(0, 6)) == list(range(6))
    assert IndexSampler(6, seed=2, name="other").take(0, 6).tolist() != feed.take(0, 6).tolist()
    assert feed.epoch(12) == 2


# Noise


@pytest.mark.full_for("tensorflow", "jax")
def test_the_noise_scale_of_known_gradients(backend: Backend) -> None:
    """Gradients N(G, Σ) a sample: the averages find tr Σ / ‖G‖², the measured norms are the same bits."""
    rng = np.random.default_rng(0)
    mean, deviation = rng.normal(size=40), rng.uniform(0.5, 2.0, size=40)
    expected = float((deviation**2).sum() / (mean**2).sum())

    def losses(xp: Any, params: Any, samples: Any) -> Any:
        # The gradient of w·x by w is x itself, so each framework has the same bits, up to its own mean.
        return xp.sum(params["w"] * samples, axis=1)

    step = AccumulatedStep(losses, Optimizer(SGD(lr=0.0)), micro=4, measure=True)
    params = {"w": backend.from_numpy(np.zeros(40))}
    state, scale = step.optimizer.init(params), NoiseScale(decay=0.98)
    averages, reference = scale.init(), []
    for t in range(150):
        x = mean + deviation * np.random.default_rng(t + 1).normal(size=(16, 40))
        params, state, outcome = step(params, state, (x,), range(16))
        small = np.mean([(x[i : i + 4].mean(axis=0) ** 2).sum() for i in range(0, 16, 4)])
        large = (x.mean(axis=0) ** 2).sum()
        assert outcome.norms is not None
        found = (outcome.norms.small, outcome.norms.large, outcome.norms.few, outcome.norms.many)
        assert_close(found, [small, large, 4, 16], rtol=1e-12, because="sums of 40 squares in float64")
        averages = scale.observe(averages, outcome.norms)
        reference.append(((small - large) / (1 / 4 - 1 / 16), (16 * large - 4 * small) / 12))
    noise, signal = scale.observe(scale.init(), None), averages
    assert noise == scale.init()
    weights = 0.98 ** np.arange(150)[::-1]
    ratio = (weights @ np.array(reference))[0] / (weights @ np.array(reference))[1]
    assert_close(scale.value(signal), ratio, rtol=1e-10, because="the same averages, written as a sum")
    because = "150 updates, of which an average remembers 50: a few per cent of deviation"
    assert_close(scale.value(signal), expected, rtol=0.15, because=because)


def test_the_norms_are_the_same_bits_everywhere(backend: Backend) -> None:
    from polyopt.backend import registry

    found = []
    for name in ("numpy", backend.name):
        there = registry.by_name(name)
        rng = np.random.default_rng(3)
        # Each micro-batch is of one sample, so nothing is summed but the norms.
        step = AccumulatedStep(
            lambda xp, p, x: xp.reshape(p["w"] * x, (1,)), Optimizer(SGD(lr=0.1)), 1, measure=True
        )
        params = {"w": there.from_numpy(np.ones((), np.float32))}
        x = there.from_numpy(rng.normal(size=5).astype(np.float32))
        params, _, outcome = step(params, step.optimizer.init(params), (x,), [0, 1, 2, 3, 4])
        found.append((outcome.norms, host(params["w"]).tobytes()))
    assert found[0] == found[1]


def test_estimates_that_tell_nothing_change_nothing() -> None:
    scale = NoiseScale(0.9)
    state = scale.observe(scale.init(), Norms(3.0, 2.0, 10, 20))
    for norms in (None, Norms(1.0, 1.0, 8, 8), Norms(math.inf, 1.0, 4, 8), Norms(math.nan, 1.0, 4, 8)):
        assert scale.observe(state, norms) == state
    assert scale.value(scale.init()) is None
    assert scale.value(scale.observe(scale.init(), Norms(10.0, 2.0, 4, 8))) == math.inf
    assert scale.value(scale.observe(scale.init(), Norms(2.0, 2.5, 4, 8))) == 0.0


def test_a_size_follows_the_noise_and_resumes() -> None:
    size = DynamicSize(64, micro=16, maximum=512, decay=0.5)
    state, sizes = size.init(), []
    quiet, loud, endless = Norms(1.1, 1.0, 16, 64), Norms(21.0, 6.0, 16, 64), Norms(40.0, 9.0, 16, 64)
    for i, norms in enumerate([loud, loud, loud, loud, quiet, quiet, *[quiet] * 6, *[endless] * 8]):
        state = size.observe(state, norms)
        if i == 2:
            state = json.loads(json.dumps(state))
        sizes.append(size.value(state))
    assert sizes[:4] == [128, 256, 320, 320]
    assert sizes[11] < 64
    assert sizes[-1] == 512
    assert all(n % 16 == 0 and 32 <= n <= 512 for n in sizes)
    assert all(b <= 2 * a + 16 and a <= 2 * b + 16 for a, b in itertools.pairwise(sizes))
    assert size.observe(state, None) == state
    assert size.noise_scale(state) == math.inf


# The step


@pytest.mark.parametrize("where", ["host", "device"])
def test_any_size_is_the_mean_over_its_samples(backend: Backend, where: str) -> None:
    params, data = problem(backend, "float64", where)
    step = AccumulatedStep(losses, Optimizer(Adam(lr=0.05)), micro=4)
    # Whole batches on NumPy, where no size is compiled for.
    big, gradient = Optimizer(Adam(lr=0.05)), value_and_grad(lambda xp, p, x, y: xp.mean(losses(xp, p, x, y)))
    state, expected = step.optimizer.init(params), model().init(MODEL_SEED, "float64")
    expected_state = big.init(expected)
    for t, size in enumerate([1, 4, 5, 8, 11, 40]):
        rows = permutation(40, t)[:size]
        value, grads = gradient(expected, *(host(a)[rows] for a in data))
        expected, expected_state = big.step(expected, grads, expected_state)
        params, state, outcome = step(params, state, data, rows)
        because = "a mean of 40 samples at most, in another order, float64"
        assert_close(outcome.loss, host(value), rtol=1e-12, because=because)
        assert outcome.norms is None
        for path, p in tree.named(params).items():
            assert_close(p, host(tree.named(expected)[path]), rtol=1e-9, atol=1e-11, because=because)
    assert state["step"] == 6


def test_whole_micro_batches_have_the_bits_of_accumulate(backend: Backend) -> None:
    params, data = problem(backend, "float32", "device")
    step = AccumulatedStep(losses, Optimizer(Adam(lr=0.05)), micro=4)
    held = Optimizer(Adam(lr=0.05), accumulate=3)
    # The very gradients that the step has.
    counted = backend.from_numpy(np.ones(4, np.float32))
    other, other_state = params, held.init(params)
    state = step.optimizer.init(params)
    for t in range(3):
        rows = permutation(40, t)[:12]
        for i in range(0, 12, 4):
            part = tuple(backend.from_numpy(host(a)[rows[i : i + 4]]) for a in data)
            _, grads = step._mean.gradient(other, counted, (), part)
            other, other_state = held.step(other, grads, other_state)
        params, state, _ = step(params, state, data, rows)
    for path, p in tree.named(params).items():
        assert_same_bits(p, host(tree.named(other)[path]), what=path)


COUNTS = (1, 2, 4, 4, 3)


@lru_cache(maxsize=1)
def multisteps() -> dict[str, Any]:
    """Parameters after as many updates as COUNTS has, of so many micro-batches each, by optax."""
    import jax
    import jax.numpy as jnp
    import optax

    from polyopt.backend import registry

    registry.by_name("jax").enable_float64()
    _, data = problem(registry.by_name("numpy"), "float64", "host")
    with jax.numpy_dtype_promotion("standard"):
        theirs = jax.tree.map(jnp.asarray, model().init(MODEL_SEED, "float64"))
        peer = optax.MultiSteps(
            optax.sgd(0.5, 0.9),
            every_k_schedule=lambda t: jnp.asarray(COUNTS, jnp.int32)[t],
            accumulator_dtype=jnp.float64,
        )
        peer_state, update = peer.init(theirs), jax.jit(peer.update)
        gradient = value_and_grad(lambda xp, p, x, y: xp.mean(losses(xp, p, x, y)))
        for t, count in enumerate(COUNTS):
            rows = permutation(40, t)[: 4 * count]
            for i in range(count):
                part = (jnp.asarray(a[rows[4 * i : 4 * i + 4]]) for a in data)
                _, grads = gradient(theirs, *part)
                updates, peer_state = update(grads, peer_state, theirs)
                theirs = optax.apply_updates(theirs, updates)
    return {path: host(x) for path, x in tree.named(theirs).items()}


def test_a_number_of_micro_batches_that_varies_is_optax_multisteps(backend: Backend) -> None:
    params, data = problem(backend, "float64", "device")
    step = AccumulatedStep(losses, Optimizer(SGD(lr=0.5, momentum=0.9)), micro=4)
    state = step.optimizer.init(params)
    for t, count in enumerate(COUNTS):
        params, state, _ = step(params, state, data, permutation(40, t)[: 4 * count])
    for path, p in tree.named(params).items():
        because = "momentum in float64, five updates; means in another order"
        assert_close(p, multisteps()[path], rtol=1e-10, atol=1e-12, because=because)


@contextmanager
def compilations(backend: Backend, caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """What is compiled (JAX) or traced (TensorFlow) in the body; on the others nothing ever is."""
    found: list[str] = []
    if backend.name == "jax":
        import jax

        caplog.clear()
        jax.config.update("jax_log_compiles", True)
        try:
            yield found
        finally:
            jax.config.update("jax_log_compiles", False)
        found += [r.getMessage() for r in caplog.records if "Compiling" in r.getMessage()]
        return
    yield found


def test_no_size_compiles_anything_again(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    traced: list[int] = []

    def watched(xp: Any, params: Any, x: Any, y: Any) -> Any:
        traced.append(1)
        return losses(xp, params, x, y)

    params, data = problem(backend, "float32", "device")
    step = AccumulatedStep(watched, Optimizer(Adam(lr=0.05)), micro=4, measure=True)
    state = step.optimizer.init(params)
    params, state, _ = step(params, state, data, range(9), donate=True)
    traced.clear()
    with compilations(backend, caplog) as compiled:
        for size in (1, 4, 8, 13, 24, 40, 3):
            params, state, _ = step(params, state, data, range(size), donate=True)
    assert compiled == []
    if backend.name in ("jax", "tensorflow"):
        assert traced == []
    assert state["step"] == 8


def test_data_on_the_host_compiles_nothing_either(caplog: pytest.LogCaptureFixture) -> None:
    from polyopt.backend import registry

    backend = registry.by_name("jax")
    params, data = problem(backend, "float32", "host")
    step = AccumulatedStep(losses, Optimizer(SGD(lr=0.05)), micro=4)
    state = step.optimizer.init(params)
    params, state, _ = step(params, state, data, range(9))
    with compilations(backend, caplog) as compiled:
        for size in (1, 13, 40):
            params, state, _ = step(params, state, data, range(size))
    assert compiled == []


def test_a_dynamic_run_is_a_whole(backend: Backend) -> None:
    """Noise scale, size, rate and feed together; frozen leaves stay out; it resumes in mid-run."""
    params, data = problem(backend, "float32", "device")
    trained, frozen = split(params, r"layers\.0")
    step = AccumulatedStep(
        trainable(losses), Optimizer(SGD(lr=RateByReportedSize(0.1, base=8))), micro=4, measure=True
    )
    feed, size = IndexSampler(40, seed=1), DynamicSize(8, micro=4, maximum=32, decay=0.5)

    def advance(run: Any, updates: int) -> tuple[Any, list[int]]:
        trained, state, position, noise = run
        sizes = []
        for _ in range(updates):
            rows = feed.take(position, size.value(noise))
            state = step.optimizer.observe(state, len(rows), "size")
            trained, state, outcome = step(trained, state, data, rows, shared=(frozen,))
            noise, position = size.observe(noise, outcome.norms), position + len(rows)
            sizes.append(len(rows))
        return (trained, state, position, noise), sizes

    start = (trained, step.optimizer.init(trained), 0, size.init())
    whole, sizes = advance(start, 12)
    half, first = advance(start, 5)
    resumed, rest = advance(half, 7)
    assert sizes == first + rest
    assert len(set(sizes)) > 1
    for path, p in tree.named(resumed[0]).items():
        assert_same_bits(p, host(tree.named(whole[0])[path]), what=path)
    assert sorted(tree.named(whole[0])) == ["layers.1.bias", "layers.1.weight"]


def test_bad_batches_are_refused_and_nothing_changes() -> None:
    from polyopt.backend import registry

    params, (x, y) = problem(registry.by_name("numpy"), "float64", "host")
    before = {k: v.copy() for k, v in tree.named(params).items()}
    step = AccumulatedStep(losses, Optimizer(SGD(lr=0.1)), micro=4)
    state = step.optimizer.init(params)
    for data, rows, message in (
        ((x, y), [], "expected one axis of at least one integer"),
        ((x, y), [[0]], r"indices have shape \(1, 1\)"),
        ((x, y), [0.5], "dtype float64"),
        ((x, y), [0, 40], "index 40 is out of range; expected 0 to 39"),
        ((x, y), [-1], "index -1 is out of range"),
        ((x, y[:7]), [0], r"data.1 has 7 samples; expected those of data.0, 40"),
        ((), [0], "data is empty"),
    ):
        with pytest.raises(InputError, match=message):
            step(params, state, data, rows, donate=True)
    mean = AccumulatedStep(lambda *a: losses(*a).mean(), Optimizer(SGD(lr=0.1)), micro=4)
    with pytest.raises(InputError, match=r"losses has shape \(\); expected one loss a sample, \(4,\)"):
        mean(params, state, (x, y), [0], donate=True)
    for path, p in tree.named(params).items():
        assert_same_bits(p, before[path], what=path)
    with pytest.raises(InputError, match="micro = 0; expected an integer >= 1"):
        AccumulatedStep(losses, Optimizer(SGD(lr=0.1)), micro=0)
    with pytest.raises(InputError, match="accumulate = 2; expected 1"):
        AccumulatedStep(losses, Optimizer(SGD(lr=0.1), accumulate=2), micro=4)
