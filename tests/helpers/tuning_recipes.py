"""The recipe that the tests of tuning share."""

from __future__ import annotations

from typing import Any

from polyopt.recipe import Recipe

RATE = {"low": 1e-3, "high": 1.0, "log": True}


def recipe(space: Any = None, task: str = "classification", **section: Any) -> Recipe:
    """A quick one; other keys of ``[tune]`` as keywords."""
    names = ("breast_cancer", "softmax") if task == "classification" else ("diabetes", "linear")
    return Recipe.from_dict(
        {
            "data": {"name": names[0]},
            "model": {"name": names[1]},
            "optimizer": {"name": "sgd", "lr": 0.1},
            "train": {"epochs": 4, "batch_size": 64},
            "tune": {"space": {"optimizer.lr": RATE} if space is None else space} | section,
        }
    )
