"""Define the events of a run and its result."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

Kind: TypeAlias = Literal["started", "step", "aggregated", "evaluated", "checkpointed", "finished"]


@dataclass(frozen=True)
class Event:
    """Something that happened: ``started``, ``step``, ``evaluated``, ``checkpointed`` or ``finished``; in a
    federated phase ``aggregated``, too, after each round.

    ``step`` counts the batches done so far, of ``steps``; ``epoch`` the passes over the data begun so far, of
    ``epochs``; ``samples`` the samples, of ``total_samples``. Where the batch size follows the noise only the
    run will know how many steps its epochs take, or how many epochs its steps: what is not known is ``None``.
    ``loss`` is the last training loss known on the host (it lags some steps behind, so as not to
    wait for the device), ``evaluation`` the last test, ``path`` the file written.
    """

    kind: Kind
    backend: str
    step: int
    steps: int | None
    epoch: int
    epochs: int | None
    loss: float | None = None
    evaluation: Evaluation | None = None
    path: Path | None = None
    phase: str = ""
    """Which phase it is of; empty before the first one. Steps and epochs are the phase's own."""
    unit: Literal["epoch", "round"] = "epoch"
    """What epochs are; in a federated phase, rounds."""
    samples: int = 0
    total_samples: int | None = None


@dataclass(frozen=True)
class Evaluation:
    """A test after ``step`` batches; ``test_accuracy`` is ``None`` for regression."""

    step: int
    epoch: int
    test_loss: float
    test_accuracy: float | None


@dataclass
class History:
    """``loss[i]`` is the training loss of batch i + 1, before its update; ``evaluations`` the tests.

    ``size[i]`` is the number of samples of that batch.
    """

    loss: list[float] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    size: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class PhaseResult:
    """Figures of a finished phase, the run before the first one (``"base"``) too.

    ``sparsity`` is the share that is pruned of the parameters that have masks, 0 where none is pruned;
    ``parameters`` counts all that are not pruned; ``bytes`` is the size of the arrays as they are stored, in
    which a pruned weight takes as much as any. ``seconds`` is the time of the call that finished it.
    """

    name: str
    kind: str
    steps: int
    test_loss: float
    test_accuracy: float | None
    sparsity: float
    parameters: int
    bytes: int
    seconds: float
    model: Path | None = None


@dataclass(frozen=True)
class Result:
    """A run that ended. ``params`` is ``{path: host array}``; ``state`` the optimizer's, on the backend.

    ``steps`` counts the batches from the very start, also where the run was resumed; ``seconds`` only the
    time of this call; ``step_seconds`` is the mean of its steps alone, without loading, tests, files and the
    first step, which compiles; NaN where it made none. ``average`` holds the averaged weights where the
    recipe has ``[ema]``; ``snapshots`` the parameters after some of the batches, ``{batches done: params}``,
    where they were asked for.

    With phases, what is tested and kept here is what the last of them left; ``history`` and ``steps`` go
    through all, ``phases`` has each one's figures, and ``model`` is the file with the last one's weights in
    their true size (``load`` reads it).
    """

    backend: str
    device: str
    steps: int
    history: History
    test_loss: float
    test_accuracy: float | None
    seconds: float
    checkpoint: Path | None
    params: dict[str, Any]
    state: dict[str, Any]
    average: dict[str, Any] | None = None
    snapshots: dict[int, dict[str, Any]] = field(default_factory=dict)
    phases: tuple[PhaseResult, ...] = ()
    model: Path | None = None
    grids: dict[str, Any] = field(default_factory=dict)
    step_seconds: float = float("nan")
