"""Find in one pass over all gradients whether they are finite, and their joint norm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import is_
from typing import Any

from polyopt.backend.evaluate import cast
from polyopt.backend.protocol import Backend
from polyopt.core.ops import Array
from polyopt.core.reductions import root_sum_squares
from polyopt.engine.lift import all_finite


class GradientPass:
    """True if the gradients ``leaves`` are finite and, where it will be asked for as well, their joint norm.

    Parameters
    ----------
    norm
        The compute dtype in which the norm will be wanted; ``None`` where it won't be.
    """

    def __init__(self, backend: Backend, leaves: list[Array], norm: str | None, compiled: bool) -> None:
        self.backend, self._leaves, self._dtype, self._compiled = backend, leaves, norm, compiled
        self._norm: tuple[Array, Array] | None = None

    def finite(self) -> Array:
        """Return a 0-d bool: True if no element is inf or NaN."""
        if self._dtype is None or not self._leaves:
            return all_finite(self.backend, self._leaves)
        root, scale, finite = _norm(self.backend, self._dtype, self._compiled)(self._leaves)
        self._norm = root, scale
        return finite

    def norm(self, leaves: Sequence[Array], dtype: str) -> tuple[Array, Array] | None:
        """Return ``root_sum_squares`` of ``leaves`` if the pass gave it, else ``None``."""
        if self._norm is None or dtype != self._dtype or len(leaves) != len(self._leaves):
            return None
        return self._norm if all(map(is_, leaves, self._leaves)) else None


@lru_cache(maxsize=16)
def _norm(backend: Backend, dtype: str, compiled: bool) -> Callable[[list[Array]], tuple[Array, ...]]:
    def run(xp: Any, leaves: list[Array]) -> tuple[Array, ...]:
        root, scale = root_sum_squares(xp, [cast(backend, x, dtype) for x in leaves])
        # No square overflows at its scale: the root is finite where every element is.
        return root, scale, xp.isfinite(root)

    return backend.compile(run, exact=True) if compiled else lambda leaves: run(backend.ops, leaves)


class KnownNorm:
    """``xp`` for a measurement whose norm was taken before."""

    def __init__(self, xp: Any, norm: tuple[Array, Array]) -> None:
        self._xp, self.known_norm = xp, norm

    def __getattr__(self, name: str) -> Any:
        return getattr(self._xp, name)
