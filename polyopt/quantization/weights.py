"""From a tree of weights to one with quantized leaves, and back."""

from __future__ import annotations

from typing import Any

import numpy as np

from polyopt.backend import registry
from polyopt.backend.host.buffers import donate_host_array
from polyopt.backend.protocol import Backend
from polyopt.core import tree
from polyopt.core.errors import InputError, nearest
from polyopt.core.ops import FLOATING
from polyopt.core.rule import Pattern, matches, unmatched
from polyopt.core.tree import Flat, Tree
from polyopt.quantization.host import bounds, choose, compute_dtype, encode, narrowed, pack
from polyopt.quantization.record import Quantized, restored
from polyopt.quantization.scheme import Blocks, Cast, Integer, Scheme, blocks

OVERFLOWS = {"float16": 65520.0, "bfloat16": (2 - 2.0**-8) * 2.0**127}
"""The least magnitudes that round to infinity."""


def quantize(params: Tree, scheme: Scheme, select: Pattern | None = None) -> Tree:
    """Return ``params`` with a ``Quantized`` in the place of each selected leaf.

    Parameters
    ----------
    params
        Weights of any framework, floating: a tree, or one array. They are not changed.
    scheme
        ``Integer`` or ``Cast``.
    select
        The leaves, by path: a regular expression that is searched for, or a predicate. By default all that
        are floating and have at least two axes: not biases and the like. What is quantized already stays so.

    Returns
    -------
    A tree of the same structure. Codes, scales and zero points are the same bits for the same weights on
    every framework: they are computed on the host.

    Raises
    ------
    InputError
        For a pattern that selects nothing (with the nearest paths), a selected leaf that is not floating, is
        quantized already or holds what is not finite (with its index), an axis out of range, groups that
        don't divide it, and weights that overflow float16.

    Examples
    --------
    >>> import numpy as np
    >>> params = {"weight": np.float32([[0.5, 1.27], [-1.0, 0.0]]), "bias": np.float32([1.0, 2.0])}
    >>> q = quantize(params, Integer(per="tensor"))["weight"]
    >>> q.codes.tolist(), round(float(q.scale), 6)
    ([[50, 127], [-100, 0]], 0.01)
    """
    if not isinstance(scheme, Integer | Cast):
        raise InputError(f"quantize: scheme = {scheme!r}; expected an Integer or a Cast")
    flat = tree.flatten(params)
    chosen = selected(flat, select)
    return flat.unflatten(
        _quantized(path, x, scheme) if path in chosen else x
        for path, x in zip(flat.paths, flat.leaves, strict=True)
    )


def dequantize(params: Tree) -> Tree:
    """Make of each ``Quantized`` leaf an array again: (q - z)·s in its own shape and dtype.

    The same bits on every framework; it may stand in a compiled function.

    Parameters
    ----------
    params
        A tree of arrays and quantized leaves.

    Returns
    -------
    tree
        The structure of ``params``.

    Examples
    --------
    >>> import numpy as np
    >>> w = np.float32([[0.5, 1.0], [-1.0, 0.0]])
    >>> dequantize(quantize(w, Cast("float16"))).tolist()
    [[0.5, 1.0], [-1.0, 0.0]]
    """
    return tree.map_leaves(lambda x: restored(x) if isinstance(x, Quantized) else x, params)


def selected(flat: Flat, select: Pattern | None) -> set[str]:
    """Return the paths of the leaves that a pattern selects, or raise an error where there are none."""
    leaves = dict(zip(flat.paths, flat.leaves, strict=True))
    present = [path for path, x in leaves.items() if x is not None]
    if select is None:
        arrays = (p for p in present if not isinstance(leaves[p], Quantized))
        found = {p for p in arrays if _dtype(p, leaves[p]) in FLOATING and len(leaves[p].shape) > 1}
        if not found:
            raise InputError(
                "quantize: no floating-point parameter has 2 axes or more; expected one, or a pattern in "
                f"select; {nearest('', present)}"
            )
        return found
    chosen = {p for p in present if matches(select, p)}
    if not chosen:
        raise InputError(f"quantize: select = {select!r} {unmatched(select, present)}")
    for path in chosen:
        if isinstance(leaves[path], Quantized):
            raise InputError(f"leaf {path!r} is quantized already; dequantize it first")
    return chosen


def floating(path: str, x: Any) -> tuple[Backend, Any]:
    """Return the backend and the host values of a leaf, which must be floating and have values."""
    backend = registry.of(x)
    if backend.dtype_name(x) not in FLOATING:
        raise InputError(
            f"leaf {path!r} has dtype {backend.dtype_name(x)}; expected one of {', '.join(FLOATING)}"
        )
    if backend.is_traced(x):
        raise InputError(
            f"leaf {path!r} is traced; quantize outside of compiled functions, or use fake_quantize"
        )
    return backend, backend.to_numpy(x)


def record(
    backend: Backend,
    like: Any,
    scheme: Integer,
    cut: Blocks,
    codes: Any,
    scale: Any,
    zero_point: Any | None,
) -> Quantized:
    """Make a record on the framework and the device of ``like``, of host arrays, which are given up."""
    return Quantized(
        donate_host_array(backend, pack(codes) if scheme.bits == 4 else codes, like),
        donate_host_array(backend, scale.reshape(cut.stored), like),
        None if zero_point is None else donate_host_array(backend, zero_point.reshape(cut.stored), like),
        tuple(like.shape),
        backend.dtype_name(like),
        scheme,
    )


def _dtype(path: str, x: Any) -> str:
    try:
        return registry.of(x).dtype_name(x)
    except InputError as e:
        raise InputError(f"leaf {path!r}: {e}") from None


def _quantized(path: str, x: Any, scheme: Scheme) -> Quantized:
    backend, host = floating(path, x)
    if isinstance(scheme, Cast):
        return _cast(path, backend, x, host, scheme)
    cut = blocks(scheme, tuple(host.shape), path)
    limits = bounds(host, cut, path, symmetric=scheme.symmetric)
    scale, zero_point = choose(scheme, *limits)
    codes = encode(scheme, host, cut, scale, zero_point, limits)
    return record(backend, x, scheme, cut, codes, scale, zero_point)


def _cast(path: str, backend: Backend, x: Any, host: Any, scheme: Cast) -> Quantized:
    cut = blocks(Integer(per="tensor"), tuple(host.shape), path)
    _, high = bounds(host, cut, path, symmetric=True, dtype=compute_dtype(host))
    largest = high.max()
    with np.errstate(over="ignore"):
        most = np.float32(largest)
    if most >= OVERFLOWS[scheme.dtype]:
        wrong = np.abs(host.reshape(-1)) == largest
        index = tuple(int(k) for k in np.unravel_index(int(np.argmax(wrong)), host.shape))
        raise InputError(
            f"leaf {path!r}: the element at {index} is {float(host[index]):.6g}, beyond {scheme.dtype}; "
            "expected smaller numbers, or bfloat16"
        )
    codes = donate_host_array(backend, narrowed(host, scheme.dtype), x)
    return Quantized(codes, None, None, tuple(x.shape), backend.dtype_name(x), scheme)
