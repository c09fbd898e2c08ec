"""Know other libraries' names for what is here, for the errors of those who come from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from polyopt.core.errors import InputError, nearest

FIELDS: Final[Mapping[str, str]] = {
    "alpha": "'decay' (RMSprop) or 'lr'",
    "amsgrad": "'amsgrad' of Adam and AdamW",
    "beta1": "'b1'",
    "beta2": "'b2'",
    "beta_1": "'b1'",
    "beta_2": "'b2'",
    "betas": "'b1' and 'b2'",
    "decay_steps": "'steps'",
    "epsilon": "'eps'",
    "gamma": "'rate'",
    "init_value": "'initial'",
    "initial_learning_rate": "'initial'",
    "learning_rate": "'lr'",
    "params": "nothing: parameters are given to Optimizer(rule).init and .step",
    "rho": "'decay'",
    "T_max": "'steps'",
    "total_steps": "'steps'",
    "transition_steps": "'steps'",
}
"""Arguments of torch.optim, optax and Keras: what they are called here."""

NAMES: Final[Mapping[str, str]] = {
    "Adagrad": "AdaGrad",
    "CosineAnnealingLR": "Cosine",
    "CosineAnnealingWarmRestarts": "WarmRestarts",
    "CosineDecay": "Cosine",
    "CosineDecayRestarts": "WarmRestarts",
    "EMAWeights": "EMA",
    "ExponentialDecay": "Exponential",
    "ExponentialLR": "Exponential",
    "ExponentialMovingAverage": "EMA",
    "InverseTimeDecay": "InverseTime",
    "LinearLR": "Warmup",
    "Momentum": "SGD",
    "MultiStepLR": "MultiStep",
    "MultiSteps": "Optimizer",
    "Nadam": "NAdam",
    "OneCycleLR": "OneCycle",
    "PiecewiseConstantDecay": "Piecewise",
    "PolynomialDecay": "Polynomial",
    "PolynomialLR": "Polynomial",
    "ReduceLROnPlateau": "Plateau",
    "SequentialLR": "Joined",
    "StepLR": "Step",
    "add_decayed_weights": "AddDecayedWeights",
    "clip_by_global_norm": "ClipByGlobalNorm",
    "clip_grad_norm_": "ClipByGlobalNorm",
    "clip_grad_value_": "ClipByValue",
    "join_schedules": "Joined",
    "piecewise_constant_schedule": "Piecewise",
    "warmup_cosine_decay_schedule": "WarmupCosine",
}
"""Public names of torch.optim, optax and Keras: what they are called here."""


def called(name: str, known: Mapping[str, str], valid: Iterable[str] = ()) -> str:
    """Return a hint for ``name``, which is none of ``valid``: its name here, or the nearest one.

    Parameters
    ----------
    name
        What the user wrote.
    known
        Names of other libraries: ``FIELDS`` or ``NAMES``.
    valid
        The names there are.

    Returns
    -------
    str
        The end of an error message.

    Examples
    --------
    >>> called("betas", FIELDS)
    "it is called 'b1' and 'b2' here"
    >>> called("learningRate", FIELDS, ["lr", "learning_rate"])
    "it is called 'learning_rate' here"
    """
    valid = list(valid)
    plain = name.replace("_", "").lower()
    found = known.get(name) or next((x for x in valid if x.replace("_", "").lower() == plain), None)
    if found is None:
        return nearest(name, valid)
    return f"it is called {found if found.startswith(QUOTED) else repr(found)} here"


QUOTED = ("'", "nothing")


def check_keywords(kind: type, keywords: Iterable[str]) -> None:
    """Refuse names that are no fields of the dataclass ``kind``.

    Raises
    ------
    InputError
        It names the field, and what it is called here.

    Examples
    --------
    >>> from polyopt import Adam
    >>> Adam(learning_rate=0.1)
    Traceback (most recent call last):
    ...
    polyopt.core.errors.InputError: Adam has no 'learning_rate'; it is called 'lr' here
    """
    fields: dict[str, Any] = getattr(kind, "__dataclass_fields__", {})
    valid = [name for name, field in fields.items() if getattr(field, "init", False)]
    for name in keywords:
        if name not in valid:
            raise InputError(f"{kind.__name__} has no {name!r}; {called(name, FIELDS, valid)}")
