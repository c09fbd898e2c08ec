"""Tensors one after the other in a flat one, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import tensorflow as tf


def join(arrays: Sequence[Any]) -> Any:
    """Put the elements of ``arrays`` one after the other."""
    return tf.concat([tf.reshape(x, (-1,)) for x in arrays], 0)


def split(x: Any, shapes: Sequence[tuple[int, ...]]) -> list[Any]:
    """Cut ``x`` into arrays; the gradient of the cut is a concatenation.

    Neighbours of one shape are unstacked by one operation.
    """
    runs = [(shape, len(list(alike))) for shape, alike in groupby(tuple(s) for s in shapes)]
    found: list[Any] = []
    for part, (shape, number) in zip(tf.split(x, [n * math.prod(s) for s, n in runs]), runs, strict=True):
        found += tf.unstack(tf.reshape(part, (number, *shape)), num=number)
    return found
