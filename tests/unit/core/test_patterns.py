"""A pattern that matches no parameter is refused, wherever patterns are taken, and names the nearest path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from polyopt import (
    SGD,
    Adam,
    AdamW,
    AddDecayedWeights,
    DecoupledWeightDecay,
    Optimizer,
    Packing,
    chain,
    partition,
)
from polyopt.backend.protocol import Backend
from polyopt.core.errors import InputError
from polyopt.core.rule import Elementwise, hyper, pattern, unmatched
from polyopt.finetuning import (
    L2SP,
    GradualUnfreezing,
    LoRA,
    freeze,
    layer_decay,
    layer_rates,
    layer_weight_decay,
    numbered_layers,
    reinitialize,
    reset,
    select,
    split,
    transfer,
)
from polyopt.models.initializers import Zeros
from polyopt.optim import OPTIMIZERS
from polyopt.pruning import (
    clip_weights,
    drop_weights,
    magnitude_masks,
    movement_scores,
    n_of_m_masks,
    random_masks,
    score_masks,
    snip_scores,
    threshold_masks,
    wanda_scores,
)
from polyopt.quantization import Integer, quantize

WRONG = "wieght$"
PREDICATE: Callable[[str], bool] = str.isupper


def tree(backend: Backend) -> Any:
    def array(*shape: int) -> Any:
        return backend.from_numpy(np.ones(shape, np.float32))

    return {"body": {"weight": array(4, 4), "bias": array(4)}, "head": {"weight": array(4, 4)}}


def started(stage: Any) -> Callable[[Any], Any]:
    return lambda params: Optimizer(stage).init(params)


SITES: dict[str, Callable[[Any], Callable[[Any], Any]]] = {
    "AddDecayedWeights": lambda x: started(chain(AddDecayedWeights(0.1, mask=x), SGD(lr=0.1))),
    "DecoupledWeightDecay": lambda x: started(chain(SGD(lr=0.1), DecoupledWeightDecay(0.1, mask=x))),
    "L2SP": lambda x: started(chain(L2SP(0.1, new=x), SGD(lr=0.1))),
    "partition": lambda x: started(partition([(x, SGD(lr=0.1)), (".*", SGD(lr=0.2))])),
    "inside of a partition": lambda x: started(
        partition([("bias$", AdamW(mask=x)), (".*", AdamW(mask="weight$"))])
    ),
    "freeze": lambda x: started(freeze(Adam(), x)),
    "layer_rates": lambda x: started(layer_rates(Adam(), [(x, 0.5)])),
    "layer_decay": lambda x: started(layer_decay(Adam(), [x, "head"], 0.5)),
    "layer_weight_decay": lambda x: started(layer_weight_decay(AdamW(), [(x, 0.5)])),
    "packed": lambda x: lambda params: Packing(params, AdamW(mask=x)),
    "split": lambda x: lambda params: split(params, x),
    "select": lambda x: lambda params: select(params, "bias", x),
    "numbered_layers": lambda x: lambda params: numbered_layers(params, top=[x]),
    "reinitialize": lambda x: lambda params: reinitialize(params, [(x, Zeros())]),
    "reset": lambda x: lambda params: reset(Optimizer(Adam()).init(params), params, Optimizer(Adam()), x),
    "transfer": lambda x: (
        lambda params: transfer(
            Optimizer(Adam()).init(params), params, Optimizer(Adam()), Optimizer(Adam()), fresh=[x]
        )
    ),
    "unfreezing, a layer trained from the start": lambda x: (
        lambda params: GradualUnfreezing(Adam(), ["body", x], steps=1).advance(
            Optimizer(freeze(Adam(), "body")).init(params) | {"step": 1}, params
        )
    ),
    "LoRA": lambda x: lambda params: LoRA(["head", x], rank=1, alpha=1.0).init(params),
    "quantize": lambda x: lambda params: quantize(params, Integer(), x),
    "magnitude": lambda x: lambda params: magnitude_masks(params, 0.5, select=x),
    "random": lambda x: lambda params: random_masks(params, 0.5, select=x),
    "threshold": lambda x: lambda params: threshold_masks(params, minimum=0.0, select=x),
    "n_of_m": lambda x: lambda params: n_of_m_masks(params, select=x),
    "scores": lambda x: lambda params: score_masks(params, 0.5, select=x),
    "snip": lambda x: lambda params: snip_scores(params, params, select=x),
    "movement": lambda x: lambda params: movement_scores(params, params, select=x),
    "wanda": lambda x: lambda params: wanda_scores(params, {}, select=x),
    "clip_weights": lambda x: lambda params: clip_weights(params, minimum=0.0, select=x),
    "drop_weights": lambda x: lambda params: drop_weights(params, 0.5, select=x),
}
"""Everything that takes a pattern: called with it, then with parameters."""


@pytest.mark.parametrize("site", SITES)
def test_a_pattern_that_matches_nothing(site: str, backend: Backend) -> None:
    with pytest.raises(InputError, match=r"'wieght\$' matches no parameter; did you mean 'body.weight'"):
        SITES[site](WRONG)(tree(backend))
    with pytest.raises(InputError, match=r"isupper.* matches no parameter; known: 'body.bias', 'body"):
        SITES[site](PREDICATE)(tree(backend))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_mask_of_every_optimizer(name: str, backend: Backend) -> None:
    rule = OPTIMIZERS[name](lr=0.1, weight_decay=0.1, decay="l2", mask=WRONG)
    with pytest.raises(
        InputError, match=rf"^{type(rule).__name__}: mask = 'wieght\$' matches no parameter; did"
    ):
        Optimizer(rule).init(tree(backend))
    with pytest.raises(InputError, match="mask = 3; expected a regular expression or a predicate"):
        OPTIMIZERS[name](lr=0.1, mask=3)


def test_a_mask_may_match_other_leaves_than_its_own_rule_gets() -> None:
    """Rates by layer give a rule to biases alone, whose mask is for weights."""
    params = {"bias": np.ones(2), "weight": np.ones(2)}
    rule = layer_rates(AdamW(lr=0.1, mask="weight$"), {"bias$": 0.5})
    Optimizer(rule).init(params)


def test_packed_leaves_are_masked_by_their_own_paths(backend: Backend) -> None:
    """The buffer is named after its first leaf, which is another than the mask names."""
    params = {name: backend.from_numpy(np.ones(3)) for name in ("a", "b")}
    zeros = {name: backend.from_numpy(np.zeros(3)) for name in params}
    for rule in (
        SGD(lr=1.0, weight_decay=0.5, decay="l2", mask="b"),
        SGD(lr=1.0, mask="b"),
        chain(L2SP(0.5, 0.25, new="b"), SGD(lr=1.0)),
    ):
        packing = Packing(params, rule)
        optimizer, buffers = Optimizer(packing.rule), packing.pack(params)
        moved, _ = optimizer.step(buffers, packing.pack(zeros), optimizer.init(buffers))
        alone = Optimizer(rule)
        expected, _ = alone.step(params, zeros, alone.init(params))
        for name, x in packing.unpack(moved).items():
            assert (backend.to_numpy(x) == backend.to_numpy(expected[name])).all(), (rule, name)


def test_a_rule_of_ones_own_has_its_patterns_checked() -> None:
    @dataclass(frozen=True)
    class Damped(Elementwise):
        by: Any = hyper(low=0.0)
        where: Any = pattern()

        def leaf(self, xp: Any, g: Any, p: Any, slots: Any, c: Any) -> Any:
            return -c.by * g, {}

    assert Damped(0.5, where="w").patterns() == {"where": "w"}
    Optimizer(Damped(0.5)).init({"w": np.ones(1)})
    with pytest.raises(InputError, match="Damped: where = 'v' matches no parameter; known: 'w'"):
        Optimizer(Damped(0.5, where="v")).init({"w": np.ones(1)})


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("wieght$", "layers.0.weight"),
        ("^lyers", "layers.0.weight"),
        (r"layers\.\d+\.wieght", "layers.0.weight"),
        (r"(kernel|baes)$", "layers.0.bias"),
        (r"^body\.embedings", "body.embeddings.word"),
    ],
)
def test_the_nearest_path(wrong: str, near: str) -> None:
    paths = ["layers.0.weight", "layers.0.bias", "body.embeddings.word"]
    assert unmatched(wrong, paths) == f"matches no parameter; did you mean {near!r}?"


def test_nothing_to_adapt_or_to_quantize() -> None:
    with pytest.raises(InputError, match="LoRA: patterns is empty"):
        LoRA([], rank=1, alpha=1.0)
    with pytest.raises(InputError, match="quantize: no floating-point parameter has 2 axes or more"):
        quantize({"b": np.ones(3)}, Integer())
