"""``finetune``: which layers of a phase are trained, from where, how fast, and through what."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, PlainValidator, model_validator

from polyopt.recipe.patterns import ByPattern, Patterns, RegularExpression
from polyopt.recipe.problems import Problem, shown
from polyopt.recipe.sections import MAX_INTEGER, Count, Section


def _updates(value: Any) -> int | tuple[int, ...]:
    several = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not several or not all(type(x) is int and 1 <= x <= MAX_INTEGER for x in several):
        raise Problem((), f" = {shown(value)}; expected an integer >= 1, or a list of them")
    if any(b <= a for a, b in pairwise(several)):
        raise Problem((), f" = {shown(value)}; expected them in order, each once")
    return several if isinstance(value, list | tuple) else several[0]


Updates: TypeAlias = Annotated[Any, PlainValidator(_updates)]


class Unfreeze(Section):
    """``unfreeze``: the top layer is trained first, the next lower one thaws from time to time."""

    steps: Updates
    """The numbers of updates after which a layer thaws; an integer k means k, 2k, 3k, …."""
    layers: Patterns = ()
    """One pattern a layer, the lowest first; by default the model's numbered layers. What none of them
    matches is always trained."""


class Lora(Section):
    """``lora``: ``W + s·A·B`` is trained by A and B alone, and becomes W when the phase ends."""

    rank: Count
    alpha: float = Field(gt=0.0)
    """s = alpha / rank."""
    pattern: RegularExpression | None = None
    """Of which weights; by default all of two axes."""
    scaling: Literal["paper", "rank_stabilized"] = "paper"


class L2sp(Section):
    """``l2sp``: weights are drawn to where the phase began, and new ones to 0."""

    alpha: float = Field(ge=0.0)
    beta: float = Field(0.0, ge=0.0)
    """Of what is drawn anew."""


class Finetune(Section):
    """``finetune``: which layers are trained, from where, how fast, and through what."""

    freeze: Patterns = ()
    """Parameters that stay as they are: no gradient is computed for them, and they have no slots."""
    unfreeze: Unfreeze | None = None
    """Layers that stay as they are for some time."""
    reinit: Patterns = ()
    """Parameters that start anew, as the model's initializers draw them with the phase's seed."""
    rates: ByPattern = ()
    """Factors on the optimizer's rate, by pattern."""
    weight_decay: ByPattern = ()
    """Values in the place of the optimizer's, by pattern."""
    decay: float | None = Field(None, gt=0.0, le=1.0)
    """Each layer's rate is this times that of the layer above."""
    l2sp: L2sp | None = None
    """Draw weights to where they started from."""
    lora: Lora | None = None
    """Train low-rank adapters beside the weights, and what is drawn anew; nothing else."""

    @model_validator(mode="after")
    def _adapters_alone(self) -> Finetune:
        for key in ("freeze", "unfreeze", "l2sp"):
            if self.lora is not None and getattr(self, key):
                raise Problem((key,), ": lora trains its adapters alone; give one of the two")
        return self

    @property
    def trains(self) -> bool:
        """Return True if it says something of training; drawing anew alone does not."""
        return any(getattr(self, key) for key in type(self).model_fields if key != "reinit")
