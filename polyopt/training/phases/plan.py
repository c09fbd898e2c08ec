"""A recipe's run and its phases, each worked out on the host before it begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from polyopt import finetuning, pruning
from polyopt.core import tree
from polyopt.core.errors import InputError
from polyopt.core.rule import Stage, chain
from polyopt.core.tree import Tree
from polyopt.finetuning import L2SP, GradualUnfreezing, LoRA
from polyopt.models.datasets import Dataset
from polyopt.pruning import Masks
from polyopt.recipe import Recipe
from polyopt.recipe.distillation import PREVIOUS
from polyopt.recipe.finetuning import Finetune, Lora
from polyopt.recipe.phases import BASE, Phase
from polyopt.training.objective import Objective, as_read, targets
from polyopt.training.phases import structure
from polyopt.training.phases.distil import teaching
from polyopt.training.phases.federated import Federation
from polyopt.training.phases.prune import Sparsifier, movement
from polyopt.training.phases.quantize import Quantizer
from polyopt.training.phases.setup import ModelState, PhaseSetup
from polyopt.training.phases.trainable import Adapters, Layers, Trainable, TrainableAll


@dataclass(frozen=True)
class PhasePlan:
    """A phase, or the run before the first one, with its data and its model."""

    number: int
    recipe: Recipe
    """Of its own, without phases."""
    phase: Phase | None
    dataset: Dataset
    model: Any
    """As the recipe says; it may have become smaller by the time."""

    @property
    def name(self) -> str:
        """Return the phase's name."""
        return BASE if self.phase is None else self.phase.name

    @property
    def kind(self) -> str:
        """Return what the phase does."""
        return "train" if self.phase is None else self.phase.kind

    @property
    def steps(self) -> int:
        """Batches, where anything is trained; where only the run will know how many, no fewer than those."""
        samples = len(self.dataset.x_train)
        steps = self.recipe.total_steps(samples)
        return samples * (self.recipe.train.epochs or 0) if steps is None else steps

    def work(self, before: Mapping[str, ModelState]) -> PhaseSetup:
        """Return what it does with the last of the models that were left ``before``.

        By the names of phases.
        """
        if self.phase is None:
            fresh = self._fresh(self.model)
            return PhaseSetup(self.model, fresh, fresh)
        last = list(before.values())[-1]
        return self._taught(before, last) if self.phase.distil is not None else self._gone_on(last)

    def finished(self, left: ModelState) -> ModelState:
        """Return what the phase makes of the model that its training left."""
        with _named(self.phase):
            return self.made(left)

    def made(self, left: ModelState, *, rehearsal: bool = False) -> ModelState:
        """Return what the phase begins with; in rehearsal something of those shapes, quickly."""
        phase = self.phase
        if phase is not None and phase.quantize is not None:
            quantizer = self._quantizer(left.model)
            if rehearsal:
                return replace(left, params=quantizer.rehearsed(left.params))
            params = quantizer.stored(left.params, left.masks)
            # What was trained through is left.
            return replace(left, params=params, grids=left.grids or quantizer.grids(params))
        if phase is not None and phase.prune is not None and phase.prune.shrink:
            params, initial, masks = self._sparsifier(left.model).shrunk(
                left.params, left.initial, left.masks
            )
            return ModelState(structure.resized(left.model, params), params, initial, masks)
        return left

    def _fresh(self, model: Any) -> Tree:
        return model.init(self.recipe.seed, self.recipe.dtype)

    def _taught(self, before: Mapping[str, ModelState], last: ModelState) -> PhaseSetup:
        """Set up a student that begins."""
        assert self.phase is not None
        section = self.phase.distil
        assert section is not None
        teachers = {name: last if name == PREVIOUS else before[name] for name in section.teachers}
        fresh = self._fresh(self.model)
        found = teaching(section, teachers, self.model, fresh, self.dataset, self.recipe)
        return PhaseSetup(self.model, fresh, fresh, self.phase.name, parts=found.parts, teaching=found)

    def _gone_on(self, last: ModelState) -> PhaseSetup:
        """Set up the model that was left, by what the phase says."""
        phase = self.phase
        assert phase is not None
        model = structure.resized(self.model, last.initial)
        tuned = phase.finetune or Finetune(decay=None)
        fresh = structure.fresh(model, self.recipe.seed, self.recipe.dtype, last.initial)
        start, initial = (_start(fresh, old, tuned.reinit) for old in (last.weights, last.initial))
        anew = finetuning.select(start, *tuned.reinit) if tuned.reinit else ()
        masks: Masks | None = {path: mask for path, mask in last.masks.items() if path not in anew}
        if not masks and phase.prune is None:
            masks = None
        if phase.clip_weights is not None:
            options = phase.clip_weights.model_dump()
            start = pruning.clip_weights(start, **options, seed=self.recipe.seed)
        quantizer = None
        if phase.quantize is not None and phase.quantize.aware:
            quantizer = self._quantizer(model)
        parts = self._parts(tuned, start, anew, masks)
        federation = None
        if phase.federated is not None:
            federation = Federation.of(phase.federated, self.recipe, self.dataset, masks)
        rewind = None if phase.prune is None else phase.prune.rewind
        return PhaseSetup(
            model,
            start,
            initial,
            phase.name,
            idle=phase.train is None,
            parts=parts,
            masks=masks,
            sparsifier=None if phase.prune is None else self._sparsifier(model),
            rewind=None if rewind is None else {"initial": initial, "start": start}[rewind],
            within=_by_layer(model, parts.split(start, 0)[0], tuned),
            around=_drawn(tuned, anew) if federation is None else federation.around,
            view=None if quantizer is None else quantizer.rounding(start),
            grids={} if quantizer is None else quantizer.grids(start),
            federation=federation,
        )

    def _parts(self, tuned: Finetune, start: Tree, anew: tuple[str, ...], masks: Masks | None) -> Trainable:
        if tuned.lora is not None:
            return Adapters(
                _lora(tuned.lora, start, anew, structure.layout(self.model)),
                anew,
                masks or {},
                self.recipe.seed,
            )
        frozen = finetuning.select(start, *tuned.freeze) if tuned.freeze else ()
        plan = None
        if tuned.unfreeze is not None:
            layers = tuned.unfreeze.layers or structure.layers(self.model, start)
            steps = tuned.unfreeze.steps
            plan = GradualUnfreezing(self.recipe.build_optimizer().rule, layers, steps)
        return Layers(frozen, plan) if frozen or plan else TrainableAll()

    def _sparsifier(self, model: Any) -> Sparsifier:
        assert self.phase is not None
        assert self.phase.prune is not None
        data, dtype = self.dataset, self.recipe.dtype
        objective = Objective(model, data.classes, self.recipe.loss.label_smoothing)
        x, y = (as_read(z, dtype) for z in (data.x_train, targets(data.y_train, data.classes)))
        return Sparsifier(self.phase.prune, objective, x, y, self.recipe.seed)

    def _quantizer(self, model: Any) -> Quantizer:
        assert self.phase is not None
        assert self.phase.quantize is not None
        x = as_read(self.dataset.x_train, self.recipe.dtype)
        return Quantizer(self.phase.quantize, model, x, self.recipe.seed)


def tasks(recipe: Recipe, samples: Callable[[Recipe], Dataset] | None = None) -> list[PhasePlan]:
    """Plan the run and its phases, checked as far as can be without training.

    ``samples`` gives those of each, by its own recipe, where they are not what the recipe says.
    """
    found = []
    for number in range(len(recipe.phase) + 1):
        own = recipe.of_phase(number)
        phase = recipe.phase[number - 1] if number else None
        with _named(phase):
            dataset = own.data.load() if samples is None else samples(own)
            own.course(len(dataset.x_train))
            found.append(PhasePlan(number, own, phase, dataset, own.build_model(dataset)))
    if recipe.phase:
        _rehearse(found)
    return found


def _rehearse(found: list[PhasePlan]) -> None:
    """See that patterns, masks, groups and teachers fit, on the initial weights and the host."""
    before: dict[str, ModelState] = {}
    for task in found:
        with _named(task.phase):
            work = task.work(before)
            trained, _ = work.parts.split(work.start, 0)
            optimizer = work.optimizer(task.recipe)
            state = optimizer.init(trained)
            if work.federation is not None:
                work.federation.begin(work.start)
            masks = dict(work.masks or {})
            if work.sparsifier is not None:
                sparsity = _final(work.sparsifier, task)
                masks |= work.sparsifier.masks(work.start, sparsity, 0, masks, movement(state))
            left = ModelState(work.model, work.start, work.initial, masks, work.grids)
            before[task.name] = task.made(left, rehearsal=True)


def _final(sparsifier: Sparsifier, task: PhasePlan) -> float:
    """Return the sparsity that a phase ends with.

    How many neurons of which layer that is, the initial weights do not say where all are ranked together.
    """
    steps = 0 if task.phase is None or task.phase.train is None else task.steps
    updates, last = steps // task.recipe.train.accumulate, sparsifier.schedule.last
    if last > updates:
        raise InputError(
            f"prune.sparsity: weights go for the last time after {last} updates, and the phase makes "
            f"{updates}; expected no fewer"
        )
    if sparsifier.section.criterion == "structured" and sparsifier.section.scope == "global":
        return 0.0
    return float(sparsifier.schedule(updates))


class _named:
    """Errors inside say which phase they are of."""

    def __init__(self, phase: Phase | None) -> None:
        self.phase = phase

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self.phase is not None and isinstance(error, InputError):
            raise InputError(f"phase {self.phase.name!r}: {error}") from None


def _start(fresh: Tree, last: Tree, anew: tuple[str, ...]) -> Tree:
    """Return the weights that were left, and initial ones where ``anew`` says so."""
    drawn = set(finetuning.select(fresh, *anew)) if anew else set()
    old, flat = tree.named(last), tree.flatten(fresh)
    leaves = []
    for path, x in zip(flat.paths, flat.leaves, strict=True):
        if path not in drawn and tuple(old[path].shape) != tuple(x.shape):
            raise InputError(
                f"parameter {path!r} has shape {tuple(old[path].shape)}, and these data need "
                f"{tuple(x.shape)}: add a pattern that matches it to finetune.reinit"
            )
        leaves.append(x if path in drawn else old[path])
    return flat.unflatten(leaves)


def _by_layer(model: Any, params: Tree, section: Finetune) -> Callable[[Stage], Stage] | None:
    if not (section.rates or section.weight_decay or section.decay is not None):
        return None
    layers = structure.layers(model, params) if section.decay is not None else ()

    def within(stage: Stage) -> Stage:
        if section.decay is not None:
            stage = finetuning.layer_decay(stage, layers, section.decay)
        if section.weight_decay:
            stage = finetuning.layer_weight_decay(stage, list(section.weight_decay))
        return finetuning.layer_rates(stage, list(section.rates)) if section.rates else stage

    return within


def _drawn(section: Finetune, anew: tuple[str, ...]) -> Callable[[Stage], Stage] | None:
    """Draw weights to where they started from; what is drawn anew, to 0."""
    if section.l2sp is None:
        return None
    new = frozenset(anew).__contains__ if anew else None
    pull = L2SP(section.l2sp.alpha, section.l2sp.beta, new)
    return lambda stage: chain(pull, stage)


def _lora(section: Lora, params: Tree, anew: tuple[str, ...], layout: str) -> LoRA:
    if section.pattern is None:
        chosen = [path for path, x in tree.named(params).items() if len(x.shape) == 2]
    else:
        chosen = list(finetuning.select(params, section.pattern))
    paths = frozenset(chosen) - set(anew)
    if not paths:
        raise InputError("finetune.lora: no weight is left to adapt, all that match are drawn anew")
    return LoRA([paths.__contains__], section.rank, section.alpha, layout, section.scaling)
