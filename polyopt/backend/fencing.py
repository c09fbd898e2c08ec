"""Keep a compiler from contracting operations, so that each is rounded by itself."""

from __future__ import annotations

from typing import Any, Final

FENCED: Final = frozenset(("astype", "divide", "matmul", "mean", "multiply", "pow", "sqrt", "square"))
"""Operations whose result a compiler may contract with what follows, approximate, or not round at all.

``astype`` is one: XLA drops a narrowing that is followed by a widening (simplify-fp-conversions).
"""


class Fencing:
    """The operations of ``ops``, with the results of those in ``FENCED`` passed through ``fence``.

    Operators between arrays are not fenced: code that wants NumPy's bits calls ``xp.multiply``,
    ``xp.divide``, ``xp.sqrt`` and so on.
    """

    def __init__(self, ops: Any) -> None:
        self._ops = ops

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._ops, name)
        if name not in FENCED:
            return operation

        def fenced(*args: Any, **options: Any) -> Any:
            return self.fence(operation(*args, **options))

        return fenced

    def fence(self, x: Any) -> Any:
        """Return ``x``, behind what the compiler can't see through."""
        raise NotImplementedError
