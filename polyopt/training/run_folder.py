"""A run's folder: its recipe, its checkpoint and its history, each written whole or not at all."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from polyopt import checkpoint
from polyopt.core.errors import CheckpointError, InputError
from polyopt.core.files import read_bounded, remove_leftovers, shown_path, write_atomic
from polyopt.engine.batches.plan import Cursor
from polyopt.recipe import Recipe
from polyopt.recipe.problems import shown
from polyopt.training.events import Evaluation, History, PhaseResult
from polyopt.training.kept import check_like, count, number, refusing
from polyopt.training.phases.federated import KEPT
from polyopt.training.run_state import Progress
from polyopt.training.trainer import Trainer

CHECKPOINT, HISTORY, RECIPE = "checkpoint.safetensors", "history.json", "recipe.toml"
MAX_HISTORY = 1 << 30
MODEL, PHASES, RESULTS = "model.safetensors", "phases", "phases.json"
EXTENDABLE = ("name", "train.epochs", "train.steps")
"""Keys that may differ when a run is resumed; with phases, only the first: they go on from its end."""


class Folder:
    """Read and write the folder of a run.

    The history is written before the checkpoint and is cut to the checkpoint's step when it is read, so a
    run that is killed at any moment finds the two in agreement.
    """

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.path, self.recipe = path, recipe

    @property
    def checkpoint(self) -> Path:
        """Return the path of the checkpoint."""
        return self.path / CHECKPOINT

    def begin(self) -> None:
        """Write the recipe."""
        write_atomic(self.path / RECIPE, [self.recipe.to_toml().encode()])

    def save(self, engine: Trainer, at: Progress) -> Path:
        """Write history and checkpoint as of now."""
        engine.fetch(at)
        meta = {
            "recipe": self.recipe.to_dict(),
            "backend": engine.backend.name,
            "versions": engine.backend.versions(),
            "record": engine.record,
            **asdict(at.place),
            "loss_sum": at.loss_sum,
            "loss_count": at.loss_count,
        }
        write_atomic(self.path / HISTORY, [_history_text(engine, at)])
        checkpoint.save(self.checkpoint, at.params, engine.kept(at), meta)
        return self.checkpoint

    def resume(self, engine: Trainer) -> Progress:
        """Return the run as the checkpoint has it; refuse one of another recipe by the key that differs."""
        if not self.checkpoint.exists():
            raise InputError(f"{self.checkpoint}: no checkpoint to resume from; start without resume")
        for name in (CHECKPOINT, HISTORY, RECIPE, MODEL):
            remove_leftovers(self.path / name)
        with refusing(self.checkpoint, "one of a training run", CheckpointError):
            at, meta = self._loaded(engine)
        if meta.get("record") != engine.record:
            raise InputError(f"record = {engine.record!r}; the run began with {meta.get('record')!r}")
        done, whole = engine.way(at)
        if done > whole:
            where = f"step {done}" if engine.steps is not None else f"sample {done}"
            raise InputError(
                f"{self.checkpoint} is at {where}, beyond the recipe's {whole}; "
                "give more train.epochs or train.steps"
            )
        at.history = self._history(at.step, engine.record)
        return at

    def _loaded(self, engine: Trainer) -> tuple[Progress, dict[str, Any]]:
        """Read the checkpoint: how the run stands, and then the arrays of a run that stands so."""
        found = checkpoint.load(self.checkpoint)
        meta = found.meta
        self._check_recipe(meta.get("recipe"))
        fresh = engine.start(count(meta["step"]))
        kept = {key: meta[key] for key in ("step", "position", "noise", "loss_sum", "loss_count")}
        like = {"step": 0, "position": 0, "loss_sum": 0.0, "loss_count": 0, "noise": fresh.place.noise}
        plain = {key: x for key, x in (found.state or {}).items() if key not in ("slots", KEPT)}
        try:
            check_like(kept, like, "meta")
            check_like(plain, {key: x for key, x in fresh.state.items() if key != "slots"}, "state")
            server = None if fresh.server is None else _server(found.state, fresh.server.plain())
        except CheckpointError as e:
            raise CheckpointError(f"{shown_path(self.checkpoint)}: {e}") from None
        del found, plain  # the arrays may be large, and are read once more
        found = checkpoint.load(
            self.checkpoint, fresh.params, engine.backend, engine.device, state_like=fresh.state
        )
        assert found.state is not None
        place = Cursor(*(meta[key] for key in ("step", "position", "noise")))
        counts = {key: meta[key] for key in ("loss_sum", "loss_count")}
        return engine.resume(found.params, found.state, server, place, **counts), meta

    def _check_recipe(self, earlier: Any) -> None:
        was, now = flat(earlier if isinstance(earlier, dict) else {}), flat(self.recipe.to_dict())
        free = EXTENDABLE[:1] if self.recipe.phase else EXTENDABLE
        may = "nothing may" if self.recipe.phase else "only train.epochs and train.steps may"
        for key in sorted({*was, *now} - set(free)):
            if was.get(key) != now.get(key):
                raise InputError(
                    f"{key} = {shown(now.get(key))}; the run in {self.path} began with "
                    f"{shown(was.get(key))}: {may} change when it is resumed"
                )

    def _history(self, step: int, record: str) -> History:
        file = self.path / HISTORY
        text = read_bounded(file, MAX_HISTORY, "history")
        with refusing(file, "a history that a run wrote; remove the folder and start again", InputError):
            table = json.loads(text)
            loss = [number(x) for x in table["loss"]][:step]
            size = [count(x) for x in table["size"]][:step]
            tests = [x for x in map(_evaluation, table["evaluations"]) if x.step <= step]
        for what, found in (("losses", loss), ("sizes", size)):
            if record == "step" and len(found) != step:
                raise InputError(f"{file}: holds {len(found)} {what}; the checkpoint is at step {step}")
        return History(loss, tests, size)


def stillborn(folder: Path) -> bool:
    """Return True if a run began in ``folder`` and ended before it had saved anything.

    A recipe there that no run wrote is the user's own: it is not to be replaced unasked.
    """
    if any((folder / name).exists() for name in (CHECKPOINT, MODEL, PHASES)):
        return False
    try:
        text = read_bounded(folder / RECIPE, MAX_HISTORY, "recipe").decode()
        return Recipe.parse(text).to_toml() == text
    except (InputError, UnicodeDecodeError):
        return False


def forget_phases(path: Path) -> None:
    """Take away what an earlier run's phases would be resumed from."""
    for old in path.glob(f"{PHASES}/*/{CHECKPOINT}"):
        old.unlink()
    for name in (RESULTS, MODEL):
        (path / name).unlink(missing_ok=True)


def phase_folder(path: Path, number: int, name: str) -> Path:
    """Return where a phase is kept.

    >>> phase_folder(Path("run"), 2, "pruned/80 %").as_posix()
    'run/phases/2-pruned-80'
    """
    return path / PHASES / f"{number}-{re.sub(r'[^0-9A-Za-z_.]+', '-', name).strip('-.')}"


def write_results(path: Path, results: Sequence[PhaseResult]) -> None:
    """Keep the figures of the phases that are done."""
    rows = [{k: str(v) if isinstance(v, Path) else _number(v) for k, v in asdict(r).items()} for r in results]
    write_atomic(path / RESULTS, [json.dumps(rows, indent=1, allow_nan=False).encode()])


def read_figures(path: Path) -> dict[str, tuple[float, float | None, float]]:
    """Test loss and accuracy of each phase that was done before, and how long it took; without a file none.

    What is tested again would give the same, on the same backend.
    """
    file = path / RESULTS
    for name in (RESULTS, MODEL):
        remove_leftovers(path / name)
    if not file.exists():
        return {}
    with refusing(file, "a list that a run wrote; remove it and resume again", InputError):
        rows = json.loads(read_bounded(file, MAX_HISTORY, "list of phases"))
        return {str(row["name"]): _figures(row) for row in rows}


def _figures(row: dict[str, Any]) -> tuple[float, float | None, float]:
    accuracy = row["test_accuracy"]
    return number(row["test_loss"]), None if accuracy is None else number(accuracy), number(row["seconds"])


def _evaluation(row: dict[str, Any]) -> Evaluation:
    accuracy = row["test_accuracy"]
    return Evaluation(
        count(row["step"]),
        count(row["epoch"]),
        number(row["test_loss"]),
        None if accuracy is None else number(accuracy),
    )


def _server(state: Any, fresh: dict[str, Any]) -> dict[str, Any]:
    """Return the server's part of a federated run's state, which is like that of a fresh one."""
    kept: dict[str, Any] = state[KEPT]
    sent = kept["sent"]
    check_like({**kept, "sent": {}}, {**fresh, "sent": {}}, KEPT)
    for client, params in sent.items():
        count(int(client))
        check_like(params, fresh["params"], f"{KEPT}.sent.{client}"[:200])
    return kept


def flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as ``{dotted key: value}``.

    >>> flat({"train": {"epochs": 3}})
    {'train.epochs': 3}
    """
    found: dict[str, Any] = {}
    for key, value in table.items():
        if key == "phase":
            value = {str(i): phase for i, phase in enumerate(value)}
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _history_text(engine: Trainer, at: Progress) -> bytes:
    table = {
        "backend": engine.backend.name,
        "step": at.step,
        "loss": [_number(x) for x in at.history.loss],
        "size": at.history.size,
        "evaluations": [_finite(asdict(e), _number) for e in at.history.evaluations],
    }
    return json.dumps(table, allow_nan=False).encode()


def _number(x: Any) -> Any:
    """JSON has no NaN nor infinities: they are ``"nan"``, ``"inf"`` and ``"-inf"``."""
    return repr(x) if isinstance(x, float) and not math.isfinite(x) else x


def _finite(evaluation: dict[str, Any], change: Any) -> dict[str, Any]:
    keys = ("test_loss", "test_accuracy")
    return {k: change(v) if k in keys and v is not None else v for k, v in evaluation.items()}
