"""Check plain data that a run kept: anybody may have written it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from polyopt.core.errors import CheckpointError, PolyoptError
from polyopt.core.files import shown_path
from polyopt.recipe.problems import shown

MOST = 1 << 62
"""The largest count that a file may hold, exclusive."""


@contextmanager
def refusing(file: Path, what: str, error: type[PolyoptError]) -> Iterator[None]:
    """Turn whatever nonsense in ``file`` causes into one error, which says ``what`` it is not."""
    try:
        yield
    except PolyoptError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as e:
        reason = f" ({type(e).__name__}: {shown(str(e))})" if str(e) else ""
        raise error(f"{shown_path(file)}: not {what}{reason}") from None


def count(value: Any) -> int:
    """Return a whole number from 0, or raise ``ValueError``.

    >>> count(3)
    3
    """
    if type(value) is not int or not 0 <= value < MOST:
        raise ValueError(f"{shown(value)}; expected a whole number from 0")
    return value


def number(value: Any) -> float:
    """Return a float, ``"nan"`` and ``"inf"`` too, or raise ``ValueError``.

    >>> number("-inf"), number(3)
    (-inf, 3.0)
    """
    if type(value) not in (int, float) and value not in ("nan", "inf", "-inf"):
        raise ValueError(f"{shown(value)}; expected a number")
    return float(value)


def check_like(found: Any, like: Any, where: str) -> None:
    """Refuse data of another structure than ``like``: its keys, its arrays' shapes and dtypes, its numbers.

    An empty table in ``like`` stands for one of counts.

    Raises
    ------
    CheckpointError
        It names the entry.

    Examples
    --------
    >>> check_like({"step": 3, "missed": {"w": 1}}, {"step": 0, "missed": {}}, "state")
    >>> check_like({"step": -1}, {"step": 0}, "state")
    Traceback (most recent call last):
        ...
    polyopt.core.errors.CheckpointError: state.step is -1; expected a whole number from 0
    """
    if isinstance(like, Mapping):
        if not isinstance(found, Mapping):
            raise CheckpointError(f"{where} is {shown(found)}; expected a table")
        for key in like if like else found:
            if key not in found:
                raise CheckpointError(f"{where} has no {shown(key)}")
            check_like(found[key], like[key] if like else 0, f"{where}.{key}"[:200])
        for key in found:
            if like and key not in like:
                raise CheckpointError(f"{where} has the unknown entry {shown(key)}")
    elif hasattr(like, "shape"):
        wanted = f"{like.dtype} of shape {tuple(like.shape)}"
        have = f"{found.dtype} of shape {tuple(found.shape)}" if hasattr(found, "shape") else shown(found)
        if have != wanted:
            raise CheckpointError(f"{where} is {have}; expected {wanted}")
    elif isinstance(like, float):
        if type(found) not in (int, float) or (type(found) is int and abs(found) >= MOST):
            raise CheckpointError(f"{where} is {shown(found)}; expected a number")
    elif type(like) is int and (type(found) is not int or not 0 <= found < MOST):
        raise CheckpointError(f"{where} is {shown(found)}; expected a whole number from 0")
