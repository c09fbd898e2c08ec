"""The packaged data sets: the same bits every time, scaled by what the training samples say alone."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from polyopt.core.errors import BackendError, InputError
from polyopt.models import datasets
from polyopt.testing import assert_close, assert_same_bits

SIZES = {"digits": (1797, 64, 10), "breast_cancer": (569, 30, 2), "diabetes": (442, 10, 0)}


@pytest.mark.parametrize("name", datasets.DATASETS)
def test_shapes_dtypes_and_split(name: str) -> None:
    samples, features, classes = SIZES[name]
    found = datasets.load(name, test_fraction=0.25, standardize=False)
    assert len(found.x_test) == samples // 4
    assert len(found.x_train) + len(found.x_test) == samples
    assert (found.features, found.classes, found.outputs) == (features, classes, classes or 1)
    assert found.x_train.dtype == found.x_test.dtype == np.float64
    assert found.y_train.dtype == (np.int64 if classes else np.float64)
    assert found.y_train.shape == (len(found.x_train), *(() if classes else (1,)))
    raw = np.concatenate([found.x_test, found.x_train])
    assert_same_bits(
        np.sort(raw, axis=0), np.sort(datasets._read(datasets.DATASETS[name].loader)[0], axis=0) * 1.0
    )


def test_the_split_follows_its_seed() -> None:
    a, b, c = (datasets.load("digits", split_seed=seed) for seed in (0, 0, 1))
    for field in ("x_train", "y_train", "x_test", "y_test"):
        assert_same_bits(getattr(a, field), getattr(b, field), what=field)
    assert not np.array_equal(a.y_test, c.y_test)


@pytest.mark.parametrize("name", datasets.DATASETS)
def test_scaled_by_the_training_samples_alone(name: str) -> None:
    raw, scaled = datasets.load(name, standardize=False), datasets.load(name)
    assert np.isfinite(scaled.x_train).all()
    assert np.isfinite(scaled.x_test).all()
    varies = raw.x_train.std(axis=0) > 0
    assert_close(
        scaled.x_train.mean(axis=0), np.zeros(raw.features), atol=1e-12, because="means of 1e3 roundings"
    )
    assert_close(scaled.x_train.std(axis=0)[varies], np.ones(varies.sum()), rtol=1e-12, because="as above")
    mean, deviation = raw.x_train.mean(axis=0), raw.x_train.std(axis=0)
    expected = (raw.x_test - mean) / np.where(varies, deviation, 1.0)
    assert_same_bits(scaled.x_test, expected)
    assert name != "digits" or not varies.all(), "digits has pixels that are always 0: the case matters"


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="unknown data set 'digit'; did you mean 'digits'"):
        datasets.load("digit")
    for fraction in (0.0, 1e-6, 1.0):
        with pytest.raises(InputError, match="test_fraction"):
            datasets.load("diabetes", test_fraction=fraction)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(BackendError, match=r'pip install .*"scikit-learn>=1.5"'):
        datasets.load("digits")


def test_scikit_learn_is_loaded_when_it_is_needed() -> None:
    code = "import sys, polyopt.training; print('sklearn' in sys.modules, 'torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]
