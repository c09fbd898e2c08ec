"""Training by a recipe."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from polyopt import data, registry, tree
from polyopt.backend import Backend
from polyopt.errors import InputError
from polyopt.recipe import Recipe
from polyopt.training.engine import Engine, Progress
from polyopt.training.events import Event, Kind, Result
from polyopt.training.folder import Folder

Listener = Callable[[Event], None]


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
    """Train by ``recipe`` and test.

    Parameters
    ----------
    recipe
        What to do. With ``dtype = "float64"`` float64 arrays are made possible in this process (JAX).
    backend, device
        Where: by default the default backend (see :func:`polyopt.set_backend`) and its default device.
    out
        A folder that gets ``recipe.toml``, ``history.json`` and ``checkpoint.safetensors``; a run that it
        holds is replaced, unless it is resumed.
    resume
        Go on from the checkpoint in ``out``, bit for bit on the same backend and device. The recipe must be
        the one it began with; only ``train.epochs`` and ``train.steps`` may be others.
    on_event
        Called with an :class:`~polyopt.training.Event` after each step, test and checkpoint.
    max_steps
        Stop early, after this many batches in all.
    record
        ``"step"`` keeps every batch's loss, ``"evaluation"`` the tests alone.
    checkpoint_seconds
        Time between two checkpoints in mid-run; 0 saves after each step. One is saved at the end always.
    snapshots
        How many copies of the parameters to keep on the host, evenly spread over the run.

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
    engine = prepare(recipe, target, device, record)
    last = engine.steps if max_steps is None else min(engine.steps, max_steps)
    folder = None if out is None else Folder(Path(out), recipe)
    if resume and folder is None:
        raise InputError("resume: give the folder of the run as out")
    at = folder.resume(engine) if folder and resume else engine.start()
    if folder:
        folder.begin()
    run = _Run(engine, folder, on_event or _ignore, checkpoint_seconds)
    run.marks = frozenset(round((i + 1) * last / snapshots) for i in range(snapshots))
    run.to(at, last)
    final = at.history.evaluations[-1]
    average = engine.average(at)
    return Result(
        backend=target.name,
        device=engine.device_name,
        steps=at.step,
        history=at.history,
        test_loss=final.test_loss,
        test_accuracy=final.test_accuracy,
        seconds=time.perf_counter() - begun,
        checkpoint=None if folder is None else folder.checkpoint,
        params=_host(target, at.params),
        state=at.state,
        average=None if average is None else _host(target, average),
        snapshots=run.snapshots,
    )


def prepare(recipe: Recipe, backend: Backend, device: str | None, record: str) -> Engine:
    """Everything that a run needs, checked: its data, model and optimizer on ``backend``."""
    if record not in ("step", "evaluation"):
        raise InputError(f"record = {record!r}; expected 'step' or 'evaluation'")
    if recipe.dtype == "float64":
        backend.enable_float64()
    backend.device(device)
    section = recipe.data
    dataset = data.load(
        section.name,
        test_fraction=section.test_fraction,
        standardize=section.standardize,
        split_seed=section.split_seed,
    )
    return Engine(recipe, dataset, backend, device, record)


class _Run:
    """The loop, with its events and checkpoints."""

    def __init__(
        self, engine: Engine, folder: Folder | None, listener: Listener, checkpoint_seconds: float
    ) -> None:
        self.engine, self.folder, self.listener = engine, folder, listener
        self.every, self.saved = checkpoint_seconds, time.monotonic()
        self.marks: frozenset[int] = frozenset()
        self.snapshots: dict[int, dict[str, Any]] = {}

    def to(self, at: Progress, last: int) -> None:
        """Go on until ``last`` batches are done; test and save."""
        engine = self.engine
        self._tell("started", at)
        with _deferred_interrupt() as interrupted:
            try:
                while at.step < last and not interrupted:
                    engine.advance(at)
                    if at.step in self.marks:
                        # Copies: the next step may change the arrays in place.
                        params = _host(engine.backend, at.params)
                        self.snapshots[at.step] = {path: x.copy() for path, x in params.items()}
                    tested = engine.due(at.step)
                    if tested:
                        engine.observe(at)
                        engine.evaluate(at)
                    self._tell("step", at)
                    if tested:
                        self._tell("evaluated", at)
                    if self.folder and time.monotonic() - self.saved >= self.every and at.step < last:
                        self._save(at)
                if interrupted:
                    raise KeyboardInterrupt
            except KeyboardInterrupt:
                if self.folder:
                    self._save(at)
                raise
            self._finish(at)

    def _finish(self, at: Progress) -> None:
        self.engine.fetch(at)
        tests = at.history.evaluations
        if not tests or tests[-1].step != at.step:
            self.engine.evaluate(at)
            self._tell("evaluated", at)
        if self.folder:
            self._save(at)
        self._tell("finished", at)

    def _save(self, at: Progress) -> None:
        assert self.folder is not None
        path = self.folder.save(self.engine, at)
        self.saved = time.monotonic()
        self._tell("checkpointed", at, path)

    def _tell(self, kind: Kind, at: Progress, path: Path | None = None) -> None:
        engine = self.engine
        tests = at.history.evaluations
        self.listener(
            Event(
                kind,
                engine.backend.name,
                at.step,
                engine.steps,
                engine.epoch(at.step),
                engine.epochs,
                engine.last_loss,
                tests[-1] if tests else None,
                path,
            )
        )


@contextmanager
def _deferred_interrupt() -> Iterator[list[int]]:
    """A list that Ctrl-C makes non-empty, instead of breaking into a step that changes arrays in place.

    A second Ctrl-C raises at once. Another thread than the main one, and a program with a handler of its
    own, are left alone.
    """
    seen: list[int] = []
    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield seen
        return

    def note(number: int, frame: Any) -> None:
        seen.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _host(backend: Backend, params: Any) -> dict[str, Any]:
    return {path: backend.to_numpy(x) for path, x in tree.named(params).items()}


def _ignore(event: Event) -> None:
    pass
