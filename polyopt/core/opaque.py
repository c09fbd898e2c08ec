"""Keep compilers out of functions that compile by themselves: TensorFlow's AutoGraph, PyTorch's Dynamo."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])

REASON = "polyopt compiles by itself"


def opaque(function: F) -> F:
    """Mark ``function`` so that AutoGraph and Dynamo call it as it is.

    Inside of a user's ``tf.function`` AutoGraph would rewrite it, and warn of what it can't. The mark is the
    one that ``tf.autograph.experimental.do_not_convert`` sets. Inside of a user's ``torch.compile`` Dynamo
    would trace it, in a dozen graphs, and fail where it reads memory: one mark makes it end its graph before
    the call, and as soon as there is a Dynamo in the process the call goes through
    ``torch.compiler.disable``. Neither framework is imported.

    Parameters
    ----------
    function
        What is called from a user's program.

    Returns
    -------
    Callable
        A function that does the same.

    Examples
    --------
    >>> opaque(lambda x: abs(x))(-1)
    1
    """
    outside: list[Callable[..., Any]] = []

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if "torch._dynamo" not in sys.modules:
            return function(*args, **kwargs)
        if not outside:
            torch = sys.modules["torch"]
            if torch.compiler.is_dynamo_compiling():
                torch._dynamo.skip_frame(REASON)  # else it would compile this function, once for each caller
            outside.append(torch.compiler.disable(function, reason=REASON))
        return outside[0](*args, **kwargs)

    call.autograph_info__ = {}  # type: ignore[attr-defined]
    call._torchdynamo_disable = True  # type: ignore[attr-defined]
    call._torchdynamo_disable_msg = REASON  # type: ignore[attr-defined]
    return cast(F, call)
