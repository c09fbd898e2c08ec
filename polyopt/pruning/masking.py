"""Masks inside the optimizer: pruned weights stay 0, and nothing of them reaches moments or norms.

``masked(rule)`` puts a stage before the rule, which zeroes the gradients of pruned weights, and one behind
it, which holds those weights at 0. Both read one slot, ``mask``: 1 where a weight is kept, 0 where it is
pruned, in the compute dtype, so that kernels take it as it is. It is saved, resumed and converted like any
other slot, and an elementwise rule with both stages is still one kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from polyopt.backend import registry
from polyopt.backend.evaluate import full_like
from polyopt.backend.protocol import Backend
from polyopt.core import tree
from polyopt.core.aliases import instead
from polyopt.core.errors import InputError, nearest
from polyopt.core.ops import Array
from polyopt.core.rule import Chain, Elementwise, Partition, Rule, Slot, Slots, Stage, rules_of
from polyopt.core.tree import Flat, Tree
from polyopt.engine.execution import compute_dtype
from polyopt.engine.optimizer import Optimizer, State
from polyopt.engine.outcome import write_back
from polyopt.engine.plan import Part, plan
from polyopt.pruning.leaves import Masks, aligned_masks, remove_units

SLOT = "mask"


@dataclass(frozen=True)
class MaskGradients(Elementwise):
    """The gradients of pruned weights become 0, whatever they are. Put in by ``masked``."""

    def slots(self) -> tuple[Slot, ...]:
        """Keep the mask, 1 where a weight is kept."""
        return (Slot(SLOT, init=1.0, constant=True),)

    def leaf(self, xp: Any, g: Array, p: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
        """Return the gradient, 0 where the weight is pruned."""
        return xp.where(slots[SLOT] > 0.5, g, 0.0), {}


@dataclass(frozen=True)
class HoldAtZero(Elementwise):
    """Pruned weights become 0, whatever the update before was. Put in by ``masked``."""

    LAST: ClassVar[bool] = True

    def slots(self) -> tuple[Slot, ...]:
        """Keep the mask, 1 where a weight is kept."""
        return (Slot(SLOT, init=1.0, constant=True),)

    def leaf(self, xp: Any, g: Array, p: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
        """Return the update, or what brings the weight to 0 where it is pruned."""
        return xp.where(slots[SLOT] > 0.5, g, -p), {}


def masked(stage: Stage) -> Chain:
    """Put masks around ``stage``: the weights that ``with_masks`` prunes stay 0, and out of all it computes.

    Their gradients enter neither moments nor global norms, their slots stay 0, and they don't decay. Until
    masks are set it does exactly what ``stage`` does. The slots and hyperparameters of ``stage`` have names
    that begin with ``1.`` where they are qualified by their position.

    Parameters
    ----------
    stage
        A rule, a chain or a partition. What stands before it in an outer chain still gets all gradients; only
        an average of the weights may follow.

    Returns
    -------
    Chain
        What ``Optimizer`` takes.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt import SGD, Optimizer
    >>> opt = Optimizer(masked(SGD(lr=1.0)))
    >>> params = {"w": np.array([1.0, 2.0])}
    >>> params, state = with_masks(opt, params, opt.init(params), {"w": np.array([True, False])})
    >>> params, state = opt.step(params, {"w": np.array([0.5, 0.5])}, state)
    >>> params["w"].tolist()
    [0.5, 0.0]
    """
    if not isinstance(stage, Rule | Chain | Partition):
        raise InputError(f"masked: expected a rule, a chain or a partition, found {instead(stage)}")
    return Chain((MaskGradients(), stage, HoldAtZero()))


def unmasked(stage: Stage) -> Stage:
    """Take out of ``stage`` what ``masked`` put in, anywhere inside.

    Parameters
    ----------
    stage
        A rule, a chain or a partition.

    Returns
    -------
    Stage
        The same without masks.

    Examples
    --------
    >>> from polyopt import Adam
    >>> unmasked(masked(Adam())) == Adam()
    True
    """
    if isinstance(stage, Chain):
        if isinstance(stage.stages[0], MaskGradients) and isinstance(stage.stages[-1], HoldAtZero):
            return unmasked(stage.stages[1])
        return Chain(tuple(map(unmasked, stage.stages)))
    if isinstance(stage, Partition):
        return Partition(tuple((p, None if s is None else unmasked(s)) for p, s in stage.members))
    return stage


def with_masks(
    optimizer: Optimizer,
    params: Tree,
    state: State,
    masks: Mapping[str, Array],
    *,
    donate: bool = False,
) -> tuple[Tree, State]:
    """Put these masks in the place of those before.

    Pruned weights and all their slots become 0, accumulated gradients and averages too. A weight that is no
    longer pruned starts from 0. A leaf without a mask is kept whole. A leaf that the optimizer freezes needs
    no slot: its weights become 0 and stay.

    Parameters
    ----------
    optimizer
        One with ``masked`` around what updates the leaves of ``masks``.
    params, state
        By path, of this optimizer; or a state of the optimizer without ``masked``: so does a run that
        began without masks go on. They are not changed.
    masks
        ``{path: bool array}``, ``True`` to keep.
    donate
        Zero the weights in place where the framework can (NumPy, PyTorch, ``tf.Variable``), so that a
        module's own parameters are pruned.

    Returns
    -------
    tuple
        ``(params, state)``.

    Raises
    ------
    InputError
        For a mask that has no parameter, not its shape, or that no ``masked`` looks after, and for a
        state that isn't this optimizer's.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt import SGD, Optimizer
    >>> opt = Optimizer(masked(SGD(lr=1.0, momentum=0.9)))
    >>> params = {"w": np.array([1.0, 2.0])}
    >>> params, state = with_masks(opt, params, opt.init(params), {"w": np.array([True, False])})
    >>> params["w"].tolist(), masks_of(state)["w"].tolist()
    ([1.0, 0.0], [True, False])
    """
    owner = "with_masks"
    flat = tree.flatten(params)
    known = aligned_masks(owner, flat, masks)
    backend = registry.of(*(x for x in flat.leaves if x is not None))
    if SLOT not in state["slots"]:
        state = _renamed(unmasked(optimizer.rule), optimizer.rule, flat, state)
    leaves = list(flat.leaves)
    slots = {name: dict(values) for name, values in state["slots"].items()}
    pipelines = plan(optimizer.rule, flat.paths).pipelines
    for i, (path, leaf, pipeline) in enumerate(zip(flat.paths, flat.leaves, pipelines, strict=True)):
        if leaf is None or (pipeline is None and path not in known):
            continue
        parts = [part for segment in pipeline or () for part in segment.parts]
        first = next((k for k, part in enumerate(parts) if isinstance(part.rule, MaskGradients)), None)
        if first is None and path in known and parts:
            raise InputError(
                f"{owner}: parameter {path!r} has a mask, but its rule {type(parts[0].rule).__name__} stands "
                "outside of masked(…); expected it inside"
            )
        mask = known.get(path)
        if mask is not None:
            leaves[i] = remove_units(leaf, mask)
        if first is not None:
            names = [n for part in parts[first:] for n, slot in part.names if slot.shape == "like"]
            _prune_slots(owner, backend, path, leaf, mask, slots, names)
    if donate:
        leaves = write_back(backend, flat.leaves, leaves)
    return flat.unflatten(leaves), state | {"slots": slots}


def masks_of(state: State) -> Masks:
    """Return the masks that ``state`` holds: those of all leaves under ``masked``.

    Parameters
    ----------
    state
        Of an optimizer of ``masked(…)``.

    Returns
    -------
    dict
        ``{path: bool array}``, ``True`` to keep.

    Raises
    ------
    InputError
        Where the state holds no masks.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt import SGD, Optimizer
    >>> masks_of(Optimizer(masked(SGD(lr=1.0))).init({"w": np.zeros(2)}))
    {'w': array([ True,  True])}
    """
    slots = state["slots"]
    if SLOT not in slots:
        raise InputError(
            f"masks_of: the state has no slot {SLOT!r}; {nearest(SLOT, slots)}; "
            "expected that of an optimizer of masked(…)"
        )
    found: Masks = {}
    for path, x in slots[SLOT].items():
        xp = registry.of(x).ops
        found[path] = xp.greater(x, xp.full_like(x, 0.5))
    return found


def finalize(optimizer: Optimizer, params: Tree, state: State) -> tuple[Tree, State]:
    """Make the masks permanent, for an optimizer of ``unmasked(optimizer.rule)``.

    Pruned weights are 0 in ``params``; the slot ``mask`` is gone, and the others have their own names again.

    Parameters
    ----------
    optimizer
        One of ``masked(…)``.
    params, state
        Its own.

    Returns
    -------
    tuple
        ``(params, state)``.

    Raises
    ------
    InputError
        Where ``state`` isn't this optimizer's.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt import SGD, Optimizer
    >>> opt = Optimizer(masked(SGD(lr=1.0, momentum=0.9)))
    >>> params = {"w": np.array([1.0, 2.0])}
    >>> params, state = with_masks(opt, params, opt.init(params), {"w": np.array([True, False])})
    >>> params, state = finalize(opt, params, state)
    >>> params["w"].tolist(), list(state["slots"])
    ([1.0, 0.0], ['momentum_buffer'])
    """
    flat = tree.flatten(params)
    masks = aligned_masks("finalize", flat, masks_of(state))
    leaves = [
        remove_units(x, masks[path]) if path in masks else x
        for path, x in zip(flat.paths, flat.leaves, strict=True)
    ]
    return flat.unflatten(leaves), _renamed(optimizer.rule, unmasked(optimizer.rule), flat, state)


def _prune_slots(
    owner: str,
    backend: Backend,
    path: str,
    leaf: Array,
    mask: Array | None,
    slots: dict[str, dict[str, Any]],
    names: Iterable[str],
) -> None:
    """Put ``mask`` into ``slots`` and zero what it prunes in those called ``names``."""
    dtype = compute_dtype(backend.dtype_name(leaf))
    whole = full_like(backend, leaf, 1.0, dtype)
    slots.setdefault(SLOT, {})[path] = whole if mask is None else remove_units(whole, mask)
    for name in {*names, "grad_accumulator"} - {SLOT}:
        if path in (values := slots.get(name, {})):
            if mask is not None:
                values[path] = remove_units(values[path], mask)
        elif name != "grad_accumulator":
            raise InputError(
                f"{owner}: the state's slot {name!r} has no leaf {path!r}; expected the state that this "
                "optimizer's init made for these parameters"
            )


def _parts(stage: Stage, paths: tuple[str, ...]) -> list[list[Part] | None]:
    """Return for each leaf the parts that it goes through, but for those that only mask; None if frozen."""
    return [
        None if pipeline is None else [p for s in pipeline for p in s.parts if not _masks(p.rule)]
        for pipeline in plan(stage, paths).pipelines
    ]


def _masks(rule: Rule) -> bool:
    return isinstance(rule, MaskGradients | HoldAtZero)


def _renamed(source: Stage, target: Stage, flat: Flat, state: State) -> State:
    """Make of a state of ``source`` one of ``target``, which differ in their masking alone."""
    slots: dict[str, dict[str, Any]] = {}
    given = state["slots"]
    pairs = zip(flat.paths, flat.leaves, _parts(source, flat.paths), _parts(target, flat.paths), strict=True)
    for path, leaf, old, new in pairs:
        if leaf is None or old is None or new is None:
            continue
        for before, after in zip(old, new, strict=True):
            for (name, _), (other, _) in zip(before.names, after.names, strict=True):
                if path not in given.get(name, {}):
                    raise InputError(
                        f"the state's slot {name!r} has no leaf {path!r}; {nearest(name, given)}; expected "
                        "the state of this optimizer for these parameters"
                    )
                slots.setdefault(other, {})[path] = given[name][path]
    if "grad_accumulator" in given:
        slots["grad_accumulator"] = dict(given["grad_accumulator"])
    new_state = state | {"slots": slots}
    if "observed" in state:
        keys = [[k for k, rule in rules_of(stage) if not _masks(rule)] for stage in (source, target)]
        new_state["observed"] = _rekeyed(state["observed"], dict(zip(*keys, strict=True)))
    return new_state


def _rekeyed(observed: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    """Return what was reported to schedules, by the hyperparameter's name behind its rule's new key."""
    found = {}
    for name, value in observed.items():
        key, dot, field = name.rpartition(".")
        found[f"{keys[key + dot]}{field}"] = value
    return found
