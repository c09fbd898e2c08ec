"""``distil``: a new model learns from an earlier one."""

from __future__ import annotations

from pydantic import Field

from polyopt.distillation import SoftTargets
from polyopt.recipe.sections import Model, Section

PREVIOUS = "previous"
"""Whatever comes before a phase, as ``teacher`` names it."""


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
