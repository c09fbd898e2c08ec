"""Named arrays and a text in a safetensors file, read through the library; every failure is one error.

https://github.com/huggingface/safetensors#format. The library parses the header (of at most 100 MB) and
requires the tensors to cover the file without gap or overlap. Of a name that stands twice it takes the last
entry; that is for the checksums to notice.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import safe_open

from polyopt.backend.host.buffers import ALIGNMENT, aligned
from polyopt.core.errors import CheckpointError, InputError
from polyopt.core.files import replacing, shown_path

MAX_NAME = 4096
DIGEST = hashlib.sha256().digest_size * 2
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
LABELS = {np.dtype(kind): label for label, kind in _DTYPES.items()}


@dataclass(frozen=True)
class Source:
    """An array that is to be written: ``host()`` gives it, C-contiguous and little-endian, on the host."""

    dtype: Any
    shape: tuple[int, ...]
    host: Callable[[], Any]


def write(
    path: str | os.PathLike[str], tensors: Mapping[str, Source], text: Callable[[Mapping[str, str]], str]
) -> None:
    """Replace ``path``, as a whole, by a file of arrays and ``text(SHA-256 of each, in hexadecimal)``.

    Each array is on the host only while it is written.
    """
    for name in tensors:
        if len(name) > MAX_NAME or name == "__metadata__":
            raise InputError(f"checkpoint: an array can't have the name {name[:80]!r}")
    # By ourselves: the library's save_file has a temporary file of its own, which a kill would leave beside
    # ours, and its serialize takes the tensors' memory once more. Equal checkpoints are equal files.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    digests = dict.fromkeys(order, "0" * DIGEST)
    head = _head(tensors, order, text(digests))
    with replacing(path, error=CheckpointError) as temporary, open(temporary, "wb") as file:
        file.write(head)  # takes the place of the one with the digests, which is as long
        for name in order:
            data = as_bytes(tensors[name].host())
            digests[name] = hashlib.sha256(data).hexdigest()
            file.write(data)
            del data  # before the next one is fetched
        file.seek(0)
        file.write(_head(tensors, order, text(digests)))


def _head(tensors: Mapping[str, Source], order: list[str], text: str) -> bytes:
    """Return what stands before the arrays: its length, and as JSON the text and each array's place."""
    header: dict[str, Any] = {"__metadata__": {"polyopt": text}}
    start = 0
    for name in order:
        x = tensors[name]
        place = [start, start := start + math.prod(x.shape) * x.dtype.itemsize]
        header[name] = {"dtype": LABELS[x.dtype], "shape": list(x.shape), "data_offsets": place}
    try:
        head = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as e:
        raise InputError(f"checkpoint: a name is not Unicode text: {e.object[:80]!r}") from None
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], str]:
    """Return ``(tensors, text)`` of a file; ``""`` where ``write`` wrote no text.

    Each tensor is a new host array in memory that any framework can take over without a copy. Raises
    ``CheckpointError``.
    """
    file = Path(path)
    try:
        while True:
            if not stat.S_ISREG(file.stat().st_mode):  # to open a pipe is to wait for its other end
                raise CheckpointError("not a file")
            with file.open("rb", buffering=0) as held:
                metadata, layout = _layout(file)
                # The library opens it by itself: another process may have saved in between.
                if os.path.samestat(os.fstat(held.fileno()), file.stat()):
                    return _tensors(held, layout), metadata.get("polyopt", "")
    except OSError as e:
        raise CheckpointError(
            f"{shown_path(path)}: can't read this checkpoint: {(e.strerror or str(e)).lower()}"
        ) from None
    except MemoryError:
        raise CheckpointError(f"{shown_path(path)}: can't read this checkpoint: not enough memory") from None
    except Exception as e:  # SafetensorError, or what NumPy raises over an absurd shape or a dtype it lacks
        reason = str(e)[:300].encode("unicode_escape").decode()
        raise CheckpointError(f"{shown_path(path)}: not a sound checkpoint: {reason}") from None


def _layout(file: Path) -> tuple[dict[str, str], dict[str, tuple[tuple[int, ...], Any]]]:
    """Return a file's metadata, and shape and dtype of each tensor, in the order in which they lie in it."""
    layout = {}
    # Not mapped: a process that cuts the file short meanwhile would end this one by a signal.
    with safe_open(file, framework="numpy", backend="pread") as f:
        for name in f.offset_keys():
            if len(name) > MAX_NAME:
                raise CheckpointError(f"a tensor's name is longer than {MAX_NAME} characters")
            part = f.get_slice(name)
            if part.get_dtype() not in _DTYPES:
                raise CheckpointError(
                    f"tensor {name!r}: dtype {part.get_dtype()}; expected one of {', '.join(_DTYPES)}"
                )
            layout[name] = tuple(part.get_shape()), np.dtype(_DTYPES[part.get_dtype()])
        return f.metadata() or {}, layout


def _tensors(file: FileIO, layout: dict[str, tuple[tuple[int, ...], Any]]) -> dict[str, Any]:
    """Read every tensor, one after the other, as they lie in the file."""
    file.seek(8 + int.from_bytes(file.read(8) or b"", "little"))
    tensors = {}
    for name, (shape, dtype) in layout.items():
        x = tensors[name] = aligned(shape, dtype, ALIGNMENT)
        rest = as_bytes(x)
        while rest:  # a system reads at most 2 GiB at once
            count = file.readinto(rest)
            if not count:
                raise CheckpointError("it ends too early")
            rest = rest[count:]
    return tensors


def as_bytes(x: Any) -> Any:
    """Return the memory of a contiguous array as a flat buffer of bytes."""
    flat: Any = x.reshape(-1).view(np.uint8)
    return memoryview(flat)
