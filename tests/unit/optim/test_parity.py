"""``polyopt_bench.parity`` in 300 steps instead of 10,000: the bounds that polyopt promises."""

from __future__ import annotations

import numpy as np
import pytest

from polyopt_bench import parity


@pytest.mark.parametrize("convention", ["torch", "optax", "keras"])
def test_promised_bounds(convention: str) -> None:
    promised = [p for p in parity.pairs() if p.convention == convention]
    names = {p.label for p in promised}
    assert names >= {"SGD", "momentum", "Nesterov", "Adam", "AdamW"}
    for pair in promised:
        if pair.label in ("SGD", "momentum", "Adam", "AdamW"):
            row = parity.compare(pair, 300)
            assert row.ok, row


def test_a_wrong_formula_exceeds_the_bound() -> None:
    """The measure sees the difference that only a changed rate shows."""
    pair = next(p for p in parity.pairs() if p.convention == "keras" and p.label == "momentum")
    job = parity.work(60)
    right = parity.run_ours(job, pair)
    wrong = parity.run_ours(job, parity.Pair("", "torch", "sgd", pair.settings, pair.peer, pair.bound))
    assert max(float(np.abs(right[n] - wrong[n]).max()) for n in right) > 1e-3
