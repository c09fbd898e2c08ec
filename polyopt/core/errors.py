"""Errors that name what is wrong, what was found, what was expected and the nearest valid name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PolyoptError(Exception):
    """Base of every error that polyopt raises on purpose."""


class InputError(PolyoptError, ValueError):
    """A value, key, leaf or dtype that can't be used. Nothing was changed."""


class BackendError(PolyoptError, ImportError):
    """An unknown backend, or one whose framework is not installed."""


class CheckpointError(PolyoptError, ValueError):
    """A file that is not a whole, sound polyopt checkpoint. Nothing was changed."""


class NonFiniteError(PolyoptError, FloatingPointError):
    """A gradient holds inf or NaN and the policy is ``nonfinite="raise"``."""


class UnchangedWarning(UserWarning):
    """A step on a model's own parameters that leaves them as they are, and returns new arrays."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Say which valid name is meant, or list them all when none is close.

    >>> nearest("adma", ["adam", "sgd"])
    "did you mean 'adam'?"
    >>> nearest("zzz", ["sgd", "adam"])
    "known: 'adam', 'sgd'"
    """
    known = sorted(set(choices))
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return "known: " + (", ".join(repr(k) for k in known[:12]) or "none")
