"""``distil``: a new model learns from earlier ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, PlainSerializer, PlainValidator, model_validator

from polyopt.distillation import (
    AttentionTransfer,
    DecoupledKD,
    DistillationLoss,
    Ensemble,
    FeatureHint,
    RelationalAngle,
    RelationalDistance,
    SoftTargets,
)
from polyopt.recipe.choices import check_own, filled
from polyopt.recipe.problems import Problem, shown
from polyopt.recipe.sections import Model, Section, _tuple

PREVIOUS = "previous"
"""Whatever comes before a phase, as ``teacher`` names it."""
OWN: dict[str, dict[str, float]] = {
    "decoupled": {"alpha": 1.0, "beta": 8.0, "label_weight": 1.0},
    "soft_targets": {"alpha": 0.9},
}
"""The keys that belong to each loss of logits, and what they are by default."""


def _names(what: str, value: Any) -> tuple[str, ...]:
    names = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not names or not all(isinstance(name, str) for name in names):
        raise Problem((), f" = {shown(value)}; expected {what} in quotes, or a list of them")
    return names


def _teachers(value: Any) -> str | tuple[str, ...]:
    names = _names("a name", value)
    for i, name in enumerate(names):
        if name in names[:i]:
            raise Problem((i,), f" = {shown(name)}: this teacher stands there twice")
    return names if isinstance(value, list | tuple) else names[0]


def _listed(value: str | tuple[str, ...]) -> str | list[str]:
    return value if isinstance(value, str) else list(value)


def _layers(value: Any) -> tuple[str, ...]:
    return _names("a layer's name", value)


def _one_or_more(names: tuple[str, ...]) -> str | list[str]:
    return names[0] if len(names) == 1 else list(names)


Teachers: TypeAlias = Annotated[str | tuple[str, ...], PlainValidator(_teachers), PlainSerializer(_listed)]
Layers: TypeAlias = Annotated[tuple[str, ...], PlainValidator(_layers), PlainSerializer(_one_or_more)]


class Term(Section, ABC):
    """A loss between layers of student and teacher, added to that of the logits ``weight`` times."""

    weight: float = Field(1.0, gt=0.0)
    student: Layers
    """A layer, or several, …"""
    teacher: Layers
    """… and the teacher's that each is held against."""

    @model_validator(mode="after")
    def _pairs(self) -> Term:
        mine, its = len(self.student), len(self.teacher)
        if mine != its:
            found = shown(_one_or_more(self.teacher))
            raise Problem(("teacher",), f" = {found}; expected as many layers as student has: {mine}")
        return self

    @abstractmethod
    def build(self) -> DistillationLoss:
        """Make the library's loss."""


class Hint(Term):
    """``hint``: the student's features come near the teacher's."""

    convention: Literal["paper", "torch", "keras"] = "paper"

    def build(self) -> FeatureHint:
        """Make the hint's loss."""
        return FeatureHint(self.convention)


class Attention(Term):
    """``attention``: the student looks at the places that the teacher looks at."""

    power: Literal[1, 2, 4] = 2
    convention: Literal["paper", "torch"] = "paper"

    def build(self) -> AttentionTransfer:
        """Make the loss of attention maps."""
        return AttentionTransfer(self.power, convention=self.convention)


class Distance(Term):
    """``distance``: samples lie as far from each other as the teacher's."""

    convention: Literal["paper", "torch"] = "paper"

    def build(self) -> RelationalDistance:
        """Make the loss of distances between samples."""
        return RelationalDistance(self.convention)


class Angle(Term):
    """``angle``: samples form the angles that the teacher's form."""

    convention: Literal["paper", "torch"] = "paper"

    def build(self) -> RelationalAngle:
        """Make the loss of angles between samples."""
        return RelationalAngle(self.convention)


class Distil(Section):
    """``distil``: a new model, the student, learns what earlier ones, its teachers, say."""

    model: Model
    """The student."""
    teacher: Teachers = PREVIOUS
    """``previous``, ``base``, or an earlier phase's name; or a list of them."""
    weights: Annotated[tuple[Annotated[float, Field(ge=0.0)], ...], BeforeValidator(_tuple)] | None = None
    """Of several teachers; by default all alike."""
    loss: Literal["soft_targets", "decoupled"] = "soft_targets"
    """How the logits are compared."""
    temperature: float = Field(4.0, gt=0.0)
    alpha: float | None = Field(None, ge=0.0)
    """Of the teacher's words, the labels have the rest (``soft_targets``); or of how sure it is, …"""
    beta: float | None = Field(None, ge=0.0)
    """… of what else it considers, …"""
    label_weight: float | None = Field(None, ge=0.0)
    """… and of the labels (``decoupled``)."""
    standardize: bool = False
    """Standardize the logits first (Sun et al., 2024)."""
    hint: Hint | None = None
    attention: Attention | None = None
    distance: Distance | None = None
    angle: Angle | None = None

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, table: Any) -> Any:
        return filled(table, "loss", OWN, "soft_targets")

    @model_validator(mode="after")
    def _sound(self) -> Distil:
        check_own(self, "loss", OWN)
        if self.loss == "soft_targets" and self.alpha is not None and self.alpha > 1:
            raise Problem(("alpha",), f" = {self.alpha!r}; expected less than or equal to 1")
        if self.weights is not None:
            count = len(self.teachers)
            if count == 1:
                raise Problem(("weights",), ": there is one teacher; leave it out, or give a list of them")
            if len(self.weights) != count:
                found = shown(list(self.weights))
                raise Problem(("weights",), f" = {found}; expected {count}, one for each teacher")
            if not sum(self.weights) > 0:
                raise Problem(("weights",), f" = {shown(list(self.weights))}; expected a sum above 0")
        return self

    @property
    def teachers(self) -> tuple[str, ...]:
        """Return the names of all teachers."""
        return (self.teacher,) if isinstance(self.teacher, str) else self.teacher

    @property
    def shares(self) -> tuple[float, ...]:
        """Return how much each teacher counts: they add up to 1."""
        weights = self.weights or (1.0,) * len(self.teachers)
        return tuple(w / sum(weights) for w in weights)

    @property
    def terms(self) -> dict[str, Term]:
        """Return what is added, by its key."""
        keys = ("hint", "attention", "distance", "angle")
        return {key: term for key in keys if (term := getattr(self, key)) is not None}

    def build(self) -> DistillationLoss:
        """Make the loss of the logits: of one teacher, or an ``Ensemble``."""
        standardize = "paper" if self.standardize else None
        loss: DistillationLoss
        if self.loss == "soft_targets":
            loss = SoftTargets(self.temperature, self.alpha, standardize=standardize)
        else:
            loss = DecoupledKD(self.temperature, self.alpha, self.beta, self.label_weight, standardize)
        if len(self.teachers) == 1:
            return loss
        # For soft targets both ways of averaging have one gradient: the paper's is of probabilities.
        average = "probabilities" if self.loss == "soft_targets" else "losses"
        return Ensemble(loss, average, self.weights)
