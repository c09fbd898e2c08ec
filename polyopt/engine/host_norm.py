"""The norm of all gradients, and what a global rule makes of it, in a few microseconds in host memory."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from polyopt.backend.host import scalar_ops
from polyopt.backend.host.array_table import ADDRESS, CONTIGUOUS, FLAGS, KIND, SIZE
from polyopt.backend.host.fused import FusedLift, KernelPlan
from polyopt.backend.host.sum_squares import SumSquares, of_sizes
from polyopt.core.reductions import settled_at_once
from polyopt.core.rule import Global
from polyopt.engine.gradient_pass import KnownNorm


class HostNorm:
    """The sum of the squares of all gradients of a repeated update, from the surveys of its arrays.

    Its bits are those of ``root_sum_squares``; for one thread at a time.
    """

    def __init__(self, total: SumSquares, facts: list[Any], order: Any, lift: FusedLift) -> None:
        self._total, self._facts, self._order, self._lift = total, facts, order, lift

    @classmethod
    def of(cls, groups: Sequence[tuple[FusedLift, KernelPlan, Sequence[int]]]) -> HostNorm | None:
        """Return it for groups of leaves: what is known of them, and which of all leaves they are.

        ``None`` where gradients are of several dtypes or in pieces.
        """
        lifts, looks, indices = zip(*groups, strict=True)
        if any("g" not in look.names for look in looks):
            return None
        facts = [look.facts[look.names.index("g")] for look in looks]
        # In the order of the leaves, which is that of the additions.
        order = np.argsort(np.concatenate([np.asarray(group, np.int64) for group in indices]))
        rows = np.concatenate(facts)[order]
        dtype = lifts[0].memory.storage(int(rows[0, KIND]))
        whole = (rows[:, FLAGS] & CONTIGUOUS).all() and (rows[:, KIND] == rows[0, KIND]).all()
        if dtype is None or not whole or any(look.kernel.dtype != dtype for look in looks):
            return None
        total = of_sizes(np.ascontiguousarray(rows[:, SIZE]), dtype)
        return None if total is None else cls(total, facts, None if len(facts) == 1 else order, lifts[0])

    def __call__(self, *, moved: bool) -> Any:
        """Return the sum as a host scalar; ``moved`` where an array isn't at the address of the last time."""
        if moved:
            one = self._order is None
            found = self._facts[0][:, ADDRESS] if one else np.concatenate(self._facts)[self._order, ADDRESS]
            self._total.place(found)
        return self._total.run(1.0, self._lift.memory.team())


def measured(rule: Global, total: Any, hyperparameters: SimpleNamespace) -> dict[str, Any] | None:
    """Return what ``rule`` measures of gradients with the sum of squares ``total``, as host scalars.

    Parameters
    ----------
    rule
        One that wants the norm alone.
    total
        A scalar of the compute dtype.
    hyperparameters
        The rule's, as floats.

    Returns
    -------
    dict or None
        ``None`` where it can't be had on the host in the bits that a framework has: for a norm, or a result,
        out of the ordinary, and for a rule that uses operations which are not exactly rounded.
    """
    if not settled_at_once(total):
        return None
    kind = type(total)
    with np.errstate(all="ignore"):
        c = SimpleNamespace(**{name: kind(x) for name, x in vars(hyperparameters).items()})
        xp = KnownNorm(scalar_ops, (np.sqrt(total), kind(1.0)))
        try:
            found = rule.measure(xp, [], c)
        except (AttributeError, TypeError):
            return None
    return found if all(map(scalar_ops.ordinary, found.values())) else None
