"""Hold the trials of a study and their outcomes as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from polyopt.core.errors import InputError
from polyopt.recipe import Recipe
from polyopt.recipe.tuning import Tune

State: TypeAlias = Literal["complete", "pruned", "failed"]
STATES: tuple[State, ...] = ("complete", "pruned", "failed")


@dataclass(frozen=True)
class Trial:
    """Hold one run of a study.

    Parameters
    ----------
    number
        From 0, in the order in which they began.
    state
        ``"complete"``, ``"pruned"`` (given up) or ``"failed"``.
    value
        The last of what was measured; ``None`` where it failed.
    values
        Its hyperparameters by their keys in the recipe.
    reports
        What was measured after so many epochs.
    seconds
        What it took.
    reason
        Why it failed: a number that is not finite, or values that don't go together.
    """

    number: int
    state: State
    value: float | None
    values: Mapping[str, Any]
    reports: tuple[tuple[int, float], ...]
    seconds: float
    reason: str | None = None


@dataclass
class Study:
    """Hold a recipe with its ``[tune]``, the backend, and the trials so far.

    Parameters
    ----------
    recipe
        What is tuned.
    backend
        The backend's name.
    trials
        In their order.
    """

    recipe: Recipe
    backend: str
    trials: list[Trial] = field(default_factory=list)

    @property
    def section(self) -> Tune:
        """Return the recipe's ``[tune]``; ``InputError`` where it has none."""
        if self.recipe.tune is None:
            raise InputError(
                "tune: this table is missing; add [tune.space] with the keys to look for, such as "
                '"optimizer.lr" = {low = 1e-4, high = 1e-1, log = true}'
            )
        return self.recipe.tune

    @property
    def metric(self) -> str:
        """Return ``"accuracy"``, which is to be large, or ``"loss"``."""
        by_task = "loss" if self.recipe.task == "regression" else "accuracy"
        return self.section.metric or by_task

    @property
    def best(self) -> Trial | None:
        """Return the first of the best among the complete trials."""
        done = [t for t in self.trials if t.state == "complete" and t.value is not None]
        sign = -1.0 if self.metric == "accuracy" else 1.0
        return min(done, key=lambda t: sign * (t.value or 0.0), default=None)

    def ranked(self) -> list[Trial]:
        """Rank all trials: the complete ones from best to worst, then those given up, then those that failed.

        Returns
        -------
        list of Trial
            The best one first.
        """
        sign = -1.0 if self.metric == "accuracy" else 1.0
        return sorted(
            self.trials,
            key=lambda t: (STATES.index(t.state), math.inf if t.value is None else sign * t.value, t.number),
        )

    def best_recipe(self) -> Recipe | None:
        """Return the recipe with the best trial's values and without ``[tune]``, named after it.

        Returns
        -------
        Recipe or None
            None where no trial is complete.
        """
        if self.best is None:
            return None
        return self.recipe.tuned({"name": f"{self.recipe.name}-best"} | dict(self.best.values))
