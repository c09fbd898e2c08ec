"""Initial values of parameters: drawn on the host in double precision, so the same bits on every backend.

A draw is keyed by (seed, name) and rounded once to the dtype, whatever was drawn before it. Conventions:
torch's weights are (out, in, …), Keras' and JAX' (…, in, out); Keras and JAX truncate the normal distribution
of the scaled initializers at two deviations and widen it to keep its variance, torch does not.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from polyopt.backend import registry
from polyopt.core import random, tree
from polyopt.core.errors import InputError
from polyopt.core.ops import FLOATING
from polyopt.core.rule import check_fields, hyper, static

TRUNCATED_DEVIATION = 0.87962566103423978
"""The standard deviation of a standard normal that is cut off at ±2."""

CONVENTIONS: Mapping[str, Mapping[str, Any]] = {
    "paper": {"layout": "in_out", "truncated": False},
    "torch": {"layout": "out_in", "truncated": False},
    "keras": {"layout": "in_out", "truncated": True},
    "jax": {"layout": "in_out", "truncated": True},
}

GAINS = {
    "linear": 1.0,
    "conv": 1.0,
    "sigmoid": 1.0,
    "tanh": 5.0 / 3.0,
    "relu": math.sqrt(2.0),
    "selu": 0.75,
}


@dataclass(frozen=True)
class Initializer(ABC):
    """Base of every initializer: abstract."""

    CONVENTIONS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __post_init__(self) -> None:
        check_fields(self)

    @abstractmethod
    def draw(self, generator: Any, shape: tuple[int, ...]) -> Any:
        """Draw a float64 host array of ``shape`` from a NumPy generator."""

    def sample(self, shape: tuple[int, ...], seed: int = 0, name: str = "", dtype: str = "float32") -> Any:
        """Draw the host array of (``seed``, ``name``), of ``shape``, rounded once to ``dtype``.

        Examples
        --------
        >>> Normal(stddev=0.1).sample((2, 3), seed=0, name="layers.0.weight").shape
        (2, 3)
        """
        if dtype not in FLOATING:
            raise InputError(
                f"{type(self).__name__}: dtype = {dtype!r}; expected one of {', '.join(FLOATING)}"
            )
        host = registry.by_name("numpy")
        size = _shape(type(self).__name__, shape)
        return host.from_numpy(self.draw(random.generator(seed, name), size), dtype=dtype)

    def init(
        self,
        shapes: Any,
        seed: int = 0,
        *,
        dtype: str = "float32",
        backend: str | None = None,
        device: str | None = None,
    ) -> Any:
        """Arrays of a backend for a tree of shapes, each drawn by its path.

        ``shapes`` is a shape or nested dicts (and lists of dicts) of shapes; a shape is a tuple of integers.

        >>> weights = Glorot().init({"w": (4, 3), "b": (3,)}, seed=1)
        >>> weights["w"].shape, weights["w"].dtype.name
        ((4, 3), 'float32')
        """
        chosen = registry.by_name(backend) if backend else registry.default()

        def build(node: Any, path: str) -> Any:
            if isinstance(node, Mapping):
                return {
                    key: build(value, f"{path}.{key}" if path else str(key)) for key, value in node.items()
                }
            if isinstance(node, list):
                return [build(value, f"{path}.{i}" if path else str(i)) for i, value in enumerate(node)]
            values = self.sample(node, seed, path or tree.ROOT, dtype)
            return chosen.from_numpy(values, dtype=dtype, device=device)

        return build(shapes, "")


@dataclass(frozen=True)
class Normal(Initializer):
    """N(``mean``, ``stddev``²)."""

    mean: Any = hyper(0.0)
    stddev: Any = hyper(1.0, low=0.0)

    def draw(self, generator: Any, shape: tuple[int, ...]) -> Any:
        """Draw from the normal distribution of this mean and deviation."""
        return generator.standard_normal(shape) * self.stddev + self.mean


@dataclass(frozen=True)
class Uniform(Initializer):
    """Uniform in [``low``, ``high``)."""

    low: Any = hyper(0.0)
    high: Any = hyper(1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.low <= self.high:
            raise InputError(f"Uniform: low = {self.low!r} is above high = {self.high!r}")

    def draw(self, generator: Any, shape: tuple[int, ...]) -> Any:
        """Draw uniformly from [low, high)."""
        return generator.random(shape) * (self.high - self.low) + self.low


@dataclass(frozen=True)
class TruncatedNormal(Initializer):
    """N(``mean``, ``stddev``²) within [``low``, ``high``] *deviations* of the mean, as in JAX and Keras.

    torch's ``trunc_normal_`` has absolute limits: ``mean + stddev·low`` and ``mean + stddev·high``.
    The deviation of what comes out is smaller than ``stddev``: 0.88 of it for [-2, 2].
    """

    mean: Any = hyper(0.0)
    stddev: Any = hyper(1.0, low=0.0)
    low: Any = hyper(-2.0)
    high: Any = hyper(2.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.low < self.high:
            raise InputError(f"TruncatedNormal: low = {self.low!r}; expected less than high = {self.high!r}")
        if self.low > 5 or self.high < -5 or self.high - self.low < 1e-3:
            raise InputError(
                f"TruncatedNormal: [{self.low!r}, {self.high!r}] holds too little of the distribution; "
                "expected an interval of at least 0.001 deviations that reaches within 5 of the mean"
            )

    def draw(self, generator: Any, shape: tuple[int, ...]) -> Any:
        """Draw from the normal distribution, held within ``low`` and ``high`` deviations of its mean."""
        return _truncated(generator, shape, self.low, self.high) * self.stddev + self.mean


@dataclass(frozen=True)
class Constant(Initializer):
    """``fill`` everywhere."""

    fill: Any = hyper()

    def draw(self, generator: Any, shape: tuple[int, ...]) -> Any:
        """Fill the array with ``fill``."""
        return generator.random(shape) * 0.0 + self.fill


@dataclass(frozen=True)
class Zeros(Initializer):
    """0 everywhere."""

    def draw(self, generator: Any, shape: tuple[int, ...]) -> Any:
        """Fill the array with 0."""
        return generator.random(shape) * 0.0


@dataclass(frozen=True)
class Ones(Initializer):
    """1 everywhere."""

    def draw(self, generator: Any, shape: tuple[int, ...]) -> Any:
        """Fill the array with 1."""
        return generator.random(shape) * 0.0 + 1.0


@dataclass(frozen=True)
class VarianceScaling(Initializer):
    """Mean 0 and variance ``scale / n``, where n is the fan-in, the fan-out or their average.

    Parameters
    ----------
    scale
        What the fan is divided into.
    mode, distribution
        Which fan, and the shape.
    convention
        Fills in ``layout``, ``"out_in"`` for torch's (out, in, …) and ``"in_out"`` for (…, in, out), and
        ``truncated``: whether the normal is cut off at two deviations, with its variance kept. Further axes
        (a kernel's) multiply both fans. A vector (n,) has both fans n as in Keras, a scalar 1.
    """

    CONVENTIONS: ClassVar[Mapping[str, Mapping[str, Any]]] = CONVENTIONS

    scale: Any = hyper(1.0, low=0.0)
    mode: str = static("fan_in", "fan_in", "fan_out", "fan_avg")
    distribution: str = static("normal", "normal", "uniform")
    convention: str = static("keras", *CONVENTIONS)
    layout: str | None = static(None, None, "in_out", "out_in")
    truncated: bool | None = static(None, None, False, True)

    def variance(self, shape: tuple[int, ...]) -> float:
        """Return the variance for a parameter of ``shape``."""
        fan_in, fan_out = fans(shape, str(self.layout))
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[self.mode]
        return float(self.scale / max(1.0, fan))

    def draw(self, generator: Any, shape: tuple[int, ...]) -> Any:
        """Draw with the variance that ``shape`` asks for, from the distribution chosen."""
        deviation = math.sqrt(self.variance(shape))
        if self.distribution == "uniform":
            return (2.0 * generator.random(shape) - 1.0) * (math.sqrt(3.0) * deviation)
        if self.truncated:
            return _truncated(generator, shape, -2.0, 2.0) * (deviation / TRUNCATED_DEVIATION)
        return generator.standard_normal(shape) * deviation


@dataclass(frozen=True)
class _Fixed(Initializer):
    """A named case of ``VarianceScaling``; see there for the conventions."""

    CONVENTIONS: ClassVar[Mapping[str, Mapping[str, Any]]] = CONVENTIONS

    distribution: str = static("uniform", "normal", "uniform")
    convention: str = static("keras", *CONVENTIONS)
    layout: str | None = static(None, None, "in_out", "out_in")
    truncated: bool | None = static(None, None, False, True)

    @abstractmethod
    def _scale_and_mode(self) -> tuple[float, str]: ...

    def _scaling(self) -> VarianceScaling:
        scale, mode = self._scale_and_mode()
        return VarianceScaling(scale, mode, self.distribution, self.convention, self.layout, self.truncated)

    def variance(self, shape: tuple[int, ...]) -> float:
        """Return the variance for a parameter of ``shape``."""
        return self._scaling().variance(shape)

    def draw(self, generator: Any, shape: tuple[int, ...]) -> Any:
        return self._scaling().draw(generator, shape)


@dataclass(frozen=True)
class Glorot(_Fixed):
    """Variance gain²·2/(fan_in + fan_out): Glorot & Bengio, 2010, eq. 12 and 16; torch's ``xavier``."""

    gain: Any = hyper(1.0, low=0.0)

    def _scale_and_mode(self) -> tuple[float, str]:
        return self.gain**2, "fan_avg"


@dataclass(frozen=True)
class He(_Fixed):
    """Variance gain²/fan: He et al., "Delving deep into rectifiers", 2015, eq. 10; torch's ``kaiming``.

    ``nonlinearity`` names the gain: √2 for ``"relu"``, √(2/(1 + slope²)) for ``"leaky_relu"``; others as in
    torch's ``calculate_gain``.
    """

    mode: str = static("fan_in", "fan_in", "fan_out")
    nonlinearity: str = static("relu", *GAINS, "leaky_relu")
    slope: Any = hyper(0.01)

    def _scale_and_mode(self) -> tuple[float, str]:
        if self.nonlinearity == "leaky_relu":
            return 2.0 / (1.0 + self.slope**2), self.mode
        if self.nonlinearity == "relu":
            return 2.0, self.mode
        return GAINS[self.nonlinearity] ** 2, self.mode


@dataclass(frozen=True)
class LeCun(_Fixed):
    """Variance 1/fan_in: LeCun et al., "Efficient backprop", 1998, eq. 16."""

    def _scale_and_mode(self) -> tuple[float, str]:
        return 1.0, "fan_in"


@dataclass(frozen=True)
class Orthogonal(Initializer):
    """Draw a random matrix with orthonormal rows or columns, times ``gain``: Saxe et al., 2014.

    Uniform over the orthogonal matrices (Mezzadri, 2007: the signs of R's diagonal are taken out). A leaf of
    more than two axes is the matrix (first, rest) with ``layout="out_in"`` (torch) and (rest, last) with
    ``"in_out"`` (Keras, JAX).
    """

    CONVENTIONS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        name: {"layout": values["layout"]} for name, values in CONVENTIONS.items()
    }

    gain: Any = hyper(1.0)
    convention: str = static("keras", *CONVENTIONS)
    layout: str | None = static(None, None, "in_out", "out_in")

    def draw(self, generator: Any, shape: tuple[int, ...]) -> Any:
        """Draw a matrix whose rows or columns, the fewer of them, are orthonormal, times ``gain``."""
        import numpy as np

        if len(shape) < 2:
            raise InputError(f"Orthogonal: shape = {shape}; expected at least two axes")
        size = math.prod(shape)
        kept = shape[0] if self.layout == "out_in" else shape[-1]
        rest = size // kept if kept else 0
        rows, columns = (kept, rest) if self.layout == "out_in" else (rest, kept)
        normal = generator.standard_normal((max(rows, columns), min(rows, columns)))
        q, r = np.linalg.qr(normal)
        q = q * np.where(np.diagonal(r) < 0, -1.0, 1.0)
        return self.gain * (q if rows >= columns else q.T).reshape(shape)


def fans(shape: tuple[int, ...], layout: str) -> tuple[int, int]:
    """Return ``(fan_in, fan_out)`` of a parameter.

    >>> fans((64, 3, 5, 5), "out_in"), fans((5, 5, 3, 64), "in_out"), fans((7,), "in_out")
    ((75, 1600), (75, 1600), (7, 7))
    """
    if len(shape) < 2:
        n = shape[0] if shape else 1
        return n, n
    if layout == "out_in":
        kernel = math.prod(shape[2:])
        return shape[1] * kernel, shape[0] * kernel
    kernel = math.prod(shape[:-2])
    return shape[-2] * kernel, shape[-1] * kernel


def _truncated(generator: Any, shape: tuple[int, ...], low: float, high: float) -> Any:
    """Draw standard normal numbers within [low, high]: those outside are drawn again (no inverse needed)."""
    import numpy as np

    x = np.asarray(generator.standard_normal(shape))
    flat = x.reshape(-1)
    again = np.flatnonzero((flat < low) | (flat > high))
    # Normal proposals are hopeless in a tail or a slit: there, uniform ones against the density.
    narrow = high - low < 1.0 or low > 1.0 or high < -1.0
    mode = min(max(0.0, low), high)
    while again.size:
        if narrow:
            proposal = low + (high - low) * generator.random(again.size)
            accept = generator.random(again.size) < np.exp((mode * mode - proposal * proposal) / 2)
        else:
            proposal = generator.standard_normal(again.size)
            accept = (proposal >= low) & (proposal <= high)
        flat[again[accept]] = proposal[accept]
        again = again[~accept]
    return flat.reshape(shape)


def _shape(owner: str, shape: Any) -> tuple[int, ...]:
    whole = isinstance(shape, tuple) and all(
        isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape
    )
    if not whole:
        raise InputError(f"{owner}: shape = {shape!r}; expected a tuple of integers >= 0")
    return tuple(shape)


INITIALIZERS: dict[str, type[Initializer]] = {
    "constant": Constant,
    "glorot": Glorot,
    "he": He,
    "lecun": LeCun,
    "normal": Normal,
    "ones": Ones,
    "orthogonal": Orthogonal,
    "truncated_normal": TruncatedNormal,
    "uniform": Uniform,
    "variance_scaling": VarianceScaling,
    "zeros": Zeros,
}
"""The names that recipes use."""
