"""The data sets that recipes name: scikit-learn's packaged ones, which need no network.

They are split by a seed and standardized by what the training samples say, on the host and in double
precision, so they are the same bits for every backend.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from polyopt.core import random
from polyopt.core.errors import BackendError, InputError, nearest
from polyopt.core.install import pip_install

Task: TypeAlias = Literal["classification", "regression"]


@dataclass(frozen=True)
class Source:
    """A packaged data set: scikit-learn's ``sklearn.datasets.<loader>``."""

    loader: str
    task: Task


DATASETS: dict[str, Source] = {
    "breast_cancer": Source("load_breast_cancer", "classification"),
    "diabetes": Source("load_diabetes", "regression"),
    "digits": Source("load_digits", "classification"),
}


@dataclass(frozen=True)
class Dataset:
    """Samples split into training and test.

    ``x_train`` and ``x_test`` are float64 of shape (samples, features); ``y_train`` and ``y_test`` are int64
    labels of shape (samples,), or float64 targets of shape (samples, 1). ``classes`` is 0 for regression.
    """

    name: str
    task: Task
    classes: int
    x_train: Any
    y_train: Any
    x_test: Any
    y_test: Any

    @property
    def features(self) -> int:
        """Return the number of features of a sample."""
        return int(self.x_train.shape[1])

    @property
    def outputs(self) -> int:
        """Columns of a model's output."""
        return self.classes or 1


def inverted(x: Any, name: str) -> Any:
    """White on black becomes black on white: ``min + max - x`` over the whole data set."""
    return x.min() + x.max() - x


def permuted(x: Any, name: str) -> Any:
    """Put the features in another order, the same one for all samples and in every run."""
    return x[:, random.permutation(x.shape[1], 0, f"permuted/{name}")]


def rotated(x: Any, name: str) -> Any:
    """Square images turned by a quarter, counterclockwise."""
    side = math.isqrt(x.shape[1])
    if side * side != x.shape[1]:
        raise InputError(f"shift = 'rotated': the {x.shape[1]} features of {name!r} are no square image")
    return np.rot90(x.reshape(-1, side, side), axes=(1, 2)).reshape(x.shape)


SHIFTS: dict[str, Callable[[Any, str], Any]] = {
    "inverted": inverted,
    "permuted": permuted,
    "rotated": rotated,
}
"""What makes a related task of a data set, by the names that recipes use."""


def load(
    name: str,
    *,
    test_fraction: float = 0.2,
    standardize: bool = True,
    split_seed: int = 0,
    shift: str | None = None,
    labels: Sequence[int] | None = None,
) -> Dataset:
    """Load, split and scale a data set.

    Parameters
    ----------
    name
        ``"digits"`` (Alpaydin & Kaynak, 1998: 1797 images of 8x8, ten classes), ``"breast_cancer"`` (Street,
        Wolberg & Mangasarian, 1993: 569 samples, 30 features, two classes) or ``"diabetes"`` (Efron et al.,
        2004: 442 samples, 10 features, a number).
    test_fraction
        The part kept for testing, in (0, 1).
    standardize
        Shift and scale each feature to mean 0 and deviation 1 over the training samples; a feature that is
        constant there is only shifted.
    split_seed
        Which samples are kept.
    shift
        A related task of the same samples: ``"inverted"``, ``"permuted"`` or ``"rotated"``, see ``SHIFTS``.
    labels
        Only the samples of these classes, which become 0, 1, … in this order; a classification's.

    Raises
    ------
    InputError
        For what is unknown, or doesn't fit the data set; it says what does.
    BackendError
        Where scikit-learn is not installed: it says what to install.

    Examples
    --------
    >>> digits = load("digits")
    >>> digits.x_train.shape, digits.x_test.shape, digits.classes
    ((1438, 64), (359, 64), 10)
    """
    if name not in DATASETS:
        raise InputError(f"unknown data set {name!r}; {nearest(name, DATASETS)}")
    source = DATASETS[name]
    x, y = _read(source.loader)
    if labels is not None:
        x, y = _only(name, source, x, y, labels)
    if shift is not None:
        if shift not in SHIFTS:
            raise InputError(f"unknown shift {shift!r}; {nearest(shift, SHIFTS)}")
        x = SHIFTS[shift](x, name)
    test = int(len(x) * test_fraction)
    if not 0 < test < len(x):
        raise InputError(
            f"test_fraction = {test_fraction!r} leaves a side of {name!r} empty ({len(x)} samples)"
        )
    order = random.permutation(len(x), split_seed, f"split/{name}")
    x, y = x[order].astype(np.float64), y[order]
    x_train, x_test = x[test:], x[:test]
    if standardize:
        mean, deviation = x_train.mean(axis=0), x_train.std(axis=0)
        deviation = np.where(deviation > 0, deviation, 1.0)
        x_train, x_test = (x_train - mean) / deviation, (x_test - mean) / deviation
    classes = int(y.max()) + 1 if source.task == "classification" else 0
    y = y.astype(np.int64) if classes else y.astype(np.float64).reshape(-1, 1)
    return Dataset(name, source.task, classes, x_train, y[test:], x_test, y[:test])


def _only(name: str, source: Source, x: Any, y: Any, labels: Sequence[int]) -> tuple[Any, Any]:
    """Keep the samples of ``labels``, renumbered in their order."""
    if source.task != "classification":
        raise InputError(f"labels = {list(labels)}: {name!r} is a {source.task}, which has none")
    known = sorted(set(y.tolist()))
    if len(set(labels)) < max(len(labels), 2) or not set(labels) <= set(known):
        raise InputError(f"labels = {list(labels)}; expected two or more of {known}, each once")
    number = np.full(known[-1] + 1, -1)
    number[list(labels)] = np.arange(len(labels))
    kept = number[y] >= 0
    return x[kept], number[y[kept]]


def _read(loader: str) -> tuple[Any, Any]:
    try:
        from sklearn import datasets
    except ImportError as e:
        raise BackendError(f"the data sets need scikit-learn ({e}): {pip_install('cli')}") from None
    # Diabetes unscaled: its packaged scaling is by all samples, the test ones too.
    options = {"scaled": False} if loader == "load_diabetes" else {}
    x, y = getattr(datasets, loader)(return_X_y=True, **options)
    return x, y
