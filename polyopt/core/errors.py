"""Errors that name what is wrong, what was found, what was expected and the nearest valid name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

LONGEST_WORD, LONGEST_LINE = 240, 800
"""Characters of a message's longest word and line; what is longer loses its middle."""


def readable(message: str) -> str:
    """Cut what no one would read out of ``message``: the middle of each overlong word and line.

    Parameters
    ----------
    message
        A message that quotes what was found, which may be of any length.

    Returns
    -------
    str
        Lines of at most 800 characters, of words of at most 240.

    Examples
    --------
    >>> readable(f"unknown name {'x' * 3000!r}").count("x")
    170
    """
    words = re.sub(rf"\S{{{LONGEST_WORD},}}", lambda found: f"{found[0][:120]}…{found[0][-52:]}", message)
    lines = words.split("\n")
    return "\n".join(x if len(x) <= LONGEST_LINE else f"{x[:500]} … {x[-250:]}" for x in lines)


class PolyoptError(Exception):
    """Base of every error that polyopt raises on purpose; its messages are of a readable length."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*(readable(x) if isinstance(x, str) else x for x in args))


class InputError(PolyoptError, ValueError):
    """A value, key, leaf or dtype that can't be used. Nothing was changed."""


class RuleError(InputError, TypeError):
    """A rule that breaks its contract: by what a function of it reads, does or returns."""


class BackendError(PolyoptError, ImportError):
    """An unknown backend, or one whose framework is not installed."""


class CheckpointError(PolyoptError, ValueError):
    """A file that is not a whole, sound polyopt checkpoint. Nothing was changed."""


class NonFiniteError(PolyoptError, FloatingPointError):
    """A gradient holds inf or NaN and the policy is ``nonfinite="raise"``."""


class UnchangedWarning(UserWarning):
    """A step on a model's own parameters that leaves them as they are, and returns new arrays."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Say which valid name is meant, or list them when none is close.

    >>> nearest("adma", ["adam", "sgd"])
    "did you mean 'adam'?"
    >>> nearest("zzz", ["sgd", "adam"])
    "known: 'adam', 'sgd'"
    """
    known = sorted(set(choices))
    close = difflib.get_close_matches(name[:LONGEST_WORD], known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    more = f", … ({len(known)} in all)" if len(known) > 12 else ""
    return "known: " + (", ".join(repr(k) for k in known[:12]) + more or "none")
