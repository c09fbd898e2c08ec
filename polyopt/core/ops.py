"""The array operations an algorithm may use: a declared subset of the array API standard, 2024.12.

A backend's ``ops`` *module* satisfies this protocol with plain functions. Names, argument names, dtype
promotion and special values are the standard's (https://data-apis.org/array-api/2024.12). Two dtypes go
beyond it, because training needs them: ``float16`` and, where the framework has it, ``bfloat16``.

Nothing stands here that no algorithm, model or stage uses; an algorithm that needs more extends this file.

A namespace may offer more, where it has something better than what ``polyopt.core.reductions`` does without:

- ``repeat_until(times, function, carry)``: ``carry = function(carry)`` as long as the bool ``carry[0]`` is
  false, at most ``times`` times; ``carry`` is a tuple of 0-d arrays. Compiled once, however often it runs.
- ``settled(x)``: ``x``, which is computed before what follows; that it is there tells that operations on
  whole arrays are compiled into one.
- ``sum_squares(arrays, scale)``: the sum of the squares of all elements times ``scale``, in the bits of
  ``reductions``, as a 0-d array; ``None`` for arrays that it can't take.
- ``log_softmax(x)``, ``cross_entropy(logits, labels, label_smoothing)`` of ``polyopt.models.losses`` and
  ``relu(x)`` of ``polyopt.models.networks`` as one operation, forward and backward.
- ``known_norm``: what ``reductions.root_sum_squares`` is to give, where it was computed before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

Array: TypeAlias = Any
"""An array of some framework. Its type can't be named here: polyopt knows no framework."""

DType: TypeAlias = Any
Device: TypeAlias = Any
Shape: TypeAlias = int | tuple[int, ...]
Axis: TypeAlias = int | tuple[int, ...] | None
Bool: TypeAlias = bool  # inside the protocol ``bool`` is a dtype

FLOATING = ("float16", "bfloat16", "float32", "float64")
INTEGER = ("int8", "int16", "int32", "int64", "uint8")
DTYPES = (*FLOATING, *INTEGER, "bool")


class Ops(Protocol):
    """Offer the operations below: a namespace, usually a module."""

    # Data types
    @property
    def bool(self) -> DType:
        """Return the dtype of truth values."""

    @property
    def int8(self) -> DType:
        """Return the dtype of integers of 8 bits."""

    @property
    def int16(self) -> DType:
        """Return the dtype of integers of 16 bits."""

    @property
    def int32(self) -> DType:
        """Return the dtype of integers of 32 bits."""

    @property
    def int64(self) -> DType:
        """Return the dtype of integers of 64 bits."""

    @property
    def uint8(self) -> DType:
        """Return the dtype of unsigned integers of 8 bits."""

    @property
    def float16(self) -> DType:
        """Return the dtype of IEEE half precision."""

    @property
    def bfloat16(self) -> DType:
        """Return the dtype of 16-bit floats with the exponent of float32."""

    @property
    def float32(self) -> DType:
        """Return the dtype of IEEE single precision."""

    @property
    def float64(self) -> DType:
        """Return the dtype of IEEE double precision."""

    def astype(self, x: Array, dtype: DType, /, *, copy: Bool = True) -> Array:
        """Convert ``x`` to ``dtype``."""

    def isdtype(self, dtype: DType, kind: DType | str | tuple[DType | str, ...]) -> Bool:
        """Return True if ``dtype`` is ``kind``, a dtype or the standard's name of several."""

    def finfo(self, type: DType, /) -> Any:
        """Return the limits of a floating dtype: ``eps``, ``max``, ``smallest_normal`` and others."""

    def result_type(self, *arrays_and_dtypes: Array | DType) -> DType:
        """Return the dtype that the arguments are promoted to together."""

    # Creation
    def asarray(
        self,
        obj: Any,
        /,
        *,
        dtype: DType | None = None,
        device: Device | None = None,
        copy: Bool | None = None,
    ) -> Array:
        """Make an array of numbers, nested sequences of them, or an array."""

    def arange(
        self,
        start: float,
        /,
        stop: float | None = None,
        step: float = 1,
        *,
        dtype: DType | None = None,
        device: Device | None = None,
    ) -> Array:
        """Return evenly spaced numbers from ``start`` up to, not including, ``stop``."""

    def zeros(self, shape: Shape, *, dtype: DType | None = None, device: Device | None = None) -> Array:
        """Return an array of zeros."""

    def ones(self, shape: Shape, *, dtype: DType | None = None, device: Device | None = None) -> Array:
        """Return an array of ones."""

    def full(
        self,
        shape: Shape,
        fill_value: complex,
        *,
        dtype: DType | None = None,
        device: Device | None = None,
    ) -> Array:
        """Return an array of which every element is ``fill_value``."""

    def zeros_like(self, x: Array, /, *, dtype: DType | None = None, device: Device | None = None) -> Array:
        """Return zeros of the shape, dtype and device of ``x``."""

    def ones_like(self, x: Array, /, *, dtype: DType | None = None, device: Device | None = None) -> Array:
        """Return ones of the shape, dtype and device of ``x``."""

    def full_like(
        self,
        x: Array,
        /,
        fill_value: complex,
        *,
        dtype: DType | None = None,
        device: Device | None = None,
    ) -> Array:
        """Return ``fill_value`` in the shape, dtype and device of ``x``."""

    # Elementwise
    def abs(self, x: Array, /) -> Array:
        """Return the magnitude of each element."""

    def add(self, x1: Array, x2: Array, /) -> Array:
        """Return ``x1 + x2``."""

    def ceil(self, x: Array, /) -> Array:
        """Round each element up to an integer."""

    def clip(self, x: Array, /, min: Array | float | None = None, max: Array | float | None = None) -> Array:
        """Hold each element within [``min``, ``max``]; ``None`` is no limit."""

    def cos(self, x: Array, /) -> Array:
        """Return the cosine of each element, in radians."""

    def divide(self, x1: Array, x2: Array, /) -> Array:
        """Return ``x1 / x2``."""

    def equal(self, x1: Array, x2: Array, /) -> Array:
        """Return ``x1 == x2``, element by element."""

    def exp(self, x: Array, /) -> Array:
        """Return e to the power of each element."""

    def expm1(self, x: Array, /) -> Array:
        """Return ``exp(x) - 1``, exact near 0."""

    def floor(self, x: Array, /) -> Array:
        """Round each element down to an integer."""

    def greater(self, x1: Array, x2: Array, /) -> Array:
        """Return ``x1 > x2``, element by element."""

    def greater_equal(self, x1: Array, x2: Array, /) -> Array:
        """Return ``x1 >= x2``, element by element."""

    def isfinite(self, x: Array, /) -> Array:
        """Return True where an element is neither infinite nor NaN."""

    def isinf(self, x: Array, /) -> Array:
        """Return True where an element is infinite."""

    def isnan(self, x: Array, /) -> Array:
        """Return True where an element is NaN."""

    def less(self, x1: Array, x2: Array, /) -> Array:
        """Return ``x1 < x2``, element by element."""

    def less_equal(self, x1: Array, x2: Array, /) -> Array:
        """Return ``x1 <= x2``, element by element."""

    def log(self, x: Array, /) -> Array:
        """Return the natural logarithm of each element."""

    def log1p(self, x: Array, /) -> Array:
        """Return ``log(1 + x)``, exact near 0."""

    def logical_and(self, x1: Array, x2: Array, /) -> Array:
        """Return True where both are."""

    def logical_not(self, x: Array, /) -> Array:
        """Return True where ``x`` is False."""

    def logical_or(self, x1: Array, x2: Array, /) -> Array:
        """Return True where either is."""

    def maximum(self, x1: Array, x2: Array, /) -> Array:
        """Return the larger of ``x1`` and ``x2``, element by element; NaN where either is."""

    def minimum(self, x1: Array, x2: Array, /) -> Array:
        """Return the smaller of ``x1`` and ``x2``, element by element; NaN where either is."""

    def multiply(self, x1: Array, x2: Array, /) -> Array:
        """Return ``x1 * x2``."""

    def negative(self, x: Array, /) -> Array:
        """Return ``-x``."""

    def not_equal(self, x1: Array, x2: Array, /) -> Array:
        """Return ``x1 != x2``, element by element."""

    def pow(self, x1: Array, x2: Array, /) -> Array:
        """Return ``x1`` to the power of ``x2``."""

    def round(self, x: Array, /) -> Array:
        """Round each element to the nearest integer, halves to the even one."""

    def sign(self, x: Array, /) -> Array:
        """Return -1, 0 or 1 by the sign of each element."""

    def sqrt(self, x: Array, /) -> Array:
        """Return the square root of each element; NaN below 0."""

    def square(self, x: Array, /) -> Array:
        """Return ``x * x``."""

    def subtract(self, x1: Array, x2: Array, /) -> Array:
        """Return ``x1 - x2``."""

    def tanh(self, x: Array, /) -> Array:
        """Return the hyperbolic tangent of each element."""

    def where(self, condition: Array, x1: Array, x2: Array, /) -> Array:
        """Return ``x1`` where ``condition`` is True, else ``x2``."""

    # Reduction and searching
    def all(self, x: Array, /, *, axis: Axis = None, keepdims: Bool = False) -> Array:
        """Return True if all elements are, over all axes or those of ``axis``."""

    def any(self, x: Array, /, *, axis: Axis = None, keepdims: Bool = False) -> Array:
        """Return True if some element is, over all axes or those of ``axis``."""

    def argmax(self, x: Array, /, *, axis: int | None = None, keepdims: Bool = False) -> Array:
        """Return the position of the first largest element, of the flat array or along ``axis``."""

    def max(self, x: Array, /, *, axis: Axis = None, keepdims: Bool = False) -> Array:
        """Return the largest element, over all axes or those of ``axis``."""

    def mean(self, x: Array, /, *, axis: Axis = None, keepdims: Bool = False) -> Array:
        """Return the mean of the elements, over all axes or those of ``axis``."""

    def min(self, x: Array, /, *, axis: Axis = None, keepdims: Bool = False) -> Array:
        """Return the smallest element, over all axes or those of ``axis``."""

    def sum(
        self, x: Array, /, *, axis: Axis = None, dtype: DType | None = None, keepdims: Bool = False
    ) -> Array:
        """Return the sum of the elements, over all axes or those of ``axis``."""

    # Linear algebra and shape
    def matmul(self, x1: Array, x2: Array, /) -> Array:
        """Return the product of matrices in the last two axes; the axes before them are broadcast."""

    def matrix_transpose(self, x: Array, /) -> Array:
        """Exchange the last two axes."""

    def broadcast_to(self, x: Array, /, shape: tuple[int, ...]) -> Array:
        """Repeat ``x`` along axes of length 1, or missing ones, to ``shape``."""

    def concat(self, arrays: Sequence[Array], /, *, axis: int | None = 0) -> Array:
        """Join arrays along ``axis``; ``None``: flat ones."""

    def expand_dims(self, x: Array, /, *, axis: int = 0) -> Array:
        """Insert an axis of length 1 at ``axis``."""

    def permute_dims(self, x: Array, /, axes: tuple[int, ...]) -> Array:
        """Put the axes in the order ``axes``."""

    def reshape(self, x: Array, /, shape: tuple[int, ...], *, copy: Bool | None = None) -> Array:
        """Return the elements, row by row, in another shape; one length may be -1."""

    def squeeze(self, x: Array, /, axis: int | tuple[int, ...]) -> Array:
        """Remove the axes ``axis``, of length 1."""

    def stack(self, arrays: Sequence[Array], /, *, axis: int = 0) -> Array:
        """Join arrays of one shape along a new axis."""

    def take(self, x: Array, indices: Array, /, *, axis: int | None = None) -> Array:
        """Return the elements, or slices along ``axis``, at ``indices``, a 1-d array."""

    def take_along_axis(self, x: Array, indices: Array, /, *, axis: int = -1) -> Array:
        """Return for each place the element along ``axis`` that ``indices`` has there."""
