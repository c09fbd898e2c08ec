"""Find in one pass over all gradients whether they are finite, and their joint norm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import is_
from typing import Any, Literal, TypeAlias

from polyopt.backend.evaluate import cast
from polyopt.backend.protocol import Backend
from polyopt.core.errors import InputError, NonFiniteError
from polyopt.core.ops import Array
from polyopt.core.reductions import root_sum_squares
from polyopt.engine.lift import all_finite

Policy: TypeAlias = Literal["propagate", "skip", "raise"]


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


def verdict(
    reading: GradientPass | None, policy: Policy, paths: Sequence[str], g: Sequence[Array | None]
) -> Any:
    """Return whether the gradients that ``reading`` reads are finite, if that is asked.

    Parameters
    ----------
    reading
        The pass; ``None`` where nothing is asked.
    policy
        ``"raise"`` raises where they aren't.
    paths, g
        All gradients with their names, for the error.

    Returns
    -------
    bool, Array or None
        ``None``: not asked; ``True``/``False``: known; a traced bool: not known yet.

    Raises
    ------
    NonFiniteError
        It names the first leaf with an inf or a NaN.
    InputError
        For ``"raise"`` where the gradients are traced.
    """
    if reading is None:
        return None
    flag, backend = reading.finite(), reading.backend
    if backend.is_traced(flag):
        if policy == "raise":
            raise InputError('nonfinite="raise" can\'t look at values inside a traced function; use "skip"')
        return flag
    if bool(flag):
        return True
    if policy == "raise":
        present = ((path, x) for path, x in zip(paths, g, strict=True) if x is not None)
        bad = next(path for path, x in present if not bool(all_finite(backend, [x])))
        raise NonFiniteError(f"the gradient of {bad!r} holds inf or NaN; nothing was changed")
    return False


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
