"""N:M masks within masks that were made before."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from polyopt.backend.protocol import Backend
from polyopt.core.errors import InputError
from polyopt.pruning import n_of_m_masks
from polyopt.testing import assert_same_bits


def by_hand(w: np.ndarray, before: np.ndarray, n: int, m: int) -> np.ndarray:
    """Of each group the n largest of what is left, the later of equal ones."""
    kept = np.zeros(w.shape, bool)
    for start in range(0, w.size, m):
        there = [i for i in range(start, start + m) if before.flat[i]]
        best = sorted(there, key=lambda i: (abs(w.flat[i]), i))[-n:]
        kept.flat[best] = True
    return kept


@given(
    hnp.arrays(np.float32, (3, 8), elements=st.sampled_from([-2.0, -1.0, -0.0, 0.0, 0.5, 1.0])),
    hnp.arrays(np.bool_, (3, 8)),
    st.sampled_from([(1, 4), (2, 4), (4, 8), (2, 2)]),
)
def test_what_is_gone_stays_gone(w: np.ndarray, before: np.ndarray, of: tuple[int, int]) -> None:
    found = n_of_m_masks({"w": w}, *of, within={"w": before})["w"]
    assert_same_bits(found, by_hand(w, before, *of))
    scored = n_of_m_masks({"w": w}, *of, scores={"w": np.abs(w)}, within={"w": before})["w"]
    assert_same_bits(scored, found)


def test_the_same_bits_on_every_backend(backend: Backend) -> None:
    draw = np.random.default_rng(0)
    w, before = draw.normal(size=(16, 6)).round(1).astype(np.float32), draw.random((16, 6)) < 0.7
    expected = n_of_m_masks({"w": w}, axis=0, within={"w": before})["w"]
    own = {"w": backend.from_numpy(before)}
    found = n_of_m_masks({"w": backend.from_numpy(w)}, axis=0, within=own)["w"]
    assert_same_bits(backend.to_numpy(found), expected)
    whole = n_of_m_masks({"w": w}, axis=0, within={"w": np.ones((16, 6), bool)})["w"]
    assert_same_bits(whole, n_of_m_masks({"w": w}, axis=0)["w"])
    with pytest.raises(InputError, match="mask 'w' has shape"):
        n_of_m_masks({"w": w}, axis=0, within={"w": before[:8]})
