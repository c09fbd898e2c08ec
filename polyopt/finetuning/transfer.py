"""A state goes from one optimizer to the next: layers thaw, freeze or start again; the others go on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from polyopt.core import tree
from polyopt.core.errors import InputError
from polyopt.core.rule import Pattern
from polyopt.core.tree import Tree
from polyopt.engine.optimizer import Optimizer, State
from polyopt.engine.plan import Part, Segment, plan
from polyopt.finetuning.selection import select
from polyopt.schedules import Measured

Pipeline = tuple[Segment, ...] | None


def transfer(
    state: State, params: Tree, before: Optimizer, after: Optimizer, *, fresh: Sequence[Pattern] = ()
) -> State:
    """Make the state with which ``after`` goes on where ``before`` was.

    A leaf that both update keeps its slots, which are the same arrays, and its count of updates. A leaf that
    only ``after`` updates gets fresh slots, and its bias corrections start at its own first update, by
    ``missed``. A leaf that ``after`` freezes loses its slots. Schedules go on by the common step; what a
    plateau was told goes along with the leaves that it rules.

    Parameters
    ----------
    state
        A state of ``before``; it is not changed.
    params
        The parameters as they are now; ``None`` for leaves that are frozen by a
        ``split``.
    before, after
        Optimizers whose rules treat a common leaf by the same kinds of rules, with whatever hyperparameters.
    fresh
        Patterns of leaves that start again in any case: re-initialized ones.

    Returns
    -------
    dict
        A state of ``after``.

    Raises
    ------
    InputError
        For a leaf whose rules are of other kinds, or whose slots are missing, and for optimizers that
        accumulate differently.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt import Adam, Optimizer
    >>> from polyopt.finetuning import freeze
    >>> params = {"embed": np.ones(1), "head": np.ones(1)}
    >>> top, whole = Optimizer(freeze(Adam(), "^embed")), Optimizer(Adam())
    >>> moved, state = top.step(params, params, top.init(params))
    >>> later = transfer(state, moved, top, whole)
    >>> later["slots"]["exp_avg"]["head"] is state["slots"]["exp_avg"]["head"], later["missed"]
    (True, {'embed': 1})
    """
    if before.accumulate != after.accumulate:
        raise InputError(
            f"transfer: accumulate = {before.accumulate} before and {after.accumulate} after; "
            "expected the same: gradients may be held back"
        )
    flat = tree.flatten(params)
    again = set(select(params, *fresh))
    old, new = (plan(optimizer.rule, flat.paths).pipelines for optimizer in (before, after))
    kept: dict[str, list[tuple[Part, Part]]] = {}
    for path, leaf, was, becomes in zip(flat.paths, flat.leaves, old, new, strict=True):
        if leaf is None or becomes is None or path in again:
            continue
        if _was_trained(state, path, was):
            kept[path] = _paired(path, was, becomes)
    # Only what starts: nothing is allocated for what goes on.
    started = after.init(
        flat.unflatten(None if p in kept else x for p, x in zip(flat.paths, flat.leaves, strict=True))
    )
    return _joined(state, started, flat, kept, new)


def reset(state: State, params: Tree, optimizer: Optimizer, *patterns: Pattern) -> State:
    """Give the leaves that match fresh slots, and bias corrections from the start.

    What goes with ``reinitialize``: give it the new parameters.

    Parameters
    ----------
    state
        Of ``optimizer``; it isn't changed.
    params
        The parameters as they are now.
    optimizer
        Whose state it is.
    *patterns
        Which leaves: regular expressions searched for in a path, or predicates on it.

    Returns
    -------
    dict
        A state of ``optimizer``.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt import Adam, Optimizer
    >>> opt, params = Optimizer(Adam()), {"embed": np.ones(1), "head": np.ones(1)}
    >>> params, state = opt.step(params, params, opt.init(params))
    >>> state = reset(state, params, opt, r"^head")
    >>> state["slots"]["exp_avg"]["head"].tolist(), state["missed"]
    ([0.0], {'head': 1})
    """
    return transfer(state, params, optimizer, optimizer, fresh=patterns)


def _joined(
    state: State,
    started: State,
    flat: tree.Flat,
    kept: dict[str, list[tuple[Part, Part]]],
    pipelines: Sequence[Pipeline],
) -> State:
    slots: dict[str, dict[str, Any]] = {}
    missed: dict[str, Any] = {}
    for path, leaf, pipeline in zip(flat.paths, flat.leaves, pipelines, strict=True):
        if leaf is None or pipeline is None:
            continue
        if path in kept:
            source = state["slots"]
            names = [(a, b) for x, y in kept[path] for (a, _), (b, _) in zip(x.names, y.names, strict=True)]
            late = state["missed"].get(path, 0)
        else:
            source = started["slots"]
            names = [(name, name) for part in _parts(pipeline) for name, _ in part.names]
            late = state["step"]
        if "accumulated" in started:
            names.append(("grad_accumulator", "grad_accumulator"))
        for a, b in names:
            slots.setdefault(b, {})[path] = source[a][path]
        if not isinstance(late, int) or late:
            missed[path] = late
    result = state | {"missed": missed, "slots": slots}
    if "accumulated" in started:
        counts = state["accumulated"]
        held = slots.get("grad_accumulator", {})
        result["accumulated"] = {path: counts[path] if path in kept else 0 for path in held}
    result.pop("observed", None)
    observed = started.get("observed", {}) | _observed(state, kept)
    return result | ({"observed": observed} if observed else {})


def _observed(state: State, kept: dict[str, list[tuple[Part, Part]]]) -> dict[str, Any]:
    """Return what the schedules of rules that go on were told, by their new names.

    The first leaf's counts.
    """
    found: dict[str, Any] = {}
    for x, y in (pair for pairs in kept.values() for pair in pairs):
        was = x.rule.hyperparameters()
        for name, value in y.rule.hyperparameters().items():
            if isinstance(value, Measured) and isinstance(was.get(name), Measured):
                found.setdefault(f"{y.key}{name}", state["observed"][f"{x.key}{name}"])
    return found


def _was_trained(state: State, path: str, pipeline: Pipeline) -> bool:
    """Return True if the state has the leaf's slots: not where it was ``None``."""
    if pipeline is None:
        return False
    names = [name for part in _parts(pipeline) for name, _ in part.names]
    missing = [name for name in names if path not in state["slots"].get(name, {})]
    if missing and len(missing) < len(names):
        raise InputError(
            f"transfer: the state's slot {missing[0]!r} has no leaf {path!r}; expected a state of `before`"
        )
    return not missing


def _paired(path: str, was: Pipeline, becomes: Pipeline) -> list[tuple[Part, Part]]:
    """Return the leaf's rules before and after, which must be of the same kinds."""
    old, new = _parts(was), _parts(becomes)
    kinds = [[(type(part.rule), part.rule.slots()) for part in parts] for parts in (old, new)]
    if kinds[0] != kinds[1]:
        found, expected = (" → ".join(type(part.rule).__name__ for part in parts) for parts in (new, old))
        raise InputError(
            f"transfer: leaf {path!r} has the rules {found} after; expected those before, {expected}, with "
            "the same slots (or name it in `fresh`, and it starts again)"
        )
    return list(zip(old, new, strict=True))


def _parts(pipeline: Pipeline) -> list[Part]:
    return [part for segment in pipeline or () for part in segment.parts]
