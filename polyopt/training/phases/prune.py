"""Prune a phase's weights on its schedule, and shrink the model at its end.

All of it is worked out on the host, by NumPy, from copies of the weights and from the training samples: the
same weights have the same masks on every backend.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyopt import finetuning, pruning
from polyopt.backend.gradients import value_and_grad
from polyopt.core import random, tree
from polyopt.core.errors import InputError
from polyopt.core.tree import Tree
from polyopt.engine.optimizer import State
from polyopt.pruning import Coupling, Masks, SparsitySchedule
from polyopt.recipe.pruning import Prune
from polyopt.training.objective import Objective
from polyopt.training.phases import structure

MOVEMENT = "movement"
"""The slot in which movement pruning gathers its scores."""


@dataclass(frozen=True)
class Sparsifier:
    """A ``prune`` section, with what it looks at besides the weights.

    ``x`` and ``y`` are the training samples, as the model takes them.
    """

    section: Prune
    objective: Objective
    x: Any
    y: Any
    seed: int

    @property
    def schedule(self) -> SparsitySchedule:
        """When which sparsity is due, by the number of updates."""
        return self.section.schedule()

    def masks(
        self, params: Tree, sparsity: float, step: int, within: Masks, scores: Mapping[str, Any] | None = None
    ) -> Masks:
        """Return what is kept of ``params``, and what was pruned ``within`` before stays so: all host arrays.

        ``scores`` are those of movement pruning, ``None`` where nothing has moved yet.
        """
        section, select = self.section, self.section.select
        shared: dict[str, Any] = {"select": select, "within": within}
        if section.criterion == "magnitude":
            return pruning.magnitude_masks(params, sparsity, scope=section.scope or "leaf", **shared)
        if section.criterion == "random":
            return pruning.random_masks(
                params, sparsity, seed=self.seed, step=step, scope=section.scope or "leaf", **shared
            )
        if section.criterion == "n_of_m":
            return self._n_of_m(params, within)
        if section.criterion == "threshold":
            limits = {key: getattr(section, key) for key in ("minimum", "maximum", "magnitude")}
            return pruning.threshold_masks(params, **limits, **shared)
        if section.criterion == "structured":
            return self._structured(params, sparsity, within)
        return self._scored(self._scores(params, scores), sparsity, within)

    def shrunk(self, params: Tree, initial: Tree, masks: Masks) -> tuple[Tree, Tree, Masks]:
        """Return ``(params, initial, masks)`` without the units of which nothing is left."""
        couplings = [coupling for group in self._groups(params) for coupling in group]
        flat = tree.flatten(params)
        ones = flat.unflatten(np.ones(x.shape, np.float32) for x in flat.leaves)
        kept = tree.named(pruning.shrink(ones, masks, couplings))
        left = {path: kept[path] > 0.5 for path in masks}
        small = [pruning.shrink(values, masks, couplings) for values in (params, initial)]
        return small[0], small[1], {path: mask for path, mask in left.items() if not mask.all()}

    def seen(self, begun: Tree, params: Tree, masks: Masks) -> Masks:
        """Find the masks of the leaves that have none in ``masks``, since they are frozen: what became 0.

        Of a unit of which nothing else is left, what was 0 before is gone too. All are host arrays.
        """
        first = tree.named(begun)
        kept = {path: x != 0 for path, x in tree.named(params).items() if path not in masks}
        found = {path: mask for path, mask in kept.items() if (first[path][~mask] != 0).any()}
        for group in self._groups(params) if self.section.criterion == "structured" else ():
            alive = pruning.kept_units(params, kept | masks, group)
            for coupling in group:
                for member in (m for m in coupling.members if m.path in kept):
                    mask = found.setdefault(member.path, np.ones(kept[member.path].shape, bool))
                    gone = member.indices(coupling.units)[~alive[coupling.name]].reshape(-1)
                    np.moveaxis(mask, member.axis, 0)[gone] = False
        return found

    # Scores

    def _scores(self, params: Tree, movement: Mapping[str, Any] | None) -> dict[str, Any]:
        section, select = self.section, self.section.select
        if section.criterion == "snip":
            _, slopes = value_and_grad(self.objective)(params, *self._looked_at())
            return pruning.snip_scores(params, slopes, select=select)
        if section.criterion == "wanda":
            return self._wanda(params)
        still = tree.map_leaves(np.zeros_like, params)
        before = pruning.movement_scores(params, still, select=select)
        found = before if movement is None else {p: movement[p] for p in before if p in movement}
        if not found:
            raise InputError(
                "prune.criterion = 'movement': all that it would prune is frozen; expected weights that move"
            )
        return found

    def _wanda(self, params: Tree) -> dict[str, Any]:
        model, select = self.objective.model, self.section.select
        norms = structure.input_norms(model, params, self._looked_at()[0])
        chosen = list(norms) if select is None else finetuning.select(params, select)
        found: dict[str, Any] = {}
        for layout, paths in structure.by_layout(model, chosen).items():
            found |= pruning.wanda_scores(params, norms, layout=layout, select=set(paths).__contains__)
        return found

    def _scored(self, scores: dict[str, Any], sparsity: float, within: Masks) -> Masks:
        if self.section.scope != "row":
            scope = self.section.scope or "leaf"
            return pruning.score_masks(scores, sparsity, scope=scope, select=".*", within=within)
        # What is gone ranks below all else.
        ranked = {p: np.where(within[p], x, -np.inf) if p in within else x for p, x in scores.items()}
        new: Masks = {}
        for layout, paths in structure.by_layout(self.objective.model, ranked).items():
            own = {path: ranked[path] for path in paths}
            new |= pruning.score_masks(own, sparsity, scope="row", layout=layout, select=".*")
        return _both(new, within)

    def _n_of_m(self, params: Tree, within: Masks) -> Masks:
        section, select = self.section, self.section.select
        chosen = [path for path, x in tree.named(params).items() if len(x.shape) > 1]
        if select is not None:
            chosen = list(finetuning.select(params, select))
        found: Masks = {}
        for layout, paths in structure.by_layout(self.objective.model, chosen).items():
            found |= pruning.n_of_m_masks(
                params,
                section.n or 2,
                section.m or 4,
                axis=0 if layout == "in_out" else 1,  # that a product sums over
                select=set(paths).__contains__,
                within=within,
            )
        return found

    def _looked_at(self) -> tuple[Any, Any]:
        count, there = self.section.samples or 1, len(self.x)
        if count > there:
            raise InputError(f"prune.samples = {count}; expected at most the {there} training samples")
        chosen = random.permutation(there, self.seed, "prune")[:count]
        return self.x[chosen], self.y[chosen]

    # Units

    def _structured(self, params: Tree, sparsity: float, within: Masks) -> Masks:
        scope = "global" if self.section.scope == "global" else "coupling"
        found: Masks = {}
        for group in self._groups(params):
            scores = pruning.unit_scores(params, group, norm=self.section.norm or 2.0)
            alive = pruning.kept_units(params, within, group)
            scores = {name: np.where(alive[name], x, -np.inf) for name, x in scores.items()}
            found |= pruning.structured_masks(params, sparsity, group, scope=scope, scores=scores)
        return _both(found, within)

    def _groups(self, params: Tree) -> list[tuple[Coupling, ...]]:
        """Return the units with all their weights, in groups of one kind.

        Those that ``select`` finds by a weight that they are ranked by.
        """
        groups = structure.couplings(self.objective.model, params)
        if self.section.select is None:
            return groups
        ranked = {
            m.path: None for group in groups for coupling in group for m in coupling.members if m.scored
        }
        chosen = set(finetuning.select(ranked, self.section.select))
        own = [
            tuple(c for c in group if any(m.scored and m.path in chosen for m in c.members))
            for group in groups
        ]
        return [group for group in own if group]


def movement(state: State) -> dict[str, Any] | None:
    """Return the scores that an optimizer's state gathers, of what it doesn't freeze; ``None`` for none."""
    return next((x for name, x in state["slots"].items() if name.split(".")[-1] == MOVEMENT), None)


def _both(new: Masks, before: Masks) -> Masks:
    return {path: mask & before[path] if path in before else mask for path, mask in new.items()}
