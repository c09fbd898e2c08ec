"""Lifting on TensorFlow."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from polyopt.backend import Lifted
from polyopt.lifting import cast, evaluate_leaves
from polyopt.trace import Program
from polyopt_tensorflow import ops
from polyopt_tensorflow.compiling import xla
from polyopt_tensorflow.fence import Fenced
from polyopt_tensorflow.packing import pack, unpack

if TYPE_CHECKING:
    from polyopt_tensorflow.backend import TensorFlowBackend

_BITS = {"float32": tf.int32, "float64": tf.int64}


def lift(backend: TensorFlowBackend, program: Program, compiled: bool) -> Lifted:
    """``compiled``: one XLA computation over all leaves for each set of shapes, small leaves of
    one shape stacked; else op by op.

    Host scalars, constants and the fence's zero cross to the device as one vector a call. Inside the
    user's own ``tf.function`` the operations join the user's graph.
    """

    @lru_cache(maxsize=4)
    def compiled_for(dtype: str) -> Callable[..., Any]:
        def run(arrays: Any, measured: Any, vector: Any) -> Any:
            names = (*(n for n in program.scalars if n not in measured), *(n for n, _ in program.constants))
            values = {n: vector[i] for i, n in enumerate(names)}
            values |= {n: cast(backend, x, dtype) for n, x in measured.items()}
            fenced = Fenced(tf.bitcast(vector[-1], _BITS[dtype]))
            return evaluate_leaves(backend, fenced, program, arrays, values, dtype)

        traced: Callable[..., Any] = tf.function(run, autograph=False, jit_compile=True)
        return traced

    def run(arrays: Any, scalars: Any, dtype: str, donate: bool = False) -> Any:
        values = {
            n: [x if isinstance(x, tf.Tensor) else tf.convert_to_tensor(x) for x in group]
            for n, group in arrays.items()
        }
        if compiled and tf.executing_eagerly() and xla():
            measured = {n: v for n, v in scalars.items() if backend.is_array(v)}
            host = [scalars[n] for n in program.scalars if n not in measured]
            vector = tf.constant(np.array([*host, *(v for _, v in program.constants), 0.0], dtype=dtype))
            packed, members = pack(values)
            out = unpack(compiled_for(dtype)(packed, measured, vector), members)
        else:
            kind = backend.dtype(dtype)
            numbers = {
                n: cast(backend, v, dtype) if backend.is_array(v) else tf.constant(v, kind)
                for n, v in (*scalars.items(), *program.constants)
            }
            out = evaluate_leaves(backend, ops, program, values, numbers, dtype)
        if donate:
            for name in out:
                if name in arrays:
                    pairs = zip(arrays[name], out[name], strict=True)
                    out[name] = [backend.assign(target, value) for target, value in pairs]
        return out

    return run
