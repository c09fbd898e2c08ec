"""Files that came with a package or an archive: they are what they are said to be, or they are not read."""

from __future__ import annotations

import hashlib
import os
from importlib.util import find_spec
from pathlib import Path

from polyopt.core.errors import BackendError, InputError
from polyopt.core.files import read_bounded


def package_folder(package: str, advice: str) -> Path:
    """Return where ``package`` is installed; it is not imported, so nothing of it runs.

    Raises ``BackendError`` with ``advice`` where it isn't.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise BackendError(f"the package {package!r} is not installed: {advice}")
    return Path(spec.origin).parent


def read_pinned(path: str | os.PathLike[str], sha256: str, limit: int, what: str) -> bytes:
    """Read the bytes of ``path``, at most ``limit`` of them, whose SHA-256 must be ``sha256``."""
    data = read_bounded(path, limit, what)
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise InputError(
            f"{path}: this {what} has the SHA-256 {found}; expected {sha256}: install it again, "
            "or use the version that it is pinned to"
        )
    return data
