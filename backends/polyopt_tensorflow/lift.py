"""Lifting on TensorFlow."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from polyopt.backend import Arrays, Lifted, Scalars
from polyopt.lifting import cast, evaluate_leaves
from polyopt.trace import Program
from polyopt_tensorflow import ops
from polyopt_tensorflow.compiling import xla
from polyopt_tensorflow.fence import Fenced
from polyopt_tensorflow.packing import Packing

if TYPE_CHECKING:
    from polyopt_tensorflow.backend import TensorFlowBackend

_BITS = {"float32": tf.int32, "float64": tf.int64}


def lift(backend: TensorFlowBackend, program: Program, compiled: bool) -> Lifted:
    """``compiled``: one XLA computation over all leaves for each set of shapes, small leaves of
    one kind stacked (see :mod:`~polyopt_tensorflow.packing`); else op by op.

    Host scalars, constants and the fence's zero cross to the device as one vector a call. Inside the
    user's own ``tf.function`` the operations join the user's graph.
    """

    @lru_cache(maxsize=4)
    def compiled_for(dtype: str) -> Callable[..., Any]:
        traced: Callable[..., Any] = tf.function(
            _over_leaves(backend, program, dtype), autograph=False, jit_compile=True
        )
        return traced

    def run(arrays: Arrays, scalars: Scalars, dtype: str, donate: bool = False) -> dict[str, list[Any]]:
        if compiled and tf.executing_eagerly() and xla():
            measured = {n: v for n, v in scalars.items() if backend.is_array(v)}
            host = [scalars[n] for n in program.scalars if n not in measured]
            vector = tf.constant(np.array([*host, *(v for _, v in program.constants), 0.0], dtype=dtype))
            packing = Packing(arrays, _given_up(program, arrays) if donate else frozenset())
            out = packing.unpacked(compiled_for(dtype)(packing.packed(), measured, vector))
        else:
            kind = backend.dtype(dtype)
            numbers = {
                n: cast(backend, v, dtype) if backend.is_array(v) else tf.constant(v, kind)
                for n, v in (*scalars.items(), *program.constants)
            }
            values = {n: [tf.convert_to_tensor(x) for x in group] for n, group in arrays.items()}
            out = evaluate_leaves(backend, ops, program, values, numbers, dtype)
        if donate:
            for name in out:
                if name in arrays:
                    pairs = zip(arrays[name], out[name], strict=True)
                    out[name] = [x if x is target else backend.assign(target, x) for target, x in pairs]
        return out

    return run


def _over_leaves(backend: TensorFlowBackend, program: Program, dtype: str) -> Callable[..., Any]:
    """``program`` over a list of leaves, as what XLA compiles; it assigns the variables among them."""

    def run(arrays: Arrays, measured: Scalars, vector: Any) -> dict[str, list[Any]]:
        names = (*(n for n in program.scalars if n not in measured), *(n for n, _ in program.constants))
        values = {n: vector[i] for i, n in enumerate(names)}
        values |= {n: cast(backend, x, dtype) for n, x in measured.items()}
        fenced = Fenced(tf.bitcast(vector[-1], _BITS[dtype]))
        inputs = {n: [tf.convert_to_tensor(x) for x in group] for n, group in arrays.items()}
        outputs = evaluate_leaves(backend, fenced, program, inputs, values, dtype)
        for name, group in arrays.items():
            for i, target in enumerate(group):
                if isinstance(target, tf.Variable):
                    target.assign(outputs[name][i])
                    outputs[name][i] = None
        return outputs

    return run


def _given_up(program: Program, arrays: Arrays) -> frozenset[str]:
    """The names of the arrays that may be written into by XLA: none, where one array is there twice."""
    ids = list(map(id, chain(*arrays.values())))
    if len(set(ids)) < len(ids):
        return frozenset()
    return frozenset(name for name, _ in program.outputs if name in arrays)
