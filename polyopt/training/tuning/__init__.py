"""Looking for hyperparameters: the ``[tune]`` section of a recipe, run."""

from __future__ import annotations

from polyopt.training.tuning.run import Progress as Progress
from polyopt.training.tuning.run import tune as tune
from polyopt.training.tuning.storage import BEST as BEST
from polyopt.training.tuning.storage import STUDY as STUDY
from polyopt.training.tuning.study import Study as Study
from polyopt.training.tuning.study import Trial as Trial
