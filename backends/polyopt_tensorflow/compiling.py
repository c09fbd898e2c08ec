"""Compiling functions of trees on TensorFlow: one ``tf.function`` for each structure of the arguments."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import tensorflow as tf

from polyopt import tree
from polyopt_tensorflow import ops
from polyopt_tensorflow.dtypes import DEFAULT_FLOAT, DEFAULT_INT
from polyopt_tensorflow.fence import Fenced


@lru_cache(maxsize=1)
def xla() -> bool:
    """Whether this TensorFlow can compile by XLA on its default device; warns once where it can't."""
    try:
        tf.function(lambda x: x + x, jit_compile=True, autograph=False)(tf.constant(1.0))
    except (tf.errors.OpError, ValueError) as e:
        warnings.warn(
            f"this TensorFlow has no XLA ({type(e).__name__}): polyopt runs op by op: same bits, but slower",
            RuntimeWarning,
            stacklevel=3,
        )
        return False
    return True


class Trees:
    """``function(*trees)`` as a ``tf.function`` of their leaves, so that any container will do.

    Python numbers become 0-d tensors, because ``tf.function`` traces again for each value of a number:
    integers int64, others of the dtype of the first floating leaf.
    """

    def __init__(self, function: Callable[..., Any], jit_compile: bool) -> None:
        self._of = lru_cache(maxsize=64)(
            lambda structure: tf.function(
                lambda leaves: function(*structure.unflatten(leaves)),
                autograph=False,
                jit_compile=jit_compile,
            )
        )

    def __call__(self, *args: Any) -> Any:
        flat = tree.flatten(args)
        return self._of(flat.structure)(tensors(flat.leaves))


def tensors(leaves: list[Any]) -> list[Any]:
    """The leaves with variables read and numbers as tensors."""
    if not any(isinstance(x, int | float) for x in leaves):
        return [x if x is None else tf.convert_to_tensor(x) for x in leaves]
    floating = (x.dtype for x in leaves if tf.is_tensor(x) and x.dtype.is_floating)
    dtype = next(floating, DEFAULT_FLOAT)
    return [_tensor(x, dtype) for x in leaves]


def _tensor(x: Any, dtype: Any) -> Any:
    if x is None:
        return x
    if isinstance(x, bool) or not isinstance(x, int | float):
        return tf.convert_to_tensor(x)
    return tf.constant(x, DEFAULT_INT if isinstance(x, int) else dtype)


def compile_function(function: Callable[..., Any], exact: bool) -> Callable[..., Any]:
    if not xla():
        return lambda *args: function(ops, *args)
    if not exact:
        return Trees(lambda *args: function(ops, *args), jit_compile=True)
    compiled = Trees(lambda zero, *args: function(Fenced(zero), *args), jit_compile=True)
    zero = tf.constant(0)
    return lambda *args: compiled(zero, *args)
