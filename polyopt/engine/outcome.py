"""Select between two trees by a traced flag, and write the outcome into the caller's arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polyopt.backend.evaluate import cast
from polyopt.backend.protocol import Backend
from polyopt.core.ops import Array


def select(backend: Backend, condition: Array, new: Any, old: Any) -> Any:
    """Return ``new`` where the traced ``condition`` holds, else ``old``: plain data of arrays."""
    if isinstance(new, Mapping):
        # A leaf without a gradient is counted from its first miss on: before it there is no count.
        return {key: select(backend, condition, value, old.get(key, 0)) for key, value in new.items()}
    if isinstance(new, list):
        return [select(backend, condition, n, o) for n, o in zip(new, old, strict=True)]
    if new is None or new is old:
        return new
    xp = backend.ops
    if not backend.is_array(new):
        new = xp.asarray(new)
    if not backend.is_array(old):
        old = xp.zeros_like(new) if old is None else xp.asarray(old)
    return xp.where(condition, new, cast(backend, old, backend.dtype_name(new)))


def write_back(backend: Backend, old: Any, new: Any) -> Any:
    """Write ``new`` into the arrays ``old`` where the framework can: plain data of arrays."""
    if isinstance(new, Mapping):
        return {key: write_back(backend, old[key], value) for key, value in new.items()}
    if isinstance(new, list):
        return [write_back(backend, o, n) for n, o in zip(new, old, strict=True)]
    if new is old or not (backend.is_array(old) and backend.is_array(new)):
        return new
    return backend.assign(old, new)
