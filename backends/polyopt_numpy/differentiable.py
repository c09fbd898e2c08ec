"""Ops that the autograd library can differentiate: the ``xp`` of a loss on NumPy.

Every function is ours, with its derivative, so values are those of ``polyopt_numpy.ops`` to the bit and a
gradient has its parameter's dtype: autograd's own derivatives widen float32 (a mean divides by an int64) and
lack ``take``, ``concat``, ``permute_dims`` and more. Bare operators (``x * y``, ``x[i]``) stay autograd's,
and NumPy's: bfloat16 with a Python scalar is float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
from autograd.extend import Box, VSpace, defvjp, defvjp_argnum, notrace_primitive, primitive
from autograd.numpy.numpy_boxes import ArrayBox
from autograd.numpy.numpy_vspaces import ArrayVSpace

from polyopt_numpy import ops
from polyopt_numpy.ops import arange as arange
from polyopt_numpy.ops import bfloat16 as bfloat16
from polyopt_numpy.ops import bool as bool
from polyopt_numpy.ops import float16 as float16
from polyopt_numpy.ops import float32 as float32
from polyopt_numpy.ops import float64 as float64
from polyopt_numpy.ops import full as full
from polyopt_numpy.ops import int8 as int8
from polyopt_numpy.ops import int16 as int16
from polyopt_numpy.ops import int32 as int32
from polyopt_numpy.ops import int64 as int64
from polyopt_numpy.ops import isdtype as isdtype
from polyopt_numpy.ops import ones as ones
from polyopt_numpy.ops import uint8 as uint8
from polyopt_numpy.ops import zeros as zeros
from polyopt_numpy.recording import Recorded, as_one_call

# autograd knows the floating types of NumPy by name.
if ml_dtypes.bfloat16 not in VSpace.mappings:
    ArrayBox.register(ml_dtypes.bfloat16)
    ArrayVSpace.register(ml_dtypes.bfloat16)

# Constant almost everywhere, or not numbers: gradients stop here.
all = notrace_primitive(ops.all)
any = notrace_primitive(ops.any)
argmax = notrace_primitive(ops.argmax)
ceil = notrace_primitive(ops.ceil)
equal = notrace_primitive(ops.equal)
finfo = notrace_primitive(ops.finfo)
floor = notrace_primitive(ops.floor)
full_like = notrace_primitive(ops.full_like)
greater = notrace_primitive(ops.greater)
greater_equal = notrace_primitive(ops.greater_equal)
isfinite = notrace_primitive(ops.isfinite)
isinf = notrace_primitive(ops.isinf)
isnan = notrace_primitive(ops.isnan)
less = notrace_primitive(ops.less)
less_equal = notrace_primitive(ops.less_equal)
logical_and = notrace_primitive(ops.logical_and)
logical_not = notrace_primitive(ops.logical_not)
logical_or = notrace_primitive(ops.logical_or)
not_equal = notrace_primitive(ops.not_equal)
ones_like = notrace_primitive(ops.ones_like)
result_type = notrace_primitive(ops.result_type)
round = notrace_primitive(ops.round)
sign = notrace_primitive(ops.sign)
zeros_like = notrace_primitive(ops.zeros_like)

abs = primitive(ops.abs)
add = primitive(ops.add)
broadcast_to = primitive(ops.broadcast_to)
cos = primitive(ops.cos)
divide = primitive(ops.divide)
exp = primitive(ops.exp)
expand_dims = primitive(ops.expand_dims)
expm1 = primitive(ops.expm1)
log = primitive(ops.log)
log1p = primitive(ops.log1p)
log_softmax = primitive(ops.log_softmax)
matrix_transpose = primitive(ops.matrix_transpose)
max = primitive(ops.max)
maximum = primitive(ops.maximum)
mean = primitive(ops.mean)
min = primitive(ops.min)
minimum = primitive(ops.minimum)
multiply = primitive(ops.multiply)
negative = primitive(ops.negative)
permute_dims = primitive(ops.permute_dims)
pow = primitive(ops.pow)
relu = primitive(ops.relu)
reshape = primitive(ops.reshape)
sqrt = primitive(ops.sqrt)
square = primitive(ops.square)
squeeze = primitive(ops.squeeze)
subtract = primitive(ops.subtract)
sum = primitive(ops.sum)
tanh = primitive(ops.tanh)
where = primitive(ops.where)

_sine = primitive(np.sin)
_cast = primitive(ops.astype)
_concat = primitive(lambda axis, *arrays: ops.concat(arrays, axis=axis))
_matmul = primitive(ops.matmul)
_select = primitive(lambda x, index: x[index])


def astype(x: Any, dtype: Any, /, *, copy: Any = True) -> Any:
    """Convert to ``dtype``: to an integer or bool, the gradient stops; between floats it goes through."""
    if not isdtype(np.dtype(dtype), "real floating"):
        return constant(ops.astype, x, dtype)
    return _cast(x, dtype, copy=copy)


def asarray(obj: Any, /, *, dtype: Any = None, device: Any = None, copy: Any = None) -> Any:
    if isinstance(obj, Recorded):
        return obj if dtype is None and not copy else obj.astype(dtype or obj.dtype)
    if isinstance(obj, Box):
        return obj if dtype is None and not copy else astype(obj, dtype or obj.dtype)
    if isinstance(obj, list | tuple) and _holds_box(obj):
        stacked = stack([asarray(x, dtype=dtype) for x in obj])
        return stacked if dtype is None else astype(stacked, dtype, copy=False)
    return ops.asarray(obj, dtype=dtype, device=device, copy=copy)


def clip(x: Any, /, min: Any = None, max: Any = None) -> Any:
    """Hold within bounds as ``polyopt_numpy.ops.clip``; at a bound, half of the gradient goes through."""
    dtype = x.dtype
    if not isdtype(dtype, "real floating"):
        return constant(ops.clip, x, min, max)
    if min is not None:
        x = maximum(x, min)
    if max is not None:
        x = minimum(x, max)
    return astype(x, dtype)


def concat(arrays: Sequence[Any], /, *, axis: int | None = 0) -> Any:
    if axis is None:
        return _concat(0, *(reshape(x, (-1,)) for x in arrays))
    return _concat(axis, *arrays)


def stack(arrays: Sequence[Any], /, *, axis: int = 0) -> Any:
    return _concat(axis, *(expand_dims(x, axis=axis) for x in arrays))


def matmul(x1: Any, x2: Any, /) -> Any:
    """Multiply matrices; a vector is a row on the left and a column on the right."""
    if x1.ndim == 1:
        return squeeze(matmul(expand_dims(x1, axis=0), x2), -2 if x2.ndim > 1 else 0)
    if x2.ndim == 1:
        return squeeze(_matmul(x1, expand_dims(x2, axis=1)), -1)
    return _matmul(x1, x2)


def take(x: Any, indices: Any, /, *, axis: int | None = None) -> Any:
    if axis is None:
        x, axis = reshape(x, (-1,)), 0
    return _select(x, (slice(None),) * (axis % x.ndim) + (_indices(indices),))


def take_along_axis(x: Any, indices: Any, /, *, axis: int = -1) -> Any:
    indices = _indices(indices)
    shape = np.broadcast_shapes(
        *((*s[: axis % x.ndim], 1, *s[axis % x.ndim + 1 :]) for s in (x.shape, indices.shape))
    )
    index = list(np.ogrid[tuple(slice(n) for n in shape)])
    index[axis] = indices
    return _select(x, tuple(index))


def _indices(x: Any) -> Any:
    x = unboxed(x)
    return x if isinstance(x, Recorded) else np.asarray(x)


def unboxed(x: Any) -> Any:
    """Return the value of ``x``, as a constant for differentiation of every order."""
    while isinstance(x, Box):
        x = x._value
    return x


def constant(function: Any, *args: Any) -> Any:
    """Return ``function`` of the values of ``args``."""
    return function(*(unboxed(a) for a in args))


def _holds_box(x: Any) -> Any:
    if isinstance(x, list | tuple):
        return next((True for item in x if _holds_box(item)), False)
    return isinstance(x, Box | Recorded)


# Derivatives


def _fit(g: Any, x: Any) -> Any:
    """Return ``g`` summed over the axes along which ``x`` was broadcast, in the dtype of ``x``."""
    shape: tuple[int, ...] = getattr(x, "shape", ())
    extra = len(g.shape) - len(shape)
    axes = tuple(range(extra)) + tuple(
        i + extra for i, n in enumerate(shape) if n == 1 and g.shape[i + extra] != 1
    )
    if axes:
        g = reshape(sum(g, axis=axes, keepdims=True), shape)
    dtype = getattr(x, "dtype", g.dtype)
    return g if g.dtype == dtype else _cast(g, dtype)


def _kept(x: Any, shape: Any, axis: Any, keepdims: Any) -> Any:
    """Put a reduction's reduced axes back as 1."""
    if keepdims:
        return x
    axes = range(len(shape)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    reduced = {a % len(shape) for a in axes} if shape else set()
    return reshape(x, tuple(1 if i in reduced else n for i, n in enumerate(shape)))


def _both(function: Any, first: Any, second: Any) -> None:
    """Register derivatives of a binary operation, given without broadcasting."""
    defvjp(
        function,
        lambda ans, x, y: lambda g: _fit(first(g, ans, x, y), x),
        lambda ans, x, y: lambda g: _fit(second(g, ans, x, y), y),
    )


def _one(function: Any, derivative: Any) -> None:
    defvjp(function, lambda ans, x: lambda g: derivative(g, ans, x))


def _from_log_softmax(g: Any, ans: Any, x: Any) -> Any:
    return subtract(g, multiply(exp(ans), sum(g, axis=-1, keepdims=True)))


def _share(lost: Any, ans: Any, x: Any, y: Any) -> Any:
    """Return 0 where ``x`` is not the extremum, 1/2 where ``y`` is it too, else 1: for NaN as well."""
    mine, tied = astype(logical_not(lost(x, y)), ans.dtype), astype(equal(x, y), ans.dtype)
    return divide(mine, add(tied, 1.0))


def _extremum(ans: Any, x: Any, axis: Any = None, keepdims: Any = False) -> Any:
    hit = astype(equal(x, _kept(ans, x.shape, axis, keepdims)), x.dtype)
    share = ops.divide(hit, ops.sum(hit, axis=axis, keepdims=True))
    return lambda g: multiply(_kept(g, x.shape, axis, keepdims), share)


def _power_base(g: Any, ans: Any, x: Any, y: Any) -> Any:
    """y·x^(y-1), which is 0 for y = 0, whatever x is."""
    if not hasattr(y, "dtype"):
        return multiply(g, multiply(y, pow(x, y - 1))) if y else ops.zeros_like(unboxed(g))
    constant_one = equal(y, 0.0)
    slope = multiply(y, pow(x, where(constant_one, 1.0, subtract(y, 1.0))))
    return multiply(g, where(constant_one, ops.zeros_like(unboxed(ans)), slope))


def _power_exponent(g: Any, ans: Any, x: Any) -> Any:
    """x^y·log x, with 0·log 0 = 0; NaN for a negative base."""
    if not hasattr(x, "dtype"):
        x = np.asarray(x, ans.dtype)
    safe = where(equal(x, 0.0), ops.ones_like(unboxed(x)), x)
    return multiply(g, multiply(ans, _cast(log(safe), ans.dtype)))


def _sum_back(ans: Any, x: Any, axis: Any = None, dtype: Any = None, keepdims: Any = False) -> Any:
    return lambda g: _fit(broadcast_to(_kept(g, x.shape, axis, keepdims), x.shape), x)


def _mean_back(ans: Any, x: Any, axis: Any = None, keepdims: Any = False) -> Any:
    count = float(unboxed(x).size // np.maximum(unboxed(ans).size, 1))
    return lambda g: _fit(divide(broadcast_to(_kept(g, x.shape, axis, keepdims), x.shape), count), x)


def _concat_back(argnum: int, ans: Any, args: Any, keywords: Any) -> Any:
    axis, *arrays = args
    axis %= ans.ndim
    start = int(np.sum([x.shape[axis] for x in arrays[: argnum - 1]]))
    stop = start + arrays[argnum - 1].shape[axis]
    index = (slice(None),) * axis + (slice(start, stop),)
    return lambda g: _fit(_select(g, index), arrays[argnum - 1])


def _scatter_values(g: Any, index: Any, like: Any) -> Any:
    """Zeros of the shape of ``like`` with ``g`` added at ``index``; 16 bits are added in float32."""
    wide = np.float32 if like.dtype.itemsize == 2 else like.dtype
    out = np.zeros(like.shape, wide)
    np.add.at(out, index, np.astype(g, wide))
    return out.astype(like.dtype)


_scatter = primitive(as_one_call(_scatter_values))
defvjp(_scatter, lambda ans, g, index, like: lambda h: _select(h, index), argnums=(0,))
defvjp(_select, lambda ans, x, index: lambda g: _scatter(g, index, unboxed(x)), argnums=(0,))
defvjp_argnum(_concat, _concat_back)

_both(add, lambda g, ans, x, y: g, lambda g, ans, x, y: g)
_both(subtract, lambda g, ans, x, y: g, lambda g, ans, x, y: negative(g))
_both(multiply, lambda g, ans, x, y: multiply(g, y), lambda g, ans, x, y: multiply(x, g))
_both(
    divide,
    lambda g, ans, x, y: divide(g, y),
    lambda g, ans, x, y: negative(divide(multiply(g, ans), y)),
)
_both(
    maximum,
    lambda g, ans, x, y: multiply(g, _share(less, ans, x, y)),
    lambda g, ans, x, y: multiply(g, _share(less, ans, y, x)),
)
_both(
    minimum,
    lambda g, ans, x, y: multiply(g, _share(greater, ans, x, y)),
    lambda g, ans, x, y: multiply(g, _share(greater, ans, y, x)),
)
_both(pow, _power_base, lambda g, ans, x, y: _power_exponent(g, ans, x))
_both(
    _matmul,
    lambda g, ans, x, y: _matmul(g, matrix_transpose(y)),
    lambda g, ans, x, y: _matmul(matrix_transpose(x), g),
)

_one(abs, lambda g, ans, x: multiply(g, where(isnan(x), zeros_like(ans), sign(x))))
_one(cos, lambda g, ans, x: negative(multiply(g, _sine(x))))
_one(_sine, lambda g, ans, x: multiply(g, cos(x)))
_one(exp, lambda g, ans, x: multiply(g, ans))
_one(expm1, lambda g, ans, x: multiply(g, exp(x)))
_one(log, lambda g, ans, x: divide(g, x))
_one(log1p, lambda g, ans, x: divide(g, add(x, 1.0)))
_one(log_softmax, _from_log_softmax)
_one(negative, lambda g, ans, x: negative(g))
_one(relu, lambda g, ans, x: where(greater(x, 0.0), g, zeros_like(g)))
_one(sqrt, lambda g, ans, x: divide(g, multiply(ans, 2.0)))
_one(square, lambda g, ans, x: multiply(g, multiply(x, 2.0)))
_one(tanh, lambda g, ans, x: multiply(g, subtract(1.0, square(ans))))
_one(matrix_transpose, lambda g, ans, x: matrix_transpose(g))

defvjp(max, _extremum)
defvjp(min, _extremum)
defvjp(sum, _sum_back)
defvjp(mean, _mean_back)
defvjp(_cast, lambda ans, x, dtype, copy=True: lambda g: _cast(g, x.dtype), argnums=(0,))
defvjp(broadcast_to, lambda ans, x, shape: lambda g: _fit(g, x), argnums=(0,))
defvjp(expand_dims, lambda ans, x, axis=0: lambda g: reshape(g, x.shape))
defvjp(reshape, lambda ans, x, shape, copy=None: lambda g: reshape(g, x.shape), argnums=(0,))
defvjp(squeeze, lambda ans, x, axis: lambda g: reshape(g, x.shape), argnums=(0,))
defvjp(
    permute_dims,
    lambda ans, x, axes: lambda g: permute_dims(g, tuple(int(i) for i in np.argsort(axes))),
    argnums=(0,),
)
defvjp(
    where,
    lambda ans, c, x, y: lambda g: _fit(where(c, g, ops.zeros_like(unboxed(g))), x),
    lambda ans, c, x, y: lambda g: _fit(where(c, ops.zeros_like(unboxed(g)), g), y),
    argnums=(1, 2),
)
