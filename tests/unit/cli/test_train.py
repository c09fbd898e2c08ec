"""``polyopt train`` and ``polyopt compare``: what they write, and what they refuse to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.cli_output import error, result

from polyopt import training
from polyopt.cli.app import run
from polyopt.testing import assert_same_bits

RECIPE = """
name = "small"
seed = 3

[data]
name = "digits"

[model]
name = "softmax"

[optimizer]
name = "adam"
lr = 0.01

[train]
steps = 40
batch_size = 64
"""
FILES = {"checkpoint.safetensors", "history.json", "recipe.toml", "curve.png"}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe of 40 steps, alone in the working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.toml"
    path.write_text(RECIPE)
    return path


def written(where: Path) -> set[str]:
    return {str(p.relative_to(where)) for p in where.rglob("*") if p.is_file()}


# train


@pytest.mark.parametrize("backend", ["numpy", "torch", "tensorflow", "jax"])
def test_train_json(backend: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", str(recipe), "--backend", backend, "--out", "run", "--json"]) == 0
    found = result(capsys)
    assert found["backend"] == backend
    assert found["steps"] == 40
    assert found["test_accuracy"] > 0.8
    assert found["seconds"] > 0
    assert Path(found["checkpoint"]) == Path("run/checkpoint.safetensors")
    assert written(tmp_path / "run") == FILES


def test_train_prints_a_table_and_says_where(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", str(recipe)]) == 0
    printed = capsys.readouterr()
    for word in ("train loss", "test accuracy", "seconds", "ms/step", "runs/small-numpy/curve.png"):
        assert word in printed.out
    assert printed.err == "small on numpy, into runs/small-numpy\n", "no progress bar where nobody watches"
    assert written(tmp_path / "runs" / "small-numpy") == FILES


def test_train_overrides(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--steps", "3", "--seed", "9", "--dtype", "float64", "--json"]
    assert run(["train", str(recipe), "--out", "a", *words]) == 0
    found = result(capsys)
    assert (found["steps"], found["dtype"]) == (3, "float64")
    assert run(["train", str(recipe), "--out", "b", "--epochs", "1", "--json"]) == 0
    assert result(capsys)["steps"] == 23
    assert "seed = 9" in Path("a/recipe.toml").read_text()


def test_regression_has_a_test_loss_and_no_accuracy(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.write_text(RECIPE.replace("digits", "diabetes").replace("softmax", "linear"))
    assert run(["train", str(recipe), "--json"]) == 0
    found = result(capsys)
    assert found["test_loss"] > 0
    assert "test_accuracy" not in found


def test_an_earlier_run_is_not_replaced_unasked(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", str(recipe), "--out", "run", "--steps", "5", "--json"]) == 0
    before = {p: p.read_bytes() for p in Path("run").iterdir()}
    capsys.readouterr()
    assert run(["train", str(recipe), "--out", "run", "--json"]) == 2
    line = error(capsys)
    assert "--resume" in line
    assert "--overwrite" in line
    assert {p: p.read_bytes() for p in Path("run").iterdir()} == before
    assert run(["train", str(recipe), "--out", "run", "--overwrite", "--json"]) == 0
    assert result(capsys)["steps"] == 40


def crashed(recipe: Path) -> None:
    """Leave what a run leaves that ends before its first checkpoint."""
    assert run(["train", str(recipe), "--out", "run", "--steps", "5", "--json"]) == 0
    for name in ("checkpoint.safetensors", "curve.png"):
        (Path("run") / name).unlink()


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_saved_nothing_needs_no_leave(
    resume: bool, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    crashed(recipe)
    capsys.readouterr()
    recipe.write_text(RECIPE.replace("0.01", "0.02"))
    more = ["--resume"] if resume else []
    assert run(["train", str(recipe), "--out", "run", "--json", *more]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["steps"] == 40
    assert ("nothing was saved in run yet: it begins anew" in said.err) == resume
    assert run(["train", str(recipe), "--out", "whole", "--json"]) == 0
    same_run("whole", "run")


def test_a_recipe_of_ones_own_is_not_replaced_unasked(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("recipe.toml").write_text(RECIPE)
    assert run(["train", str(recipe), "--out", ".", "--steps", "5"]) == 2
    assert "recipe.toml of an earlier run is there" in error(capsys)
    assert Path("recipe.toml").read_text() == RECIPE


def test_recipes_without_a_name_go_to_folders_of_their_own(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        Path(f"{name}.toml").write_text(RECIPE.replace('name = "small"', ""))
        assert run(["train", f"{name}.toml", "--backend", "numpy", "--steps", "2", "--json"]) == 0
        assert result(capsys)["checkpoint"] == f"runs/{name}-numpy/{training.CHECKPOINT}"


def test_resumed_in_the_same_bits(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", str(recipe), "--out", "whole", "--json"]) == 0
    assert run(["train", str(recipe), "--out", "parts", "--steps", "17", "--json"]) == 0
    capsys.readouterr()
    assert run(["train", str(recipe), "--out", "parts", "--resume", "--json"]) == 0
    assert result(capsys)["steps"] == 40
    same_run("whole", "parts")


def same_run(a: str, b: str) -> None:
    """The two folders hold the same parameters, losses and tests."""
    from polyopt import checkpoint
    from polyopt.core import tree

    one, two = (tree.named(checkpoint.load(Path(x) / training.CHECKPOINT).params) for x in (a, b))
    assert one.keys() == two.keys()
    for path in one:
        assert_same_bits(two[path], one[path], what=path)
    histories = [json.loads((Path(x) / training.HISTORY).read_text()) for x in (a, b)]
    assert histories[0]["loss"] == histories[1]["loss"]
    assert histories[0]["evaluations"][-1] == histories[1]["evaluations"][-1]


def test_interrupted_run_is_saved_and_goes_on(recipe: Path) -> None:
    """Ctrl-C: exit code 130, a message and a checkpoint, from which it goes on in the same bits."""
    # Longer than the test takes to interrupt it, on any machine; the resumed run stops much earlier.
    long = ["train", str(recipe), "--out", "run", "--steps", "100000000"]
    # Where this suite runs in the background, its children would ignore Ctrl-C.
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from polyopt.cli import main; sys.argv[0] = 'polyopt'; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, *long], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            wait_for(Path("run") / training.RECIPE, process)
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, err
    assert out == ""
    assert err.splitlines()[-1].startswith("error: interrupted; ")
    assert "--resume" in err
    done = json.loads((Path("run") / training.HISTORY).read_text())["step"]
    assert done > 0
    steps = ["--steps", str(done + 5), "--json"]
    assert run(["train", str(recipe), "--out", "run", "--resume", *steps]) == 0
    assert run(["train", str(recipe), "--out", "whole", *steps]) == 0
    assert (
        json.loads((Path("run") / training.HISTORY).read_text())["loss"]
        == (json.loads((Path("whole") / training.HISTORY).read_text())["loss"])
    )


def wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    """Wait until the run has begun: it writes its recipe right before its first step."""
    deadline = time.monotonic() + 120
    while not file.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_run_that_diverges_fails(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.write_text(
        RECIPE.replace("digits", "diabetes")
        .replace("softmax", "linear")
        .replace('"adam"', '"sgd"')
        .replace("lr = 0.01", "lr = 1e30")
    )
    assert run(["train", str(recipe), "--out", "raised", "--json"]) == 1
    said = capsys.readouterr().err
    assert "error: numpy, step 3: the gradient of 'bias' holds inf or NaN" in said
    assert "try a smaller learning rate" in said
    # It was saved at its first step, and diverges again from there.
    assert run(["train", str(recipe), "--out", "raised"]) == 2
    assert "add --resume to go on from it or --overwrite" in error(capsys)
    assert run(["train", str(recipe), "--out", "raised", "--resume", "--json"]) == 1
    assert "holds inf or NaN" in capsys.readouterr().err
    text = recipe.read_text() + 'nonfinite = "propagate"\n'
    recipe.write_text(text)
    assert run(["train", str(recipe), "--out", "nan", "--json"]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["test_loss"] is None, "NaN is no JSON"
    assert "the test loss ended as" in printed.err


def test_without_matplotlib_it_trains_and_says_so(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(["train", str(recipe), "--out", "run", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["picture"] is None
    assert 'pip install "matplotlib>=3.9"' in printed.err
    assert written(tmp_path / "run") == FILES - {"curve.png"}


# Bad input: one line that names the key and the remedy, exit code 2, nothing written


BAD_RECIPES = {
    "not TOML": ("name = ", "small.toml"),
    "unknown key": (RECIPE + "epocs = 3\n", "did you mean 'epochs'?"),
    "unknown table": (RECIPE + "[optimiser]\nlr = 1\n", "did you mean 'optimizer'?"),
    "missing table": (RECIPE.partition("[train]")[0], "train: this key is missing"),
    "unknown algorithm": (RECIPE.replace('"adam"', '"adamm"'), "did you mean 'adam'?"),
    "unknown hyperparameter": (RECIPE.replace("lr = ", "epss = 1.0\nlr = "), "did you mean 'eps'?"),
    "unknown convention": (RECIPE.replace("lr = ", 'convention = "kears"\nlr = '), "did you mean 'keras'?"),
    "unknown data": (RECIPE.replace('"digits"', '"digist"'), "did you mean 'digits'?"),
    "unknown model": (RECIPE.replace('"softmax"', '"sotfmax"'), "did you mean 'softmax'?"),
    "wrong dtype": (RECIPE.replace("seed = 3", 'dtype = "float23"'), "dtype = 'float23'"),
    "negative rate": (RECIPE.replace("0.01", "-0.01"), "lr = -0.01"),
    "string number": (RECIPE.replace("0.01", '"0.01"'), "lr = '0.01'"),
    "rate of inf": (RECIPE.replace("0.01", "inf"), "lr"),
    "string steps": (RECIPE.replace("steps = 40", 'steps = "40"'), "train.steps = '40'"),
    "negative steps": (RECIPE.replace("steps = 40", "steps = -4"), "train.steps = -4"),
    "no batch": (RECIPE.replace("= 64", "= 0"), "train.batch_size = 0"),
    "boolean seed": (RECIPE.replace("seed = 3", "seed = true"), "seed = True"),
    "model for another task": (RECIPE.replace('"softmax"', '"linear"'), "model.name"),
}


@pytest.mark.parametrize("command", ["train", "compare"])
@pytest.mark.parametrize("case", BAD_RECIPES)
def test_bad_recipes(
    case: str, command: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, named = BAD_RECIPES[case]
    recipe.write_text(text)
    assert run([command, str(recipe), "--json"]) == 2
    assert named in error(capsys)
    assert written(tmp_path) == {"small.toml"}
    assert not (tmp_path / "runs").exists()


BAD_OPTIONS: dict[str, tuple[list[str], str]] = {
    "missing file": (["train", "none.toml"], "none.toml"),
    "a folder": (["train", "."], "."),
    "not a recipe's name": (["train", "small.yaml"], "small.yaml"),
    "unknown backend": (["train", "small.toml", "--backend", "troch"], "did you mean 'torch'?"),
    "unknown device": (["train", "small.toml", "--device", "gpu:9"], "gpu:9"),
    "dtype": (["train", "small.toml", "--dtype", "float16"], "float16"),
    "negative seed": (["train", "small.toml", "--seed", "-1"], "seed = -1"),
    "no steps": (["train", "small.toml", "--steps", "0"], "steps = 0"),
    "epochs and steps": (["train", "small.toml", "--steps", "1", "--epochs", "1"], "--epochs and --steps"),
    "out is a file": (["train", "small.toml", "--out", "small.toml"], "is a file"),
    "out is below a file": (["train", "small.toml", "--out", "small.toml/x"], "is a file"),
    "nothing to resume": (["train", "small.toml", "--resume"], "no run to go on from"),
    "resume and overwrite": (["train", "small.toml", "--resume", "--overwrite"], "--resume and --overwrite"),
    "compare unknown backend": (["compare", "small.toml", "--backends", "nmupy"], "did you mean 'numpy'?"),
    "compare nothing": (["compare", "small.toml", "--backends", ","], "--backends"),
    "compare one twice": (["compare", "small.toml", "--backends", "numpy,numpy"], "twice"),
    "compare no steps": (["compare", "small.toml", "--steps", "-3"], "steps = -3"),
    "compare tolerance": (["compare", "small.toml", "--tolerance", "-1"], "--tolerance -1"),
    "compare dtype": (["compare", "small.toml", "--dtype", "int8"], "dtype = 'int8'"),
    "compare missing file": (["compare", "none.toml"], "none.toml"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options(case: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, named = BAD_OPTIONS[case]
    if arguments[1] == "small.yaml":
        recipe.rename("small.yaml")
    before = written(tmp_path)
    assert run([*arguments, "--json"]) == 2
    assert named in error(capsys)
    assert written(tmp_path) == before
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_out_without_permission(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    assert run(["train", str(recipe), "--out", str(closed / "run")]) == 2
    assert "no permission" in error(capsys)


def test_resuming_with_another_recipe_is_refused(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", str(recipe), "--out", "run", "--steps", "5", "--json"]) == 0
    before = {p: p.read_bytes() for p in Path("run").iterdir()}
    recipe.write_text(RECIPE.replace("0.01", "0.02"))
    capsys.readouterr()
    assert run(["train", str(recipe), "--out", "run", "--resume", "--json"]) == 2
    assert "optimizer.lr = 0.02" in error(capsys)
    assert {p: p.read_bytes() for p in Path("run").iterdir()} == before


# compare


def test_compare_json(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--dtype", "float64", "--steps", "20", "--tolerance", "1e-10"]
    assert run(["compare", str(recipe), *words, "--json"]) == 0
    found: dict[str, Any] = result(capsys)
    assert found["backends"][0] == "numpy"
    assert set(found["backends"]) >= {"numpy", "torch", "tensorflow", "jax"}
    assert found["steps"] == 20
    assert 0 < found["max_relative_loss_deviation"] < 1e-12
    assert 0 < found["max_relative_parameter_deviation"] < 1e-10
    assert written(tmp_path) == {"small.toml", "runs/small-compare/compare.png"}


def test_compare_table_and_tolerance(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", str(recipe), "--backends", "numpy,torch", "--steps", "20", "--out", "here"]
    assert run(words) == 0
    shown = capsys.readouterr().out
    for word in ("numpy", "torch", "loss deviation", "parameter deviation", "here/compare.png"):
        assert word in shown
    assert run([*words, "--tolerance", "0"]) == 1
    assert "allowed is 0" in capsys.readouterr().err
