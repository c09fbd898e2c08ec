"""Describe the machine: processor, cores, memory, system, and the versions of everything."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "polyopt",
    "numpy",
    "numba",
    "torch",
    "jax",
    "jaxlib",
    "optax",
    "tensorflow",
    "tensorflow-cpu",
    "keras",
)


def cores() -> int:
    """Count the processor's cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads() -> int:
    """Return how many threads everyone computes with: ``OMP_NUM_THREADS``, at most the usable cores."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return min(int(given), cores()) if given.isdigit() and int(given) > 0 else cores()


def confine() -> None:
    """Confine this process to as many cores as ``threads``, so that every framework has the same.

    XLA and TensorFlow don't follow ``OMP_NUM_THREADS``, but all follow the cores that they may use. To be
    called before any framework is imported.
    """
    count = threads()
    if count < cores() and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
    os.environ["OMP_NUM_THREADS"] = str(count)


def machine() -> dict[str, Any]:
    """Describe the machine as plain data."""
    return {
        "processor": _processor(),
        "architecture": platform.machine(),
        "cores": cores(),
        "threads": threads(),
        "memory_gib": round(_memory() / 2**30),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Return ``{package: version}`` of what is installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0
