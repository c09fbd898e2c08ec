"""Ops on PyTorch: array-api-compat, and our own functions where it or PyTorch deviates from the standard.

Known to remain: the sum of uint8 is int64, since PyTorch can't sum uint64; and transcendental functions
differ from other frameworks' by units in the last place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from array_api_compat.torch import all as all
from array_api_compat.torch import any as any
from array_api_compat.torch import arange as arange
from array_api_compat.torch import broadcast_to as broadcast_to
from array_api_compat.torch import full as full
from array_api_compat.torch import isdtype as isdtype
from array_api_compat.torch import matrix_transpose as matrix_transpose
from array_api_compat.torch import max as max
from array_api_compat.torch import mean as mean
from array_api_compat.torch import min as min
from array_api_compat.torch import ones as ones
from array_api_compat.torch import permute_dims as permute_dims
from array_api_compat.torch import reshape as reshape
from array_api_compat.torch import squeeze as squeeze
from array_api_compat.torch import zeros as zeros
from torch import abs as abs
from torch import bfloat16 as bfloat16
from torch import bool as bool
from torch import ceil as ceil
from torch import cos as cos
from torch import exp as exp
from torch import expm1 as expm1
from torch import float16 as float16
from torch import float32 as float32
from torch import float64 as float64
from torch import floor as floor
from torch import full_like as full_like
from torch import int8 as int8
from torch import int16 as int16
from torch import int32 as int32
from torch import int64 as int64
from torch import isfinite as isfinite
from torch import isinf as isinf
from torch import isnan as isnan
from torch import log as log
from torch import log1p as log1p
from torch import logical_not as logical_not
from torch import negative as negative
from torch import ones_like as ones_like
from torch import round as round
from torch import square as square
from torch import tanh as tanh
from torch import uint8 as uint8
from torch import zeros_like as zeros_like

from polyopt_torch import exact
from polyopt_torch.exact import sqrt as sqrt
from polyopt_torch.host_views import tensor_from_host

Tensor = torch.Tensor
_Scalar = int | float  # includes bool


def result_type(*arrays_and_dtypes: Any) -> torch.dtype:
    """Return the standard's promotion; 0-d tensors count like any other, unlike in ``torch.result_type``.

    float16 with bfloat16, which the standard doesn't know, is float32. A Python scalar takes the dtype of
    the arrays, or the default floating dtype where these are integers and it is a float.
    """
    found: torch.dtype | None = None
    scalars: list[Any] = []
    for x in arrays_and_dtypes:
        if isinstance(x, _Scalar):
            scalars.append(x)
            continue
        dtype = x if isinstance(x, torch.dtype) else x.dtype
        found = dtype if found is None or found == dtype else torch.promote_types(found, dtype)
    if found is None:
        raise ValueError("result_type: expected at least one array or dtype")
    for s in scalars:
        if isinstance(s, float) and not found.is_floating_point:
            found = torch.get_default_dtype()
        elif found == torch.bool and type(s) is int:
            found = torch.int64
    return found


def _pair(x1: Any, x2: Any) -> tuple[Tensor, Tensor]:
    """Both as tensors of their common dtype. A scalar is rounded to it, which PyTorch omits for 16 bits."""
    if isinstance(x1, Tensor) and isinstance(x2, Tensor) and x1.dtype == x2.dtype:
        return x1, x2
    dtype = result_type(x1, x2)
    device = x1.device if isinstance(x1, Tensor) else x2.device
    first, second = (
        x.to(dtype) if isinstance(x, Tensor) else torch.full((), x, dtype=dtype, device=device)
        for x in (x1, x2)
    )
    return first, second


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any, Any], Tensor]:
    """Make of ``function`` one with the standard's promotion, on arrays and Python scalars."""

    @wraps(function)
    def apply(x1: Any, x2: Any, /) -> Tensor:
        return function(*_pair(x1, x2))

    return apply


def _on_one_device(x1: Tensor, x2: Tensor) -> Tensor:
    # On CUDA a divisor that lies on the CPU is multiplied by as its reciprocal, which is not the quotient
    # (aten/src/ATen/native/cuda/BinaryDivTrueKernel.cu).
    if x2.device != x1.device and x2.ndim == 0:
        x2 = x2.to(x1.device)
    return torch.true_divide(x1, x2)


add = _binary(torch.add)
divide = _binary(_on_one_device)
equal = _binary(torch.eq)
greater = _binary(torch.gt)
greater_equal = _binary(torch.ge)
less = _binary(torch.lt)
less_equal = _binary(torch.le)
logical_and = _binary(torch.logical_and)
logical_or = _binary(torch.logical_or)
maximum = _binary(exact.maximum)
minimum = _binary(exact.minimum)
multiply = _binary(torch.multiply)
not_equal = _binary(torch.ne)
pow = _binary(torch.pow)
subtract = _binary(torch.subtract)


def sign(x: Tensor, /) -> Tensor:
    """PyTorch's is 0 for NaN (https://github.com/data-apis/array-api-compat/issues/136)."""
    if not x.is_floating_point():
        return torch.sign(x)
    return torch.where(torch.isnan(x), x, torch.sign(x))


def clip(x: Tensor, /, min: Any = None, max: Any = None) -> Tensor:
    """Return the standard's maximum and minimum, in the dtype of ``x``.

    ``torch.clamp`` loses a NaN bound (https://github.com/pytorch/pytorch/issues/172067) and doesn't take
    a tensor with a scalar.
    """
    low, high = _bound(x, min), _bound(x, max)
    if low is not None:
        x = maximum(x, low)
    if high is not None:
        x = minimum(x, high)
    return x.clone() if low is None and high is None else x


def _bound(x: Tensor, bound: Any) -> Any:
    """Return ``bound`` in the dtype of ``x``; ``None`` where it bounds nothing that an integer can be."""
    if bound is None or isinstance(bound, Tensor):
        return bound if bound is None else bound.to(x.dtype)
    if not x.is_floating_point():
        info = torch.iinfo(x.dtype)
        if math.isinf(bound) or not info.min <= bound <= info.max:
            return None if (bound < 0) == (bound < info.min) else bound
    return torch.full((), bound, dtype=x.dtype, device=x.device)


def where(condition: Tensor, x1: Any, x2: Any, /) -> Tensor:
    return torch.where(condition, *_pair(x1, x2))


def astype(x: Tensor, dtype: torch.dtype, /, *, copy: bool = True) -> Tensor:  # type: ignore[valid-type]
    return x.to(dtype, copy=True) if copy else x.to(dtype)


def finfo(type: torch.dtype | Tensor, /) -> torch.finfo:
    return torch.finfo(type.dtype if isinstance(type, Tensor) else type)


def asarray(obj: Any, /, *, dtype: Any = None, device: Any = None, copy: Any = None) -> Tensor:
    """Return ``torch.asarray`` that keeps an array's device and history, and takes any host array.

    It would detach a parameter, move it (https://github.com/pytorch/pytorch/issues/150199), and not know
    bfloat16, negative strides or memory that must not be written to.
    """
    if isinstance(obj, Tensor):
        wanted = obj.to(device=device or obj.device, dtype=dtype or obj.dtype, copy=copy is True)
    elif hasattr(obj, "__array_interface__") or type(obj).__module__ == "numpy":
        wanted = tensor_from_host(obj, copy=copy is True).to(device=device, dtype=dtype)
    else:
        return torch.asarray(obj, dtype=dtype, device=device, copy=copy)
    if copy is False and isinstance(obj, Tensor) and wanted is not obj:
        raise ValueError("asarray: copy=False, but this dtype and device need a copy")
    return wanted


def sum(x: Tensor, /, *, axis: Any = None, dtype: Any = None, keepdims: Any = False) -> Tensor:
    """Sum as the standard does: integers in int64 (https://github.com/pytorch/pytorch/issues/29137)."""
    if dtype is None and not x.is_floating_point():
        dtype = torch.int64
    if axis is None and not keepdims:
        return torch.sum(x, dtype=dtype)
    if axis == ():
        return x.to(dtype or x.dtype, copy=True)
    axes = tuple(range(x.ndim)) if axis is None else axis
    return x.to(dtype or x.dtype) if axes == () else torch.sum(x, axes, keepdim=keepdims, dtype=dtype)


def argmax(x: Tensor, /, *, axis: int | None = None, keepdims: Any = False) -> Tensor:
    """Return the place of the first maximum, NaN above all; PyTorch's doesn't take bool."""
    return torch.argmax(x.to(torch.uint8) if x.dtype == torch.bool else x, axis, keepdim=keepdims)


def matmul(x1: Tensor, x2: Tensor, /) -> Tensor:
    """Return ``torch.matmul`` with promotion."""
    return torch.matmul(*_pair(x1, x2))


def concat(arrays: Any, /, *, axis: int | None = 0) -> Tensor:
    if axis is None:
        return torch.cat([x.reshape(-1) for x in arrays])
    return torch.cat(tuple(arrays), dim=axis)


def stack(arrays: Any, /, *, axis: int = 0) -> Tensor:
    return torch.stack(tuple(arrays), dim=axis)


def expand_dims(x: Tensor, /, *, axis: int = 0) -> Tensor:
    return torch.unsqueeze(x, axis)


def take(x: Tensor, indices: Tensor, /, *, axis: int | None = None) -> Tensor:
    """Elements along ``axis`` (of the flattened array for ``None``); indices of any shape, from either end.

    ``torch.index_select`` takes 1-D indices, none negative
    (https://github.com/pytorch/pytorch/issues/146211).
    """
    if axis is None:
        x, axis = x.reshape(-1), 0
    axis = axis % x.ndim
    chosen = torch.index_select(x, axis, _from_start(indices, x.shape[axis]).reshape(-1))
    return chosen.reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])


def take_along_axis(x: Tensor, indices: Tensor, /, *, axis: int = -1) -> Tensor:
    """Return ``torch.take_along_dim`` with indices from either end and of any integer dtype.

    It takes an index that is out of range, where others are of this shape alone, without a word.
    """
    length, plain = x.shape[axis], not torch.compiler.is_compiling() and type(indices) is Tensor
    chosen = _from_start(indices, length)
    plain = plain and indices.is_cpu and not torch._C._functorch.is_functorch_wrapped_tensor(indices)
    if plain and ((chosen < 0) | (chosen >= length)).any().item():
        raise IndexError(f"take_along_axis: an index is out of range for an axis of length {length}")
    return torch.take_along_dim(x, chosen, dim=axis)


def _from_start(indices: Tensor, length: int) -> Tensor:
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + length, indices)


# Beyond the standard (see polyopt.core.ops)


def repeat_until(times: int, function: Callable[[Any], Any], carry: Any) -> Any:
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        for _ in range(times):
            carry = tuple(
                torch.where(carry[0], old, new) for old, new in zip(carry, function(carry), strict=True)
            )
        return carry
    for _ in range(times):
        if carry[0]:
            break
        carry = function(carry)
    return carry


# One operation forward and one backward, where five cost more than their arithmetic on small batches.


def log_softmax(x: Tensor, /) -> Tensor:
    return torch.log_softmax(x, dim=-1)


def cross_entropy(logits: Tensor, target: Tensor, label_smoothing: float, /) -> Tensor:
    """PyTorch's for integer labels, with none that means "ignore"."""
    labels = target.to(torch.int64)
    return torch.nn.functional.cross_entropy(
        logits, labels, ignore_index=torch.iinfo(torch.int64).min, label_smoothing=label_smoothing
    )


def relu(x: Tensor, /) -> Tensor:
    return torch.relu(x)
