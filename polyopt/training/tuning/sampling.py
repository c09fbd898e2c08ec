"""Optuna, asked and told: it proposes values and says which run to give up, and keeps nothing.

Akiba et al., "Optuna: a next-generation hyperparameter optimization framework", 2019. The tree-structured
Parzen estimator is Bergstra et al., "Algorithms for hyper-parameter optimization", 2011, section 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polyopt.core import random
from polyopt.core.errors import BackendError
from polyopt.core.install import pip_install
from polyopt.recipe.tuning import Axis, Choices
from polyopt.training.tuning.study import Study, Trial

STARTUP, WARMUP = 5, 2
"""Trials that are completed before one is given up, and the first epoch after which that may be."""


def optuna() -> Any:
    """Import the module; ``BackendError`` says what to install where it is missing."""
    try:
        import optuna as found
    except ImportError as e:
        raise BackendError(f"tuning needs Optuna ({e}): {pip_install('tune')}") from None
    found.logging.set_verbosity(found.logging.ERROR)
    return found


class Asked:
    """A trial at work: its values, and whether to go on."""

    def __init__(self, asker: Asker, trial: Any, values: Mapping[str, Any]) -> None:
        self._asker, self._trial, self.values = asker, trial, values
        self.number: int = trial.number

    def give_up(self, epoch: int, value: float) -> bool:
        """Report ``value`` after ``epoch`` epochs; whether to give the run up."""
        self._trial.report(value, epoch)
        return bool(self._asker.prune and self._trial.should_prune())


class Asker:
    """An Optuna study in memory that knows the trials of ``study``.

    What trial n tries depends on the seed, on n and on the trials before it alone: the sampler is a new one,
    of a seed of its own, for each.
    """

    def __init__(self, study: Study) -> None:
        self._optuna = optuna()
        section = study.section
        self.prune, self.seed, self._space = section.prune, section.seed, dict(section.space)
        self._distributions = {key: self._distribution(axis) for key, axis in section.space}
        self._study = self._optuna.create_study(
            direction="maximize" if study.metric == "accuracy" else "minimize",
            pruner=self._optuna.pruners.MedianPruner(STARTUP, WARMUP),
        )
        for trial in study.trials:
            self._study.add_trial(self._frozen(trial))

    def ask(self) -> Asked:
        """Begin the next trial."""
        number = len(self._study.get_trials(deepcopy=False))
        seed = int(random.generator(self.seed, "tune", number).integers(2**31))
        self._study.sampler = self._optuna.samplers.TPESampler(seed=seed)
        trial = self._study.ask(self._distributions)
        values = {key: _value(self._space[key], x) for key, x in trial.params.items()}
        return Asked(self, trial, values)

    def tell(self, trial: Trial) -> None:
        """Tell the study how the trial that was asked for ended."""
        state = self._state(trial)
        self._study.tell(trial.number, trial.value if trial.state == "complete" else None, state)

    def _state(self, trial: Trial) -> Any:
        states = self._optuna.trial.TrialState
        return {"complete": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}[trial.state]

    def _frozen(self, trial: Trial) -> Any:
        return self._optuna.trial.create_trial(
            state=self._state(trial),
            value=trial.value,
            params={key: _param(self._space[key], value) for key, value in trial.values.items()},
            distributions=self._distributions,
            intermediate_values=dict(trial.reports),
        )

    def _distribution(self, axis: Axis) -> Any:
        made = self._optuna.distributions
        if isinstance(axis, Choices):
            return made.CategoricalDistribution(range(len(axis.values)))
        if axis.steps is not None:
            # Optuna's own steps end short of high where they do not lead there, and 3 * 0.3 is no 0.9.
            return made.IntDistribution(0, axis.steps)
        kind = made.IntDistribution if axis.whole else made.FloatDistribution
        return kind(axis.low, axis.high, log=axis.log)


def _value(axis: Axis, param: Any) -> Any:
    """Choices go by their place: Optuna knows no lists, and takes 1 for true."""
    if isinstance(axis, Choices):
        return axis.values[param]
    return param if axis.steps is None else axis.after(param)


def _param(axis: Axis, value: Any) -> Any:
    if not isinstance(axis, Choices):
        return value if axis.steps is None else axis.steps_to(value)
    return next(i for i, x in enumerate(axis.values) if type(x) is type(value) and x == value)
