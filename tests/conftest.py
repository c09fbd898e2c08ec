"""Fixtures: every test that takes ``backend`` runs on each of the four."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import pytest

from polyopt.backend import registry
from polyopt.backend.protocol import Backend
from polyopt.core.errors import BackendError

ALL = ("numpy", "torch", "tensorflow", "jax")
REQUIRED = os.environ.get("POLYOPT_REQUIRED_BACKENDS", ",".join(ALL)).split(",")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark cases as ``full`` by their ids, before pytest selects by marks."""
    for item in items:
        mark, case = item.get_closest_marker("full_for"), getattr(item, "callspec", None)
        if mark is not None and case is not None and any(part in case.id for part in mark.args):
            item.add_marker("full")


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heard() -> None:
    """Also where the suite runs in the background of a shell, which has it ignore SIGINT."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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


ENOUGH = 2 << 30
"""Bytes of a process, from which on compiled programs are let go at the end of a module. They are some 2.5 MB
each, there are thousands, and no module runs those of another; the frameworks alone are 1 GB."""


@pytest.fixture(scope="module", autouse=True)
def _compiled_programs_are_let_go() -> Iterator[None]:
    yield
    if "jax" in sys.modules and _resident() > ENOUGH:
        sys.modules["jax"].clear_caches()
        gc.collect()
        # glibc keeps what is freed otherwise.
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)


def _resident() -> int:
    """Bytes in memory; 0 where Linux' accounts are missing."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


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
