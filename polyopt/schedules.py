"""Schedules: a value for every step, usable for any hyperparameter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import polyopt.scalar as host


@dataclass(frozen=True)
class Schedule(ABC):
    """A pure function of the number of updates made so far (0 for the first update)."""

    @abstractmethod
    def value(self, xp: Any, t: Any) -> Any:
        """The value before update ``t + 1``; ``xp`` is the host's scalars or a framework's operations."""

    def __call__(self, step: int) -> float:
        """The value at ``step`` as a float."""
        return float(self.value(host, step))


@dataclass(frozen=True)
class Measured(Schedule):
    """A schedule driven by a metric that the user reports, not by the step alone."""

    def value(self, xp: Any, t: Any) -> Any:
        raise TypeError(f"{type(self).__name__} depends on a metric: ask an Optimizer's state for it")

    @abstractmethod
    def initial(self) -> dict[str, float]:
        """Its state before any metric was reported: plain numbers."""

    @abstractmethod
    def observe(self, state: dict[str, float], metric: float) -> dict[str, float]:
        """Its state after ``metric`` was reported."""

    @abstractmethod
    def current(self, state: dict[str, float]) -> float:
        """The value in ``state``."""
