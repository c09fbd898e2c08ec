"""Select the leaves to prune, bring them to the host, and apply masks, ``{path: bool array}``.

A mask is ``True`` where a weight is kept. It has the shape and the framework of its leaf; a leaf without one
is kept whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from polyopt.backend import registry
from polyopt.backend.host.buffers import aligned, donate_host_array
from polyopt.backend.host.threads import BLOCK, POOL
from polyopt.backend.protocol import Backend
from polyopt.core import tree
from polyopt.core.errors import InputError, nearest
from polyopt.core.ops import FLOATING, Array, Ops
from polyopt.core.rule import Pattern, matches, unmatched
from polyopt.core.tree import Flat, Tree

_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}

Masks: TypeAlias = dict[str, Array]
"""``{path: bool array of the leaf's shape}``, ``True`` where a weight is kept."""


@dataclass(frozen=True)
class Selected:
    """The leaves that a pattern selects, as they are and as contiguous float32 or float64 host arrays."""

    backend: Backend
    paths: tuple[str, ...]
    leaves: tuple[Array, ...]
    hosts: tuple[Any, ...]

    def masks(self, owner: str, cause: str, kept: Sequence[Any], before: Sequence[Any]) -> Masks:
        """Return masks from one host array of bools for each leaf, of any shape.

        Parameters
        ----------
        owner, cause
            The function and what decides in it, for the error.
        kept
            What is kept of each leaf.
        before
            What was kept before, ``None`` for all.

        Raises
        ------
        InputError
            Where nothing would be left of a leaf of which there was something before.
        """
        for path, mask, old in zip(self.paths, kept, before, strict=True):
            if mask.size and not mask.any() and (old is None or old.any()):
                left = mask.size if old is None else int(np.count_nonzero(old))
                raise InputError(
                    f"{owner}: {cause} would prune all {left} weights of {path!r}; expected one to be left, "
                    "or a pattern in select that leaves it out. Nothing was changed"
                )
        return {
            path: mask_like(self.backend, x, mask)
            for path, x, mask in zip(self.paths, self.leaves, kept, strict=True)
        }


def selected(owner: str, values: Tree, select: Pattern | None, *, matrices: bool = True) -> Selected:
    """Return the leaves of ``values`` whose path ``select`` matches.

    ``None`` selects all floating-point leaves, of at least two axes with ``matrices``: biases and scales, of
    which there are few, are left out.

    Raises
    ------
    InputError
        Where nothing is selected, or what is no floating-point array or is traced.
    """
    flat = tree.flatten(values)
    present = [(p, x) for p, x in zip(flat.paths, flat.leaves, strict=True) if x is not None]
    backend = registry.of(*(x for _, x in present))
    if select is None:
        least = 2 if matrices else 0
        chosen = [(p, x) for p, x in present if len(x.shape) >= least and backend.dtype_name(x) in FLOATING]
        if not chosen:
            raise InputError(
                f"{owner}: no floating-point parameter has {least} axes or more; expected one, or a pattern "
                f"in select; {nearest('weight', flat.paths)}"
            )
    else:
        chosen = [(p, x) for p, x in present if matches(select, p)]
        if not chosen:
            raise InputError(f"{owner}: select = {select!r} {unmatched(select, flat.paths)}")
    hosts = [host(owner, backend, p, x) for p, x in chosen]
    return Selected(backend, tuple(p for p, _ in chosen), tuple(x for _, x in chosen), tuple(hosts))


def host(owner: str, backend: Backend, path: str, x: Array) -> Any:
    """Copy ``x`` to a contiguous host array of float32, or of float64 where it is that; widen halves."""
    dtype = backend.dtype_name(x)
    if dtype not in FLOATING:
        raise InputError(f"{owner}: leaf {path!r} has dtype {dtype}; expected one of {', '.join(FLOATING)}")
    if backend.is_traced(x):
        raise InputError(f"{owner}: leaf {path!r} is traced; expected a call outside of a compiled function")
    wide = np.float64 if dtype == "float64" else np.float32
    return np.asarray(backend.to_numpy(x), wide, order="C")  # ascontiguousarray has no 0-d


def mask_like(backend: Backend, leaf: Array, mask: Any) -> Array:
    """Make of the host's ``mask``, given up, a bool array with the shape and the device of ``leaf``."""
    return donate_host_array(backend, np.ascontiguousarray(mask).reshape(tuple(leaf.shape)), leaf)


def aligned_masks(owner: str, flat: Flat, masks: Mapping[str, Array]) -> dict[str, Array]:
    """Return ``masks``, if they belong to the leaves of ``flat``: known paths, equal shapes, bools.

    Raises
    ------
    InputError
        It names the first leaf whose mask doesn't.
    """
    leaves = dict(zip(flat.paths, flat.leaves, strict=True))
    for path, mask in masks.items():
        leaf = leaves.get(path)
        if leaf is None:
            if path in leaves:
                raise InputError(
                    f"{owner}: mask {path!r} belongs to a parameter that is None; expected an array"
                )
            raise InputError(f"{owner}: mask {path!r} belongs to no parameter; {nearest(path, leaves)}")
        backend = registry.of(leaf, mask)
        if backend.dtype_name(mask) != "bool":
            raise InputError(
                f"{owner}: mask {path!r} has dtype {backend.dtype_name(mask)}; expected bool, True to keep"
            )
        if tuple(mask.shape) != tuple(leaf.shape):
            raise InputError(
                f"{owner}: mask {path!r} has shape {tuple(mask.shape)}; expected its parameter's "
                f"{tuple(leaf.shape)}"
            )
    return dict(masks)


def host_masks(owner: str, chosen: Selected, within: Mapping[str, Array] | None) -> list[Any]:
    """Return for each chosen leaf its mask in ``within`` as a flat host array, ``None`` where it is whole."""
    if within is None:
        return [None] * len(chosen.paths)
    flat = Flat(chosen.paths, list(chosen.leaves), None)
    own = {path: mask for path, mask in within.items() if path in chosen.paths}
    aligned_masks(owner, flat, own)
    found = {p: np.ascontiguousarray(chosen.backend.to_numpy(m)).reshape(-1) for p, m in own.items()}
    return [None if (mask := found.get(p)) is None or mask.all() else mask for p in chosen.paths]


def apply_masks(xp: Ops, params: Tree, masks: Mapping[str, Array]) -> Tree:
    """Return ``params`` with 0 wherever a mask is ``False``; leaves without a mask are handed on as they are.

    For use in a loss, with the ``xp`` that it is given: differentiable, and it joins compiled functions; the
    gradient is 0 where the mask is. ``pruned`` is faster elsewhere.

    Parameters
    ----------
    xp
        The backend's operations.
    params
        A tree of arrays.
    masks
        ``{path: bool array}``, ``True`` to keep.

    Returns
    -------
    tree
        The structure of ``params``.

    Raises
    ------
    InputError
        Where a mask has no parameter, or not its shape.

    Examples
    --------
    >>> from polyopt import value_and_grad
    >>> masks = {"w": np.array([True, False])}
    >>> def loss(xp, params):
    ...     return xp.sum(xp.exp(apply_masks(xp, params, masks)["w"]))
    >>> value_and_grad(loss)({"w": np.array([0.0, 2.0])})[1]["w"].tolist()
    [1.0, 0.0]
    """
    return _where_masked("apply_masks", partial(_zeroed, xp), params, masks)


def pruned(params: Tree, masks: Mapping[str, Array]) -> Tree:
    """Return ``params`` with 0 wherever a mask is ``False``: new arrays, which are constants.

    What ``apply_masks`` is for a loss, for weights outside of any.

    Parameters
    ----------
    params
        A tree of arrays of any framework.
    masks
        ``{path: bool array}``, ``True`` to keep.

    Returns
    -------
    tree
        The structure of ``params``.

    Raises
    ------
    InputError
        Where a mask has no parameter, or not its shape.

    Examples
    --------
    >>> pruned({"w": np.array([1.0, 2.0])}, {"w": np.array([True, False])})["w"].tolist()
    [1.0, 0.0]
    """
    return _where_masked("pruned", remove_units, params, masks)


def _where_masked(
    what: str, function: Callable[[Array, Array], Array], params: Tree, masks: Mapping[str, Array]
) -> Tree:
    """Return ``function(leaf, mask)`` for the leaves that have one; the others as they are."""
    flat = tree.flatten(params)
    known = aligned_masks(what, flat, masks)
    return flat.unflatten(
        function(x, known[path]) if path in known else x
        for path, x in zip(flat.paths, flat.leaves, strict=True)
    )


def remove_units(x: Array, mask: Array) -> Array:
    """Return ``x``, and 0 where ``mask`` is ``False``, as a constant.

    In host memory by bits: NumPy's ``where`` takes twice as long.
    """
    backend = registry.of(x)
    if backend.is_traced(x) or backend.is_traced(mask) or backend.device_name(x) != "cpu":
        return _zeroed(backend.ops, backend.stop_gradient(x), mask)
    values = np.asarray(backend.to_numpy(x), order="C")
    keep = np.ascontiguousarray(backend.to_numpy(mask)).reshape(-1)
    result = aligned(values.shape, values.dtype)
    unsigned = _UNSIGNED[values.dtype.itemsize]
    given, out = values.reshape(-1).view(unsigned), result.reshape(-1).view(unsigned)

    def zero(start: int) -> None:
        here = slice(start, start + BLOCK)
        np.multiply(given[here], keep[here], out=out[here])  # of integers: the bits, or 0

    POOL.each(zero, range(0, given.size, BLOCK), given.size)
    return donate_host_array(backend, result, x)


def _zeroed(xp: Ops, x: Array, mask: Array) -> Array:
    """Return ``x``, and 0 where the bool array ``mask`` is ``False``."""
    # 0-d: an array of zeros takes as long to write as the result.
    return xp.where(mask, x, xp.zeros((), dtype=x.dtype))


def check_sparsity(owner: str, sparsity: Any) -> float:
    """Return ``sparsity``, a number in [0, 1)."""
    number = isinstance(sparsity, int | float | np.floating) and not isinstance(sparsity, bool)
    if not number or not 0 <= sparsity < 1:
        raise InputError(f"{owner}: sparsity = {sparsity!r}; expected a number in [0, 1)")
    return float(sparsity)
