"""Optimizers, one family a file; ``OPTIMIZERS`` maps the names that recipes use to the rules."""

from __future__ import annotations

from polyopt.core.rule import Rule
from polyopt.optim.adadelta import Adadelta as Adadelta
from polyopt.optim.adagrad import AdaGrad as AdaGrad
from polyopt.optim.adam import Adam as Adam
from polyopt.optim.adam import AdamW as AdamW
from polyopt.optim.adamax import Adamax as Adamax
from polyopt.optim.base import Descent as Descent
from polyopt.optim.decay import AddDecayedWeights as AddDecayedWeights
from polyopt.optim.decay import DecoupledWeightDecay as DecoupledWeightDecay
from polyopt.optim.nadam import NAdam as NAdam
from polyopt.optim.radam import RAdam as RAdam
from polyopt.optim.rmsprop import RMSprop as RMSprop
from polyopt.optim.sgd import SGD as SGD

OPTIMIZERS: dict[str, type[Rule]] = {
    "adadelta": Adadelta,
    "adagrad": AdaGrad,
    "adam": Adam,
    "adamax": Adamax,
    "adamw": AdamW,
    "gradient_descent": SGD,
    "nadam": NAdam,
    "radam": RAdam,
    "rmsprop": RMSprop,
    "sgd": SGD,
}
"""By the names that recipes use. ``gradient_descent`` and ``sgd`` are one rule: they differ in the batch."""
