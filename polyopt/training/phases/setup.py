"""Set up a phase's training, and hold the model that one phase hands to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from polyopt.backend import registry
from polyopt.core import tree
from polyopt.core.ops import Array, Ops
from polyopt.core.rule import Stage, chain
from polyopt.core.tree import Tree
from polyopt.engine.optimizer import Optimizer
from polyopt.pruning import Masks, Movement, masked
from polyopt.quantization import Grid, dequantize, quantize_inputs
from polyopt.recipe import Recipe
from polyopt.training.phases.prune import Sparsifier
from polyopt.training.phases.trainable import Adapters, Trainable, TrainableAll

if TYPE_CHECKING:
    from polyopt.training.phases.distil import Teaching
    from polyopt.training.phases.federated import Federation


@dataclass(frozen=True)
class ModelState:
    """A model between two phases, on the host, so that it is the same bits for every backend.

    ``params`` may have quantized leaves. ``initial`` are the weights that it was drawn with, ``masks`` say
    of which leaves what is kept, ``{path: bool array}``; ``grids`` on which grid each layer's inputs are put,
    by the path of its weight.
    """

    model: Any
    params: Tree
    initial: Tree
    masks: Masks
    grids: Mapping[str, Grid] = field(default_factory=dict)

    @property
    def weights(self) -> Tree:
        """Return the parameters as arrays."""
        return dequantize(self.params)

    def apply(self, xp: Ops, params: Tree, x: Array) -> Array:
        """Return what the model says, its layers' inputs on their grids."""
        output: Array = quantize_inputs(self.model.apply, self.grids)(xp, params, x)
        return output

    def features(self, xp: Ops, params: Tree, x: Array) -> dict[str, Array]:
        """Return what each of its layers gives, likewise."""
        found: dict[str, Array] = quantize_inputs(self.model.features, self.grids)(xp, params, x)
        return found


@dataclass(frozen=True)
class PhaseSetup:
    """Start weights, frozen leaves, optimizer and loss of a phase's training."""

    model: Any
    start: Tree
    """The whole tree, on the host."""
    initial: Tree
    """The weights that the model was drawn with, on the host."""
    name: str = ""
    idle: bool = False
    """Nothing is trained."""
    parts: Trainable = TrainableAll()
    masks: Masks | None = None
    """What is 0 from the start, and stays so; ``None`` where nothing is ever pruned."""
    sparsifier: Sparsifier | None = None
    rewind: Tree = None
    """The weights to go back to after each pruning, on the host; ``None`` to go on."""
    within: Callable[[Stage], Stage] | None = None
    """Another optimizer for each layer."""
    around: Callable[[Stage], Stage] | None = None
    """What stands around clipping and the optimizer."""
    view: Callable[[Ops, Tree], Tree] | None = None
    """The parameters as the model computes with them."""
    grids: Mapping[str, Grid] = field(default_factory=dict)
    """Those of its layers' inputs."""
    teaching: Teaching | None = None
    """What a student learns from."""
    federation: Federation | None = None
    """Clients, one after the other, in the place of one run."""

    @property
    def masked(self) -> bool:
        """Return True if the optimizer's state holds the masks."""
        return self.masks is not None and not isinstance(self.parts, Adapters)

    def output(self, xp: Ops, params: Tree, x: Array) -> Array:
        """Return what the model says, as it is trained."""
        params = params if self.view is None else self.view(xp, params)
        output: Array = quantize_inputs(self.model.apply, self.grids)(xp, params, x)
        return output

    def optimizer(self, recipe: Recipe) -> Optimizer:
        """Make the recipe's, with masks, with rates by layer, with whatever else the phase puts around it."""

        def around(stage: Stage) -> Stage:
            stage = stage if self.around is None else self.around(stage)
            return masked(stage) if self.masked else stage

        def scored(stage: Stage) -> Stage:
            return chain(Movement(), around(stage)) if self._moves else around(stage)

        return recipe.build_optimizer(self.within, scored if self.masked or self.around else None)

    @property
    def _moves(self) -> bool:
        return self.sparsifier is not None and self.sparsifier.section.criterion == "movement"


def host(params: Tree) -> Tree:
    """Copy a tree of arrays of any framework to the host."""
    backend = registry.of(*tree.named(params).values())
    return tree.map_leaves(lambda x: backend.to_numpy(x).copy(), params)
