"""Keep AutoGraph out of functions that compile by themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def opaque(function: F) -> F:
    """Mark ``function`` so that TensorFlow's AutoGraph calls it as it is.

    Inside of a user's ``tf.function`` AutoGraph would rewrite it, and warn of what it can't. The mark is the
    one that ``tf.autograph.experimental.do_not_convert`` sets; TensorFlow is not imported.

    Parameters
    ----------
    function
        What is called from a user's program.

    Returns
    -------
    Callable
        ``function``.

    Examples
    --------
    >>> opaque(abs_of := lambda x: abs(x))(-1)
    1
    """
    function.autograph_info__ = {}  # type: ignore[attr-defined]
    return function
