"""Say how to install what is missing, by a command that works wherever the package itself came from."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires


def pip_install(extra: str, *, package: str = "polyopt", otherwise: str = "") -> str:
    """Return the command that installs what an extra of an installed package needs.

    It names the requirements, not ``package[extra]``: a package that was installed from a folder or a
    repository need not be on an index.

    Parameters
    ----------
    extra
        Name of the extra.
    package
        The package whose extra it is.
    otherwise
        What to install where the package has no such extra.

    Returns
    -------
    str
        ``pip install "…" "…"``, to be pasted into a shell.

    Examples
    --------
    >>> pip_install("none of ours", otherwise="optax")
    'pip install optax'
    """
    try:
        found = requires(package) or []
    except PackageNotFoundError:
        found = []
    this = re.compile(rf"extra\s*==\s*['\"]{re.escape(extra)}['\"]")
    wanted = [line.split(";")[0].strip() for line in found if this.search(line.partition(";")[2])]
    wanted = wanted or [otherwise or extra]
    return "pip install " + " ".join(x if re.fullmatch(r"[\w.-]+", x) else f'"{x}"' for x in wanted)
