"""``polyopt compression``: what is measured, what is judged, and the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.cli_output import error, result

from polyopt.cli.app import run
from polyopt.cli.compression import measure
from polyopt.cli.compression.page import page, verdicts
from polyopt.recipe import Recipe

RECIPES = Path(__file__).parents[3] / "recipes"

SMALL = """
name = "{name}"
[data]
name = "digits"
[model]
name = "mlp"
hidden = [32]
[optimizer]
name = "adam"
lr = 0.01
[train]
steps = 8
batch_size = 64
"""
PHASES = {
    "digits_compress": """
[[phase]]
name = "turned"
data = {shift = "rotated"}
train = {steps = 2}
[[phase]]
name = "sparse"
prune = {sparsity = 0.8}
train = {steps = 2}
[[phase]]
name = "int8"
quantize = {}
""",
    "digits_int4": """
[[phase]]
name = "int4"
quantize = {bits = 4, group_size = 32}
""",
    "digits_student": """
[[phase]]
name = "student"
train = {steps = 2}
[phase.distil]
model = {name = "softmax"}
""",
}


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Short ones of the names that are measured; few weights and rounds for the times."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    for name, phases in PHASES.items():
        (folder / f"{name}.toml").write_text(SMALL.format(name=name) + phases)
    monkeypatch.setattr(measure, "SHAPES", ((64, 32), (128, 64)))
    monkeypatch.setattr(measure, "EVEN", (64, 32))
    monkeypatch.setattr(measure, "ROUNDS", 3)
    monkeypatch.setattr(measure, "STUDENTS", 2)
    monkeypatch.chdir(tmp_path)
    return folder


def arguments(*more: str) -> list[str]:
    parts = ["bits", "times", "schemes", "chains", "control", "students"]
    only = [word for part in parts for word in ("--only", part)]
    return [
        "compression",
        "--recipes",
        "recipes",
        "--results",
        "kept",
        "--out",
        "docs",
        "--seeds",
        "2",
        *only,
        *more,
    ]


def test_the_command(recipes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(arguments("--backend", "numpy", "--backend", "torch", "--json"))
    found = result(capsys)
    assert code == (0 if all(r["holds"] for r in found["requirements"]) else 1)
    assert len(found["requirements"]) == 7
    same = next(r for r in found["requirements"] if "same bits" in r["what"])
    assert same["holds"]
    assert same["found"] == "16 of 16 cases"
    text = (tmp_path / "docs/compression.md").read_text()
    for word in (
        "What must hold",
        "int4",
        "turned",
        "PyTorch",
        "np.partition",
        "compression.svg",
        "not pruned",
    ):
        assert word in text
    assert (tmp_path / "docs/compression.svg").read_text().startswith("<?xml")
    kept = json.loads((tmp_path / "kept/compression.json").read_text())
    assert set(kept) == {"bits", "times", "schemes", "chains", "control", "students", "machine", "versions"}

    (tmp_path / "docs/compression.md").unlink()
    assert run(arguments("--render", "--json")) == code
    assert (tmp_path / "docs/compression.md").read_text() == text


def test_what_it_refuses(recipes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more, message in (
        (["--only", "bit"], "did you mean 'bits'"),
        (["--seeds", "1"], "expected at least 2"),
        (["--backend", "nump"], "did you mean 'numpy'"),
        (["--recipes", "nowhere"], "no such folder"),
        (["--render"], "nothing was measured yet"),
    ):
        assert run(["compression", "--results", "kept", *more]) == 2
        assert message in error(capsys)


def chain(*accuracies: float) -> list[dict[str, Any]]:
    """A run whose phases had these accuracies in percent; the third prunes."""
    plain = {"bytes": 100, "seconds": 1.0, "sparsity": 0.0}
    return [
        plain | {"name": str(i), "kind": "prune" if i == 2 else "train", "test_accuracy": a / 100}
        for i, a in enumerate(accuracies)
    ]


def measured(**changes: Any) -> dict[str, Any]:
    """Everything just holds."""
    student = {"seed": 0, "teacher": 0.9, "taught": 0.71, "alone": 0.7, "bytes": 5, "teacher_bytes": 20}
    sound = {
        "machine": "some",
        "versions": {"polyopt": "1"},
        "chains": {
            "digits_compress": {"numpy": [chain(99, 90, 89.01, 88.52)], "jax": [chain(99, 90, 89.01, 88.52)]},
            "digits_int4": {"numpy": [chain(90, 88.01)], "jax": [chain(90.4, 88.41)]},
        },
        "control": {"numpy": chain(90), "jax": chain(90)},
        "students": {"numpy": [student, student]},
        "bits": [{"weights": "drawn", "what": "mask", "same": True}],
        "schemes": {"int8 channel": 0.9},
        "times": {
            "weights": 10,
            "rounds": 3,
            "numpy": {"partition": 1.0, "masks": 1.0, "pruned": 1.0, "quantized": 1.0, "ratio": 3.0},
        },
    }
    return sound | changes


def worse(path: str, value: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(measured()))
    *keys, last = path.split("/")
    node: Any = found
    for key in keys:
        node = node[int(key) if isinstance(node, list) else key]
    node[last] = value
    return found


@pytest.mark.parametrize(
    ("path", "value", "word"),
    [
        ("chains/digits_compress/jax/0/2/test_accuracy", 0.889, "80 % unstructured"),
        ("control/jax/0/test_accuracy", 0.902, "80 % unstructured"),
        ("chains/digits_compress/jax/0/3/test_accuracy", 0.885, "int8 weights"),
        ("chains/digits_int4/jax/0/1/test_accuracy", 0.8835, "int4 weights"),
        ("students/numpy/1/taught", 0.69, "beats the same student"),
        ("chains/digits_compress/jax/0/0/test_accuracy", 0.984, "of each other"),
        ("bits/0/same", False, "same bits"),
        ("times/numpy/ratio", 3.01, "np.partition"),
    ],
)
def test_each_requirement_can_be_missed(path: str, value: Any, word: str) -> None:
    assert all(v.holds for v in verdicts(measured()))
    first, *others = verdicts(worse(path, value))
    assert not first.holds
    assert word in first.what
    assert all(v.holds for v in others)
    text = page(worse(path, value), drawn=False)
    assert text.index("✗ missed") < text.index("| ✓ |")
    assert "6 of 7 hold" in text
    assert "compression.svg" not in text


def test_the_control_differs_in_nothing_but_the_pruning() -> None:
    recipe = Recipe.load(RECIPES / "digits_compress.toml")
    control = measure.dense(recipe)
    assert [phase.kind for phase in control.phase] == ["finetune", "train"]
    assert control.of_phase(2) == recipe.of_phase(2)
    assert control.of_phase(1) == recipe.of_phase(1)


def test_without_a_control_nothing_is_said_of_it() -> None:
    found = measured()
    del found["control"]
    assert not [v for v in verdicts(found) if "80 %" in v.what]
    assert "ot pruned" not in page(found, drawn=False)


def test_what_is_not_installed_is_said() -> None:
    text = page(measured(minilm={"missing": "pip install 'polyopt[minilm]'"}), drawn=False)
    assert "Not measured: pip install 'polyopt[minilm]'" in text
