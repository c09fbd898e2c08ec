"""What sets a phase apart from a run from scratch, worked out on the host before it begins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from polyopt import finetuning, registry, tree
from polyopt.data import Dataset
from polyopt.errors import InputError, nearest
from polyopt.ops import Ops
from polyopt.optimizer import Optimizer
from polyopt.pruning import masked
from polyopt.pruning.leaves import Masks
from polyopt.quantization import Integer, dequantize, fake_quantize_weight, quantize
from polyopt.quantization.weights import selected
from polyopt.recipe import Recipe
from polyopt.recipe.phases import BASE, PREVIOUS, Finetune, Phase, Prune
from polyopt.rule import Stage, matches, rules_of
from polyopt.tree import Tree


@dataclass(frozen=True)
class Left:
    """A model between two phases, on the host, so that it is the same bits for every backend.

    ``params`` may have quantized leaves. ``masks`` says of which leaves what is kept, ``{path: bool array}``.
    """

    model: Any
    params: Tree
    masks: Masks

    @property
    def weights(self) -> Tree:
        """The parameters as arrays."""
        return dequantize(self.params)


@dataclass(frozen=True)
class Work:
    """How a phase's training differs: where it starts from, what is held, and by what it learns."""

    name: str = ""
    start: Tree = None
    """The whole tree, on the host; ``None`` for the model's initial one."""
    idle: bool = False
    """Nothing is trained."""
    frozen: tuple[str, ...] = ()
    masks: Masks | None = None
    """What to hold at 0 from the start; ``None`` where nothing is ever pruned."""
    prune: Prune | None = None
    within: Callable[[Stage], Stage] | None = None
    """Another optimizer for each layer."""
    view: Callable[[Ops, Tree], Tree] | None = None
    """The parameters as the model computes with them."""
    teacher: Left | None = None
    distil: Any = None
    """The loss against the teacher's logits."""

    def optimizer(self, recipe: Recipe) -> Optimizer:
        """The recipe's, with masks and rates by layer."""
        return recipe.build_optimizer(self.within, None if self.masks is None else masked)


@dataclass(frozen=True)
class Task:
    """A phase, or the run before the first one, with its data and its model."""

    number: int
    recipe: Recipe
    """Of its own, without phases."""
    phase: Phase | None
    dataset: Dataset
    model: Any

    @property
    def name(self) -> str:
        return BASE if self.phase is None else self.phase.name

    @property
    def kind(self) -> str:
        return "train" if self.phase is None else self.phase.kind

    def work(self, before: Mapping[str, Left]) -> Work:
        """What it does with the last of the models that were left ``before``, by the names of phases."""
        phase = self.phase
        if phase is None:
            return Work()
        last = list(before.values())[-1]
        fresh = self.model.init(self.recipe.seed, self.recipe.dtype)
        idle = phase.train is None
        if phase.distil is not None:
            named = phase.distil.teacher
            teacher = last if named == PREVIOUS else before[named]
            self._check_teacher(named, teacher)
            return Work(phase.name, fresh, teacher=teacher, distil=phase.distil.loss())
        tuned = phase.finetune or Finetune(decay=None)
        start = _start(fresh, last.weights, tuned.reinit)
        frozen = finetuning.select(start, *tuned.freeze) if tuned.freeze else ()
        anew = finetuning.select(start, *tuned.reinit) if tuned.reinit else ()
        masks: Masks | None = {path: mask for path, mask in last.masks.items() if path not in anew}
        if not masks and phase.prune is None:
            masks = None
        view = None
        if phase.quantize is not None and phase.quantize.aware:
            view = _rounding(phase.quantize.scheme(), selected(tree.flatten(start), phase.quantize.select))
        within = _by_layer(start, tuned) if tuned.rates or tuned.weight_decay or tuned.decay else None
        return Work(phase.name, start, idle, frozen, masks, phase.prune, within, view)

    def finished(self, params: Tree) -> Tree:
        """``params``, host arrays, as the phase leaves them."""
        section = None if self.phase is None else self.phase.quantize
        return params if section is None else quantize(params, section.scheme(), section.select)

    def _check_teacher(self, name: str, teacher: Left) -> None:
        for what, has, needs in (
            ("classes", teacher.model.outputs, self.dataset.outputs),
            ("inputs", teacher.model.inputs, self.dataset.features),
        ):
            if has != needs:
                raise InputError(
                    f"distil.teacher = {name!r} has {has} {what}; the student's data have {needs}: expected "
                    "a phase on the same data"
                )


def tasks(recipe: Recipe) -> list[Task]:
    """The run and its phases, checked as far as can be without training."""
    found = []
    for number in range(len(recipe.phase) + 1):
        own = recipe.of_phase(number)
        phase = recipe.phase[number - 1] if number else None
        with _named(phase):
            dataset = own.data.load()
            own.course(len(dataset.x_train))
            found.append(Task(number, own, phase, dataset, own.build_model(dataset)))
    if recipe.phase:
        _rehearse(found)
    return found


def _rehearse(found: list[Task]) -> None:
    """See that patterns, masks, groups and teachers fit, on the initial weights and the host."""
    base, *rest = found
    initial = base.model.init(base.recipe.seed, base.recipe.dtype)
    before = {BASE: Left(base.model, initial, {})}
    for task in rest:
        with _named(task.phase):
            work = task.work(before)
            held = [work.frozen.__contains__] if work.frozen else []
            optimizer = work.optimizer(task.recipe)
            check_masks(optimizer.rule, tree.named(work.start))
            optimizer.init(finetuning.split(work.start, *held)[0])
            masks = dict(work.masks or {})
            if work.prune is not None:
                schedule = work.prune.schedule()
                masks |= work.prune.masks(work.start, schedule(0), 0, 0, masks)
            before[task.name] = Left(task.model, task.finished(work.start), masks)


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
    """The weights that were left, and initial ones where ``anew`` says so."""
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


def _by_layer(params: Tree, section: Finetune) -> Callable[[Stage], Stage]:
    layers = finetuning.numbered_layers(params) if section.decay is not None else ()

    def within(stage: Stage) -> Stage:
        if section.decay is not None:
            stage = finetuning.layer_decay(stage, layers, section.decay)
        if section.weight_decay:
            stage = finetuning.layer_weight_decay(stage, list(section.weight_decay))
        return finetuning.layer_rates(stage, list(section.rates)) if section.rates else stage

    return within


def _rounding(scheme: Any, chosen: set[str]) -> Callable[[Ops, Tree], Tree]:
    """The weights as they will be stored, with a gradient through the rounding."""
    assert isinstance(scheme, Integer)

    def view(xp: Ops, params: Tree) -> Tree:
        flat = tree.flatten(params)
        return flat.unflatten(
            fake_quantize_weight(xp, x, scheme) if path in chosen else x
            for path, x in zip(flat.paths, flat.leaves, strict=True)
        )

    return view


def host(params: Tree) -> Tree:
    """A copy of a tree of arrays of any framework, on the host."""
    backend = registry.of(*tree.named(params).values())
    return tree.map_leaves(lambda x: backend.to_numpy(x).copy(), params)


def check_masks(rule: Stage, paths: Iterable[str]) -> None:
    """Refuse a mask that no parameter's path matches: nothing would decay, and nothing would say so."""
    known = list(paths)
    for _, part in rules_of(rule):
        mask = getattr(part, "mask", None)
        if isinstance(mask, str) and not any(matches(mask, path) for path in known):
            raise InputError(f"mask: pattern {mask!r} matches no parameter; {nearest('', known)}")
