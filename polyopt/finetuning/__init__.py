"""Fine-tuning layer by layer: freeze, thaw, re-initialize, rates and weight decay by layer, LoRA, L2-SP.

Plain functions of trees and states, and builders of rules. A layer is named by a pattern: a regular
expression that is searched for in a parameter's path, or a predicate on it.
"""

from __future__ import annotations

from polyopt.finetuning.freezing import freeze as freeze
from polyopt.finetuning.freezing import merge as merge
from polyopt.finetuning.freezing import split as split
from polyopt.finetuning.freezing import trainable as trainable
from polyopt.finetuning.l2sp import L2SP as L2SP
from polyopt.finetuning.lora import LoRA as LoRA
from polyopt.finetuning.lora import unmerge as unmerge
from polyopt.finetuning.rates import Scaled as Scaled
from polyopt.finetuning.rates import ScaledMeasured as ScaledMeasured
from polyopt.finetuning.rates import layer_decay as layer_decay
from polyopt.finetuning.rates import layer_rates as layer_rates
from polyopt.finetuning.rates import layer_weight_decay as layer_weight_decay
from polyopt.finetuning.reinitializing import reinitialize as reinitialize
from polyopt.finetuning.selection import numbered_layers as numbered_layers
from polyopt.finetuning.selection import select as select
from polyopt.finetuning.transfer import reset as reset
from polyopt.finetuning.transfer import transfer as transfer
from polyopt.finetuning.unfreezing import GradualUnfreezing as GradualUnfreezing
