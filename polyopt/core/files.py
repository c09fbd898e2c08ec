"""Files written whole or not at all, and read within bounds."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from polyopt.core.errors import InputError, PolyoptError


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, error: type[PolyoptError] = InputError) -> Iterator[str]:
    """Give a temporary file's path to write to; it takes the place of ``path`` where the block ends well.

    It lies in the same directory, is fsynced and renamed; the directory is fsynced too, so that the rename
    survives a power cut. A missing directory is made. A symbolic link is written through: its target is what
    is replaced. An existing file keeps its permissions, and one that may not be written to is refused. What
    killed processes left beside it is removed.

    Parameters
    ----------
    path
        The file to be replaced.
    error
        What is raised.

    Raises
    ------
    PolyoptError
        ``error``, with one line, where writing fails (a full disk, say) and for an ``OSError`` in the block:
        no temporary file is left, the old file is intact.
    """
    try:
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, "it is read-only")
        _remove_left_over(target)
        temporary = _new_file(target)
    except OSError as e:
        raise error(f"can't write {path}: {_reason(e)}") from None
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as e:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(e, OSError):
            raise error(f"can't write {path}: {_reason(e)}; what was there before is intact") from None
        raise
    _sync_directory(target.parent)


def _new_file(target: Path) -> str:
    """Make an empty file beside ``target``, with its permissions, or those that a new file gets."""
    while True:
        temporary = f"{target.parent}/.{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
        try:
            # The system applies the process' umask: it need not be known.
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            continue
        with contextlib.suppress(OSError):
            os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
        return temporary


def _remove_left_over(target: Path) -> None:
    """Remove temporary files of processes that are no more, which were killed while they wrote ``target``."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.(\d+)-[0-9a-f]{{8}}\.tmp")
    for name in os.listdir(target.parent):
        found = pattern.fullmatch(name)
        if found and not _runs(int(found[1])):
            with contextlib.suppress(OSError):
                os.unlink(target.parent / name)


def _runs(process: int) -> bool:
    """Return True if a process of that number runs here, or might."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


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
    """Read the regular file ``path``, at most ``limit`` bytes; ``what`` it is stands in errors."""
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


def _sync_directory(directory: Path) -> None:
    # Some file systems and Windows can't open or sync a directory; the rename has been made all the same.
    with contextlib.suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
