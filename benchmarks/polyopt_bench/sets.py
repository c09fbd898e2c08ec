"""The parameter sets: names and shapes of real models, of many small leaves, and of one large one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from polyopt.core.errors import InputError, nearest

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
Arrays: TypeAlias = dict[str, NDArray[np.float32]]


def shapes(name: str) -> Shapes:
    """Return the shapes of a set by its name: one of ``SETS``, or ``"scale-PARAMETERS-LEAVES"``.

    Examples
    --------
    >>> len(shapes("resnet50")), size(shapes("resnet50"))
    (161, 25557032)
    >>> shapes("scale-100-3")
    {'leaf0': (34,), 'leaf1': (33,), 'leaf2': (33,)}
    """
    if name.startswith("scale-"):
        _, parameters, leaves = name.split("-")
        return even(int(parameters), int(leaves))
    if name not in SETS:
        raise InputError(f"unknown parameter set {name!r}; {nearest(name, SETS)}")
    return SETS[name]()


def size(of: Shapes) -> int:
    """Count the parameters.

    Examples
    --------
    >>> size({"w": (3, 4), "b": ()})
    13
    """
    return sum(math.prod(shape) for shape in of.values())


def arrays(of: Shapes, seed: int, *, low: float = -0.5) -> Arrays:
    """Uniform float32 numbers in [low, low + 1), leaf by leaf: no array larger than a leaf is made."""
    random = np.random.default_rng(seed)
    made: Arrays = {}
    for name, shape in of.items():
        x = random.random(shape, dtype=np.float32)
        made[name] = np.add(x, np.float32(low), out=x if shape else None)
    return made


def mlp(*widths: int) -> Shapes:
    """Return the weights (inputs, outputs) and biases of a multilayer perceptron.

    Examples
    --------
    >>> mlp(2, 3, 1)
    {'0.weight': (2, 3), '0.bias': (3,), '1.weight': (3, 1), '1.bias': (1,)}
    """
    found: dict[str, tuple[int, ...]] = {}
    for i in range(len(widths) - 1):
        found[f"{i}.weight"] = (widths[i], widths[i + 1])
        found[f"{i}.bias"] = (widths[i + 1],)
    return found


def even(parameters: int, leaves: int) -> Shapes:
    """Return ``parameters`` spread over ``leaves`` flat leaves."""
    least, more = divmod(parameters, leaves)
    return {f"leaf{i}": (least + (i < more),) for i in range(leaves)}


@lru_cache(maxsize=1)
def resnet50() -> Shapes:
    """ResNet-50 for ImageNet (He et al., 2016), named as torchvision names it."""
    found: dict[str, tuple[int, ...]] = {}

    def normalized(prefix: str, out: int, into: int, kernel: int, norm: str) -> None:
        found[f"{prefix}.weight"] = (out, into, kernel, kernel)
        found[f"{norm}.weight"] = found[f"{norm}.bias"] = (out,)

    normalized("conv1", 64, 3, 7, "bn1")
    inputs = 64
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), 1):
        for block in range(blocks):
            at = f"layer{stage}.{block}"
            normalized(f"{at}.conv1", width, inputs, 1, f"{at}.bn1")
            normalized(f"{at}.conv2", width, width, 3, f"{at}.bn2")
            normalized(f"{at}.conv3", 4 * width, width, 1, f"{at}.bn3")
            if block == 0:
                normalized(f"{at}.downsample.0", 4 * width, inputs, 1, f"{at}.downsample.1")
            inputs = 4 * width
    return found | {"fc.weight": (1000, 2048), "fc.bias": (1000,)}


@lru_cache(maxsize=1)
def gpt2() -> Shapes:
    """GPT-2 small (Radford et al., 2019), output layer tied to the embedding."""
    width = 768
    found: dict[str, tuple[int, ...]] = {"wte.weight": (50257, width), "wpe.weight": (1024, width)}

    def layer(at: str, into: int, out: int) -> None:
        found.update({f"{at}.weight": (into, out), f"{at}.bias": (out,)})

    def norm(at: str) -> None:
        found.update({f"{at}.weight": (width,), f"{at}.bias": (width,)})

    for i in range(12):
        norm(f"h.{i}.ln_1")
        layer(f"h.{i}.attn.c_attn", width, 3 * width)
        layer(f"h.{i}.attn.c_proj", width, width)
        norm(f"h.{i}.ln_2")
        layer(f"h.{i}.mlp.c_fc", width, 4 * width)
        layer(f"h.{i}.mlp.c_proj", 4 * width, width)
    norm("ln_f")
    return found


def convnet() -> Shapes:
    """Two convolutions and two dense layers for 28 x 28 pixels, PyTorch's way around: 40,000 parameters.

    >>> size(convnet())
    38872
    """
    return {
        "conv1.weight": (16, 1, 3, 3),
        "conv1.bias": (16,),
        "conv2.weight": (32, 16, 3, 3),
        "conv2.bias": (32,),
        "fc1.weight": (42, 800),
        "fc1.bias": (42,),
        "fc2.weight": (10, 42),
        "fc2.bias": (10,),
    }


SETS: dict[str, Callable[[], Shapes]] = {
    "tiny": lambda: {"weight": (8, 8), "bias": (8,)},
    "convnet": convnet,
    "perceptron": lambda: mlp(64, 256, 10),
    "mlp": lambda: mlp(784, 512, 512, 10),
    "few": lambda: {f"{i}.weight": (32, 32) for i in range(100)},
    "small": lambda: {f"{i}.weight": (32, 32) for i in range(1000)},
    "resnet50": resnet50,
    "gpt2": gpt2,
    "one64m": lambda: {"weight": (8192, 8192)},
}
"""``tiny`` is for tests and for counting growth, ``few`` for a quick run: XLA compiles it in no time."""
