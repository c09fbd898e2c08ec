"""Initializers: moments, bounds, fans, the peers' variances, orthogonality, and the same bits everywhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from polyopt.backend.protocol import Backend
from polyopt.core.errors import InputError
from polyopt.models.initializers import (
    INITIALIZERS,
    Constant,
    Glorot,
    He,
    Initializer,
    LeCun,
    Normal,
    Ones,
    Orthogonal,
    TruncatedNormal,
    Uniform,
    VarianceScaling,
    Zeros,
    fans,
)
from polyopt.testing import assert_close, assert_same_bits

EXAMPLES: list[Initializer] = [
    Normal(0.5, 2.0),
    Uniform(-1.0, 3.0),
    TruncatedNormal(1.0, 0.5),
    Constant(0.1),
    Zeros(),
    Ones(),
    Glorot(),
    He(),
    LeCun(),
    VarianceScaling(2.0, "fan_out", "uniform"),
    Orthogonal(),
]


def test_every_one_has_a_recipe_name() -> None:
    assert {type(x) for x in EXAMPLES} == set(INITIALIZERS.values())


@pytest.mark.parametrize("initializer", EXAMPLES, ids=repr)
def test_the_same_bits_everywhere(backend: Backend, initializer: Initializer) -> None:
    shapes = {"layers": [{"weight": (4, 3)}, {"weight": (3, 5)}]}
    for dtype in ("float32", "float64", "float16", "bfloat16"):
        ours = initializer.init(shapes, seed=3, dtype=dtype, backend=backend.name)
        for i, shape in enumerate([(4, 3), (3, 5)]):
            expected = initializer.sample(shape, 3, f"layers.{i}.weight", dtype)
            assert_same_bits(ours["layers"][i]["weight"], expected)


def test_keyed_by_seed_and_name_and_rounded_once() -> None:
    a = Normal().sample((50,), 1, "a", "float64")
    assert_same_bits(Normal().sample((50,), 1, "a", "float32"), a.astype(np.float32))
    for other in (Normal().sample((50,), 1, "b", "float64"), Normal().sample((50,), 2, "a", "float64")):
        assert not (a == other).any()


MANY = (400, 500)
SAMPLING = "five standard errors of 200,000 draws"


def moments(x: Any, mean: float, deviation: float) -> None:
    n = x.size
    assert_close(x.mean(), np.float64(mean), atol=5 * deviation / math.sqrt(n), because=SAMPLING)
    assert_close(x.std(), np.float64(deviation), rtol=5 / math.sqrt(2 * n), because=SAMPLING)


def test_moments() -> None:
    moments(Normal(0.5, 2.0).sample(MANY, dtype="float64"), 0.5, 2.0)
    moments(Uniform(-1.0, 3.0).sample(MANY, dtype="float64"), 1.0, 4.0 / math.sqrt(12.0))


@pytest.mark.parametrize("limits", [(-2.0, 2.0), (-0.3, 0.1), (0.5, 3.0), (3.0, 4.0), (-9.0, 9.0)])
def test_truncated_normal(limits: tuple[float, float]) -> None:
    from scipy.stats import truncnorm

    low, high = limits
    x = TruncatedNormal(1.0, 0.5, low, high).sample(MANY, dtype="float64")
    assert 1.0 + 0.5 * low <= x.min() <= x.max() <= 1.0 + 0.5 * high
    moments((x - 1.0) / 0.5, float(truncnorm.mean(low, high)), float(truncnorm.std(low, high)))


@pytest.mark.parametrize("initializer", [Glorot, He, LeCun])
@pytest.mark.parametrize("distribution", ["normal", "uniform"])
@pytest.mark.parametrize("convention", ["paper", "torch", "keras", "jax"])
def test_scaled_moments_and_bounds(initializer: Any, distribution: str, convention: str) -> None:
    rule = initializer(distribution=distribution, convention=convention)
    deviation = math.sqrt(rule.variance(MANY))
    x = rule.sample(MANY, dtype="float64")
    moments(x, 0.0, deviation)
    truncated = convention in ("keras", "jax")
    bound = math.sqrt(3.0) if distribution == "uniform" else 2.0 / 0.87962566103423978
    inside = np.abs(x).max() <= bound * deviation
    assert inside == (truncated or distribution == "uniform")


SHAPES = [(20, 30), (64, 3, 5, 5), (7, 2, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_torchs_fans(shape: tuple[int, ...]) -> None:
    import torch

    theirs = torch.nn.init._calculate_fan_in_and_fan_out(torch.empty(shape))
    assert fans(shape, "out_in") == theirs


@pytest.mark.parametrize("shape", [*SHAPES, (7,), ()])
def test_keras_and_jax_fans(shape: tuple[int, ...]) -> None:
    from keras.src.initializers.random_initializers import compute_fans

    assert fans(shape, "in_out") == tuple(compute_fans(shape))


@pytest.mark.parametrize("name", ["linear", "tanh", "relu", "selu", "sigmoid", "leaky_relu"])
@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
def test_torchs_bound(name: str, mode: str) -> None:
    """torch draws kaiming_uniform_ within ±gain·√(3/fan): the greatest of many is just below."""
    import torch

    gain = torch.nn.init.calculate_gain(name, 0.2 if name == "leaky_relu" else None)
    rule = He(distribution="uniform", convention="torch", mode=mode, nonlinearity=name, slope=0.2)
    fan = 50 if mode == "fan_in" else 30
    assert_close(
        math.sqrt(rule.variance((30, 50))), gain / math.sqrt(fan), rtol=1e-15, because="the same formula"
    )


@pytest.mark.parametrize("shape", [(20, 30), (5, 5, 3, 64)])
def test_jax_and_keras_variances(shape: tuple[int, ...]) -> None:
    """Their own draws have the variance that ours are scaled to."""
    import jax
    import keras

    pairs = [
        (Glorot(), "glorot_uniform"),
        (Glorot(distribution="normal"), "glorot_normal"),
        (He(distribution="normal"), "he_normal"),
        (He(), "he_uniform"),
        (LeCun(distribution="normal"), "lecun_normal"),
    ]
    for rule, name in pairs:
        scale = math.sqrt(rule.variance(shape))
        keras_name = "".join(part.capitalize() for part in name.replace("lecun", "lecun").split("_"))
        keras_name = keras_name.replace("Lecun", "Lecun")
        theirs = np.asarray(getattr(keras.initializers, keras_name)(seed=1)(shape, dtype="float32"))
        n = math.sqrt(theirs.size)
        assert_close(theirs.std() / scale, np.float64(1.0), atol=5 / n, because="sampling, Keras")
        drawn = getattr(jax.nn.initializers, name)()(jax.random.key(0), shape, "float32")
        assert_close(np.asarray(drawn).std() / scale, np.float64(1.0), atol=5 / n, because="sampling, JAX")


@pytest.mark.parametrize("shape", [(8, 3), (3, 8), (5, 5), (6, 2, 3, 3), (2, 3, 3, 40)])
@pytest.mark.parametrize("convention", ["torch", "keras"])
def test_orthogonal(shape: tuple[int, ...], convention: str) -> None:
    x = Orthogonal(gain=2.0, convention=convention).sample(shape, dtype="float64")
    assert x.shape == shape
    matrix = x.reshape(shape[0], -1) if convention == "torch" else x.reshape(-1, shape[-1])
    short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    assert_close(
        short @ short.T, 4.0 * np.eye(len(short)), atol=2e-14, because="orthogonal to a few roundings"
    )


def test_empty_and_scalar() -> None:
    for initializer in EXAMPLES[:-1]:
        assert initializer.sample((0, 3)).shape == (0, 3)
        assert initializer.sample(()).shape == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Normal(stddev=-1.0), "Normal: stddev = -1.0"),
        (lambda: Normal("0"), "Normal: mean = '0'"),
        (lambda: Uniform(2.0, 1.0), "low = 2.0 is above high = 1.0"),
        (lambda: TruncatedNormal(low=1.0, high=1.0), "low = 1.0; expected less than high"),
        (lambda: TruncatedNormal(low=7.0, high=9.0), "too little"),
        (lambda: Glorot(convention="kreas"), "did you mean 'keras'"),
        (lambda: He(nonlinearity="rleu"), "nonlinearity = 'rleu'; did you mean 'relu'"),
        (lambda: VarianceScaling(mode="fan"), "mode = 'fan'"),
        (lambda: Orthogonal().sample((3,)), "expected at least two axes"),
        (lambda: Zeros().sample((3,), dtype="int32"), "dtype = 'int32'"),
        (lambda: Zeros().sample((3, -1)), r"shape = \(3, -1\)"),
        (lambda: Zeros().init({"w": "3"}), "shape = '3'"),
    ],
)
def test_errors(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
