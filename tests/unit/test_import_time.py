"""What importing loads. Times are not asserted: what is loaded decides them, and does not vary."""

from __future__ import annotations

import subprocess
import sys

import pytest

FRAMEWORKS = {"torch", "tensorflow", "jax", "jaxlib", "keras", "optax", "flax", "numba"}
FRAMEWORKS |= {"flwr", "optuna", "tokenizers"}
NUMERICAL = FRAMEWORKS | {"numpy", "scipy", "sklearn", "matplotlib", "autograd", "optree"}


def loaded_by(code: str) -> set[str]:
    """The root modules that a fresh interpreter has after running ``code``."""
    report = "; import sys; print('LOADED', *{m.split('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("LOADED "))
    return set(line.split()[1:])


def test_importing_polyopt_loads_no_framework_and_not_even_numpy() -> None:
    assert not loaded_by("import polyopt; dir(polyopt)") & NUMERICAL


def test_importing_every_module_of_polyopt_loads_no_framework() -> None:
    code = (
        "import importlib, pkgutil, polyopt\n"
        "for m in pkgutil.walk_packages(polyopt.__path__, 'polyopt.'):\n"
        "    importlib.import_module(m.name)\n"
        "import sys"
    )
    assert not loaded_by(code) & FRAMEWORKS


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["train", "--help"], ["tune", "--help"], ["conform", "--help"]],
)
def test_help_loads_nothing_numerical(arguments: list[str]) -> None:
    code = f"from polyopt.cli.app import run; run({arguments!r})"
    assert not loaded_by(code) & NUMERICAL


def test_numpy_work_loads_no_other_framework() -> None:
    code = (
        "import numpy as np; from polyopt import SGD, Optimizer; opt = Optimizer(SGD(lr=0.1))\n"
        "p = {'w': np.ones(3)}; opt.step(p, p, opt.init(p)); import sys"
    )
    assert not loaded_by(code) & (FRAMEWORKS - {"numba"})
