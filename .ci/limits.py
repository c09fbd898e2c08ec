"""Hold what ruff can't: lengths of files and functions, and numpydoc's sections of public names.

Exits with 1 and a line for each fault. Which of numpydoc's checks count is said in pyproject.toml.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from typing import Any

from numpydoc.validate import validate
from public_names import ROOT, documented_objects

FILE, TESTS, FUNCTION = 400, 530, 50
"""Lines: of a file, of a file of tests (tables of cases, which are read by looking up), of a function."""


def lengths() -> Iterator[str]:
    """Yield files that are too long, and functions, whose docstrings don't count."""
    for folder in ("polyopt", "backends", "benchmarks", "tests", ".ci"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            text, limit = path.read_text("utf-8"), TESTS if folder == "tests" else FILE
            name, lines = path.relative_to(ROOT), text.count("\n")
            if lines > limit:
                yield f"{name}: {lines} lines; expected at most {limit}"
            for node in ast.walk(ast.parse(text)):
                if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    continue
                body = node.body[1:] if ast.get_docstring(node, clean=False) else node.body
                lines = node.end_lineno - body[0].lineno + 1 if body and node.end_lineno else 0
                if lines > FUNCTION:
                    yield f"{name}:{node.lineno}: {node.name} has {lines} lines; expected at most {FUNCTION}"


def attributes(kind: type[Any]) -> set[str]:
    """Return the fields of a class that a string under them documents."""
    found = set()
    for base in kind.__mro__[:-1]:
        if not base.__module__.startswith("polyopt"):
            continue
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(node, ast.ClassDef)
        for first, second in zip(node.body, node.body[1:], strict=False):
            if isinstance(first, ast.AnnAssign) and isinstance(second, ast.Expr):
                found.add(ast.unparse(first.target))
    return found


def docstrings() -> Iterator[str]:
    """Yield public names whose docstring lacks a section, or has one that fits nothing."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["numpydoc_validation"]
    for name, value in documented_objects().items():
        found = validate(name)
        for code, message in found["errors"]:
            if code not in table["checks"]:
                continue
            if code == "PR01" and inspect.isclass(value):
                missing = set(ast.literal_eval(message[message.index("{") : message.rindex("}") + 1]))
                # An abstract class has no arguments of its own.
                if missing <= attributes(value) or inspect.isabstract(value):
                    continue
            yield f"{name}: {code} {message}"


if __name__ == "__main__":
    faults = [*lengths(), *docstrings()]
    print(*faults, sep="\n", end="\n" if faults else "")
    sys.exit(bool(faults))
