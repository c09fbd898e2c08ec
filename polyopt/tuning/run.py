"""Looking for the best hyperparameters of a recipe."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from polyopt import random, registry
from polyopt.backend import Backend
from polyopt.data import Dataset
from polyopt.errors import InputError, NonFiniteError
from polyopt.recipe import Recipe
from polyopt.training.engine import Engine
from polyopt.tuning import storage
from polyopt.tuning.sampling import Asked, Asker
from polyopt.tuning.study import State, Study, Trial


@dataclass(frozen=True)
class Progress:
    """What is told while it goes on: the study, the number of trials in all, and the one at work.

    ``epoch`` of ``epochs`` are done of trial ``number`` (``None``: only the trial will know how many there
    are); ``ended`` is the trial once it is over.
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
    looked at. The same recipe, backend and device give the same trials, also where it was stopped in between.

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
        Called with a :class:`Progress` after each evaluation and each trial.

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
    samples = validation(recipe)
    # What is wrong whatever is tried is said now.
    Engine(recipe, samples, target, device, "evaluation").start()
    if resume and folder is not None:
        study = storage.load(folder, recipe, target.name)
    asker, tell = Asker(study), on_progress or _ignore
    if folder is not None:
        storage.save(folder, study)
    while len(study.trials) < wanted:
        trial = _Run(study, asker.ask(), samples, target, device).to_the_end(wanted, tell)
        asker.tell(trial)
        study.trials.append(trial)
        if folder is not None:
            storage.save(folder, study)
        epochs = trial.reports[-1][0] if trial.reports else 0
        tell(Progress(study, wanted, trial.number, epochs, epochs, trial))
    return study


def validation(recipe: Recipe) -> Dataset:
    """The recipe's data with a part of its *training* samples as what is tested on.

    Inputs are shifted and scaled by the training samples that are left.
    """
    assert recipe.tune is not None
    section = recipe.data
    whole = section.load()
    count = len(whole.x_train)
    held = int(count * recipe.tune.validation_fraction)
    if not 0 < held < count:
        raise InputError(
            f"tune.validation_fraction = {recipe.tune.validation_fraction!r} leaves a side empty "
            f"({count} training samples)"
        )
    order = random.permutation(count, recipe.tune.seed, f"validation/{section.name}")
    x, y = whole.x_train[order], whole.y_train[order]
    x_train, x_test = x[held:], x[:held]
    if section.standardize:
        # Scaled twice is scaled by the second.
        mean, deviation = x_train.mean(axis=0), x_train.std(axis=0)
        deviation = np.where(deviation > 0, deviation, 1.0)
        x_train, x_test = (x_train - mean) / deviation, (x_test - mean) / deviation
    return replace(whole, x_train=x_train, y_train=y[held:], x_test=x_test, y_test=y[:held])


class _Run:
    """One trial."""

    def __init__(
        self, study: Study, asked: Asked, samples: Dataset, backend: Backend, device: str | None
    ) -> None:
        self.study, self.asked, self.samples = study, asked, samples
        self.backend, self.device = backend, device
        self.reports: list[tuple[int, float]] = []

    def to_the_end(self, trials: int, tell: Listener) -> Trial:
        """Train, report after each evaluation, and stop where told to."""
        begun, reason = time.perf_counter(), None
        state: State = "failed"
        try:
            state = self._advance(trials, tell)
        except (NonFiniteError, InputError) as e:
            reason = str(e)
        value = self.reports[-1][1] if self.reports and state != "failed" else None
        seconds, number = time.perf_counter() - begun, self.asked.number
        return Trial(number, state, value, dict(self.asked.values), tuple(self.reports), seconds, reason)

    def _advance(self, trials: int, tell: Listener) -> State:
        recipe = self.study.recipe.tuned(self.asked.values)
        engine = Engine(recipe, self.samples, self.backend, self.device, "evaluation")
        at = engine.start()
        while not engine.ended(at):
            engine.advance(at)
            if not (engine.due(at) or engine.ended(at)):
                continue
            engine.observe(at)
            found = engine.evaluate(at)
            value = found.test_accuracy if self.study.metric == "accuracy" else found.test_loss
            if value is None or not math.isfinite(found.test_loss):
                raise NonFiniteError(f"the validation loss is {found.test_loss} after epoch {found.epoch}")
            self.reports.append((found.epoch, value))
            tell(Progress(self.study, trials, self.asked.number, found.epoch, engine.epochs))
            if self.asked.give_up(found.epoch, value) and not engine.ended(at):
                return "pruned"
        return "complete"


def _ignore(progress: Progress) -> None:
    pass
