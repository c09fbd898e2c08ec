"""Fixtures: every test that takes ``backend`` runs on each of the four."""

from __future__ import annotations

import os

import pytest

from polyopt import registry
from polyopt.backend import Backend
from polyopt.errors import BackendError

ALL = ("numpy", "torch", "tensorflow", "jax")
REQUIRED = os.environ.get("POLYOPT_REQUIRED_BACKENDS", ",".join(ALL)).split(",")


def load(name: str) -> Backend:
    """The backend, strict about promotion and able to do float64; absent, it fails where it is required."""
    try:
        backend = registry.by_name(name)
    except BackendError as e:
        if name in REQUIRED:
            pytest.fail(f"backend {name!r} is required here and is missing: {e}")
        pytest.skip(str(e))
    backend.enable_float64()
    if name == "jax":
        import jax

        jax.config.update("jax_numpy_dtype_promotion", "strict")
    return backend


@pytest.fixture(params=ALL)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each of the four backends in turn."""
    return load(request.param)


@pytest.fixture
def backends() -> list[Backend]:
    """All four, NumPy first."""
    return [load(name) for name in ALL]
