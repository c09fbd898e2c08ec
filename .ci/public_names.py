"""Find polyopt's public names: those of ``polyopt`` itself, and what a subpackage hands on as ``x as x``."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def handed_on(module: str) -> list[str]:
    """Return the names that a package's ``__init__`` imports as themselves."""
    tree = ast.parse((ROOT / module.replace(".", "/") / "__init__.py").read_text("utf-8"))
    found = (alias for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names)
    return [alias.name for alias in found if alias.asname == alias.name]


def public_names() -> Iterator[tuple[str, Any]]:
    """Yield each public name, dotted, with its object; one that two packages have comes twice."""
    for file in sorted(ROOT.glob("polyopt/**/__init__.py")):
        module = ".".join(file.parent.relative_to(ROOT).parts)
        for name in handed_on(module):
            yield f"{module}.{name}", getattr(import_module(module), name)


def documented_objects() -> dict[str, Any]:
    """Return classes, functions and the methods that a class adds, by the name of where they are defined.

    A method that a base class has is documented there.
    """
    found = {}
    for _, value in public_names():
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        home = f"{value.__module__}.{value.__qualname__}"
        found[home] = value
        for name, member in vars(value).items() if inspect.isclass(value) else ():
            method = inspect.isfunction(member) or isinstance(member, classmethod | staticmethod)
            if method and not name.startswith("_") and not any(name in vars(b) for b in value.__mro__[1:]):
                found[f"{home}.{name}"] = member
    return found
