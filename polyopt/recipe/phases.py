"""``[[phase]]``: what follows the run, one after the other: fine-tune, prune, quantize, distil, federate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from polyopt.core.errors import nearest
from polyopt.models.datasets import SHIFTS
from polyopt.recipe.component import Component
from polyopt.recipe.datasets import TASKS
from polyopt.recipe.distillation import PREVIOUS, Distil
from polyopt.recipe.federated import Federated, check_training
from polyopt.recipe.finetuning import Finetune
from polyopt.recipe.patterns import RegularExpression
from polyopt.recipe.problems import Problem, shown, within
from polyopt.recipe.pruning import Prune
from polyopt.recipe.quantization import Quantize
from polyopt.recipe.sections import Labels, OptimizerTable, Section, Seed, _member
from polyopt.recipe.train import Train

BASE = "base"
"""The run before the first phase, as ``teacher`` names it."""
KINDS = ("finetune", "clip_weights", "prune", "quantize", "distil", "federated")


class DataChanges(Section):
    """``data`` of a phase: keys of ``[data]``, from here on."""

    name: Annotated[str, _member(TASKS, "data set")] | None = None
    test_fraction: float | None = Field(None, gt=0.0, lt=1.0)
    split_seed: Seed | None = None
    standardize: bool | None = None
    shift: Annotated[str, _member(SHIFTS, "shift")] | None = None
    labels: Labels | None = None


class ClipWeights(Section):
    """``clip_weights``: weights beyond a limit are brought to it, or to zero, before the phase's training."""

    minimum: float | None = None
    maximum: float | None = None
    to: Literal["limit", "zero"] = "limit"
    share: float = Field(1.0, gt=0.0, le=1.0)
    """Only so many of the weights are looked at, drawn with the phase's seed."""
    select: RegularExpression | None = None
    """Of which parameters; by default all, biases too."""

    @model_validator(mode="after")
    def _limited(self) -> ClipWeights:
        if self.minimum is None and self.maximum is None:
            raise Problem((), ": no limit; expected minimum or maximum")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise Problem(("minimum",), f" = {self.minimum!r} is above maximum = {self.maximum!r}")
        return self


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
    clip_weights: ClipWeights | None = None
    prune: Prune | None = None
    quantize: Quantize | None = None
    distil: Distil | None = None
    federated: Federated | None = None

    @property
    def kind(self) -> str:
        """Return what it does: its key of ``KINDS``, else ``train``."""
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
        if self.train is None and not silent and not self._at_once:
            raise Problem(("train",), ": this key is missing; add it")
        if self.federated is not None and self.train is not None:
            try:
                check_training(self.train)
            except Problem as problem:
                raise within("train", problem) from None
        return self

    @property
    def _at_once(self) -> bool:
        """Return True if it may do without training."""
        if self.finetune is not None:
            return bool(self.finetune.reinit) and not self.finetune.trains
        if self.prune is not None:
            return not isinstance(self.prune.sparsity, Component)
        return self.clip_weights is not None


def check_names(phases: tuple[Phase, ...]) -> Iterator[Problem]:
    """Each name once, and teachers that come before their students."""
    for i, phase in enumerate(phases):
        before = [earlier.name for earlier in phases[:i]]
        if phase.name in before:
            yield Problem(("phase", i, "name"), f" = {phase.name!r}: an earlier phase has this name")
        known = [PREVIOUS, BASE, *before]
        for teacher in () if phase.distil is None else phase.distil.teachers:
            if teacher not in known:
                yield Problem(
                    ("phase", i, "distil", "teacher"),
                    f" = {shown(teacher)}: no earlier phase; {nearest(teacher, known)}",
                )
