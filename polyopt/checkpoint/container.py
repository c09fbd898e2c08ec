"""Named arrays and a text in a safetensors file, through the library; every failure is one error.

https://github.com/huggingface/safetensors#format. The library parses the header (of at most 100 MB) and
requires the tensors to cover the file without gap or overlap. Of a name that stands twice it takes the last
entry; that is for the checksums to notice.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from polyopt.core.errors import CheckpointError, InputError
from polyopt.core.files import replacing

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
    with replacing(path, error=CheckpointError) as temporary:
        try:
            # To a file: serialize() would take twice the tensors' memory. One entry of metadata: the library
            # writes several in an order of chance, and equal checkpoints shall be equal files.
            save_file(dict(tensors), temporary, metadata={"polyopt": text})
        except SafetensorError as e:
            raise OSError(str(e)) from None
        except UnicodeEncodeError as e:
            raise InputError(f"checkpoint: the name {e.object!r} is not Unicode text") from None


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], str]:
    """``(tensors, text)`` of a file, each tensor a new host array; ``""`` where ``write`` wrote no text.

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
    """The memory of a contiguous array as a flat buffer of bytes."""
    flat: Any = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
    return memoryview(flat)
