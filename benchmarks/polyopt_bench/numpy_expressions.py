"""The optimizers as people write them by hand with NumPy: expressions on whole arrays, written in place."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from polyopt_bench.algorithms import ANNEALED, LR, MAX_NORM, Algorithm

Arrays = Sequence[Any]
Leaf = Callable[[int, Any, Any, list[Any]], None]
"""``leaf(t, p, g, slots)`` for step t, from 1."""

B1, B2, EPS = 0.9, 0.999, 1e-8


def expressions(algorithm: Algorithm, params: Arrays, grads: Arrays) -> Callable[[], None]:
    """Make a step over all of ``params``, in place."""
    leaf, count = LEAVES[algorithm.name.removeprefix("clip-")]
    slots = [[np.zeros_like(p) for _ in range(count)] for p in params]
    t = 0

    def step() -> None:
        nonlocal t
        t += 1
        given = clipped(grads) if algorithm.clips else grads
        for p, g, s in zip(params, given, slots, strict=True):
            leaf(t, p, g, s)

    return step


def clipped(grads: Arrays) -> Arrays:
    """Scale the gradients to a joint norm of at most ``MAX_NORM``."""
    norm = np.sqrt(sum(float(np.vdot(g, g)) for g in grads))
    return grads if norm <= MAX_NORM else [g * np.float32(MAX_NORM / norm) for g in grads]


def moments(p: Any, g: Any, s: list[Any]) -> tuple[Any, Any]:
    """Update Adam's two moments."""
    m, v = s[:2]
    m *= B1
    m += (1 - B1) * g
    v *= B2
    v += (1 - B2) * (g * g)
    return m, v


def adam(t: int, p: Any, g: Any, s: list[Any], lr: float = LR) -> None:
    m, v = moments(p, g, s)
    p -= lr / (1 - B1**t) * m / (np.sqrt(v) / float(np.sqrt(1 - B2**t)) + EPS)


def adam_cosine(t: int, p: Any, g: Any, s: list[Any]) -> None:
    adam(t, p, g, s, LR * (1 + math.cos(math.pi * min((t - 1) / ANNEALED, 1))) / 2)


def adamw(t: int, p: Any, g: Any, s: list[Any]) -> None:
    """Update by AdamW."""
    p *= 1 - LR * 1e-2
    adam(t, p, g, s)


def amsgrad(t: int, p: Any, g: Any, s: list[Any]) -> None:
    """Update by AMSGrad."""
    m, v = moments(p, g, s)
    np.maximum(s[2], v, out=s[2])
    p -= LR / (1 - B1**t) * m / (np.sqrt(s[2]) / float(np.sqrt(1 - B2**t)) + EPS)


def sgd(t: int, p: Any, g: Any, s: list[Any]) -> None:
    """Update by gradient descent."""
    p -= LR * g


def momentum(t: int, p: Any, g: Any, s: list[Any]) -> None:
    """Update by the heavy ball."""
    s[0] *= 0.9
    s[0] += g
    p -= LR * s[0]


def nesterov(t: int, p: Any, g: Any, s: list[Any]) -> None:
    """Update by Nesterov's momentum."""
    s[0] *= 0.9
    s[0] += g
    p -= LR * (g + 0.9 * s[0])


def rmsprop(t: int, p: Any, g: Any, s: list[Any]) -> None:
    """Update by RMSprop."""
    s[0] *= 0.9
    s[0] += 0.1 * (g * g)
    p -= LR * g / (np.sqrt(s[0]) + EPS)


def rmsprop_centered(t: int, p: Any, g: Any, s: list[Any]) -> None:
    """Update by RMSprop, centered and with momentum."""
    v, a, b = s
    v *= 0.9
    v += 0.1 * (g * g)
    a *= 0.9
    a += 0.1 * g
    b *= 0.9
    b += g / (np.sqrt(np.maximum(v - a * a, 0)) + EPS)
    p -= LR * b


def adagrad(t: int, p: Any, g: Any, s: list[Any]) -> None:
    """Update by AdaGrad."""
    s[0] += g * g
    p -= LR * g / (np.sqrt(s[0]) + 1e-10)


def adadelta(t: int, p: Any, g: Any, s: list[Any]) -> None:
    """Update by Adadelta."""
    v, u = s
    v *= 0.95
    v += 0.05 * (g * g)
    d = np.sqrt(u + 1e-6) / np.sqrt(v + 1e-6) * g
    u *= 0.95
    u += 0.05 * (d * d)
    p -= LR * d


def adamax(t: int, p: Any, g: Any, s: list[Any]) -> None:
    """Update by Adamax."""
    m, u = s
    m *= B1
    m += (1 - B1) * g
    np.maximum(B2 * u, np.abs(g), out=u)
    p -= LR / (1 - B1**t) * m / (u + EPS)


def nadam(t: int, p: Any, g: Any, s: list[Any]) -> None:
    """Update by NAdam, under a constant momentum."""
    m, v = moments(p, g, s)
    ahead, now = B1 / (1 - B1 ** (t + 1)), (1 - B1) / (1 - B1**t)
    p -= LR * (ahead * m + now * g) / (np.sqrt(v) / float(np.sqrt(1 - B2**t)) + EPS)


def radam(t: int, p: Any, g: Any, s: list[Any]) -> None:
    """Update by RAdam."""
    m, v = moments(p, g, s)
    most = 2 / (1 - B2) - 1
    rho = most - 2 * t * B2**t / (1 - B2**t)
    scale = LR / (1 - B1**t)
    if rho <= 5:
        p -= scale * m
        return
    r = float(np.sqrt((rho - 4) * (rho - 2) * most / ((most - 4) * (most - 2) * rho)))
    p -= scale * r * float(np.sqrt(1 - B2**t)) * m / (np.sqrt(v) + EPS)


LEAVES: dict[str, tuple[Leaf, int]] = {
    "adam": (adam, 2),
    "adam-cosine": (adam_cosine, 2),
    "adamw": (adamw, 2),
    "amsgrad": (amsgrad, 3),
    "sgd": (sgd, 0),
    "momentum": (momentum, 1),
    "nesterov": (nesterov, 1),
    "rmsprop": (rmsprop, 1),
    "rmsprop-centered": (rmsprop_centered, 3),
    "adagrad": (adagrad, 1),
    "adadelta": (adadelta, 2),
    "adamax": (adamax, 2),
    "nadam": (nadam, 2),
    "radam": (radam, 2),
}
"""For each algorithm its leaf and how many slots it has."""
