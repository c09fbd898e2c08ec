"""``quantize``: how a phase stores its weights."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from polyopt.errors import InputError
from polyopt.quantization import Cast, Integer
from polyopt.recipe.patterns import RegularExpression
from polyopt.recipe.problems import Problem
from polyopt.recipe.sections import Count, Section


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

    def scheme(self, layout: str = "in_out") -> Integer | Cast:
        """As :func:`polyopt.quantization.quantize` takes it, for weights that lie so."""
        if self.dtype is not None:
            return Cast(self.dtype)
        given = {
            key: getattr(self, key)
            for key in ("bits", "per", "group_size", "symmetric", "convention")
            if getattr(self, key) is not None
        }
        grouped = {"per": "group"} if self.group_size is not None else {}
        # Under every convention.
        return Integer(**({"layout": layout} | grouped | given))
