"""The loop of a run, with its events, its checkpoints and Ctrl-C."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from polyopt.core import tree
from polyopt.training.events import Event, Kind
from polyopt.training.phases.setup import host
from polyopt.training.run_folder import Folder
from polyopt.training.run_state import Progress
from polyopt.training.trainer import Trainer


class Terminated(KeyboardInterrupt):
    """End a run that was asked to by SIGTERM, saved as after Ctrl-C."""


def _terminate(number: int, frame: Any) -> None:
    raise Terminated


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM raise ``Terminated`` within the block, where it would end the process without a word.

    A program with a handler of its own, and another thread than the main one, are left alone.
    """
    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


Listener: TypeAlias = Callable[[Event], None]


class Run:
    """The loop, with its events and checkpoints."""

    def __init__(
        self, engine: Trainer, folder: Folder | None, listener: Listener, checkpoint_seconds: float
    ) -> None:
        self.engine, self.folder, self.listener = engine, folder, listener
        self.every, self.saved = checkpoint_seconds, time.monotonic()
        self.copies = 0
        """How many to keep of the parameters, evenly spread."""
        self.snapshots: dict[int, dict[str, Any]] = {}
        self.spent: list[float] = []
        """Seconds of each step."""

    def to(self, at: Progress, last: int | None) -> None:
        """Go on to the end, or until ``last`` batches are done; test and save."""
        engine = self.engine
        if at.step == 0:
            # The first step is saved at once: a kill soon after it loses no more than a later one does.
            self.saved = -math.inf
        self._tell("started", at)
        with _deferred_interrupt() as interrupted:
            try:
                while not (self._done(at, last) or interrupted):
                    before = self._copied(at, last)
                    begun = time.perf_counter()
                    engine.advance(at)
                    self.spent.append(time.perf_counter() - begun)
                    if self._copied(at, last) > before:
                        # Copies: the next step may change the arrays in place.
                        self.snapshots[at.step] = tree.named(host(at.params))
                    tested = engine.due(at)
                    if tested:
                        engine.observe(at)
                        engine.evaluate(at)
                    self._tell("step", at)
                    if engine.federation is not None and engine.course.ended(at.place) is not None:
                        self._tell("aggregated", at)
                    if tested:
                        self._tell("evaluated", at)
                    late = time.monotonic() - self.saved >= self.every
                    if self.folder and late and not self._done(at, last):
                        self._save(at)
                if interrupted:
                    raise Terminated if signal.SIGTERM in interrupted else KeyboardInterrupt
            except KeyboardInterrupt:
                if self.folder:
                    self._save(at)
                raise
            self._finish(at)

    def _done(self, at: Progress, last: int | None) -> bool:
        return self.engine.ended(at) or (last is not None and at.step >= last)

    def _copied(self, at: Progress, last: int | None) -> int:
        """Return how many of the copies are due by now."""
        done, whole = self.engine.way(at)
        if last is not None and self.engine.steps is not None:
            whole = min(whole, last)
        return self.copies * done // max(whole, 1)

    def _finish(self, at: Progress) -> None:
        self.engine.fetch(at)
        held = self.engine.ended(at) and at.holds_gradients
        if held:
            # Saved as it is, so that a longer run goes on from there; then updated by what is held.
            if self.folder:
                self._save(at)
            at.flush()
        tests = at.history.evaluations
        if not tests or tests[-1].step != at.step:
            self.engine.evaluate(at)
            self._tell("evaluated", at)
        if self.folder and not held:
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
                engine.epoch(at),
                engine.epochs,
                engine.last_loss,
                tests[-1] if tests else None,
                path,
                engine.work.name,
                "epoch" if engine.federation is None else "round",
                at.place.position,
                engine.total_samples,
            )
        )


@contextmanager
def _deferred_interrupt() -> Iterator[list[int]]:
    """Give a list that Ctrl-C or SIGTERM makes non-empty.

    Neither breaks into a step that changes arrays in place. A second one ends it at once. Another thread than
    the main one, and a program with a handler of its own, are left alone.
    """
    seen: list[int] = []
    usual: dict[Any, tuple[Any, ...]] = {
        signal.SIGINT: (signal.default_int_handler,),
        signal.SIGTERM: (signal.SIG_DFL, _terminate),
    }
    mine = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in usual if mine}
    held = {number: own for number, own in before.items() if own in usual[number]}

    def note(number: int, frame: Any) -> None:
        seen.append(number)
        signal.signal(number, held[signal.Signals(number)])

    try:
        for number in held:
            signal.signal(number, note)
        yield seen
    finally:
        for number, own in held.items():
            signal.signal(number, own)
