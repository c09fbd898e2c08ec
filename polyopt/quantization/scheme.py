"""Define storage schemes for weights: integers on a grid, or 16-bit floats."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from polyopt.core.errors import InputError, nearest
from polyopt.core.rule import check_fields, static

CONVENTIONS: Mapping[str, Mapping[str, Any]] = {
    "paper": {"layout": "in_out"},
    "torch": {"layout": "out_in"},
    "keras": {"layout": "in_out"},
    "tensorflow": {"layout": "in_out"},
}


@dataclass(frozen=True)
class Integer:
    """Store integer codes q with w ≈ s·(q - z): Jacob et al., "Quantization and training", 2018, eq. 1.

    Codes are in [-127, 127] or [-7, 7] where symmetric (z = 0), in [-128, 127] or [-8, 7] where affine. With
    [l, h] that range, and m and M the least and the largest weight that share a scale, widened to hold 0:

    - ``"paper"``: symmetric s = max(-m, M)/h; affine s = (M - m)/(h - l), z = l - round(m/s) held within
      [l, h]. q = round(w/s) + z held within [l, h], half to even. Zeros alone have s = 1.
    - ``"torch"``: as ``torch.ao``'s min-max observers: symmetric codes are in [-128, 127] and
      s = max(-m, M)/127.5; s is at least 2⁻²³; q = round(w·(1/s)) + z.
    - ``"keras"``: symmetric alone, as ``abs_max_quantize``: q = round(w·i) where i = h/(max(-m, M) + 1e-7).
      The stored s is 1/i.
    - ``"tensorflow"``: affine alone, as ``fake_quant_with_min_max_vars``: z = floor(l - m/s + ½) and
      q = l + floor((w - s·(l - z))·(1/s) + ½), w first held within the grid.

    All in the compute dtype (float32, or float64 for float64 weights), each operation rounded by itself, on
    the host: so the codes, scales and zero points are the same bits whatever framework the weights are of.

    Parameters
    ----------
    bits
        8, or 4: then two codes are packed in a byte.
    per
        What shares a scale: the whole leaf (``"tensor"``), a slice along the axis of the outputs
        (``"channel"``), or ``group_size`` neighbours along the axis of the inputs, for each output by itself
        (``"group"``).
    group_size
        How many; it must divide the axis, or the leaf is refused: nothing is padded.
    symmetric
        Whether z = 0.
    axis
        Of the outputs for ``"channel"``, of the inputs for ``"group"``; by default as ``layout`` has it.
    convention
        Which formula; it fills in ``layout``: ``"in_out"`` (…, in, out) or ``"out_in"`` (out, in, …).
    narrow
        Whether the lowest code is left out; by default where symmetric, but not with ``"torch"``.
    layout
        Where the axis of the outputs lies: ``"in_out"`` or ``"out_in"``.

    Examples
    --------
    >>> Integer().range, Integer(bits=4, symmetric=False).range
    ((-127, 127), (-8, 7))
    """

    CONVENTIONS: ClassVar[Mapping[str, Mapping[str, Any]]] = CONVENTIONS

    bits: int = static(8, 4, 8)
    per: str = static("channel", "tensor", "channel", "group")
    group_size: int | None = None
    symmetric: bool = static(True, True, False)
    axis: int | None = None
    convention: str = static("paper", *CONVENTIONS)
    layout: str | None = static(None, None, "in_out", "out_in")
    narrow: bool | None = static(None, None, False, True)

    def __post_init__(self) -> None:
        if self.narrow is None:
            object.__setattr__(self, "narrow", self.symmetric and self.convention != "torch")
        check_fields(self)
        size = self.group_size
        if (self.per == "group") != (size is not None):
            raise InputError(
                f'Integer: per = {self.per!r} with group_size = {size!r}; per="group" alone has one'
            )
        if size is not None and (type(size) is not int or size < 1):
            raise InputError(f"Integer: group_size = {size!r}; expected an integer >= 1")
        if self.axis is not None and (type(self.axis) is not int or self.per == "tensor"):
            raise InputError(
                f"Integer: axis = {self.axis!r} with per = {self.per!r}; expected an integer, "
                'and per="channel" or "group"'
            )
        only = {"keras": True, "tensorflow": False}.get(self.convention, self.symmetric)
        if self.symmetric != only:
            raise InputError(
                f"Integer: symmetric = {self.symmetric}; convention {self.convention!r} has {only} alone"
            )

    @property
    def range(self) -> tuple[int, int]:
        """Return the least and the largest code."""
        high = 2 ** (self.bits - 1) - 1
        return -high if self.narrow else -high - 1, high


@dataclass(frozen=True)
class Cast:
    """Round the weights to a 16-bit float, half to even: float64 by way of float32 for bfloat16.

    Parameters
    ----------
    dtype
        ``"bfloat16"`` or ``"float16"``.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt.quantization import dequantize, quantize
    >>> dequantize(quantize(np.array([[0.1, 0.5]]), Cast("float16"))).round(6).tolist()
    [[0.099976, 0.5]]
    """

    dtype: str = static("bfloat16", "bfloat16", "float16")

    def __post_init__(self) -> None:
        check_fields(self)

    CONVENTIONS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}


Scheme: TypeAlias = Integer | Cast

SCHEMES: dict[str, type[Integer] | type[Cast]] = {"cast": Cast, "integer": Integer}
"""The names that files use."""

DIVISORS = 4096
"""How far from a group's size one that divides the axis is looked for."""


@dataclass(frozen=True)
class Blocks:
    """A leaf seen as three axes, so that each scale's elements are a box."""

    view: tuple[int, int, int]
    scales: tuple[int, int, int]
    """How many scales there are along each: 1, or one for each element."""
    stored: tuple[int, ...]
    """The shape in which the scales are stored; for a channel, that of the leaf with 1 elsewhere."""
    expanded: tuple[int, ...]
    """The shape of the leaf with which ``factors`` broadcasts."""
    factors: tuple[int, ...]
    """The shape of the scales to broadcast with ``expanded``."""


def blocks(scheme: Integer, shape: tuple[int, ...], path: str) -> Blocks:
    """Return how ``scheme`` divides a leaf of ``shape``; ``path`` names it in errors.

    >>> blocks(Integer(per="group", group_size=2), (4, 3), "w").stored
    (2, 3)
    """
    size = math.prod(shape)
    if scheme.per == "tensor":
        return Blocks((1, size, 1), (1, 1, 1), (), shape, ())
    axis = _axis(scheme, shape, path)
    before, n, after = math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])
    if scheme.per == "channel":
        stored = tuple(m if i == axis else 1 for i, m in enumerate(shape))
        return Blocks((before, n, after), (1, n, 1), stored, shape, stored)
    g = int(scheme.group_size or 1)
    if n % g:
        known = ", ".join(map(str, _divisors(n, g)))
        raise InputError(
            f"leaf {path!r}: group_size = {g} does not divide axis {axis} of shape {shape}; "
            f"the nearest that do: {known}"
        )
    groups = (*shape[:axis], n // g, *shape[axis + 1 :])
    expanded = (*shape[:axis], n // g, g, *shape[axis + 1 :])
    factors = (*shape[:axis], n // g, 1, *shape[axis + 1 :])
    return Blocks((before * (n // g), g, after), (before * (n // g), 1, after), groups, expanded, factors)


def _divisors(n: int, near: int) -> list[int]:
    """Up to four of ``n``, above 1, close to ``near``; a file may claim any ``n``, so few are tried."""
    tried = range(max(2, min(near, n) - DIVISORS), min(n, near + DIVISORS) + 1)
    found = {d for d in tried if n % d == 0} | {n}
    return sorted(sorted(found, key=lambda d: (abs(d - near), d))[:4])


def _axis(scheme: Integer, shape: tuple[int, ...], path: str) -> int:
    axis = scheme.axis
    if not shape:
        raise InputError(f'leaf {path!r} has no axes: per = {scheme.per!r}; expected per="tensor" for it')
    if axis is None:
        outputs, inputs = (-1, -2) if scheme.layout == "in_out" else (0, 1)
        axis = outputs if scheme.per == "channel" else inputs
        axis = 0 if len(shape) == 1 else axis
    if not -len(shape) <= axis < len(shape):
        raise InputError(
            f"leaf {path!r}: axis = {axis} is out of range for shape {shape}; "
            f"expected one in [{-len(shape)}, {len(shape) - 1}]"
        )
    return axis % len(shape)


def to_plain(scheme: Scheme) -> dict[str, Any]:
    """Return ``scheme`` as plain data.

    >>> to_plain(Cast("float16"))
    {'kind': 'cast', 'dtype': 'float16'}
    """
    kind = next(name for name, c in SCHEMES.items() if isinstance(scheme, c))
    return {"kind": kind, **dataclasses.asdict(scheme)}


def from_plain(data: Any, path: str = "") -> Scheme:
    """Return what ``to_plain`` gave; anything else is an ``InputError``."""
    if not isinstance(data, Mapping) or str(data.get("kind")) not in SCHEMES:
        raise InputError(f"leaf {path!r}: {data!r:.80} is no quantization scheme")
    fields = {k: v for k, v in data.items() if k != "kind"}
    kind: Any = SCHEMES[str(data["kind"])]
    known = [f.name for f in dataclasses.fields(kind)]
    for name in fields:
        if name not in known:
            raise InputError(f"leaf {path!r}: a scheme has no field {name!r}; {nearest(str(name), known)}")
    scheme: Scheme = kind(**fields)
    return scheme
