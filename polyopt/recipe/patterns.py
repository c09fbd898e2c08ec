"""Fields of sections that name parameters: regular expressions, and tables by them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, PlainSerializer, PlainValidator

from polyopt.recipe.problems import Problem, shown
from polyopt.recipe.sections import _pattern, _tuple

RegularExpression: TypeAlias = Annotated[str, PlainValidator(_pattern)]
Patterns: TypeAlias = Annotated[tuple[RegularExpression, ...], BeforeValidator(_tuple)]


def _by_pattern(value: Any) -> tuple[tuple[str, float], ...]:
    if isinstance(value, tuple):
        value = dict(value)
    if not isinstance(value, Mapping):
        raise Problem((), f" = {shown(value)}; expected a table of numbers by pattern")
    for pattern, x in value.items():
        try:
            _pattern(pattern)
        except Problem as problem:
            raise Problem((pattern,), problem.message) from None
        if isinstance(x, bool) or not isinstance(x, int | float) or not 0 <= x < float("inf"):
            raise Problem((pattern,), f" = {shown(x)}; expected a finite number >= 0")
    return tuple((pattern, float(x)) for pattern, x in value.items())


ByPattern: TypeAlias = Annotated[Any, PlainValidator(_by_pattern), PlainSerializer(dict, return_type=dict)]
