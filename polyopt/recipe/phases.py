"""``[[phase]]``: what follows the run, one after the other: fine-tune, prune, quantize, distil."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, PlainSerializer, PlainValidator, model_validator

from polyopt.data import SHIFTS
from polyopt.distillation import SoftTargets
from polyopt.errors import InputError, nearest
from polyopt.pruning import OneShot, SparsitySchedule, magnitude_masks, random_masks
from polyopt.quantization import Cast, Integer
from polyopt.recipe.component import SCHEDULE_KEY, Component
from polyopt.recipe.datasets import TASKS
from polyopt.recipe.problems import Problem, shown
from polyopt.recipe.sections import (
    Count,
    Labels,
    Model,
    OptimizerTable,
    Section,
    Seed,
    Train,
    _member,
    _pattern,
    _tuple,
)

BASE, PREVIOUS = "base", "previous"
"""The run before the first phase, and whatever comes before a phase, as ``teacher`` names them."""
KINDS = ("finetune", "prune", "quantize", "distil")
CRITERIA: dict[str, Callable[..., Any]] = {"magnitude": magnitude_masks, "random": random_masks}

RegularExpression: TypeAlias = Annotated[str, PlainValidator(_pattern)]
Patterns: TypeAlias = Annotated[tuple[RegularExpression, ...], BeforeValidator(_tuple)]


def _by_pattern(value: Any) -> tuple[tuple[str, float], ...]:
    if isinstance(value, tuple):
        value = dict(value)
    if not isinstance(value, Mapping):
        raise Problem((), f" = {shown(value)}; expected a table of numbers by pattern")
    for pattern, x in value.items():
        try:
            _pattern(pattern)
        except Problem as problem:
            raise Problem((pattern,), problem.message) from None
        if isinstance(x, bool) or not isinstance(x, int | float) or not 0 <= x < float("inf"):
            raise Problem((pattern,), f" = {shown(x)}; expected a finite number >= 0")
    return tuple((pattern, float(x)) for pattern, x in value.items())


ByPattern: TypeAlias = Annotated[Any, PlainValidator(_by_pattern), PlainSerializer(dict, return_type=dict)]


def _sparsity(value: Any) -> float | Component:
    if isinstance(value, Component):
        return value
    if isinstance(value, Mapping):
        if SCHEDULE_KEY not in value:
            raise Problem((SCHEDULE_KEY,), ": this key is missing; add it, or give a number in [0, 1)")
        return Component.parse(value, "sparsity")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise Problem((), f" = {shown(value)}; expected a number in [0, 1), or a schedule of it")
    return float(value)


def _sparsity_table(value: float | Component) -> Any:
    return value.table() if isinstance(value, Component) else value


Sparsity: TypeAlias = Annotated[Any, PlainValidator(_sparsity), PlainSerializer(_sparsity_table)]


class DataChanges(Section):
    """``data`` of a phase: keys of ``[data]``, from here on."""

    name: Annotated[str, _member(TASKS, "data set")] | None = None
    test_fraction: float | None = Field(None, gt=0.0, lt=1.0)
    split_seed: Seed | None = None
    standardize: bool | None = None
    shift: Annotated[str, _member(SHIFTS, "shift")] | None = None
    labels: Labels | None = None


class Finetune(Section):
    """``finetune``: which layers are trained, from where, and how fast."""

    freeze: Patterns = ()
    """Parameters that stay as they are: no gradient is computed for them, and they have no slots."""
    reinit: Patterns = ()
    """Parameters that start anew, as the model's initializers draw them with the phase's seed."""
    rates: ByPattern = ()
    """Factors on the optimizer's rate, by pattern."""
    weight_decay: ByPattern = ()
    """Values in the place of the optimizer's, by pattern."""
    decay: float | None = Field(None, gt=0.0, le=1.0)
    """Each layer's rate is this times that of the layer above."""


class Prune(Section):
    """``prune``: which weights go, and when."""

    sparsity: Sparsity
    """The share that goes: at once, before the phase's training, or by a schedule of its updates."""
    criterion: Literal["magnitude", "random"] = "magnitude"
    scope: Literal["leaf", "global"] = "leaf"
    """Each parameter to that sparsity, or all together."""
    select: RegularExpression | None = None
    """Of which parameters; by default those of two axes or more."""

    def schedule(self) -> SparsitySchedule:
        """When which sparsity is due."""
        if isinstance(self.sparsity, Component):
            found: SparsitySchedule = self.sparsity.build()
            return found
        return OneShot(self.sparsity)

    def masks(self, params: Any, sparsity: float, seed: int, step: int, within: Mapping[str, Any]) -> Any:
        """What is kept of ``params`` after ``step`` updates; what is gone in ``within`` stays gone."""
        criterion = CRITERIA[self.criterion]
        if self.criterion == "random":
            criterion = partial(criterion, seed=seed, step=step)
        return criterion(params, sparsity, scope=self.scope, select=self.select, within=within)


class Quantize(Section):
    """``quantize``: how weights are stored, and whether training knows of it."""

    bits: Literal[4, 8] | None = None
    """Of the integers: 8, unless ``dtype`` is given."""
    per: Literal["tensor", "channel", "group"] | None = None
    """What shares a scale: ``channel``, or ``group`` where ``group_size`` is given."""
    group_size: Count | None = None
    symmetric: bool | None = None
    convention: Literal["paper", "torch", "keras", "tensorflow"] | None = None
    dtype: Literal["bfloat16", "float16"] | None = None
    """16-bit floats in the place of integers."""
    select: RegularExpression | None = None
    """Of which parameters; by default those of two axes or more."""
    aware: bool = False
    """Train through the rounding first."""

    @model_validator(mode="after")
    def _sound(self) -> Quantize:
        if self.dtype is not None:
            for key in ("bits", "per", "group_size", "symmetric", "convention"):
                if getattr(self, key) is not None:
                    raise Problem((key,), f": dtype = {self.dtype!r} has none; give one of the two")
            if self.aware:
                raise Problem(("aware",), " = True; only integers are trained through, leave dtype out")
        try:
            self.scheme()
        except InputError as e:
            raise Problem((), f": {str(e).removeprefix('Integer: ')}") from None
        return self

    def scheme(self) -> Integer | Cast:
        """As :func:`polyopt.quantization.quantize` takes it."""
        if self.dtype is not None:
            return Cast(self.dtype)
        given = {
            key: getattr(self, key)
            for key in ("bits", "per", "group_size", "symmetric", "convention")
            if getattr(self, key) is not None
        }
        grouped = {"per": "group"} if self.group_size is not None else {}
        # The models' weights are (inputs, outputs) under every convention.
        return Integer(**({"layout": "in_out"} | grouped | given))


class Distil(Section):
    """``distil``: a new model, the student, learns what an earlier one, the teacher, says."""

    model: Model
    """The student."""
    teacher: str = PREVIOUS
    """``previous``, ``base``, or an earlier phase's name."""
    temperature: float = Field(4.0, gt=0.0)
    alpha: float = Field(0.9, ge=0.0, le=1.0)
    """The weight of the teacher's words; the labels have the rest."""
    standardize: bool = False
    """Standardize the logits first (Sun et al., 2024)."""

    def loss(self) -> SoftTargets:
        """See :class:`polyopt.distillation.SoftTargets`."""
        standardize = "paper" if self.standardize else None
        return SoftTargets(temperature=self.temperature, alpha=self.alpha, standardize=standardize)


class Phase(Section):
    """``[[phase]]``: it goes on with the model that the one before it left."""

    name: str = Field(min_length=1, max_length=60)
    seed: Seed | None = None
    """By default the recipe's, plus 1 for the first phase, 2 for the second, …"""
    data: DataChanges | None = None
    optimizer: OptimizerTable | None = None
    """By default the recipe's, from its beginning."""
    train: Train | None = None
    finetune: Finetune | None = None
    prune: Prune | None = None
    quantize: Quantize | None = None
    distil: Distil | None = None

    @property
    def kind(self) -> str:
        """What it does: one of ``finetune``, ``prune``, ``quantize``, ``distil``; else ``train``."""
        return next((kind for kind in KINDS if getattr(self, kind) is not None), "train")

    @model_validator(mode="after")
    def _one_thing(self) -> Phase:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) > 1:
            raise Problem((given[1],), f": this phase has {given[0]!r} too; expected one of them in a phase")
        if not self.name.isprintable() or self.name in (BASE, PREVIOUS):
            raise Problem(("name",), f" = {shown(self.name)}; expected another one, of printable characters")
        silent = self.quantize is not None and not self.quantize.aware
        if silent and self.train is not None:
            raise Problem(("train",), ": nothing is trained here; leave it out, or add quantize.aware = true")
        if self.train is None and self.optimizer is not None:
            raise Problem(("optimizer",), ": nothing is trained here; add train, or leave it out")
        scheduled = self.prune is not None and isinstance(self.prune.sparsity, Component)
        if self.train is None and not silent and (self.prune is None or scheduled):
            raise Problem(("train",), ": this key is missing; add it")
        return self


def check_names(phases: tuple[Phase, ...]) -> None:
    """Each name once, and teachers that come before their students."""
    for i, phase in enumerate(phases):
        before = [earlier.name for earlier in phases[:i]]
        if phase.name in before:
            raise Problem(("phase", i, "name"), f" = {phase.name!r}: an earlier phase has this name")
        teacher = PREVIOUS if phase.distil is None else phase.distil.teacher
        known = [PREVIOUS, BASE, *before]
        if teacher not in known:
            raise Problem(
                ("phase", i, "distil", "teacher"),
                f" = {shown(teacher)}: no earlier phase; {nearest(teacher, known)}",
            )
