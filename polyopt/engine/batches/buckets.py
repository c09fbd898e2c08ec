"""Real batches of any size in arrays of few sizes: padded to the next of them, so that little is compiled."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

from polyopt.core.errors import InputError
from polyopt.engine.batches.fetch import filled
from polyopt.engine.batches.sizes import _check_size


@dataclass(frozen=True)
class Buckets:
    """Name the sizes that arrays may have: a batch is padded to the smallest that holds it.

    Parameters
    ----------
    sizes
        Increasing integers >= 1: as many are compiled at most, and no batch may be larger than the last.

    Examples
    --------
    >>> buckets = Buckets.powers(40)
    >>> buckets.sizes
    (1, 2, 4, 8, 16, 32, 40)
    >>> buckets(3), buckets(33)
    (4, 40)
    >>> rows, counted = buckets.pad([7, 2, 5])
    >>> rows.tolist(), counted.tolist()
    ([7, 2, 5, 5], [1.0, 1.0, 1.0, 0.0])
    """

    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.sizes, tuple) or not self.sizes:
            raise InputError(f"Buckets: sizes = {self.sizes!r}; expected a tuple of integers")
        for i, size in enumerate(self.sizes):
            _check_size("Buckets", f"sizes[{i}]", size, 1)
            if i and size <= self.sizes[i - 1]:
                raise InputError(
                    f"Buckets: sizes[{i}] = {size} follows {self.sizes[i - 1]}; expected a larger one"
                )

    @classmethod
    def powers(cls, largest: int, smallest: int = 1) -> Buckets:
        """Make buckets of ``smallest``, its double, … and ``largest``: at most ⌈log2(largest/smallest)⌉ + 1.

        A batch of at least ``smallest`` samples is padded by less than as many again.

        Parameters
        ----------
        largest
            The largest batch.
        smallest
            The size of the first bucket.

        Returns
        -------
        Buckets
            Their sizes ascend.
        """
        _check_size("Buckets", "smallest", smallest, 1)
        _check_size("Buckets", "largest", largest, 1)
        if smallest > largest:
            raise InputError(f"Buckets: largest = {largest} is below smallest = {smallest}")
        sizes = []
        while smallest < largest:
            sizes.append(smallest)
            smallest *= 2
        return cls((*sizes, largest))

    def __call__(self, size: int) -> int:
        """Return the smallest bucket that holds ``size`` samples."""
        if not 1 <= size <= self.sizes[-1]:
            raise InputError(f"Buckets: a batch of {size} samples; expected 1 to {self.sizes[-1]}")
        return self.sizes[bisect_left(self.sizes, size)]

    def pad(self, rows: Any) -> tuple[Any, Any]:
        """Fill row numbers up to the size of a bucket, with weights of 0.

        The last row is repeated, with the weight 0; the others have 1. Both go into a compiled loss as they
        are, beside the whole data: ``xp.take(x, rows, axis=0)``, and ``weights=`` of the losses.

        Parameters
        ----------
        rows
            Row numbers of shape (n,), at least one.

        Returns
        -------
        tuple
            ``(rows, weights)`` of shape (bucket,): int32 and float32 host arrays.
        """
        import numpy as np

        rows = np.asarray(rows)
        if rows.ndim != 1 or rows.dtype.kind not in "iu" or not rows.size:
            raise InputError(
                f"Buckets: rows have shape {rows.shape} and dtype {rows.dtype}; "
                "expected one axis of at least one integer"
            )
        size = self(len(rows))
        # int32: a backend may have no int64 (JAX by default).
        return filled(rows, size, rows[-1]).astype(np.int32), filled(
            np.ones(len(rows), np.float32), size, 0.0
        )
