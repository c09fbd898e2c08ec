"""Weights as integers: the formulas, the same bits on every framework, and what is refused."""

from __future__ import annotations

import math
import re
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyopt import convert
from polyopt.backend.protocol import Backend
from polyopt.core.errors import InputError
from polyopt.quantization import Cast, Integer, Quantized, codes_of, dequantize, quantize
from polyopt.quantization.host import pack, unpack
from polyopt.quantization.scheme import from_plain, to_plain
from polyopt.testing import assert_close, assert_same_bits

SCHEMES = [
    Integer(per="tensor"),
    Integer(),
    Integer(axis=0),
    Integer(symmetric=False),
    Integer(symmetric=True, narrow=False),
    Integer(convention="torch"),
    Integer(convention="torch", symmetric=False),
    Integer(convention="keras"),
    Integer(convention="tensorflow", symmetric=False),
    Integer(bits=4, per="tensor"),
    Integer(bits=4, per="group", group_size=4),
    Integer(bits=4, per="group", group_size=8, symmetric=False),
    Integer(per="group", group_size=3, layout="out_in", symmetric=False),
    Cast(),
    Cast("float16"),
]
INTEGERS = [s for s in SCHEMES if isinstance(s, Integer)]


def weights(dtype: Any = np.float32, seed: int = 0) -> Any:
    x = np.random.default_rng(seed).standard_normal((16, 9)) * np.logspace(-2, 1, 9)
    x[:, 4] = 0.0
    x[3, 5] += 0.7
    return x.astype(dtype)


def slow_codes(x: Any, scheme: Integer) -> tuple[Any, Any, Any]:
    """Scale, zero point and code of every element by itself, in float64, from the formulas."""
    low, high = scheme.range
    x = x.astype(np.float64)
    scale, zero, code = np.empty(x.shape), np.zeros(x.shape), np.empty(x.shape)
    outputs, inputs = (1, 0) if scheme.layout == "in_out" else (0, 1)
    for index in np.ndindex(*x.shape):
        if scheme.per == "tensor":
            shared = x
        elif scheme.per == "channel":
            shared = np.take(
                x,
                index[outputs if scheme.axis is None else scheme.axis],
                outputs if scheme.axis is None else scheme.axis,
            )
        else:
            n = scheme.group_size
            start = index[inputs] // n * n
            line = np.take(x, index[1 - inputs], 1 - inputs)
            shared = line[start : start + n]
        m, top = min(0.0, shared.min()), max(0.0, shared.max())
        if scheme.symmetric:
            reach = {"torch": (high - low) / 2}.get(scheme.convention, high)
            s, z = max(-m, top) / reach, 0
        else:
            s = (top - m) / (high - low)
            z = 0.0 if s == 0 else low - m / s
            z = math.floor(z + 0.5) if scheme.convention == "tensorflow" else round(z)
        s = max(s, 2.0**-23) if scheme.convention == "torch" else s
        s = (max(-m, top) + 1e-7) / high if scheme.convention == "keras" else s
        s = 1.0 if s == 0 else s
        if s == 1.0 and m == top == 0 and not scheme.symmetric:
            z = low
        scale[index], zero[index] = s, z
        # At a tie the last bit decides: 127.5 steps.
        steps = x[index] / s if scheme.convention == "paper" else x[index] * (1.0 / s)
        rounded = math.floor(steps + 0.5) if scheme.convention == "tensorflow" else round(steps)
        code[index] = min(max(rounded + z, low), high)
    return scale, zero, code


@pytest.mark.parametrize("scheme", INTEGERS, ids=repr)
def test_against_the_formulas_element_by_element(scheme: Integer) -> None:
    # float64, so that no code is decided by the last bit.
    x = weights(np.float64)
    q = quantize(x, scheme)
    scale, zero, code = slow_codes(x, scheme)
    assert_same_bits(codes_of(q), code.astype(np.int8))
    restored = (code - zero) * scale
    assert_close(dequantize(q), restored, rtol=1e-14, atol=1e-15, because="a few roundings of float64")


@pytest.mark.parametrize(
    ("scheme", "dtype"),
    [
        *((s, "float32") for s in SCHEMES),
        *((s, d) for s in SCHEMES[-5:-2] for d in ("float64", "float16", "bfloat16")),
    ],
    ids=repr,
)
def test_the_same_bits_everywhere(backend: Backend, scheme: Any, dtype: str) -> None:
    host = weights(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)[:16, :9]
    expected = quantize(host, scheme)
    q = quantize({"w": backend.from_numpy(host)}, scheme)["w"]
    for name in ("codes", "scale", "zero_point"):
        ours, theirs = getattr(q, name), getattr(expected, name)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert backend.is_array(ours)
            assert_same_bits(ours, theirs, what=name)
    assert_same_bits(dequantize(q), dequantize(expected), what="dequantized")
    assert backend.dtype_name(dequantize(q)) == dtype
    assert_same_bits(codes_of(q), codes_of(expected), what="unpacked")


@pytest.mark.parametrize("scheme", INTEGERS, ids=repr)
def test_the_error_is_at_most_half_a_step(scheme: Integer) -> None:
    x = weights(np.float64)
    scale, _, _ = slow_codes(x, scheme)
    # An affine grid's zero is rounded, and the last code of torch's symmetric range is half a step short.
    steps = 1.0 if not scheme.symmetric or scheme.convention == "torch" else 0.5
    assert np.all(np.abs(dequantize(quantize(x, scheme)) - x) <= scale * steps * (1 + 1e-6))


@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=30),
    st.sampled_from(INTEGERS[:9]),
)
@settings(max_examples=200, deadline=None)
def test_any_finite_weights(values: list[float], scheme: Integer) -> None:
    x = np.float32(values).reshape(-1, 1)
    q = quantize(x, scheme)
    low, high = scheme.range
    assert low <= q.codes.min()
    assert q.codes.max() <= high
    assert np.isfinite(dequantize(q)).all()
    assert_same_bits(dequantize(quantize(dequantize(q), scheme)).shape, x.shape)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("extreme", [0.0, 1e-45, 1e-38, 1.6e38, -1.6e38])
def test_extreme_leaves(extreme: float, symmetric: bool) -> None:
    x = np.float32([[extreme, 0.0], [0.0, extreme]])
    back = dequantize(quantize(x, Integer(symmetric=symmetric)))
    assert_close(back, x, rtol=1e-6, atol=1.2e-38, because="at the end of the grid; scales are not subnormal")


def test_blocks_make_no_difference() -> None:
    x = np.random.default_rng(1).standard_normal((3, 70_000)).astype(np.float32)
    for scheme in (
        Integer(per="tensor"),
        Integer(axis=0),
        Integer(),
        Integer(per="group", group_size=35_000, axis=1),
    ):
        whole, parts = quantize(x, scheme), []
        scale = np.asarray(whole.scale)
        spread = (
            np.repeat(scale, 35_000, axis=1) if scheme.per == "group" else np.broadcast_to(scale, x.shape)
        )
        parts = np.rint(x / spread).astype(np.int8)
        assert_same_bits(whole.codes, parts)


def test_a_middle_axis_and_an_empty_leaf() -> None:
    x = np.random.default_rng(1).standard_normal((4, 5, 6)).astype(np.float32)
    q = quantize(x, Integer(axis=1))
    assert q.scale is not None
    assert q.scale.shape == (1, 5, 1)
    expected = np.abs(x).max((0, 2), keepdims=True) / np.float32(127)
    assert_same_bits(q.scale, expected)
    assert_same_bits(q.codes, np.rint(x / expected).astype(np.int8))
    assert dequantize(quantize(np.zeros((0, 3), np.float32), Integer())).shape == (0, 3)


@given(st.lists(st.integers(-8, 7), max_size=9))
def test_packing(codes: list[int]) -> None:
    x = np.array(codes, np.int8)
    assert pack(x).nbytes == (len(codes) + 1) // 2
    assert_same_bits(unpack(pack(x), x.shape), x)


def test_selection() -> None:
    params = {"layers": [{"weight": weights(), "bias": weights()[0]}], "step": np.array([[3]]), "none": None}
    q = quantize(params, Integer())
    assert isinstance(q["layers"][0]["weight"], Quantized)
    assert q["layers"][0]["bias"] is params["layers"][0]["bias"]
    assert q["step"] is params["step"]
    again = quantize(q, Integer(per="tensor"), select="bias$")
    assert isinstance(again["layers"][0]["bias"], Quantized)
    assert again["layers"][0]["weight"] is q["layers"][0]["weight"]
    back = dequantize(again)
    assert back["layers"][0]["bias"].shape == (9,)
    assert back["none"] is None
    assert quantize(params, Integer(), select=lambda p: p.endswith("bias"))["layers"][0]["weight"] is not None


def test_sizes() -> None:
    x = np.ones((64, 32), np.float32)
    assert quantize(x, Integer(per="tensor")).nbytes == 64 * 32 + 4
    assert quantize(x, Integer()).nbytes == 64 * 32 + 4 * 32
    assert quantize(x, Integer(symmetric=False)).nbytes == 64 * 32 + 5 * 32
    assert quantize(x, Integer(bits=4, per="group", group_size=32)).nbytes == 64 * 32 // 2 + 4 * 2 * 32
    assert quantize(x, Cast()).nbytes == 64 * 32 * 2


NAN = np.float32([[1.0, 2.0], [np.nan, 3.0]])


@pytest.mark.parametrize(
    ("params", "scheme", "select", "says"),
    [
        ({"w": NAN}, Integer(), None, r"leaf 'w': the element at \(1, 0\) is nan; expected finite"),
        ({"w": -np.inf * NAN}, Integer(per="tensor"), None, r"'w': the element at \(0, 0\) is -inf"),
        ({"w": NAN}, Cast(), None, r"leaf 'w': the element at \(1, 0\) is nan"),
        ({"w": np.float32([[3e38, 0.0]])}, Integer(), None, r"'w': the element at \(0, 0\) is 3e\+38"),
        ({"w": np.float32([[1e5]])}, Cast("float16"), None, r"'w': .*\(0, 0\) is 100000, beyond float16"),
        ({"w": np.float64([[1.0, 1e39]])}, Cast(), None, r"'w': .*\(0, 1\) is 1e\+39, beyond bfloat16"),
        ({"weight": NAN}, Integer(), "wieght", "'wieght' matches no parameter; did you mean 'weight'"),
        ({"weight": NAN}, Integer(), "(", "not a regular expression"),
        ({"i": np.zeros((2, 2), np.int32)}, Integer(), "i", "leaf 'i' has dtype int32; expected one of"),
        ({"w": weights()}, Integer(axis=2), None, r"'w': axis = 2 is out of range for shape \(16, 9\)"),
        ({"w": weights()[0, 0]}, Integer(), "w", r"'w' has no axes: per = 'channel'"),
        (
            {"w": weights()},
            Integer(bits=4, per="group", group_size=5),
            None,
            r"'w': group_size = 5 does not divide axis 0 of shape \(16, 9\); the nearest that do: 2, 4",
        ),
        ({"w": quantize(weights(), Integer())}, Integer(), "w", "leaf 'w' is quantized already"),
        ({"w": weights()}, "int8", None, "scheme = 'int8'; expected an Integer or a Cast"),
    ],
)
def test_what_is_refused(params: Any, scheme: Any, select: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        quantize(params, scheme, select)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"bits": 3}, "bits = 3; expected one of 4, 8"),
        ({"bits": "8"}, "bits = '8'; expected one of 4, 8"),
        ({"per": "chanel"}, "did you mean 'channel'"),
        ({"per": "group"}, "group_size = None"),
        ({"group_size": 4}, "group_size = 4"),
        ({"per": "group", "group_size": 0}, "group_size = 0; expected an integer >= 1"),
        ({"per": "tensor", "axis": 0}, 'expected an integer, and per="channel" or "group"'),
        ({"convention": "keras", "symmetric": False}, "'keras' has True alone"),
        ({"convention": "tensorflow"}, "'tensorflow' has False alone"),
        ({"convention": "troch"}, "did you mean 'torch'"),
    ],
)
def test_schemes_that_are_none(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Integer(**fields)


def test_schemes_as_plain_data() -> None:
    for scheme in SCHEMES:
        assert from_plain(to_plain(scheme)) == scheme
    for bad in (None, {}, {"kind": "x"}, {"kind": "cast", "bits": 3}, {"kind": "integer", "bits": 16}):
        with pytest.raises(InputError):
            from_plain(bad)


def test_a_model_that_holds_codes_runs_compiled(backend: Backend) -> None:
    q = quantize({"w": backend.from_numpy(weights())}, Integer(bits=4, per="group", group_size=4))["w"]
    x = backend.from_numpy(weights(seed=2)[:3, :9] @ np.ones((9, 16), np.float32))

    def forward(xp: Any, codes: Any, scale: Any, x: Any) -> Any:
        return xp.matmul(x, dequantize(Quantized(codes, scale, None, q.shape, q.dtype, q.scheme)))

    got = backend.compile(forward)(q.codes, q.scale, x)
    expected = np.asarray(convert(x, "numpy")) @ np.asarray(convert(dequantize(q), "numpy"))
    assert_close(got, expected, rtol=1e-5, atol=1e-5, because="sums of 16 products in float32")


def test_the_largest_numbers_of_16_bits() -> None:
    for dtype, most in (("float16", 65519.0), ("bfloat16", 1.69e38)):
        x = np.float32([[most, -most]])
        assert np.isfinite(dequantize(quantize(x, Cast(dtype)))).all()
    with pytest.raises(InputError, match=r"\(0, 1\) is -65520, beyond float16; expected smaller numbers"):
        quantize(np.float32([[1.0, -65520.0]]), Cast("float16"))


def test_the_weights_are_not_changed(backend: Backend) -> None:
    x = backend.from_numpy(weights())
    quantize(x, Integer(convention="tensorflow", symmetric=False))
    assert_same_bits(x, weights())


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.ones((), np.float32), "has no axes: per = 'channel'; expected per=\"tensor\""),
        (np.ones((1 << 40, 0), np.float32), "the nearest that do: 549755813888, 1099511627776"),
    ],
)
def test_an_odd_leaf_is_refused_in_words_and_at_once(x: Any, words: str) -> None:
    scheme = Integer() if x.shape == () else Integer(per="group", group_size=(1 << 39) + 1, axis=0)
    with pytest.raises(InputError, match=re.escape(words)):
        quantize({"w": x}, scheme, select="w")


def test_what_equals_a_choice_is_that_choice() -> None:
    scheme = Integer(bits=8.0, symmetric=0, narrow=1)  # type: ignore[arg-type]
    assert repr(scheme) == repr(Integer(bits=8, symmetric=False, narrow=True))


@pytest.mark.parametrize("select", [3, ["w"]])
def test_a_selection_that_selects_nothing_can_be_read(select: Any) -> None:
    with pytest.raises(InputError, match="expected a regular expression or a predicate"):
        quantize({"w": np.ones((2, 2))}, Integer(), select)


def test_a_leaf_that_is_no_array_is_named() -> None:
    with pytest.raises(InputError, match=r"leaf 'a\.0\.1': builtins\.float is not an array"):
        quantize({"a": [[np.ones(2), 1.0]]}, Integer())


def test_half_precision_never_comes_back_infinite(backend: Backend) -> None:
    for scheme in (Integer(convention="torch"), Integer(symmetric=False)):
        safe = convert({"w": np.float16([[-32752, 32752], [-32752, 30000]])}, backend)
        values = np.asarray(backend.to_numpy(dequantize(quantize(safe, scheme))["w"]))
        assert np.isfinite(values).all()
        with pytest.raises(InputError, match=r"\(0, 1\) is -65504; expected finite numbers of at most 32752"):
            quantize(convert({"w": np.float16([[1, -65504]])}, backend), scheme)
    assert quantize(np.float16([[65504]]), Cast("float16")).codes.tolist() == [[65504]]
