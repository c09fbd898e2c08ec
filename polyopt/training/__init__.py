"""Running recipes: on one backend, or on several to see how far apart they come."""

from __future__ import annotations

from polyopt.training.compare import Comparison as Comparison
from polyopt.training.compare import Pair as Pair
from polyopt.training.compare import compare as compare
from polyopt.training.events import Evaluation as Evaluation
from polyopt.training.events import Event as Event
from polyopt.training.events import History as History
from polyopt.training.events import PhaseResult as PhaseResult
from polyopt.training.events import Result as Result
from polyopt.training.run import train as train
from polyopt.training.run_folder import CHECKPOINT as CHECKPOINT
from polyopt.training.run_folder import HISTORY as HISTORY
from polyopt.training.run_folder import MODEL as MODEL
from polyopt.training.run_folder import RECIPE as RECIPE
