"""Compiling functions of trees on TensorFlow: one ``tf.function`` for each structure of the arguments."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import optree
import tensorflow as tf
from tensorflow.python import pywrap_tfe
from tensorflow.python.eager import context

from polyopt.core import tree
from polyopt_tensorflow import ops
from polyopt_tensorflow.dtypes import DEFAULT_FLOAT, DEFAULT_INT
from polyopt_tensorflow.fence import Fenced

MOST_KINDS = 64
"""Sets of shapes for which a function is called by its name; more go through ``tf.function``."""


@lru_cache(maxsize=1)
def xla() -> bool:
    """Return True if this TensorFlow can compile by XLA on its default device; warns once where it can't."""
    try:
        with tf.init_scope():
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
        self._of = lru_cache(maxsize=64)(lambda structure: Flat(function, structure, jit_compile))

    def __call__(self, *args: Any) -> Any:
        """Run the function compiled for the structure of ``args``."""
        flat = tree.flatten(args)
        return self._of(flat.structure)(tensors(flat.leaves))


class Flat:
    """``function`` of the trees that ``structure`` makes of a list of tensors (and ``None``).

    Called as a Python function, what ``tf.function`` makes checks argument by argument: half a millisecond
    for six of them, where running it takes a tenth. So, outside of graphs and gradient tapes, it is called by
    the name under which TensorFlow knows it, as ``tf.function`` itself does in the end.
    """

    def __init__(self, function: Callable[..., Any], structure: Any, jit_compile: bool) -> None:
        self._function = tf.function(
            lambda leaves: function(*structure.unflatten(leaves)), autograph=False, jit_compile=jit_compile
        )
        self._traced: dict[Any, Callable[..., Any]] = {}

    def __call__(self, leaves: list[Any]) -> Any:
        """Run the compiled function on a flat list of leaves."""
        if not tf.executing_eagerly() or not pywrap_tfe.TFE_Py_TapeSetIsEmpty():
            return self._function(leaves)
        present = [x for x in leaves if x is not None]
        kind = tuple([(x._shape_tuple(), x.dtype) for x in present])
        if kind not in self._traced:
            if len(self._traced) == MOST_KINDS:
                return self._function(leaves)
            self._traced[kind] = self._trace(leaves)
        return self._traced[kind](present)

    def _trace(self, leaves: list[Any]) -> Callable[..., Any]:
        specs = [None if x is None else tf.TensorSpec(x.shape, x.dtype) for x in leaves]
        concrete = self._function.get_concrete_function(specs)
        name = concrete.function_def.signature.name.encode()
        outputs, structure = optree.tree_flatten(concrete.structured_outputs)
        captured = list(concrete.captured_inputs)
        number = len(outputs)

        def run(present: list[Any]) -> Any:
            found = context.context().call_function(name, [*present, *captured], number)
            # Its definition lives as long as ``concrete``.
            assert concrete is not None
            return optree.tree_unflatten(structure, found)

        return run


def tensors(leaves: list[Any]) -> list[Any]:
    """Return the leaves with variables read and numbers as tensors."""
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
    """Compile ``function`` by XLA, where TensorFlow has it; with ``exact`` each operation is rounded."""
    if not xla():
        return lambda *args: function(ops, *args)
    if not exact:
        return Trees(lambda *args: function(ops, *args), jit_compile=True)
    compiled = Trees(lambda zero, *args: function(Fenced(zero), *args), jit_compile=True)
    # Outside of a graph that is being traced now: its tensors can't be used in another one.
    with tf.init_scope():
        zero = tf.constant(0)
    return lambda *args: compiled(zero, *args)
