"""Files written whole or not at all, and read within bounds."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from polyopt.core.errors import InputError, PolyoptError


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, error: type[PolyoptError] = InputError) -> Iterator[str]:
    """A temporary file's path, to be written to: it takes the place of ``path`` where the block ends well.

    It lies in the same directory, is fsynced and renamed; the directory is fsynced too, so that the rename
    survives a power cut. A missing directory is made. Raises ``error`` with one line where that fails (a full
    disk, say) and for an ``OSError`` in the block: no temporary file is left, the old file is intact.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        os.close(handle)
    except OSError as e:
        raise error(f"can't write {target}: {_reason(e)}") from None
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        # mkstemp makes a private file; a run's files have the modes that any other file would get.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except BaseException as e:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(e, OSError):
            raise error(f"can't write {target}: {_reason(e)}; what was there before is intact") from None
        raise
    _sync_directory(target.parent)


def write_atomic(
    path: str | os.PathLike[str], chunks: Iterable[Any], *, error: type[PolyoptError] = InputError
) -> None:
    """Write ``chunks`` (bytes or buffers) to ``path``: all of them, or it keeps what it held before.

    See ``replacing``.
    """
    with replacing(path, error=error) as temporary, open(temporary, "wb") as file:
        for chunk in chunks:
            file.write(chunk)


def read_bounded(
    path: str | os.PathLike[str], limit: int, what: str, *, error: type[PolyoptError] = InputError
) -> bytes:
    """The bytes of the regular file ``path``, at most ``limit`` of them; ``what`` it is stands in errors."""
    target = Path(path)
    try:
        if not stat.S_ISREG(target.stat().st_mode):
            raise error(f"{target}: expected a {what}, found something that is not a file")
        with target.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as e:
        raise error(f"{target}: can't read this {what}: {_reason(e)}") from None
    except ValueError as e:  # a NUL in the path
        raise error(f"{str(path)!r}: can't read this {what}: {e}") from None
    if len(data) > limit:
        raise error(f"{target}: larger than a {what} may be ({limit} bytes)")
    return data


def _reason(e: OSError) -> str:
    return (e.strerror or str(e)).lower()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_directory(directory: Path) -> None:
    # Some file systems and Windows can't open or sync a directory; the rename has been made all the same.
    with contextlib.suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
