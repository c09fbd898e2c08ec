"""GPTQ, integer products, files and reports."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from polyopt import checkpoint, convert
from polyopt.backend.protocol import Backend
from polyopt.core.errors import CheckpointError, InputError
from polyopt.quantization import (
    Cast,
    Grid,
    Integer,
    Quantized,
    calibrate,
    codes_of,
    dequantize,
    from_arrays,
    gptq,
    int8_linear,
    int8_matmul,
    load,
    moved,
    quantize,
    report,
    save,
    to_arrays,
)
from polyopt.quantization.matmul import _blocked
from polyopt.testing import assert_close, assert_same_bits


def layer(outputs: int = 12, inputs: int = 32, samples: int = 256) -> tuple[Any, Any]:
    """Weights (in, out) and inputs that go together, as those of real layers do."""
    generator = np.random.default_rng(4)
    mix = generator.standard_normal((inputs, inputs)) * np.logspace(0, -2, inputs)
    x = generator.standard_normal((samples, inputs)) @ mix
    return generator.standard_normal((inputs, outputs)).astype(np.float32), x.astype(np.float32)


GPTQ = [
    Integer(bits=4),
    Integer(bits=4, symmetric=False),
    Integer(bits=4, per="tensor"),
    Integer(bits=4, per="group", group_size=8),
    Integer(bits=4, per="group", group_size=8, symmetric=False),
    Integer(),
    Integer(bits=4, convention="torch"),
    Integer(bits=4, convention="tensorflow", symmetric=False, per="group", group_size=16),
]


def loss(q: Quantized, w: Any, x: Any) -> float:
    return float(np.linalg.norm(x.astype(np.float64) @ (dequantize(q).astype(np.float64) - w)))


@pytest.mark.parametrize("order", ["natural", "activation"])
@pytest.mark.parametrize("scheme", GPTQ, ids=repr)
def test_outputs_are_nearer_than_by_rounding(scheme: Integer, order: str) -> None:
    w, x = layer()
    if scheme.layout == "out_in":
        ours, rounded = gptq(w.T, x, scheme, order=order), quantize(w.T, scheme)
        assert loss_of_transposed(ours, w, x) < 0.7 * loss_of_transposed(rounded, w, x)
    else:
        assert loss(gptq(w, x, scheme, order=order), w, x) < 0.7 * loss(quantize(w, scheme), w, x)


def loss_of_transposed(q: Quantized, w: Any, x: Any) -> float:
    return float(np.linalg.norm(x.astype(np.float64) @ (dequantize(q).T.astype(np.float64) - w)))


def by_obq(w: Any, x: Any, scale: Any, damping: float) -> Any:
    """Codes by the update that GPTQ speeds up: after each input H⁻¹ loses its row and column (eq. 3)."""
    n = w.shape[0]
    h = 2.0 / len(x) * x.T @ x
    inverse = np.linalg.inv(h + damping * np.mean(np.diag(h)) * np.eye(n))
    w, codes = w.copy(), np.empty(w.shape)
    for i in range(n):
        codes[i] = np.clip(np.rint(w[i] / scale), -7, 7)
        error = (w[i] - codes[i] * scale) / inverse[i, i]
        w[i:] -= np.outer(inverse[i:, i], error)
        inverse = inverse - np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    return codes


@pytest.mark.parametrize("block", [1, 5, 32, 128])
def test_it_is_optimal_brain_quantization_in_a_fixed_order(block: int) -> None:
    w, x = (a.astype(np.float64) for a in layer())
    expected = by_obq(w, x, np.abs(w).max(0) / 7, 0.01)
    assert_same_bits(codes_of(gptq(w, x, Integer(bits=4), block=block)), expected.astype(np.int8))


@pytest.mark.parametrize("scheme", [GPTQ[3], GPTQ[4]], ids=repr)
def test_blocks_of_any_length_give_the_same_groups(scheme: Integer) -> None:
    w, x = (a.astype(np.float64) for a in layer())
    whole = gptq(w, x, scheme, block=32)
    for block in (1, 3, 8, 12):
        parts = gptq(w, x, scheme, block=block)
        assert_same_bits(parts.codes, whole.codes)
        assert_close(parts.scale, whole.scale, rtol=1e-12, because="errors are passed on in another order")


def test_layouts_batches_and_frameworks_agree(backend: Backend) -> None:
    w, x = layer()
    for scheme, other in (
        (GPTQ[1], Integer(bits=4, symmetric=False, layout="out_in")),
        (GPTQ[4], Integer(bits=4, per="group", group_size=8, symmetric=False, layout="out_in")),
    ):
        expected = gptq(w, x, scheme)
        ours = gptq(backend.from_numpy(w), backend.from_numpy(x), scheme)
        turned = gptq(
            backend.from_numpy(w.T.copy()),
            (backend.from_numpy(x[i : i + 64]) for i in range(0, 256, 64)),
            other,
        )
        for name in ("codes", "scale", "zero_point"):
            assert_same_bits(getattr(ours, name), getattr(expected, name), what=name)
        assert_same_bits(convert(codes_of(turned), "numpy").T, codes_of(expected))


def test_inputs_that_are_never_there() -> None:
    w, x = layer()
    x[:, 3] = 0.0
    q = gptq(w, x, Integer(bits=4))
    # No error of theirs can be seen: they are rounded to the nearest.
    assert_same_bits(codes_of(q)[3], codes_of(quantize(w, Integer(bits=4)))[3])
    assert loss(q, w, x) < loss(quantize(w, Integer(bits=4)), w, x)


def test_what_gptq_refuses() -> None:
    w, x = layer()
    bad = x.copy()
    bad[2, 1] = np.nan
    for call, says in (
        (lambda: gptq(w, [], Integer()), "calibration set is empty"),
        (lambda: gptq(w, x[:0], Integer()), "calibration set is empty"),
        (lambda: gptq(w, [x, bad], Integer()), r"batch 1: the element at \(2, 1\) is nan"),
        (lambda: gptq(w, x[:, :3], Integer()), r"batch 0 has shape \(256, 3\); expected \(…, 32\)"),
        (lambda: gptq(w[0], x, Integer(per="tensor")), r"leaf 'weight': shape \(12,\)"),
        (lambda: gptq(w * np.float32(np.inf), x, Integer()), r"leaf 'weight': the element at \(0, 0\)"),
        (lambda: gptq(w, x, Integer(axis=0)), "axis = 0 with layout 'in_out'; expected 1"),
        (lambda: gptq(w, x, Integer(), order="activatoin"), "did you mean 'activation'"),
        (lambda: gptq(w, x, Integer(), damping=-1.0), "damping = -1.0"),
        (lambda: gptq(w, x, Integer(), block=0), "block = 0"),
        (lambda: gptq(w, x[:3], Integer(), damping=0.0), "leaf 'weight': .* no inverse; expected more"),
        (lambda: gptq(w, x.astype(int), Integer()), "batch 0: dtype int64; expected a floating array"),
        (lambda: gptq(w, x, Cast()), "expected an Integer"),
    ):
        with pytest.raises(InputError, match=says):
            call()


@pytest.mark.parametrize("shape", [(1, 7, 3), (17, 40, 8), (5, 2500, 16), (3, 0, 2), (0, 4, 2)])
def test_products_are_exact(backend: Backend, shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    generator = np.random.default_rng(0)
    x, w = (generator.integers(-128, 128, s, dtype=np.int8) for s in ((m, k), (k, n)))
    w[:, 0] = -128  # the largest sums
    expected = x.astype(np.int32) @ w.astype(np.int32)
    a, b = backend.from_numpy(x), backend.from_numpy(w)
    assert_same_bits(int8_matmul(a, b), expected)
    assert_same_bits(_blocked(backend.ops, a, b), expected)
    most = backend.from_numpy(np.full((2, max(k, 1)), -128, np.int8))
    assert_same_bits(
        int8_matmul(most, backend.from_numpy(np.full((max(k, 1), 2), -128, np.int8))),
        np.full((2, 2), max(k, 1) << 14, np.int32),
    )


@pytest.mark.parametrize(
    "scheme",
    [
        Integer(),
        Integer(per="tensor", symmetric=False),
        Integer(symmetric=False),
        Integer(bits=4),
        Integer(convention="torch"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("static", [False, True])
def test_a_layer_in_integers(backend: Backend, scheme: Integer, static: bool) -> None:
    w, x = layer()
    w = w.T.copy() if scheme.layout == "out_in" else w
    bias = np.arange(12, dtype=np.float32)
    grid = calibrate([x])["param"] if static else None
    q = quantize(backend.from_numpy(w), scheme)
    ours = int8_linear(backend.from_numpy(x), q, grid, bias=backend.from_numpy(bias))
    # The formula in float64, from the codes.
    step = np.abs(x).max(1, keepdims=True) / 127 if grid is None else grid.scale
    point = 0 if grid is None else grid.zero_point
    codes = np.rint(x / step.astype(np.float32) if grid is None else x / np.float32(step)) + point
    rounded = (np.clip(codes, -128, 127) - point) * step
    back = np.asarray(convert(dequantize(q), "numpy")).astype(np.float64)
    expected = rounded @ (back.T if scheme.layout == "out_in" else back) + bias
    assert_close(ours, expected, rtol=1e-5, atol=1e-5, because="three roundings in float32")
    host = int8_linear(x, moved(q, "numpy"), grid, bias=bias)
    assert_same_bits(ours, host)


def test_shapes_dtypes_and_what_products_refuse(backend: Backend) -> None:
    w, x = layer()
    q = quantize(backend.from_numpy(w), Integer())
    out = int8_linear(backend.from_numpy(x.reshape(4, 64, 32), dtype="bfloat16"), q)
    assert tuple(out.shape) == (4, 64, 12)
    assert backend.dtype_name(out) == "bfloat16"
    zeros = int8_linear(backend.from_numpy(np.zeros((2, 32), np.float32)), q)
    assert_close(zeros, np.zeros((2, 12)), because="nothing in, nothing out")
    given = backend.from_numpy(x)
    codes = backend.from_numpy(np.ones((2, 3), np.int8))
    group = quantize(backend.from_numpy(w), Integer(per="group", group_size=8))
    for call, says in (
        (lambda: int8_linear(given, group), "sums of several groups have no common scale"),
        (lambda: int8_linear(given, quantize(backend.from_numpy(w), Integer(axis=0))), "that of the inputs"),
        (lambda: int8_linear(given[:, :5], q), r"x has shape \(256, 5\); expected \(…, 32\)"),
        (lambda: int8_linear(given, q, Grid(0.1, 0, 0, 255)), "within"),
        (lambda: int8_linear(given, given), "weight is a .*; expected what quantize gives"),
        (lambda: int8_linear(given, q, {"x": None}), "grid is a dict; expected a Grid"),  # type: ignore[arg-type]
        (lambda: int8_linear(given, q, bias=given[0]), r"bias has shape \(32,\); expected \(12,\)"),
        (lambda: int8_linear(codes, q), "x is int8; expected one of float16"),
        (lambda: int8_matmul(given, codes), "x is float32 of shape"),
        (lambda: int8_matmul(codes, codes), r"shapes \(2, 3\) and \(2, 3\)"),
    ):
        with pytest.raises(InputError, match=says):
            call()


def test_rows_that_are_not_finite_are_seen(backend: Backend) -> None:
    w, x = layer()
    bad = x[:4].copy()
    bad[1, 2], bad[3, 0] = np.nan, np.inf
    out = np.asarray(
        backend.to_numpy(int8_linear(backend.from_numpy(bad), quantize(backend.from_numpy(w), Integer())))
    )
    assert np.isfinite(out[[0, 2]]).all()
    assert not np.isfinite(out[[1, 3]]).any()


def model(backend: Backend) -> Any:
    w, _ = layer()
    params = {"a": [w, w[0]], "b": {"w": w[:, :5].copy()}, "c": w.astype(np.float64), "n": np.arange(3)}
    q = quantize(convert(params, backend), Integer(bits=4, per="group", group_size=8), select="a.0")
    q = quantize(q, Integer(symmetric=False), select="c")
    return quantize(q, Cast(), select="b")


def test_files(backend: Backend, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    q = model(backend)
    save(file, q, {"epoch": 3})
    back = load(file, q, backend)
    assert back["b"]["w"].scheme == Cast()
    assert back["a"][0].scheme == q["a"][0].scheme
    ours, meta = to_arrays(back)
    theirs, same = to_arrays(q)
    assert meta == same
    assert list(ours) == list(theirs)
    for name, x in ours.items():
        assert backend.is_array(x)
        assert_same_bits(x, theirs[name], what=name)
    for x, y in zip(
        to_arrays(dequantize(back))[0].values(), to_arrays(dequantize(q))[0].values(), strict=True
    ):
        assert_same_bits(x, y)
    assert checkpoint.load(file).meta["user"] == {"epoch": 3}
    assert set(load(file)) == {"a.0", "a.1", "b.w", "c", "n"}


def test_files_have_their_true_size(tmp_path: Path) -> None:
    w = np.random.default_rng(0).standard_normal((1000, 1000)).astype(np.float32)
    for scheme, size in (
        (Integer(bits=4, per="tensor"), 500_000 + 4),
        (Integer(bits=4, per="group", group_size=50), 500_000 + 4 * 20 * 1000),
        (Integer(per="tensor"), 1_000_000 + 4),
        (Integer(symmetric=False), 1_000_000 + 5 * 1000),
        (Cast("float16"), 2_000_000),
    ):
        file = tmp_path / "w"
        save(file, quantize({"w": w}, scheme))
        assert size < os.path.getsize(file) < size + 1500
    with safe_open(file, framework="numpy") as f:  # any reader of the format has them
        assert list(f.keys()) == ["params/w/codes"]


def test_files_that_are_refused(tmp_path: Path) -> None:
    q = quantize({"w": layer()[0], "b": layer()[0]}, Integer(), select="^w")
    arrays, meta = to_arrays(q)
    assert json.loads(json.dumps(meta)) == meta
    wrong = {
        "expected int8 of shape": {**arrays, "w/codes": arrays["w/codes"][:3]},
        "scale is nothing; expected float32": {k: x for k, x in arrays.items() if k != "w/scale"},
        "zero_point is int8": {**arrays, "w/zero_point": np.zeros((1, 12), np.int8)},
        "leaf 'w' is there twice": {**arrays, "w": arrays["b"]},
    }
    for says, some in wrong.items():
        with pytest.raises(InputError, match=says):
            from_arrays(some, meta)
    entry = meta["w"]
    for says, other in (
        ("is no shape", {**entry, "shape": [-1, 2]}),
        ("dtype 'int8'", {**entry, "dtype": "int8"}),
        ("no quantization scheme", {**entry, "scheme": {}}),
        ("expected its shape, dtype and scheme", {"shape": [1]}),
        ("no field 'bit'; did you mean 'bits'", {**entry, "scheme": {"kind": "integer", "bit": 8}}),
        ("no quantization scheme", {**entry, "scheme": {**entry["scheme"], "kind": ["integer"]}}),
        ("convention = \\['torch'\\]", {**entry, "scheme": {**entry["scheme"], "convention": ["torch"]}}),
        (
            "does not divide axis 0",  # at once, whatever size a file claims
            {
                **entry,
                "shape": [(1 << 61) - 1, 1],
                "scheme": {**entry["scheme"], "per": "group", "group_size": 7},
            },
        ),
    ):
        with pytest.raises(InputError, match=says):
            from_arrays(arrays, {"w": other})
    with pytest.raises(InputError, match="leaf 'c' is missing"):
        from_arrays(arrays, meta, {"w": 0, "b": 0, "c": 0})
    with pytest.raises(InputError, match="two arrays have the name"):
        to_arrays({"w": q["w"], "w/codes": arrays["b"]})
    plain = tmp_path / "plain"
    checkpoint.save(plain, {"w": layer()[0]})
    with pytest.raises(CheckpointError, match="not of quantized weights"):
        load(plain)
    broken = tmp_path / "broken"
    checkpoint.save(broken, wrong["expected int8 of shape"], meta={"quantization": meta})
    with pytest.raises(CheckpointError, match=r"broken: leaf 'w': codes is"):
        load(broken)


def test_reports(backend: Backend) -> None:
    w, _ = layer()
    params = convert({"a": w, "b": w[0], "none": None}, backend)
    r = report(params, quantize(params, Integer(bits=4, per="group", group_size=8)))
    a, b = r.leaves
    error = np.abs(w - convert(dequantize(quantize(w, Integer(bits=4, per="group", group_size=8))), "numpy"))
    error = error.astype(np.float64)
    assert (a.path, a.scheme, a.bytes_before, a.bytes_after) == ("a", "int4 group 8", 1536, 192 + 192)
    assert_close(a.max_error, error.max(), rtol=1e-6, because="a difference in float32")
    assert_close(a.mean_error, error.mean(), rtol=1e-6, because="a difference in float32")
    noise = np.sum(error**2)
    assert_close(
        a.sqnr, 10 * np.log10(np.sum(w.astype(np.float64) ** 2) / noise), rtol=1e-6, because="as above"
    )
    assert (b.scheme, b.max_error, b.sqnr) == ("", 0.0, np.inf)
    assert r.total.bytes_before == 1536 + 48
    assert_close(r.total.mean_error, error.sum() / (w.size + 12), rtol=1e-6, because="as above")
    assert r.to_dict()["total"]["bytes_after"] == 384 + 48
    assert str(r).splitlines()[-1].split()[:3] == ["total", "1584", "432"]
    assert report({}, {}).total.bytes_after == 0
    with pytest.raises(InputError, match=r"leaf 'a' has shape \(32, 12\) before and \(12,\) after"):
        report({"a": w}, {"a": w[0]})
    with pytest.raises(InputError, match="leaf 'a' is missing"):
        report({"a": w}, {"b": w})
    with pytest.raises(InputError, match="leaf 'a' is None in one"):
        report({"a": w}, {"a": None})


def test_six_decibels_a_bit() -> None:
    w = {"w": np.random.default_rng(0).standard_normal((512, 64)).astype(np.float32)}
    four, eight = (report(w, quantize(w, Integer(bits=b))).total.sqnr for b in (4, 8))
    assert_close(eight - four, 20 * np.log10(127 / 7), atol=0.5, because="the steps are 127/7 times smaller")


def test_gptq_keeps_weights_that_no_sample_saw() -> None:
    """An input that was 0 in all samples says nothing of its weights: they are rounded to the nearest."""
    weight = np.array([[1.0, 0.5], [0.25, -1.0]])
    samples = np.array([[1.0, 0.0], [2.0, 0.0]])
    scheme = Integer()
    found, nearest = dequantize(gptq(weight, samples, scheme)), dequantize(quantize(weight, scheme))
    assert_same_bits(found, nearest)
    assert np.abs(found - weight).max() < 0.01
