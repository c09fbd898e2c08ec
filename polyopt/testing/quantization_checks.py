"""Quantization: codes and scales by the formulas and in NumPy's bits, gradients, integer products."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import numpy as np

from polyopt import value_and_grad
from polyopt.backend.protocol import Backend
from polyopt.quantization import (
    MSE,
    Calibration,
    Cast,
    Entropy,
    Integer,
    MinMax,
    Percentile,
    codes_of,
    dequantize,
    fake_quantize,
    fake_quantize_weight,
    gptq,
    int8_matmul,
    quantize,
)
from polyopt.testing.agreement import Place, in_numpys_bits, outcome, same_bits, unit, within
from polyopt.testing.case import Case, Context
from polyopt.testing.ops_inputs import dtypes_of, host_dtype

SCHEMES: Final = (
    Integer(per="tensor"),
    Integer(),
    Integer(layout="out_in"),
    Integer(symmetric=False),
    Integer(per="tensor", symmetric=False),
    Integer(per="group", group_size=4),
    Integer(bits=4),
    Integer(bits=4, symmetric=False),
    Integer(bits=4, per="group", group_size=8),
    Integer(convention="torch"),
    Integer(convention="torch", symmetric=False, per="tensor"),
    Integer(convention="keras"),
    Integer(convention="keras", bits=4),
    Integer(convention="tensorflow", symmetric=False),
    Integer(convention="tensorflow", symmetric=False, bits=4, per="tensor"),
)
"""Every convention, symmetry and sharing of scales, and both widths."""


def cases() -> Iterator[Case]:
    """Yield a case for each scheme, for calibration, products and fake quantization."""
    for scheme in SCHEMES:
        yield Case("quantization", f"codes: {_short(scheme)}", partial(codes, scheme))
    for function in (casts, calibration, second_order, integer_products):
        yield Case("quantization", function.__name__, function)
    for convention in GRIDS:
        yield Case("quantization", f"fake_quantize: {convention}", partial(fake, convention))
    yield Case("quantization", "fake_quantize_weight", fake_weights)


def weights(dtype: str) -> Any:
    """Draw outputs of very different sizes, one of zeros, one that is not centred."""
    x = np.random.default_rng(11).normal(size=(16, 8)) * np.logspace(-2, 1, 8)
    x[:, 4] = 0.0
    x[:, 6] += 3.0
    return x.astype(host_dtype(dtype))


def _short(scheme: Integer) -> str:
    kind = "symmetric" if scheme.symmetric else "affine"
    return f"{scheme.convention}, {scheme.bits} bits, {kind}, per {scheme.per}, {scheme.layout}"


def by_hand(x: Any, scheme: Integer) -> tuple[Any, Any]:
    """Compute the code of every element and what it stands for, in float64, from the formulas."""
    code, value = np.zeros(x.shape), np.zeros(x.shape)
    outputs = 1 if scheme.layout == "in_out" else 0
    low, high = scheme.range
    for at in np.ndindex(*x.shape):
        line = x if scheme.per == "tensor" else np.take(x, at[outputs], axis=outputs)
        if scheme.group_size is not None:
            first = at[1 - outputs] // scheme.group_size * scheme.group_size
            line = line[first : first + scheme.group_size]
        s, z = _grid(min(0.0, line.min()), max(0.0, line.max()), scheme)
        # At a tie the last bit decides, so the convention's own expression counts.
        steps = x[at] / s if scheme.convention == "paper" else x[at] * (1.0 / s)
        whole = math.floor(steps + 0.5) if scheme.convention == "tensorflow" else round(steps)
        code[at] = min(max(whole + z, low), high)
        value[at] = (code[at] - z) * s
    return code.astype(np.int8), value


def _grid(m: float, top: float, scheme: Integer) -> tuple[float, int]:
    low, high = scheme.range
    if scheme.symmetric:
        most = max(-m, top)
        if scheme.convention == "keras":
            return (most + 1e-7) / high, 0
        s = most / ((high - low) / 2 if scheme.convention == "torch" else high)
    else:
        s = (top - m) / (high - low)
    s = max(s, 2.0**-23) if scheme.convention == "torch" else s or 1.0
    if scheme.symmetric:
        return s, 0
    z = low - m / s
    return s, math.floor(z + 0.5) if scheme.convention == "tensorflow" else round(z)


def codes(scheme: Integer, context: Context) -> str:
    """Codes, scales, zero points and values are NumPy's bits; in float64 they are the formulas'."""
    kinds = dtypes_of(context.backend, ("float32", "float64", "bfloat16", "float16"))
    host = {d: weights(d) for d in kinds}

    def work(place: Place) -> dict[str, Any]:
        stored = quantize(place(host), scheme)
        restored = dequantize(stored)
        found: dict[str, Any] = {}
        for d in kinds:
            q = stored[d]
            found |= {f"{d}: codes": q.codes, f"{d}: scale": q.scale, f"{d}: zero point": q.zero_point}
            found |= {f"{d}: unpacked": codes_of(q), f"{d}: restored": restored[d]}
        return found

    got = in_numpys_bits(context.backend, work, _short(scheme))
    code, value = by_hand(host["float64"], scheme)
    same_bits(f"{_short(scheme)}: codes", got["float64: unpacked"], code, "the formula")
    bound = 8 * unit("float64") * np.abs(host["float64"]).max()
    within(f"{_short(scheme)}: values", got["float64: restored"], value, bound)
    return ", ".join(kinds)


def casts(context: Context) -> str:
    """Return 16-bit floats: NumPy's rounding, and back exactly."""
    kinds = dtypes_of(context.backend, ("bfloat16", "float16"))
    host = weights("float32")

    def work(place: Place) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for d in kinds:
            q = quantize({"w": place(host)}, Cast(d))
            found |= {f"{d}: codes": q["w"].codes, f"{d}: restored": dequantize(q)["w"]}
        return found

    got = in_numpys_bits(context.backend, work, "casts")
    for d in kinds:
        same_bits(f"Cast({d!r})", got[f"{d}: codes"], host.astype(host_dtype(d)), "NumPy's cast")
    return ", ".join(kinds)


def calibration(context: Context) -> None:
    """Check that every observer gives the same grid, however the data is cut; min-max's by the formula."""
    host = np.random.default_rng(12).normal(size=(512, 4)).astype(np.float32) ** 3
    observers = (MinMax(), Percentile(99.0), MSE(), Entropy())

    def work(place: Place, pieces: int = 4) -> dict[str, Any]:
        seen = Calibration()
        for batch in np.split(host, pieces):
            seen = seen.observe({"x": place(batch)})
        found = {}
        for observer in observers:
            for scheme in (Integer(per="tensor"), Integer(per="tensor", symmetric=False)):
                grid = seen.grids(observer, scheme)["x"]
                numbers = np.array([grid.scale, grid.zero_point, grid.low, grid.high])
                found[f"{observer}, symmetric={scheme.symmetric}"] = place(numbers)
        return found

    got = in_numpys_bits(context.backend, work, "calibration")
    whole = outcome(context.backend, partial(work, pieces=1))
    for name, numbers in whole.items():
        same_bits(f"calibration by {name}", got[name], numbers, "the same data in one piece")
    want = np.array([np.abs(host).max() / np.float32(127), 0, -127, 127], np.float64)
    found = got[f"{MinMax()}, symmetric=True"]
    same_bits("calibration by MinMax()", found, want, "the formula")


def second_order(context: Context) -> None:
    """GPTQ: the same bits everywhere, and outputs nearer than by rounding."""
    rng = np.random.default_rng(13)
    x = (rng.normal(size=(128, 16)) @ rng.normal(size=(16, 16))).astype(np.float32)
    w, scheme = weights("float32"), Integer(bits=4)

    def work(place: Place) -> dict[str, Any]:
        q = gptq(place(w), place(x), scheme)
        return {"codes": q.codes, "scale": q.scale, "restored": dequantize(q)}

    got = in_numpys_bits(context.backend, work, "gptq")
    wide = x.astype(np.float64)
    ours, rounded = (
        float(np.square(wide @ (v.astype(np.float64) - w)).sum())
        for v in (got["restored"], dequantize(quantize(w, scheme)))
    )
    assert ours < rounded, f"gptq: squared error of the outputs {ours:.3g}; by rounding {rounded:.3g}"


def integer_products(context: Context) -> None:
    """int8 by int8 is the product of whole numbers, also beyond what float32 holds."""
    rng = np.random.default_rng(14)
    for m, k, n in ((3, 5, 2), (4, 3000, 3), (1, 1, 1), (2, 0, 2)):
        low = 100 if k == 3000 else -128  # sums beyond 2²⁴, of which float32 has every second or fourth
        a, b = (rng.integers(low, 128, size=s).astype(np.int8) for s in ((m, k), (k, n)))

        def work(place: Place, a: Any = a, b: Any = b) -> dict[str, Any]:
            return {"product": int8_matmul(place(a), place(b))}

        got = outcome(context.backend, work)["product"]
        want = (a.astype(np.int64) @ b.astype(np.int64)).astype(np.int32)
        same_bits(f"int8_matmul of ({m}, {k}) and ({k}, {n})", got, want, "the product of integers")


GRIDS: Final[dict[str, tuple[float, int, int, int]]] = {
    "paper": (0.0625, 3, -128, 127),
    "torch": (0.1, -5, -128, 127),
    "keras": (0.03, 0, -127, 127),
    "tensorflow": (0.07, 2, -8, 7),
}
"""Scale, zero point, lowest and highest code."""


def fake(convention: str, context: Context) -> None:
    """Values are those of the stored codes to the bit; the gradient is 1 within the grid and 0 beyond.

    ``sparse``: the gradients compiled, op by op those of one convention alone.
    """
    s, z, low, high = GRIDS[convention]
    modes = (True,) if context.sparse and convention != "paper" else (False, True)
    for d in ("float32", "float64"):
        kind = np.dtype(d).type
        least, top = (low - z) * s, (high - z) * s
        spread = np.random.default_rng(15).uniform(1.5 * least, 1.5 * top, size=300)
        # Away from both ends of the grid, where conventions differ and the last bit decides.
        x = spread[np.minimum(np.abs(spread - least), np.abs(spread - top)) > 0.6 * s].astype(d)
        x = x[:256]  # one shape for all conventions: op by op, XLA compiles for each
        factor = np.random.default_rng(16).normal(size=x.shape).astype(d)
        inside = (x > least) & (x < top)
        value = _nearest(x, kind(s), kind(z), (kind(low), kind(high)), convention)
        for gradient, passed in (("clipped", inside), ("straight", np.ones_like(inside))):
            what = f"fake_quantize({convention!r}, {gradient!r}) in {d}"
            _compare_fake(context.backend, what, (x, factor, passed, value), (convention, gradient), modes)


def _compare_fake(
    backend: Backend,
    what: str,
    host: tuple[Any, Any, Any, Any],
    kind: tuple[str, str],
    modes: tuple[bool, ...],
) -> None:
    convention, gradient = kind
    x, factor, passed, value = host
    s, z, low, high = GRIDS[convention]

    def rounded(xp: Any, x: Any) -> Any:
        return fake_quantize(xp, x, s, z, low, high, convention=convention, gradient=gradient)

    def loss(xp: Any, x: Any, factor: Any) -> Any:
        return xp.sum(xp.multiply(rounded(xp, x), factor))

    given = backend.from_numpy(x), backend.from_numpy(factor)
    same_bits(what, np.asarray(backend.to_numpy(rounded(backend.ops, given[0]))), value, "the formula")
    for compiled in modes:
        _, g = value_and_grad(loss, compiled=compiled)(*given)
        got = np.asarray(backend.to_numpy(g))
        want = np.where(passed, factor, np.zeros_like(factor))
        assert (got == want).all(), (
            f"{what}: the gradient (compiled={compiled}) is {got[got != want][:3]}; expected "
            f"{want[got != want][:3]}, that of the identity where it goes through"
        )


def _nearest(x: Any, s: Any, z: Any, ends: tuple[Any, Any], convention: str) -> Any:
    """Round to nearest, each operation rounded to the dtype of ``x``."""
    low, high = ends
    one, half = x.dtype.type(1), x.dtype.type(0.5)
    if convention == "tensorflow":
        least = (low - z) * s
        held = np.clip(x, least, (high - z) * s)
        return (np.floor((held - least) * (one / s) + half) + low - z) * s
    steps = x / s if convention == "paper" else x * (one / s)
    return (np.clip(np.rint(steps) + z, low, high) - z) * s


def fake_weights(context: Context) -> str:
    """Inside a loss, op by op, weights are what ``dequantize(quantize(…))`` gives, to the bit.

    ``sparse``: each way to share a scale, and each convention, once.
    """
    chosen = [s for s in SCHEMES if s.convention != "keras"]  # whose codes come from the inverse of its scale
    if context.sparse:
        chosen = list({(s.convention, s.per): s for s in chosen}.values())
    host = weights("float32")

    def work(place: Place, fake: bool) -> dict[str, Any]:
        w, found = place(host), {}
        for scheme in chosen:
            xp = context.backend.ops
            made = fake_quantize_weight(xp, w, scheme) if fake else dequantize(quantize(w, scheme))
            found[_short(scheme)] = made
        return found

    got, want = (outcome(context.backend, partial(work, fake=fake)) for fake in (True, False))
    for name, x in want.items():
        same_bits(f"fake_quantize_weight: {name}", got[name], x, "the stored weight")
    return f"{len(chosen)} schemes"
