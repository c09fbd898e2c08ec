"""The data sets that recipes name: the packaged ones, and embeddings of film reviews by a transformer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from polyopt import data
from polyopt.data import DATASETS, Dataset, Task
from polyopt.errors import InputError

SNIPPETS = 2000
"""How many of the snippets a recipe uses, for training and testing together."""
TASKS: dict[str, Task] = {name: source.task for name, source in DATASETS.items()} | {
    "vader": "classification"
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
    """As :func:`polyopt.data.load`; ``"vader"`` is :func:`polyopt.pretrained.vader.dataset`.

    Its embeddings are computed once in a process, by NumPy, so that they are the same bits for every backend:
    about a minute.
    """
    if name != "vader":
        return data.load(
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
            raise InputError(f"{key} = {value!r}: 'vader' has none of it; leave it out")
    test = int(SNIPPETS * test_fraction)
    if not 0 < test < SNIPPETS:
        raise InputError(
            f"test_fraction = {test_fraction!r} leaves a side of 'vader' empty ({SNIPPETS} texts)"
        )
    return _snippets(test, split_seed)


@lru_cache(maxsize=2)
def _snippets(test: int, split_seed: int) -> Dataset:
    from polyopt.pretrained import minilm, vader

    snippets = vader.load(SNIPPETS - test, test, split_seed=split_seed)
    return vader.dataset(minilm.load("numpy"), snippets)
