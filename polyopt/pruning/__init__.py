"""Pruning: masks and the criteria that make them, sparsity over time, and optimizers that respect them.

Masks are plain data, ``{path: bool array}``, made on the host from the values alone: the same bits on every
backend.
"""

from __future__ import annotations

from polyopt.pruning.couplings import Coupling as Coupling
from polyopt.pruning.couplings import Member as Member
from polyopt.pruning.couplings import chain_couplings as chain_couplings
from polyopt.pruning.couplings import head_coupling as head_coupling
from polyopt.pruning.criteria import CRITERIA as CRITERIA
from polyopt.pruning.criteria import magnitude_masks as magnitude_masks
from polyopt.pruning.criteria import n_of_m_masks as n_of_m_masks
from polyopt.pruning.criteria import random_masks as random_masks
from polyopt.pruning.criteria import score_masks as score_masks
from polyopt.pruning.criteria import threshold_masks as threshold_masks
from polyopt.pruning.leaves import Masks as Masks
from polyopt.pruning.leaves import apply_masks as apply_masks
from polyopt.pruning.leaves import pruned as pruned
from polyopt.pruning.lottery import Ticket as Ticket
from polyopt.pruning.lottery import lottery as lottery
from polyopt.pruning.lottery import prune as prune
from polyopt.pruning.masking import finalize as finalize
from polyopt.pruning.masking import masked as masked
from polyopt.pruning.masking import masks_of as masks_of
from polyopt.pruning.masking import unmasked as unmasked
from polyopt.pruning.masking import with_masks as with_masks
from polyopt.pruning.report import Sparsity as Sparsity
from polyopt.pruning.report import sparsity_report as sparsity_report
from polyopt.pruning.schedules import SPARSITY_SCHEDULES as SPARSITY_SCHEDULES
from polyopt.pruning.schedules import Gradual as Gradual
from polyopt.pruning.schedules import Iterative as Iterative
from polyopt.pruning.schedules import OneShot as OneShot
from polyopt.pruning.schedules import SparsitySchedule as SparsitySchedule
from polyopt.pruning.scores import Movement as Movement
from polyopt.pruning.scores import input_norms as input_norms
from polyopt.pruning.scores import movement_scores as movement_scores
from polyopt.pruning.scores import snip_scores as snip_scores
from polyopt.pruning.scores import wanda_scores as wanda_scores
from polyopt.pruning.shrinking import kept_units as kept_units
from polyopt.pruning.shrinking import shrink as shrink
from polyopt.pruning.shrinking import shrink_state as shrink_state
from polyopt.pruning.structure import structured_masks as structured_masks
from polyopt.pruning.structure import unit_scores as unit_scores
from polyopt.pruning.weights import clip_weights as clip_weights
from polyopt.pruning.weights import drop_weights as drop_weights
