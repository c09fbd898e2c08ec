"""Looking for the best hyperparameters of a recipe."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from polyopt.backend import registry
from polyopt.backend.protocol import Backend
from polyopt.core import random
from polyopt.core.errors import InputError, NonFiniteError
from polyopt.models.datasets import Dataset
from polyopt.recipe import Recipe
from polyopt.recipe.sections import Data
from polyopt.recipe.tuning import Tune, first_phase, reaches_phases
from polyopt.training.events import Event, Result
from polyopt.training.loop import Listener as EventListener
from polyopt.training.phase_runner import PhaseRunner
from polyopt.training.phases.plan import PhasePlan, tasks
from polyopt.training.phases.setup import ModelState
from polyopt.training.trainer import Trainer
from polyopt.training.tuning import storage
from polyopt.training.tuning.sampling import Asked, Asker
from polyopt.training.tuning.study import State, Study, Trial


@dataclass(frozen=True)
class Progress:
    """Tell how far a study is: its trials so far, their number in all, and the one at work.

    Parameters
    ----------
    study
        The trials so far.
    trials
        Their number in all.
    number
        The trial at work.
    epoch
        How many epochs of it are done, of the phase at work and of those before it.
    epochs
        How many it has, where that is known beforehand.
    ended
        The trial once it is over.
    """

    study: Study
    trials: int
    number: int
    epoch: int
    epochs: int | None
    ended: Trial | None = None


Listener: TypeAlias = Callable[[Progress], None]


def tune(
    recipe: Recipe,
    *,
    backend: str | Backend | None = None,
    device: str | None = None,
    out: str | Path | None = None,
    trials: int | None = None,
    resume: bool = False,
    on_progress: Listener | None = None,
) -> Study:
    """Look for the hyperparameters that ``recipe``'s ``[tune]`` names.

    Each trial trains on a part of the training samples and is judged on the rest; the test samples are not
    looked at. Where a key of a phase is looked for, a trial goes through the phases, and what the last one
    leaves is judged; the runs before the first such phase are made once, for all trials. The same recipe,
    backend and device give the same trials, also where it was stopped in between.

    Parameters
    ----------
    recipe
        With a section ``[tune]``.
    backend, device
        Where: by default the default backend and its default device.
    out
        A folder that gets ``study.json`` after each trial, and ``best.toml``.
    trials
        In all, those made before a ``resume`` among them, in the place of ``tune.trials``.
    resume
        Go on with the study in ``out``, which must be of this recipe and backend.
    on_progress
        Called with a ``Progress`` after each evaluation and each trial.

    Returns
    -------
    Study
        All trials, the best one first by ``ranked``.

    Raises
    ------
    InputError, BackendError
        For what can't be tuned, before anything is written. A trial that meets a number that is not finite,
        or whose values don't go together, has failed, and the search goes on.
    KeyboardInterrupt
        After Ctrl-C; what was finished is saved, the trial at work is not.

    Examples
    --------
    >>> recipe = Recipe.from_dict({
    ...     "data": {"name": "diabetes"},
    ...     "model": {"name": "linear"},
    ...     "optimizer": {"name": "gradient_descent", "lr": 0.1},
    ...     "train": {"epochs": 20, "batch_size": "full"},
    ...     "tune": {"space": {"optimizer.lr": {"low": 1e-4, "high": 0.3, "log": True}}},
    ... })
    >>> study = tune(recipe, backend="numpy", trials=4)
    >>> len(study.trials), study.best_recipe().name, study.best.value < 5000
    (4, 'recipe-best', True)
    """
    target = registry.get_backend(backend) if backend is None or isinstance(backend, str) else backend
    study = Study(recipe, target.name)
    wanted = study.section.trials if trials is None else trials
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
        raise InputError(f"trials = {wanted!r}; expected an integer >= 1")
    folder = None if out is None else Path(out)
    if resume and folder is None:
        raise InputError("resume: give the folder of the study as out")
    target.device(device)
    if recipe.dtype == "float64":
        target.enable_float64()
    shared = _Trials(study, target, device)
    if resume and folder is not None:
        shared.study = study = storage.load(folder, recipe, target.name)
    asker, tell = Asker(study), on_progress or _ignore
    if folder is not None:
        storage.save(folder, study)
    while len(study.trials) < wanted:
        trial = _Run(shared, asker.ask(), wanted, tell).to_the_end()
        asker.tell(trial)
        study.trials.append(trial)
        if folder is not None:
            storage.save(folder, study)
        epochs = trial.reports[-1][0] if trial.reports else 0
        tell(Progress(study, wanted, trial.number, epochs, epochs, trial))
    return study


def validation(section: Data, tune: Tune) -> Dataset:
    """Make a recipe's data with a part of its *training* samples as what is tested on.

    Inputs are shifted and scaled by the training samples that are left.
    """
    whole = section.load()
    count = len(whole.x_train)
    held = int(count * tune.validation_fraction)
    if not 0 < held < count:
        raise InputError(
            f"tune.validation_fraction = {tune.validation_fraction!r} leaves a side empty "
            f"({count} training samples)"
        )
    order = random.permutation(count, tune.seed, f"validation/{section.name}")
    x, y = whole.x_train[order], whole.y_train[order]
    x_train, x_test = x[held:], x[:held]
    if section.standardize:
        # Scaled twice is scaled by the second.
        mean, deviation = x_train.mean(axis=0), x_train.std(axis=0)
        deviation = np.where(deviation > 0, deviation, 1.0)
        x_train, x_test = (x_train - mean) / deviation, (x_test - mean) / deviation
    return replace(whole, x_train=x_train, y_train=y[held:], x_test=x_test, y_test=y[:held])


class _GivenUpError(Exception):
    """Out of a run that is not worth its end."""


class _Trials:
    """Share among trials: the samples, and the phases before the first that depends on the search."""

    def __init__(self, study: Study, backend: Backend, device: str | None) -> None:
        self.study, self.backend, self.device = study, backend, device
        self._samples: dict[Data, Dataset] = {}
        self._before: dict[str, ModelState] | None = None
        # What is wrong whatever is tried is said now.
        recipe = self._made({})
        base, *_ = tasks(recipe, self._of)
        Trainer(base.recipe, base.dataset, backend, device, "evaluation").start()

    def run(self, values: Mapping[str, Any], listener: EventListener) -> Result:
        """Make a run, or a chain of them, with these values."""
        recipe, first = self._made(values), first_phase(self.study.section.space)
        found = tasks(recipe, self._of)
        if self._before is None:
            early = self._chain(recipe, found[:first], _ignore)
            if first:
                early.run(None)
            self._before = early.before
        chain = self._chain(recipe, found[first:], listener)
        chain.before |= self._before
        return chain.run(None)

    def _chain(self, recipe: Recipe, of: list[PhasePlan], listener: EventListener) -> PhaseRunner:
        return PhaseRunner(
            recipe,
            of,
            self.backend,
            self.device,
            out=None,
            resume=False,
            record="evaluation",
            listener=listener,
            checkpoint_seconds=math.inf,
            snapshots=0,
        )

    def _made(self, values: Mapping[str, Any]) -> Recipe:
        recipe = self.study.recipe.tuned(values)
        return recipe if reaches_phases(self.study.section.space) else recipe.of_phase(0)

    def _of(self, recipe: Recipe) -> Dataset:
        if recipe.data not in self._samples:
            self._samples[recipe.data] = validation(recipe.data, self.study.section)
        return self._samples[recipe.data]


class _Run:
    """One trial."""

    def __init__(self, of: _Trials, asked: Asked, trials: int, tell: Listener) -> None:
        self.of, self.study, self.asked, self.trials, self.tell = of, of.study, asked, trials, tell
        self.reports: list[tuple[int, float]] = []
        self._phase, self._epochs = "", 0

    def to_the_end(self) -> Trial:
        """Train, report after each evaluation, and stop where told to."""
        begun, reason, value = time.perf_counter(), None, None
        state: State = "complete"
        try:
            done = self.of.run(self.asked.values, self._heard)
            value = self._value(done.test_loss, done.test_accuracy)
        except _GivenUpError:
            state, value = "pruned", self.reports[-1][1]
        except (NonFiniteError, InputError) as e:
            state, reason = "failed", str(e)
        seconds, number = time.perf_counter() - begun, self.asked.number
        return Trial(number, state, value, dict(self.asked.values), tuple(self.reports), seconds, reason)

    def _heard(self, event: Event) -> None:
        if event.phase != self._phase:
            self._phase, self._epochs = event.phase, self.reports[-1][0] if self.reports else 0
        if event.kind != "evaluated" or event.evaluation is None or event.steps == 0:
            return
        found = event.evaluation
        epoch, value = self._epochs + found.epoch, self._value(found.test_loss, found.test_accuracy)
        self.reports.append((epoch, value))
        epochs = None if event.epochs is None else self._epochs + event.epochs
        self.tell(Progress(self.study, self.trials, self.asked.number, epoch, epochs))
        if self.asked.give_up(epoch, value) and not _at_its_end(event):
            raise _GivenUpError

    def _value(self, loss: float, accuracy: float | None) -> float:
        value = accuracy if self.study.metric == "accuracy" else loss
        if value is None or not math.isfinite(loss):
            raise NonFiniteError(f"the validation loss is {loss}")
        return value


def _at_its_end(event: Event) -> bool:
    if event.steps is not None:
        return event.step >= event.steps
    return event.total_samples is not None and event.samples >= event.total_samples


def _ignore(told: Any) -> None:
    pass
