"""The ``polyopt`` command. Importing it loads neither typer nor a framework: each command does."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from polyopt.core.install import pip_install


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 bad input, 130 interrupted, 143 ended.

    Parameters
    ----------
    arguments
        The words after ``polyopt``; those of the process where none are given.
    """
    try:
        import rich
        import typer
    except ModuleNotFoundError as e:
        print(f"error: the command line needs {e.name}: {pip_install('cli')}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    del rich, typer
    from polyopt.cli.app import run

    raise SystemExit(run(arguments))
