"""Define the events of a run and its result."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

Kind: TypeAlias = Literal["started", "step", "aggregated", "evaluated", "checkpointed", "finished"]


@dataclass(frozen=True)
class Event:
    """Tell of something that happened in a run.

    Where the batch size follows the noise only the run will know how many steps its epochs take, or how many
    epochs its steps: what is not known is ``None``.

    Parameters
    ----------
    kind
        ``"started"``, ``"step"``, ``"evaluated"``, ``"checkpointed"`` or ``"finished"``; in a federated phase
        ``"aggregated"``, too, after each round.
    backend
        The backend's name.
    step
        The batches done so far.
    steps
        The batches in all.
    epoch
        The passes over the data begun so far.
    epochs
        The passes in all.
    loss
        The last training loss known on the host; it lags some steps behind, so as not to wait for the device.
    evaluation
        The last test.
    path
        The file written.
    samples
        The samples taken so far.
    total_samples
        The samples in all.
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
    """Hold the figures of a test.

    Parameters
    ----------
    step
        The batches done before it.
    epoch
        The passes over the data begun before it.
    test_loss
        The mean over the test samples.
    test_accuracy
        The share that is right; ``None`` for regression.
    """

    step: int
    epoch: int
    test_loss: float
    test_accuracy: float | None


@dataclass
class History:
    """Keep the figures of a run, batch by batch.

    Parameters
    ----------
    loss
        ``loss[i]`` is the training loss of batch i + 1, before its update.
    evaluations
        The tests.
    size
        ``size[i]`` is the number of samples of batch i + 1.
    """

    loss: list[float] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    size: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class PhaseResult:
    """Hold the figures of a finished phase, the run before the first one (``"base"``) too.

    Parameters
    ----------
    name
        Of the phase.
    kind
        What it did: ``"train"``, ``"prune"``, ``"quantize"``, …
    steps
        Its batches.
    test_loss
        The mean over the test samples, of what it left.
    test_accuracy
        The share that is right; ``None`` for regression.
    sparsity
        The share that is pruned of the parameters that have masks, 0 where none is pruned.
    parameters
        All that are not pruned.
    bytes
        The size of the arrays as they are stored, in which a pruned weight takes as much as any.
    seconds
        The time of the call that finished it.
    model
        The file with its weights.
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
    """Hold a run that ended.

    With phases, what is tested and kept here is what the last of them left; ``history`` and ``steps`` go
    through all.

    Parameters
    ----------
    backend
        The backend's name.
    device
        The device's name.
    steps
        The batches from the very start, also where the run was resumed.
    history
        Losses, tests and sizes.
    test_loss
        The mean over the test samples.
    test_accuracy
        The share that is right; ``None`` for regression.
    seconds
        Only the time of this call.
    checkpoint
        The file, where there is a folder.
    params
        ``{path: host array}``.
    state
        The optimizer's, on the backend.
    average
        The averaged weights where the recipe has ``[ema]``.
    snapshots
        The parameters after some of the batches, ``{batches done: params}``, where they were asked for.
    phases
        The figures of each.
    model
        The file with the last phase's weights in their true size; ``polyopt.quantization.load`` reads it.
    grids
        Those of activations, where they are quantized.
    step_seconds
        The mean of the steps alone, without loading, tests, files and the first step, which compiles; NaN
        where it made none.
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
