"""``prune``: which weights of a phase go, by what they are chosen, and when."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, PlainSerializer, PlainValidator, model_validator

from polyopt.core.errors import nearest
from polyopt.pruning import OneShot, SparsitySchedule
from polyopt.recipe.choices import check_own, filled
from polyopt.recipe.component import SCHEDULE_KEY, Component
from polyopt.recipe.patterns import RegularExpression
from polyopt.recipe.problems import Problem, shown
from polyopt.recipe.sections import Count, Section

Criterion: TypeAlias = Literal[
    "magnitude", "movement", "n_of_m", "random", "snip", "structured", "threshold", "wanda"
]
OWN: dict[str, dict[str, Any]] = {
    "n_of_m": {"n": 2, "m": 4},
    "snip": {"samples": 128},
    "structured": {"norm": 2.0, "shrink": False},
    "threshold": {"minimum": None, "maximum": None, "magnitude": None},
    "wanda": {"samples": 128},
}
"""The keys that belong to some criteria alone, and what they are by default."""
WITHOUT_SPARSITY = ("n_of_m", "threshold")
"""Criteria that say themselves how much goes: at once, before the phase's training."""
SCOPES: dict[str, tuple[str, ...]] = {
    "magnitude": ("leaf", "global"),
    "movement": ("leaf", "global", "row"),
    "random": ("leaf", "global"),
    "snip": ("global", "leaf", "row"),
    "structured": ("leaf", "global"),
    "wanda": ("row", "leaf", "global"),
}
"""What each can rank together; the first is the default, the paper's where there is one."""


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


class Prune(Section):
    """``prune``: which weights go, and when."""

    criterion: Criterion = "magnitude"
    sparsity: Sparsity = None
    """The share that goes: at once, before the phase's training, or by a schedule of its updates."""
    scope: Literal["leaf", "global", "row"] | None = None
    """Each parameter to that sparsity, all together, or each output of each parameter."""
    select: RegularExpression | None = None
    """Of which parameters; by default those of two axes or more."""
    n: Count | None = None
    """``n_of_m`` keeps so many …"""
    m: Count | None = None
    """… of so many consecutive inputs of an output."""
    samples: Count | None = None
    """Training samples that ``snip`` and ``wanda`` look at."""
    norm: float | None = Field(None, gt=0.0)
    """``structured`` ranks neurons by the Ln norm of their weights."""
    shrink: bool | None = None
    """``structured``: the phase leaves a smaller model, without the pruned neurons."""
    minimum: float | None = None
    """``threshold`` prunes what is below, …"""
    maximum: float | None = None
    """… above, …"""
    magnitude: float | None = Field(None, ge=0.0)
    """… or closer to 0 than this."""
    rewind: Literal["initial", "start"] | None = None
    """After each pruning the weights that stay go back to what they were when the model was drawn, or when
    the phase began, and the optimizer starts anew."""

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, table: Any) -> Any:
        criterion = table.get("criterion", "magnitude") if isinstance(table, Mapping) else None
        if not isinstance(criterion, str) or criterion not in (*SCOPES, *WITHOUT_SPARSITY):
            return table
        scope = {"scope": SCOPES[criterion][0]} if criterion in SCOPES else {}
        return scope | filled(dict(table), "criterion", OWN)

    @model_validator(mode="after")
    def _sound(self) -> Prune:
        check_own(self, "criterion", OWN)
        if self.criterion in WITHOUT_SPARSITY:
            for key in ("sparsity", "scope"):
                if getattr(self, key) is not None:
                    raise Problem((key,), f": {self.criterion!r} has none; leave it out")
            self._limited()
        else:
            if self.sparsity is None:
                raise Problem(("sparsity",), ": this key is missing; add it")
            scopes = SCOPES[self.criterion]
            if self.scope not in scopes:
                raise Problem(
                    ("scope",),
                    f" = {self.scope!r}, for criterion = {self.criterion!r}; "
                    f"{nearest(str(self.scope), scopes)}",
                )
        return self

    def _limited(self) -> None:
        if self.criterion == "n_of_m":
            assert self.n is not None
            assert self.m is not None
            if self.n > self.m:
                raise Problem(("n",), f" = {self.n}; expected at most m = {self.m}")
        elif self.minimum is self.maximum is self.magnitude is None:
            raise Problem((), ": no limit; expected minimum, maximum or magnitude")

    @model_validator(mode="after")
    def _learned_first(self) -> Prune:
        schedule = self.schedule()
        if self.criterion == "movement" and schedule.due(0) and schedule(0) > 0:
            raise Problem(
                ("sparsity",),
                f" = {shown(_sparsity_table(self.sparsity))}: movement is seen in training; "
                "expected a schedule that prunes after some updates",
            )
        return self

    def schedule(self) -> SparsitySchedule:
        """When which sparsity is due."""
        if isinstance(self.sparsity, Component):
            found: SparsitySchedule = self.sparsity.build()
            return found
        return OneShot(0.0 if self.sparsity is None else self.sparsity)
