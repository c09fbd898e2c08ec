"""The command line: what it prints and where, its exit codes, and that bad input writes nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from helpers.cli_output import error, result
from rich.console import Console

import polyopt
from polyopt import testing
from polyopt.backend import registry
from polyopt.cli import main, output
from polyopt.cli.app import run
from polyopt.core.errors import BackendError
from polyopt.optim import OPTIMIZERS
from polyopt.testing.report import Report, Row

# Usage


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["trian"], "trian"),
        (["train"], "RECIPE"),
        (["train", "x.toml", "--epochs", "many"], "--epochs"),
        (["train", "x.toml", "--epoch", "3"], "--epochs"),
        (["compare", "x.toml", "--steps"], "--steps"),
        (["explain"], "ALGORITHM"),
        (
            ["train", "x.toml", "--lr", "1"],
            "'--lr'; known: --backend, .*; hyperparameters stand in the recipe",
        ),
        (["train", "x.toml", "y.toml"], r"unexpected argument 'y\.toml' \(see"),
        (["compare", "x.toml", "--backends", "numpy", "torch"], "joined by commas: --backends …,torch"),
        (["bench", "quick"], "unexpected argument 'quick'; did you mean '--quick'"),
        (["conform", "torch"], "did you mean '--backend torch'"),
    ],
)
def test_usage_errors(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    assert re.search(named, error(capsys))


@pytest.mark.parametrize("given", [["--backend", "numpy,jx"], ["--require", "numpy, jx"]])
def test_names_may_be_joined_by_commas(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["conform", "--quick", *given]) == 2
    assert "unknown backend 'jx'; did you mean 'jax'?" in error(capsys)


def test_no_command_is_cut_short_in_the_help(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["--help"]) == 0
    assert "..." not in capsys.readouterr().out.partition("Commands:")[2]


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"polyopt {polyopt.__version__}\n"
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    for command in ("train", "compare", "backends", "explain", "conform"):
        assert command in shown
    assert run([]) == 2


def test_without_typer_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['typer'] = None; from polyopt.cli import main; main(['--version'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the command line needs typer: pip install ")
    assert '"typer>=0.13"' in done.stderr


def test_main_exits_with_the_code() -> None:
    with pytest.raises(SystemExit) as e:
        main(["explain", "adma"])
    assert e.value.code == 2


def test_a_narrow_terminal_keeps_every_column() -> None:
    columns = ("backend", "train loss", "test accuracy", "seconds", "loss deviation", "parameter deviation")
    rows = [("tensorflow", "0.029739", "98.33%", "2.47", "2.4e-15", "8.4e-16")]
    screen = Console(file=StringIO(), width=80)
    screen.print(output.table("", columns, rows, numbers=5))
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    assert all(cell in shown for cell in rows[0])


def test_out_of_memory_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: Any) -> None:
        raise MemoryError("Unable to allocate 74.5 GiB")

    monkeypatch.setattr("polyopt.cli.backends.backends", full)
    assert run(["backends"]) == 1
    assert error(capsys).startswith("error: out of memory; try a smaller model or batch (Unable to allocate")


def test_json_has_no_nan() -> None:
    assert output.plain({"a": [float("inf"), 1.5], "b": Path("x")}) == {"a": [None, 1.5], "b": "x"}


# backends


def test_backends_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["backends", "--json"]) == 0
    found = {b["name"]: b for b in result(capsys)["backends"]}
    assert set(found) >= {"numpy", "torch", "tensorflow", "jax"}
    for name in ("numpy", "torch", "tensorflow", "jax"):
        about = found[name]
        assert about["installed"], about["error"]
        assert about["float64"]
        assert about["devices"][0] == "cpu"
        assert name in about["versions"]
        assert about["install"].startswith("pip install ")
        assert name in about["install"]


def test_backends_table_names_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> Any:
        raise BackendError(f"backend {name!r} needs PyTorch")

    monkeypatch.setattr(registry, "names", lambda: ("torch",))
    monkeypatch.setattr(registry, "by_name", absent)
    assert run(["backends"]) == 0
    printed = capsys.readouterr()
    assert 'pip install "numba>=0.61" "torch>=2.6"' in printed.out
    assert "needs PyTorch" in printed.err


# explain


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
@pytest.mark.parametrize("ascii", [False, True])
def test_explain_every_optimizer(name: str, ascii: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", name, *(["--ascii"] if ascii else [])]) == 0
    shown = capsys.readouterr().out
    assert shown.strip()
    assert shown.isascii() or not ascii


def test_explain_conventions_differ(capsys: pytest.CaptureFixture[str]) -> None:
    formulas = set()
    for convention in ("torch", "keras"):
        assert run(["explain", "adamw", "--convention", convention, "--set", "eps=1e-3", "--json"]) == 0
        found = result(capsys)
        assert found["convention"] == convention
        assert found["hyperparameters"]["eps"] == 1e-3
        formulas.add(found["formula"])
    assert len(formulas) == 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["adamww"], "did you mean 'adamw'?"),
        (["adam", "--convention", "kears"], "did you mean 'keras'?"),
        (["adam", "--set", "esp=1"], "did you mean 'eps'?"),
        (["adam", "--set", "eps"], "expected key=value"),
        (["adam", "--set", "eps=-1"], "eps = -1"),
        (["adam", "--set", "eps=small"], "eps = 'small'"),
        (["adam", "--set", "eps=nan"], "eps = nan"),
        (["adam", "--set", "eps=true"], "eps = True"),
    ],
)
def test_explain_refuses(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", *arguments]) == 2
    assert named in error(capsys)


# conform


def row(outcome: str) -> Any:
    return Row("ops", "add", "numpy", outcome, "" if outcome == "passed" else "why")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [(["passed"], 0), (["passed", "skipped"], 0), (["passed", "failed"], 1), (["passed", "missing"], 1)],
)
def test_conform_exit_codes(
    outcomes: list[str], code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def conform(names: list[str], *, required: list[str], quick: bool, on_result: Any) -> Report:
        asked.update(names=names, required=required, quick=quick)
        rows = tuple(row(outcome) for outcome in outcomes)
        for one in rows:
            on_result(one)
        return Report(rows)

    monkeypatch.setattr("polyopt.testing.conform", conform)
    monkeypatch.delenv("POLYOPT_REQUIRED_BACKENDS", raising=False)
    assert run(["conform", "--backend", "numpy", "--quick", "--json"]) == code
    found = result(capsys)
    assert asked == {"names": ["numpy"], "required": [], "quick": True}
    for outcome in ("passed", "failed", "skipped", "missing"):
        assert found[outcome] == outcomes.count(outcome)
    monkeypatch.setenv("POLYOPT_REQUIRED_BACKENDS", "numpy,jax")
    assert run(["conform"]) == code
    assert asked["required"] == ["numpy", "jax"]
    printed = capsys.readouterr()
    assert "1 passed" in printed.out
    assert ("why" in printed.err) == bool(code)
    assert set(asked["names"]) >= {"numpy", "torch", "tensorflow", "jax"}


def test_conform_refuses_an_unknown_backend(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["conform", "--backend", "nmupy"]) == 2
    assert "did you mean 'numpy'?" in error(capsys)


def test_conform_on_a_backend_that_is_not_installed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> Any:
        raise BackendError(f"backend {name!r} needs PyTorch: pip install 'polyopt[torch]'")

    monkeypatch.setattr(registry, "by_name", absent)
    assert run(["conform", "--backend", "torch"]) == 2
    assert "polyopt[torch]" in error(capsys)


def test_conform_runs_the_kit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The real thing, of which only a quick group of checks is let through: it is tested elsewhere."""
    monkeypatch.setattr("polyopt.testing.conform", partial(testing.conform, checks=["federated"]))
    assert run(["conform", "--backend", "numpy", "--quick", "--json"]) == 0
    found = result(capsys)
    assert found["passed"] > 0
    assert found["failed"] == found["missing"] == 0
