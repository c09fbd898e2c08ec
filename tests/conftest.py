"""Fixtures: every test that takes ``backend`` runs on each of the four."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import pytest

from polyopt import registry
from polyopt.backend import Backend
from polyopt.errors import BackendError

ALL = ("numpy", "torch", "tensorflow", "jax")
REQUIRED = os.environ.get("POLYOPT_REQUIRED_BACKENDS", ",".join(ALL)).split(",")


def load(name: str) -> Backend:
    """The backend, able to do float64; absent, it fails where it is required."""
    try:
        backend = registry.by_name(name)
    except BackendError as e:
        if name in REQUIRED:
            pytest.fail(f"backend {name!r} is required here and is missing: {e}")
        pytest.skip(str(e))
    backend.enable_float64()
    return backend


def strict(backend: Backend) -> AbstractContextManager[None]:
    """Implicit promotion between dtypes is an error, where the framework can be told so.

    Only around our own code: optax relies on promotion.
    """
    if backend.name != "jax":
        return nullcontext()
    import jax

    context: AbstractContextManager[None] = jax.numpy_dtype_promotion("strict")
    return context


@pytest.fixture(params=ALL)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each of the four backends in turn."""
    backend = load(request.param)
    with strict(backend):
        yield backend


@pytest.fixture
def backends() -> Iterator[list[Backend]]:
    """All four, NumPy first."""
    found = [load(name) for name in ALL]
    with strict(found[-1]):
        yield found
