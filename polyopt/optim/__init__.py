"""Optimizers, one family a file; ``OPTIMIZERS`` maps the names that recipes use to the rules."""

from __future__ import annotations

from polyopt.optim.adam import Adam as Adam
from polyopt.optim.sgd import SGD as SGD
from polyopt.rule import Rule

OPTIMIZERS: dict[str, type[Rule]] = {"adam": Adam, "sgd": SGD}
