"""The data sets that recipes name: the packaged ones, and film reviews as a transformer reads them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from polyopt.core.errors import InputError
from polyopt.models import datasets
from polyopt.models.datasets import DATASETS, Dataset, Task

SNIPPETS = 2000
"""How many of the snippets a recipe uses, for training and testing together."""
LENGTH = 48
"""Tokens of a snippet: what is longer is cut, one in twenty-five; what is shorter is padded."""
TASKS: dict[str, Task] = {name: source.task for name, source in DATASETS.items()} | {
    "vader": "classification",
    "vader_tokens": "classification",
}
"""What each is for."""


def load(
    name: str,
    *,
    test_fraction: float,
    standardize: bool,
    split_seed: int,
    shift: str | None = None,
    labels: Sequence[int] | None = None,
) -> Dataset:
    """Load a data set by its name.

    Its embeddings are computed once in a process, by NumPy, so that they are the same bits for every backend:
    about a minute. ``"vader_tokens"`` are the same snippets as token numbers: int32 of shape (texts, 48).
    """
    if name not in ("vader", "vader_tokens"):
        return datasets.load(
            name,
            test_fraction=test_fraction,
            standardize=standardize,
            split_seed=split_seed,
            shift=shift,
            labels=labels,
        )
    for key, value, expected in (
        ("shift", shift, None),
        ("labels", labels, None),
        ("standardize", standardize, True),
    ):
        if value != expected:
            raise InputError(f"{key} = {value!r}: {name!r} has none of it; leave it out")
    test = int(SNIPPETS * test_fraction)
    if not 0 < test < SNIPPETS:
        raise InputError(
            f"test_fraction = {test_fraction!r} leaves a side of {name!r} empty ({SNIPPETS} texts)"
        )
    return _snippets(test, split_seed) if name == "vader" else _tokens(test, split_seed)


@lru_cache(maxsize=2)
def _snippets(test: int, split_seed: int) -> Dataset:
    from polyopt.models.pretrained import minilm, vader

    snippets = vader.load(SNIPPETS - test, test, split_seed=split_seed)
    return vader.dataset(minilm.load("numpy"), snippets)


@lru_cache(maxsize=2)
def _tokens(test: int, split_seed: int) -> Dataset:
    from polyopt.models.pretrained import minilm, vader

    snippets = vader.load(SNIPPETS - test, test, split_seed=split_seed)
    x, held = (
        minilm.padded(minilm.tokenize(texts, max_length=LENGTH), multiple=LENGTH)[0]
        for texts in (snippets.train, snippets.test)
    )
    return Dataset("vader_tokens", "classification", 2, x, snippets.y_train, held, snippets.y_test)
