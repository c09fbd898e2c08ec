"""``polyopt compression``: what pruning, quantization and distillation cost, measured and written down."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyopt.cli import folder, output
from polyopt.core.errors import BackendError, InputError, nearest
from polyopt.core.files import read_bounded, write_atomic

PAGE, PICTURE, RESULTS = "compression.md", "compression.svg", "compression.json"
MAX_BYTES = 16 << 20


@dataclass(frozen=True)
class Request:
    """Hold the options of the command as they were given."""

    recipes: Path
    backends: Sequence[str]
    seeds: int
    only: Sequence[str]
    render: bool
    results: Path
    out: Path


def compression(request: Request, as_json: bool) -> int:
    """Measure, keep, draw and write; 1 where something that must hold does not."""
    from polyopt.cli.compression import measure, page, picture

    names = _checked(request, list(measure.PARTS))
    file = request.results / RESULTS
    found = _read(file)
    if not request.render:
        for part in request.only or measure.PARTS:
            with _announced(part):
                found |= measure.part(part, request.recipes, names, request.seeds, found)
            write_atomic(file, [json.dumps(output.plain(found), indent=1, allow_nan=False).encode()])
    if not found:
        raise InputError(f"--render: nothing was measured yet, {file} is missing")
    verdicts = page.verdicts(found)
    remark = folder.draw(picture.picture, request.out / PICTURE, found)
    if remark:
        output.say(remark)
    write_atomic(request.out / PAGE, [page.page(found, drawn=remark is None).encode()])
    if as_json:
        output.emit(
            {"requirements": [v.plain() for v in verdicts], "page": request.out / PAGE, "results": file}
        )
    else:
        rows = [("pass" if v.holds else "miss", v.what, v.found) for v in verdicts]
        output.screen().print(output.table("What must hold", ("", "requirement", "measured"), rows))
        print(f"page       {request.out / PAGE}")
    return 0 if all(v.holds for v in verdicts) else 1


def _checked(request: Request, parts: Sequence[str]) -> list[str]:
    from polyopt.backend import registry

    for part in request.only:
        if part not in parts:
            raise InputError(f"--only {part}: {nearest(part, parts)}")
    if request.seeds < 2:
        raise InputError(f"--seeds {request.seeds}: expected at least 2, for a spread")
    if not request.recipes.is_dir():
        raise InputError(f"--recipes {request.recipes}: no such folder")
    for name in request.backends:
        if name not in registry.names():
            raise BackendError(f"--backend: unknown backend {name!r}; {nearest(name, registry.names())}")
    return list(request.backends) or sorted(registry.installed(), key=lambda name: name != "numpy")


def _read(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        found: Any = json.loads(read_bounded(file, MAX_BYTES, "list of results"))
    except ValueError:
        raise InputError(f"{file}: not what this command wrote; remove it and measure again") from None
    return dict(found) if isinstance(found, Mapping) else {}


@contextmanager
def _announced(part: str) -> Iterator[None]:
    output.say(f"measuring {part} …")
    yield
