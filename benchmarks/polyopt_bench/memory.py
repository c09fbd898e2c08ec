"""Read this process' memory, now and at its peak, as Linux counts it; elsewhere the peak alone."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def resident() -> int:
    """Bytes of memory that this process holds now (its peak, where the system doesn't say)."""
    return _status("VmRSS") or _largest()


def peak() -> int:
    """Return the most bytes that it has held, since ``forget_peak`` where that works."""
    return _status("VmHWM") or _largest()


def forget_peak() -> bool:
    """Give freed memory back to the system and start counting the peak anew; whether that was possible."""
    gc.collect()
    if not STATUS.exists():
        return False
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # else glibc keeps what it may need again
    try:
        Path("/proc/self/clear_refs").write_text("5", "ascii")
    except OSError:
        return False
    return True


def _status(key: str) -> int:
    try:
        lines = STATUS.read_text("ascii").splitlines()
    except OSError:
        return 0
    found = next((line for line in lines if line.startswith(f"{key}:")), "x: 0 kB")
    return 1024 * int(found.split()[1])


def _largest() -> int:
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
