"""Start the commands that run a recipe: find the recipe, the backend and the folder, show a bar."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from polyopt.cli import folder, output
from polyopt.core.errors import InputError

if TYPE_CHECKING:
    from polyopt.recipe import Recipe


@dataclass(frozen=True)
class Request:
    """Hold the options of the command as they were given."""

    recipe: Path
    overrides: Mapping[str, Any]
    """Values in the place of the recipe's own, by ``Recipe.replace``'s names; ``None`` for none."""
    out: Path | None

    def load(self) -> Recipe:
        """Read the recipe, with the values given on the command line."""
        from polyopt.recipe import Recipe

        if self.overrides.get("epochs") is not None and self.overrides.get("steps") is not None:
            raise InputError("--epochs and --steps: give one of the two")
        recipe = Recipe.load(self.recipe)
        # Runs of files that name nothing would all go to one folder.
        name = None if "name" in recipe.model_fields_set else self.recipe.stem
        return recipe.replace(name=name, **self.overrides)

    def folder(self, name: str) -> Path:
        """Return ``--out``, or a folder of that name."""
        return self.out or Path("runs") / file_name(name)


@dataclass(frozen=True)
class RunRequest(Request):
    """The same for what runs on one backend and can be gone on with."""

    backend: str | None
    device: str | None
    resume: bool
    overwrite: bool

    def start(
        self, files: tuple[str, ...], stillborn: Callable[[Path], bool], kind: str = ""
    ) -> tuple[Recipe, str, Path, bool]:
        """Return the recipe, the backend's name, the folder, and True to go on from the run in it.

        The folder is checked for ``files`` of an earlier run: see ``folder.check``.
        """
        from polyopt.backend import registry

        recipe = self.load()
        backend = registry.get_backend(self.backend).name
        out = self.folder(f"{recipe.name}{kind}-{backend}")
        goes_on = folder.check(out, files, resume=self.resume, overwrite=self.overwrite, stillborn=stillborn)
        if self.resume and not goes_on:
            output.say(f"nothing was saved in {out} yet: it begins anew")
        return recipe, backend, out, goes_on


def file_name(name: str) -> str:
    """Return ``name`` without what could lead to another folder.

    >>> file_name("../my digits-numpy")
    'my-digits-numpy'
    """
    return re.sub(r"[^\w.]+", "-", name).strip("-.") or "run"


def bar() -> Progress:
    """Show a bar with what is at work and its figures, on a terminal; nothing elsewhere."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    return Progress(*columns, console=output.log(), disable=not output.on_terminal())
