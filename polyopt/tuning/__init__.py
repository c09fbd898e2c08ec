"""Looking for hyperparameters: the ``[tune]`` section of a recipe, run."""

from __future__ import annotations

from polyopt.tuning.run import Progress as Progress
from polyopt.tuning.run import tune as tune
from polyopt.tuning.storage import BEST as BEST
from polyopt.tuning.storage import STUDY as STUDY
from polyopt.tuning.study import Study as Study
from polyopt.tuning.study import Trial as Trial
