"""Measure compression, as plain data: accuracies of recipes, equal bits, and times."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from polyopt import __version__
from polyopt.backend import registry
from polyopt.backend.convert import convert
from polyopt.core import tree
from polyopt.core.errors import BackendError
from polyopt.pruning import magnitude_masks, n_of_m_masks, pruned, random_masks
from polyopt.quantization import Cast, Integer, quantize, to_arrays
from polyopt.quantization.reporting import label
from polyopt.recipe import Recipe
from polyopt.training import train

CHAINS = ("digits_compress", "digits_int4")
STUDENT = "digits_student"
STUDENTS = 5
"""The number of seeds over which a student must be better than without its teacher."""
SHAPES = ((4096, 1024), (1024, 2048), (1024, 1024), (1000, 1000), (512, 2048), (682, 1024))
"""Ten million weights, and some."""
ROUNDS = 9
TIMED = (
    Integer(per="tensor"),
    Integer(),
    Integer(symmetric=False),
    Integer(bits=4, per="group", group_size=32),
    Cast("bfloat16"),
    Cast("float16"),
)
"""Ways to quantize, timed on eight leaves of a shape that all of them take."""
EVEN = (1280, 1024)


def part(
    name: str, recipes: Path, backends: Sequence[str], seeds: int, before: Mapping[str, Any]
) -> dict[str, Any]:
    """Measure one of ``PARTS``; ``{key: plain data}`` to keep."""
    found = PARTS[name](recipes, backends, seeds)
    versions = dict(before.get("versions", {}))
    for backend in backends:
        versions |= registry.by_name(backend).versions()
    return {name: found, "machine": machine(), "versions": {"polyopt": __version__} | versions}


def machine() -> str:
    """Describe the processor, how many cores this process may use, and the system."""
    name = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text("utf-8").splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores, {platform.system()}, Python {platform.python_version()}"


# Accuracies


def chains(recipes: Path, backends: Sequence[str], seeds: int) -> dict[str, Any]:
    """Return ``{recipe: {backend: [a list of phases for each seed]}}``."""
    found: dict[str, Any] = {}
    for name in CHAINS:
        recipe = Recipe.load(recipes / f"{name}.toml")
        found[name] = {
            backend: [
                [asdict(phase) for phase in train(recipe.replace(seed=seed), backend=backend).phases]
                for seed in range(seeds)
            ]
            for backend in backends
        }
    return found


def control(recipes: Path, backends: Sequence[str], seeds: int) -> dict[str, Any]:
    """Return ``{backend: [a phase for each seed]}``: the phase that prunes, without pruning.

    From the same weights, with the same optimizer, in as many epochs and in the same order of samples: what
    the pruned model would be if nothing had gone.
    """
    recipe = dense(Recipe.load(recipes / f"{CHAINS[0]}.toml"))
    return {
        backend: [
            asdict(train(recipe.replace(seed=seed), backend=backend).phases[-1]) for seed in range(seeds)
        ]
        for backend in backends
    }


def dense(recipe: Recipe) -> Recipe:
    """Cut ``recipe`` after its first phase that prunes, which then prunes nothing; seeds and batches stay."""
    table = recipe.to_dict()
    last = next(i for i, phase in enumerate(recipe.phase) if phase.kind == "prune")
    phases = [*table["phase"][: last + 1]]
    phases[last] = {key: value for key, value in phases[last].items() if key != "prune"}
    return Recipe.from_dict(table | {"phase": phases})


def students(recipes: Path, backends: Sequence[str], seeds: int) -> dict[str, Any]:
    """Train a student with and without its teacher: ``{backend: [{seed, teacher, taught, alone}]}``."""
    recipe = Recipe.load(recipes / f"{STUDENT}.toml")
    found: dict[str, Any] = {}
    for backend in backends:
        found[backend] = []
        for seed in range(STUDENTS):
            own = recipe.replace(seed=seed)
            teacher, taught = train(own, backend=backend).phases
            # The phase as a recipe of its own: the same first weights, the same batches, the labels alone.
            alone = train(own.of_phase(1), backend=backend)
            found[backend].append(
                {
                    "seed": seed,
                    "teacher": teacher.test_accuracy,
                    "teacher_bytes": teacher.bytes,
                    "taught": taught.test_accuracy,
                    "alone": alone.test_accuracy,
                    "bytes": taught.bytes,
                }
            )
    return found


# The same bits

MASKS: dict[str, Callable[[Any], Any]] = {
    "mask, 80 % by magnitude, per leaf": lambda p: magnitude_masks(p, 0.8),
    "mask, 80 % by magnitude, global": lambda p: magnitude_masks(p, 0.8, scope="global"),
    "mask, 80 % at random": lambda p: random_masks(p, 0.8),
    "mask, 2 of 4": lambda p: n_of_m_masks(p, 2, 4, axis=0),
}
SCHEMES = (
    Integer(),
    Integer(per="tensor", symmetric=False),
    Integer(bits=4, per="group", group_size=32),
    Cast("bfloat16"),
)


def bits(recipes: Path, backends: Sequence[str], seeds: int) -> list[dict[str, Any]]:
    """Compare masks, codes and scales of the same weights on each backend, bit by bit."""
    recipe = Recipe.load(recipes / f"{CHAINS[0]}.toml").of_phase(0)
    weights = {"trained": train(recipe, backend=backends[0]).params, "drawn": _million()}
    rows = []
    for of, params in weights.items():
        made = [convert(params, backend) for backend in backends]
        for what, mask in MASKS.items():
            rows.append({"weights": of, "what": what, "same": _same([mask(p) for p in made])})
        for scheme in SCHEMES:
            arrays = [to_arrays(quantize(p, scheme))[0] for p in made]
            rows.append({"weights": of, "what": f"codes and scales, {label(scheme)}", "same": _same(arrays)})
    return rows


def _million() -> dict[str, Any]:
    """Weights with ties and zeros among them."""
    draw = np.random.default_rng(0)
    rounded = np.round(draw.normal(size=(512, 1024)), 2).astype(np.float32)
    return {"fine": draw.normal(size=(512, 1024)).astype(np.float32), "coarse": rounded}


def _same(trees: Sequence[Any]) -> bool:
    first, *rest = [
        {path: np.ascontiguousarray(registry.of(x).to_numpy(x)) for path, x in tree.named(t).items()}
        for t in trees
    ]
    return all(
        list(other) == list(first)
        and all(
            x.dtype == first[path].dtype
            and x.shape == first[path].shape
            and x.tobytes() == first[path].tobytes()
            for path, x in other.items()
        )
        for other in rest
    )


# Times


def times(recipes: Path, backends: Sequence[str], seeds: int) -> dict[str, Any]:
    """Milliseconds for ten million weights, in turns; medians, and the median of the rounds' ratios."""
    draw = np.random.default_rng(0)
    host = {f"w{i}": draw.standard_normal(shape, np.float32) for i, shape in enumerate(SHAPES)}
    flat = np.concatenate([x.ravel() for x in host.values()])
    found: dict[str, Any] = {"weights": flat.size, "rounds": ROUNDS}
    for backend in backends:
        params = convert(host, backend)
        rounds = [_round(params, flat) for _ in range(ROUNDS + 1)][1:]
        found[backend] = {key: median(r[key] for r in rounds) for key in rounds[0]}
    return found


def schemes(recipes: Path, backends: Sequence[str], seeds: int) -> dict[str, float]:
    """Return what quantizing ten million host weights takes, as a multiple of a partition.

    Medians of ratios.
    """
    draw = np.random.default_rng(0)
    host = [draw.standard_normal(EVEN, np.float32) for _ in range(8)]
    flat = np.concatenate([x.ravel() for x in host])
    ratios: dict[str, list[float]] = {label(scheme): [] for scheme in TIMED}
    for _ in range(ROUNDS + 1):
        partition = _took(lambda: np.partition(flat, int(0.8 * flat.size)))
        for scheme in TIMED:
            ratios[label(scheme)].append(_took(partial(quantize, host, scheme)) / partition)
    return {name: median(found[1:]) for name, found in ratios.items()}


def _took(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _round(params: Any, flat: Any) -> dict[str, float]:
    marks = [time.perf_counter()]
    np.partition(flat, int(0.8 * flat.size))
    marks.append(time.perf_counter())
    masks = magnitude_masks(params, 0.8, scope="global")
    marks.append(time.perf_counter())
    sparse = pruned(params, masks)
    marks.append(time.perf_counter())
    quantize(sparse, Integer())
    marks.append(time.perf_counter())
    names = ("partition", "masks", "pruned", "quantized")
    took = {name: 1000 * (b - a) for name, a, b in zip(names, marks[:-1], marks[1:], strict=True)}
    return took | {"ratio": (took["masks"] + took["pruned"] + took["quantized"]) / took["partition"]}


def minilm(recipes: Path, backends: Sequence[str], seeds: int) -> dict[str, Any]:
    """Measure a real pre-trained transformer, or say what to install for it."""
    from polyopt.cli.compression.transformer import transformer

    try:
        return transformer(recipes, backends)
    except BackendError as e:
        return {"missing": str(e)}


PARTS: dict[str, Callable[[Path, Sequence[str], int], Any]] = {
    "bits": bits,
    "times": times,
    "schemes": schemes,
    "chains": chains,
    "control": control,
    "students": students,
    "minilm": minilm,
}
"""What ``--only`` names, in the order in which it is measured."""
