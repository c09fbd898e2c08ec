"""Choose what is trained: all of a model, some layers, adapters beside its weights, or more.

Each kind splits the parameters into a tree that is trained and one that is held, and says what the two of
them make together. What is trained may change with the number of updates that were made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from polyopt import finetuning
from polyopt.backend import registry
from polyopt.backend.protocol import LossFunction
from polyopt.core import tree
from polyopt.core.errors import InputError
from polyopt.core.ops import Array, Ops
from polyopt.core.tree import Tree
from polyopt.finetuning import GradualUnfreezing, LoRA
from polyopt.finetuning.freezing import constant
from polyopt.pruning import Masks, apply_masks, pruned


class Trainable(Protocol):
    """Split a tree of parameters into what is trained and what is held."""

    def split(self, params: Tree, updates: int) -> tuple[Tree, Tree]:
        """Return ``(trained, held)`` at the coming update, after so many; ``held`` is None for nothing."""

    def whole(self, trained: Tree, held: Tree) -> Tree:
        """Return the parameters that the two make."""

    def loss(self, loss: LossFunction) -> LossFunction:
        """Make of ``loss`` of the parameters one of ``(xp, trained, held, *args)``.

        It goes without ``held`` if that is nothing.
        """

    def changes(self, updates: int) -> bool:
        """Return True if another part than before is trained from the coming update on."""


@dataclass(frozen=True)
class TrainableAll:
    """All parameters."""

    def split(self, params: Tree, updates: int) -> tuple[Tree, Tree]:
        """Train all, and hold nothing."""
        return params, None

    def whole(self, trained: Tree, held: Tree) -> Tree:
        """Return all."""
        return trained

    def loss(self, loss: LossFunction) -> LossFunction:
        """Return the same loss."""
        return loss

    def changes(self, updates: int) -> bool:
        """Return False: it never changes."""
        return False


@dataclass(frozen=True)
class TrainableBeside:
    """All parameters, and ``more``, a tree of host arrays, beside them by the name ``key``.

    ``more`` is trained along, and is no part of the model.
    """

    key: str
    more: Tree

    def split(self, params: Tree, updates: int) -> tuple[Tree, Tree]:
        """Train all, and what is beside them, on the same device."""
        like = tree.flatten(params).leaves[0]
        backend = registry.of(like)
        device = backend.device_name(like)
        more = tree.map_leaves(lambda x: backend.from_numpy(x, device=device), self.more)
        return {**params, self.key: more}, None

    def whole(self, trained: Tree, held: Tree) -> Tree:
        """Return all but what is beside them."""
        return {key: part for key, part in trained.items() if key != self.key}

    def loss(self, loss: LossFunction) -> LossFunction:
        """Return the same loss."""
        return loss

    def changes(self, updates: int) -> bool:
        """Return False: it never changes."""
        return False


@dataclass(frozen=True)
class Layers:
    """All but the ``frozen`` paths, and what ``plan`` has not thawed yet."""

    frozen: tuple[str, ...] = ()
    plan: GradualUnfreezing | None = None

    def split(self, params: Tree, updates: int) -> tuple[Tree, Tree]:
        """Hold the frozen leaves, and train the others."""
        held = set(self.frozen)
        if self.plan is not None:
            finetuning.select(params, *self.plan.layers)  # a pattern that matches nothing is a mistake
            held |= set(finetuning.select(params, *self.plan.frozen(updates)))
        paths = tree.flatten(params).paths
        if held.issuperset(paths):
            raise InputError("finetune: every parameter is frozen; expected one that is trained")
        if not held:
            return params, tree.map_leaves(lambda x: None, params)
        return finetuning.split(params, held.__contains__)

    def whole(self, trained: Tree, held: Tree) -> Tree:
        """Put the two parts together."""
        return finetuning.merge(trained, held)

    def loss(self, loss: LossFunction) -> LossFunction:
        """Make of ``loss`` a function of the trained part."""
        return finetuning.trainable(loss)

    def changes(self, updates: int) -> bool:
        """Return True if a layer thaws before the coming update."""
        return self.plan is not None and self.plan.changes(updates)


@dataclass(frozen=True)
class Adapters:
    """LoRA's adapters, and the ``anew`` paths whole: a dict by path of one or the other.

    What ``masks``, of host arrays, prune of the weights stays 0, whatever the adapters say.
    """

    lora: LoRA
    anew: tuple[str, ...] = ()
    masks: Masks = field(default_factory=dict)
    seed: int = 0

    def split(self, params: Tree, updates: int) -> tuple[Tree, Tree]:
        """Train adapters and what is new; hold the other weights and their masks."""
        named = tree.named(params)
        trained = self.lora.init(params, self.seed) | {path: named[path] for path in self.anew}
        kept = finetuning.split(params, self.anew.__contains__)[0] if self.anew else params
        masks = {path: _beside(named[path], mask) for path, mask in self.masks.items()}
        return trained, {"params": kept, "masks": masks}

    def whole(self, trained: Tree, held: Tree) -> Tree:
        """Return the weights with the adapters' product in them, pruned as before."""
        params, adapters = self._divided(trained, held)
        return pruned(self.lora.merge(params, adapters)[0], held["masks"])

    def loss(self, loss: LossFunction) -> LossFunction:
        """Make of ``loss`` a function of the adapters and of what is new."""

        def of_adapters(xp: Ops, trained: Tree, held: Tree, *args: Any) -> Array:
            kept = {"params": constant(held["params"]), "masks": held["masks"]}
            params, adapters = self._divided(trained, kept)
            return loss(xp, apply_masks(xp, self.lora.apply(xp, params, adapters), kept["masks"]), *args)

        return of_adapters

    def changes(self, updates: int) -> bool:
        """Return False: it never changes."""
        return False

    def _divided(self, trained: Mapping[str, Any], held: Tree) -> tuple[Tree, Any]:
        """Return the whole tree without what the adapters add, and the adapters."""
        flat = tree.flatten(held["params"])
        params = flat.unflatten(
            trained[path] if path in self.anew else x for path, x in zip(flat.paths, flat.leaves, strict=True)
        )
        return params, {path: x for path, x in trained.items() if path not in self.anew}


def _beside(like: Array, mask: Any) -> Array:
    backend = registry.of(like)
    return backend.from_numpy(mask, dtype="bool", device=backend.device_name(like))
