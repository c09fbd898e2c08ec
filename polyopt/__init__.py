"""polyopt: training recipes written once, run on NumPy, PyTorch, TensorFlow and JAX.

Importing it loads no framework, not even NumPy: every public name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyopt.backend.convert import convert as convert
    from polyopt.backend.global_norm import global_norm as global_norm
    from polyopt.backend.gradients import value_and_grad as value_and_grad
    from polyopt.backend.registry import backend_context as backend_context
    from polyopt.backend.registry import get_backend as get_backend
    from polyopt.backend.registry import set_backend as set_backend
    from polyopt.core.rule import chain as chain
    from polyopt.core.rule import partition as partition
    from polyopt.distillation import SoftTargets as SoftTargets
    from polyopt.distillation import Teacher as Teacher
    from polyopt.engine.batches import AccumulatedStep as AccumulatedStep
    from polyopt.engine.batches import BatchSize as BatchSize
    from polyopt.engine.batches import Buckets as Buckets
    from polyopt.engine.batches import PaddedStep as PaddedStep
    from polyopt.engine.optimizer import Optimizer as Optimizer
    from polyopt.engine.optimizer import apply as apply
    from polyopt.engine.packing import Packing as Packing
    from polyopt.engine.train_step import TrainStep as TrainStep
    from polyopt.federated import fedavg as fedavg
    from polyopt.finetuning import L2SP as L2SP
    from polyopt.finetuning import LoRA as LoRA
    from polyopt.finetuning import freeze as freeze
    from polyopt.finetuning import layer_decay as layer_decay
    from polyopt.finetuning import layer_rates as layer_rates
    from polyopt.optim import SGD as SGD
    from polyopt.optim import Adadelta as Adadelta
    from polyopt.optim import AdaGrad as AdaGrad
    from polyopt.optim import Adam as Adam
    from polyopt.optim import Adamax as Adamax
    from polyopt.optim import AdamW as AdamW
    from polyopt.optim import AddDecayedWeights as AddDecayedWeights
    from polyopt.optim import DecoupledWeightDecay as DecoupledWeightDecay
    from polyopt.optim import NAdam as NAdam
    from polyopt.optim import RAdam as RAdam
    from polyopt.optim import RMSprop as RMSprop
    from polyopt.optim.averaging import EMA as EMA
    from polyopt.optim.averaging import PolyakAverage as PolyakAverage
    from polyopt.optim.averaging import averaged as averaged
    from polyopt.optim.clipping import AdaptiveGradientClip as AdaptiveGradientClip
    from polyopt.optim.clipping import ClipByGlobalNorm as ClipByGlobalNorm
    from polyopt.optim.clipping import ClipByNorm as ClipByNorm
    from polyopt.optim.clipping import ClipByValue as ClipByValue
    from polyopt.optim.explain import explain as explain
    from polyopt.pruning import masked as masked
    from polyopt.quantization import dequantize as dequantize
    from polyopt.quantization import quantize as quantize
    from polyopt.schedules import Cosine as Cosine
    from polyopt.schedules import Exponential as Exponential
    from polyopt.schedules import InverseTime as InverseTime
    from polyopt.schedules import Joined as Joined
    from polyopt.schedules import MultiStep as MultiStep
    from polyopt.schedules import OneCycle as OneCycle
    from polyopt.schedules import Piecewise as Piecewise
    from polyopt.schedules import Plateau as Plateau
    from polyopt.schedules import Polynomial as Polynomial
    from polyopt.schedules import Schedule as Schedule
    from polyopt.schedules import Step as Step
    from polyopt.schedules import WarmRestarts as WarmRestarts
    from polyopt.schedules import Warmup as Warmup
    from polyopt.schedules import WarmupCosine as WarmupCosine
    from polyopt.schedules import WarmupStableDecay as WarmupStableDecay

__version__ = "0.2.0"

_HOMES = {
    "polyopt.optim.averaging": "EMA PolyakAverage averaged",
    "polyopt.engine.batches": "AccumulatedStep BatchSize Buckets PaddedStep",
    "polyopt.optim.clipping": "AdaptiveGradientClip ClipByGlobalNorm ClipByNorm ClipByValue",
    "polyopt.backend.convert": "convert",
    "polyopt.distillation": "SoftTargets Teacher",
    "polyopt.optim.explain": "explain",
    "polyopt.federated": "fedavg",
    "polyopt.finetuning": "L2SP LoRA freeze layer_decay layer_rates",
    "polyopt.backend.global_norm": "global_norm",
    "polyopt.backend.gradients": "value_and_grad",
    "polyopt.optim": "Adadelta AdaGrad Adam Adamax AdamW AddDecayedWeights DecoupledWeightDecay NAdam RAdam "
    "RMSprop SGD",
    "polyopt.engine.optimizer": "Optimizer apply",
    "polyopt.engine.packing": "Packing",
    "polyopt.pruning": "masked",
    "polyopt.quantization": "dequantize quantize",
    "polyopt.backend.registry": "backend_context get_backend set_backend",
    "polyopt.core.rule": "chain partition",
    "polyopt.schedules": "Cosine Exponential InverseTime Joined MultiStep OneCycle Piecewise Plateau "
    "Polynomial Schedule Step Warmup WarmRestarts WarmupCosine WarmupStableDecay",
    "polyopt.engine.train_step": "TrainStep",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}
__all__ = sorted(_HOME_OF)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        if name.startswith("__"):  # asked by tools
            raise AttributeError(f"module 'polyopt' has no attribute {name!r}")
        from polyopt.core.aliases import NAMES, called
        from polyopt.core.errors import readable

        raise AttributeError(readable(f"polyopt has no {name!r}; {called(name, NAMES, _HOME_OF)}"))
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
