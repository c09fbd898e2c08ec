"""Products of int8 matrices in int32, which XLA compiles as such; TensorFlow's own kernel is a plain loop."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import tensorflow as tf


def int8_matmul(x: Any, w: Any) -> Any:
    """Return ``x @ w`` in int32: compiled once for each pair of shapes."""
    return _compiled()(x, w)


@lru_cache(maxsize=1)
def _compiled() -> Any:
    return tf.function(
        lambda x, w: tf.matmul(x, w, output_type=tf.int32), jit_compile=True, reduce_retracing=False
    )
