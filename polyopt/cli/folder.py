"""The folder that a run writes to: checked before anything is computed, so that bad input writes nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from polyopt.core.errors import InputError
from polyopt.core.install import pip_install


def check(
    folder: Path,
    files: tuple[str, ...],
    *,
    resume: bool = False,
    overwrite: bool = False,
    stillborn: Callable[[Path], bool] | None = None,
) -> bool:
    """See that the run may write to ``folder``.

    Parameters
    ----------
    folder, files
        Where, and the names of what an earlier run may have left there: first what it goes on from.
    resume, overwrite
        Leave to go on from an earlier run, or to replace it.
    stillborn
        True of a folder whose run ended before it had saved anything: it needs no leave.

    Returns
    -------
    bool
        True if there is something to go on from, and leave to do so.

    Raises
    ------
    InputError
        Where it is a file, can't be written to, or holds an earlier run without such leave.
    """
    if resume and overwrite:
        raise InputError("--resume and --overwrite: give one, to go on from a run or to replace it")
    for part in (folder, *folder.parents):
        if part.exists():
            if not part.is_dir():
                raise InputError(f"--out {folder}: {part} is a file; give a folder")
            if not os.access(part, os.W_OK | os.X_OK):
                raise InputError(f"--out {folder}: no permission to write in {part}; give another folder")
            break
    held = [name for name in files if (folder / name).exists()]
    if held and stillborn is not None and stillborn(folder):
        return False
    if held and not (resume or overwrite):
        # The first file is the checkpoint: a run that failed before it was saved has none.
        go_on = "--resume to go on from it or " if held[0] == files[0] else ""
        raise InputError(
            f"--out {folder}: {held[0]} of an earlier run is there; add {go_on}--overwrite to replace it"
        )
    if resume and files[0] not in held:
        raise InputError(f"--resume: no run to go on from in {folder} ({files[0]} is missing)")
    return resume


def draw(figure: Callable[..., None], picture: Path, *args: Any, **kwargs: Any) -> str | None:
    """Draw ``picture``; where matplotlib is missing, a remark that says what to install instead."""
    try:
        figure(picture, *args, **kwargs)
    except ModuleNotFoundError as e:
        if (e.name or "").split(".")[0] != "matplotlib":
            raise
        return f"no picture: matplotlib is missing: {pip_install('plot')}"
    return None
