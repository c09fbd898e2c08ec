"""Compare a backend's result with the expected host array, and say in one line what differs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from polyopt.backend.protocol import Backend
from polyopt.core.ops import FLOATING
from polyopt.testing.ops_inputs import host_dtype, tiny


def text(x: Any) -> str:
    """Show a host array or anything else, short enough for a line."""
    if isinstance(x, np.ndarray):
        shown = x.tolist() if x.dtype.kind != "V" else x.astype(np.float64).tolist()
        return f"{x.dtype.name}{list(x.shape)} {shown!r}"[:120]
    return repr(x)[:120]


def result(backend: Backend, call: str, out: Any, dtype: str, shape: Sequence[int]) -> Any:
    """Return ``out`` as a host array, after its kind, dtype and shape have been checked."""
    assert backend.is_array(out), f"{call} gave {type(out).__name__}; expected an array of {backend.name}"
    found = backend.dtype_name(out)
    assert found == dtype, f"{call} has dtype {found}; expected {dtype}"
    assert tuple(out.shape) == tuple(shape), f"{call} has shape {tuple(out.shape)}; expected {tuple(shape)}"
    host = np.asarray(backend.to_numpy(out))
    assert host.dtype == host_dtype(dtype), f"{call}: to_numpy gave {host.dtype.name}; expected {dtype}"
    return host


def differing(got: Any, want: Any, exact: Any, dtype: str, ulps: float, zeros: bool) -> Any:
    """Flat mask of the elements of ``got`` that are not as they must be.

    ``want`` is rounded to ``dtype``, ``exact`` the same in float64. Where the exact result is subnormal,
    zero is right as well: XLA and TensorFlow may flush.
    """
    if dtype not in FLOATING:
        return np.asarray(got != want).reshape(-1)
    a, w, e = (np.asarray(x).astype(np.float64).reshape(-1) for x in (got, want, exact))
    same = (a == w) | (np.isnan(a) & np.isnan(w))
    if zeros:
        same &= (a != 0) | (w != 0) | (np.signbit(a) == np.signbit(w))
    smallest = tiny(dtype)
    # `<=`: in float64 a product just below the smallest normal number shows up as that number here.
    same |= (np.abs(e) <= smallest) & (e != 0) & (a == 0)
    same |= (np.abs(w) < smallest) & (w != 0) & (np.abs(a) <= smallest)
    if ulps:
        near = np.isfinite(a) & np.isfinite(w) & (w != 0)
        bits = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}[dtype]
        unit = np.exp2(np.frexp(np.where(near, w, 1.0))[1] - bits)
        same |= near & (np.abs(a - e) <= (ulps + 0.5) * unit)
    return ~same


def check_values(
    call: str,
    got: Any,
    want: Any,
    *,
    dtype: str,
    exact: Any = None,
    ulps: float = 0.0,
    zeros: bool = True,
    skip: Any = None,
    inputs: Sequence[Any] = (),
) -> None:
    """Assert that ``got`` is ``want``; the message names the first element that is not, and its inputs."""
    wrong = differing(got, want, want if exact is None else exact, dtype, ulps, zeros)
    if skip is not None:
        wrong &= ~np.asarray(skip).reshape(-1)
    if not wrong.any():
        return
    i = int(np.flatnonzero(wrong)[0])
    given = ", ".join(repr(np.broadcast_to(x, np.shape(want)).reshape(-1)[i].item()) for x in inputs)
    a, w = np.reshape(got, -1)[i].item(), np.reshape(want, -1)[i].item()
    bound = f" within {ulps:g} ulp" if ulps else ""
    at = f" at ({given})" if given else f" at element {i}"
    raise AssertionError(
        f"{call}{at} = {a!r}; expected {w!r}{bound} ({int(wrong.sum())} of {wrong.size} wrong)"
    )
