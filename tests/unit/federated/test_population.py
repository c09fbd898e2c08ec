"""Whose samples are whose: every sample once, as uneven as was asked for, and drawn by the seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyopt.core.errors import InputError
from polyopt.engine.batches.plan import Cursor
from polyopt.federated import participants, split_dirichlet, split_iid, split_labels
from polyopt.federated.rounds import Local, Rounds
from polyopt.testing import assert_close

LABELS = np.arange(1000) % 10


def kinds(rows: tuple[Any, ...]) -> list[int]:
    """How many labels each client has."""
    return [len(np.unique(LABELS[own])) for own in rows]


@given(st.integers(1, 40), st.integers(0, 99), st.sampled_from([0.0, 0.3]), st.floats(0.001, 100.0))
@settings(max_examples=30, deadline=None)
def test_every_sample_is_someone_s(clients: int, seed: int, imbalance: float, alpha: float) -> None:
    for rows in (
        split_iid(1000, clients, seed=seed, imbalance=imbalance),
        split_labels(LABELS, clients, shards=3, seed=seed),
        split_dirichlet(LABELS, clients, alpha=alpha, seed=seed, imbalance=imbalance),
    ):
        assert len(rows) == clients
        assert sorted(np.concatenate(rows).tolist()) == list(range(1000))
        assert all(len(own) and (np.diff(own) > 0).all() and own.dtype == np.int64 for own in rows)


def test_sizes_are_equal_or_log_normal() -> None:
    assert {len(own) for own in split_iid(1003, 10)} == {100, 101}
    assert [len(own) for own in split_dirichlet(LABELS, 10, imbalance=0.8)] == [
        len(own) for own in split_iid(1000, 10, imbalance=0.8)
    ], "the sizes are those of the seed"
    sizes = [len(own) for own in split_iid(10**6, 400, seed=3, imbalance=0.5)]
    assert_close(np.std(np.log(sizes)), 0.5, rtol=0.1, because="400 draws: 3.5 % standard error")


def test_shards_hold_few_labels() -> None:
    """McMahan et al., 2017: 2 shards of one label each; pieces of 50 samples never hold three."""
    assert set(kinds(split_labels(LABELS, 10, shards=2))) <= {1, 2}
    assert set(kinds(split_labels(LABELS, 10, shards=1))) == {1}


def test_alpha_says_how_alike_the_clients_are() -> None:
    """Hsu et al., 2019: from one label a client to the shares of all."""
    medians = [np.median(kinds(split_dirichlet(LABELS, 10, alpha=alpha))) for alpha in (0.01, 0.5, 100.0)]
    assert medians == sorted(medians)
    assert medians[0] <= 2
    assert medians[-1] == 10


def test_dirichlet_s_shares_are_those_that_were_drawn() -> None:
    """E q = p and Var q_i = p_i (1 - p_i) / (α + 1), over first clients, who find all labels there."""
    labels, share = LABELS[:400], 0.1
    first = [split_dirichlet(labels, 20, alpha=1.0, seed=seed)[0] for seed in range(300)]
    found = np.array([np.mean(labels[own] == 0) for own in first])
    sampled = share * (1 - share) / 2 * (1 + 1 / 20)  # and of 20 samples drawn by q
    assert_close(found.mean(), share, atol=4 * np.sqrt(sampled / 300), because="4 standard errors")
    assert_close(found.var(), sampled, rtol=0.3, because="300 draws of a skewed variable")


def test_who_takes_part_is_drawn_anew_in_each_round() -> None:
    rounds = [participants(10, 0.29, r, seed=1) for r in range(200)]
    assert {len(who) for who in rounds} == {2}
    assert rounds == [participants(10, 0.29, r, seed=1) for r in range(200)]
    counts = np.bincount(np.concatenate(rounds), minlength=10)
    assert_close(counts, np.full(10, 40), atol=25, because="200 rounds: 5.7 standard deviation")
    assert participants(100, 0.29, 0) != participants(100, 0.29, 1)
    assert len(participants(100, 0.29, 0)) == 29
    assert len(participants(10, 0.01, 0)) == 1


def test_a_round_is_what_its_clients_do() -> None:
    """Against a plain loop over rounds, clients and batches."""
    rows = split_iid(50, 4, seed=2, imbalance=0.7)
    for local in (Local(epochs=2, size=4), Local(steps=5, size=4, drop_last=True), Local(epochs=1)):
        found = Rounds(rows, local, fraction=0.5, seed=9)
        step, ends = 0, []
        for r in range(6):
            for k in participants(4, 0.5, r, seed=9):
                size = min(local.size or 50, len(rows[k]))
                whole, rest = divmod(len(rows[k]), size)
                batches = local.steps or (local.epochs or 0) * (whole + (rest > 0 and not local.drop_last))
                seen: list[int] = []
                for i in range(batches):
                    turn = found.turn(step)
                    assert (turn.round, turn.client, turn.batch, turn.last) == (r, k, i, i == batches - 1)
                    own, counted = found.parts(found.rows(Cursor(step)))[0]
                    assert len(own) == len(counted) == min(local.size or 50, max(map(len, rows)))
                    seen += own[counted > 0].tolist()
                    assert set(seen) <= set(rows[k].tolist())
                    step += 1
                    assert found.epoch(Cursor(step)) == r + 1
                if local.epochs:
                    assert sorted(seen) == sorted(local.epochs * rows[k].tolist())
            ends.append(step)
        assert [found.steps(r + 1) for r in range(6)] == ends
        ended = {s: found.ended(Cursor(s)) for s in range(1, step + 1)}
        assert ended == {s: ends.index(s) + 1 if s in ends else None for s in range(1, step + 1)}


def test_sizes_of_any_imbalance_are_finite() -> None:
    """Where exp would overflow, all but the largest have no sample, and that is said."""
    for imbalance in (100.0, 800.0, 1e308):
        with pytest.raises(InputError, match="would have no sample"):
            split_iid(1000, 3, imbalance=imbalance)
    assert [len(x) for x in split_iid(10, 1, imbalance=1e308)] == [10]


WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: split_iid(3, 4), "split_iid: clients = 4; expected at most the 3 samples"),
    (lambda: split_iid(3, 0), "split_iid: clients = 0; expected an integer >= 1"),
    (lambda: split_iid(3, 2, imbalance=-1.0), r"imbalance = -1\.0; expected a finite number >= 0"),
    (
        lambda: split_dirichlet(LABELS, 100, imbalance=5.0),
        r"client \d+ of 100 would have no sample, with imbalance = 5\.0 and 1000 samples; expected fewer",
    ),
    (lambda: split_dirichlet(LABELS, 2, alpha=0.0), r"alpha = 0\.0; expected a finite number above 0"),
    (lambda: split_dirichlet(LABELS * 1.0, 2), r"labels have shape \(1000,\) and dtype float64; expected"),
    (lambda: split_labels(LABELS, 600), "600 clients with 2 shards each; expected at most as many .* 1000"),
    (lambda: participants(3, 0.0, 0), r"fraction = 0\.0; expected a number in \(0, 1\]"),
]


@pytest.mark.parametrize(("act", "message"), WRONG, ids=[m[:40] for _, m in WRONG])
def test_what_can_t_be_split_is_named(act: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        act()
