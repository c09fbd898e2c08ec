"""Report sizes and errors of quantization, by leaf and in total."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from polyopt.backend import registry
from polyopt.core import tree
from polyopt.core.errors import InputError
from polyopt.core.tree import Tree
from polyopt.quantization.record import ITEMSIZE, Quantized, restored
from polyopt.quantization.scheme import Cast, Scheme

WIDTHS = {**ITEMSIZE, "bool": 1, "int8": 1, "uint8": 1, "int16": 2, "int32": 4, "int64": 8}


@dataclass(frozen=True)
class LeafReport:
    """Measure the error of one leaf, or of all of them.

    Parameters
    ----------
    path
        Of the leaf.
    bytes_before
        As it was.
    bytes_after
        With codes, scales and zero points.
    """

    path: str
    scheme: str
    """``"int4 group 32"``; ``""`` for a leaf that was left as it is."""
    bytes_before: int
    bytes_after: int
    max_error: float
    """The largest magnitude of w - ŵ."""
    mean_error: float
    """The mean magnitude of w - ŵ."""
    sqnr: float
    """10·log₁₀(Σ w²/Σ (w - ŵ)²) in decibels: about 6 a bit; infinite without an error."""


@dataclass(frozen=True)
class Report:
    """Measure the errors by leaf and in total. ``str()`` is a table, ``to_dict()`` plain data.

    Parameters
    ----------
    leaves
        In the order of the tree.
    total
        All leaves together.
    """

    leaves: tuple[LeafReport, ...]
    total: LeafReport

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON.

        Returns
        -------
        dict
            ``leaves``, a list, and ``total``.
        """
        return {"leaves": [asdict(leaf) for leaf in self.leaves], "total": asdict(self.total)}

    def __str__(self) -> str:
        head = ("leaf", "scheme", "before", "after", "ratio", "max error", "mean error", "SQNR dB")
        lines = [head, *(_cells(leaf) for leaf in (*self.leaves, self.total))]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        return "\n".join(
            "  ".join(
                c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        )


def report(before: Tree, after: Tree) -> Report:
    """Compare weights with what ``quantize`` made of them.

    Parameters
    ----------
    before, after
        Trees of the same paths; leaves of ``after`` may be ``Quantized``.

    Returns
    -------
    Report
        By leaf and in total.

    Raises
    ------
    InputError
        Where the two don't belong together; it names the leaf.

    Notes
    -----
    Errors are in float64.

    Examples
    --------
    >>> from polyopt.quantization import Integer, quantize
    >>> w = {"w": np.float32([[1.27, 0.003], [-0.5, 0.0]])}
    >>> r = report(w, quantize(w, Integer(per="tensor")))
    >>> r.total.bytes_before, r.total.bytes_after, round(r.total.max_error, 6)
    (16, 8, 0.003)
    """
    first = tree.flatten(before)
    rows, sums = [], []
    for path, x, y in zip(first.paths, first.leaves, tree.aligned(after, first, "after"), strict=True):
        if x is None or y is None:
            if x is not y:
                raise InputError(f"leaf {path!r} is None in one of the two trees")
            continue
        row, sum_ = _leaf(path, x, y)
        rows.append(row)
        sums.append(sum_)
    signal, noise, size, errors = (math.fsum(column) for column in zip((0.0,) * 4, *sums, strict=True))
    total = LeafReport(
        "total",
        "",
        sum(r.bytes_before for r in rows),
        sum(r.bytes_after for r in rows),
        max((r.max_error for r in rows), default=0.0),
        errors / size if size else 0.0,
        _decibels(signal, noise),
    )
    return Report(tuple(rows), total)


def _leaf(path: str, x: Any, y: Any) -> tuple[LeafReport, tuple[float, float, float, float]]:
    shape, values = tuple(x.shape), restored(y) if isinstance(y, Quantized) else y
    if tuple(values.shape) != shape:
        raise InputError(f"leaf {path!r} has shape {shape} before and {tuple(values.shape)} after")
    a, b = (np.asarray(registry.of(v).to_numpy(v)).astype(np.float64) for v in (x, values))
    error = np.abs(a - b)
    signal, noise = float(np.sum(a * a)), float(np.sum(error * error))
    size = a.size
    row = LeafReport(
        path,
        label(y.scheme) if isinstance(y, Quantized) else "",
        size * WIDTHS[registry.of(x).dtype_name(x)],
        y.nbytes if isinstance(y, Quantized) else size * WIDTHS[registry.of(y).dtype_name(y)],
        float(error.max(initial=0.0)),
        float(error.mean()) if size else 0.0,
        _decibels(signal, noise),
    )
    return row, (signal, noise, float(size), float(error.sum()))


def label(scheme: Scheme) -> str:
    """Describe a scheme in a few words.

    Examples
    --------
    >>> from polyopt.quantization import Integer
    >>> label(Integer(bits=4, per="group", group_size=32, symmetric=False))
    'int4 group 32 affine'
    """
    if isinstance(scheme, Cast):
        return scheme.dtype
    group = f" {scheme.group_size}" if scheme.group_size else ""
    return f"int{scheme.bits} {scheme.per}{group}" + ("" if scheme.symmetric else " affine")


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def _cells(row: LeafReport) -> tuple[str, ...]:
    ratio = row.bytes_before / row.bytes_after if row.bytes_after else 1.0
    return (
        row.path,
        row.scheme,
        str(row.bytes_before),
        str(row.bytes_after),
        f"{ratio:.2f}x",
        f"{row.max_error:.3g}",
        f"{row.mean_error:.3g}",
        f"{row.sqnr:.1f}",
    )
