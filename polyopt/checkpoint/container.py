"""Named arrays and a text in a safetensors file, read through the library; every failure is one error.

https://github.com/huggingface/safetensors#format. The library parses the header (of at most 100 MB) and
requires the tensors to cover the file without gap or overlap. Of a name that stands twice it takes the last
entry; that is for the checksums to notice.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import safe_open

from polyopt.core.errors import CheckpointError, InputError
from polyopt.core.files import write_atomic

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
LABELS = {np.dtype(kind): label for label, kind in _DTYPES.items()}


def write(path: str | os.PathLike[str], tensors: Mapping[str, Any], text: str) -> None:
    """Replace ``path``, as a whole, by a file of C-contiguous host arrays and a text."""
    for name in tensors:
        if len(name) > MAX_NAME or name == "__metadata__":
            raise InputError(f"checkpoint: an array can't have the name {name[:80]!r}")
    # By ourselves: the library's save_file has a temporary file of its own, which a kill would leave beside
    # ours, and its serialize takes the tensors' memory once more. Equal checkpoints are equal files.
    header: dict[str, Any] = {"__metadata__": {"polyopt": text}}
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    start = 0
    for name in order:
        x = tensors[name]
        place = [start, start := start + x.nbytes]
        header[name] = {"dtype": LABELS[x.dtype], "shape": list(x.shape), "data_offsets": place}
    try:
        head = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as e:
        raise InputError(f"checkpoint: a name is not Unicode text: {e.object[:80]!r}") from None
    head += b" " * (-len(head) % 8)
    chunks = [len(head).to_bytes(8, "little"), head, *(as_bytes(tensors[name]) for name in order)]
    write_atomic(path, chunks, error=CheckpointError)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], str]:
    """Return ``(tensors, text)`` of a file, each tensor a host array; ``""`` where there is no text.

    Raises ``CheckpointError``.
    """
    file = Path(path)
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # to open a pipe is to wait for its other end
            raise CheckpointError("not a file")
        # Not mapped: a process that cuts the file short meanwhile would end this one by a signal.
        with safe_open(file, framework="numpy", backend="pread") as f:
            metadata, tensors = f.metadata() or {}, f.get_tensors()
        for name, x in tensors.items():
            if len(name) > MAX_NAME:
                raise CheckpointError(f"a tensor's name is longer than {MAX_NAME} characters")
            if x.dtype not in LABELS:
                raise CheckpointError(
                    f"tensor {name!r}: dtype {x.dtype}; expected one of {', '.join(_DTYPES)}"
                )
    except OSError as e:
        raise CheckpointError(
            f"{file}: can't read this checkpoint: {(e.strerror or str(e)).lower()}"
        ) from None
    except MemoryError:
        raise CheckpointError(f"{file}: can't read this checkpoint: not enough memory") from None
    except Exception as e:  # SafetensorError, or what NumPy raises over an absurd shape or a dtype it lacks
        reason = str(e)[:300].encode("unicode_escape").decode()
        raise CheckpointError(f"{file}: not a sound checkpoint: {reason}") from None
    return tensors, metadata.get("polyopt", "")


def as_bytes(x: Any) -> Any:
    """View the memory of a contiguous array as a flat buffer of bytes."""
    flat: Any = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
    return memoryview(flat)
