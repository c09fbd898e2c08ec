"""A run's folder that holds well-checksummed nonsense: one error of a readable length, or no harm."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from polyopt import Adam, Optimizer, checkpoint
from polyopt.core.errors import PolyoptError
from polyopt.recipe import Recipe
from polyopt.training import train

NONSENSE: list[Any] = [
    None,
    True,
    -1,
    0,
    10**9,
    2**70,
    10**400,
    1e308,
    -0.5,
    "nonsense",
    "x" * 3000,
    "nan",
    [],
    {},
    [[[]]],
    {"dict": {}},
    {"list": [1, None]},
    {"float": "nan"},
    {"float": "inf"},
    {"tensor": "params/layers.0.weight"},
    {"tensor": "none"},
]
"""JSON's ``1e999`` and nesting without bound have no form in it: they are written in afterwards."""
RAW = {"<1e999>": "1e999", "<deep>": "[" * 5000 + "]" * 5000, "<nan>": "NaN", "<long>": "9" * 5000}


def spots(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something can be changed."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*at, key)
        yield from spots(item, (*at, key))


def mutant(table: Any, draw: Random) -> str:
    """JSON in which one value is another one, is missing or stands under another key."""
    table = copy.deepcopy(table)
    *path, last = draw.choice(list(spots(table)))
    around = table
    for key in path:
        around = around[key]
    kind = draw.choice(["replace"] * 5 + ["remove", "rename", "nest"])
    if kind == "replace":
        around[last] = draw.choice([*NONSENSE, *RAW])
    elif kind == "nest":
        around[last] = {"dict": {"a": around[last]}} if draw.random() < 0.5 else [around[last]]
    else:
        old = around.pop(last)
        if kind == "rename" and isinstance(around, dict):
            around[f"{last}x"] = old
    text = json.dumps(table)
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text


def opened(file: Path) -> tuple[dict[str, Any], Any, bytes]:
    """Header, polyopt's own part of it, and data of a checkpoint."""
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    return header, json.loads(header["__metadata__"]["polyopt"].split(" ", 1)[1]), whole[8 + length :]


def closed(file: Path, header: dict[str, Any], own: str, data: bytes) -> None:
    """Write a checkpoint whose own part is ``own``, with the right checksum."""
    digest = hashlib.sha256(own.encode()).hexdigest()
    head = json.dumps(header | {"__metadata__": {"polyopt": f"{digest} {own}"}}).encode()
    file.write_bytes(len(head).to_bytes(8, "little") + head + data)


PLATEAU = {"schedule": "plateau", "initial": 0.01}
SERVER = {"clients": 3, "rounds": 2, "server": {"name": "adam", "lr": 0.01}}
KINDS: dict[str, tuple[dict[str, Any], int]] = {
    "plain": (
        {"optimizer": {"name": "adam", "lr": PLATEAU}, "ema": {"decay": 0.5}},
        2,
    ),
    "accumulating": (
        {"train": {"steps": 4, "batch_size": 719, "accumulate": 2}},
        1,
    ),
    "noise": (
        {"train": {"epochs": 2, "batch_size": {"noise": {"initial": 256}, "micro": 128, "maximum": 768}}},
        2,
    ),
    "federated": (
        {"phase": [{"name": "fed", "train": {"batch_size": 256, "epochs": 1}, "federated": SERVER}]},
        7,
    ),
}
"""Changes of the recipe, and after how many batches the run is left."""


def recipe(kind: str) -> Recipe:
    table: dict[str, Any] = {
        "data": {"name": "digits"},
        "model": {"name": "mlp", "hidden": [4]},
        "optimizer": {"name": "adam", "lr": 0.01},
        "train": {"steps": 4, "batch_size": 719},
    }
    return Recipe.from_dict(table | KINDS[kind][0])


def error_of(call: Callable[[], Any]) -> str:
    """Return what polyopt says of it, ``""`` where it works."""
    try:
        call()
    except PolyoptError as e:
        return str(e)
    return ""


def resumed(of: Recipe, folder: Path) -> str:
    """Return the error of going on, ``""`` where there is none."""
    return error_of(lambda: train(of, backend="numpy", out=folder, resume=True))


def check(of: Recipe, whole: Path, place: Path, seeds: range) -> int:
    """Resume from mutants of every file; return how many were refused."""
    files = sorted(x for x in whole.rglob("*") if x.name in ("history.json", "checkpoint.safetensors"))
    files += sorted(whole.glob("phases.json"))
    refused = 0
    for seed in seeds:
        draw = Random(seed)
        folder = place / "hurt"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        file = folder / draw.choice(files).relative_to(whole)
        if file.suffix == ".json":
            file.write_text(mutant(json.loads(file.read_text()), draw))
        else:
            header, own, data = opened(file)
            closed(file, header, mutant(own, draw), data)
        error = resumed(of, folder)
        assert len(error) < 1000, (seed, error[:300])
        assert error.isprintable(), (seed, error)
        refused += bool(error)
    return refused


@pytest.mark.parametrize("kind", KINDS)
def test_nonsense_in_a_folder_is_one_readable_error(tmp_path: Path, kind: str) -> None:
    of = recipe(kind)
    train(of, backend="numpy", out=tmp_path / "whole", max_steps=KINDS[kind][1])
    assert not resumed(of, Path(shutil.copytree(tmp_path / "whole", tmp_path / "sound")))
    assert check(of, tmp_path / "whole", tmp_path, range(20)) > 10


def test_a_slot_that_is_a_table(tmp_path: Path) -> None:
    of = recipe("plain")
    train(of, backend="numpy", out=tmp_path, max_steps=2)
    file = tmp_path / "checkpoint.safetensors"
    header, own, data = opened(file)
    slots = own["state"]["dict"]["slots"]["dict"]["exp_avg"]["dict"]
    gone = [x for x in own["tensors"] if x.startswith("slots/exp_avg/")]
    slots |= {x.removeprefix("slots/exp_avg/"): {"dict": {"a": {"tensor": x}}} for x in gone}
    closed(file, header, json.dumps(own), data)
    assert "expected an array of shape" in resumed(of, tmp_path)


def readable(error: str) -> bool:
    return len(error) < 700 and (not error or error.isprintable())


@pytest.mark.parametrize("kind", KINDS)
def test_nonsense_in_a_recipe_is_one_readable_error(tmp_path: Path, kind: str) -> None:
    table, file = recipe(kind).to_dict(), tmp_path / "recipe.json"
    for seed in range(150):
        file.write_text(mutant(table, Random(seed)))
        error = error_of(lambda: Recipe.load(file))
        assert readable(error), (seed, error[:300])
    error = error_of(lambda: Recipe.from_dict(table | {"optimizer": {"name": "adam", "lr": "x" * 3000}}))
    assert error
    assert readable(error)


def test_nonsense_in_a_checkpoint_is_one_readable_error(tmp_path: Path) -> None:
    params = {"a": {"w": np.ones((2, 3), np.float32)}, "b": np.zeros(3)}
    state, file = Optimizer(Adam()).init(params), tmp_path / "x"
    checkpoint.save(file, params, state, {"k": [1, {"z": 2.5}]})
    header, own, data = opened(file)
    for seed in range(300):
        draw = Random(seed)
        if draw.random() < 0.7:
            closed(file, header, mutant(own, draw), data)
        else:
            head = mutant(header, draw).encode()
            file.write_bytes(len(head).to_bytes(8, "little") + head + data)
        likes: list[dict[str, Any]] = [{}, {"like": params, "state_like": state}]
        for like in likes:
            error = error_of(partial(checkpoint.load, file, **like))
            assert readable(error), (seed, error[:300])
