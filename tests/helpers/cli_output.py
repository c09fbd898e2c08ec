"""What a command printed, for the tests of the command line."""

from __future__ import annotations

import json
from typing import Any

import pytest


def error(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error; nothing was printed on standard output."""
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert printed.out == ""
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("error: ")
    return lines[0]


def result(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The one JSON object on standard output: strictly JSON, so no NaN."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    found: dict[str, Any] = json.loads(capsys.readouterr().out, parse_constant=refuse)
    return found
