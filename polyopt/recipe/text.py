"""Recipes as text: TOML and JSON, bounded in size and depth."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from polyopt.core.errors import InputError, nearest
from polyopt.core.files import read_bounded

MAX_BYTES = 256 << 10
MAX_DEPTH = 16
MAX_BITS = 4096
FORMATS = ("toml", "json")


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the table in a ``.toml`` or ``.json`` file."""
    suffix = Path(path).suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        raise InputError(
            f"{path}: a recipe is a .toml or .json file, found {Path(path).suffix or 'no suffix'!r}"
        )
    data = read_bounded(path, MAX_BYTES, "recipe")
    try:
        return parse(data.decode("utf-8-sig"), suffix)
    except UnicodeDecodeError as e:
        raise InputError(f"{path}: not UTF-8 at byte {e.start}; save it as UTF-8") from None
    except InputError as e:
        raise InputError(f"{path}: {e}") from None


def parse(text: str, format: str) -> dict[str, Any]:
    """Read the table in ``text``."""
    if format not in FORMATS:
        raise InputError(f"format = {format!r}; {nearest(str(format), FORMATS)}")
    if len(text) > MAX_BYTES:
        raise InputError(f"larger than a recipe may be ({MAX_BYTES} bytes)")
    try:
        table = tomllib.loads(text) if format == "toml" else json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise InputError("nested too deeply") from None
    except InputError:
        raise
    except ValueError as e:
        raise InputError(f"not valid {format.upper()}: {' '.join(str(e).split())}") from None
    check_plain(table)
    if not isinstance(table, dict):
        raise InputError(f"expected a table, found {type(table).__name__}")
    return table


def check_plain(value: Any, depth: int = 0, at: str = "recipe") -> None:
    """Refuse nesting without bound, keys that are no strings, strings that are no text, endless integers."""
    if depth > MAX_DEPTH:
        raise InputError(f"nested more than {MAX_DEPTH} deep")
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise InputError(f"the key {key!r}; expected a string")
            check_plain(key, depth, at)
            check_plain(item, depth + 1, f"{at}.{key}" if depth else key)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            check_plain(item, depth + 1, f"{at}.{i}")
    elif isinstance(value, int) and value.bit_length() > MAX_BITS:
        # Python itself refuses to print one of more than 4300 digits.
        raise InputError(f"{at}: an integer of {value.bit_length()} bits; expected at most {MAX_BITS}")
    elif isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InputError(f"{value!r} holds half a character (a lone surrogate)") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise InputError(f"{key}: this key stands twice in one table")
        table[key] = value
    return table


def to_toml(table: Mapping[str, Any]) -> str:
    """Return ``table`` as TOML 1.0, which ``parse`` reads back exactly.

    >>> print(to_toml({"name": "x", "train": {"epochs": 3}, "data": {"lr": {"schedule": "step"}}}))
    name = "x"
    <BLANKLINE>
    [train]
    epochs = 3
    <BLANKLINE>
    [data]
    lr = {schedule = "step"}
    <BLANKLINE>
    """
    return "\n".join(_lines(table))


def _lines(table: Mapping[str, Any]) -> Iterator[str]:
    nested = {k: v for k, v in table.items() if isinstance(v, Mapping) or _tables(v)}
    yield from (f"{_key(k)} = {_inline(v)}" for k, v in table.items() if k not in nested)
    for key, value in nested.items():
        many = not isinstance(value, Mapping)
        for entry in value if many else [value]:
            yield ""
            yield f"[[{_key(key)}]]" if many else f"[{_key(key)}]"
            yield from (f"{_key(k)} = {_inline(v)}" for k, v in entry.items())
    yield ""


def _tables(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(v, Mapping) for v in value)


def _inline(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_inline(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(k)} = {_inline(v)}" for k, v in value.items()) + "}"
    raise InputError(f"{value!r} has no form in TOML")


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _string(key)


def _string(text: str) -> str:
    body = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda m: f"\\u{ord(m.group()):04x}", body) + '"'
