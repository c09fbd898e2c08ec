"""Gradients where there is no single right one, or where one value spoils all: the same on every backend.

The values stand in a table. At a kink the slope is the smallest subgradient (``abs``: 0); of a tie each
operand has its equal share; where an operand is NaN, ``abs`` has the slope 0 and ``maximum`` passes the
gradient to both; the power 0 has the slope 0 everywhere. What a loss leaves out, by a weight of 0, an ignored
label or a probability of 0, has the gradient 0, whatever it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np

from polyopt.distillation import AttentionTransfer, DecoupledKD, FeatureHint, RelationalDistance, SoftTargets
from polyopt.models import losses
from polyopt.testing.case import Case, Context
from polyopt.testing.compare_arrays import text

INF, NAN = float("inf"), float("nan")


@dataclass(frozen=True)
class Kink:
    """``loss(xp, p, *args)``, summed where it is no scalar, has the gradient ``slope`` at ``at``."""

    loss: Callable[..., Any]
    at: Any
    slope: Any
    args: tuple[Any, ...] = ()


def _like(value: float) -> Callable[[Any, Any], Any]:
    return lambda xp, p: xp.full_like(p, value)


ZERO, TWO = _like(0.0), _like(2.0)

OPS: Final[dict[str, Kink]] = {
    "abs": Kink(lambda xp, p: xp.abs(p), [0.0, -0.0, -2.0, INF, NAN], [0, 0, -1, 1, 0]),
    "maximum": Kink(
        lambda xp, p: xp.maximum(p, ZERO(xp, p)),
        [0.0, -0.0, 1, -1, INF, -INF, NAN],
        [0.5, 0.5, 1, 0, 1, 0, 1],
    ),
    "maximum, second operand": Kink(
        lambda xp, p: xp.maximum(ZERO(xp, p), p), [0.0, -0.0, 1, -1, NAN], [0.5, 0.5, 1, 0, 1]
    ),
    "maximum with a number": Kink(lambda xp, p: xp.maximum(p, 0.0), [0.0, -0.0, 1, -1], [0.5, 0.5, 1, 0]),
    "maximum of one array": Kink(lambda xp, p: xp.maximum(p, p), [0.0, 1, INF], [1, 1, 1]),
    "maximum, broadcast": Kink(
        lambda xp, p: xp.maximum(xp.reshape(p, (2, 1)), xp.reshape(p, (1, 2))), [3.0, 3.0], [2, 2]
    ),
    "minimum": Kink(
        lambda xp, p: xp.minimum(p, ZERO(xp, p)),
        [0.0, -0.0, 1, -1, INF, -INF, NAN],
        [0.5, 0.5, 0, 1, 0, 1, 1],
    ),
    "clip": Kink(lambda xp, p: xp.clip(p, -1.0, 1.0), [-1.0, 1, 0, 2, -3, NAN], [0.5, 0.5, 1, 0, 0, 1]),
    "clip between equal bounds": Kink(lambda xp, p: xp.clip(p, 1.0, 1.0), [1.0, 0, 2], [0.25, 0, 0]),
    "max": Kink(lambda xp, p: xp.max(p), [1.0, 1.0, 0.0], [0.5, 0.5, 0]),
    "max of infinities": Kink(lambda xp, p: xp.max(p), [INF, INF, 0.0], [0.5, 0.5, 0]),
    "max along an axis": Kink(
        lambda xp, p: xp.max(p, axis=-1), [[1.0, 1.0], [0.0, 3.0]], [[0.5, 0.5], [0, 1]]
    ),
    "min": Kink(lambda xp, p: xp.min(p), [1.0, 1.0, 2.0], [0.5, 0.5, 0]),
    "sqrt": Kink(lambda xp, p: xp.sqrt(p), [0.0, -0.0, 4.0, INF], [INF, -INF, 0.25, 0]),
    "square": Kink(lambda xp, p: xp.square(p), [0.0, -0.0, INF], [0, 0, INF]),
    "log": Kink(lambda xp, p: xp.log(p), [0.0, 1.0, INF], [INF, 1, 0]),
    "log1p": Kink(lambda xp, p: xp.log1p(p), [-1.0, 0.0, INF], [INF, 1, 0]),
    "divide": Kink(lambda xp, p: xp.divide(p, ZERO(xp, p)), [0.0, 1.0], [INF, INF]),
    "divide by itself": Kink(lambda xp, p: xp.divide(p, p), [0.0, 2.0, INF], [NAN, 0, NAN]),
    "pow": Kink(lambda xp, p: xp.pow(p, TWO(xp, p)), [0.0, -1.0, INF], [0, -2, INF]),
    "pow 0": Kink(lambda xp, p: xp.pow(p, ZERO(xp, p)), [0.0, -1.0, 2.0, INF], [0, 0, 0, 0]),
    "pow of the number 0": Kink(lambda xp, p: xp.pow(p, 0.0) + p, [0.0, -1.0, INF], [1, 1, 1]),
    "pow 1/2": Kink(lambda xp, p: xp.pow(p, 0.5), [0.0, 1.0], [INF, 0.5]),
    "pow by the exponent, of 0": Kink(lambda xp, p: xp.pow(ZERO(xp, p), p), [0.0, 1.0, 2.0], [0, 0, 0]),
    "pow by the exponent, of -2": Kink(lambda xp, p: xp.pow(-TWO(xp, p), p), [1.0, 2.0], [NAN, NAN]),
    "tanh": Kink(lambda xp, p: xp.tanh(p), [0.0, INF, -INF], [1, 0, 0]),
    "exp": Kink(lambda xp, p: xp.exp(p), [-INF, 0.0, INF], [0, 1, INF]),
    "expm1": Kink(lambda xp, p: xp.expm1(p), [-INF, 0.0, INF], [0, 1, INF]),
    "cos": Kink(lambda xp, p: xp.cos(p), [0.0, -0.0], [0, 0]),
    "sign, round, floor, ceil": Kink(
        lambda xp, p: xp.sign(p) + xp.round(p) + xp.floor(p) + xp.ceil(p) + p, [0.5, 0.0, -1.0], [1, 1, 1]
    ),
    "where the other side is infinite": Kink(
        lambda xp, p: xp.where(xp.greater(p, ZERO(xp, p)), p, ZERO(xp, p)), [INF, -INF, NAN, 1], [1, 0, 0, 1]
    ),
    "take twice": Kink(
        lambda xp, p, i: xp.take(p, i, axis=0), [1.0, INF, 2.0], [2, 1, 0], (np.array([0, 0, 1], np.int32),)
    ),
    "mean": Kink(lambda xp, p: xp.mean(p), [INF, 1.0], [0.5, 0.5]),
}

ROWS = [[1.0, 3.0], [NAN, INF]]
SOFTMAX = (1 / (1 + np.exp(2.0)), 1 / (1 + np.exp(-2.0)))
"""Probabilities of the first row's logits."""
HALF: Final = np.array([1.0, 0.0])
FIRST: Final = np.array([0, 1], np.int32)
HIDDEN: Final = [[0.0, 0.0, -INF]]


def _weighted(loss: Any, **options: Any) -> Callable[..., Any]:
    return lambda xp, p, *args: loss(xp, p, *args[:-1], weights=args[-1], **options)


LOSSES: Final[dict[str, Kink]] = {
    "mean_squared_error, weight 0": Kink(
        _weighted(losses.mean_squared_error), [0.0, 0.0], [-2, 0], (np.array([1.0, NAN]), HALF)
    ),
    "cross_entropy, weight 0": Kink(
        _weighted(losses.cross_entropy), ROWS, [[SOFTMAX[0] - 1, SOFTMAX[1]], [0, 0]], (FIRST, HALF)
    ),
    "cross_entropy, weight 0 of a label that is no class": Kink(
        _weighted(losses.cross_entropy),
        ROWS,
        [[SOFTMAX[0] - 1, SOFTMAX[1]], [0, 0]],
        (np.array([0, 7], np.int32), HALF),
    ),
    "cross_entropy, probabilities, weight 0": Kink(
        _weighted(losses.cross_entropy),
        ROWS,
        [[SOFTMAX[0] - 1, SOFTMAX[1]], [0, 0]],
        (np.array([[1.0, 0.0], [NAN, 0.0]]), HALF),
    ),
    "cross_entropy, ignored label": Kink(
        partial(losses.cross_entropy, ignore_index=-100),
        ROWS,
        [[SOFTMAX[0] - 1, SOFTMAX[1]], [0, 0]],
        (np.array([0, -100], np.int32),),
    ),
    "cross_entropy, ignored label, smoothed": Kink(
        partial(losses.cross_entropy, ignore_index=1, label_smoothing=0.5),
        ROWS,
        [[SOFTMAX[0] - 0.75, SOFTMAX[1] - 0.25], [0, 0]],
        (FIRST,),
    ),
    "cross_entropy, logit of -inf": Kink(
        losses.cross_entropy, HIDDEN, [[-0.5, 0.5, 0]], (np.array([0], np.int32),)
    ),
    "cross_entropy, probabilities, logit of -inf": Kink(
        losses.cross_entropy, HIDDEN, [[-0.5, 0.5, 0]], (np.array([[1.0, 0.0, 0.0]]),)
    ),
    "cross_entropy, weighted, logit of -inf": Kink(
        _weighted(losses.cross_entropy), HIDDEN, [[-0.5, 0.5, 0]], (np.array([0], np.int32), np.array([2.0]))
    ),
    "SoftTargets, logits of -inf": Kink(
        SoftTargets(temperature=1.0, alpha=1.0), HIDDEN, [[0, 0, 0]], (np.array(HIDDEN),)
    ),
    "SoftTargets, weight 0": Kink(
        _weighted(SoftTargets(temperature=1.0, alpha=1.0)),
        ROWS,
        [[SOFTMAX[0] - 0.5, SOFTMAX[1] - 0.5], [0, 0]],
        (np.array([[0.0, 0.0], [NAN, 1.0]]), None, HALF),
    ),
    "DecoupledKD, weight 0": Kink(
        _weighted(DecoupledKD(temperature=1.0, alpha=1.0, beta=0.0, label_weight=0.0)),
        ROWS,
        [[SOFTMAX[0] - 0.5, SOFTMAX[1] - 0.5], [0, 0]],
        (np.array([[0.0, 0.0], [NAN, 1.0]]), FIRST, HALF),
    ),
    "FeatureHint, weight 0": Kink(
        _weighted(FeatureHint()), ROWS, [[1, 1], [0, 0]], (np.array([[0.0, 2.0], [NAN, 1.0]]), HALF)
    ),
    "AttentionTransfer of zeros": Kink(
        AttentionTransfer(power=1), np.zeros((1, 2, 3)), np.zeros((1, 2, 3)), (np.zeros((1, 2, 3)),)
    ),
    "RelationalDistance of equal samples": Kink(
        RelationalDistance(), np.ones((3, 2)), np.zeros((3, 2)), (np.ones((3, 2)),)
    ),
}


def check(kink: Kink, context: Context) -> None:
    """Compare the gradient with the table's, to 1e-12, compiled and not."""
    backend = context.backend
    want = np.array(kink.slope, np.float64)

    def loss(xp: Any, p: Any, *given: Any) -> Any:
        left = iter(given)
        return xp.sum(kink.loss(xp, p, *(None if x is None else next(left) for x in kink.args)))

    for compiled in (False, True):
        p = backend.from_numpy(np.array(kink.at, np.float64))
        given = [backend.from_numpy(x) for x in kink.args if x is not None]
        _, got = backend.value_and_grad(loss, compiled=compiled)(p, *given)
        found = np.asarray(backend.to_numpy(got))
        # Slopes of 0 come out of sums; their signs and 1e-12 of rounding mean nothing.
        near = np.isclose(found, want, rtol=1e-12, atol=1e-12, equal_nan=True)
        how = "compiled" if compiled else "eager"
        assert near.all(), f"the {how} gradient is {text(found)}; expected {text(want)}"


def cases() -> Iterator[Case]:
    """Yield one case for every entry of the two tables."""
    for name, kink in {**OPS, **LOSSES}.items():
        yield Case("kinks", name, partial(check, kink))
