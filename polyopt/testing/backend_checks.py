"""The backend itself: identity, conversion, devices, errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from polyopt.backend.protocol import API_VERSION
from polyopt.core.errors import InputError
from polyopt.core.ops import DTYPES
from polyopt.testing import function_checks, whole_checks
from polyopt.testing.case import Case, Context
from polyopt.testing.compare_arrays import check_values
from polyopt.testing.ops_inputs import dtypes_of, host_dtype, specials


def cases() -> Iterator[Case]:
    """Yield a case for each check of the backend's own methods."""
    for function in (
        identity,
        round_trip,
        own_memory,
        assignment,
        devices,
        unknown_names,
        *function_checks.CHECKS,
        *whole_checks.CHECKS,
    ):
        yield Case("backend", function.__name__, function)


def identity(context: Context) -> str:
    """Name, API version, hash by identity, versions, and what is an array."""
    backend = context.backend
    assert isinstance(backend.name, str) and backend.name, "name must be a non-empty string"  # noqa: PT018
    assert backend.api_version == API_VERSION, f"api_version {backend.api_version}; expected {API_VERSION}"
    assert {backend: 1}[backend] == 1, "a backend must be usable as a key"
    x = backend.from_numpy(np.zeros((2,)))
    assert backend.is_array(x), f"is_array(from_numpy(...)) is false for {type(x).__name__}"
    assert not backend.is_traced(x), "is_traced of an array with a value must be false"
    for other in (1.0, [1.0], None, "x"):
        assert not backend.is_array(other), f"is_array({other!r}) must be false"
    found = backend.versions()
    assert found, "versions() is empty"
    return ", ".join(f"{k} {v}" for k, v in found.items())


def round_trip(context: Context) -> str:
    """from_numpy and to_numpy keep every bit, dtype and shape; ``dtype=`` casts."""
    backend = context.backend
    kinds = dtypes_of(backend, DTYPES)
    for d in kinds:
        for shape in ((), (0, 3), (-1,)):
            values = specials(d)
            x = (
                values.reshape(shape)
                if shape == (-1,)
                else np.resize(values[2:], shape).astype(host_dtype(d))
            )
            array = backend.from_numpy(x)
            assert backend.dtype_name(array) == d, f"from_numpy({d}) has dtype {backend.dtype_name(array)}"
            back = np.asarray(backend.to_numpy(array))
            assert back.dtype == x.dtype and back.shape == x.shape, (  # noqa: PT018
                f"to_numpy(from_numpy({d}{list(x.shape)})) is {back.dtype}{list(back.shape)}"
            )
            check_values(f"to_numpy(from_numpy({d}))", back, x, dtype=d)
        one = backend.from_numpy(np.ones((2,)), dtype=d)
        assert backend.dtype_name(one) == d, f"from_numpy(dtype={d!r}) has dtype {backend.dtype_name(one)}"
    # Views with negative strides and of other byte orders are what users have.
    x = np.arange(6.0)[::-1]
    check_values(
        "from_numpy(reversed view)", np.asarray(backend.to_numpy(backend.from_numpy(x))), x, dtype="float64"
    )
    return ", ".join(kinds)


def own_memory(context: Context) -> None:
    """from_numpy gives a new array: writing to the host array later changes nothing."""
    backend = context.backend
    for d in dtypes_of(backend, DTYPES):
        x = np.zeros((64,), dtype=host_dtype(d))
        array = backend.from_numpy(x)
        x[...] = 1
        got = np.asarray(backend.to_numpy(array)).astype(np.float64)
        assert not got.any(), f"from_numpy({d}) shares memory with the host array"


def assignment(context: Context) -> None:
    """Check that assign gives the value, in place or not, in the target's dtype."""
    backend = context.backend
    for d in dtypes_of(backend, ("float32", "float64", "bfloat16", "float16")):
        target = backend.from_numpy(np.zeros((3,), dtype=host_dtype(d)))
        value = backend.from_numpy(np.arange(3.0).astype(host_dtype(d)))
        out = backend.assign(target, value)
        assert backend.dtype_name(out) == d, f"assign gave {backend.dtype_name(out)}; expected {d}"
        check_values(
            "assign", np.asarray(backend.to_numpy(out)), np.arange(3.0).astype(host_dtype(d)), dtype=d
        )


def devices(context: Context) -> str:
    """Check that the CPU comes first, and that an array goes to every device and comes back with its bits."""
    backend = context.backend
    found = backend.devices()
    assert found and found[0] == "cpu", f"devices() = {found}; 'cpu' comes first"  # noqa: PT018
    x = np.arange(4.0)
    for name in found:
        for array in (backend.from_numpy(x, device=name), backend.to_device(backend.from_numpy(x), name)):
            at = backend.device_name(array)
            assert at == name, f"device_name is {at!r} on device {name!r}"
            check_values(f"array on {name}", np.asarray(backend.to_numpy(array)), x, dtype="float64")
        backend.synchronize(array)
    backend.synchronize()
    backend.device(None)
    return ", ".join(found)


def unknown_names(context: Context) -> None:
    """Check that a dtype or device that is not there is an InputError that quotes it, on one line."""
    backend = context.backend
    for what, call in (
        ("dtype 'float63'", lambda: backend.dtype("float63")),
        ("device 'gpu:77'", lambda: backend.device("gpu:77")),
        ("device 'toaster'", lambda: backend.from_numpy(np.zeros(1), device="toaster")),
        ("from_numpy(dtype='float63')", lambda: backend.from_numpy(np.zeros(1), dtype="float63")),
    ):
        _refused(what, call)


def _refused(what: str, call: Callable[[], Any]) -> None:
    name, message = what.split("'")[1], ""
    try:
        call()
    except InputError as e:
        message = str(e)
    assert message, f"{what} was accepted; expected an InputError"
    assert name in message, f"{what}: the error does not name it: {message}"
    assert "\n" not in message, f"{what}: the error has more than one line"
