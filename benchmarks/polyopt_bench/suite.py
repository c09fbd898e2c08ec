"""The whole run: a process for every framework, one of them measuring at a time; events as they come."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Literal

from polyopt_bench.algorithms import algorithm
from polyopt_bench.cases import FIRST_BOUND, MEMORY_BOUND, Case
from polyopt_bench.contender import PEER_OF
from polyopt_bench.measure import timed_row
from polyopt_bench.results import Row
from polyopt_bench.sets import shapes, size
from polyopt_bench.timing import Effort
from polyopt_bench.traffic import traffic

BRIEF = Effort(rounds=15, least=9, seconds=1.0)
"""For a quick run, and for cases that have no bound beside their peers."""
FRESH_SECONDS = 15.0
"""How long fresh processes are started again and again for one time to the first step; three at the most."""


@dataclass(frozen=True)
class Event:
    """Something happened: a row for the results' list ``what``, a case begun or done, or a remark."""

    kind: Literal["row", "begin", "end", "remark", "failed", "progress"]
    text: str = ""
    what: str = ""
    row: Row = field(default_factory=dict)


class Process:
    """A worker and the two ends of its pipe. It is ended with the block."""

    def __init__(self, env: Mapping[str, str] | None = None) -> None:
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "polyopt_bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **(env or {})},
            start_new_session=True,  # Ctrl-C is this process's to handle
        )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            # What a dead worker did not read can't be flushed.
            with contextlib.suppress(BrokenPipeError):
                if pipe:
                    pipe.close()

    def send(self, **job: Any) -> None:
        """Send the worker a job."""
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # answers() says what happened

    def answers(self, last: str = "done") -> Iterator[dict[str, Any]]:
        """Return what the worker says, up to the event ``last``; a worker that died has failed."""
        assert self._process.stdout
        for line in self._process.stdout:
            answer: dict[str, Any] = json.loads(line)
            if answer["event"] == last:
                return
            yield answer
        self._errors.seek(0)
        lines = [line for line in self._errors.read().splitlines() if line.strip()]
        code = self._process.wait()
        why = f"killed by signal {-code}" if code < 0 else f"exit {code}"
        last_words = next((line for line in reversed(lines) if "rror" in line), lines[-1] if lines else "")
        yield {"event": "failed", "message": f"its process ended ({why}): {last_words}"[:400]}


@dataclass(frozen=True)
class Plan:
    """Choose the cases, backends and effort of a benchmark run."""

    cases: Sequence[Case]
    quick: bool = False
    everything: bool = False

    def job(self, cases: Sequence[Case]) -> dict[str, Any]:
        """Make the worker's job for ``cases``."""
        return {
            "job": "cases",
            "cases": [c.id for c in cases],
            "effort": asdict(BRIEF if self.quick or all(c.brief for c in cases) else Effort()),
            "first": self.quick,
            "everything": self.everything,
        }


def run(plan: Plan) -> Iterator[Event]:
    """Measure; closing the iterator ends the workers."""
    if plan.quick:
        yield from _together(plan)
        return
    for backend in dict.fromkeys(c.backend for c in plan.cases):
        mine = [c for c in plan.cases if c.backend == backend]
        yield from _one_by_one(plan, [c for c in mine if c.kind not in FRESH])
        for case in mine:
            if case.kind in FRESH:
                yield Event("begin", case.id)
                yield from FRESH[case.kind](case)
                yield Event("end", case.id)


def _events(process: Process, last: str = "done") -> Iterator[Event]:
    for answer in process.answers(last):
        if answer["event"] == "row":
            yield Event("row", what=answer["what"], row=answer["row"])
        elif answer["event"] == "failed":
            yield Event("failed", ": ".join(filter(None, (answer.get("case"), answer["message"]))))
        elif answer["event"] == "remark":
            yield Event("remark", answer["message"])
        else:
            yield Event("progress")


def _one_by_one(plan: Plan, cases: Sequence[Case]) -> Iterator[Event]:
    """Run all cases of a backend in one worker; in a new one where it died."""
    waiting = list(cases)
    while waiting:
        with Process() as process:
            alive = True
            while waiting and alive:
                case = waiting.pop(0)
                yield Event("begin", case.id)
                process.send(**plan.job([case]))
                process.send()
                for event in _events(process):
                    # Only a process that died fails without naming the case.
                    if event.kind == "failed" and not event.text.startswith(case.id):
                        event, alive = Event("failed", f"{case.id}: {event.text}"), False
                    if event.kind != "progress":
                        yield event
                yield Event("end", case.id)


def _together(plan: Plan) -> Iterator[Event]:
    """Let all workers compile at once, which takes most of the time; then each measures by itself."""
    workers: list[tuple[list[Case], Process]] = []
    try:
        # What takes longest to compile begins first.
        for backend in sorted({c.backend for c in plan.cases}, key=list(PEER_OF).index, reverse=True):
            mine = [c for c in plan.cases if c.backend == backend]
            workers.append((mine, Process()))
            workers[-1][1].send(**plan.job(mine))
            yield Event("begin", f"making {backend}")
        for _, process in workers:
            yield from _events(process, "ready")
        for mine, process in reversed(workers):
            yield Event("begin", f"measuring {mine[0].backend}")
            process.send()
            yield from _events(process)
            for case in mine:
                yield Event("end", case.id)
    finally:
        for _, process in workers:
            process.__exit__()


def _fresh(job: dict[str, Any], env: Mapping[str, str] | None = None) -> dict[str, Any]:
    with Process(env) as process:
        process.send(**job, spawned=time.time())
        return next(process.answers())


def _first(case: Case) -> Iterator[Event]:
    """Fresh processes by turns: polyopt with its disk cache empty and filled, and the peer."""
    sides = ("cold", "warm", "peer") if case.backend in ("numpy", "torch") else ("cold", "peer")
    seconds: dict[str, list[float]] = {s: [] for s in sides}
    whole: dict[str, list[float]] = {s: [] for s in sides}
    peer, began = "", time.perf_counter()
    for _ in range(3):
        with tempfile.TemporaryDirectory() as cache:
            for s in sides:
                job = {"job": "first", "case": case.id, "ours": s != "peer"}
                answer = _fresh(job, {"POLYOPT_CACHE_DIR": cache})
                if answer["event"] == "failed":
                    yield Event("failed", f"{case.id}: {answer['message']}")
                    return
                peer = answer["side"] if s == "peer" else peer
                seconds[s].append(answer["seconds"])
                whole[s].append(answer["with_import"])
        if time.perf_counter() - began > FRESH_SECONDS:
            break
    for s in sides[:-1]:
        more = {
            "bound": None,
            "floor_bound": None,
            "seconds_bound": FIRST_BOUND if case.task == "small" and s == "cold" else None,
            "seconds_with_import": median(whole[s]),
            "peer_seconds_with_import": median(whole["peer"]),
        }
        name = f"polyopt, {s} cache" if len(sides) == 3 else "polyopt"
        yield Event(
            "row",
            what="rows",
            row=timed_row(case, name, seconds[s], peer, seconds["peer"], None, **more),
        )


def _memory(case: Case) -> Iterator[Event]:
    """Measure memory in a fresh process for polyopt and one for the peer."""
    found = traffic(algorithm(case.optimizer).rule())
    parameters = size(shapes(case.task))
    needed = 4 * parameters * found.reads  # every array that a step reads, once
    for ours in (True, False):
        answer = _fresh({"job": "memory", "case": case.id, "ours": ours})
        if answer["event"] == "failed":
            yield Event("failed", f"{case.id}: {answer['message']}")
            continue
        row = {
            "case": case.task,
            "optimizer": case.optimizer,
            "backend": case.backend,
            "side": answer["side"],
            "ours": ours,
            "parameters": parameters,
            "needed_bytes": needed,
            "peak_bytes": answer["peak"],
            "peak_with_start_bytes": answer["peak_with_start"],
            "overhead": answer["peak"] / needed,
            "peak_was_reset": answer["reset"],
            "bound": MEMORY_BOUND if ours else None,
        }
        yield Event("row", what="memory", row=row)


FRESH = {"first": _first, "memory": _memory}
"""The kinds that are measured in a new process for every side."""


def growth(backends: Sequence[str], steps: int) -> Iterator[Event]:
    """Memory over many steps on a tiny tree, one backend after the other."""
    for backend in backends:
        yield Event("begin", f"growth/{backend}")
        with Process() as process:
            process.send(job="growth", backend=backend, steps=steps)
            for event in _events(process):
                yield Event("failed", f"{backend}: {event.text}") if event.kind == "failed" else event
        yield Event("end", f"growth/{backend}")
