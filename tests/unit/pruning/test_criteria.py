"""Masks: the criteria, their exact counts, the same bits on every backend, and what torch prunes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import polyopt as po
from polyopt import pruning as pr
from polyopt.backend import registry
from polyopt.backend.convert import convert
from polyopt.backend.protocol import Backend
from polyopt.core import tree
from polyopt.core.errors import InputError
from polyopt.testing import assert_close, assert_same_bits

HOST: Any = np


def parameters(dtype: str = "float32", seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)

    def some(*shape: int) -> Any:
        # Few values, so that there are ties.
        return (np.round(random.normal(size=shape) * 8) / 8).astype(dtype)

    return {
        "layers": [{"weight": some(12, 8), "bias": some(8)}, {"weight": some(8, 16), "bias": some(16)}],
        "conv": some(3, 3, 4, 8),
        "scale": some(),
    }


def gradients() -> dict[str, Any]:
    return parameters(seed=1)


CRITERIA: dict[str, Callable[..., Any]] = {
    "magnitude": lambda p: pr.magnitude_masks(p, 0.7),
    "magnitude_global": lambda p: pr.magnitude_masks(p, 0.7, scope="global"),
    "random": lambda p: pr.random_masks(p, 0.3, seed=3),
    "random_global": lambda p: pr.random_masks(p, 0.3, seed=3, step=2, scope="global"),
    "threshold": lambda p: pr.threshold_masks(p, minimum=-1.0, maximum=1.5, magnitude=0.3),
    "n_of_m": lambda p: pr.n_of_m_masks(p, 2, 4),
    "scores": lambda p: pr.score_masks(p, 0.4, scope="global"),
    "rows": lambda p: pr.score_masks(p, 0.4, scope="row"),
    "selected": lambda p: pr.magnitude_masks(p, 0.5, select="bias$"),
}


@pytest.mark.parametrize("name", CRITERIA)
def test_masks_are_the_same_bits_on_every_backend(backend: Backend, name: str) -> None:
    masks = CRITERIA[name](convert(parameters(), backend))
    expected = CRITERIA[name](parameters())
    assert masks.keys() == expected.keys()
    for path, mask in masks.items():
        assert backend.is_array(mask)
        assert_same_bits(mask, expected[path], what=path)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_masks_of_other_dtypes_are_those_of_the_same_values(backend: Backend, dtype: str) -> None:
    params = tree.map_leaves(lambda x: backend.from_numpy(x, dtype=dtype), parameters())
    for name in ("magnitude", "magnitude_global", "scores", "threshold"):
        expected = CRITERIA[name](parameters())
        for path, mask in CRITERIA[name](params).items():
            assert_same_bits(mask, expected[path], what=f"{name} {path}")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_leaves_of_no_axis_and_empty_ones_keep_their_shapes(backend: Backend, dtype: str) -> None:
    host = {"scale": np.array(3.0), "none": np.zeros((0, 4)), "w": np.array([[1.0, -2.0], [3.0, 0.5]])}
    params = tree.map_leaves(lambda x: backend.from_numpy(x, dtype=dtype), host)
    masks = pr.magnitude_masks(params, 0.5, select=".*")
    masks["scale"] = backend.from_numpy(np.array(False))
    assert [np.count_nonzero(backend.to_numpy(masks[k])) for k in ("scale", "none", "w")] == [0, 0, 2]
    optimizer = po.Optimizer(pr.masked(po.Adam(lr=0.1)))
    dense = optimizer.init(params)
    clipped = pr.clip_weights(params, minimum=-1e300, maximum=2.5, share=0.9)
    moved, state = pr.with_masks(optimizer, params, dense, masks)
    for found in (pr.pruned(params, masks), clipped, moved, pr.drop_weights(params, 0.5, select=".*")):
        assert {k: tuple(x.shape) for k, x in found.items()} == {k: x.shape for k, x in host.items()}
        assert {backend.dtype_name(x) for x in found.values()} == {dtype}
    moved, state = optimizer.step(moved, params, state)
    assert_same_bits(moved["scale"], np.zeros((), backend.to_numpy(moved["scale"]).dtype))
    assert [tuple(x.shape) for x in pr.snip_scores(params, params, select="scale").values()] == [()]


def test_limits_beyond_the_dtype_are_infinite(backend: Backend) -> None:
    params = {"w": backend.from_numpy(np.array([[1.0, -np.inf, np.inf]]), dtype="float16")}
    for found in (
        pr.clip_weights(params, minimum=-1e300, maximum=1e300)["w"],
        pr.pruned(params, pr.threshold_masks(params, minimum=-1e300, maximum=1e300, magnitude=1e-300))["w"],
    ):
        assert_same_bits(found, backend.to_numpy(params["w"]))
    assert not backend.to_numpy(pr.threshold_masks(params, minimum=1e300)["w"])[0, :2].any()


def test_what_is_pruned_may_be_nan() -> None:
    params = {"w": np.array([[np.nan, 1.0, 3.0, 2.0]])}
    within = {"w": np.array([[False, True, True, True]])}
    for mask in (
        pr.magnitude_masks(params, 0.5, within=within),
        pr.threshold_masks(params, minimum=1.5, within=within),
        pr.n_of_m_masks(params, within=within),
    ):
        assert mask["w"].tolist() == [[False, False, True, True]]


# The counts


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.77, 0.99])
def test_a_sparsity_is_met_to_the_element(sparsity: float) -> None:
    params = parameters()
    named = {path: x for path, x in tree.named(params).items() if x.ndim > 1}
    for path, mask in pr.magnitude_masks(params, sparsity).items():
        assert np.count_nonzero(~mask) == round(sparsity * mask.size), path
    total = sum(x.size for x in named.values())
    sparsity = min(sparsity, 0.9)  # more would leave nothing of a leaf
    for scope_masks in (
        pr.magnitude_masks(params, sparsity, scope="global"),
        pr.random_masks(params, sparsity, scope="global"),
    ):
        assert scope_masks.keys() == named.keys()
        assert sum(np.count_nonzero(~m) for m in scope_masks.values()) == round(sparsity * total)


def test_what_is_pruned_stays_pruned_and_counts() -> None:
    params = parameters()
    for scope in ("leaf", "global"):
        first = pr.magnitude_masks(params, 0.3, scope=scope)
        changed = tree.map_leaves(lambda x: 1 / (np.abs(x) + np.float32(0.1)), params)
        second = pr.magnitude_masks(changed, 0.6, scope=scope, within=first)
        third = pr.magnitude_masks(changed, 0.1, scope=scope, within=second)
        total = sum(m.size for m in first.values())
        pruned = sum(np.count_nonzero(~m) for m in second.values())
        assert pruned == sum(round(0.6 * m.size) for m in first.values()) or scope == "global"
        assert pruned == round(0.6 * total) or scope == "leaf"
        for path in first:
            assert not (second[path] & ~first[path]).any()
            assert_same_bits(third[path], second[path])


def test_random_draws_differ_by_seed_step_and_path() -> None:
    params = {"a": np.ones((16, 16)), "b": np.ones((16, 16))}
    draws = [pr.random_masks(params, 0.5, seed=s, step=t) for s, t in ((0, 0), (1, 0), (0, 1))]
    bits = [m.tobytes() for draw in draws for m in draw.values()]
    assert len(set(bits)) == 6
    assert_same_bits(pr.random_masks(params, 0.5)["a"], draws[0]["a"])


# Thresholds, patterns of groups, and clipping


def test_thresholds_keep_what_is_at_the_limit(backend: Backend) -> None:
    w = np.array([[-2.0, -1.0, -0.5, 0.25, 0.5, 1.5, 2.0]], "float32")
    params = {"w": backend.from_numpy(w)}
    found = pr.threshold_masks(params, minimum=-1.0, maximum=1.5, magnitude=0.5)["w"]
    assert_same_bits(found, (w >= -1) & (w <= 1.5) & (np.abs(w) >= 0.5))


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (3, 4)])
def test_n_of_every_m_are_kept(n: int, m: int, axis: int) -> None:
    w = np.random.default_rng(0).normal(size=(16, 24)).astype("float32")
    mask = pr.n_of_m_masks({"w": w}, n, m, axis=axis)["w"]
    groups = np.moveaxis(mask, axis, -1).reshape(-1, m)
    values = np.abs(np.moveaxis(w, axis, -1).reshape(-1, m))
    assert (groups.sum(axis=1) == n).all()
    assert all(values[i][g].min() >= values[i][~g].max() for i, g in enumerate(groups))


def test_weights_are_clipped_to_a_limit_or_to_zero(backend: Backend) -> None:
    params = convert(parameters(), backend)
    to_limit = pr.clip_weights(params, minimum=-0.5, maximum=1.0)
    to_zero = pr.clip_weights(params, minimum=-0.5, maximum=1.0, to="zero")
    for path, x in tree.named(parameters()).items():
        assert_same_bits(tree.named(to_limit)[path], np.clip(x, np.float32(-0.5), np.float32(1)), what=path)
        inside = (x >= -0.5) & (x <= 1)
        assert_same_bits(tree.named(to_zero)[path], np.where(inside, x, np.float32(0)), what=path)


def test_a_random_share_is_clipped_or_dropped(backend: Backend) -> None:
    host = {"w": np.full((20, 30), 3.0, "float32"), "b": np.full(10, 3.0, "float32")}
    params = convert(host, backend)
    clipped = convert(pr.clip_weights(params, maximum=1.0, share=0.25, seed=4), "numpy")
    assert [np.count_nonzero(clipped[k] == 1) for k in ("w", "b")] == [150, 2]
    assert_same_bits(clipped["w"], pr.clip_weights(host, maximum=1.0, share=0.25, seed=4)["w"])
    dropped = convert(pr.drop_weights(params, 0.25, seed=4), "numpy")
    assert np.count_nonzero(dropped["w"] == 0) == 150
    assert_same_bits(dropped["b"], host["b"])


# Scores


def test_scores_follow_their_papers_and_are_the_same_bits(backend: Backend) -> None:
    host_p, host_g = parameters(), gradients()
    params, grads = convert(host_p, backend), convert(host_g, backend)
    w, g = (tree.named(x)["layers.0.weight"].astype(np.float64) for x in (host_p, host_g))
    snip = pr.snip_scores(params, grads)
    assert "layers.0.bias" not in snip
    assert_close(snip["layers.0.weight"], np.abs(w * g), rtol=2e-7, because="one rounding in float32")
    assert_same_bits(snip["conv"], pr.snip_scores(host_p, host_g)["conv"])
    moved = pr.movement_scores(params, grads, pr.movement_scores(params, grads, lr=0.5), lr=0.25)
    assert_close(moved["layers.0.weight"], -0.75 * w * g, rtol=5e-7, because="a few roundings in float32")
    x = np.random.default_rng(2).normal(size=(5, 7, 12)).astype("float32")
    norms = pr.input_norms(backend.from_numpy(x))
    exact = np.sqrt((x.reshape(-1, 12).astype(np.float64) ** 2).sum(axis=0))
    assert_close(norms, exact, rtol=1e-7, because="rounded once to float32")
    wanda = pr.wanda_scores(params, {"layers.0.weight": norms})
    assert list(wanda) == ["layers.0.weight"]
    expected = np.abs(w) * exact[:, None]
    assert_close(wanda["layers.0.weight"], expected, rtol=2e-7, because="two roundings in float32")
    kept = convert(pr.score_masks(wanda, 0.5, scope="row"), "numpy")["layers.0.weight"]
    assert (kept.sum(axis=0) == 6).all()


def test_rows_of_nothing() -> None:
    for shape in ((0, 3), (3, 0)):
        assert pr.score_masks({"w": np.zeros(shape)}, 0.5, scope="row")["w"].shape == shape


def test_wanda_prunes_each_row_of_outputs_in_both_layouts() -> None:
    w = np.random.default_rng(0).normal(size=(6, 10))
    norms = np.arange(1.0, 11.0)
    out_in = pr.wanda_scores({"w": w}, {"w": norms}, layout="out_in")
    in_out = pr.wanda_scores({"w": w.T}, {"w": norms})
    a = pr.score_masks(out_in, 0.4, scope="row", layout="out_in")["w"]
    b = pr.score_masks(in_out, 0.4, scope="row")["w"]
    assert (a.sum(axis=1) == 6).all()
    assert_same_bits(a, np.ascontiguousarray(b.T))


# torch's own


def test_magnitudes_are_torchs_l1_unstructured() -> None:
    import torch
    from torch.nn.utils import prune

    w = np.random.default_rng(3).normal(size=(40, 30)).astype("float32")
    for amount in (0.25, 0.5, 0.9):
        layer = torch.nn.Linear(30, 40)
        layer.weight.data = torch.from_numpy(w.copy())
        prune.l1_unstructured(layer, "weight", amount=amount)
        ours = pr.magnitude_masks({"w": torch.from_numpy(w)}, amount)["w"]
        assert_same_bits(ours, layer.weight_mask.numpy().astype(bool))


def test_global_magnitudes_are_torchs_global_unstructured() -> None:
    import torch
    from torch.nn.utils import prune

    random = np.random.default_rng(3)
    layers = [torch.nn.Linear(5, 7), torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(9, 2)]
    for layer in layers:
        value = random.normal(size=tuple(layer.weight.shape)).astype("float32")
        layer.weight.data = torch.from_numpy(value)
    params = {str(i): layer.weight.detach().clone() for i, layer in enumerate(layers)}
    ours = pr.magnitude_masks(params, 0.6, scope="global")
    prune.global_unstructured(
        [(layer, "weight") for layer in layers], pruning_method=prune.L1Unstructured, amount=0.6
    )
    for i, layer in enumerate(layers):
        assert_same_bits(ours[str(i)], layer.weight_mask.numpy().astype(bool))


@pytest.mark.parametrize("amount", [0.0, 0.125, 0.3, 0.5, 0.9])
def test_as_many_of_equals_go_as_torch_prunes(amount: float) -> None:
    """Of ties, too: torch prunes so many, whichever; halves are rounded to even."""
    import torch
    from torch.nn.utils import prune

    w = torch.tensor([[1.0, -1.0, 1.0, 2.0, 1.0], [0.0, -0.0, 1.0, 1.0, 1.0]])
    layer = torch.nn.Linear(5, 2)
    for name in ("l1_unstructured", "random_unstructured"):
        layer.weight = torch.nn.Parameter(w.clone())
        getattr(prune, name)(layer, "weight", amount=amount)
        theirs = int(layer.weight_mask.sum())
        prune.remove(layer, "weight")
        for found in (pr.magnitude_masks({"w": w}, amount), pr.random_masks({"w": w}, amount)):
            assert int(found["w"].sum()) == theirs, name
    equal = torch.ones(4, 3)
    prune.ln_structured(layer := torch.nn.Linear(3, 4), "weight", amount=0.625, n=2, dim=0)
    coupling = pr.Coupling("c", 4, (pr.Member("w", 0, scored=True),))
    kept = pr.structured_masks({"w": equal}, 0.625, [coupling])["w"]
    assert int(kept.sum()) == int(layer.weight_mask.sum()) == 6, "round(2.5) of four are gone"


def test_random_masks_prune_as_many_as_torchs() -> None:
    import torch
    from torch.nn.utils import prune

    for amount in (0.1, 0.33, 0.75):
        layer = torch.nn.Linear(13, 11)
        prune.random_unstructured(layer, "weight", amount=amount)
        ours = pr.random_masks({"w": np.ones((11, 13))}, amount)["w"]
        assert np.count_nonzero(ours) == int(layer.weight_mask.sum())


# Errors


@pytest.mark.parametrize("sparsity", [1.0, -0.1, 1.5, float("nan"), True, "0.5"])
@pytest.mark.parametrize("criterion", [pr.magnitude_masks, pr.random_masks, pr.score_masks])
def test_a_sparsity_outside_is_refused(criterion: Callable[..., Any], sparsity: Any) -> None:
    with pytest.raises(InputError, match=r"sparsity = .*expected a number in \[0, 1\)"):
        criterion({"w": np.ones((2, 2))}, sparsity)


def small(backend: Backend) -> dict[str, Any]:
    """A leaf of 40 small weights, one of 40 large ones."""
    x = np.linspace(0.1, 1.0, 40).reshape(5, 8)
    return {"large": backend.from_numpy(20 * x), "small": backend.from_numpy(x)}


EMPTYING: dict[str, tuple[Callable[[Any], Any], str]] = {
    "magnitude": (
        lambda p: pr.magnitude_masks(p, 0.99),
        "sparsity of 0.99 would prune all 40 weights of 'large'",
    ),
    "magnitude, global": (
        lambda p: pr.magnitude_masks(p, 0.5, scope="global"),
        "a global sparsity of 0.5 would prune all 40 weights of 'small'",
    ),
    "random": (lambda p: pr.random_masks(p, 0.99), "random_masks: a sparsity of 0.99 would prune all 40"),
    "random, global": (
        lambda p: pr.random_masks(p, 0.99, seed=5, scope="global"),
        "a global sparsity of 0.99 would prune all 40 weights",
    ),
    "scores": (lambda p: pr.score_masks(p, 0.99), "score_masks: a sparsity of 0.99 would prune all 40"),
    "scores, global": (lambda p: pr.score_masks(p, 0.5, scope="global"), "all 40 weights of 'small'"),
    "scores by row": (lambda p: pr.score_masks(p, 0.95, scope="row"), "all 40 weights of 'large'"),
    "snip": (lambda p: pr.score_masks(pr.snip_scores(p, p), 0.99), "would prune all 40 weights"),
    "threshold": (
        lambda p: pr.threshold_masks(p, maximum=0.5, magnitude=0.5000001),
        "maximum = 0.5, magnitude = 0.5000001 would prune all 40 weights of 'large'",
    ),
    "what is left": (
        lambda p: pr.threshold_masks(p, magnitude=5.0, within=pr.magnitude_masks(p, 0.9)),
        "magnitude = 5.0 would prune all 4 weights of 'small'",
    ),
    "dropping": (lambda p: pr.drop_weights(p, 0.99), "a sparsity of 0.99 would prune all 40 weights"),
}


@pytest.mark.parametrize("name", EMPTYING)
def test_no_leaf_is_emptied_in_silence(name: str, backend: Backend) -> None:
    call, message = EMPTYING[name]
    with pytest.raises(InputError, match=re.escape(message)):
        call(small(backend))


@given(
    size=st.integers(1, 30),
    sparsity=st.floats(0.0, 1.0, exclude_max=True),
    scope=st.sampled_from(["leaf", "global"]),
    criterion=st.sampled_from([pr.magnitude_masks, pr.random_masks, pr.score_masks]),
)
def test_every_leaf_keeps_a_weight_or_is_named(
    size: int, sparsity: float, scope: str, criterion: Any
) -> None:
    params = {"a": np.linspace(1.0, 2.0, size)[None], "b": np.linspace(0.5, 1.5, 7)[None]}
    try:
        masks = criterion(params, sparsity, scope=scope)
    except InputError:
        sizes = (size, 7) if scope == "leaf" else (size + 7,)
        assert any(round(sparsity * n) >= min(size, 7, n) for n in sizes)
    else:
        assert all(mask.any() for mask in masks.values())


def test_what_was_empty_may_stay_so() -> None:
    params = small(registry.by_name("numpy"))
    within = {"small": np.zeros((5, 8), bool)}
    assert not pr.magnitude_masks(params, 0.5, within=within)["small"].any()
    assert pr.magnitude_masks({"w": np.zeros((0, 3))}, 0.5)["w"].shape == (0, 3)
    # A share of 0.99 of 40 looks at all of them: none is spared.
    assert pr.clip_weights(params, maximum=0.0, share=0.99)["small"].max() == 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: pr.magnitude_masks(p, 0.5, select="layers.0.wieght"), "did you mean 'layers.0.weight'"),
        (lambda p: pr.magnitude_masks({"b": np.ones(3)}, 0.5), "no floating-point parameter has 2 axes"),
        (lambda p: pr.magnitude_masks(p, 0.5, scope="globl"), "did you mean 'global'"),
        (lambda p: pr.magnitude_masks({"w": np.array([[np.nan, 1.0]])}, 0.5), "'w' holds NaN"),
        (lambda p: pr.score_masks({"w": np.array([[-np.nan, 1.0]])}, 0.5), "'w' holds NaN"),
        (lambda p: pr.score_masks({"w": np.array([[np.nan, 1.0]])}, 0.5, scope="row"), "'w' holds NaN"),
        (lambda p: pr.magnitude_masks({"w": np.ones((2, 2), int)}, 0.5, select="w"), "dtype int64"),
        (lambda p: pr.n_of_m_masks({"w": np.ones((2, 6))}), "multiple of 4 along axis -1"),
        (lambda p: pr.n_of_m_masks(p, 5, 4), "0 < n <= m"),
        (lambda p: pr.n_of_m_masks(p, axis=1.0), "axis = 1.0; expected an integer"),  # type: ignore[arg-type]
        (lambda p: pr.n_of_m_masks(p, select="scale"), r"has shape \(\); expected a multiple of 4"),
        (
            lambda p: pr.score_masks(p, 0.5, scope="row", select="scale"),
            r"'scale' has shape \(\); expected an",
        ),
        (pr.threshold_masks, "no limit"),
        (lambda p: pr.threshold_masks({"w": np.array([[np.nan]])}, minimum=0.0), "'w' holds NaN"),
        (lambda p: pr.threshold_masks(p, minimum=float("nan")), "minimum = nan"),
        (pr.clip_weights, "no limit"),
        (lambda p: pr.clip_weights(p, minimum=1.0, maximum=0.0), "is above maximum"),
        (lambda p: pr.clip_weights(p, maximum=0.0, to="zro"), "did you mean 'zero'"),
        (lambda p: pr.clip_weights(p, maximum=0.0, share=0.0), r"share = 0.0; expected a number in \(0, 1\]"),
        (lambda p: pr.clip_weights(p, maximum=0.0, select="conw"), "did you mean 'conv'"),
        (lambda p: pr.apply_masks(HOST, p, {"cnv": np.ones((1,), bool)}), "did you mean 'conv'"),
        (lambda p: pr.apply_masks(HOST, p, {"conv": np.ones((1,), bool)}), r"has shape \(1,\)"),
        (lambda p: pr.apply_masks(HOST, p, {"conv": np.ones((3, 3, 4, 8))}), "dtype float64; expected bool"),
        (lambda p: pr.magnitude_masks(p, 0.5, within={"conv": np.ones(3, bool)}), r"has shape \(3,\)"),
        (lambda p: pr.snip_scores(p, p["layers"]), "expected the structure of the parameters"),
        (lambda p: pr.snip_scores({"w": np.ones((2, 2))}, {"w": np.ones((2, 1))}), r"shape \(2, 1\)"),
        (lambda p: pr.snip_scores({"w": np.ones((2, 2))}, {"w": None}), "has no gradient"),
        (lambda p: pr.movement_scores(p, p, {}), "has no score"),
        (lambda p: pr.movement_scores(p, p, lr=float("nan")), "lr = nan; expected a finite number >= 0"),
        (
            lambda p: pr.apply_masks(HOST, {"w": None}, {"w": np.ones(2, bool)}),
            "'w' belongs to a parameter that is",
        ),
        (lambda p: pr.wanda_scores(p, {"conw": np.ones(4)}), "did you mean 'conv'"),
        (lambda p: pr.wanda_scores(p, {"conv": np.ones(5)}), r"have shape \(5,\)"),
        (lambda p: pr.input_norms(np.ones((0, 3))), "at least one sample"),
        (lambda p: pr.input_norms(np.array([[np.inf]])), "inf or NaN"),
    ],
)
def test_errors_say_what_was_found_and_expected(call: Callable[..., Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        call(parameters())
    assert "\n" not in str(caught.value)


def test_a_report_counts_leaf_by_leaf(backend: Backend) -> None:
    params = convert({"w": np.array([[0.0, 1.0], [2.0, 3.0]]), "b": np.zeros(2)}, backend)
    masks = pr.magnitude_masks(params, 0.75)
    report = pr.sparsity_report(params, masks)
    assert report.leaves == {"b": (2, 2), "w": (1, 4)}
    assert (report.kept, report.total, report.sparsity) == (3, 6, 0.5)
    assert pr.sparsity_report(pr.pruned(params, masks)).leaves == {"b": (0, 2), "w": (1, 4)}
    assert str(report).splitlines()[-1].split() == ["total", "3", "6", "0.5000"]


def test_the_gradient_of_masked_weights_is_zero(backend: Backend) -> None:
    host = {"w": np.array([[1.0, -2.0, 3.0]]), "b": np.array(0.5)}
    params = convert(host, backend)
    masks = pr.magnitude_masks(params, 0.34)

    def loss(xp: Any, p: Any, masks: Any) -> Any:
        # Of what is computed, too, as LoRA's weights are.
        kept = pr.apply_masks(xp, {"w": p["w"] * p["b"], "b": p["b"]}, masks)
        return xp.sum(xp.exp(kept["w"])) + kept["b"]

    _, grads = backend.value_and_grad(loss)(params, masks)
    e = np.exp(0.5 * host["w"]) * [[0, 1, 1]]
    assert_close(grads["w"], 0.5 * e, rtol=1e-14, because="float64, one exp")
    assert_close(grads["b"], np.sum(host["w"] * e) + 1, rtol=1e-14, because="float64, one exp")
    found = pr.apply_masks(backend.ops, params, masks)
    assert_close(found["w"], [[0.0, -2.0, 3.0]], because="exact")
    assert found["b"] is params["b"]
