"""What holds for tests and doctests: which are left out, and that nothing is compiled twice."""

from __future__ import annotations

import os
from importlib.util import find_spec
from tempfile import TemporaryDirectory

import pytest

REQUIRED = os.environ.get("POLYOPT_REQUIRED_BACKENDS", "numpy,torch,tensorflow,jax").split(",")

collect_ignore = [
    f"backends/polyopt_{name}"
    for name in ("torch", "tensorflow", "jax")
    if name not in REQUIRED and find_spec(name) is None
]
"""Doctests of a backend whose framework is neither installed nor required."""


def pytest_configure(config: pytest.Config) -> None:
    """Share what XLA compiles among the suite's processes, for as long as the suite runs."""
    if hasattr(config, "workerinput") or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = TemporaryDirectory(prefix="polyopt-xla-")
    config.add_cleanup(folder.cleanup)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
    for least in ("MIN_COMPILE_TIME_SECS", "MIN_ENTRY_SIZE_BYTES"):
        os.environ[f"JAX_PERSISTENT_CACHE_{least}"] = "0"
