"""Know other libraries' names for what is here, for the errors of those who come from them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Mapping
from typing import Any, Final, NoReturn, Self

from polyopt.core.errors import InputError, RuleError, nearest, readable

FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "T": ("temperature",),
    "T_0": ("steps",),
    "T_max": ("steps",),
    "T_mult": ("factor",),
    "base_lr": ("initial",),
    "beta": ("momentum", "b1"),
    "beta_1": ("b1", "momentum"),
    "beta_2": ("b2", "alpha"),
    "betas": ("b1 b2",),
    "boundaries_and_scales": ("boundaries values",),
    "clip_factor": ("clipping",),
    "clip_norm": ("max_norm",),
    "clip_value": ("max_value min_value",),
    "decay": ("alpha", "rho", "weight_decay"),
    "decay_rate": ("rate",),
    "decay_steps": ("steps",),
    "decoupled_weight_decay": ("decay",),
    "div_factor": ("div",),
    "end_factor": ("end",),
    "end_learning_rate": ("end",),
    "end_value": ("end",),
    "every_k_schedule": ("accumulate",),
    "epsilon": ("eps",),
    "eta_min": ("end",),
    "final_div_factor": ("final_div",),
    "first_decay_steps": ("steps",),
    "gamma": ("rate",),
    "grad_accum": ("accumulate",),
    "gradient_accumulation_steps": ("accumulate",),
    "init_value": ("initial",),
    "initial_accumulator_value": ("initial_accumulator",),
    "initial_learning_rate": ("initial",),
    "l2": ("weight_decay",),
    "lambd": ("weight_decay",),
    "learning_rate": ("lr", "initial", "peak"),
    "lora_alpha": ("alpha",),
    "loss_fn": ("loss",),
    "lr": ("initial", "peak"),
    "m_mul": ("peak_factor",),
    "max_delta": ("max_value",),
    "max_grad_norm": ("max_norm",),
    "max_lr": ("peak",),
    "min_lr": ("minimum", "end"),
    "mu": ("momentum", "b1"),
    "num_training_steps": ("steps",),
    "num_warmup_steps": ("warmup", "steps"),
    "opt": ("optimizer",),
    "peak_value": ("peak",),
    "r": ("rank",),
    "rho": ("alpha",),
    "start_factor": ("initial",),
    "step_size": ("steps", "lr"),
    "t_mul": ("factor",),
    "target_modules": ("patterns",),
    "tau": ("temperature",),
    "total_iters": ("steps",),
    "total_steps": ("steps",),
    "transition_steps": ("steps",),
    "value": ("max_value", "initial"),
    "warmup_steps": ("warmup", "steps"),
    "warmup_target": ("then",),
    "wd": ("weight_decay",),
    "weight_decay_rate": ("weight_decay",),
}
"""Arguments of torch.optim, optax and Keras: the fields that they may be here, the likeliest first."""

_FAST = "leave it out: an update is one compiled kernel anyway"
_HELD = "accumulate with Optimizer(rule, accumulate=4)"

ELSEWHERE: Final[Mapping[str, str]] = {
    "clipnorm": "put ClipByNorm(max_norm) before it: chain(ClipByNorm(1.0), rule)",
    "clipvalue": "put ClipByValue(max_value) before it: chain(ClipByValue(1.0), rule)",
    "dtype": "the dtype is that of the parameters; slots are kept in float32 at least",
    "ema_momentum": "put EMA(decay) after it: chain(rule, EMA(0.999))",
    "foreach": _FAST,
    "fused": _FAST,
    "global_clipnorm": "put ClipByGlobalNorm(max_norm) before it: chain(ClipByGlobalNorm(1.0), rule)",
    "grad_accum": _HELD,
    "gradient_accumulation_steps": _HELD,
    "jit_compile": "an Optimizer compiles unless compiled=False is given",
    "lr": "the rate belongs to a rule, such as SGD(lr=0.1)",
    "maximize": "give the loss the other sign",
    "nesterov": "NAdam is Adam with Nesterov's momentum",
    "params": "parameters are given to Optimizer(rule).init and .step",
    "staircase": "Step falls in steps",
    "use_ema": "put EMA(decay) after it: chain(rule, EMA(0.999))",
    "verbose": "Optimizer.hyperparameters(state) returns the values of the coming step",
}
"""Arguments of the others that are no fields of a rule or a schedule here: what takes their place."""

METHODS: Final[Mapping[str, str]] = {
    "add_param_group": "partition({pattern: rule}) gives each parameter its rule",
    "apply_gradients": "use step(params, gradients, state)",
    "load_state_dict": "give the state to step",
    "minimize": "use step(params, gradients, state), or TrainStep(loss, optimizer)",
    "param_groups": "partition({pattern: rule}) gives each parameter its rule",
    "state_dict": "the state is what init and step return, plain data",
    "zero_grad": "no gradients are kept: value_and_grad returns new ones",
}
"""Methods of the others' optimizers: what takes their place in ``Optimizer``."""

NAMES: Final[Mapping[str, str]] = {
    "Adagrad": "AdaGrad",
    "AveragedModel": "PolyakAverage",
    "Constant": "polyopt.schedules.Constant",
    "ConstantLR": "polyopt.schedules.Constant",
    "CosineAnnealingLR": "Cosine",
    "CosineAnnealingWarmRestarts": "WarmRestarts",
    "CosineDecay": "Cosine",
    "CosineDecayRestarts": "WarmRestarts",
    "CrossEntropyLoss": "polyopt.models.losses.cross_entropy",
    "EMAWeights": "EMA",
    "ExponentialDecay": "Exponential",
    "ExponentialLR": "Exponential",
    "ExponentialMovingAverage": "EMA",
    "InverseTimeDecay": "InverseTime",
    "LambdaLR": "Schedule",
    "LinearLR": "Warmup",
    "MSELoss": "polyopt.models.losses.mean_squared_error",
    "Momentum": "SGD",
    "MultiStepLR": "MultiStep",
    "MultiSteps": "Optimizer",
    "Nadam": "NAdam",
    "OneCycleLR": "OneCycle",
    "PiecewiseConstantDecay": "Piecewise",
    "PolynomialDecay": "Polynomial",
    "PolynomialLR": "Polynomial",
    "ReduceLROnPlateau": "Plateau",
    "SWA": "PolyakAverage",
    "SequentialLR": "Joined",
    "StepLR": "Step",
    "accuracy": "polyopt.models.losses.accuracy",
    "adaptive_grad_clip": "AdaptiveGradientClip",
    "add_decayed_weights": "AddDecayedWeights",
    "apply_if_finite": "Optimizer",
    "apply_updates": "apply",
    "checkpoint": "polyopt.checkpoint.save",
    "clip": "ClipByValue",
    "clip_by_block_rms": "ClipByNorm",
    "clip_by_global_norm": "ClipByGlobalNorm",
    "clip_grad_norm": "ClipByGlobalNorm",
    "clip_grad_norm_": "ClipByGlobalNorm",
    "clip_grad_value_": "ClipByValue",
    "constant_schedule": "polyopt.schedules.Constant",
    "cosine_decay_schedule": "Cosine",
    "cosine_onecycle_schedule": "OneCycle",
    "cross_entropy": "polyopt.models.losses.cross_entropy",
    "distill": "SoftTargets",
    "exponential_decay": "Exponential",
    "get_cosine_schedule_with_warmup": "WarmupCosine",
    "get_linear_schedule_with_warmup": "Warmup",
    "grad": "value_and_grad",
    "join_schedules": "Joined",
    "linear_onecycle_schedule": "OneCycle",
    "linear_schedule": "Polynomial",
    "load": "polyopt.checkpoint.load",
    "losses": "polyopt.models.losses",
    "mean_squared_error": "polyopt.models.losses.mean_squared_error",
    "mse": "polyopt.models.losses.mean_squared_error",
    "multi_transform": "partition",
    "piecewise_constant_schedule": "Piecewise",
    "polyak": "PolyakAverage",
    "polynomial_schedule": "Polynomial",
    "prune": "polyopt.pruning.magnitude_masks",
    "save": "polyopt.checkpoint.save",
    "scale_by_adam": "Adam",
    "set_to_zero": "freeze",
    "sgdr_schedule": "WarmRestarts",
    "to_numpy": "convert",
    "warmup_cosine_decay_schedule": "WarmupCosine",
}
"""Public names of torch.optim, optax and Keras: what they are called here, and names of polyopt's modules."""

# fmt: off
ABSENT: Final = frozenset((
    "ASGD", "AdaBelief", "Adafactor", "AdamaxW", "Ftrl", "LAMB", "LARS", "LBFGS", "LION", "Lamb", "Lars",
    "Lion", "Muon", "NovoGrad", "Prodigy", "Rprop", "SM3", "Shampoo", "SparseAdam", "Yogi",
))
# fmt: on
"""Algorithms of the others that polyopt has not."""


def called(name: str, known: Mapping[str, str], valid: Iterable[str] = ()) -> str:
    """Return a hint for ``name``, which is none of ``valid``: its name here, or the nearest one.

    Parameters
    ----------
    name
        What the user wrote.
    known
        What other libraries' names are called here, such as ``NAMES``.
    valid
        The names there are.

    Returns
    -------
    str
        The end of an error message.

    Examples
    --------
    >>> called("ReduceLROnPlateau", NAMES, ["Plateau"])
    "it is called 'Plateau' here"
    >>> called("learningRate", {}, ["lr", "learning_rate"])
    "it is called 'learning_rate' here"
    """
    valid = list(valid)
    if name in ABSENT:
        return "polyopt doesn't have this algorithm; docs/rules.md shows how to write it as a rule"
    found = known.get(name) or next((x for x in valid if _plain(x) == _plain(name)), None)
    return nearest(name, valid) if found is None else f"it is called {found!r} here"


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def keyword(name: str, valid: Iterable[str]) -> str:
    """Return a hint for an argument ``name`` that is none of ``valid``: other libraries' name for one, say.

    Parameters
    ----------
    name
        What the user wrote.
    valid
        The arguments there are.

    Returns
    -------
    str
        The end of an error message.

    Examples
    --------
    >>> keyword("betas", ["lr", "b1", "b2"])
    "it is called 'b1' and 'b2' here"
    >>> keyword("maximize", ["lr"])
    'give the loss the other sign'
    """
    valid = list(valid)
    known = next((x for other, x in FIELDS.items() if _plain(other) == _plain(name)), ())
    for fields in map(str.split, known):
        if set(fields) <= set(valid):
            return f"it is called {' and '.join(map(repr, fields))} here"
    return ELSEWHERE.get(name) or called(name, {}, valid)


def check_decorated(kind: type) -> None:
    """Refuse a class whose fields were declared but for ``@dataclass`` before it: they would be ignored.

    Raises
    ------
    RuleError
        It names a field.
    """
    if "__dataclass_fields__" in vars(kind):
        return
    for name, value in vars(kind).items():
        if isinstance(value, dataclasses.Field):
            raise RuleError(
                f"{kind.__name__} is not a dataclass, so {name!r} is no field of it; put "
                "@dataclass(frozen=True) before the class"
            )


class CheckedKeywords:
    """Refuse keyword arguments that the constructor of a subclass doesn't take.

    Raises
    ------
    InputError
        It names the argument, and what it is called here.

    Examples
    --------
    >>> from polyopt import Adam
    >>> Adam(learning_rate=0.1)
    Traceback (most recent call last):
    ...
    polyopt.core.errors.InputError: Adam has no 'learning_rate'; it is called 'lr' here
    """

    def __new__(cls, *args: Any, **keywords: Any) -> Self:
        """Make an instance, if its class takes such arguments."""
        if keywords:
            valid = _arguments(cls)
            for name in keywords:
                if name not in valid:
                    check_decorated(cls)
                    raise InputError(f"{cls.__name__} has no {name!r}; {keyword(name, valid)}")
        return super().__new__(cls)


def _arguments(kind: type) -> list[str]:
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind) if field.init]
    return list(inspect.signature(kind.__init__).parameters)[1:]  # type: ignore[misc]


class HintedMethods(CheckedKeywords):
    """Refuse methods of other libraries' optimizers, with what takes their place."""

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):  # asked by copies and pickles
            raise AttributeError(name)
        hint = METHODS.get(name) or nearest(name, [x for x in dir(self) if not x.startswith("_")])
        raise AttributeError(readable(f"{type(self).__name__} has no {name!r}; {hint}"))


def instead(found: Any) -> str:
    """Return what to give where a rule, a chain or a partition is expected and ``found`` was given.

    Parameters
    ----------
    found
        What is none of them.

    Returns
    -------
    str
        ``found``, cut short, and a hint, where there is one.

    Examples
    --------
    >>> from polyopt import Adam
    >>> instead(Adam)
    'the class Adam; give an instance of it: Adam(...)'
    """
    if isinstance(found, type):
        return f"the class {found.__name__}; give an instance of it: {found.__name__}(...)"
    root = type(found).__module__.split(".")[0]
    if isinstance(found, list | tuple) and root == "builtins":
        hint = "; put rules one after the other with chain(...)"
    elif isinstance(found, str):
        hint = "; give an object, such as Adam(lr=1e-3)"
    elif root in ("torch", "optax", "keras", "tensorflow"):
        hint = f"; {root}'s don't run here: give polyopt's, such as Adam(lr=1e-3)"
    elif hasattr(found, "extremes"):
        hint = "; give a schedule to a rule: SGD(lr=schedule)"
    elif hasattr(found, "rule"):
        hint = "; give its rule"
    else:
        hint = ""
    text = " ".join(repr(found).split())
    return (text if len(text) <= 80 else f"{text[:77]}...") + hint
