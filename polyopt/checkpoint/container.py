"""The safetensors container, written in a stream and read with nothing taken on trust.

https://github.com/huggingface/safetensors#format: the length of the header (8 bytes, little endian), the
header in JSON, ``{name: {"dtype", "shape", "data_offsets"}, "__metadata__": {str: str}}``, and the bytes of
the tensors. Any safetensors reader can open what is written here.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from polyopt.errors import CheckpointError

MAX_HEADER = 64 << 20
"""Bytes: room for some 300,000 tensors."""

MAX_DIMENSIONS = 32
MAX_NAME = 4096
_DTYPES: dict[str, Any] = {
    "BF16": ml_dtypes.bfloat16,
    "BOOL": np.bool_,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
    "I8": np.int8,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
    "U8": np.uint8,
    "U32": np.uint32,
}
DTYPES = {label: np.dtype(kind) for label, kind in _DTYPES.items()}
LABELS = {dtype: label for label, dtype in DTYPES.items()}


def pack(tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> Iterator[Any]:
    """The chunks of a file that holds ``tensors``: C-contiguous little-endian host arrays."""
    # Wide elements first, as the safetensors library does it: then every tensor is aligned.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        x = tensors[name]
        start, end = end, end + x.nbytes
        header[name] = {"dtype": LABELS[x.dtype], "shape": list(x.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text
    for name in order:
        yield as_bytes(tensors[name])


def as_bytes(x: Any) -> Any:
    """The memory of a contiguous array as a flat buffer of bytes."""
    flat: Any = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
    return memoryview(flat)


def unpack(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """``(tensors, metadata)`` of a file, each tensor a new host array.

    Memory is bounded by the size of the file, which the header must describe byte for byte. Raises
    :class:`~polyopt.errors.CheckpointError`.
    """
    file = Path(path)
    try:
        info = file.stat()
        if not stat.S_ISREG(info.st_mode):
            raise CheckpointError(f"{file}: not a file")
        with file.open("rb") as stream:
            header, start = _header(stream, info.st_size)
            metadata = _metadata(header.pop("__metadata__", {}))
            entries = _entries(header, info.st_size - start)
            tensors = {}
            for name, (dtype, shape, begin, end) in entries.items():
                stream.seek(start + begin)
                data = stream.read(end - begin)
                if len(data) != end - begin:
                    raise CheckpointError("the file changed while it was read")
                tensors[name] = np.frombuffer(bytearray(data), dtype).reshape(shape)
    except CheckpointError as e:
        raise CheckpointError(f"{file}: not a sound checkpoint: {e}") from None
    except OSError as e:
        raise CheckpointError(
            f"{file}: can't read this checkpoint: {(e.strerror or str(e)).lower()}"
        ) from None
    except ValueError as e:
        raise CheckpointError(f"{str(path)!r}: not a sound checkpoint: {e}") from None
    return tensors, metadata


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


def _header(stream: Any, size: int) -> tuple[dict[str, Any], int]:
    if size < 10:
        raise CheckpointError(f"{size} bytes are too few for a safetensors file")
    length = int.from_bytes(stream.read(8), "little")
    if length > min(size - 8, MAX_HEADER):
        raise CheckpointError(
            f"its header claims {length} bytes; at most {min(size - 8, MAX_HEADER)} are possible "
            "(a truncated file, or no safetensors file at all)"
        )
    try:
        text = stream.read(length).decode("utf-8")
    except UnicodeDecodeError:
        raise CheckpointError("its header is not UTF-8") from None
    header = parse_json(text, "its header")
    if not isinstance(header, dict):
        raise CheckpointError("its header is not a JSON object")
    return header, 8 + length


def _metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise CheckpointError("__metadata__ is not a table of strings")
    return value


def _entries(header: dict[str, Any], size: int) -> dict[str, tuple[Any, tuple[int, ...], int, int]]:
    """``{name: (dtype, shape, begin, end)}``, which must cover ``size`` bytes without gap or overlap."""
    entries = {name: _entry(name, value) for name, value in header.items()}
    position = 0
    for name, (_, _, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != position:
            raise CheckpointError(f"tensor {name!r} starts at byte {begin}; expected {position}")
        position = end
    if position != size:
        raise CheckpointError(f"its tensors take {position} bytes; the file holds {size}")
    return entries


def _entry(name: str, value: Any) -> tuple[Any, tuple[int, ...], int, int]:
    if len(name) > MAX_NAME:
        raise CheckpointError(f"a tensor's name is longer than {MAX_NAME} characters")
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"tensor {name!r}: expected dtype, shape and data_offsets")
    label, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(label, str) or label not in DTYPES:
        raise CheckpointError(
            f"tensor {name!r}: dtype {str(label)[:40]!r}; expected one of {', '.join(DTYPES)}"
        )
    if not _sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise CheckpointError(f"tensor {name!r}: its shape is not a list of at most {MAX_DIMENSIONS} sizes")
    if not _sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(f"tensor {name!r}: its data_offsets are not two positions")
    begin, end = offsets
    dtype = DTYPES[label]
    # An empty tensor may not claim absurd sizes either: NumPy could not make its shape.
    if end - begin != math.prod(shape) * dtype.itemsize or max(shape, default=0) >= 1 << 48:
        raise CheckpointError(f"tensor {name!r}: {end - begin} bytes do not make its shape {str(shape)[:80]}")
    return dtype, tuple(shape), begin, end


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(x) is int and 0 <= x < 1 << 62 for x in value)
