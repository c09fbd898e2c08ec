"""Rates, weight decay and anchors layer by layer, against torch's parameter groups and optax' transforms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polyopt import (
    SGD,
    Adam,
    AdamW,
    AddDecayedWeights,
    ClipByGlobalNorm,
    Optimizer,
    TrainStep,
    chain,
    partition,
)
from polyopt.backend.protocol import Backend
from polyopt.core import tree
from polyopt.core.errors import InputError
from polyopt.finetuning import (
    L2SP,
    Scaled,
    ScaledMeasured,
    freeze,
    layer_decay,
    layer_rates,
    layer_weight_decay,
    numbered_layers,
    reset,
    transfer,
)
from polyopt.finetuning.rates import times
from polyopt.optim.clipping import ClipByNorm
from polyopt.schedules import Constant, Cosine, Plateau, Step
from polyopt.testing import assert_close, assert_same_bits
from polyopt.testing.compare import host

NAMES = ("embed", "layers.0", "layers.1", "head")
SHAPES = {"embed": (7, 4), "layers.0": (4, 3), "layers.1": (3, 2, 2), "head": (5,)}
LAYERS = tuple(f"^{name}$".replace(".", r"\.") for name in NAMES)
ROUNDING = "float64, 20 steps of the same formula"


def arrays(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=SHAPES[name]) for name in NAMES}


def run(backend: Backend, rule: Any, steps: int = 20) -> tuple[dict[str, Any], Any]:
    optimizer = Optimizer(rule)
    params = {k: backend.from_numpy(x) for k, x in arrays(0).items()}
    state = optimizer.init(params)
    for t in range(steps):
        grads = {k: backend.from_numpy(x) for k, x in arrays(t + 1).items()}
        params, state = optimizer.step(params, grads, state)
    return params, state


def torch_groups(
    make: Any, groups: dict[str, dict[str, float]], rate: Any, steps: int = 20
) -> dict[str, Any]:
    """torch's own optimizer with a parameter group for every leaf; ``rate(t)`` times each group's lr."""
    import torch

    leaves = {k: torch.nn.Parameter(torch.from_numpy(x)) for k, x in arrays(0).items()}
    given = [{"params": [leaves[k]], **groups[k]} for k in NAMES if k in groups]
    peer = make(given)
    schedule = torch.optim.lr_scheduler.LambdaLR(peer, rate)
    for t in range(steps):
        for k, x in arrays(t + 1).items():
            leaves[k].grad = torch.from_numpy(x)
        peer.step()
        schedule.step()
    return {k: x.detach().numpy() for k, x in leaves.items()}


def test_rates_are_torchs_parameter_groups(backend: Backend) -> None:
    import torch

    factors = {"embed": 0.1, "layers.0": 0.25, "head": 3.0}
    rate = Step(0.05, steps=7, rate=0.5)
    rule = layer_rates(AdamW(lr=rate, weight_decay=0.1, convention="torch"), named(factors))
    groups = {k: {"lr": 0.05 * factors.get(k, 1.0)} for k in NAMES}
    expected = torch_groups(
        lambda groups: torch.optim.AdamW(groups, weight_decay=0.1), groups, lambda t: rate(t) / 0.05
    )
    params, _ = run(backend, rule)
    for k in NAMES:
        assert_close(params[k], expected[k], rtol=1e-11, atol=1e-13, because=ROUNDING)


def named(values: dict[str, float]) -> dict[str, float]:
    return {pattern: values[k] for k, pattern in zip(NAMES, LAYERS, strict=True) if k in values}


def test_rates_are_optax_multi_transform(backend: Backend) -> None:
    import jax
    import optax

    jax.config.update("jax_enable_x64", True)
    factors = {"embed": 0.1, "layers.0": 0.25, "layers.1": 0.5, "head": 1.0}
    params = {k: jax.numpy.asarray(x) for k, x in arrays(0).items()}
    with jax.numpy_dtype_promotion("standard"):
        peer = optax.chain(
            optax.clip_by_global_norm(0.5),
            optax.multi_transform(
                {k: optax.adam(0.05 * f) for k, f in factors.items()}, {k: k for k in NAMES}
            ),
        )
        state = peer.init(params)
        for t in range(20):
            grads = {k: jax.numpy.asarray(x) for k, x in arrays(t + 1).items()}
            updates, state = peer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
    rule = layer_rates(chain(ClipByGlobalNorm(0.5), Adam(lr=0.05, convention="optax")), named(factors))
    found, _ = run(backend, rule)
    for k in NAMES:
        assert_close(found[k], params[k], rtol=1e-10, atol=1e-12, because=ROUNDING)


def test_frozen_layers_are_optax_masked() -> None:
    import jax
    import optax

    jax.config.update("jax_enable_x64", True)
    frozen = {k: k in ("embed", "layers.0") for k in NAMES}
    params = {k: jax.numpy.asarray(x) for k, x in arrays(0).items()}
    trained = {k: not x for k, x in frozen.items()}
    peer = optax.chain(optax.masked(optax.set_to_zero(), frozen), optax.masked(optax.sgd(0.1, 0.9), trained))
    state = peer.init(params)
    for t in range(5):
        updates, state = peer.update(
            {k: jax.numpy.asarray(x) for k, x in arrays(t + 1).items()}, state, params
        )
        params = optax.apply_updates(params, updates)
    from polyopt.backend import registry

    found, state = run(registry.by_name("numpy"), freeze(SGD(lr=0.1, momentum=0.9), *LAYERS[:2]), steps=5)
    for k in NAMES:
        assert_close(found[k], params[k], rtol=1e-12, because=ROUNDING)
    assert sorted(state["slots"]["momentum_buffer"]) == ["head", "layers.1"]


def test_decay_by_depth() -> None:
    """ULMFiT: η of a layer is that of the one above by 2.6. BEiT: decay^(layers + 1 - id), the head 1."""
    optimizer = Optimizer(layer_decay(SGD(lr=0.01), LAYERS, decay=1 / 2.6))
    found = optimizer.hyperparameters({"step": 0})
    for i in range(4):
        assert_close(
            found[f"{i}.lr"], 0.01 / 2.6 ** (3 - i), rtol=1e-15, because="powers in double precision"
        )
    # BEiT's get_num_layer_for_vit and LayerDecayValueAssigner, for 12 blocks, from its published code.
    params = {"patch_embed": 0, "blocks": [{"w": 0, "b": 0}] * 12, "head": 0}
    layers = numbered_layers(params, bottom=["^patch_embed"], top=["^head"])
    values = [0.65 ** (12 + 1 - i) for i in range(12 + 2)]
    rates = Optimizer(layer_decay(SGD(lr=1.0), layers, decay=0.65)).hyperparameters({"step": 0})
    for i, expected in enumerate(values):
        assert_close(rates[f"{i}.lr"], expected, rtol=1e-15, because="powers in double precision")


def test_the_rate_may_be_any_schedule() -> None:
    for rate in (0.5, Constant(0.5), Cosine(0.5, 100), Plateau(0.5, patience=0, factor=0.5)):
        optimizer = Optimizer(layer_rates(Adam(lr=rate), {"a": 0.25}))
        state = optimizer.init({"a": np.ones(1), "b": np.ones(1)})
        for _ in range(2):
            found = optimizer.hyperparameters(state)
            assert found["0.lr"] == 0.25 * found["1.lr"] > 0
            state = optimizer.observe(state, 1.0)
    assert times(Cosine(0.5, 100), 1.0) == Cosine(0.5, 100)
    assert isinstance(times(Plateau(1.0), 0.5), ScaledMeasured)
    assert list(Scaled(Constant(0.5), 2.0).levels()) == [("schedule.initial", 1.0)]
    assert list(ScaledMeasured(Plateau(0.5), 2.0).levels()) == [
        ("schedule.initial", 1.0),
        ("schedule.minimum", 0.0),
    ]


def test_a_global_norm_is_of_all_layers(backend: Backend) -> None:
    rule = layer_rates(chain(ClipByGlobalNorm(0.5), SGD(lr=0.1)), named({"embed": 1.0, "head": 1.0}))
    params, _ = run(backend, rule, steps=3)
    expected, _ = run(backend, chain(ClipByGlobalNorm(0.5), SGD(lr=0.1)), steps=3)
    for k in NAMES:
        assert_same_bits(params[k], host(expected[k]), what=k)


def test_layers_in_layers() -> None:
    """Rates, weight decay and freezing compose, inside partitions and chains."""
    inner = partition({"^embed": Adam(lr=0.1), ".*": chain(ClipByNorm(1.0), AdamW(lr=0.2, weight_decay=0.3))})
    rule = freeze(layer_weight_decay(layer_rates(inner, {"head": 0.5}), {"head": 0.0}), "layers.0")
    optimizer = Optimizer(rule)
    state = optimizer.init(arrays(0))
    found = optimizer.hyperparameters(state)
    rates = {k: x for k, x in found.items() if k.endswith("lr")}
    assert set(rates.values()) == {0.1, 0.05, 0.2}
    assert sorted(state["slots"]["exp_avg"]) == ["embed", "head", "layers.1"]
    params, _ = optimizer.step(arrays(0), {k: 0 * x for k, x in arrays(0).items()}, state)
    assert_same_bits(params["head"], arrays(0)["head"])
    because = "decoupled decay of AdamW alone: p·(1 - lr·λ)"
    assert_close(params["layers.1"], arrays(0)["layers.1"] * (1 - 0.2 * 0.3), rtol=1e-15, because=because)


def test_weight_decay_is_torchs_parameter_groups(backend: Backend) -> None:
    import torch

    decays = {"embed": 0.0, "layers.0": 0.3, "layers.1": 0.1, "head": 0.5}
    groups = {k: {"weight_decay": x} for k, x in decays.items()}
    for make, rule in (
        (lambda g: torch.optim.AdamW(g, lr=0.05), AdamW(lr=0.05, convention="torch")),
        (lambda g: torch.optim.SGD(g, lr=0.05, momentum=0.9), SGD(lr=0.05, momentum=0.9, convention="torch")),
    ):
        expected = torch_groups(make, groups, lambda t: 1.0)
        params, _ = run(backend, layer_weight_decay(rule, named(decays)))
        for k in NAMES:
            assert_close(params[k], expected[k], rtol=1e-11, atol=1e-13, because=ROUNDING)


def test_whose_weight_decay_is_meant() -> None:
    stage = chain(AddDecayedWeights(0.1), SGD(lr=1.0))
    rule = layer_weight_decay(stage, {"a": 0.5})
    params = {"a": np.ones(1), "b": np.ones(1)}
    moved, _ = Optimizer(rule).step(
        params, {k: 0 * x for k, x in params.items()}, Optimizer(rule).init(params)
    )
    assert {k: x.tolist() for k, x in moved.items()} == {"a": [0.5], "b": [0.9]}
    both = chain(AddDecayedWeights(0.1), AdamW(lr=1.0, weight_decay=0.1))
    with pytest.raises(InputError, match="AdamW, AddDecayedWeights all have a weight decay"):
        layer_weight_decay(both, {"a": 0.5})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: layer_rates(ClipByGlobalNorm(1.0), {"a": 1}), "no rule of .* has a hyperparameter 'lr'"),
        (lambda: layer_rates(SGD(lr=1), {"a": -1.0}), r"'a' has -1.0; expected a finite number >= 0"),
        (lambda: layer_rates(SGD(lr=1), {"a": float("nan")}), "'a' has nan"),
        (lambda: layer_rates(SGD(lr=1), {"a": True}), "'a' has True"),
        (lambda: layer_decay(SGD(lr=1), [], 0.5), "layers is empty"),
        (lambda: layer_decay(SGD(lr=1), ["a"], 0.0), r"decay = 0.0; expected a number in \(0, 1\]"),
        (lambda: layer_weight_decay(ClipByGlobalNorm(1.0), {"a": 1}), "has a hyperparameter 'weight_decay'"),
        (lambda: layer_weight_decay(SGD(lr=1), {"a": -1}), "'a' has -1; expected a finite number >= 0"),
        (lambda: Optimizer(layer_rates(SGD(lr=1), {"embde": 1})).init({"embed": np.ones(1)}), "mean 'embed'"),
        (lambda: Scaled(Constant(1.0), -1.0), "factor = -1.0"),
    ],
)
def test_bad_factors_are_refused(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


# L2-SP


def l2sp(alpha: float, beta: Any, new: tuple[str, ...], steps: int) -> dict[str, Any]:
    """Li et al., eq. 5, in float64: Ω = α/2·‖w_S - w0_S‖² + β/2·‖w_new‖², with heavy-ball SGD."""
    start, params = arrays(0), arrays(0)
    momentum = {k: 0.0 * x for k, x in params.items()}
    for t in range(steps):
        for k, g in arrays(t + 1).items():
            penalty = beta(t) * params[k] if k in new else alpha * (params[k] - start[k])
            momentum[k] = 0.9 * momentum[k] + g + penalty
            params[k] = params[k] - (0.05 if t < 25 else 0.02) * momentum[k]
    return params


def test_l2sp_is_the_papers(backend: Backend) -> None:
    beta, lr = Step(0.2, steps=20, rate=0.5), Step(0.05, steps=25, rate=0.4)
    rule = chain(L2SP(alpha=0.3, beta=beta, new="^head"), SGD(lr=lr, momentum=0.9))
    params, state = run(backend, rule, steps=50)
    for k, x in l2sp(0.3, beta, ("head",), 50).items():
        assert_close(params[k], x, rtol=1e-10, atol=1e-12, because="float64, 50 steps")
    assert sorted(state["slots"]["anchor"]) == ["embed", "layers.0", "layers.1"]
    for k, x in state["slots"]["anchor"].items():
        assert_same_bits(x, arrays(0)[k], what=k)


def test_l2sp_is_the_same_bits_everywhere(backend: Backend) -> None:
    params, _ = run(backend, chain(L2SP(0.3, 0.2, new="^head"), Adam(lr=0.1)), steps=5)
    optimizer = Optimizer(chain(L2SP(0.3, 0.2, new="^head"), Adam(lr=0.1)), compiled=False)
    expected: Any = arrays(0)
    state = optimizer.init(expected)
    for t in range(5):
        expected, state = optimizer.step(expected, arrays(t + 1), state)
    for k in NAMES:
        assert_same_bits(params[k], expected[k], what=k)


def test_l2sp_in_a_whole_step(backend: Backend) -> None:
    rule = chain(L2SP(alpha=0.5), SGD(lr=0.5))
    step = TrainStep(lambda xp, p: 0.0 * xp.sum(p["w"]), Optimizer(rule))
    start = {"w": backend.from_numpy(np.float32([4.0, 8.0]))}
    carry = step.load({"w": backend.from_numpy(np.float32([8.0, 8.0]))}, Optimizer(rule).init(start))
    for expected in (7.0, 6.25):
        carry, _ = step(carry)
        params, state = step.unload(carry)
        assert_close(params["w"], np.float32([expected, 8.0]), because="small numbers are exact")
        assert_same_bits(state["slots"]["anchor"]["w"], np.float32([4.0, 8.0]))


def test_a_plateau_drives_beta_and_anchors_start_with_their_layer() -> None:
    rule = chain(L2SP(0.5, Plateau(0.4, factor=0.5, patience=0), new="^head"), SGD(lr=1.0))
    optimizer = Optimizer(rule)
    params = {"body": np.array([1.0]), "head": np.array([1.0])}
    zero = {k: 0 * x for k, x in params.items()}
    state = optimizer.init(params)
    for _ in range(2):
        state = optimizer.observe(state, 1.0)
    moved, _ = optimizer.step(params, zero, state)
    assert {k: x.tolist() for k, x in moved.items()} == {"body": [1.0], "head": [0.8]}
    drawn = {"body": np.array([3.0]), "head": np.array([1.0])}
    assert reset(state, drawn, optimizer, "body")["slots"]["anchor"]["body"].tolist() == [3.0]
    before = Optimizer(freeze(rule, "body"))
    thawed = transfer(before.init(params), drawn, before, optimizer)
    assert tree.named(thawed["slots"]["anchor"])["body"].tolist() == [3.0]
