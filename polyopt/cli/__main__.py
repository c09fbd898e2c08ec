"""``python -m polyopt.cli``: the command, for a Python whose scripts are not on the path."""

from __future__ import annotations

from polyopt.cli import main

if __name__ == "__main__":
    main()
