"""The pictures: what is drawn, also of runs that went wrong, and what is written."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread

from polyopt.testing import assert_close
from polyopt.training.plots import _figure, comparison, smoothed, training_curve

LOSS = [(i, 2.3 * math.exp(-i / 50) + 0.01) for i in range(1, 201)]


def ink(path: Path) -> float:
    """The fraction of the picture's pixels that are not white."""
    return float((imread(path)[..., :3] < 0.99).any(axis=-1).mean())


def test_training_curve_draws_loss_and_metric(tmp_path: Path) -> None:
    one, two = tmp_path / "one.png", tmp_path / "new" / "two.png"
    training_curve(one, LOSS, title="digits")
    training_curve(two, LOSS, title="digits", metric=[(100, 0.9), (200, 0.97)])
    assert imread(two).shape[0] > 1.5 * imread(one).shape[0]
    assert 0.005 < ink(one) < 0.5
    assert [p.name for p in two.parent.iterdir()] == ["two.png"], "no temporary file stays behind"


@pytest.mark.parametrize(
    "loss",
    [
        [],
        [(1, 0.5)],
        [(1, math.nan), (2, math.inf)],
        [(1, 1.0), (2, math.nan), (3, 0.0)],
        [(1, -1.0), (2, 5.0)],
    ],
    ids=["empty", "one step", "never finite", "NaN and zero", "negative"],
)
def test_training_curve_of_a_strange_run(tmp_path: Path, loss: list[tuple[int, float]]) -> None:
    path = tmp_path / "curve.png"
    training_curve(path, loss, title="strange", metric=loss, metric_name="test loss")
    assert ink(path) > 0


def test_training_curve_replaces_and_failing_leaves_the_old(tmp_path: Path) -> None:
    path = tmp_path / "curve.png"
    training_curve(path, LOSS, title="old")
    before = path.read_bytes()
    with pytest.raises(TypeError):
        training_curve(path, [(1, "x")], title="bad")  # type: ignore[list-item]
    assert path.read_bytes() == before
    training_curve(path, LOSS, title="new")
    assert path.read_bytes() != before


def test_comparison_draws_every_backend(tmp_path: Path) -> None:
    losses = dict.fromkeys(("numpy", "torch", "tensorflow", "jax"), LOSS)
    small = [(step, 1e-16 * step) for step, _ in LOSS]
    exact = [(step, 0.0) for step, _ in LOSS]
    path = tmp_path / "compare.png"
    deviations = {"torch": small, "tensorflow": small, "jax": exact}
    parameters = {"torch": [(9, 1e-14)], "tensorflow": exact, "jax": [(9, math.inf)]}
    comparison(path, losses, deviations, parameters, reference="numpy", title="t", resolution=2.2e-16)
    assert ink(path) > 0.005
    comparison(path, {"numpy": LOSS}, {}, {}, reference="numpy", title="alone", resolution=2.2e-16)
    assert ink(path) > 0.005


@given(st.lists(st.floats(-1e6, 1e6), max_size=300))
@settings(deadline=None, max_examples=50)
def test_smoothed_stays_within_the_values(values: list[float]) -> None:
    found = smoothed(values)
    assert len(found) == len(values)
    if values:
        scale = max(abs(v) for v in values) * len(values)
        assert min(values) - 1e-13 * scale <= min(found)
        assert max(found) <= max(values) + 1e-13 * scale


def test_smoothed_keeps_a_line() -> None:
    line = [0.5 * i for i in range(200)]
    assert_close(smoothed(line)[:190], line[:190], rtol=1e-13, because="differences of sums up to 1e4")


def test_no_display_is_asked_for() -> None:
    """pyplot would pick a window system; the pictures must not need one."""
    code = (
        "import sys, pathlib, tempfile; from polyopt.training.plots import training_curve\n"
        "training_curve(pathlib.Path(tempfile.mkdtemp()) / 'c.png', [(1, 1.0)], title='t')\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_short_run_has_no_half_steps(tmp_path: Path) -> None:
    with _figure(tmp_path / "curve.png", 1, "short") as axes:
        axes[0].plot([1, 2], [0.5, 0.4])
    low, high = axes[0].get_xlim()
    assert [x for x in axes[0].get_xticks() if low <= x <= high] == [1, 2]
