"""Looking up backends: by name, by array, by default, in threads."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import EntryPoint

import numpy as np
import pytest

from polyopt.backend import registry
from polyopt.backend.protocol import Backend
from polyopt.core.errors import BackendError, InputError
from polyopt.core.install import pip_install


def test_by_name_and_by_array_give_the_same_object(backend: Backend) -> None:
    assert registry.by_name(backend.name) is backend
    assert registry.of(backend.from_numpy(np.ones(2))) is backend


def test_all_four_are_registered() -> None:
    assert {"numpy", "torch", "tensorflow", "jax"} <= set(registry.names())


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(BackendError, match=r"unknown backend 'troch'; did you mean 'torch'"):
        registry.by_name("troch")


def test_something_that_is_no_array_is_refused() -> None:
    with pytest.raises(InputError, match=r"builtins\.dict is not an array"):
        registry.of({})


def test_two_frameworks_in_one_call_are_refused(backends: list[Backend]) -> None:
    a, b = (x.from_numpy(np.ones(1)) for x in backends[:2])
    with pytest.raises(InputError, match="two frameworks"):
        registry.of(a, b)


def test_a_framework_that_is_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("torch", "no_such_module_anywhere:backend", "polyopt.backends")
    monkeypatch.setattr(registry, "_entries", lambda: {"torch": entry})
    monkeypatch.setattr(registry, "_by_name", {})
    with pytest.raises(BackendError, match=r'pip install "numba>=0.61" "torch>=2.6"'):
        registry.by_name("torch")
    assert registry.installed() == ()


def test_a_strangers_backend_names_what_its_package_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("theirs", "no_such_module_anywhere.backend:backend", "polyopt.backends")
    monkeypatch.setattr(registry, "_entries", lambda: {"theirs": entry})
    monkeypatch.setattr(registry, "_by_name", {})
    with pytest.raises(BackendError, match=r"needs .*: pip install no_such_module_anywhere$"):
        registry.by_name("theirs")


def test_every_remedy_is_a_command_without_an_index_of_our_own() -> None:
    for extra in ("torch", "tensorflow", "jax", "cli", "plot", "testing", "tune", "minilm", "flower", "none"):
        command = pip_install(extra)
        assert command.startswith("pip install ")
        assert "polyopt" not in command
    assert pip_install("none", package="no such package", otherwise="x") == "pip install x"


def test_a_backend_for_another_protocol_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        name, api_version = "old", 0

    monkeypatch.setattr(registry, "_entries", lambda: {"old": EntryPoint("old", f"{__name__}:OLD", "x")})
    monkeypatch.setattr(sys.modules[__name__], "OLD", Old(), raising=False)
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    with pytest.raises(BackendError, match="api_version 0"):
        registry.by_name("old")


def test_the_default_is_scoped_then_set_then_environment_then_numpy(
    monkeypatch: pytest.MonkeyPatch, backends: list[Backend]
) -> None:
    monkeypatch.delenv("POLYOPT_BACKEND", raising=False)
    assert registry.default().name == "numpy"
    monkeypatch.setenv("POLYOPT_BACKEND", "torch")
    assert registry.default().name == "torch"
    registry.set_backend("jax")
    try:
        assert registry.default().name == "jax"
        with registry.backend_context("tensorflow"):
            assert registry.default().name == "tensorflow"
            with registry.backend_context("numpy"):
                assert registry.default().name == "numpy"
            assert registry.default().name == "tensorflow"
        assert registry.default().name == "jax"
    finally:
        registry.set_backend(None)
    assert registry.default().name == "torch"


def test_a_failed_switch_changes_nothing() -> None:
    before = registry.default()
    with pytest.raises(BackendError):
        registry.set_backend("nope")
    with pytest.raises(BackendError), registry.backend_context("nope"):
        raise AssertionError("not reached")
    assert registry.default() is before


def test_the_context_is_a_threads_own(backends: list[Backend]) -> None:
    def inside(name: str) -> list[str]:
        seen = []
        for _ in range(50):
            with registry.backend_context(name):
                seen.append(registry.default().name)
        return seen

    names = [b.name for b in backends]
    with ThreadPoolExecutor(4) as pool:
        for name, seen in zip(names, pool.map(inside, names), strict=True):
            assert set(seen) == {name}


def test_looking_up_an_ndarray_imports_no_framework() -> None:
    code = (
        "import sys, numpy, polyopt.backend.registry as r; assert r.of(numpy.ones(1)).name == 'numpy'; "
        "print([m for m in ('torch', 'tensorflow', 'jax', 'keras', 'autograd') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
