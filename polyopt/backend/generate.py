"""Share what kernels generated from a program have in common: their columns, their names and statements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from polyopt.core.trace import Program

Storage = TypeVar("Storage")
"""A framework's dtype."""


@dataclass(frozen=True)
class Column(Generic[Storage]):
    """An array of every leaf: ``given`` by the caller, ``written``, or both: then in place."""

    name: str
    storage: Storage
    given: bool
    written: bool


def columns(
    program: Program, storage: Mapping[str, Storage], compute: Storage, donate: bool
) -> tuple[Column[Storage], ...]:
    """Return what a kernel of ``program`` is given and what is made for it.

    Parameters
    ----------
    program
        What it computes.
    storage
        The dtype of each array that ``program`` touches.
    compute
        The dtype of new arrays that replace none.
    donate
        Write into the arrays that are replaced.
    """
    in_place = set(program.replaced) if donate else set()
    given = [n for n in program.touched if n in program.used or n in in_place]
    made = [n for n in program.written if n not in in_place]
    return (
        *(Column(n, storage[n], True, n in in_place) for n in given),
        *(Column(n, storage.get(n, compute), False, True) for n in made),
    )


class Names:
    """Name a program's values in a source: ``x0``, ``x1``, …, in the order in which they are asked for.

    >>> name = Names()
    >>> name("p"), name("g"), name("p")
    ('x0', 'x1', 'x0')
    """

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def __call__(self, value: str) -> str:
        """Return the name of ``value``."""
        return self._names.setdefault(value, f"x{len(self._names)}")


def statements(program: Program, expressions: Mapping[str, str], name: Names, **words: str) -> list[str]:
    """Write what ``program`` computes of arrays, one assignment for each operation.

    Parameters
    ----------
    program
        What is computed of scalars alone is left out.
    expressions
        For each operation its text, with ``{0}``, ``{1}``, … for the operands.
    name
        The values' names.
    **words
        More that the expressions have in braces.
    """
    known = program.scalar_names
    return [
        f"{name(i.name)} = {expressions[i.op].format(*map(name, i.args), **words)}"
        for i in program.body
        if i.name not in known
    ]
