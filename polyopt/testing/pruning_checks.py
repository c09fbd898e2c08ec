"""Pruning: masks against a ranking by hand and in NumPy's bits, what they prune, masked optimizers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeAlias

import numpy as np

from polyopt import SGD, Adam, AdamW, chain, pruning
from polyopt.core import random, tree
from polyopt.testing.agreement import Place, in_numpys_bits, same_bits
from polyopt.testing.case import Case, Context
from polyopt.testing.ops_inputs import dtypes_of, host_dtype
from polyopt.testing.reference import reference
from polyopt.testing.rules_cases import DEFAULTS
from polyopt.testing.stages import Leaf, StageCase, stage_cases

Host: TypeAlias = dict[str, Any]
LAYERS: Final = [("layers.0.weight", "layers.0.bias"), ("layers.1.weight", "layers.1.bias")]


def cases() -> Iterator[Case]:
    """Yield a case for each criterion, for what masks do, and for the stages."""
    for criterion in CRITERIA:
        yield Case("pruning", f"masks: {criterion.name}", partial(masks, criterion))
    for function in (pruned, shrunk, clipped, dropped):
        yield Case("pruning", function.__name__, function)
    yield from stage_cases("pruning", STAGES)


def values(context: Context, seed: int = 0, places: int | None = 1) -> Any:
    """Host parameters of every floating dtype the backend has; rounded, so that many magnitudes are equal."""
    rng = np.random.default_rng([7, seed])

    def some(dtype: str, *shape: int) -> Any:
        x = rng.normal(size=shape)
        return (x if places is None else x.round(places)).astype(host_dtype(dtype))

    found: Any = {
        "layers": [
            {"weight": some("float32", 8, 12), "bias": some("float32", 12)},
            {"weight": some("float64", 12, 4), "bias": some("float64", 4)},
        ]
    }
    return found | {d: some(d, 4, 8) for d in dtypes_of(context.backend, ("bfloat16", "float16"))}


def wide(params: Any) -> Host:
    """Return by path leaves of at least two axes, halves in float32, in which they are computed."""
    named = tree.named(params)
    return {
        path: x if x.dtype in (np.float32, np.float64) else x.astype(np.float32)
        for path, x in named.items()
        if x.ndim > 1
    }


def keep_all_but_lowest(leaves: Host, count: int) -> Host:
    """Masks that prune the ``count`` lowest of all leaves together; of equals those that come first."""
    scored = [(float(s), k) for k, s in enumerate(np.concatenate([x.reshape(-1) for x in leaves.values()]))]
    keep = np.ones(len(scored), bool)
    for _, k in sorted(scored)[:count]:
        keep[k] = False
    ends = np.cumsum([x.size for x in leaves.values()])[:-1]
    parts = np.split(keep, ends)
    return {path: part.reshape(x.shape) for (path, x), part in zip(leaves.items(), parts, strict=True)}


def each(leaves: Host, share: float) -> Host:
    """Keep all but the lowest of each leaf by itself."""
    found: Host = {}
    for path, x in leaves.items():
        found |= keep_all_but_lowest({path: x}, round(share * x.size))
    return found


def together(leaves: Host, share: float) -> Host:
    """Keep all but the lowest of all leaves together."""
    return keep_all_but_lowest(leaves, round(share * sum(x.size for x in leaves.values())))


def in_lines(leaves: Host, axis: int, length: int | None, count: int) -> Host:
    """Keep all but the ``count`` lowest of every ``length`` elements along an axis; ``None`` is all of it."""
    found = {}
    for path, x in leaves.items():
        moved = np.moveaxis(x, axis, -1)
        rows = moved.reshape(-1, length or moved.shape[-1])
        kept = np.stack([keep_all_but_lowest({"": row}, count)[""] for row in rows])
        found[path] = np.moveaxis(kept.reshape(moved.shape), -1, axis)
    return found


def magnitudes(params: Any) -> Host:
    """Return the magnitudes in float64."""
    return {path: np.abs(x) for path, x in wide(params).items()}


def _within(params: Any) -> Host:
    """Pruned to 0.3 at random first, then to 0.6 by magnitude of what is left."""
    first = each(_draws(params), 0.3)
    found: Host = {}
    for path, x in magnitudes(params).items():
        scores = np.where(first[path], x, -1.0)
        found |= keep_all_but_lowest({path: scores}, round(0.6 * x.size))
    return found


def _draws(params: Any) -> Host:
    return {
        path: random.generator(5, f"prune:{path}", 2).random(x.size).reshape(x.shape)
        for path, x in wide(params).items()
    }


def _threshold(params: Any) -> Host:
    return {path: (x >= -1) & (x <= 1.5) & (np.abs(x) >= 0.25) for path, x in wide(params).items()}


def _by_gradient(params: Any, grads: Any, score: Callable[[Any, Any], Any]) -> Host:
    slopes = wide(grads)
    return {path: score(x, slopes[path]) for path, x in wide(params).items()}


def _wanda(params: Any, x: Any) -> Host:
    norms = np.sqrt(np.sum(x.astype(np.float64) ** 2, axis=0)).astype(np.float32)
    path = LAYERS[0][0]
    return in_lines({path: magnitudes(params)[path] * norms[:, None]}, 0, None, 4)


def _structured(params: Any) -> Host:
    """Half of the hidden units: a column of the first weight, an element of its bias, a row of the second."""
    first, second = params["layers"]
    norms = np.array([np.sqrt(sum(float(w) ** 2 for w in column)) for column in first["weight"].T])
    kept = keep_all_but_lowest({"": norms}, 6)[""]
    return {
        "layers.0.weight": np.broadcast_to(kept, first["weight"].shape),
        "layers.0.bias": kept,
        "layers.1.weight": np.broadcast_to(kept[:, None], second["weight"].shape),
    }


def _make_structured(params: Any) -> Any:
    return pruning.structured_masks(params, 0.5, pruning.chain_couplings(params, LAYERS))


def _make_within(params: Any) -> Any:
    first = pruning.random_masks(params, 0.3, seed=5, step=2)
    return pruning.magnitude_masks(params, 0.6, within=first)


def _make_movement(params: Any, grads: Any) -> Any:
    scores = pruning.movement_scores(params, grads, lr=0.5)
    return pruning.score_masks(pruning.movement_scores(params, grads, scores, lr=0.5), 0.5)


def _make_wanda(params: Any, x: Any) -> Any:
    scores = pruning.wanda_scores(params, {LAYERS[0][0]: pruning.input_norms(x)})
    return pruning.score_masks(scores, 0.5, scope="row")


@dataclass(frozen=True)
class Criterion:
    """Make masks in two ways: of placed arrays by ``make``, of host arrays by ``want``.

    Both get the parameters, and a tree of gradients or a batch of inputs where ``given`` says so.
    """

    name: str
    make: Callable[..., Any]
    want: Callable[..., Host]
    given: str | None = None


CRITERIA: Final[tuple[Criterion, ...]] = (
    Criterion("magnitude", lambda p: pruning.magnitude_masks(p, 0.6), lambda p: each(magnitudes(p), 0.6)),
    Criterion(
        "magnitude, global",
        lambda p: pruning.magnitude_masks(p, 0.75, scope="global"),
        lambda p: together(magnitudes(p), 0.75),
    ),
    Criterion("magnitude, within other masks", _make_within, _within),
    Criterion(
        "random",
        lambda p: pruning.random_masks(p, 0.4, seed=5, step=2),
        lambda p: each(_draws(p), 0.4),
    ),
    Criterion(
        "threshold",
        lambda p: pruning.threshold_masks(p, minimum=-1.0, maximum=1.5, magnitude=0.25),
        _threshold,
    ),
    Criterion("2 of 4", pruning.n_of_m_masks, lambda p: in_lines(magnitudes(p), -1, 4, 2)),
    Criterion(
        "1 of 4, along the first axis",
        lambda p: pruning.n_of_m_masks(p, 1, 4, axis=0),
        lambda p: in_lines(magnitudes(p), 0, 4, 3),
    ),
    Criterion(
        "SNIP",
        lambda p, g: pruning.score_masks(pruning.snip_scores(p, g), 0.7, scope="global"),
        lambda p, g: together(_by_gradient(p, g, lambda w, s: np.abs(s * w)), 0.7),
        "gradients",
    ),
    Criterion(
        "movement",
        _make_movement,
        lambda p, g: each(_by_gradient(p, g, lambda w, s: -(w * s)), 0.5),
        "gradients",
    ),
    Criterion("Wanda", _make_wanda, _wanda, "inputs"),
    Criterion("structured", _make_structured, _structured),
)


def masks(criterion: Criterion, context: Context) -> str:
    """Check that the masks are those of the ranking by hand, and NumPy's."""
    params = values(context)
    extra: tuple[Any, ...] = ()
    if criterion.given == "gradients":
        extra = (values(context, seed=1, places=None),)
    elif criterion.given == "inputs":
        extra = (np.random.default_rng(8).normal(size=(16, 8)).astype(np.float32),)

    def work(place: Place) -> Host:
        made: Host = criterion.make(place(params), *map(place, extra))
        return made

    got = in_numpys_bits(context.backend, work, f"masks by {criterion.name}")
    want = criterion.want(params, *extra)
    assert got.keys() == want.keys(), f"{criterion.name}: masks of {list(got)}; expected {list(want)}"
    for path, mask in want.items():
        same_bits(f"masks by {criterion.name}: {path!r}", got[path], mask, "the ranking by hand")
    return f"{len(got)} leaves"


def pruned(context: Context) -> None:
    """Check that what a mask prunes is +0, and all else keeps its bits."""
    params = values(context)

    def work(place: Place) -> Host:
        given = place(params)
        return tree.named(pruning.pruned(given, pruning.magnitude_masks(given, 0.6)))

    got = in_numpys_bits(context.backend, work, "pruned")
    kept = each(magnitudes(params), 0.6)
    for path, x in tree.named(params).items():
        want = x if path not in kept else np.where(kept[path], x, np.zeros((), x.dtype))
        same_bits(f"pruned {path!r}", got[path], want, "by hand there")


def shrunk(context: Context) -> None:
    """Check that removed units leave what was kept, bit for bit."""
    params = values(context)

    def work(place: Place) -> Host:
        given = place(params)
        couplings = pruning.chain_couplings(given, LAYERS)
        small = pruning.shrink(given, pruning.structured_masks(given, 0.5, couplings), couplings)
        return tree.named(small)

    got = in_numpys_bits(context.backend, work, "shrink")
    kept = _structured(params)["layers.0.bias"]
    first, second = params["layers"]
    for path, want in (
        ("layers.0.weight", first["weight"][:, kept]),
        ("layers.0.bias", first["bias"][kept]),
        ("layers.1.weight", second["weight"][kept]),
        ("layers.1.bias", second["bias"]),
    ):
        same_bits(f"shrink {path!r}", got[path], want, "by hand there")


def clipped(context: Context) -> None:
    """Weights beyond a limit are at it."""
    params = values(context, places=None)

    def work(place: Place) -> Host:
        return tree.named(pruning.clip_weights(place(params), minimum=-0.5, maximum=0.75))

    got = in_numpys_bits(context.backend, work, "clip_weights")
    for path, x in wide(params).items():
        want = np.clip(x, x.dtype.type(-0.5), x.dtype.type(0.75)).astype(got[path].dtype)
        same_bits(f"clip_weights {path!r}", got[path], want, "by hand there")


def dropped(context: Context) -> None:
    """Check that a random share becomes 0, the same one everywhere."""
    params = values(context, places=None)

    def work(place: Place) -> Host:
        return tree.named(pruning.drop_weights(place(params), 0.25, seed=1))

    got = in_numpys_bits(context.backend, work, "drop_weights")
    for path, x in wide(params).items():
        zeros, want = int(np.sum(got[path] == 0)), round(0.25 * x.size)
        assert zeros == want, f"drop_weights of {path!r}: {zeros} zeros; expected {want}"


def _held(algorithm: str, **fields: Any) -> Any:
    """Return the reference of an algorithm on what is kept; the rest is 0 and its gradients are."""
    inner = reference(algorithm, "paper", DEFAULTS[algorithm]["paper"] | fields)

    def step(memory: Any, p: Any, g: Any, t: int, lr: float, leaf: Leaf) -> Any:
        moved = inner(memory, p, np.where(leaf.mask, g, 0.0), t, lr)
        return np.where(leaf.mask, moved, 0.0)

    return step


def _movement(memory: Any, p: Any, g: Any, t: int, lr: float, leaf: Leaf) -> Any:
    memory["movement"] = memory.get("movement", 0.0) - 0.5 * p * g
    return p - lr * g


STAGES: Final[tuple[StageCase, ...]] = (
    StageCase("masked(Adam)", lambda lr: pruning.masked(Adam(lr=lr)), _held("adam"), masked=True),
    StageCase(
        "masked(AdamW)",
        lambda lr: pruning.masked(AdamW(lr=lr, weight_decay=0.0625)),
        _held("adamw", weight_decay=0.0625),
        masked=True,
    ),
    StageCase(
        "masked(SGD)",
        lambda lr: pruning.masked(SGD(lr=lr, momentum=0.875, nesterov=True)),
        _held("sgd", momentum=0.875, nesterov=True),
        masked=True,
    ),
    StageCase(
        "Movement, SGD",
        lambda lr: chain(pruning.Movement(lr=0.5), SGD(lr=lr)),
        _movement,
        slots=("movement",),
    ),
)
