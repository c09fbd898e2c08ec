"""Schedules: a value for every step, usable for any hyperparameter.

A schedule is a pure function of the number of updates made so far: 0 for the first. ``SCHEDULES`` maps the
names that recipes use to the classes.
"""

from __future__ import annotations

from polyopt.core.schedule import Measured as Measured
from polyopt.core.schedule import Schedule as Schedule
from polyopt.schedules.compose import Joined as Joined
from polyopt.schedules.compose import Warmup as Warmup
from polyopt.schedules.compose import WarmupCosine as WarmupCosine
from polyopt.schedules.compose import WarmupStableDecay as WarmupStableDecay
from polyopt.schedules.cycle import Cosine as Cosine
from polyopt.schedules.cycle import OneCycle as OneCycle
from polyopt.schedules.cycle import WarmRestarts as WarmRestarts
from polyopt.schedules.decay import Constant as Constant
from polyopt.schedules.decay import Exponential as Exponential
from polyopt.schedules.decay import InverseTime as InverseTime
from polyopt.schedules.decay import MultiStep as MultiStep
from polyopt.schedules.decay import Piecewise as Piecewise
from polyopt.schedules.decay import Polynomial as Polynomial
from polyopt.schedules.decay import Step as Step
from polyopt.schedules.plateau import Plateau as Plateau

SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "cosine": Cosine,
    "exponential": Exponential,
    "inverse_time": InverseTime,
    "joined": Joined,
    "multi_step": MultiStep,
    "one_cycle": OneCycle,
    "piecewise": Piecewise,
    "plateau": Plateau,
    "polynomial": Polynomial,
    "step": Step,
    "warm_restarts": WarmRestarts,
    "warmup": Warmup,
    "warmup_cosine": WarmupCosine,
    "warmup_stable_decay": WarmupStableDecay,
}
