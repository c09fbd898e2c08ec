"""GPTQ: a linear layer rounded one input after the other, each error made good by the weights to come."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyopt.backend import registry
from polyopt.core.errors import InputError, nearest
from polyopt.core.ops import FLOATING, Array
from polyopt.quantization.host import bounds, choose, compute_dtype, encode
from polyopt.quantization.record import Quantized
from polyopt.quantization.scheme import Blocks, Integer, blocks
from polyopt.quantization.weights import floating, record

ORDERS = ("natural", "activation")


def gptq(
    weight: Array,
    inputs: Array | Iterable[Array],
    scheme: Integer,
    *,
    damping: float = 0.01,
    block: int = 128,
    order: str = "natural",
    mask: Array | None = None,
    path: str = "weight",
) -> Quantized:
    """Codes for a linear layer that change its *outputs* on given inputs as little as they can.

    Frantar et al., "GPTQ: accurate post-training quantization for generative pre-trained transformers", 2023,
    Algorithm 1: with H = 2·XᵀX/n + λI and the upper Cholesky factor of H⁻¹, the inputs' weights are rounded
    in turn, in blocks, and each error is subtracted from those that are still to come. In float64 on the
    host: the same codes on every framework.

    Deviations: H is divided by the number n of samples, as in the authors' code, which scales λ with it. An
    input that is 0 in all samples has its weights stored as 0.

    Parameters
    ----------
    weight
        (in, out), or (out, in) where ``scheme.layout`` is ``"out_in"``, of any framework. Not changed.
    inputs
        What the layer is given: an array (…, in), or batches of such. At least one sample.
    scheme
        Per tensor, channel of the outputs, or group along the inputs. The scale of a group comes from its
        weights as they are when its turn has come, of a channel or a tensor from the original ones.
    damping
        λ as a fraction of the mean of H's diagonal.
    block
        How many inputs' errors are passed on together; it changes no result but for rounding in float64.
    order
        ``"natural"``, or ``"activation"``: inputs in the falling order of H's diagonal (the authors'
        ``act-order``); the scales of groups are then those of the original weights.
    mask
        Bool, of the shape of ``weight``: what is not kept is stored as 0. Its errors too are made good by the
        weights to come (Frantar & Alistarh, "SparseGPT", 2023, Algorithm 1, with the mask given).
    path
        Names the leaf in errors.

    Returns
    -------
    Quantized
        On the framework and device of ``weight``.

    Raises
    ------
    InputError
        For weights or inputs that are not finite (with batch and index), no samples, or sizes that don't fit.

    Examples
    --------
    >>> import numpy as np
    >>> generator = np.random.default_rng(0)
    >>> x = generator.standard_normal((64, 16)) @ generator.standard_normal((16, 16))
    >>> w = generator.standard_normal((16, 4))
    >>> from polyopt.quantization import dequantize, quantize
    >>> scheme = Integer(bits=4)
    >>> rounded, better = quantize(w, scheme), gptq(w, x, scheme)
    >>> error = [float(np.linalg.norm(x @ (dequantize(q) - w))) for q in (rounded, better)]
    >>> error[1] < 0.8 * error[0]
    True
    """
    _check_options(scheme, damping, block, order)
    backend, host = floating(path, weight)
    if host.ndim != 2:
        raise InputError(f"leaf {path!r}: shape {host.shape}; expected (in, out) or (out, in)")
    cut = blocks(scheme, host.shape, path)
    kept = _kept(mask, host, path)
    limits = bounds(host if kept is None else np.where(kept, host, np.zeros((), host.dtype)), cut, path)
    by_input = scheme.layout == "in_out"
    _check_axis(scheme, by_input, path)
    rows = host if by_input else host.T
    hessian = _hessian(inputs, rows.shape[0], path)
    kept = np.ones(host.shape, np.bool) if kept is None else kept
    problem = _Problem(scheme, cut, limits, compute_dtype(host), kept if by_input else kept.T, by_input)
    codes = _solve(problem, rows.astype(np.float64), hessian, damping, block, order == "activation", path)
    codes = codes if by_input else codes.T
    scale, zero = problem.stored()
    return record(backend, weight, scheme, cut, np.ascontiguousarray(codes), scale, zero)


class _Problem:
    """The scales of a layer, and the rounding of one input's weights, (out,), to them."""

    def __init__(
        self, scheme: Integer, cut: Blocks, limits: Any, dtype: Any, kept: Any, by_input: bool
    ) -> None:
        self._scheme, self._dtype, self._kept = scheme, dtype, kept
        self._shape, self._by_input = cut.stored, by_input
        self.group = scheme.group_size if scheme.per == "group" else None
        scale, zero = choose(scheme, *limits)
        self._scale = self._oriented(scale)
        self._zero = None if zero is None else self._oriented(zero)

    def _oriented(self, x: Any) -> Any:
        """Return them as (groups, outputs): one group where there are none, one output for a tensor."""
        if self.group is None:
            return np.array(x).reshape(1, -1)
        stored = np.array(x).reshape(self._shape)
        return stored.copy() if self._by_input else stored.T.copy()

    def begin(self, g: int, rows: Any) -> None:
        """Set the scales of group ``g`` by its weights, (group_size, out)."""
        here = slice(g * len(rows), (g + 1) * len(rows))
        x = np.where(self._kept[here], rows, 0.0).astype(self._dtype)
        zero = np.zeros((1,), self._dtype)
        low, high = np.minimum(x.min(0), zero), np.maximum(x.max(0), zero)
        scale, point = choose(self._scheme, low, high)
        self._scale[g] = scale
        if self._zero is not None:
            self._zero[g] = point

    def round(self, row: Any, i: int, g: int) -> tuple[Any, Any]:
        """Codes of the weights of input ``i``, and what they stand for in float64."""
        row = np.where(self._kept[i], row, 0.0)
        scale = self._scale[g].reshape(1, -1, 1)
        zero = None if self._zero is None else self._zero[g].reshape(1, -1, 1)
        n = row.size
        cut = Blocks((1, n, 1), (1, n if scale.size == n else 1, 1), (), (), ())
        codes = encode(self._scheme, row.astype(self._dtype), cut, scale, zero)
        value = codes.astype(np.float64)
        if self._zero is not None:
            value = value - self._zero[g]
        return codes, value * self._scale[g].astype(np.float64)

    def stored(self) -> tuple[Any, Any]:
        """Scale and zero point, to be stored in the shape of the scheme."""

        def back(x: Any) -> Any:
            return x if self._by_input or self.group is None else np.ascontiguousarray(x.T)

        return back(self._scale), None if self._zero is None else back(self._zero)


@dataclass(frozen=True)
class _Order:
    """In which order the inputs are rounded."""

    forward: Any
    backward: Any


def _solve(
    problem: _Problem, rows: Any, hessian: Any, damping: float, block: int, sorted_: bool, path: str
) -> Any:
    """Codes (in, out) of ``rows``, (in, out)."""
    n = len(rows)
    diagonal = np.diagonal(hessian).copy()
    dead = diagonal == 0
    # Of an input that no sample had, no error can be seen: its weights are rounded to the nearest.
    hessian[dead, dead] = 1.0
    hessian[np.arange(n), np.arange(n)] += damping * max(float(np.mean(diagonal)), 1e-300)
    forward = np.argsort(-diagonal, kind="stable") if sorted_ else np.arange(n)
    order = _Order(forward, np.argsort(forward))
    rows = rows[order.forward]
    upper = _upper_factor(hessian[np.ix_(order.forward, order.forward)], path)
    codes = np.empty(rows.shape, np.int8)
    for start in range(0, n, block):
        stop = min(start + block, n)
        errors = np.empty((stop - start, rows.shape[1]))
        for i in range(start, stop):
            g = 0 if problem.group is None else int(order.forward[i]) // problem.group
            if problem.group is not None and not sorted_ and i % problem.group == 0:
                # Weights beyond this block have yet to hear of its errors so far.
                ahead = rows[i : i + problem.group].copy()
                late = slice(stop - i, None)
                ahead[late] -= upper[start:i, stop : i + problem.group].T @ errors[: i - start]
                problem.begin(g, ahead)
            codes[i], value = problem.round(rows[i], int(order.forward[i]), g)
            errors[i - start] = (rows[i] - value) / upper[i, i]
            rows[i + 1 : stop] -= np.multiply.outer(upper[i, i + 1 : stop], errors[i - start])
        rows[stop:] -= upper[start:stop, stop:].T @ errors
    return codes[order.backward]


def _upper_factor(hessian: Any, path: str) -> Any:
    """Return the upper Cholesky factor of the inverse."""
    try:
        lower = np.linalg.cholesky(hessian)
        inverse = np.linalg.inv(lower)
        return np.linalg.cholesky(inverse.T @ inverse).T.copy()
    except np.linalg.LinAlgError:
        raise InputError(
            f"leaf {path!r}: the inputs' second moments have no inverse; "
            "expected more samples or more damping"
        ) from None


def _hessian(inputs: Any, n: int, path: str) -> Any:
    """Return 2·XᵀX/samples."""
    total, samples = np.zeros((n, n)), 0
    for i, batch in enumerate([inputs] if _is_array(inputs) else inputs):
        backend = registry.of(batch)
        where = f"leaf {path!r}, calibration batch {i}"
        if backend.dtype_name(batch) not in FLOATING or backend.is_traced(batch):
            raise InputError(
                f"{where}: dtype {backend.dtype_name(batch)}; expected a floating array with values"
            )
        x = np.asarray(backend.to_numpy(batch), np.float64)
        if x.ndim < 1 or x.shape[-1] != n:
            raise InputError(f"{where} has shape {x.shape}; expected (…, {n}), the layer's inputs")
        x = x.reshape(-1, n)
        wrong = np.argwhere(~np.isfinite(x))
        if len(wrong):
            index = tuple(int(k) for k in wrong[0])
            raise InputError(f"{where}: the element at {index} is {x[index]}; expected finite numbers")
        total += x.T @ x
        samples += len(x)
    if not samples:
        raise InputError(f"leaf {path!r}: the calibration set is empty: expected at least one sample")
    return total * (2.0 / samples)


def _kept(mask: Any, weight: Any, path: str) -> Any:
    if mask is None:
        return None
    backend = registry.of(mask)
    if backend.dtype_name(mask) != "bool" or tuple(mask.shape) != weight.shape:
        raise InputError(
            f"leaf {path!r}: a mask of {backend.dtype_name(mask)} and shape {tuple(mask.shape)}; "
            f"expected bool of shape {weight.shape}"
        )
    return np.asarray(backend.to_numpy(mask))


def _is_array(x: Any) -> bool:
    return hasattr(x, "shape") and hasattr(x, "dtype")


def _check_options(scheme: Any, damping: float, block: int, order: str) -> None:
    if not isinstance(scheme, Integer):
        raise InputError(f"gptq: scheme = {scheme!r}; expected an Integer")
    if not (isinstance(damping, int | float) and 0 <= damping < float("inf")):
        raise InputError(f"gptq: damping = {damping!r}; expected a finite number >= 0")
    if type(block) is not int or block < 1:
        raise InputError(f"gptq: block = {block!r}; expected an integer >= 1")
    if order not in ORDERS:
        raise InputError(f"gptq: order = {order!r}; {nearest(str(order), ORDERS)}")


def _check_axis(scheme: Integer, by_input: bool, path: str) -> None:
    """Scales by output, and groups along the inputs: else an input's weights couldn't be rounded together."""
    expected = {"channel": int(by_input), "group": int(not by_input)}.get(scheme.per)
    if scheme.axis is not None and expected is not None and scheme.axis % 2 != expected:
        raise InputError(
            f"leaf {path!r}: axis = {scheme.axis} with layout {scheme.layout!r}; "
            f"expected {expected}, or none, for per = {scheme.per!r}"
        )
