"""Lifting on TensorFlow."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from polyopt.backend.evaluate import cast, evaluate_leaves
from polyopt.backend.host.fused import FusedLift
from polyopt.backend.protocol import Arrays, Lifted, Scalars
from polyopt.core.trace import Program
from polyopt_tensorflow import ops
from polyopt_tensorflow.compiling import xla
from polyopt_tensorflow.fence import Fenced
from polyopt_tensorflow.memory import TensorFlowMemory
from polyopt_tensorflow.packing import Packing

if TYPE_CHECKING:
    from polyopt_tensorflow.backend import TensorFlowBackend

_BITS = {"float32": tf.int32, "float64": tf.int64}


def lift(backend: TensorFlowBackend, program: Program, compiled: bool) -> Lifted:
    """Return ``program`` over a list of tensors and variables."""
    return TensorFlowLift(backend, program) if compiled else partial(_op_by_op, backend, program)


class TensorFlowLift:
    """The program's own kernel over eager tensors on a CPU (see ``memory``).

    Else one XLA computation over all leaves for each set of shapes, small leaves of one kind stacked (see
    ``packing``).

    To XLA, host scalars, constants and the fence's zero cross as one vector a call. Inside the user's own
    ``tf.function`` the operations join the user's graph.
    """

    def __init__(self, backend: TensorFlowBackend, program: Program) -> None:
        self._backend, self._program = backend, program
        self.fused = FusedLift(program, TensorFlowMemory())
        self._compiled_for = lru_cache(maxsize=4)(self._compile)

    @property
    def repeatable(self) -> tuple[FusedLift, ...]:
        """Return the compiled kernel, where there is one."""
        return self.fused.repeatable

    def __call__(
        self, arrays: Arrays, scalars: Scalars, dtype: str, donate: bool = False
    ) -> dict[str, list[Any]]:
        """Run the program over all leaves: by the compiled kernel on the host, by XLA, or op by op."""
        if not tf.executing_eagerly():
            return _op_by_op(self._backend, self._program, arrays, scalars, dtype, donate)
        look = self.fused.look(arrays, dtype, donate)
        if look is None and donate:
            # What shares its memory is not written into; from the next step on it is the kernel's own.
            look = self.fused.look(arrays, dtype, False)
        if look is not None:
            known = {n: float(v) for n, v in scalars.items()}
            return self.fused.run(look, arrays, known, dtype)
        if not xla():
            return _op_by_op(self._backend, self._program, arrays, scalars, dtype, donate)
        return _written(self._backend, arrays, self._by_xla(arrays, scalars, dtype, donate), donate)

    def _by_xla(self, arrays: Arrays, scalars: Scalars, dtype: str, donate: bool) -> dict[str, list[Any]]:
        program = self._program
        measured = {n: v for n, v in scalars.items() if self._backend.is_array(v)}
        host = [scalars[n] for n in program.scalars if n not in measured]
        vector = tf.constant(np.array([*host, *(v for _, v in program.constants), 0.0], dtype=dtype))
        packing = Packing(arrays, _given_up(program, arrays) if donate else frozenset())
        return packing.unpacked(self._compiled_for(dtype)(packing.packed(), measured, vector))

    def _compile(self, dtype: str) -> Callable[..., Any]:
        traced: Callable[..., Any] = tf.function(
            _over_leaves(self._backend, self._program, dtype), autograph=False, jit_compile=True
        )
        return traced


def _op_by_op(
    backend: TensorFlowBackend,
    program: Program,
    arrays: Arrays,
    scalars: Scalars,
    dtype: str,
    donate: bool = False,
) -> dict[str, list[Any]]:
    kind = backend.dtype(dtype)
    numbers = {
        n: cast(backend, v, dtype) if backend.is_array(v) else tf.constant(v, kind)
        for n, v in (*scalars.items(), *program.constants)
    }
    values = {n: [tf.convert_to_tensor(x) for x in group] for n, group in arrays.items()}
    return _written(backend, arrays, evaluate_leaves(backend, ops, program, values, numbers, dtype), donate)


def _written(
    backend: TensorFlowBackend, arrays: Arrays, out: dict[str, list[Any]], donate: bool
) -> dict[str, list[Any]]:
    """Return ``out`` with the variables that were given up in it, assigned."""
    if donate:
        for name in out:
            if name in arrays:
                pairs = zip(arrays[name], out[name], strict=True)
                out[name] = [x if x is target else backend.assign(target, x) for target, x in pairs]
    return out


def _over_leaves(backend: TensorFlowBackend, program: Program, dtype: str) -> Callable[..., Any]:
    """Return ``program`` over a list of leaves, as what XLA compiles; it assigns the variables among them."""

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
    """Return the names of the arrays that XLA may write into: none, where one array is there twice."""
    ids = list(map(id, chain(*arrays.values())))
    if len(set(ids)) < len(ids):
        return frozenset()
    return frozenset(name for name, _ in program.outputs if name in arrays)
