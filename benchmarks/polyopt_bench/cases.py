"""List what is measured: every case by its name, and the bound it must reach."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from polyopt.core.errors import InputError, nearest
from polyopt_bench.algorithms import ALGORITHMS
from polyopt_bench.contender import PEER_OF
from polyopt_bench.sets import SETS
from polyopt_bench.workload import NETS

BACKENDS = tuple(PEER_OF)
TASKS = ("mlp", "small", "resnet50", "gpt2", "one64m")
"""The parameter sets that are reported."""
MAIN = ("adam", "adamw")
"""The optimizers that have bounds beside their peers, and that are reported beside all of them."""
QUICK = ("few", "resnet50")
"""The sets of a quick run."""
MODELS = ("convnet", "perceptron")
"""Models so small that a step costs what its driver costs."""
CLIPPED = ("clip-adam-cosine",)
KINDS = ("update", "train", "first", "memory", "scale")

BOUNDS = {
    ("resnet50", "numpy"): 0.25,
    ("resnet50", "torch"): 1.0,
    ("resnet50", "jax"): 0.65,
    ("resnet50", "tensorflow"): 0.50,
    ("small", "numpy"): 0.05,
    ("small", "torch"): 0.15,
    ("small", "jax"): 0.20,
    ("small", "tensorflow"): 0.05,
    ("convnet", "torch"): 1.0,
    ("perceptron", "torch"): 1.0,
}
"""Largest ratio allowed of an update's time to the first peer's: Adam and AdamW, also clipped."""
FLOOR_BOUND = 1.3
"""What every update of a set that outgrows the caches must reach beside the floor of its own bytes."""
FIRST_BOUND = 2.0
"""Seconds, for the first step on 1000 leaves."""
MEMORY_BOUND = 1.05


@dataclass(frozen=True)
class Case:
    """One measurement of everybody on one backend.

    ``standard`` cases are measured unless others are asked for, ``quick`` ones by ``--quick`` too. ``keras``:
    with Keras as a second peer on PyTorch and JAX.
    """

    kind: str
    task: str
    optimizer: str
    backend: str
    standard: bool = True
    quick: bool = False
    keras: bool = False

    @property
    def id(self) -> str:
        """Return ``kind/task/optimizer/backend``."""
        return f"{self.kind}/{self.task}/{self.optimizer}/{self.backend}"

    @property
    def brief(self) -> bool:
        """Return True if polyopt's standard way and the first peer are enough.

        Unless everything is asked for.
        """
        return self.kind == "scale" or self.optimizer not in MAIN

    @property
    def bound(self) -> float | None:
        """Return the largest ratio to the first peer that is demanded."""
        if self.kind == "train":
            return 1.0 if self.task in NETS else 0.9
        if self.kind == "update" and (self.optimizer in MAIN or self.optimizer in CLIPPED):
            return BOUNDS.get((self.task, self.backend))
        return None

    @property
    def floor_bound(self) -> float | None:
        """Return the largest ratio to the bandwidth floor that is demanded."""
        return FLOOR_BOUND if self.kind == "update" and self.task == "resnet50" else None


@lru_cache(maxsize=1)
def cases() -> tuple[Case, ...]:
    """Return all of them, in the order in which they are measured."""
    return tuple(case for backend in BACKENDS for case in _of(backend))


def case(name: str) -> Case:
    """Return the case of that name.

    Examples
    --------
    >>> case("update/small/adam/jax").bound
    0.2
    """
    found = {c.id: c for c in cases()}
    if name not in found:
        raise InputError(f"unknown case {name!r}; {nearest(name, found)}")
    return found[name]


def _of(backend: str) -> Iterator[Case]:
    main, on_host = ("small", "resnet50"), backend in ("numpy", "torch")
    for task in (*TASKS, "few", "tiny"):
        for name in ALGORITHMS:
            standard = task in main if name in MAIN else task == "resnet50" or (task == "small" and on_host)
            standard |= name == "adam" and task in TASKS
            yield Case(
                "update",
                task,
                name,
                backend,
                standard=standard,
                quick=name == "adam" and task in QUICK,
                keras=name == "adam" and task in main,
            )
    for task in MODELS:
        for name in ("adam", *CLIPPED):
            yield Case("update", task, name, backend, standard=on_host)
    for task in (*NETS, *TASKS, "tiny"):
        yield Case("train", task, "adam", backend, standard=task != "tiny")
    for kind, chosen in (("first", "small"), ("memory", "resnet50")):
        for task in TASKS:
            yield Case(kind, task, "adam", backend, standard=task == chosen)
    for task in _scales(leaves=10_000 if on_host else 100):
        yield Case("scale", task, "adam", backend)


def _scales(leaves: int) -> Iterator[str]:
    """Yield 10^3 to 10^8 parameters in one leaf, and 10^6 in 1 to ``leaves``."""
    for power in range(3, 9):
        yield f"scale-{10**power}-1"
    count = 10
    while count <= leaves:
        yield f"scale-{10**6}-{count}"
        count *= 10


def select(
    backends: Sequence[str], pattern: str | None, *, quick: bool = False, everything: bool = False
) -> list[Case]:
    """Select the cases of ``backends`` that a run measures.

    Parameters
    ----------
    pattern
        A regular expression, searched for in a case's name ``kind/task/optimizer/backend``.
    quick
        Only those of a quick run.
    everything
        Also those that a full run leaves out; a pattern that matches none of a full run's finds them too.

    Raises
    ------
    InputError
        For a pattern that is no regular expression or matches nothing.
    """
    here = [c for c in cases() if c.backend in backends]
    usual = [c for c in here if (c.quick if quick else c.standard or everything)]
    if pattern is None:
        return usual
    try:
        wanted = re.compile(pattern)
    except re.error as e:
        raise InputError(f"--only {pattern!r} is not a regular expression: {e}") from None
    for pool in (usual, [] if quick else here):
        if found := [c for c in pool if wanted.search(c.id)]:
            return found
    words = {*KINDS, *backends, *SETS, *NETS, *ALGORITHMS} if "/" not in pattern else {c.id for c in here}
    raise InputError(f"--only {pattern!r} matches no case; {nearest(pattern, words)}")
