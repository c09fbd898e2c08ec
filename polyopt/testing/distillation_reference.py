"""Distillation losses in plain float64, as the papers write them: sample by sample, nothing made stable.

Nothing is imported from ``polyopt.distillation``. z and v are the student's and the teacher's logits.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any, Final

import numpy as np

STEP: Final = 1e-5


def softmax(z: Any) -> Any:
    """Compute the softmax along the last axis."""
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def kl(p: Any, q: Any) -> Any:
    """KL(p ‖ q) over the last axis, with 0·log 0 = 0."""
    some = p > 0
    return np.sum(np.where(some, p * np.log(np.where(some, p, 1.0) / q), 0.0), axis=-1)


def cross_entropy(z: Any, target: Any) -> float:
    """Compute the mean over samples, of labels or of probabilities."""
    wanted = np.eye(z.shape[1])[target] if target.ndim == 1 else target
    return float(np.mean([-(q * np.log(softmax(row))).sum() for row, q in zip(z, wanted, strict=True)]))


def soft_targets(z: Any, v: Any, target: Any, t: float, soft: float) -> float:
    """Hinton et al., 2015, section 2."""
    divergence = float(np.mean(kl(softmax(v / t), softmax(z / t))))
    return (1 - soft) * cross_entropy(z, target) + soft * t**2 * divergence


def standard(z: Any) -> Any:
    """Sun et al., 2024, Algorithm 1."""
    return (z - z.mean(axis=-1, keepdims=True)) / z.std(axis=-1, keepdims=True)


def decoupled(z: Any, v: Any, labels: Any, t: float, alpha: float, beta: float) -> float:
    """Zhao et al., 2022, eq. 7, with T² and the cross-entropy."""
    total = 0.0
    for mine, its, label in zip(z, v, labels, strict=True):
        p, q = softmax(its / t), softmax(mine / t)
        rest = np.arange(len(p)) != label
        two = [np.array([x[label], x[rest].sum()]) for x in (p, q)]
        total += float(alpha * kl(*two) + beta * kl(p[rest] / p[rest].sum(), q[rest] / q[rest].sum()))
    return cross_entropy(z, labels) + t**2 * total / len(z)


def hint(x: Any, y: Any) -> float:
    """Romero et al., 2015, eq. 3, averaged over the batch."""
    return 0.5 * float(np.sum((x - y) ** 2)) / len(x)


def attention(a: Any, b: Any, squares: bool = False) -> float:
    """Zagoruyko & Komodakis, 2017, eq. 2, or their code."""
    maps = []
    for x in (a, b):
        q = np.square(x).sum(axis=-1).reshape(len(x), -1)
        maps.append(q / np.linalg.norm(q, axis=1, keepdims=True))
    difference = maps[0] - maps[1]
    if squares:
        return float(np.mean(difference**2))
    return float(np.mean(np.linalg.norm(difference, axis=1))) / 2


def huber(x: float) -> float:
    """Compute Huber's loss, of threshold 1."""
    return 0.5 * x**2 if abs(x) <= 1 else abs(x) - 0.5


def distances(x: Any, y: Any) -> float:
    """Park et al., 2019, section 3.2.1."""
    pairs = [(i, j) for i, j in product(range(len(x)), repeat=2) if i != j]
    relations = []
    for points in (x, y):
        d = np.array([np.linalg.norm(points[i] - points[j]) for i, j in pairs])
        relations.append(d / d.mean())
    return sum(huber(float(a - b)) for a, b in zip(*relations, strict=True))


def angles(x: Any, y: Any) -> float:
    """Park et al., 2019, section 3.2.2."""
    total = 0.0
    for i, j, k in product(range(len(x)), repeat=3):
        if len({i, j, k}) == 3:
            cosines = []
            for points in (x, y):
                a, b = points[i] - points[j], points[k] - points[j]
                cosines.append(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
            total += huber(cosines[0] - cosines[1])
    return total


def slope(f: Callable[[Any], float], x: Any) -> Any:
    """Compute the gradient by differences of fourth order."""
    found = np.zeros(x.shape)
    for at in np.ndindex(*x.shape):
        moved = np.zeros(x.shape)
        moved[at] = STEP
        near, far = (f(x + k * moved) - f(x - k * moved) for k in (1, 2))
        found[at] = (8 * near - far) / (12 * STEP)
    return found
