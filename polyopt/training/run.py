"""Training by a recipe."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

from polyopt.backend import registry
from polyopt.backend.protocol import Backend
from polyopt.core.errors import InputError
from polyopt.recipe import Recipe
from polyopt.training.events import Event, Result
from polyopt.training.loop import Listener
from polyopt.training.phase_runner import PhaseRunner
from polyopt.training.phases.plan import tasks
from polyopt.training.trainer import Trainer


def train(
    recipe: Recipe,
    *,
    backend: str | Backend | None = None,
    device: str | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    on_event: Listener | None = None,
    max_steps: int | None = None,
    record: Literal["step", "evaluation"] = "step",
    checkpoint_seconds: float = 10.0,
    snapshots: int = 0,
) -> Result:
    """Train by ``recipe`` and test, and go through its phases.

    Parameters
    ----------
    recipe
        What to do. With ``dtype = "float64"`` float64 arrays are made possible in this process (JAX).
    backend, device
        Where: by default the default backend (see ``set_backend``) and its default device.
    out
        A folder that gets ``recipe.toml``, ``history.json`` and ``checkpoint.safetensors``; a run that it
        holds is replaced, unless it is resumed. With phases, ``model.safetensors`` and ``phases.json`` too,
        and a folder for each in ``phases``.
    resume
        Go on from the checkpoint in ``out``, bit for bit on the same backend and device. The recipe must be
        the one it began with; only ``train.epochs`` and ``train.steps`` may be others, and not with phases.
    on_event
        Called with an ``Event`` after each step, test and checkpoint.
    max_steps
        Stop early, after this many batches in all; with phases, in whichever one that is.
    record
        ``"step"`` keeps every batch's loss, ``"evaluation"`` the tests alone.
    checkpoint_seconds
        Time between two checkpoints in mid-run; 0 saves after each step. One is saved at the
        first step and at the end always.
    snapshots
        How many copies of the parameters to keep on the host, evenly spread over the run before any phase.

    Returns
    -------
    Result
        Losses, tests, parameters and files.

    Raises
    ------
    InputError, BackendError, CheckpointError
        For what can't be run or resumed, before anything is written.
    NonFiniteError
        Where a gradient holds inf or NaN and ``train.nonfinite`` is ``"raise"``: it names the leaf.
    KeyboardInterrupt
        After Ctrl-C, once the step at hand is done and saved; a second Ctrl-C does not wait.

    Examples
    --------
    >>> recipe = Recipe.from_dict({
    ...     "data": {"name": "diabetes"},
    ...     "model": {"name": "linear"},
    ...     "optimizer": {"name": "gradient_descent", "lr": 0.1},
    ...     "train": {"steps": 100, "batch_size": "full", "evaluate_every": 100},
    ... })
    >>> result = train(recipe, backend="numpy")
    >>> result.steps, result.history.loss[0] > 20000, result.history.loss[-1] < 3000
    (100, True, True)
    """
    begun = time.perf_counter()
    target = registry.get_backend(backend) if backend is None or isinstance(backend, str) else backend
    _ready(recipe, target, device, record)
    if resume and out is None:
        raise InputError("resume: give the folder of the run as out")
    chain = PhaseRunner(
        recipe,
        tasks(recipe),
        target,
        device,
        out=None if out is None else Path(out),
        resume=resume,
        record=record,
        listener=on_event or _ignore,
        checkpoint_seconds=checkpoint_seconds,
        snapshots=snapshots,
    )
    return replace(chain.run(max_steps), seconds=time.perf_counter() - begun)


def prepare(recipe: Recipe, backend: Backend, device: str | None, record: str) -> Trainer:
    """Make the run without its phases, checked: its data, model and optimizer on ``backend``."""
    _ready(recipe, backend, device, record)
    return Trainer(recipe, recipe.data.load(), backend, device, record)


def _ready(recipe: Recipe, backend: Backend, device: str | None, record: str) -> None:
    if record not in ("step", "evaluation"):
        raise InputError(f"record = {record!r}; expected 'step' or 'evaluation'")
    if recipe.dtype == "float64":
        backend.enable_float64()
    backend.device(device)


def _ignore(event: Event) -> None:
    pass
