"""The optimizers that are measured: polyopt's rule, and what each framework calls the same algorithm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from polyopt.core.errors import InputError, nearest
from polyopt.core.rule import Stage, chain
from polyopt.optim import OPTIMIZERS
from polyopt.optim.clipping import ClipByGlobalNorm
from polyopt.schedules import Cosine

Framework = Literal["numpy", "torch", "optax", "keras"]
LR = 1e-3
MAX_NORM = 1.0
ANNEALED = 100_000
"""Steps over which a cosine brings the rate to 0."""


@dataclass(frozen=True)
class Algorithm:
    """One optimizer with its settings, by polyopt's names and by the frameworks'."""

    name: str
    polyopt: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    torch: tuple[str, Mapping[str, Any]] | None = None
    optax: tuple[str, Mapping[str, Any]] | None = None
    keras: tuple[str, Mapping[str, Any]] | None = None
    clips: bool = False
    """True if the gradients are first clipped by their global norm, at ``MAX_NORM``."""
    anneals: bool = False
    """True if the rate falls along a cosine, over ``ANNEALED`` steps."""

    def rule(self, framework: Framework = "numpy") -> Stage:
        """Make polyopt's rule, under the convention of ``framework`` where that has this algorithm."""
        known = framework != "numpy" and getattr(self, framework) is not None
        make: Any = OPTIMIZERS[self.polyopt]
        lr = Cosine(LR, ANNEALED) if self.anneals else LR
        rule: Stage = make(lr=lr, convention=framework if known else "paper", **self.settings)
        return chain(ClipByGlobalNorm(MAX_NORM), rule) if self.clips else rule


def _algorithms() -> dict[str, Algorithm]:
    decay = {"weight_decay": 1e-2}
    momentum = {"momentum": 0.9}
    nesterov = momentum | {"nesterov": True}
    centered = momentum | {"centered": True}
    amsgrad = {"amsgrad": True}
    adam: dict[str, Any] = {"torch": ("Adam", {}), "optax": ("adam", {}), "keras": ("Adam", {})}
    adamw: dict[str, Any] = {
        "torch": ("AdamW", decay),
        "optax": ("adamw", decay),
        "keras": ("AdamW", decay),
    }
    found = (
        Algorithm("adam", "adam", **adam),
        Algorithm("adamw", "adamw", decay, **adamw),
        Algorithm("amsgrad", "adam", amsgrad, ("Adam", amsgrad), ("amsgrad", {}), ("Adam", amsgrad)),
        Algorithm("sgd", "sgd", {}, ("SGD", {}), ("sgd", {}), ("SGD", {})),
        Algorithm("momentum", "sgd", momentum, ("SGD", momentum), ("sgd", momentum), ("SGD", momentum)),
        Algorithm("nesterov", "sgd", nesterov, ("SGD", nesterov), ("sgd", nesterov), ("SGD", nesterov)),
        Algorithm("rmsprop", "rmsprop", {}, ("RMSprop", {}), ("rmsprop", {}), ("RMSprop", {})),
        Algorithm(
            "rmsprop-centered",
            "rmsprop",
            centered,
            ("RMSprop", centered),
            ("rmsprop", centered),
            ("RMSprop", centered),
        ),
        Algorithm("adagrad", "adagrad", {}, ("Adagrad", {}), ("adagrad", {}), ("Adagrad", {})),
        Algorithm("adadelta", "adadelta", {}, ("Adadelta", {}), ("adadelta", {}), ("Adadelta", {})),
        Algorithm("adamax", "adamax", {}, ("Adamax", {}), ("adamax", {}), ("Adamax", {})),
        Algorithm("nadam", "nadam", {}, ("NAdam", {}), ("nadam", {}), ("Nadam", {})),
        Algorithm("radam", "radam", {}, ("RAdam", {}), ("radam", {})),
        Algorithm("clip-adamw", "adamw", decay, **adamw, clips=True),
        Algorithm("clip-adam-cosine", "adam", **adam, clips=True, anneals=True),
    )
    return {a.name: a for a in found}


ALGORITHMS = _algorithms()


def algorithm(name: str) -> Algorithm:
    """Return the algorithm of that name.

    Examples
    --------
    >>> algorithm("clip-adamw").clips
    True
    """
    if name not in ALGORITHMS:
        raise InputError(f"unknown optimizer {name!r}; {nearest(name, ALGORITHMS)}")
    return ALGORITHMS[name]
