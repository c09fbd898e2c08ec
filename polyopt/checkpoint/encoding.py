"""Plain data to JSON and back, exactly: integers of any size, floats to the last bit, arrays by reference."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from polyopt.core.errors import CheckpointError, InputError

MAX_DEPTH = 32


def encode(value: Any, path: tuple[str, ...], store: Callable[[str, Any], None]) -> Any:
    """Return ``value`` as JSON; ``store(key, array)`` is called for every array in it.

    A dict is ``{"dict": …}``, a list ``{"list": …}``, a tuple ``{"tuple": …}``, an array ``{"tensor": key}``
    and a float that is not finite ``{"float": "nan"}``, so that nothing can be taken for something else.
    """
    where = ".".join(path)
    if len(path) > MAX_DEPTH:
        raise InputError(f"checkpoint: {where} is nested more than {MAX_DEPTH} deep")
    if value is None or isinstance(value, bool | str) or type(value) is int:
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": repr(float(value))}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise InputError(f"checkpoint: {where} has the key {key!r}; expected a string")
        return {"dict": {key: encode(x, (*path, key), store) for key, x in value.items()}}
    if isinstance(value, list | tuple):
        items = [encode(x, (*path, str(i)), store) for i, x in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    key = "/".join(path)
    store(key, value)
    return {"tensor": key}


def decode(value: Any, fetch: Callable[[str], Any], depth: int = 0) -> Any:
    """Return what ``encode`` was given; ``fetch(key)`` gives the arrays."""
    if depth > MAX_DEPTH + 1:
        raise CheckpointError(f"its header is nested more than {MAX_DEPTH} deep")
    if value is None or isinstance(value, bool | str | int | float):
        return value
    if not isinstance(value, dict) or len(value) != 1:
        raise CheckpointError("its header holds a value of no known kind")
    ((kind, content),) = value.items()
    if kind == "dict" and isinstance(content, dict):
        return {key: decode(x, fetch, depth + 1) for key, x in content.items()}
    if kind in ("list", "tuple") and isinstance(content, list):
        items = [decode(x, fetch, depth + 1) for x in content]
        return tuple(items) if kind == "tuple" else items
    if kind == "float" and content in ("nan", "inf", "-inf"):
        return float(content)
    if kind == "tensor" and isinstance(content, str):
        return fetch(content)
    raise CheckpointError(f"its header holds a value of the unknown kind {kind[:40]!r}")


def parse_json(text: str, what: str) -> Any:
    """JSON with neither repeated keys, constants beyond the standard, nor unbounded nesting."""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except CheckpointError:
        raise
    except RecursionError:
        raise CheckpointError(f"{what} is nested too deeply") from None
    except ValueError as e:
        raise CheckpointError(f"{what} is not JSON: {e}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise CheckpointError(f"key {twice[:80]!r} stands twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise CheckpointError(f"{name} is not a JSON number")
