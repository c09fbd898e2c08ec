"""A study's folder: what was tried, and the best recipe, each file written whole or not at all.

Plain JSON, written after each trial. Optuna's own files would keep its trials, but neither where its sampler
stood nor the trial that was at work: a study that went on from them would try other values than one that was
never stopped.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from polyopt.core.errors import InputError
from polyopt.core.files import read_bounded, write_atomic
from polyopt.recipe import Recipe
from polyopt.recipe.problems import shown
from polyopt.training.run_folder import flat
from polyopt.training.tuning.study import STATES, Study, Trial

STUDY, BEST = "study.json", "best.toml"
MAX_BYTES = 1 << 28
EXTENDABLE = ("name", "tune.trials")
"""Keys that may differ when a study is gone on with."""
KEYS = {"backend", "recipe", "trials"}
"""Of a study's file."""


def save(folder: Path, study: Study) -> None:
    """Write the best recipe so far and the study."""
    best = study.best_recipe()
    if best is not None:
        write_atomic(folder / BEST, [best.to_toml().encode()])
    table = {
        "backend": study.backend,
        "recipe": study.recipe.to_dict(),
        "trials": [_written(trial) for trial in study.trials],
    }
    write_atomic(folder / STUDY, [json.dumps(table, allow_nan=False, indent=1).encode()])


def load(folder: Path, recipe: Recipe, backend: str) -> Study:
    """Load the study in ``folder``, to go on with.

    One of another recipe or backend is refused by what differs.
    """
    file = folder / STUDY
    if not file.exists():
        raise InputError(f"{file}: no study to go on with; start without resume")
    text = read_bounded(file, MAX_BYTES, "study")
    study = Study(recipe, backend)
    try:
        table = json.loads(text)
        began, was, now = table["backend"], flat(table["recipe"]), flat(recipe.to_dict())
        entries = list(table["trials"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise _foreign(file) from None
    if began != backend:
        raise InputError(f"{file}: began on the backend {shown(began)}; found {backend!r}: go on with that")
    for key in sorted({*was, *now} - set(EXTENDABLE)):
        if was.get(key) != now.get(key):
            raise InputError(
                f"{key} = {shown(now.get(key))}; the study in {folder} began with {shown(was.get(key))}: "
                "only tune.trials may change when it is gone on with"
            )
    try:
        study.trials = [_read(study, i, entry) for i, entry in enumerate(entries)]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise _foreign(file) from None
    return study


def stillborn(folder: Path) -> bool:
    """Return True if a study began in ``folder`` and ended before its first trial was over."""
    try:
        table = json.loads(read_bounded(folder / STUDY, MAX_BYTES, "study"))
        return not (folder / BEST).exists() and set(table) == KEYS and table["trials"] == []
    except (InputError, ValueError, TypeError, RecursionError):
        return False


def _foreign(file: Path) -> InputError:
    return InputError(f"{file}: not a study that was written here; remove it and start again")


def _written(trial: Trial) -> dict[str, Any]:
    return {
        "state": trial.state,
        "value": trial.value,
        "values": {k: list(v) if isinstance(v, tuple) else v for k, v in trial.values.items()},
        "reports": [[epoch, value] for epoch, value in trial.reports],
        "seconds": trial.seconds,
        "reason": trial.reason,
    }


def _read(study: Study, number: int, entry: Any) -> Trial:
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in entry["values"].items()}
    space = dict(study.section.space)
    if set(values) != set(space) or not all(space[key].holds(value) for key, value in values.items()):
        raise ValueError(values)
    if entry["state"] not in STATES:
        raise ValueError(entry["state"])
    value = None if entry["value"] is None else _finite(entry["value"])
    if (value is None) != (entry["state"] == "failed"):
        raise ValueError(value)
    reports = tuple((int(epoch), _finite(x)) for epoch, x in entry["reports"])
    reason = None if entry["reason"] is None else str(entry["reason"])
    return Trial(number, entry["state"], value, values, reports, _finite(entry["seconds"]), reason)


def _finite(x: Any) -> float:
    number = float(x)
    if not math.isfinite(number):
        raise ValueError(x)
    return number
