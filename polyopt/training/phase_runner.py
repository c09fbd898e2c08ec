"""A run and the phases that follow it, one after the other."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from polyopt import quantization
from polyopt.backend.protocol import Backend
from polyopt.backend.registry import of
from polyopt.core import tree
from polyopt.pruning import sparsity_report
from polyopt.quantization.reporting import WIDTHS
from polyopt.recipe import Recipe
from polyopt.training.events import History, PhaseResult, Result
from polyopt.training.loop import Listener, Run
from polyopt.training.phases.plan import PhasePlan
from polyopt.training.phases.setup import ModelState, host
from polyopt.training.run_folder import (
    MODEL,
    Folder,
    forget_phases,
    phase_folder,
    read_figures,
    write_results,
)
from polyopt.training.run_state import Progress
from polyopt.training.trainer import Trainer


class PhaseRunner:
    """Tasks on one backend: each one goes on with the model that the one before it left.

    A task that was done before is run again in no steps, from its checkpoint: so a chain that was stopped
    goes on in the same bits.
    """

    def __init__(
        self,
        recipe: Recipe,
        tasks: Sequence[PhasePlan],
        backend: Backend,
        device: str | None,
        *,
        out: Path | None,
        resume: bool,
        record: Literal["step", "evaluation"],
        listener: Listener,
        checkpoint_seconds: float,
        snapshots: int,
    ) -> None:
        self.recipe, self.tasks, self.backend, self.device = recipe, tasks, backend, device
        self.out, self.resume, self.record = out, resume, record
        self.listener, self.checkpoint_seconds, self.snapshots = listener, checkpoint_seconds, snapshots
        self.before: dict[str, ModelState] = {}
        self.results: list[PhaseResult] = []
        self.history = History()
        self.steps = 0
        self._earlier = read_figures(out) if out is not None and resume else {}
        self._kept: dict[int, dict[str, Any]] = {}
        self._spent: list[float] = []

    def run(self, max_steps: int | None) -> Result:
        """Run all of it, or ``max_steps`` batches."""
        for task in self.tasks:
            begun = time.perf_counter()
            work = task.work(self.before)
            engine = Trainer(task.recipe, task.dataset, self.backend, self.device, self.record, work)
            folder = self._folder(task, work.idle)
            at = self._begin(task, engine, folder)
            gone_on = not engine.ended(at)
            self._advance(task, engine, folder, at, None if max_steps is None else max_steps - self.steps)
            self._remember(at)
            if not engine.ended(at):
                break
            if self.recipe.phase:
                self._leave(task, engine, at, begun, gone_on)
        return self._result(engine, at)

    def _folder(self, task: PhasePlan, idle: bool) -> Folder | None:
        if self.out is None or idle:
            return None
        if task.phase is None:
            return Folder(self.out, self.recipe)
        return Folder(phase_folder(self.out, task.number, task.name), task.recipe)

    def _begin(self, task: PhasePlan, engine: Trainer, folder: Folder | None) -> Progress:
        goes_on = self.resume and folder is not None and (task.phase is None or folder.checkpoint.exists())
        at = folder.resume(engine) if goes_on and folder is not None else engine.start()
        if folder is not None:
            folder.begin()
            if task.phase is None and not self.resume:
                forget_phases(folder.path)
        return at

    def _advance(
        self, task: PhasePlan, engine: Trainer, folder: Folder | None, at: Progress, last: int | None
    ) -> None:
        run = Run(engine, folder, self.listener, self.checkpoint_seconds)
        run.copies = self.snapshots if task.phase is None else 0
        run.to(at, last)
        self._kept |= run.snapshots
        self._spent += run.spent

    def _remember(self, at: Progress) -> None:
        """Put its history behind that of the ones before."""
        self.history.loss += at.history.loss
        self.history.size += at.history.size
        epochs = self.history.evaluations[-1].epoch if self.history.evaluations else 0
        self.history.evaluations += [
            replace(e, step=e.step + self.steps, epoch=e.epoch + epochs) for e in at.history.evaluations
        ]
        self.steps += at.step

    def _leave(self, task: PhasePlan, engine: Trainer, at: Progress, begun: float, gone_on: bool) -> None:
        """Make the model for the next phase, its file and its figures."""
        left = task.finished(engine.left(at))
        earlier = None if gone_on or not at.step else self._earlier.get(task.name)
        loss, accuracy = engine.test(left) if earlier is None else earlier[:2]
        file = None
        if self.out is not None and task.phase is not None:
            file = phase_folder(self.out, task.number, task.name) / MODEL
        seconds = time.perf_counter() - begun
        found = PhaseResult(
            task.name,
            task.kind,
            at.step,
            loss,
            accuracy,
            _sparsity(left),
            _kept(left),
            stored_bytes(left.params),
            seconds if earlier is None else earlier[2],
            file,
        )
        self.before[task.name] = left
        self.results.append(found)
        if self.out is not None:
            meta = {"recipe": self.recipe.to_dict(), "phase": task.name}
            files = [file, self.out / MODEL] if len(self.results) == len(self.tasks) else [file]
            for path in filter(None, files):
                quantization.save(path, left.params, meta, grids=left.grids)
            write_results(self.out, self.results)

    def _result(self, engine: Trainer, at: Progress) -> Result:
        final = at.history.evaluations[-1]
        average = engine.average(at)
        done = self.results[-1] if len(self.results) == len(self.tasks) else None
        last = None if done is None else self.before[done.name]
        return Result(
            backend=self.backend.name,
            device=engine.device_name,
            steps=self.steps,
            history=self.history,
            test_loss=final.test_loss if done is None else done.test_loss,
            test_accuracy=final.test_accuracy if done is None else done.test_accuracy,
            seconds=math.nan,
            step_seconds=fmean(self._spent[1:] or self._spent) if self._spent else math.nan,
            checkpoint=None if self.out is None else Folder(self.out, self.recipe).checkpoint,
            params=tree.named(engine.params(at) if last is None else last.weights),
            state=at.state,
            average=None if average is None else tree.named(host(average)),
            snapshots=self._kept,
            phases=tuple(self.results),
            model=self.out / MODEL if self.out is not None and done is not None else None,
            grids={} if last is None else dict(last.grids),
        )


def stored_bytes(params: Any) -> int:
    """Return the size of the arrays of a tree that may have quantized leaves.

    Examples
    --------
    >>> import numpy as np
    >>> stored_bytes({"w": quantization.quantize(np.ones((2, 4), np.float32), quantization.Integer(bits=4))})
    20
    """
    arrays, _ = quantization.to_arrays(params)
    return sum(math.prod(x.shape) * WIDTHS[of(x).dtype_name(x)] for x in arrays.values())


def _sparsity(left: ModelState) -> float:
    leaves = {path: x for path, x in tree.named(left.weights).items() if path in left.masks}
    return sparsity_report(leaves, left.masks).sparsity if leaves else 0.0


def _kept(left: ModelState) -> int:
    return sparsity_report(left.weights, left.masks).kept
