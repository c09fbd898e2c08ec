"""The sections of a recipe: typed, immutable, with nothing in them that was not asked for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    field_validator,
    model_validator,
)

from polyopt.core.errors import InputError, nearest
from polyopt.core.rule import compiled
from polyopt.models.datasets import SHIFTS, Dataset
from polyopt.models.networks import ACTIVATIONS
from polyopt.recipe import datasets
from polyopt.recipe.component import Component
from polyopt.recipe.models import MODELS
from polyopt.recipe.problems import Problem, shown

MAX_INTEGER = 2**63 - 1
"""The largest integer that every TOML reader takes."""


def _reads(kind: str) -> PlainValidator:
    def validate(value: Any) -> Component:
        return value if isinstance(value, Component) and value.kind == kind else Component.parse(value, kind)

    return PlainValidator(validate)


def _table(component: Component) -> dict[str, Any]:
    return component.table()


def _member(registry: Mapping[str, Any], what: str) -> PlainValidator:
    def validate(value: Any) -> str:
        if not isinstance(value, str) or value not in registry:
            raise Problem((), f" = {shown(value)}: unknown {what}; {nearest(str(value), registry)}")
        return value

    return PlainValidator(validate)


def _pattern(value: Any) -> str:
    if not isinstance(value, str):
        raise Problem((), f" = {shown(value)}; expected a regular expression in quotes")
    try:
        compiled(value)
    except InputError as e:
        raise Problem((), f": {e}") from None
    return value


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _named(name: str, value: Any) -> Any:
    return {"name": name} | dict(value) if isinstance(value, Mapping) else value


_writes = PlainSerializer(_table, return_type=dict)
OptimizerTable: TypeAlias = Annotated[Component, _reads("optimizer"), _writes]
InitializerTable: TypeAlias = Annotated[Component, _reads("initializer"), _writes]
ClippingTable: TypeAlias = Annotated[Component, _reads("clipping"), _writes]
AverageTable: TypeAlias = Annotated[
    Component, _reads("averaging"), _writes, BeforeValidator(partial(_named, "ema"))
]
"""``[ema]``: an average of the weights, which is what is tested; by ``name``, an exponential one."""
Count = Annotated[int, Field(ge=1, le=MAX_INTEGER)]
Seed = Annotated[int, Field(ge=0, le=MAX_INTEGER)]
Labels: TypeAlias = Annotated[
    tuple[Annotated[int, Field(ge=0, le=MAX_INTEGER)], ...], BeforeValidator(_tuple), Field(min_length=2)
]


class Section(BaseModel):
    """A table of a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Data(Section):
    """``[data]``: what it learns from."""

    name: Annotated[str, _member(datasets.TASKS, "data set")]
    test_fraction: float = Field(0.2, gt=0.0, lt=1.0)
    """The part of the samples that is kept for testing."""
    split_seed: Seed = 0
    """Which samples those are; apart from the recipe's seed, so that runs of many seeds share a test set."""
    standardize: bool = True
    """Shift and scale each input to mean 0 and deviation 1, as measured on the training samples."""
    shift: Annotated[str, _member(SHIFTS, "shift")] | None = None
    """A related task: ``inverted``, ``permuted`` or ``rotated`` samples."""
    labels: Labels | None = None
    """The samples of these classes alone."""

    def load(self) -> Dataset:
        """Load the samples, or raise ``InputError`` for what doesn't fit them."""
        return datasets.load(
            self.name,
            test_fraction=self.test_fraction,
            standardize=self.standardize,
            split_seed=self.split_seed,
            shift=self.shift,
            labels=self.labels,
        )


class Model(Section):
    """``[model]``: what is trained."""

    name: Annotated[str, _member(MODELS, "model")]
    hidden: Annotated[tuple[Count, ...], BeforeValidator(_tuple)] | None = None
    """Widths of the hidden layers (``mlp``)."""
    activation: Annotated[str, _member(ACTIVATIONS, "activation")] | None = None
    init: InitializerTable
    """How weights start."""
    bias_init: InitializerTable
    """How biases start."""

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, table: Any) -> Any:
        if not isinstance(table, Mapping):
            return table
        mlp = table.get("name") == "mlp"
        filled: dict[str, Any] = {"hidden": (64,), "activation": "relu"} if mlp else {}
        smooth = not mlp or table.get("activation") == "tanh"
        init = {"name": "glorot" if smooth else "he", "distribution": "normal"}
        filled |= {"init": init, "bias_init": "zeros"}
        return filled | dict(table)

    @model_validator(mode="after")
    def _no_layers(self) -> Model:
        for key in ("hidden", "activation"):
            if self.name != "mlp" and getattr(self, key) is not None:
                raise Problem((key,), f": a {self.name!r} model has none; leave it out, or take 'mlp'")
        return self


class Loss(Section):
    """``[loss]``: what is made small."""

    name: Literal["mean_squared_error", "cross_entropy"]
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0)

    @field_validator("label_smoothing")
    @classmethod
    def _only_for_classes(cls, value: float, info: Any) -> float:
        if value and info.data.get("name") == "mean_squared_error":
            raise Problem((), f" = {value!r}; only cross_entropy has labels to smooth")
        return value


class Part(Section):
    """``[[partition]]``: the parameters that ``pattern`` finds have an optimizer of their own, or none."""

    pattern: Annotated[str, PlainValidator(_pattern)]
    optimizer: OptimizerTable | None = None
    freeze: bool = False

    @model_validator(mode="after")
    def _one_of_two(self) -> Part:
        if self.freeze == (self.optimizer is not None):
            raise Problem((), ": expected either an optimizer or freeze = true")
        return self
