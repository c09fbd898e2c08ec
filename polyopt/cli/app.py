"""The commands and their options. What a command does stands in its own module and is loaded when it runs."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from polyopt.cli.output import complain

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

app = typer.Typer(
    name="polyopt",
    help="Training recipes written once, run on NumPy, PyTorch, TensorFlow and JAX with the same numbers.",
    add_completion=False,
    pretty_exceptions_enable=False,
    # Help is text, not markup: rich would take "[tune]" for a style and leave it out.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe: a TOML or JSON file.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="DIR", help="Where to write; default: runs/, by the recipe's name and the backend's."
    ),
]
Backend = Annotated[
    str | None,
    typer.Option(
        "--backend", metavar="NAME", help="See `polyopt backends`; default: POLYOPT_BACKEND, else numpy."
    ),
]
Device = Annotated[
    str | None, typer.Option("--device", metavar="NAME", help="cpu, cuda, gpu:0, …; default: the backend's.")
]
Steps = Annotated[int | None, typer.Option("--steps", metavar="N", help="Batches in all, instead of epochs.")]
Dtype = Annotated[
    str | None, typer.Option("--dtype", metavar="NAME", help="float32 or float64, instead of the recipe's.")
]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Seed, instead of the recipe's.")]


@app.callback(invoke_without_command=True)
def polyopt(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Print the version, or the help where no command is given."""
    if version:
        from polyopt import __version__

        print(f"polyopt {__version__}")
        raise typer.Exit(OK)
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(BAD_INPUT)


@app.command(short_help="Train a recipe on one backend.")
def train(
    recipe: RecipeFile,
    backend: Backend = None,
    device: Device = None,
    out: Out = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run in --out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", metavar="N", help="Passes over the data, instead of the recipe's."),
    ] = None,
    steps: Steps = None,
    seed: Seed = None,
    dtype: Dtype = None,
    json: Json = False,
) -> None:
    """Train RECIPE: a table, a checkpoint and a picture of the training curve."""
    from polyopt.cli.start import RunRequest
    from polyopt.cli.train import train as run

    overrides = {"epochs": epochs, "steps": steps, "seed": seed, "dtype": dtype}
    request = RunRequest(recipe, overrides, out, backend, device, resume, overwrite)
    raise typer.Exit(run(request, json))


@app.command(short_help="Run a recipe on several backends: how far apart?")
def compare(
    recipe: RecipeFile,
    backends: Annotated[
        list[str] | None,
        typer.Option("--backends", "--backend", metavar="A,B", help="By default every installed one."),
    ] = None,
    dtype: Dtype = None,
    steps: Annotated[int, typer.Option("--steps", metavar="N", help="How many steps to compare.")] = 200,
    seed: Seed = None,
    tolerance: Annotated[
        float | None,
        typer.Option("--tolerance", metavar="X", help="Exit 1 where a relative deviation is larger."),
    ] = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Run RECIPE on several backends from the same bits and show how far apart they come."""
    from polyopt.cli.compare import CompareRequest
    from polyopt.cli.compare import compare as run

    names = None if backends is None else _split(backends)
    overrides = {"seed": seed, "dtype": dtype}
    raise typer.Exit(run(CompareRequest(recipe, overrides, out, names, steps, tolerance), json))


@app.command(short_help="Look for good hyperparameters.")
def tune(
    recipe: RecipeFile,
    trials: Annotated[
        int | None, typer.Option("--trials", metavar="N", help="In all; instead of the recipe's.")
    ] = None,
    backend: Backend = None,
    device: Device = None,
    out: Out = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the study in --out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the study in --out.")] = False,
    epochs: Annotated[
        int | None, typer.Option("--epochs", metavar="N", help="Passes over the data, each trial.")
    ] = None,
    steps: Steps = None,
    seed: Seed = None,
    dtype: Dtype = None,
    json: Json = False,
) -> None:
    """Look for the hyperparameters that RECIPE's [tune] names: a table, the best recipe and a picture."""
    from polyopt.cli.tune import TuneRequest
    from polyopt.cli.tune import tune as run

    overrides = {"epochs": epochs, "steps": steps, "seed": seed, "dtype": dtype}
    request = TuneRequest(recipe, overrides, out, backend, device, resume, overwrite, trials)
    raise typer.Exit(run(request, json))


@app.command(short_help="Measure what compression costs.")
def compression(
    recipes: Annotated[
        Path, typer.Option("--recipes", metavar="DIR", help="Where the digits' recipes are.")
    ] = Path("recipes"),
    backend: Annotated[
        list[str] | None,
        typer.Option("--backend", metavar="NAME", help="May be repeated, or A,B; default: all."),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", help="Runs of each recipe and backend.")] = 3,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only", metavar="PART", help="bits, times, chains, control, students, minilm; may be repeated."
        ),
    ] = None,
    render: Annotated[
        bool, typer.Option("--render", help="Measure nothing: write the page from --results.")
    ] = False,
    results: Annotated[
        Path, typer.Option("--results", metavar="DIR", help="Keep compression.json there.")
    ] = Path("benchmarks/compression"),
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Write compression.md and its picture there.")
    ] = Path("docs"),
    json: Json = False,
) -> None:
    """Measure what pruning, quantization and distillation cost; exit 1 where it is more than it may."""
    from polyopt.cli.compression import Request
    from polyopt.cli.compression import compression as run

    request = Request(recipes, _split(backend), seeds, _split(only), render, results, out)
    raise typer.Exit(run(request, json))


@app.command(short_help="List what is installed here.")
def backends(json: Json = False) -> None:
    """List the backends: installed or not, versions, devices, and what to install."""
    from polyopt.cli.backends import backends as run

    raise typer.Exit(run(json))


@app.command(short_help="Print an algorithm's exact formula.")
def explain(
    algorithm: Annotated[
        str, typer.Argument(metavar="ALGORITHM", help="adamw, sgd, … as recipes name them.")
    ],
    convention: Annotated[
        str | None, typer.Option("--convention", metavar="NAME", help="paper, torch, optax or keras.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set a hyperparameter; may be repeated."),
    ] = None,
    ascii: Annotated[bool, typer.Option("--ascii", help="No mathematical symbols.")] = False,
    json: Json = False,
) -> None:
    """Print the exact formula that an algorithm runs under a convention."""
    from polyopt.cli.explain import explain as run

    raise typer.Exit(run(algorithm, convention, settings or [], ascii, json))


@app.command(short_help="Test backends by the conformance kit.")
def conform(
    backend: Annotated[
        list[str] | None,
        typer.Option("--backend", metavar="NAME", help="May be repeated, or A,B; default: all."),
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(
            "--require", metavar="NAME", help="May not be absent; default: POLYOPT_REQUIRED_BACKENDS."
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer cases, in a fraction of the time.")] = False,
    json: Json = False,
) -> None:
    """Put backends through the conformance kit; exit 1 where anything fails or is missing."""
    from polyopt.cli.conform import conform as run

    raise typer.Exit(run(_split(backend), _split(require), quick, json))


@app.command(short_help="Measure speed beside other optimizers.")
def bench(
    quick: Annotated[
        bool, typer.Option("--quick", help="Adam on two parameter sets: under a minute on two cores.")
    ] = False,
    only: Annotated[
        str | None,
        typer.Option("--only", metavar="PATTERN", help="Cases by kind/set/optimizer/backend, a regex."),
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option("--backend", metavar="NAME", help="May be repeated, or A,B; default: all."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every optimizer on every set and every peer: hours.")
    ] = False,
    growth: Annotated[bool, typer.Option("--growth", help="Memory over many steps, nothing else.")] = False,
    steps: Annotated[
        int, typer.Option("--steps", metavar="N", help="How many steps --growth makes.")
    ] = 1_000_000,
    results: Annotated[
        Path | None,
        typer.Option("--results", metavar="DIR", help="Keep results there, merged with what is there."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write benchmarks.md and its pictures there.")
    ] = None,
    render: Annotated[
        bool, typer.Option("--render", help="Measure nothing: write --out from --results.")
    ] = False,
    json: Json = False,
) -> None:
    """Measure polyopt beside each framework's own optimizers: ratios, interleaved in one process."""
    from polyopt.cli.bench import Request
    from polyopt.cli.bench import bench as run

    request = Request(_split(backend), only, quick, everything, growth, steps, render, results, out)
    raise typer.Exit(run(request, json))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and give its exit code.

    >>> run(["--version"])
    polyopt 0.2.0
    0
    """
    from polyopt.core.errors import NonFiniteError, PolyoptError

    # TensorFlow's start-up remarks would bury a one-line error.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    words = None if arguments is None else list(arguments)
    try:
        code = app(words, prog_name="polyopt", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        complain("interrupted")
        return INTERRUPTED
    except NonFiniteError as e:
        complain(f'{e}; try a smaller learning rate, clipping, or train.nonfinite = "skip"')
        return FAILED
    except MemoryError as e:
        complain(f"out of memory; try a smaller model or batch ({e})")
        return FAILED
    except PolyoptError as e:
        complain(str(e))
        return BAD_INPUT
    except BrokenPipeError:
        # Whoever read our output has left; Python would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as e:
        complain(f"{e.filename}: {e.strerror}" if e.filename else str(e))
        return BAD_INPUT
    except Exception as e:
        usage = _usage(e)
        if usage is None:
            raise
        complain(usage)
        return BAD_INPUT
    return code if isinstance(code, int) else OK


def _usage(e: Any) -> str | None:
    """Return the message of a usage error, whose class has moved between typer's versions.

    Its method has not.
    """
    if not hasattr(e, "format_message"):
        return None
    context = getattr(e, "ctx", None)
    path = context.command_path if context is not None else "polyopt"
    found = e.format_message()
    options = [] if context is None else [x for p in context.command.params for x in p.opts if x[:2] == "--"]
    extra = re.search(r"unexpected extra arguments? ?(?:\(s\) )?\(([^\s)]+)", found)
    if extra is not None:
        found = f"unexpected argument {extra.group(1)!r}{_meant(extra.group(1), options)}"
    elif (option := getattr(e, "option_name", None)) is not None and hasattr(e, "possibilities"):
        near = difflib.get_close_matches(option, options, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(options)}"
        recipe = "--seed" in options and not near
        found = f"no such option {option!r}; {hint}{RECIPES_OWN if recipe else ''}"
    return f"{found} (see {path} --help)"


RECIPES_OWN = "; hyperparameters stand in the recipe"


def _meant(word: str, options: Sequence[str]) -> str:
    """Say what an argument that a command does not take may have been meant as."""
    if f"--{word}" in options:
        return f"; did you mean '--{word}'?"
    if "--backends" in options:
        return f"; backends are joined by commas: --backends …,{word}"
    return f"; did you mean '--backend {word}'?" if "--backend" in options and word.isidentifier() else ""


def _split(given: Sequence[str] | None) -> list[str]:
    """Return the values of an option that may be repeated, or joined by commas."""
    return [name for text in given or () for part in text.split(",") if (name := part.strip())]
