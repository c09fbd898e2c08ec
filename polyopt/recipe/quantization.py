"""``quantize``: how a phase stores its weights, and the numbers that its layers read."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from pydantic import Field, model_validator

from polyopt.core.errors import InputError
from polyopt.quantization import Cast, Integer, Observer
from polyopt.quantization.observers import OBSERVERS
from polyopt.recipe.choices import check_own, filled
from polyopt.recipe.patterns import RegularExpression
from polyopt.recipe.problems import Problem
from polyopt.recipe.sections import Count, Section

INTEGERS = ("bits", "per", "group_size", "symmetric", "convention")
"""The keys that integers alone have."""
Seen: TypeAlias = Literal["entropy", "min_max", "mse", "percentile"]
BY_METHOD: dict[str, dict[str, Any]] = {
    "gptq": {"samples": 128, "damping": 0.01, "block": 128, "order": "natural"},
}
BY_OBSERVER: dict[str, dict[str, Any]] = {"mse": {"steps": 100}, "percentile": {"percent": 99.99}}
"""The keys that belong to one choice alone, and what they are by default."""


class Activations(Section):
    """``activations``: what the layers with quantized weights read is put on grids too."""

    bits: Literal[4, 8] = 8
    symmetric: bool = False
    observer: Seen = "min_max"
    """What interval the codes cover."""
    samples: Count = 128
    """Training samples that are looked at."""
    percent: float | None = Field(None, ge=50.0, le=100.0)
    """``percentile``: of the numbers, that lie within."""
    steps: Count | None = None
    """``mse``: how many intervals are tried."""

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, table: Any) -> Any:
        return filled(table, "observer", BY_OBSERVER)

    @model_validator(mode="after")
    def _sound(self) -> Activations:
        check_own(self, "observer", BY_OBSERVER)
        return self

    def scheme(self) -> Integer:
        """Return the scheme of the codes."""
        return Integer(bits=self.bits, per="tensor", symmetric=self.symmetric)

    def built(self) -> Observer:
        """Return the observer as ``calibrate`` takes it."""
        options = {key: getattr(self, key) for key in BY_OBSERVER.get(self.observer, {})}
        return OBSERVERS[self.observer](**options)


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
    method: Literal["nearest", "gptq"] = "nearest"
    """How the integers are found: each weight's nearest, or those that change a layer's outputs least."""
    samples: Count | None = None
    """``gptq``: training samples that are looked at."""
    damping: float | None = Field(None, gt=0.0)
    """``gptq``: what is added to the inputs' second moments, as a fraction of their mean."""
    block: Count | None = None
    """``gptq``: inputs whose errors are passed on together."""
    order: Literal["natural", "activation"] | None = None
    """``gptq``: in which order the inputs are rounded."""
    activations: Activations | None = None
    """The inputs of the layers are quantized too, from here on until something is trained."""

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, table: Any) -> Any:
        return filled(table, "method", BY_METHOD)

    @model_validator(mode="after")
    def _sound(self) -> Quantize:
        if self.dtype is not None:
            for key in (*INTEGERS, "activations"):
                if getattr(self, key) is not None:
                    raise Problem((key,), f": dtype = {self.dtype!r} has none; give one of the two")
            if self.aware:
                raise Problem(("aware",), " = True; only integers are trained through, leave dtype out")
        check_own(self, "method", BY_METHOD)
        if self.method != "nearest":
            if self.dtype is not None:
                raise Problem(("dtype",), f": method = {self.method!r} gives integers; give one of the two")
            if self.aware:
                raise Problem(
                    ("aware",),
                    f" = True: training goes through rounding to nearest, and method = {self.method!r}; "
                    "give one of the two",
                )
        try:
            self.scheme()
        except InputError as e:
            raise Problem((), f": {str(e).removeprefix('Integer: ')}") from None
        return self

    def scheme(self, layout: str = "in_out") -> Integer | Cast:
        """Return the scheme as ``quantize`` takes it, for weights that lie so."""
        if self.dtype is not None:
            return Cast(self.dtype)
        given = {key: getattr(self, key) for key in INTEGERS if getattr(self, key) is not None}
        grouped = {"per": "group"} if self.group_size is not None else {}
        # Under every convention.
        return Integer(**({"layout": layout} | grouped | given))
