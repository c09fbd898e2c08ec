"""Snippets of film reviews with their sentiment, as people rated it: something to fine-tune on.

Hutto & Gilbert, "VADER: a parsimonious rule-based model for sentiment analysis of social media text", 2014:
10,605 snippets, each rated from -4 to 4 by twenty people. They lie in the *source* archive of
vaderSentiment on the package index (in an archive within it; what pip installs lacks them), which is read as
it is: nothing of it is unpacked or run, and it must have the SHA-256 that stands here. The package is under
the MIT licence; the texts are of the reviews' authors.
"""

from __future__ import annotations

import io
import os
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyopt.core import random
from polyopt.core.errors import BackendError, InputError
from polyopt.core.tree import Tree
from polyopt.models.datasets import Dataset
from polyopt.models.pretrained import minilm
from polyopt.models.pretrained.files import read_pinned

VERSION = "3.3.2"
ARCHIVE = f"vaderSentiment-{VERSION}.tar.gz"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER = f"vaderSentiment-{VERSION}/additional_resources/hutto_ICWSM_2014.tar.gz"
TABLE = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
MAX_BYTES = 8 << 20
VARIABLE = "POLYOPT_VADER"
CONSTANT = 1e-6
"""Features that deviate less say nothing: three of MiniLM's 384 are constant but for rounding."""


@dataclass(frozen=True)
class Snippets:
    """Texts with labels, split into training and test.

    ``y_train`` and ``y_test`` are int64 labels of shape (texts,): 1 for a mean rating above 0, else 0.
    """

    train: tuple[str, ...]
    y_train: Any
    test: tuple[str, ...]
    y_test: Any


def default_path() -> Path:
    """Return where the archive is looked for.

    ``$POLYOPT_VADER``, else ``share/polyopt`` of this environment.
    """
    chosen = os.environ.get(VARIABLE)
    return Path(chosen) if chosen else Path(sys.prefix, "share", "polyopt", ARCHIVE)


def read(path: str | os.PathLike[str] | None = None) -> tuple[tuple[str, ...], Any]:
    """Read all snippets in their order, and their mean ratings: float64 in [-4, 4], (10605,).

    Raises ``BackendError``, saying how to get it, where there is no archive.
    """
    where = default_path() if path is None else Path(path)
    if not where.exists():
        raise BackendError(
            f"{where}: the snippets' archive is not there: python -m pip download --no-deps "
            f"--no-binary :all: --dest {where.parent} vaderSentiment=={VERSION}"
        )
    data = read_pinned(where, SHA256, MAX_BYTES, "archive of snippets")
    text = _member(_member(data, INNER), TABLE).decode("utf-8-sig")
    rows = [line.split("\t", 2) for line in text.splitlines()]
    return tuple(row[2] for row in rows), np.array([float(row[1]) for row in rows])


def load(
    train: int = 1500, test: int = 500, *, split_seed: int = 0, path: str | os.PathLike[str] | None = None
) -> Snippets:
    """Return ``train`` and ``test`` snippets, drawn by ``split_seed`` without overlap.

    Those of a mean rating of exactly 0 are left out: they are neither. With the same seed, a larger
    ``train`` has the smaller one's texts in it, and the test set stays.
    """
    texts, ratings = read(path)
    rated = np.flatnonzero(ratings != 0.0)
    for name, count in (("train", train), ("test", test)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InputError(f"{name} = {count!r}; expected an integer >= 1")
    if train + test > len(rated):
        raise InputError(f"train = {train} and test = {test}; expected at most {len(rated)} in all")
    order = rated[random.permutation(len(rated), split_seed, "split/vader")]
    labels = (ratings > 0).astype(np.int64)
    held, used = order[:test], order[test : test + train]
    return Snippets(tuple(texts[i] for i in used), labels[used], tuple(texts[i] for i in held), labels[held])


def dataset(params: Tree, snippets: Snippets) -> Dataset:
    """Make data of the snippets' sentence embeddings by ``params`` (see ``load``).

    Float64 features, shifted and scaled to mean 0 and deviation 1 over the training texts; classes 0 and 1. A
    feature that is constant but for rounding is only shifted: scaled, it would be noise, another one on
    each framework.
    """
    count = len(snippets.train)
    x = minilm.embed(params, [*snippets.train, *snippets.test]).astype(np.float64)
    mean, deviation = x[:count].mean(axis=0), x[:count].std(axis=0)
    x = (x - mean) / np.where(deviation > CONSTANT, deviation, 1.0)
    return Dataset("vader", "classification", 2, x[:count], snippets.y_train, x[count:], snippets.y_test)


def _member(archive: bytes, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        file = tar.extractfile(name)
        assert file is not None, name  # its hash is known, so what is in it is
        return file.read()
