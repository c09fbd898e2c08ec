"""``quantize`` of a phase: GPTQ layer by layer, activations on calibrated grids, on four backends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyopt import checkpoint, quantization, value_and_grad
from polyopt.backend.protocol import Backend
from polyopt.backend.registry import by_name
from polyopt.core import random
from polyopt.core.errors import CheckpointError, InputError
from polyopt.distillation import SoftTargets
from polyopt.models.datasets import Dataset
from polyopt.models.networks import MLP
from polyopt.quantization import (
    MSE,
    Grid,
    Integer,
    Percentile,
    Quantized,
    calibrate,
    dequantize,
    gptq,
    int8_linear,
    load_grids,
    quantize,
    quantize_inputs,
    save,
)
from polyopt.quantization.activations import on_grid
from polyopt.recipe import Recipe, datasets
from polyopt.testing import assert_close, assert_same_bits
from polyopt.training import Result, train
from polyopt.training.phases.plan import tasks

SHORT = {"steps": 3, "batch_size": 64}
GPTQ = {"bits": 4, "group_size": 8, "method": "gptq", "samples": 100}


def only(*phases: dict[str, Any], **changes: Any) -> Recipe:
    """These phases alone, on three digits."""
    table: dict[str, Any] = {
        "seed": 1,
        "data": {"name": "digits", "labels": [2, 3, 5]},
        "model": {"name": "mlp", "hidden": [16, 8]},
        "optimizer": {"name": "adam", "lr": 0.02},
        "train": SHORT,
        "phase": [{"name": chr(ord("a") + i)} | phase for i, phase in enumerate(phases)],
    }
    return Recipe.from_dict(table | changes)


def model(found: Result, name: str) -> tuple[dict[str, Any], dict[str, Grid]]:
    """The leaves and the grids that a phase left."""
    path = next(phase.model for phase in found.phases if phase.name == name)
    assert path is not None
    return quantization.load(path), load_grids(path)


def samples(recipe: Recipe, phase: int, count: int) -> Any:
    x = recipe.data.load().x_train.astype(np.float32)
    return x[random.permutation(len(x), recipe.seed + phase, "quantize")[:count]]


def forward(leaves: dict[str, Any], x: Any, grids: dict[str, Grid]) -> Any:
    """The model of ``only``, layer by layer in float64 but for the grids."""
    for i in range(3):
        weight, bias = (
            np.asarray(dequantize({"x": leaves[f"layers.{i}.{n}"]})["x"]) for n in ("weight", "bias")
        )
        grid = grids.get(f"layers.{i}.weight")
        if grid is not None:
            inverse = np.float32(1) / np.float32(grid.scale)
            codes = np.clip(np.rint(x.astype(np.float32) * inverse) + grid.zero_point, grid.low, grid.high)
            x = (codes - grid.zero_point) * grid.scale
        x = x @ weight.astype(np.float64) + bias
        x = np.maximum(x, 0.0) if i < 2 else x
    return x


def cross_entropy(logits: Any, y: Any) -> float:
    shifted = logits - logits.max(1, keepdims=True)
    return float(-np.mean((shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))[np.arange(len(y)), y]))


def test_what_is_reported_and_kept_is_with_quantized_activations(tmp_path: Path) -> None:
    """Against the model layer by layer; on four backends in test_training_phases.py."""
    coarse = {"bits": 4, "observer": "entropy", "samples": 50, "symmetric": True}
    recipe = only(
        {"quantize": GPTQ | {"activations": {"observer": "percentile", "percent": 99}}},
        {"quantize": {"bits": 4, "aware": True, "activations": coarse}, "train": SHORT},
    )
    found = train(recipe, backend="numpy", out=tmp_path)
    data = recipe.data.load()
    for phase in found.phases[1:]:
        leaves, grids = model(found, phase.name)
        assert list(grids) == [f"layers.{i}.weight" for i in range(3)]
        expected = cross_entropy(forward(leaves, data.x_test, grids), data.y_test)
        assert_close(phase.test_loss, expected, rtol=1e-4, because="float32; no code is on an edge")
        plain = cross_entropy(forward(leaves, data.x_test, {}), data.y_test)
        assert abs(plain - expected) > 1e-3 * expected
    assert found.grids == model(found, "b")[1] == load_grids(found.model or "")
    assert {(grid.low, grid.zero_point, grid.high) for grid in found.grids.values()} == {(-7, 0, 7)}


def test_each_layer_reads_what_the_quantized_ones_make(tmp_path: Path) -> None:
    recipe = only({"prune": {"sparsity": 0.5}}, {"quantize": GPTQ})
    found = train(recipe, backend="numpy", out=tmp_path)
    before, after = model(found, "a")[0], model(found, "b")[0]
    x = samples(recipe, 2, 100)
    scheme = Integer(bits=4, per="group", group_size=8)
    for i in range(3):
        path = f"layers.{i}.weight"
        weight, mask = before[path], before[path] != 0
        expected = gptq(weight, x, scheme, mask=mask)
        assert_same_bits(after[path].codes, expected.codes, what=path)
        assert_same_bits(after[path].scale, expected.scale, what=path)
        rounded = dequantize({"w": after[path]})["w"]
        assert not rounded[~mask].any()
        assert mask.mean() == 0.5
        if i == 0:
            nearest = dequantize(quantize(weight, scheme))
            errors = [float(np.linalg.norm(x @ (w - weight))) for w in (rounded, nearest)]
            assert errors[0] < 0.8 * errors[1]
        x = np.maximum(x @ rounded + before[f"layers.{i}.bias"], 0.0)
    assert [phase.sparsity for phase in found.phases] == [0.0, 0.5, 0.5]
    assert found.phases[1].parameters == found.phases[2].parameters


@pytest.mark.parametrize("name", ["softmax", "linear"])
def test_models_of_one_layer(name: str, tmp_path: Path) -> None:
    data = {"name": "digits"} if name == "softmax" else {"name": "diabetes"}
    quantized = {"bits": 4, "method": "gptq", "activations": {"bits": 8}}
    recipe = only({"quantize": quantized}, data=data, model={"name": name})
    leaves, grids = model(train(recipe, backend="numpy", out=tmp_path), "a")
    expected = gptq(
        checkpoint.load(tmp_path / "checkpoint.safetensors").params["weight"],
        samples(recipe, 1, 128),
        Integer(bits=4),
    )
    assert_same_bits(leaves["weight"].codes, expected.codes)
    x = samples(recipe, 1, 128)
    assert grids == {"weight": calibrate([x])["param"]}


def test_the_ranges_are_those_of_the_stored_weights_and_the_phases_samples(tmp_path: Path) -> None:
    observed = {"observer": "mse", "steps": 50, "samples": 64}
    recipe = only({"quantize": {"bits": 4, "select": r"layers\.[02]", "activations": observed}})
    leaves, grids = model(train(recipe, backend="numpy", out=tmp_path), "a")
    assert list(grids) == ["layers.0.weight", "layers.2.weight"], "the layers whose weights are quantized"
    x = samples(recipe, 1, 64)
    weights = dequantize(leaves)
    assert grids["layers.0.weight"] == calibrate([x], MSE(50))["param"]
    for i in (0, 1):
        x = np.maximum(x @ weights[f"layers.{i}.weight"] + weights[f"layers.{i}.bias"], np.float32(0))
    assert grids["layers.2.weight"] == calibrate([x], MSE(50))["param"]


def test_resumed_through_all_of_it(tmp_path: Path) -> None:
    aware = {"bits": 4, "aware": True, "activations": {"observer": "percentile", "percent": 99.0}}
    recipe = only(
        {"quantize": GPTQ | {"activations": {}}},
        {"quantize": aware, "train": SHORT},
        {"distil": {"model": {"name": "softmax"}}, "train": SHORT},
    )
    whole = train(recipe, backend="numpy", out=tmp_path / "whole")
    for stop in (3, 5, 7):
        parts = tmp_path / str(stop)
        assert train(recipe, backend="numpy", out=parts, max_steps=stop).steps == stop
        again = train(recipe, backend="numpy", out=parts, resume=True)
        assert again.history.loss == whole.history.loss
        for phase in "abc":
            (leaves, grids), (others, same) = model(whole, phase), model(again, phase)
            assert same == grids
            arrays = quantization.to_arrays(others)[0]
            for key, x in quantization.to_arrays(leaves)[0].items():
                assert_same_bits(arrays[key], x, what=f"{phase}: {key}")
    assert [bool(model(whole, phase)[1]) for phase in "abc"] == [True, True, False]


def test_training_knows_of_its_grids(tmp_path: Path) -> None:
    """What it goes through is what it leaves, and it helps."""
    coarse = {"bits": 8, "activations": {"bits": 4, "samples": 300, "observer": "mse"}}
    long = {"epochs": 8, "batch_size": 64}
    aware = {"quantize": coarse | {"aware": True}, "train": long, "optimizer": {"name": "adam", "lr": 0.01}}
    recipe = only({"quantize": coarse}, aware, train=long)
    found = train(recipe, backend="numpy", out=tmp_path)
    first, second = found.phases[1:]
    assert second.test_loss < 0.6 * first.test_loss
    assert_close(
        found.history.evaluations[-1].test_loss,
        second.test_loss,
        rtol=1e-4,
        because="weights rounded in training and as stored, whose scales may be an ulp apart",
    )
    # Held from the start: what the phase's own samples are to the first layer.
    seen = calibrate([samples(recipe, 2, 300)], MSE(), Integer(bits=4, per="tensor", symmetric=False))
    assert model(found, "b")[1]["layers.0.weight"] == seen["param"]


def test_what_comes_after_starts_from_floats_and_a_teacher_teaches_as_it_is_tested(tmp_path: Path) -> None:
    student = {"model": {"name": "mlp", "hidden": [16, 8]}, "alpha": 1.0, "temperature": 2.0}
    recipe = only(
        {"quantize": {"bits": 8, "activations": {"bits": 4}}},
        {"train": SHORT},
        {"distil": student | {"teacher": "a"}, "train": {"steps": 1, "batch_size": "full"}},
    )
    found = train(recipe, backend="numpy", out=tmp_path)
    data = recipe.data.load()
    teacher, grids = model(found, "a")
    assert grids
    assert not model(found, "b")[1]
    fresh = recipe.of_phase(3).build_model(data).init(recipe.seed + 3, "float32")["layers"]
    drawn = {f"layers.{i}.{n}": x for i, layer in enumerate(fresh) for n, x in layer.items()}
    says, hears = forward(teacher, data.x_train, grids), forward(drawn, data.x_train, {})
    loss = SoftTargets(temperature=2.0, alpha=1.0)
    expected = loss(by_name("numpy").ops, hears, says, np.eye(3)[data.y_train])
    assert_close(found.history.loss[-1], expected, rtol=1e-4, because="float32; no code is on an edge")
    plain = loss(by_name("numpy").ops, hears, forward(teacher, data.x_train, {}), np.eye(3)[data.y_train])
    assert abs(plain - expected) > 1e-3 * expected


UNFIT: list[tuple[dict[str, Any], str]] = [
    (GPTQ | {"samples": 9999}, r"^phase 'a': quantize\.samples = 9999; expected at most the 4\d\d training"),
    (
        {"activations": {"samples": 9999}},
        r"^phase 'a': quantize\.activations\.samples = 9999; expected at most the 4\d\d training samples$",
    ),
    (
        GPTQ | {"group_size": 7},
        r"^phase 'a': leaf 'layers\.0\.weight': group_size = 7 does not divide axis 0",
    ),
    (
        {"method": "gptq", "per": "tensor", "select": "bias"},
        r"^phase 'a': quantize\.method = 'gptq': MLP multiplies nothing with the selected weights, layers\.0",
    ),
    (
        {"per": "tensor", "select": r"1\.bias", "activations": {}},
        r"^phase 'a': quantize\.activations: MLP multiplies nothing with the selected weights, layers\.1",
    ),
]


@pytest.mark.parametrize(("section", "message"), UNFIT, ids=[m[:60] for _, m in UNFIT])
def test_what_does_not_fit_is_said_first(section: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tasks(only({"quantize": section}))
    if "activations" in section:
        with pytest.raises(InputError, match=message):
            tasks(only({"quantize": section | {"aware": True}, "train": SHORT}))


def test_samples_that_are_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.ones((40, 4))
    x[17, 2] = np.nan
    y = np.arange(40) % 3
    data = Dataset("digits", "classification", 3, x, y, np.ones((3, 4)), np.arange(3))
    monkeypatch.setattr(datasets, "load", lambda name, **options: data)
    for section, key in (
        (GPTQ | {"samples": 40, "group_size": 4}, "samples"),
        ({"activations": {"samples": 40}}, r"activations\.samples"),
    ):
        with pytest.raises(
            InputError,
            match=rf"^phase 'a': quantize\.{key}: training sample 17 has nan at \(2,\); expected finite",
        ):
            tasks(only({"quantize": section}, train={"steps": 1, "batch_size": 8}))


# The library's part


def two_layers() -> tuple[MLP, Any, Any]:
    generator = np.random.default_rng(3)
    params = {
        "layers": [
            {"weight": generator.standard_normal(s).astype(np.float32), "bias": np.zeros(s[1], np.float32)}
            for s in ((6, 5), (5, 5))
        ]
    }
    start: Any = None
    return (
        MLP(6, 5, start, start, (5,), "tanh"),
        params,
        generator.standard_normal((40, 6)).astype(np.float32),
    )


def test_inputs_are_on_their_grid_compiled_and_not(backend: Backend) -> None:
    """Through the unit matrix, which adds zeros alone: the codes to the bit."""
    x = (np.random.default_rng(0).standard_normal((500, 8)) * 3).astype(np.float32)
    x[:100] = (np.arange(800).reshape(100, 8) % 90 - 45.5).astype(np.float32) * np.float32(0.037)
    grids = {"w": Grid(float(np.float32(0.037)), -3, -128, 127)}

    def apply(xp: Any, params: Any, x: Any) -> Any:
        return xp.matmul(x, xp.matrix_transpose(params["w"]))

    rounded = quantize_inputs(apply, grids)
    expected = on_grid(by_name("numpy").ops, x, grids["w"])
    params, given = {"w": backend.from_numpy(np.eye(8, dtype=np.float32))}, backend.from_numpy(x)
    for got in (backend.compile(rounded)(params, given), rounded(backend.ops, params, given)):
        assert_same_bits(backend.to_numpy(got), expected)
    assert quantize_inputs(apply, {}) is apply
    with pytest.raises(InputError, match=r"^grid 'v': nothing is multiplied with it; known: 'w'$"):
        quantize_inputs(apply, {"v": grids["w"]})(backend.ops, params, given)


def test_gradients_go_through_the_grids(backend: Backend) -> None:
    model, params, x = two_layers()
    grid = Grid(0.25, 0, -3, 3)
    apply = quantize_inputs(model.apply, {"layers.1.weight": grid})

    def loss(xp: Any, params: Any, x: Any) -> Any:
        return xp.sum(apply(xp, params, x))

    from polyopt import convert

    slopes = value_and_grad(loss)(convert(params, backend), backend.from_numpy(x))[1]
    hidden = np.tanh(x.astype(np.float64) @ params["layers"][0]["weight"])
    codes = np.rint(hidden / 0.25)
    passed = np.abs(codes) <= 3
    assert 0 < passed.mean() < 1
    back = np.ones((40, 5)) @ params["layers"][1]["weight"].T * passed * (1 - hidden**2)
    for i, expected in enumerate((x.T @ back, (np.clip(codes, -3, 3) * 0.25).T @ np.ones((40, 5)))):
        got = backend.to_numpy(slopes["layers"][i]["weight"])
        assert_close(got, expected, rtol=1e-4, atol=1e-4, because="float32 sums of 40 terms")


def test_a_product_in_integers_is_near_the_one_in_floats(backend: Backend) -> None:
    """The same codes but where x/s and x·(1/s) round to two sides of a half, and exact sums."""
    generator = np.random.default_rng(0)
    x, w = generator.standard_normal((200, 64)).astype(np.float32), generator.standard_normal((64, 16))
    grid = calibrate([x], Percentile(99.0))["param"]
    weight = quantize(backend.from_numpy(w.astype(np.float32)), Integer())
    apply = quantize_inputs(lambda xp, params, x: xp.matmul(x, params["w"]), {"w": grid})
    fake = backend.to_numpy(apply(backend.ops, dequantize({"w": weight}), backend.from_numpy(x)))
    whole = backend.to_numpy(int8_linear(backend.from_numpy(x), weight, grid))
    assert_close(whole, fake, rtol=1e-5, atol=2e-5, because="64 float32 products, summed with rounding")


def test_what_is_pruned_stays_so_and_its_error_is_made_good() -> None:
    generator = np.random.default_rng(4)
    x = generator.standard_normal((256, 32)) @ (generator.standard_normal((32, 32)) * np.logspace(0, -2, 32))
    w = generator.standard_normal((32, 12))
    mask = generator.random((32, 12)) > 0.5
    for scheme in (
        Integer(bits=4),
        Integer(bits=4, symmetric=False),
        Integer(bits=4, per="group", group_size=8, symmetric=False),
        Integer(bits=4, per="group", group_size=8, layout="out_in"),
    ):
        turned = (lambda a: np.ascontiguousarray(a.T)) if scheme.layout == "out_in" else lambda a: a
        for order in ("natural", "activation"):
            q = turned(dequantize(gptq(turned(w), x, scheme, mask=turned(mask), order=order)))
            assert not q[~mask].any()
            rounded = turned(dequantize(quantize(turned(w * mask), scheme)))
            errors = [float(np.linalg.norm(x @ (v - w))) for v in (q, rounded)]
            assert errors[0] < errors[1], (scheme, order)
            again = turned(dequantize(gptq(turned(w * mask), x, scheme, mask=turned(mask), order=order)))
            errors = [float(np.linalg.norm(x @ (v - w * mask))) for v in (again, rounded)]
            assert errors[0] < 0.95 * errors[1], (scheme, order)
    assert_same_bits(
        gptq(w, x, Integer(bits=4), mask=np.ones_like(mask)).codes, gptq(w, x, Integer(bits=4)).codes
    )
    with pytest.raises(
        InputError, match=r"^leaf 'weight': a mask of float64 and shape \(32, 12\); expected bool"
    ):
        gptq(w, x, Integer(), mask=w)


def by_obs(w: Any, mask: Any, x: Any, scale: Any) -> Any:
    """Weights by the update of optimal brain surgeon in a fixed order, pruned or rounded one by one."""
    h = 2.0 / len(x) * x.T @ x
    inverse = np.linalg.inv(h + 0.01 * np.mean(np.diag(h)) * np.eye(len(w)))
    w, out = w.copy(), np.empty(w.shape)
    for i in range(len(w)):
        out[i] = np.where(mask[i], np.clip(np.rint(w[i] / scale), -7, 7) * scale, 0.0)
        w[i:] -= np.outer(inverse[i:, i], (w[i] - out[i]) / inverse[i, i])
        inverse = inverse - np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    return out


def test_pruned_and_rounded_in_one_go_as_by_optimal_brain_surgeon() -> None:
    generator = np.random.default_rng(5)
    x, w = generator.standard_normal((99, 12)), generator.standard_normal((12, 4))
    mask = generator.random((12, 4)) > 0.4
    w = w * mask
    expected = by_obs(w, mask, x, np.abs(w).max(0) / 7)
    got = dequantize(gptq(w, x, Integer(bits=4), mask=mask, block=5))
    assert_close(got, expected, rtol=1e-12, atol=1e-15, because="the same codes, times the scale")


HOSTILE: list[tuple[Any, str]] = [
    (
        {"scale": float("nan"), "zero_point": 0, "low": -1, "high": 1},
        "scale = nan; expected a finite float32",
    ),
    (
        {"scale": 0.1, "zero_point": 0, "low": -1, "high": 1},
        r"scale = 0\.1; expected a finite float32 above 0",
    ),
    ({"scale": 0.5, "zero_point": 2, "low": -1, "high": 1}, "expected rising integers in"),
    ({"scale": 0.5, "zero_point": 0, "low": -1, "high": 128}, "expected rising integers in"),
    ({"scale": 0.5, "zero_point": 0, "low": True, "high": 1}, "expected rising integers in"),
    ({"scale": 0.5, "zero_point": 0, "low": -1}, "expected scale, zero_point, low and high"),
    ([1, 2], "expected scale, zero_point, low and high"),
]


@pytest.mark.parametrize(("entry", "says"), HOSTILE, ids=[s for _, s in HOSTILE])
def test_files_with_grids_that_are_none(entry: Any, says: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    meta = {"quantization": {}, "user": {}, "activations": {"w": entry}}
    checkpoint.save(file, {"w": np.ones(2)}, meta=meta)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: grid 'w': .*{says}"):
        load_grids(file)


def test_files_with_grids(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    grids = {"w": Grid(float(np.float32(0.1)), -3, -128, 127), "v": Grid(0.5, 0, -7, 7)}
    params = {"w": quantize(np.ones((2, 2)), Integer())}
    save(file, params, {"mine": 1}, grids=grids)
    assert load_grids(file) == grids
    kept = quantization.load(file)["w"]
    assert isinstance(kept, Quantized)
    assert_same_bits(kept.codes, params["w"].codes)
    with pytest.raises(InputError, match=r"^grid 'w': scale = 0\.1; expected a finite float32"):
        save(file, params, grids={"w": Grid(0.1, 0, -7, 7)})
    assert load_grids(file) == grids, "the file is as it was"
    save(file, params)
    assert load_grids(file) == {}
    checkpoint.save(file, {"w": np.ones(2)})
    with pytest.raises(CheckpointError, match="not of quantized weights"):
        load_grids(file)
