"""One call of a function that was written for one array, for many arrays of one shape.

The arrays are stacked, and a ``Batch`` shows the function one of them: its shape is that of a single
one, and every operation, taken from ``BatchOps``, keeps the hidden leading axis apart. So a rule's leaf
function runs once for a thousand leaves, in the bits of a thousand calls: an elementwise operation is the
same, and what ``polyopt.core.reductions`` sums, it sums in the same order. What a framework sums or
multiplies as a whole (``xp.sum``, ``xp.matmul``) may be rounded otherwise, as it may between frameworks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from polyopt.core.ops import DTYPES, Array
from polyopt.core.trace import BINARY, UNARY

_ALIKE = frozenset(("zeros_like", "ones_like", "full_like", "astype"))
_PLAIN = frozenset(("arange", "finfo", "full", "isdtype", "ones", "zeros", *DTYPES))
"""What knows no batch: dtypes, and constants that are the same for each array."""


class NotBatchable(TypeError):
    """An operation that can't be done for many arrays at once."""


class Batch:
    """Many arrays of one shape, seen as one of them. ``data`` has the batch as its first axis."""

    __slots__ = ("data", "xp")

    def __init__(self, xp: BatchOps, data: Array) -> None:
        self.xp, self.data = xp, data

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)[1:]

    @property
    def ndim(self) -> int:
        return len(self.data.shape) - 1

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def dtype(self) -> Any:
        return self.data.dtype

    @property
    def mT(self) -> Any:
        return self.xp.matrix_transpose(self)

    @property
    def T(self) -> Any:
        if self.ndim != 2:
            raise NotBatchable(f"T of an array with {self.ndim} axes")
        return self.xp.matrix_transpose(self)

    def __getitem__(self, key: Any) -> Batch:
        keys = key if isinstance(key, tuple) else (key,)
        if not all(k is None or k is ... or isinstance(k, int | slice) for k in keys):
            raise NotBatchable("indexing by an array")
        return Batch(self.xp, self.data[(slice(None), *keys)])

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Batch]:
        return (self[i] for i in range(len(self)))

    def _binary(op: str) -> Callable[[Batch, Any], Any]:  # type: ignore[misc]
        return lambda self, other: self.xp.elementwise(op, self, other)

    def _reflected(op: str) -> Callable[[Batch, Any], Any]:  # type: ignore[misc]
        return lambda self, other: self.xp.elementwise(op, other, self)

    __add__ = _binary("add")
    __radd__ = _reflected("add")
    __sub__ = _binary("subtract")
    __rsub__ = _reflected("subtract")
    __mul__ = _binary("multiply")
    __rmul__ = _reflected("multiply")
    __truediv__ = _binary("divide")
    __rtruediv__ = _reflected("divide")
    __pow__ = _binary("pow")
    __lt__ = _binary("less")
    __le__ = _binary("less_equal")
    __gt__ = _binary("greater")
    __ge__ = _binary("greater_equal")
    __array_ufunc__ = None
    __array_priority__ = 1000

    def __matmul__(self, other: Any) -> Any:
        return self.xp.matmul(self, other)

    def __rmatmul__(self, other: Any) -> Any:
        return self.xp.matmul(other, self)

    def __neg__(self) -> Any:
        return self.xp.elementwise("negative", self)

    def __abs__(self) -> Any:
        return self.xp.elementwise("abs", self)

    def _unknown(self, *_: object) -> NoReturn:
        raise NotBatchable("the value of an array, which differs within the batch")

    __bool__ = __float__ = __int__ = __index__ = _unknown


class BatchOps:
    """The operations of ``xp`` on batches of ``n`` arrays; other arrays are the same for each of them."""

    def __init__(self, xp: Any, n: int) -> None:
        self._xp, self._n = xp, n

    def __getattr__(self, name: str) -> Any:
        if name in UNARY or name in BINARY or name == "where":
            return lambda *args: self.elementwise(name, *args)
        if name in _ALIKE:
            return lambda x, *args, **keywords: self._alike(name, x, *args, **keywords)
        if name in ("all", "any", "max", "mean", "min", "sum"):
            return lambda x, **keywords: self._reduced(name, x, **keywords)
        if name == "settled":
            settled = self._xp.settled  # an AttributeError tells that there is none
            return lambda x: Batch(self, settled(x.data)) if isinstance(x, Batch) else settled(x)
        if name in _PLAIN:
            return getattr(self._xp, name)
        raise AttributeError(f"xp.{name} is not among the operations of a batch")

    # Elementwise

    def elementwise(self, op: str, *args: Any) -> Any:
        """Return ``op`` of operands that are broadcast to one rank, the batch's axis left apart."""
        function = getattr(self._xp, op)
        if not any(isinstance(x, Batch) for x in args):
            return function(*args)
        rank = max(len(x.shape) for x in args if hasattr(x, "shape"))
        return Batch(self, function(*(self._ranked(x, rank) for x in args)))

    def clip(self, x: Any, /, min: Any = None, max: Any = None) -> Any:
        given = [b for b in (x, min, max) if hasattr(b, "shape")]
        if not any(isinstance(b, Batch) for b in given):
            return self._xp.clip(x, min, max)
        rank = len(x.shape)
        if any(len(b.shape) > rank for b in given):
            raise NotBatchable("clip: a bound with more axes than the array")
        x, min, max = (self._ranked(b, rank) for b in (self._batch(x), min, max))
        return Batch(self, self._xp.clip(x, min, max))

    def _ranked(self, x: Any, rank: int) -> Any:
        """Return the data of ``x`` with axes of length 1 put in after the batch's, up to ``rank``."""
        if not isinstance(x, Batch):
            return x
        shape = x.shape
        if len(shape) == rank:
            return x.data
        return self._xp.reshape(x.data, (self._n, *(1,) * (rank - len(shape)), *shape))

    def _alike(self, op: str, x: Any, *args: Any, **keywords: Any) -> Any:
        if any(isinstance(a, Batch) for a in args):
            raise NotBatchable(f"{op} of values that differ within the batch")
        function = getattr(self._xp, op)
        if not isinstance(x, Batch):
            return function(x, *args, **keywords)
        return Batch(self, function(x.data, *args, **keywords))

    def asarray(self, x: Any, /, **keywords: Any) -> Any:
        if isinstance(x, Batch):
            return Batch(self, self._xp.asarray(x.data, **keywords))
        return self._xp.asarray(x, **keywords)

    def result_type(self, *args: Any) -> Any:
        return self._xp.result_type(*(x.data if isinstance(x, Batch) else x for x in args))

    # Reduction

    def _reduced(self, op: str, x: Any, *, axis: Any = None, **keywords: Any) -> Any:
        function = getattr(self._xp, op)
        if not isinstance(x, Batch):
            return function(x, axis=axis, **keywords)
        if x.ndim == 0 and axis is None:
            # An axis to be reduced, for a reduction may change the dtype.
            data = function(self._xp.reshape(x.data, (self._n, 1)), axis=1, **keywords)
            return Batch(self, self._xp.reshape(data, (self._n,)))
        return Batch(self, function(x.data, axis=self._axes(axis, x.ndim), **keywords))

    def argmax(self, x: Any, /, *, axis: int | None = None, keepdims: bool = False) -> Any:
        if not isinstance(x, Batch):
            return self._xp.argmax(x, axis=axis, keepdims=keepdims)
        if axis is not None:
            return Batch(self, self._xp.argmax(x.data, axis=axis % x.ndim + 1, keepdims=keepdims))
        found = self._xp.argmax(self._xp.reshape(x.data, (self._n, x.size)), axis=1)
        return Batch(self, self._xp.reshape(found, (self._n, *(1,) * x.ndim)) if keepdims else found)

    def _axes(self, axis: Any, rank: int) -> tuple[int, ...]:
        if axis is None:
            return tuple(range(1, rank + 1))
        return tuple(a % rank + 1 for a in (axis if isinstance(axis, tuple) else (axis,)))

    # Linear algebra

    def matmul(self, x1: Any, x2: Any, /) -> Any:
        if not (isinstance(x1, Batch) or isinstance(x2, Batch)):
            return self._xp.matmul(x1, x2)
        row, column = len(x1.shape) == 1, len(x2.shape) == 1
        x1 = self.expand_dims(x1, axis=0) if row else x1
        x2 = self.expand_dims(x2, axis=1) if column else x2
        rank = max(len(x1.shape), len(x2.shape))
        y = Batch(self, self._xp.matmul(self._ranked(x1, rank), self._ranked(x2, rank)))
        if column:
            y = self.squeeze(y, -1)
        return self.squeeze(y, -1 if column else -2) if row else y

    def matrix_transpose(self, x: Any, /) -> Any:
        if not isinstance(x, Batch):
            return self._xp.matrix_transpose(x)
        if x.ndim < 2:
            raise NotBatchable(f"matrix_transpose of an array with {x.ndim} axes")
        return Batch(self, self._xp.matrix_transpose(x.data))

    # Shape

    def reshape(self, x: Any, /, shape: int | tuple[int, ...], *, copy: bool | None = None) -> Any:
        if not isinstance(x, Batch):
            return self._xp.reshape(x, shape)
        wanted = [shape] if isinstance(shape, int) else [int(n) for n in shape]
        if -1 in wanted:
            rest = -math.prod(wanted)
            wanted[wanted.index(-1)] = x.size // rest if rest else 0
        return Batch(self, self._xp.reshape(x.data, (self._n, *wanted)))

    def broadcast_to(self, x: Any, /, shape: tuple[int, ...]) -> Any:
        if not isinstance(x, Batch):
            return self._xp.broadcast_to(x, shape)
        return Batch(self, self._xp.broadcast_to(self._ranked(x, len(shape)), (self._n, *shape)))

    def expand_dims(self, x: Any, /, *, axis: int = 0) -> Any:
        if not isinstance(x, Batch):
            return self._xp.expand_dims(x, axis=axis)
        return Batch(self, self._xp.expand_dims(x.data, axis=axis % (x.ndim + 1) + 1))

    def squeeze(self, x: Any, /, axis: int | tuple[int, ...]) -> Any:
        if not isinstance(x, Batch):
            return self._xp.squeeze(x, axis)
        return Batch(self, self._xp.squeeze(x.data, self._axes(axis, x.ndim)))

    def permute_dims(self, x: Any, /, axes: tuple[int, ...]) -> Any:
        if not isinstance(x, Batch):
            return self._xp.permute_dims(x, axes)
        return Batch(self, self._xp.permute_dims(x.data, (0, *self._axes(tuple(axes), x.ndim))))

    def concat(self, arrays: Sequence[Any], /, *, axis: int | None = 0) -> Any:
        if not any(isinstance(x, Batch) for x in arrays):
            return self._xp.concat(arrays, axis=axis)
        batches = [self._batch(x) for x in arrays]
        if axis is None:
            batches = [self.reshape(x, (-1,)) for x in batches]
            axis = 0
        return Batch(self, self._xp.concat([x.data for x in batches], axis=axis % batches[0].ndim + 1))

    def stack(self, arrays: Sequence[Any], /, *, axis: int = 0) -> Any:
        if not any(isinstance(x, Batch) for x in arrays):
            return self._xp.stack(arrays, axis=axis)
        batches = [self._batch(x) for x in arrays]
        return Batch(self, self._xp.stack([x.data for x in batches], axis=axis % (batches[0].ndim + 1) + 1))

    def take(self, x: Any, indices: Any, /, *, axis: int | None = None) -> Any:
        if isinstance(indices, Batch):
            raise NotBatchable("take of elements that differ within the batch")
        if not isinstance(x, Batch):
            return self._xp.take(x, indices, axis=axis)
        if axis is None and x.ndim != 1:
            raise NotBatchable("take without an axis of an array with several")
        return Batch(self, self._xp.take(x.data, indices, axis=(axis or 0) % x.ndim + 1))

    def take_along_axis(self, x: Any, indices: Any, /, *, axis: int = -1) -> Any:
        x, indices = self._batch(x), self._batch(indices)
        return Batch(self, self._xp.take_along_axis(x.data, indices.data, axis=axis % x.ndim + 1))

    def _batch(self, x: Any) -> Batch:
        if isinstance(x, Batch):
            return x
        return Batch(self, self._xp.broadcast_to(x, (self._n, *x.shape)))

    # Beyond the standard

    def repeat_until(self, times: int, function: Callable[[Any], Any], carry: Any) -> Any:
        """Until it is done for every array; what is done for one stays as it is."""
        start = tuple(self._batch(x) for x in carry)

        def step(state: tuple[Array, ...]) -> tuple[Array, ...]:
            old = tuple(Batch(self, x) for x in state[1:])
            new = (self._batch(x) for x in function(old))
            both = [self.elementwise("where", old[0], a, b).data for a, b in zip(old, new, strict=True)]
            return (self._xp.all(both[0]), *both)

        state: tuple[Array, ...] = (self._xp.all(start[0].data), *(x.data for x in start))
        if hasattr(self._xp, "repeat_until"):
            state = self._xp.repeat_until(times, step, state)
        else:
            for _ in range(times):
                state = step(state)
        return tuple(Batch(self, x) for x in state[1:])


def unbatched(xp: BatchOps, x: Any, shape: tuple[int, ...]) -> Array:
    """Return the stacked arrays of a result, each of ``shape``; one that is the same for all is repeated."""
    return xp.broadcast_to(xp._batch(x), shape).data if tuple(x.shape) != shape else xp._batch(x).data
