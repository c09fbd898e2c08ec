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
"""Lines: of a file, of a file of tests (tables of cases, where one looks things up), of a function."""
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


def length(node: ast.Module | ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a file, or of a function's body, less those of all docstrings in it."""
    if not node.body:
        return 0
    owners = (x for x in ast.walk(node) if isinstance(x, ast.Module | ast.ClassDef | FUNCTIONS))
    texts = [x.body[0] for x in owners if ast.get_docstring(x, clean=False) is not None]
    first = 1 if isinstance(node, ast.Module) else node.body[0].lineno
    return lines(first, node.body[-1]) - sum(lines(text.lineno, text) for text in texts)


def lines(first: int, last: ast.stmt) -> int:
    """Count the lines from ``first`` to the end of a statement."""
    return (last.end_lineno or last.lineno) - first + 1


def lengths() -> Iterator[str]:
    """Yield files and functions that are too long: what there is to read through, not to look up."""
    for folder in ("polyopt", "backends", "benchmarks", "tests", ".ci"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree, limit = ast.parse(path.read_text("utf-8")), TESTS if folder == "tests" else FILE
            name = path.relative_to(ROOT)
            if length(tree) > limit:
                yield f"{name}: {length(tree)} lines without docstrings; expected at most {limit}"
            for node in ast.walk(tree):
                if isinstance(node, FUNCTIONS) and length(node) > FUNCTION:
                    yield f"{name}: {node.name} has {length(node)} lines; expected at most {FUNCTION}"


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
