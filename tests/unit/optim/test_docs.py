"""``docs/conventions.md`` says what the code does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from polyopt import AdamW
from polyopt.optim import OPTIMIZERS
from polyopt.optim.explain import explain

TEXT = (Path(__file__).parents[3] / "docs" / "conventions.md").read_text(encoding="utf-8")
CONVENTIONS = ("paper", "torch", "optax", "keras")


def _shown(value: Any) -> str:
    return f"`{value}`" if isinstance(value, str) else f"{value:g}"


def test_table_of_defaults() -> None:
    documented = set(re.findall(r"^\| \w+ `\w+` \|.*$", TEXT, re.MULTILINE))
    expected = set()
    for kind in OPTIMIZERS.values():
        for key in kind.CONVENTIONS["paper"]:
            cells = (_shown(kind.CONVENTIONS[c][key]) if c in kind.CONVENTIONS else "–" for c in CONVENTIONS)
            expected.add(f"| {kind.__name__} `{key}` | {' | '.join(cells)} |")
    assert documented == expected


def test_printed_example() -> None:
    blocks = re.findall(r"```text\n(.*?)\n```", TEXT, re.DOTALL)
    assert explain(AdamW(convention="keras", lr=3e-4)) in blocks
