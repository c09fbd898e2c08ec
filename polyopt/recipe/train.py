"""``[train]``: how long, and in batches of which size."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, PlainSerializer, WrapValidator, model_validator

from polyopt.core.errors import InputError
from polyopt.core.rule import Stage
from polyopt.engine.batches import (
    BatchSize,
    Buckets,
    DynamicSize,
    IndexSampler,
    RateByPlannedSize,
    RateByReportedSize,
)
from polyopt.engine.batches.plan import NoiseScaledBatches, ScheduledBatches
from polyopt.recipe.component import Component
from polyopt.recipe.problems import Problem, shown
from polyopt.recipe.sections import MAX_INTEGER, Count, Section, _reads, _tuple, _writes


def _batch(value: Any, section: Any) -> Any:
    if isinstance(value, Mapping | BatchSizes):
        return section(value)
    if value == "full":
        return "full"
    if type(value) is int and 1 <= value <= MAX_INTEGER:
        return value
    raise Problem((), f' = {shown(value)}; expected an integer >= 1 (without quotes), "full", or a table')


def _batch_table(value: Any) -> Any:
    return value.model_dump(mode="json", exclude_none=True) if isinstance(value, BatchSizes) else value


class Noise(Section):
    """``noise`` of ``[train.batch_size]``: the size follows the gradient noise scale."""

    initial: Count
    """The first size, a multiple of ``micro``."""
    factor: float = Field(1.0, gt=0.0)
    """The size is so many times the noise scale."""
    change: float = Field(2.0, gt=1.0)
    """By what factor it may change from one batch to the next."""
    decay: float = Field(0.99, ge=0.0, lt=1.0)
    """Of the averages that the noise scale is taken from."""

    def size(self, micro: int, maximum: int) -> DynamicSize:
        """Return how many samples each batch has."""
        return DynamicSize(self.initial, micro, maximum, self.factor, self.change, self.decay)


class BatchSizes(Section):
    """``batch_size`` of ``[train]`` as a table: it follows a schedule of the batches done, or the noise."""

    size: Annotated[Component, _reads("schedule"), _writes] | None = None
    noise: Noise | None = None
    """In the place of ``size``."""
    multiple: Count | None = None
    """Sizes are rounded to a multiple of it; of ``micro``, where they follow the noise."""
    minimum: Count | None = None
    maximum: Count | None = None
    micro: Count | None = None
    """Batches are made of micro-batches of so many samples, one after the other."""
    buckets: Annotated[tuple[Count, ...], BeforeValidator(_tuple)] | None = None
    """The sizes that arrays have, without ``micro``: a batch is padded to the next. By default powers of
    two."""
    scaling: Literal["linear", "sqrt", "none"] = "none"
    """How the optimizers' rates follow the size."""
    base: Count | None = None
    """The size that the rates were chosen for; by default the first."""

    @model_validator(mode="after")
    def _sound(self) -> BatchSizes:
        if self.base is not None and self.scaling == "none":
            raise Problem(("base",), ": nothing is scaled; add scaling, or leave it out")
        if self.micro is not None and self.buckets is not None:
            raise Problem(("buckets",), ": arrays have the size of micro; leave out one of the two")
        if self.noise is not None:
            self._check_noise(self.noise)
        elif self.size is None:
            raise Problem(("size",), ": this key is missing; add it, or noise")
        else:
            try:
                self._schedule()(0)
            except InputError as e:
                raise Problem((), f": {str(e).removeprefix('BatchSize: ')}") from None
        if self.buckets is not None:
            try:
                Buckets(self.buckets)
            except InputError as e:
                raise Problem(("buckets",), f": {str(e).removeprefix('Buckets: ')}") from None
        return self

    def _check_noise(self, noise: Noise) -> None:
        if self.size is not None:
            raise Problem(("noise",), ": there is a size too; expected one of the two")
        for key in ("multiple", "minimum"):
            if getattr(self, key) is not None:
                raise Problem(
                    (key,), ": sizes that follow the noise are multiples of micro, from two on; leave it out"
                )
        if self.micro is None:
            raise Problem(("micro",), ": this key is missing; add it: noise is measured from micro-batches")
        try:
            noise.size(self.micro, self._most(noise.initial))
        except InputError as e:
            key, _, found = str(e).removeprefix("DynamicSize: ").partition(" ")
            raise Problem(("noise", key) if key in Noise.model_fields else (key,), f" {found}") from None

    def course(self, feed: IndexSampler) -> ScheduledBatches | NoiseScaledBatches:
        """Plan the batches of a run over the samples of ``feed``."""
        first = None if self.noise is None else self.noise.initial
        for key, wanted in (("micro", self.micro), ("noise.initial", first)):
            if wanted is not None and wanted > feed.samples:
                raise InputError(
                    f"train.batch_size.{key} = {wanted}; expected at most the {feed.samples} training samples"
                )
        if self.noise is not None:
            assert self.micro is not None
            return NoiseScaledBatches(feed, self.noise.size(self.micro, self._most(feed.samples)))
        size = self._schedule()
        if self.micro is not None:
            return ScheduledBatches(feed, size, Buckets((self.micro,)), self.micro)
        largest = min(self.maximum or feed.samples, feed.samples)
        smallest = min(self.minimum or self.multiple or 1, largest)
        buckets = Buckets.powers(largest, smallest) if self.buckets is None else Buckets(self.buckets)
        if buckets.sizes[-1] < largest:
            raise InputError(
                f"train.batch_size.buckets: the last is {buckets.sizes[-1]}, and batches may have {largest} "
                "samples; add a larger one, or a maximum"
            )
        return ScheduledBatches(feed, size, buckets)

    def paced(self, rule: Any) -> Stage:
        """Return ``rule`` with a rate that follows the size."""
        found: Stage = rule
        if self.scaling != "none":
            rate: RateByPlannedSize | RateByReportedSize
            if self.noise is not None:
                rate = RateByReportedSize(rule.lr, self.base or self.noise.initial, self.scaling)
            else:
                size = self._schedule()
                rate = RateByPlannedSize(rule.lr, size, self.base or size(0), self.scaling)
            found = dataclasses.replace(rule, lr=rate)
        return found

    def _schedule(self) -> BatchSize:
        assert self.size is not None
        return BatchSize(self.size.build(), self.multiple or 1, self.minimum, self.maximum)

    def _most(self, samples: int) -> int:
        """Return the largest size that follows the noise: ``maximum``, or what holds all samples."""
        micro = self.micro or 1
        return self.maximum or max(-(-samples // micro), 2) * micro


if TYPE_CHECKING:
    Batch: TypeAlias = int | Literal["full"] | BatchSizes
else:
    Batch = Annotated[BatchSizes, WrapValidator(_batch), PlainSerializer(_batch_table)]


class Train(Section):
    """``[train]``: how long, in which portions, and what to watch."""

    epochs: Count | None = None
    """Passes over the training samples; this or ``steps``."""
    steps: Count | None = None
    """Batches."""
    batch_size: Batch = 32
    """``"full"`` is gradient descent, 1 is stochastic gradient descent by the single sample."""
    shuffle: bool = True
    drop_last: bool = False
    """Leave out the last batch of an epoch where it is smaller."""
    accumulate: Count = 1
    """Batches to a step of the optimizer."""
    reduce: Literal["mean", "sum"] = "mean"
    nonfinite: Literal["propagate", "skip", "raise"] = "raise"
    """What a gradient with an inf or NaN does."""
    evaluate_every: Count = 1
    """Epochs from one test to the next; the end of a run is always tested."""

    @model_validator(mode="after")
    def _how_long(self) -> Train:
        if self.epochs is None and self.steps is None:
            raise Problem(("epochs",), ": this key is missing; add it, or train.steps")
        if self.epochs is not None and self.steps is not None:
            raise Problem(("steps",), f" = {self.steps} and epochs = {self.epochs}; expected one of the two")
        return self

    @model_validator(mode="after")
    def _sizes_alone(self) -> Train:
        if isinstance(self.batch_size, BatchSizes):
            if self.accumulate > 1:
                raise Problem(
                    ("accumulate",),
                    f" = {self.accumulate}: the table batch_size says how many samples an update takes, "
                    "with micro in portions; leave it out",
                )
            if self.drop_last:
                raise Problem(
                    ("drop_last",),
                    " = True: where sizes change, what an epoch has left is a batch as any, padded; leave it "
                    "out",
                )
        return self
