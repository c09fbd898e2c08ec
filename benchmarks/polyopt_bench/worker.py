"""A process of its own for one framework: takes jobs as lines of JSON, and answers with lines of JSON.

    python -m polyopt_bench.worker

Jobs: ``{"job": "cases", …}`` is made and compiled, then ``{"event": "ready"}`` is answered, and the times are
taken when the next line has come: so that several workers can compile at once, and none of them while
another measures. ``{"job": "first"}`` and ``{"job": "memory"}`` are for a fresh process,
``{"job": "growth"}`` for one that lasts. The last answer to a job is ``{"event": "done"}``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

from polyopt_bench import memory
from polyopt_bench.cases import Case, case
from polyopt_bench.contender import Contender, chosen, side
from polyopt_bench.machine import confine
from polyopt_bench.measure import Prepared, measure, prepare
from polyopt_bench.sets import shapes, size
from polyopt_bench.timing import Effort

SAMPLES = 20
"""How often memory is looked at while it may grow."""


class Worker:
    """The jobs, with the two ends of the pipe."""

    def __init__(self, read: IO[str], write: IO[str]) -> None:
        self._read, self._write = read, write
        self._jobs: dict[str, Callable[[dict[str, Any]], None]] = {
            "cases": self._cases,
            "first": self._first,
            "memory": self._memory,
            "growth": self._growth,
        }

    def run(self) -> None:
        """Do what comes until nothing comes any more."""
        for line in self._read:
            job = json.loads(line)
            self._jobs[job["job"]](job)
            self._say("done")

    def _say(self, event: str, **more: Any) -> None:
        self._write.write(json.dumps({"event": event, **more}, allow_nan=False) + "\n")
        self._write.flush()

    def _remark(self, message: str) -> None:
        self._say("remark", message=message)

    def _failed(self, of: Case, e: BaseException) -> None:
        text = " ".join(str(e).split())
        self._say("failed", case=of.id, message=f"{type(e).__name__}: {text}"[:400])

    def _cases(self, job: dict[str, Any]) -> None:
        effort = Effort(**job["effort"])
        ready: list[Prepared] = []
        for name in job["cases"]:
            of, everything = case(name), job["everything"]
            first = not everything and (job["first"] or of.brief)
            try:
                wanted = everything or (of.keras and not first)
                side(of.backend).load(ours=True, keras=of.backend == "tensorflow" or wanted)
                ready.append(prepare(of, self._remark, first=first, everything=everything))
            except Exception as e:
                self._failed(of, e)
        self._say("ready")
        self._read.readline()
        for prepared in ready:
            try:
                for row in measure(prepared, effort):
                    self._say("row", what="rows", row=row)
            except Exception as e:
                self._failed(prepared.case, e)

    def _first(self, job: dict[str, Any]) -> None:
        """Measure the seconds to the end of the first step, with imports and without."""
        of = case(job["case"])
        contender = self._only(of, job["ours"])
        imported = time.perf_counter()
        contender.make()()
        seconds, whole = time.perf_counter() - imported, time.time() - job["spawned"]
        self._say("first", side=contender.name, seconds=seconds, with_import=whole)

    def _memory(self, job: dict[str, Any]) -> None:
        """Measure the peak of some steps above what the process held before there was any array."""
        of = case(job["case"])
        # All of it once before: what libraries, compilers and thread pools hold is no optimizer's memory.
        self._only(of, job["ours"]).make()()
        memory.forget_peak()
        before = memory.resident()
        contender = self._only(of, job["ours"])
        step = contender.make()
        step()
        whole = memory.peak() - before
        forgot = memory.forget_peak()
        for _ in range(3):
            step()
        peak = memory.peak() - before
        self._say("memory", side=contender.name, peak=peak, peak_with_start=whole, reset=forgot)

    def _growth(self, job: dict[str, Any]) -> None:
        """Memory over many steps on a tiny tree."""
        of = Case("update", "tiny", "adam", job["backend"])
        contender = self._only(of, True)
        step, steps = contender.make(), max(SAMPLES, int(job["steps"]))
        seen = []
        began = time.perf_counter()
        for _ in range(SAMPLES):
            for _ in range(steps // SAMPLES):
                step()
            seen.append(memory.resident())
            self._say("progress")
        # What is allocated once comes within the first tenth.
        settled = seen[SAMPLES // 10 - 1]
        row = {
            "backend": of.backend,
            "ours": contender.name,
            "steps": steps // SAMPLES * SAMPLES,
            "parameters": size(shapes("tiny")),
            "resident_bytes": seen,
            "growth_bytes": seen[-1] - settled,
            "seconds": (time.perf_counter() - began) / steps,
        }
        self._say("row", what="growth", row=row)

    def _only(self, of: Case, ours: bool) -> Contender:
        module = side(of.backend)
        module.load(ours=ours, keras=False)
        both = chosen(module.update(of), everything=False, first=True)
        return next(c for c in both if c.ours == ours)


def _pipes() -> Iterator[IO[str]]:
    """Yield standard input, and standard output under another number: other prints go to the errors."""
    yield sys.stdin
    own = os.dup(1)
    os.dup2(2, 1)
    yield os.fdopen(own, "w", encoding="utf-8")


def main() -> None:
    """Serve."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    confine()
    read, write = _pipes()
    Worker(read, write).run()


if __name__ == "__main__":
    main()
