"""The samples of a batch, brought together and padded to a given number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from polyopt.backend import registry
from polyopt.backend.protocol import Backend
from polyopt.core import tree
from polyopt.core.errors import InputError


@dataclass(frozen=True)
class Fetch:
    """Brings samples together, always ``size`` of them: the last one fills up."""

    backend: Backend
    device: str
    size: int

    def __call__(self, data: Sequence[Any], part: Any) -> Any:
        """Fetch the samples of the rows ``part`` from each array, filled up to one size."""
        rows = self.rows(part)

        def one(x: Any) -> Any:
            return self.backend.ops.take(x, rows, axis=0) if self.has(x) else self.brought(x, part)

        return tree.map_leaves(one, tuple(data))

    def has(self, x: Any) -> bool:
        """Return True if ``x`` is of this framework."""
        return registry.of(x) is self.backend

    def brought(self, x: Any, part: Any) -> Any:
        """Fetch the samples out of an array of another framework, or the host's."""
        return self._array(registry.of(x).to_numpy(x)[filled(part, self.size, part[-1])])

    def rows(self, part: Any) -> Any:
        """Return the row numbers, int32, shape (size,)."""
        return self._array(filled(part, self.size, part[-1]).astype("int32"))

    def counted(self, part: Any) -> Any:
        """Return 1 for each sample, 0 for each that fills up: float32, shape (size,)."""
        return self._array(filled((part >= 0).astype("float32"), self.size, 0.0))

    def _array(self, x: Any) -> Any:
        made = self.backend.from_numpy(x)
        # Where it lies there already it is not bound to it, as others aren't: JAX compiles anew for that.
        there = self.backend.device_name(made) == self.device
        return made if there else self.backend.to_device(made, self.device)


def filled(x: Any, size: int, fill: Any) -> Any:
    """Fill the host array ``x`` of shape (n,) up to (size,)."""
    import numpy as np

    return np.concatenate([x, np.full(size - len(x), fill, dtype=x.dtype)])


def checked(owner: str, data: tuple[Any, ...], indices: Any) -> Any:
    """Return the indices as a host array, held against the data."""
    import numpy as np

    lengths = {f"data.{path}": int(x.shape[0]) for path, x in tree.named(data).items()}
    if not lengths:
        raise InputError(f"{owner}: data is empty; expected at least one array of samples")
    (first, samples), *others = lengths.items()
    for path, n in others:
        if n != samples:
            raise InputError(f"{owner}: {path} has {n} samples; expected those of {first}, {samples}")
    rows = np.asarray(indices)
    if rows.ndim != 1 or not rows.size or rows.dtype.kind not in "iu":
        raise InputError(
            f"{owner}: indices have shape {rows.shape} and dtype {rows.dtype}; "
            "expected one axis of at least one integer"
        )
    low, high = int(rows.min()), int(rows.max())
    if low < 0 or high >= samples:
        raise InputError(
            f"{owner}: index {low if low < 0 else high} is out of range; expected 0 to {samples - 1}"
        )
    return rows
