"""One case: make the contenders, let them take turns with the floor, and write down rows."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from polyopt_bench.algorithms import algorithm
from polyopt_bench.cases import Case
from polyopt_bench.contender import Contender, Step, chosen, side
from polyopt_bench.floor import Floor
from polyopt_bench.results import Row
from polyopt_bench.sets import size
from polyopt_bench.timing import Effort, Spread, interleaved, ratio
from polyopt_bench.traffic import traffic
from polyopt_bench.workload import task_shapes

FLOOR = "floor"
Remark = Callable[[str], None]


@dataclass
class Prepared:
    """A case whose steps have been made and compiled."""

    case: Case
    contenders: list[Contender]
    steps: dict[str, Step]
    scale: float
    """Seconds of the floor's call times this are the case's floor."""


def prepare(case: Case, remark: Remark, *, first: bool = False, everything: bool = False) -> Prepared:
    """Make and compile every contender; one whose package is missing is left out, with a remark."""
    module = side(case.backend)
    makers = module.train(case) if case.kind == "train" else module.update(case)
    contenders, steps = [], {}
    for contender in chosen(makers, everything=everything, first=first):
        try:
            step = contender.make()
        except ImportError as e:
            remark(f"{case.id}: no {contender.name}: {e}")
            continue
        step()
        contenders.append(contender)
        steps[contender.name] = step
    scale = 0.0
    if case.kind != "train":
        rule = algorithm(case.optimizer).rule()
        floor = Floor(size(task_shapes(case.task)), traffic(rule))
        floor()
        steps[FLOOR], scale = floor, floor.scale
    return Prepared(case, contenders, steps, scale)


def measure(prepared: Prepared, effort: Effort) -> list[Row]:
    """Take the times; the steps are given up, so that their memory is free."""
    samples = interleaved(prepared.steps, effort)
    prepared.steps.clear()
    gc.collect()
    floor = [prepared.scale * s for s in samples[FLOOR]] if FLOOR in samples else None
    case = prepared.case
    return [
        timed_row(
            case,
            ours,
            samples[ours],
            peer,
            samples.get(peer or ""),
            floor,
            bound=case.bound if first else None,
            floor_bound=case.floor_bound if standard else None,
        )
        for ours, peer, standard, first in pairs(prepared.contenders)
    ]


def pairs(contenders: Sequence[Contender]) -> Iterator[tuple[str, str | None, bool, bool]]:
    """Yield ``(ours, peer, standard, first)``.

    ``first`` marks the one pair that a bound is about.

    It pairs polyopt's standard way with every peer, its others with the first.
    """
    peers: list[str | None] = [c.name for c in contenders if not c.ours]
    for i, ours in enumerate(c for c in contenders if c.ours):
        for j, peer in enumerate((peers if i == 0 else peers[:1]) or [None]):
            yield ours.name, peer, i == 0, i == j == 0


def timed_row(
    case: Case,
    ours: str,
    seconds: Sequence[float],
    peer: str | None,
    peer_seconds: Sequence[float] | None,
    floor: Sequence[float] | None,
    **more: Any,
) -> Row:
    """Medians, quartiles and ratios, and ``more``. A ratio is the median of the ratios of each round."""
    shapes = task_shapes(case.task)
    mine = Spread.of(seconds)
    theirs = Spread.of(peer_seconds) if peer_seconds else None
    both = ratio(seconds, peer_seconds) if peer_seconds else None
    above = ratio(seconds, floor) if floor else None
    parameters = size(shapes)
    moved = None if case.kind == "train" else traffic(algorithm(case.optimizer).rule()).bytes
    return {
        "kind": case.kind,
        "case": case.task,
        "optimizer": case.optimizer,
        "backend": case.backend,
        "ours": ours,
        "peer": peer,
        "seconds": mine.median,
        "peer_seconds": theirs.median if theirs else None,
        "ratio": both.median if both else None,
        "floor_ratio": above.median if above else None,
        "floor_seconds": Spread.of(floor).median if floor else None,
        "quartiles": {
            "seconds": [mine.low, mine.high],
            "peer_seconds": [theirs.low, theirs.high] if theirs else None,
            "ratio": [both.low, both.high] if both else None,
            "floor_ratio": [above.low, above.high] if above else None,
        },
        "rounds": len(seconds),
        "parameters": parameters,
        "leaves": len(shapes),
        "bytes_per_parameter": moved,
        **more,
    }
