"""The conformance kit can fail: broken backends are caught, and so are wrong comparisons."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from polyopt.backend import registry
from polyopt.core.ops import Ops
from polyopt.testing import Report, Row, assert_close, assert_same_bits, conform
from polyopt.testing.case import Case, Context, Missing, Skip, run_case
from polyopt.testing.kit import all_cases, load
from polyopt.testing.ops_checks import cases as ops_cases
from polyopt.testing.ops_checks import known_checks, operations
from polyopt.testing.ops_inputs import rounded
from polyopt.testing.reference import reference
from polyopt.testing.rules_cases import pairs, settings

NUMPY = registry.by_name("numpy")


class Broken:
    """NumPy's backend with some attributes, or operations, replaced."""

    def __init__(self, ops: dict[str, Any] | None = None, **replaced: Any) -> None:
        self.name = "broken"
        members = {n: getattr(NUMPY.ops, n) for n in operations()}
        self.ops = SimpleNamespace(**(members | (ops or {})))
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(NUMPY, name)


def rows(backend: Any, check: str, name: str) -> Row:
    found = [case for case in all_cases("broken") if (case.check, case.name) == (check, name)]
    return run_case(found[0], Context(backend, quick=True))


def next_up(x: Any) -> Any:
    root = np.sqrt(x)
    return np.nextafter(root, np.inf) if root.dtype in (np.float32, np.float64) else root


@pytest.mark.parametrize(
    ("name", "function", "says"),
    [
        ("sqrt", next_up, "sqrt(float"),
        ("maximum", np.fmax, "nan"),
        ("minimum", lambda a, b: np.where(a < b, a, b).astype(a.dtype), "minimum("),
        ("add", lambda a, b: np.add(a, b).astype(np.float64), "has dtype float64"),
        ("round", lambda x: np.copysign(np.floor(np.abs(x) + 0.5), x).astype(x.dtype), "round("),
        ("sign", lambda x: np.where(np.isnan(x), 0, np.sign(x)).astype(x.dtype), "expected nan"),
        ("sum", lambda x, **k: np.sum(x, **k) * 1.01, "sum("),
        ("sum", lambda x, axis=None, keepdims=False, dtype=None: np.sum(x, dtype=dtype), "shape"),
        ("any", lambda x, axis=None, keepdims=False: np.all(x, axis=axis, keepdims=keepdims), "any("),
        ("take", lambda x, i, axis=None: np.take(x, i[::-1], axis=axis), "take("),
        ("concat", lambda arrays, axis=0: np.concat(arrays[::-1], axis=axis), "concat("),
        ("astype", lambda x, d, copy=True: np.asarray(x, dtype=d), "shares memory"),
        ("exp", lambda x: np.exp(x) * x.dtype.type(1.0001), "within 4 ulp"),
        ("where", lambda c, a, b: np.where(c, b, a), "where("),
        ("argmax", lambda x, axis=None, keepdims=False: np.argmin(x, axis=axis, keepdims=keepdims), "argmax"),
        ("finfo", lambda d: np.finfo(np.float32), "finfo("),
        ("isdtype", lambda d, kind: True, "isdtype("),
        ("reshape", lambda x, s, copy=None: np.reshape(x, s, order="F"), "reshape("),
    ],
)
def test_broken_operation_is_caught(name: str, function: Any, says: str) -> None:
    row = rows(Broken(ops={name: function}), "ops", name)
    assert row.outcome == "failed"
    assert says in row.detail
    assert "\n" not in row.detail


def contracting(program: Any, compiled: bool = True) -> Any:
    """A lift that rounds once where the program rounds after every operation."""

    def run(arrays: Any, scalars: Any, dtype: str, donate: bool = False) -> Any:
        wide = NUMPY.lift(program, compiled=False)
        out = wide(
            {n: [np.asarray(x, dtype=np.float64) for x in v] for n, v in arrays.items()}, scalars, "float64"
        )
        kinds = {n: [x.dtype for x in arrays[n]] if n in arrays else None for n in out}
        return {
            n: [x.astype(kinds[n][i] if kinds[n] else dtype) for i, x in enumerate(v)] for n, v in out.items()
        }

    return run


def wrong_sign(loss: Any, *, compiled: bool = True) -> Any:
    def f(params: Any, *args: Any) -> Any:
        value, g = NUMPY.value_and_grad(loss)(params, *args)
        flip = lambda x: (  # noqa: E731
            {k: flip(v) for k, v in x.items()}
            if isinstance(x, dict)
            else [flip(v) for v in x]
            if isinstance(x, list)
            else -x
        )
        return value, flip(g)

    return f


def forgetful(function: Any, *, exact: bool = False) -> Any:
    """A compile that traces at the second call again."""
    calls = [0]

    def f(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            function(NUMPY.ops, *args)
        return function(NUMPY.ops, *args)

    return f


def in_place(program: Any, compiled: bool = True) -> Any:
    lifted = NUMPY.lift(program, compiled=False)
    return lambda arrays, scalars, dtype, donate=False: lifted(arrays, scalars, dtype, donate=True)


@pytest.mark.parametrize(
    ("replaced", "check", "case", "says"),
    [
        ({"lift": contracting}, "bits", "adam/paper: compiled", "differ in their bits"),
        ({"value_and_grad": wrong_sign}, "backend", "value_and_grad", "layers.0.w"),
        ({"compile": forgetful}, "backend", "compiles_once", "traced again"),
        ({"from_numpy": lambda x, dtype=None, device=None: np.asarray(x)}, "backend", "own_memory", "shares"),
        ({"to_numpy": lambda x: np.asarray(x, dtype=np.float64)}, "backend", "round_trip", "float64"),
        ({"api_version": 99}, "backend", "identity", "api_version"),
        ({"lift": in_place}, "properties", "callers_arrays", "caller's"),
        ({"dtype": lambda name: np.dtype(np.float32)}, "backend", "unknown_names", "was accepted"),
        ({"devices": lambda: ("gpu:0",)}, "backend", "devices", "comes first"),
    ],
)
def test_broken_backend_is_caught(replaced: dict[str, Any], check: str, case: str, says: str) -> None:
    row = rows(Broken(**replaced), check, case)
    assert row.outcome == "failed"
    assert says in row.detail


def test_broken_only_by_name_passes() -> None:
    for check, case in (("ops", "sqrt"), ("bits", "adam/paper: compiled"), ("properties", "callers_arrays")):
        row = rows(Broken(), check, case)
        assert row.outcome == "passed", row.detail


def in_float32(x: Any, w: Any) -> Any:
    return (x.astype(np.float32) @ w.astype(np.float32)).astype(np.int32)


@pytest.mark.parametrize(
    ("broken", "check", "case", "says"),
    [
        (Broken(lift=contracting), "pruning", "masked(AdamW): compiled", "differ in their bits"),
        (Broken(lift=contracting), "federated", "FedYogi: compiled", "differ in their bits"),
        (Broken(value_and_grad=wrong_sign), "distillation", "soft targets", "gradient"),
        (Broken(value_and_grad=wrong_sign), "finetuning", "lora_gradient", "gradient of A"),
        (Broken(value_and_grad=wrong_sign), "quantization", "fake_quantize: paper", "gradient"),
        (Broken(stop_gradient=lambda x: x * 1.5), "distillation", "feature hint", "the reference has"),
        (Broken(ops={"floor": np.ceil}), "quantization", "fake_quantize_weight", "the stored weight"),
        (Broken(int8_matmul=in_float32), "quantization", "integer_products", "the product of integers"),
    ],
)
def test_broken_compression_is_caught(broken: Broken, check: str, case: str, says: str) -> None:
    row = rows(broken, check, case)
    assert row.outcome == "failed"
    assert says in row.detail


@pytest.mark.parametrize(
    ("home", "name", "wrong", "check", "case", "says"),
    [
        (
            "polyopt.pruning",
            "magnitude_masks",
            lambda right: lambda p, s, **how: right(p, s - 0.05, **how),
            "pruning",
            "masks: magnitude",
            "the ranking by hand",
        ),
        (
            "polyopt.quantization.weights",
            "choose",
            lambda right: lambda *args: (right(*args)[0] * 1.01, right(*args)[1]),
            "quantization",
            "codes: paper, 8 bits, symmetric, per channel, in_out",
            "the formula",
        ),
        (
            "polyopt.federated.mean",
            "weights",
            lambda right: lambda clients, owner: [1.0] * len(clients),
            "federated",
            "fedavg",
            "the reference has",
        ),
    ],
)
def test_wrong_compression_is_caught_on_numpy_too(
    monkeypatch: pytest.MonkeyPatch, home: str, name: str, wrong: Any, check: str, case: str, says: str
) -> None:
    module = import_module(home)
    monkeypatch.setattr(module, name, wrong(getattr(module, name)))
    row = rows(NUMPY, check, case)
    assert row.outcome == "failed"
    assert says in row.detail


def test_reference_catches_a_wrong_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    from polyopt.optim import Adam

    right = Adam.coefficients

    def wrong(self: Any, xp: Any, t: Any, h: Any) -> Any:
        return right(self, xp, t + 1, h)

    monkeypatch.setattr(Adam, "coefficients", wrong)
    row = rows(NUMPY, "reference", "adam/paper")
    assert row.outcome == "failed"
    assert "adam(paper)" in row.detail
    assert "step 1" in row.detail


def test_every_operation_has_a_check_and_a_new_one_is_missing() -> None:
    assert set(operations()) <= set(known_checks())

    class More(Ops):
        def erf(self, x: Any, /) -> Any: ...

    protocol = type("Protocol", (), {"erf": More.erf})
    case = next(c for c in ops_cases(protocol) if c.name == "erf")
    row = run_case(case, Context(NUMPY))
    assert (row.outcome, row.ok) == ("missing", False)
    assert "erf" in row.detail


def test_an_algorithm_without_a_reference_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from polyopt import optim

    monkeypatch.setitem(optim.OPTIMIZERS, "adamantium", optim.OPTIMIZERS["adam"])
    row = rows(NUMPY, "reference", "adamantium/paper")
    assert row.outcome == "missing"
    assert "adamantium" in row.detail


def test_every_algorithm_and_convention_has_settings() -> None:
    for algorithm, convention in pairs():
        everything, few = settings(algorithm, convention), settings(algorithm, convention, sparse=True)
        assert few, (algorithm, convention)
        assert set(few) <= set(everything)


def test_an_operation_that_is_not_there_is_missing() -> None:
    backend = Broken()
    del backend.ops.tanh
    assert rows(backend, "ops", "tanh").outcome == "missing"


def test_a_required_backend_is_missing_and_another_skipped() -> None:
    for required, outcome in ((("nope",), "missing"), ((), "skipped")):
        report = conform(["nope"], required=required)
        assert [row.outcome for row in report.rows] == [outcome]
        assert not report.ok
    assert isinstance(load("nope"), Row)


def test_required_reaches_the_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    from polyopt.testing import peers

    def absent(convention: str) -> str:
        raise ImportError(convention)

    monkeypatch.setattr(peers, "_version", absent)
    monkeypatch.setitem(peers.HOMES, "torch", "numpy")
    for required, outcome in (((), "skipped"), (("numpy",), "missing")):
        report = conform("numpy", required=required, quick=True, checks=["peer"])
        assert {row.outcome for row in report.rows} == {outcome}


def test_exceptions_become_rows() -> None:
    def outcome(error: Exception) -> Row:
        def run(context: Context) -> None:
            raise error

        return run_case(Case("ops", "x", run), Context(NUMPY))

    assert outcome(ZeroDivisionError("why\nnot")).detail == "ZeroDivisionError: why not"
    assert outcome(Skip("because")).outcome == "skipped"
    assert outcome(Missing("what")).outcome == "missing"
    assert outcome(AssertionError("a" * 1000)).detail.endswith("…")


def test_how_thorough_a_context_is() -> None:
    assert [Context(NUMPY, **given).updates for given in ({}, {"quick": True}, {"steps": 60})] == [
        200,
        20,
        60,
    ]
    assert Context(NUMPY).layouts == ("contiguous", "transposed", "strided")
    assert Context(NUMPY, sparse=True).layouts == ("contiguous",)


def test_conform_reports_each_row_as_it_comes() -> None:
    seen: list[Row] = []
    report = conform(NUMPY, quick=True, checks=["federated"], on_result=seen.append)
    assert tuple(seen) == report.rows
    assert report.ok, report.failures
    assert report.to_json()["passed"] == report.counts["passed"] == len(seen)


def test_matrix() -> None:
    report = Report(
        (
            Row("ops", "add", "numpy", "passed"),
            Row("ops", "add", "jax", "failed", "why"),
            Row("bits", "adam", "numpy", "skipped"),
            Row("bits", "adam", "jax", "missing"),
        )
    )
    assert report.matrix().splitlines() == [
        "check  numpy     jax",
        "ops    ✓ 1       ✗ 1/1",
        "bits   – (–1)    ✗ 1/1",
        "all    ✓ 1 (–1)  ✗ 2/2",
    ]
    assert [row.outcome for row in report.failures] == ["failed", "missing"]


def test_bfloat16_is_rounded_once() -> None:
    # Halfway between two bfloat16 numbers but for the last bit of a double: by float32 it is a tie.
    value = 1 + 2.0**-8 + 2.0**-40
    assert float(rounded(value, "bfloat16")) == 1 + 2.0**-7
    assert float(rounded(1 + 2.0**-8, "bfloat16")) == 1.0


def test_reference_by_hand() -> None:
    step = reference(
        "adam", "keras", {"b1": 0.5, "b2": 0.75, "eps": 0.0, "decay": "decoupled", "weight_decay": 0.5}
    )
    got = step({}, np.array([2.0]), np.array([-3.0]), 1, 0.25)
    assert_close(
        got, [2.0 + 0.25 - 0.25 * 0.5 * 2.0], rtol=1e-15, because="the first step of Adam is lr sign(g)"
    )


def test_assert_close_fails() -> None:
    assert_close([1.0, np.nan], [1.0 + 1e-9, np.nan], rtol=1e-8, because="within")
    for actual, expected in (([1.0], [1.1]), ([1.0], [[1.0]]), ([np.nan], [1.0]), ([np.inf], [-np.inf])):
        with pytest.raises(AssertionError):
            assert_close(actual, expected, rtol=1e-3, because="must differ")
    with pytest.raises(AssertionError, match="reason"):
        assert_close([1.0], [1.0], because="")


def test_assert_same_bits_fails() -> None:
    assert_same_bits(np.float32([np.nan, -0.0]), np.float32([np.nan, -0.0]))
    one = np.float32([1.0])
    for actual, expected, says in (
        (one, np.float64([1.0]), "dtype"),
        (one, np.float32([[1.0]]), "shape"),
        (one, np.nextafter(one, np.float32(2)), "differ"),
        (np.float32([0.0]), np.float32([-0.0]), "differ"),
    ):
        with pytest.raises(AssertionError, match=says):
            assert_same_bits(actual, expected)
