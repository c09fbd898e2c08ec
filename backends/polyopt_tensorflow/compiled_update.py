"""Loss, gradients and update as one XLA computation over tensors."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from polyopt.backend.gradients import check_loss
from polyopt.backend.protocol import LossFunction, Update, WholeStep
from polyopt_tensorflow import differentiable
from polyopt_tensorflow.compiling import Trees, xla
from polyopt_tensorflow.fence import Fenced
from polyopt_tensorflow.grad import check

_BITS = {"float32": tf.int32, "float64": tf.int64}


def whole(loss: LossFunction, update: Update) -> WholeStep | None:
    """Return ``None`` where this TensorFlow has no XLA."""
    if not xla():
        return None

    def run(arrays: Any, vectors: Any, args: Any) -> tuple[Any, Any]:
        params = arrays["params"]
        leaves = list(params.values())
        check(tuple(params), leaves)
        present = [x for x in leaves if x is not None]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(present)
            value = check_loss(loss(differentiable.xp, params, *args), (tf.Tensor, tf.Variable))
        found = tape.gradient(value, present, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        kind, vector = next(iter(vectors.items()))
        xp = Fenced(tf.bitcast(vector[-1], _BITS[kind]))
        rounded = iter(xp.astype(tf.convert_to_tensor(g), g.dtype) for g in found)
        gradients = {n: None if x is None else next(rounded) for n, x in params.items()}
        return value, update(xp, arrays, gradients, vectors)

    return Trees(run, jit_compile=True)
