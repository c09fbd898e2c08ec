"""Files written whole or not at all, and read within bounds."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from polyopt.core.errors import InputError, PolyoptError

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    _LOCKS = False
else:
    _LOCKS = True


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, error: type[PolyoptError] = InputError) -> Iterator[str]:
    """Give a temporary file's path to write to; it takes the place of ``path`` where the block ends well.

    It lies in the same directory, is fsynced and renamed; the directory is fsynced too, so that the rename
    survives a power cut. A missing directory is made. A symbolic link is written through: its target is what
    is replaced. An existing file keeps its permissions and its group (and its owner, where the superuser
    writes); one that is read-only, or no file (a device, a pipe), is refused. What killed processes left
    beside it is removed.

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
        target = _target(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target)
        held = _new_file(target)
    except (OSError, ValueError) as e:  # ValueError: a NUL, or what is no Unicode, in the path
        raise error(f"can't write {shown_path(path)}: {_reason(e)}") from None
    except TypeError:
        raise error(f"can't write to {type(path).__name__}; expected a path") from None
    temporary = held.name
    try:
        yield temporary
        os.fsync(held.fileno())
        if not _LOCKS:
            held.close()  # Windows renames no file that is open
        os.replace(temporary, target)
    except BaseException as e:
        if not _LOCKS:
            held.close()
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(e, OSError):
            raise error(
                f"can't write {shown_path(path)}: {_reason(e)}; what was there before is intact"
            ) from None
        raise
    finally:
        held.close()
    _sync_directory(target.parent)


def shown_path(path: Any) -> str:
    r"""Return a path as it stands in errors: of one line and a readable length.

    >>> shown_path("run/state"), shown_path("a\nb"), len(shown_path("x" * 5000))
    ('run/state', "'a\\nb'", 201)
    """
    text = str(path)
    text = text if text and text.isprintable() else repr(text)
    return text if len(text) <= 201 else f"{text[:100]}…{text[-100:]}"


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Remove the temporary files of processes that were killed while they wrote ``path``.

    Each is locked by the process that writes it, for as long as it lives; so neither a number that the system
    gave to a new process nor a process on another machine that shares the folder deceives. Where a folder
    can't be read or changed, nothing happens.
    """
    target = Path(os.path.realpath(os.fsdecode(path)))
    pattern = re.compile(re.escape(_stem(target)) + r"[0-9a-f]{16}\.tmp")
    with contextlib.suppress(OSError):
        for name in os.listdir(target.parent):
            if pattern.fullmatch(name):
                with contextlib.suppress(OSError):
                    _remove_unless_held(target.parent / name)


def _remove_unless_held(file: Path) -> None:
    """Remove a temporary file that no living process has locked."""
    if not _LOCKS:
        file.unlink()  # Windows removes no file that is open
        return
    handle = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.unlink()
    finally:
        os.close(handle)


def _target(path: str | os.PathLike[str]) -> Path:
    """Return the file that is to be replaced: the end of all links, and one that may be written to."""
    name = os.fsdecode(path)
    if not name:
        raise FileNotFoundError(errno.ENOENT, "the path is empty")
    target = Path(os.path.realpath(name))
    try:
        found = target.lstat()
    except FileNotFoundError:
        return target
    if stat.S_ISLNK(found.st_mode):
        raise OSError(errno.ELOOP, "its links lead in a circle")
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a directory")
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    # The superuser may write to any file, but one that nobody is to write to is not to be replaced.
    if not found.st_mode & 0o222 or not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, "it is read-only")
    return target


def _new_file(target: Path) -> BinaryIO:
    """Open an empty file beside ``target``, locked, with its permissions or those that a new file gets."""
    try:
        old = target.stat()
    except FileNotFoundError:
        old = None
    mode = 0o666 if old is None else stat.S_IMODE(old.st_mode) & 0o777
    while True:
        temporary = f"{target.parent}/{_stem(target)}{secrets.token_hex(8)}.tmp"
        # The system applies the process' umask, which can't be read without being set: it need not be known.
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0), mode)
        held = open(temporary, "rb+", opener=lambda *_, handle=handle: handle)  # noqa: SIM115
        if _lock(held):
            break
        held.close()  # somebody took it for a leftover in the moment before it was locked
    if old is not None:
        with contextlib.suppress(OSError):  # a group that this user is not in, a file system without owners
            if (old.st_uid, old.st_gid) != (os.fstat(handle).st_uid, os.fstat(handle).st_gid):
                os.chown(temporary, old.st_uid if os.geteuid() == 0 else -1, old.st_gid)
        with contextlib.suppress(OSError):
            os.chmod(temporary, mode)
    return held


def _lock(held: BinaryIO) -> bool:
    """Lock a new file; return False if it was removed meanwhile."""
    if not _LOCKS:
        return True
    try:
        fcntl.flock(held.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: then nobody can lock it to remove it, either
        return True
    return os.fstat(held.fileno()).st_nlink > 0


def _stem(target: Path) -> str:
    """Return how the names of the temporary files of ``target`` begin.

    >>> _stem(Path("run/checkpoint.safetensors"))
    '.checkpoint.safetensors.'
    """
    # A name may have 255 bytes.
    long = len(os.fsencode(target.name)) > 200
    return f".{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:32] if long else target.name}."


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
    """Return the bytes of the regular file ``path``, of at most ``limit``; errors say ``what`` it is."""
    target, shown = Path(path), shown_path(path)
    try:
        if not stat.S_ISREG(target.stat().st_mode):
            raise error(f"{shown}: expected a {what}, found something that is not a file")
        with target.open("rb") as file:
            data = file.read(limit + 1)
    except (OSError, ValueError) as e:  # ValueError: a NUL in the path
        if isinstance(e, error):
            raise
        raise error(f"{shown}: can't read this {what}: {_reason(e)}") from None
    if len(data) > limit:
        raise error(f"{shown}: larger than a {what} may be ({limit} bytes)")
    return data


def _reason(e: OSError | ValueError) -> str:
    return (getattr(e, "strerror", None) or str(e)).lower()


def _sync_directory(directory: Path) -> None:
    # Some file systems and Windows can't open or sync a directory; the rename has been made all the same.
    with contextlib.suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
