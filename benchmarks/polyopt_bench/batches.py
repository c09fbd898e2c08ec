"""Time a training step whose batch is made at once, padded, or of micro-batches.

    python -m polyopt_bench.batches [--size 256] [--micro 64] [--backend NAME ...]

A recipe's own steps, on digits, by AdamW: milliseconds a batch, the median over passes that take turns. The
last batch of a pass has what is left of the 1438 training samples.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from polyopt.backend import registry
from polyopt.recipe import Recipe
from polyopt.training.run import prepare
from polyopt_bench.cases import BACKENDS
from polyopt_bench.timing import Effort, interleaved

EFFORT = Effort(rounds=11, least=5, seconds=6.0)


def ways(size: int, micro: int) -> dict[str, Any]:
    """Return ``batch_size`` of each way, all of ``size`` samples."""
    same = {"size": {"schedule": "constant", "initial": size}, "maximum": size}
    # So many times the noise scale is the maximum always.
    noise = {"noise": {"initial": size, "factor": 1e9}, "micro": micro, "maximum": size}
    return {
        "fixed": size,
        "buckets": same,
        "one micro-batch": same | {"micro": size},
        f"micro-batches of {micro}": same | {"micro": micro},
        "the same, measured": noise,
    }


def recipe(batch_size: Any, width: int) -> Recipe:
    """Make a recipe of an mlp on digits."""
    return Recipe.from_dict(
        {
            "data": {"name": "digits"},
            "model": {"name": "mlp", "hidden": [width]},
            "optimizer": {"name": "adamw", "lr": 1e-3},
            "train": {"epochs": 10**6, "batch_size": batch_size},
        }
    )


def measured(backend: str, size: int, micro: int, width: int) -> dict[str, float]:
    """Milliseconds a batch, by the way it is made."""
    passes, batches = {}, 0
    for name, batch_size in ways(size, micro).items():
        engine = prepare(recipe(batch_size, width), registry.by_name(backend), None, "evaluation")
        batches = -(-engine.samples // size)
        passes[name] = _one_pass(engine, batches)
    return {name: 1e3 * median(xs) / batches for name, xs in interleaved(passes, EFFORT).items()}


def _one_pass(engine: Any, batches: int) -> Callable[[], None]:
    at = engine.start()

    def run() -> None:
        for _ in range(batches):
            engine.advance(at)
        engine.fetch(at)

    return run


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--micro", type=int, default=64)
    parser.add_argument("--width", type=int, default=256, help="of the hidden layer")
    parser.add_argument("--backend", choices=BACKENDS, action="append")
    options = parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    names = list(ways(options.size, options.micro))
    print(f"| ms a batch of {options.size} | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 1) + "|")
    for backend in options.backend or BACKENDS:
        found = measured(backend, options.size, options.micro, options.width)
        print(f"| {backend} | " + " | ".join(f"{x:.2f}" for x in found.values()) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
