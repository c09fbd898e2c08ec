"""Gradients of a loss that is written once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import ModuleType, SimpleNamespace
from typing import Any

from polyopt.backend import registry
from polyopt.backend.protocol import Backend, LossFunction
from polyopt.core import tree
from polyopt.core.errors import InputError, nearest
from polyopt.core.opaque import opaque
from polyopt.core.ops import Array, Ops


def check_loss(value: Any, own: type | tuple[type, ...] = object) -> Any:
    """Return what a loss gave if it can be differentiated: a 0-d array of a floating dtype.

    Parameters
    ----------
    value
        What ``loss(xp, params, ...)`` returned, of any framework, traced or not.
    own
        The types of the framework's arrays.

    Returns
    -------
    Array
        ``value``.

    Raises
    ------
    InputError
        For anything else; it says what was returned.

    Examples
    --------
    >>> check_loss(None)
    Traceback (most recent call last):
    ...
    polyopt.core.errors.InputError: the loss returned None; expected a 0-d array of a floating dtype, ...
    """
    shape, dtype = getattr(value, "shape", None), str(getattr(value, "dtype", ""))
    if shape is None or not dtype:
        found = "None" if value is None else f"a {type(value).__name__}"
    elif len(shape) != 0:
        found = f"an array of shape {tuple(shape)}"
    elif "float" not in dtype:
        found = f"an array of dtype {getattr(value.dtype, 'name', dtype.removeprefix('torch.'))}"
    elif not isinstance(value, own):
        found = f"an array of {type(value).__module__.split('.')[0]}"
    else:
        return value
    raise InputError(
        f"the loss returned {found}; expected a 0-d array of a floating dtype, made of the parameters by "
        "operations of xp (xp.mean or xp.sum of an array)"
    )


def check_takes_xp(loss: Any, args: Sequence[Any] = ()) -> None:
    """Refuse a loss that doesn't take ``(xp, params, *args)``.

    Raises
    ------
    InputError
        It says what the loss takes.
    """
    if not callable(loss):
        raise InputError(f"the loss is {loss!r:.80}; expected a function loss(xp, params, ...)")
    try:
        signature = inspect.signature(loss)
    except (TypeError, ValueError):
        return  # a builtin
    try:
        signature.bind(None, None, *args) if args else signature.bind_partial(None, None)
    except TypeError:
        given = f", and {len(args)} more argument{'s' * (len(args) > 1)}" if args else ", ..."
        raise InputError(
            f"the loss takes {signature}; expected loss(xp, params{given}): xp are the array operations"
        ) from None


def explain_operation(error: AttributeError) -> None:
    """Refuse an operation that a loss asked of ``xp`` and that isn't there.

    Raises
    ------
    InputError
        It names the nearest operation.
    """
    if isinstance(error.obj, ModuleType | SimpleNamespace) and hasattr(error.obj, "matmul"):
        known = [name for name in vars(Ops) if not name.startswith("_")]
        raise InputError(
            f"the loss: there is no xp.{error.name}; {nearest(str(error.name), known)}"
        ) from error


def value_and_grad(
    loss: LossFunction, *, compiled: bool = True, pure: bool = False
) -> Callable[..., tuple[Array, Any]]:
    """Make of a loss ``f(params, *args) -> (loss, gradients)``, on whatever framework ``params`` are of.

    Parameters
    ----------
    loss
        ``loss(xp, params, *args)``, a 0-d array, computed with ``xp``'s operations and operators.
    compiled
        Compile it where the framework compiles (JAX, TensorFlow).
    pure
        Promise that the loss depends on its arguments alone, not on a variable or random state that changes
        between calls. NumPy then records its calls once for each set of shapes and replays them, with the
        same bits in a fraction of the time (see ``docs/speed.md``); ``TrainStep`` always promises it.

    Returns
    -------
    Callable
        ``f(params, *args)``; the loss is 0-d, the gradients are a tree like ``params``.

    Examples
    --------
    >>> import numpy as np
    >>> f = value_and_grad(lambda xp, params, x: xp.sum(params["w"] * x))
    >>> value, grads = f({"w": np.array([1.0, 2.0])}, np.array([3.0, 4.0]))
    >>> float(value), grads["w"].tolist()
    (11.0, [3.0, 4.0])
    """
    check_takes_xp(loss)
    for name, x in (("compiled", compiled), ("pure", pure)):
        if not isinstance(x, bool):
            raise InputError(f"value_and_grad: {name} = {x!r:.80}; expected True or False")
    checked = -1

    @lru_cache(maxsize=8)
    def on(backend: Backend) -> Callable[..., tuple[Array, Any]]:
        return gradient_on(backend, loss, compiled=compiled, pure=pure)

    @opaque
    def run(params: Any, *args: Any) -> tuple[Array, Any]:
        nonlocal checked
        if len(args) != checked:
            check_takes_xp(loss, args)
            checked = len(args)
        flat = tree.flatten(params)
        try:
            return on(registry.of_leaves(flat.paths, flat.leaves))(params, *args)
        except AttributeError as e:
            explain_operation(e)
            raise

    return run


def gradient_on(
    backend: Backend, loss: LossFunction, *, compiled: bool, pure: bool
) -> Callable[..., tuple[Array, Any]]:
    """Differentiate ``loss``; a pure one by the backend's ``pure_gradient``, where it has one."""
    own = getattr(backend, "pure_gradient", None) if compiled and pure else None
    made: Callable[..., tuple[Array, Any]]
    made = backend.value_and_grad(loss, compiled=compiled) if own is None else own(loss)
    return made
