"""Hold the progress of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from polyopt.engine.batches.plan import Cursor
from polyopt.engine.train_step import TrainState, TrainStep
from polyopt.training.events import History
from polyopt.training.phases.federated import ServerState


@dataclass
class Progress:
    """Everything that decides how a run goes on, besides its recipe: all of it is in a checkpoint."""

    train: TrainStep
    carry: TrainState
    place: Cursor
    loss_sum: float = 0.0
    """Of the losses since the last evaluation, and their number: what a plateau schedule is told."""
    loss_count: int = 0
    history: History = field(default_factory=History)
    server: ServerState | None = None
    """Of a federated phase."""
    _unloaded: tuple[Any, dict[str, Any]] | None = None

    @property
    def step(self) -> int:
        """Batches done."""
        return self.place.step

    @property
    def params(self) -> Any:
        """Return them by path, as of now: the next step gives them up. ``None`` where they are frozen."""
        return self._by_path()[0]

    @property
    def state(self) -> dict[str, Any]:
        """Return the optimizer's state by path, as of now: the next step gives its arrays up."""
        return self._by_path()[1]

    def advance(self, *args: Any) -> Any:
        """Make one step on ``args``; give the loss before it, or what there is instead."""
        self._unloaded = None
        self.carry, loss = self.train(self.carry, *args)
        return loss

    def observe(self, value: float, what: str = "metric") -> None:
        """Tell the schedules that wait for it."""
        self._unloaded = None
        self.carry = self.train.observe(self.carry, value, what)

    @property
    def holds_gradients(self) -> bool:
        """True where the last batches were too few for an update."""
        return bool(int(self.state.get("micro_step", 0)))

    def flush(self) -> None:
        """Make the update that the last batches are too few for."""
        self._unloaded = None
        self.carry = self.train.flush(self.carry)

    def put(self, params: Any, state: dict[str, Any]) -> None:
        """Go on from these."""
        self._unloaded = None
        self.carry = self.train.load(params, state)

    def _by_path(self) -> tuple[Any, dict[str, Any]]:
        if self._unloaded is None:
            self._unloaded = self.train.unload(self.carry, copy=False)
        return self._unloaded
