"""Which weights a phase prunes, and what it leaves when they are gone.

All of it is worked out on the host, by NumPy, from copies of the weights and from the training samples: the
same weights have the same masks on every backend.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyopt import finetuning, pruning, random, tree
from polyopt.errors import InputError
from polyopt.gradients import value_and_grad
from polyopt.models import MLP, Linear
from polyopt.products import layer_inputs
from polyopt.pruning import Coupling, Masks, SparsitySchedule
from polyopt.recipe.pruning import Prune
from polyopt.training.objective import Objective
from polyopt.tree import Tree

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
        """What is kept of ``params``, and what was pruned ``within`` before stays so: all host arrays.

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
            axis = 0 if self._layout == "in_out" else 1  # that a product sums over
            return pruning.n_of_m_masks(params, section.n or 2, section.m or 4, axis=axis, **shared)
        if section.criterion == "threshold":
            limits = {key: getattr(section, key) for key in ("minimum", "maximum", "magnitude")}
            return pruning.threshold_masks(params, **limits, **shared)
        if section.criterion == "structured":
            return self._structured(params, sparsity, within)
        return self._scored(self._scores(params, scores), sparsity, within)

    def shrunk(self, params: Tree, initial: Tree, masks: Masks) -> tuple[Tree, Tree, Masks]:
        """``(params, initial, masks)`` without the neurons of which nothing is left."""
        couplings = self._couplings(params)
        flat = tree.flatten(params)
        ones = flat.unflatten(np.ones(x.shape, np.float32) for x in flat.leaves)
        kept = tree.named(pruning.shrink(ones, masks, couplings))
        left = {path: kept[path] > 0.5 for path in masks}
        small = [pruning.shrink(values, masks, couplings) for values in (params, initial)]
        return small[0], small[1], {path: mask for path, mask in left.items() if not mask.all()}

    # Scores

    def _scores(self, params: Tree, movement: Mapping[str, Any] | None) -> dict[str, Any]:
        section, select = self.section, self.section.select
        if section.criterion == "snip":
            _, slopes = value_and_grad(self.objective)(params, *self._looked_at())
            return pruning.snip_scores(params, slopes, select=select)
        if section.criterion == "wanda":
            if not isinstance(self.objective.model, MLP | Linear):
                raise InputError("prune.criterion = 'wanda': the layers of this model can't be looked into")
            x, _ = self._looked_at()
            inputs = layer_inputs(self.objective.model.apply, params, x)
            norms = {path: pruning.input_norms(values) for path, values in inputs.items()}
            return pruning.wanda_scores(params, norms, select=select)
        still = tree.map_leaves(np.zeros_like, params)
        before = pruning.movement_scores(params, still, select=select)
        return before if movement is None else {path: movement[path] for path in before}

    def _scored(self, scores: dict[str, Any], sparsity: float, within: Masks) -> Masks:
        if self.section.scope != "row":
            scope = self.section.scope or "leaf"
            return pruning.score_masks(scores, sparsity, scope=scope, select=".*", within=within)
        # What is gone ranks below all else.
        ranked = {p: np.where(within[p], x, -np.inf) if p in within else x for p, x in scores.items()}
        new = pruning.score_masks(ranked, sparsity, scope="row", layout=self._layout, select=".*")
        return _both(new, within)

    @property
    def _layout(self) -> str:
        return str(getattr(self.objective.model, "layout", "in_out"))

    def _looked_at(self) -> tuple[Any, Any]:
        count, there = self.section.samples or 1, len(self.x)
        if count > there:
            raise InputError(f"prune.samples = {count}; expected at most the {there} training samples")
        chosen = random.permutation(there, self.seed, "prune")[:count]
        return self.x[chosen], self.y[chosen]

    # Neurons

    def _structured(self, params: Tree, sparsity: float, within: Masks) -> Masks:
        couplings = self._couplings(params)
        scores = pruning.unit_scores(params, couplings, norm=self.section.norm or 2.0)
        alive = pruning.kept_units(params, within, couplings)
        scores = {name: np.where(alive[name], x, -np.inf) for name, x in scores.items()}
        scope = "global" if self.section.scope == "global" else "coupling"
        new = pruning.structured_masks(params, sparsity, couplings, scope=scope, scores=scores)
        return _both(new, within)

    def _couplings(self, params: Tree) -> tuple[Coupling, ...]:
        """The hidden neurons of each layer that ``select`` takes, with all their weights."""
        model, select = self.objective.model, self.section.select
        layers = len(params["layers"]) if isinstance(model, MLP) else 1
        if layers < 2:
            raise InputError("prune.criterion = 'structured': this model has no hidden neurons")
        found = pruning.chain_couplings(
            params, [(f"layers.{i}.weight", f"layers.{i}.bias") for i in range(layers)]
        )
        if select is None:
            return found
        chosen = finetuning.select({coupling.name: None for coupling in found}, select)
        return tuple(coupling for coupling in found if coupling.name in chosen)


def _both(new: Masks, before: Masks) -> Masks:
    return {path: mask & before[path] if path in before else mask for path, mask in new.items()}
