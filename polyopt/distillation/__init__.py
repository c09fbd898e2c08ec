"""Distillation: losses written once against ``Ops``, and teachers of any framework.

The student's side of every loss is differentiable on all four backends; the teacher's is a constant.
"""

from __future__ import annotations

from polyopt.distillation.base import DistillationLoss as DistillationLoss
from polyopt.distillation.checking import check_target as check_target
from polyopt.distillation.decoupled import DecoupledKD as DecoupledKD
from polyopt.distillation.ensembles import Ensemble as Ensemble
from polyopt.distillation.exchange import transfer as transfer
from polyopt.distillation.features import AttentionTransfer as AttentionTransfer
from polyopt.distillation.features import FeatureHint as FeatureHint
from polyopt.distillation.relations import RelationalAngle as RelationalAngle
from polyopt.distillation.relations import RelationalDistance as RelationalDistance
from polyopt.distillation.soft_targets import SoftTargets as SoftTargets
from polyopt.distillation.standardization import standardized as standardized
from polyopt.distillation.teacher import Teacher as Teacher
from polyopt.distillation.teacher import TeacherLogits as TeacherLogits

DISTILLATION_LOSSES: dict[str, type[DistillationLoss]] = {
    "attention_transfer": AttentionTransfer,
    "decoupled": DecoupledKD,
    "feature_hint": FeatureHint,
    "relational_angle": RelationalAngle,
    "relational_distance": RelationalDistance,
    "soft_targets": SoftTargets,
}
"""The names that recipes use."""
