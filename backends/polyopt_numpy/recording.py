"""Record the NumPy calls that a function makes, with their arguments, as a straight list.

Arrays go in as ``Recorded`` values. Each call of NumPy on one is made, on the values of this run, and noted;
whatever would need to know a value to go on (``if x > 0``, ``float(x)``, a shape that depends on values) is
refused, as JAX refuses it. autograd's boxes take a ``Recorded`` for an array, so a backward pass is recorded
in the same way, and the list holds exactly the calls that would be made without it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, NoReturn

import numpy as np
from autograd.core import VSpace
from autograd.extend import Box
from autograd.numpy.numpy_boxes import ArrayBox
from autograd.numpy.numpy_vspaces import ArrayVSpace

_np: Any = np
"""NumPy without its types, which know of no other arrays."""
STATIC = frozenset(
    {"shape", "ndim", "size", "result_type", "iscomplexobj", "isrealobj", "can_cast"}
    | {"zeros_like", "ones_like", "empty_like", "broadcast_shapes"}
)
"""Functions of shapes and dtypes alone: they give plain values."""

ARRAYS = frozenset(
    {"sum", "mean", "prod", "cumsum", "cumprod", "std", "var", "max", "min", "amax", "amin", "ptp"}
    | {
        "argmax",
        "argmin",
        "argsort",
        "sort",
        "all",
        "any",
        "where",
        "clip",
        "round",
        "around",
        "real",
        "imag",
    }
    | {
        "astype",
        "copy",
        "full_like",
        "reshape",
        "ravel",
        "transpose",
        "matrix_transpose",
        "swapaxes",
        "moveaxis",
    }
    | {
        "squeeze",
        "expand_dims",
        "broadcast_to",
        "concatenate",
        "stack",
        "vstack",
        "hstack",
        "tile",
        "flip",
        "roll",
    }
    | {
        "take",
        "take_along_axis",
        "diagonal",
        "trace",
        "triu",
        "tril",
        "diff",
        "dot",
        "vdot",
        "tensordot",
        "einsum",
    }
    | {"outer", "inner", "norm"}
)
"""Functions that give one array, whose shape follows from the shapes of the arguments."""


class NotRecordable(Exception):
    """The function looks at a value, or does what a list of calls can't say."""


class Call(NamedTuple):
    """One call; a ``Recorded`` among the arguments stands for its slot, ``slot`` holds the result."""

    slot: int
    function: Callable[..., Any]
    args: tuple[Any, ...]
    keywords: dict[str, Any]


class Recording:
    """The calls made so far; equal calls are made once."""

    def __init__(self) -> None:
        self.examples: list[Any] = []
        """The value of each slot in the run that is recorded."""
        self.calls: list[Call] = []
        self.refused: str | None = None
        """Why it can't be replayed. It stays even where the function caught the exception."""
        self.open = True
        self._known: dict[Any, int] = {}

    def slot(self, example: Any) -> Recorded:
        """Add an input."""
        self.examples.append(example)
        return Recorded(self, len(self.examples) - 1)

    def refuse(self, why: str) -> NoReturn:
        """Give the recording up, and say why."""
        self.refused = self.refused or why
        raise NotRecordable(why)

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], keywords: dict[str, Any]) -> Recorded:
        """Make a call on the examples, and note it."""
        if not self.open:
            raise NotRecordable("an array of a recorded loss was kept and is used outside of it")
        key = _key((function, args, tuple(sorted(keywords.items()))))
        if key is not None and key in self._known:
            return Recorded(self, self._known[key])
        value = function(*_examples(args), **_examples(keywords))
        if not isinstance(value, np.ndarray | np.generic):
            self.refuse(f"{_name(function)} gives {type(value).__name__}, not an array")
        made = self.slot(value)
        self.calls.append(Call(made.slot, function, _frozen(args), _frozen(keywords)))
        if key is not None:
            self._known[key] = made.slot
        return made


class Recorded(np.lib.mixins.NDArrayOperatorsMixin):
    """An array of a ``Recording``: it has a shape and a dtype, but no value that could be looked at."""

    __slots__ = ("recording", "slot")
    __hash__ = object.__hash__
    device = "cpu"

    def __init__(self, recording: Recording, slot: int) -> None:
        self.recording, self.slot = recording, slot

    @property
    def example(self) -> Any:
        """Return the value in the run that is recorded."""
        return self.recording.examples[self.slot]

    shape = property(lambda self: self.example.shape)
    dtype = property(lambda self: self.example.dtype)
    ndim = property(lambda self: self.example.ndim)
    size = property(lambda self: self.example.size)
    nbytes = property(lambda self: self.example.nbytes)
    itemsize = property(lambda self: self.example.itemsize)
    T = property(np.transpose, doc="The axes in reverse order.")
    mT = property(np.matrix_transpose, doc="The last two axes in reverse order.")

    def __array_ufunc__(self, ufunc: Any, method: str, *args: Any, **keywords: Any) -> Any:
        if any(isinstance(x, Box) for x in args):
            return NotImplemented  # autograd's turn, which unboxes
        if method == "at" and isinstance(args[0], Recorded):
            self._add_at(ufunc, *args)
            return None
        if "out" in keywords or method not in ("__call__", "reduce") or ufunc.nout != 1:
            self.recording.refuse(f"{ufunc.__name__} in place, or its method {method}")
        function = ufunc if method == "__call__" else getattr(ufunc, method)
        return self.recording.call(function, args, keywords)

    def _add_at(self, ufunc: Any, target: Recorded, *args: Any) -> None:
        """Write into ``target``, which then is the slot with the result: others see the one of before."""

        def at(x: Any, *rest: Any) -> Any:
            x = np.copy(x)
            ufunc.at(x, *rest)
            return x

        target.slot = self.recording.call(at, (target, *args), {}).slot

    def __array_function__(self, function: Any, types: Any, args: Any, keywords: Any) -> Any:
        name = function.__name__
        if _any_box(args):
            self.recording.refuse(f"{name} of NumPy itself on an array that is differentiated")
        if name in STATIC:
            return function(*_examples(args), **_examples(keywords))
        if name not in ARRAYS or "out" in keywords or (name == "where" and len(args) < 3):
            self.recording.refuse(f"numpy.{name}, whose result may depend on values in its shape")
        return self.recording.call(function, args, keywords)

    def __pow__(self, other: Any) -> Any:
        # Not the ufunc: an array's operator takes a shorter way for 2 and 0.5.
        return (
            NotImplemented if isinstance(other, Box) else self.recording.call(operator.pow, (self, other), {})
        )

    def __getitem__(self, index: Any) -> Any:
        parts = index if isinstance(index, tuple) else (index,)
        if any(isinstance(p, list) or getattr(p, "dtype", None) == np.bool for p in parts):
            self.recording.refuse("an index that is a list or a mask, whose result's shape depends on values")
        return self.recording.call(operator.getitem, (self, index), {})

    def __setitem__(self, index: Any, value: Any) -> None:
        self.recording.refuse("an assignment to elements")

    def __len__(self) -> int:
        return len(self.example)

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    def astype(self, dtype: Any, copy: bool = True) -> Any:
        """Convert to ``dtype``, as ``np.astype`` does."""
        return _np.astype(self, dtype, copy=copy)

    def reshape(self, *shape: Any) -> Any:
        """Return the elements in another shape, as ``np.reshape`` does."""
        return _np.reshape(self, shape[0] if len(shape) == 1 else shape)

    def transpose(self, *axes: Any) -> Any:
        """Put the axes in another order, as ``np.transpose`` does."""
        return _np.transpose(self, (axes[0] if len(axes) == 1 else axes) or None)


def _refusing(name: str) -> Callable[..., Any]:
    def method(self: Recorded, *_: Any, **__: Any) -> NoReturn:
        self.recording.refuse(f"{name}: the value of an array")

    return method


def _function(name: str) -> Callable[..., Any]:
    """Make a method of a NumPy function."""
    function = getattr(np, name)

    def method(self: Recorded, *args: Any, **keywords: Any) -> Any:
        return function(self, *args, **keywords)

    return method


_VALUES = ("__bool__", "__float__", "__int__", "__complex__", "__index__", "__array__", "__contains__")
_IN_PLACE = ("__iadd__", "__isub__", "__imul__", "__itruediv__", "__ifloordiv__", "__imod__", "__ipow__")
_AS_FUNCTIONS = ("sum", "mean", "max", "min", "argmax", "argmin", "all", "any", "clip", "squeeze", "ravel")
for _method in (*_VALUES, "item", "tolist", "tobytes"):
    setattr(Recorded, _method, _refusing(_method.strip("_")))
for _method in (*_IN_PLACE, "__imatmul__"):
    setattr(Recorded, _method, _refusing(f"the operator {_method}, in place"))
for _method in (*_AS_FUNCTIONS, "take", "copy", "round", "swapaxes", "std", "var"):
    setattr(Recorded, _method, _function(_method))

ArrayBox.register(Recorded)
VSpace.register(Recorded, lambda x: ArrayVSpace(x.example))


def as_one_call(function: Callable[..., Any]) -> Callable[..., Any]:
    """Record ``function`` as a whole: one that works in place, or asks for memory itself."""

    @wraps(function)
    def apply(*args: Any) -> Any:
        found = next((x for x in args if isinstance(x, Recorded)), None)
        return function(*args) if found is None else found.recording.call(function, args, {})

    return apply


def map_recorded(function: Callable[[Recorded], Any], x: Any) -> Any:
    """Return ``x`` with ``function`` applied to what is recorded in it, in tuples, lists and dicts too."""
    if isinstance(x, Recorded):
        return function(x)
    if type(x) in (tuple, list):
        return type(x)(map_recorded(function, y) for y in x)
    if type(x) is dict:
        return {key: map_recorded(function, y) for key, y in x.items()}
    return x


def _examples(x: Any) -> Any:
    return map_recorded(lambda r: r.example, x)


def _frozen(x: Any) -> Any:
    """Copy what is recorded: ``_add_at`` changes slots."""
    return map_recorded(lambda r: Recorded(r.recording, r.slot), x)


def _any_box(x: Any) -> bool:
    if isinstance(x, tuple | list):
        return any(_any_box(y) for y in x)
    return isinstance(x, Box)


def _key(x: Any) -> Any:
    """Return the key by which calls are told apart; ``None`` where there is none."""
    if isinstance(x, Recorded):
        return ("slot", x.slot)
    if isinstance(x, tuple | list):
        parts = tuple(_key(y) for y in x)
        return None if None in parts else (type(x), parts)
    if isinstance(x, float | np.generic):
        return (type(x), repr(x))  # 0.0 == -0.0
    if isinstance(x, slice):
        return _key((slice, x.start, x.stop, x.step))
    if x is None or isinstance(x, bool | int | str | type | np.dtype) or callable(x):
        return (type(x), x)
    return None


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)
