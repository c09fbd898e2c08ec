"""List the hyperparameters that every algorithm is checked with, and its defaults."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from polyopt.core.rule import Rule
from polyopt.schedules import Schedule

CONVENTIONS: Final = ("paper", "torch", "optax", "keras")
_B: Final = {"b1": 0.9, "b2": 0.999}
_EPS: Final = {"paper": 1e-8, "torch": 1e-8, "optax": 1e-8, "keras": 1e-7}
_L2: Final = {"paper": "l2", "torch": "l2", "optax": "none", "keras": "decoupled"}


def _each(**fields: Any) -> dict[str, dict[str, Any]]:
    """Defaults by convention: a mapping with the conventions' names is looked up, all else is shared."""
    return {c: {k: v[c] if isinstance(v, Mapping) else v for k, v in fields.items()} for c in CONVENTIONS}


_ADAM: Final = _each(**_B, eps=_EPS, decay=_L2)
_SGD: Final = _each(decay=_L2)
DEFAULTS: Final[dict[str, dict[str, dict[str, Any]]]] = {
    "adadelta": _each(
        rho={"paper": 0.95, "torch": 0.9, "optax": 0.9, "keras": 0.95},
        eps={"paper": 1e-6, "torch": 1e-6, "optax": 1e-6, "keras": 1e-7},
        decay=_L2 | {"optax": "l2"},
    ),
    "adagrad": _each(
        eps={"paper": 1e-10, "torch": 1e-10, "optax": 1e-7, "keras": 1e-7},
        initial_accumulator={"paper": 0.0, "torch": 0.0, "optax": 0.1, "keras": 0.1},
        decay=_L2,
    ),
    "adam": _ADAM,
    "adamax": _each(**_B, eps=_EPS | {"paper": 0.0}, decay=_L2),
    "adamw": _each(
        **_B,
        eps=_EPS,
        decay="decoupled",
        weight_decay={"paper": 1e-2, "torch": 1e-2, "optax": 1e-4, "keras": 4e-3},
    ),
    "gradient_descent": _SGD,
    "nadam": _each(
        b1={"paper": 0.99, "torch": 0.9, "optax": 0.9, "keras": 0.9},
        b2=0.999,
        eps=_EPS,
        momentum_decay={"paper": 0.004, "torch": 0.004, "optax": 0.0, "keras": 1.0},
        decay=_L2,
    ),
    "radam": {c: v for c, v in _ADAM.items() if c != "keras"},
    "rmsprop": _each(alpha={"paper": 0.9, "torch": 0.99, "optax": 0.9, "keras": 0.9}, eps=_EPS, decay=_L2),
    "sgd": _SGD,
}
"""What the fields are where the user sets nothing (from the papers and the frameworks' signatures)."""

RATES: Final = {
    "torch": {"sgd": 1e-3, "gradient_descent": 1e-3, "adagrad": 1e-2, "adadelta": 1.0, "rmsprop": 1e-2}
    | {"adamax": 2e-3, "nadam": 2e-3, "adam": 1e-3, "adamw": 1e-3, "radam": 1e-3},
    "keras": {"sgd": 1e-2, "gradient_descent": 1e-2}
    | dict.fromkeys(("adagrad", "adadelta", "rmsprop", "adamax", "nadam", "adam", "adamw"), 1e-3),
    "paper": {"adam": 1e-3, "adamax": 2e-3, "nadam": 2e-3, "radam": 1e-3, "adamw": 1e-3, "rmsprop": 1e-3},
    "optax": {},
}
"""Default rates; optax has none."""

_DECAYED: Final = {"weight_decay": 0.0625}
_MOMENTUM: Final = ({"momentum": 0.875}, {"momentum": 0.875, "nesterov": True})
VARIANTS: Final[dict[str, tuple[dict[str, Any], ...]]] = {
    "adadelta": ({}, _DECAYED),
    "adagrad": ({}, {"lr_decay": 0.125}, _DECAYED),
    "adam": ({}, {"amsgrad": True, "b2": 0.9}, {"eps_root": 1e-4}, _DECAYED),
    "adamax": ({"eps": 1e-4}, {"b2": 0.9, "eps": 1e-4, **_DECAYED}),
    "adamw": ({}, {"amsgrad": True, "b2": 0.9, **_DECAYED}),
    "gradient_descent": ({},),
    "nadam": ({}, {**_DECAYED, "b1": 0.75}, {**_DECAYED, "decay": "decoupled"}),
    "radam": ({}, {**_DECAYED, "b2": 0.9}, {**_DECAYED, "decay": "decoupled"}),
    "rmsprop": (
        {},
        {"momentum": 0.875},
        {"centered": True, "eps": 1e-4},
        {"centered": True, "momentum": 0.75, "eps": 1e-4, **_DECAYED},
    ),
    "sgd": (
        {},
        *_MOMENTUM,
        {"momentum": 0.875, "dampening": 0.5},
        {"momentum": 0.875, "form": "averaged"},
        {"momentum": 0.875, "nesterov": True, **_DECAYED},
    ),
}
"""Fields that a case sets, for every convention to which they apply (see ``applies``)."""


def applies(algorithm: str, convention: str, fields: Mapping[str, Any]) -> bool:
    """Return True if the convention has such a switch at all."""
    if (
        "weight_decay" in fields
        and DEFAULTS[algorithm][convention]["decay"] == "none"
        and "decay" not in fields
    ):
        return False
    if fields.get("decay") and convention not in ("torch", "paper"):
        return False
    if "lr_decay" in fields or "dampening" in fields:
        return convention in ("paper", "torch")
    if "eps_root" in fields:
        return convention == "optax"
    return not (fields.get("form") == "averaged" and convention != "paper")


@dataclass(frozen=True)
class Halved(Schedule):
    """``first``, and half of what it was at each update of ``at``: a constant rate hides differences."""

    first: float
    at: tuple[int, ...]

    def value(self, xp: Any, t: Any) -> Any:
        """Return ``first``, halved at each step of ``at``."""
        rate = self.first
        for k in self.at:
            rate = xp.where(t < k, rate, 0.5 * rate)
        return rate


RATE: Final = 0.03125
"""The rate of every case: exact in float32, in which Keras keeps it."""


@dataclass(frozen=True)
class Setting:
    """An algorithm in a convention with the fields of one variant."""

    algorithm: str
    convention: str
    fields: tuple[tuple[str, Any], ...]

    def rule(self, lr: Any = RATE) -> Rule:
        """Make the rule, with this rate."""
        from polyopt.optim import OPTIMIZERS

        kind: Any = OPTIMIZERS[self.algorithm]
        rule: Rule = kind(convention=self.convention, lr=lr, **dict(self.fields))
        return rule

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Return all that a reference needs: the expected defaults under the variant's fields."""
        return DEFAULTS[self.algorithm][self.convention] | dict(self.fields)

    def __str__(self) -> str:
        shown = ", ".join(f"{k}={v}" for k, v in self.fields)
        return f"{self.algorithm}({self.convention}{', ' + shown if shown else ''})"


def pairs() -> Iterator[tuple[str, str]]:
    """Yield every algorithm of OPTIMIZERS with each of its conventions."""
    from polyopt.optim import OPTIMIZERS

    for algorithm, rule in sorted(OPTIMIZERS.items()):
        for convention in rule.CONVENTIONS or ("paper",):
            yield algorithm, convention


def settings(algorithm: str, convention: str, *, sparse: bool = False) -> list[Setting]:
    """Return the cases of one algorithm and convention; none where the kit knows none.

    ``sparse``: all but the first of an algorithm in one convention alone, in turn.
    """
    known = DEFAULTS.get(algorithm, {})
    if convention not in known:
        return []
    found = []
    for i, fields in enumerate(VARIANTS.get(algorithm, ())):
        having = [c for c in known if applies(algorithm, c, fields)]
        chosen = having[i % len(having)] if sparse and i else convention
        if convention in having and convention == chosen:
            found.append(Setting(algorithm, convention, tuple(fields.items())))
    return found
