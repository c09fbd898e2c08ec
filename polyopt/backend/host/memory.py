"""Define how a backend gives its arrays to the host lifts as memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from polyopt.backend.host.array_table import ArrayTable
from polyopt.backend.host.overlap import Extent
from polyopt.backend.host.threads import Team
from polyopt.core.ops import Array

Shapes = tuple[tuple[int, ...], ...]


class Surveyed(Protocol):
    """Give the compiled kernel many of a framework's arrays at once."""

    def survey(self) -> ArrayTable | None:
        """Return what reads many arrays at once, if there is such a thing here; asked for only with numba."""

    def team(self) -> Team:
        """Return the threads that the compiled kernel runs on."""

    def storage(self, kind: int) -> np.dtype[Any] | None:
        """Return the host dtype that the survey codes by ``kind``, ``None`` for others."""

    def plain(self) -> bool:
        """Return True if arrays are now what lies in their memory."""

    def empty(self, shapes: Shapes, storage: np.dtype[Any], like: Sequence[Array] | None) -> list[Array]:
        """Make arrays, to replace the leaves ``like`` if there are any."""

    def changed(self, leaves: Sequence[Array]) -> None:
        """Tell the framework that these were written to."""


class Memory(Surveyed, Protocol):
    """Reach a framework's arrays as host memory. All arrays given to it are leaves."""

    def dtype(self, kind: Any) -> np.dtype[Any]:
        """Return the host dtype of an array whose ``.dtype`` is ``kind``."""

    def host(self, x: Array) -> Any:
        """View the memory of ``x`` as a host array, of any strides."""

    def wrap(self, x: Any, like: Array | None) -> Array:
        """Make of a contiguous host array one of the framework, to replace ``like`` if there is one."""

    def assign(self, target: Array, value: Array) -> None:
        """Write ``value`` into ``target``."""

    def views(self, buffer: Any, shapes: Shapes) -> Sequence[Any]:
        """Consecutive parts of the flat ``buffer`` in these shapes, for ``gather`` and the like."""

    def gather(self, buffer: Any, views: Sequence[Any], leaves: Sequence[Array]) -> None:
        """Copy ``leaves`` into ``views``, which are all of ``buffer``, casting."""

    def scatter(self, views: Sequence[Any], leaves: Sequence[Array]) -> None:
        """Copy ``views`` into ``leaves``, casting."""

    def fresh(self, views: Sequence[Any], like: Sequence[Array] | None) -> list[Array]:
        """Make arrays with the values of ``views``, of the dtypes of ``like`` or of the buffer."""

    def alike(
        self,
        columns: Sequence[Sequence[Array]],
        shapes: Shapes,
        kinds: Sequence[Sequence[Any]],
        written: Sequence[bool],
    ) -> bool:
        """Return True if these are plain arrays in one piece, of ``shapes`` and of the dtypes ``kinds``.

        Those of columns that are ``written`` can be, and share memory with no other. False where to find that
        out takes as long as to look at them anew.
        """

    def writable(self, leaves: Sequence[Array]) -> bool:
        """Return True if all these can be written to."""

    def extents(self, arrays: Sequence[Array], written: int) -> list[Extent] | None:
        """Give the memory of each.

        ``None`` if none of the first ``written`` shares any with another, and none of those has a fault.
        """
