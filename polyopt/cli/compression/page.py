"""The page: what must hold, misses first, and the tables that it is read from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

BACKENDS = {"numpy": "NumPy", "torch": "PyTorch", "tensorflow": "TensorFlow", "jax": "JAX"}
COMMAND = "polyopt compression"
COMPRESSED = "digits_compress"
"""The recipe that prunes, among the chains that were measured."""
PARTITIONS = 3.0
"""As many times as long as one partition may pruning and quantizing take."""


@dataclass(frozen=True)
class Verdict:
    """A requirement, what was found, and whether it holds."""

    what: str
    found: str
    holds: bool

    def plain(self) -> dict[str, Any]:
        """Return it as ``--json`` has it."""
        return asdict(self)


def verdicts(found: Mapping[str, Any]) -> list[Verdict]:
    """Judge each requirement that was measured, misses first."""
    rows = [
        *_sparse(found.get("chains", {}), found.get("control", {})),
        *_drops(found.get("chains", {})),
        *_taught(found.get("students", {})),
        *_apart(found.get("chains", {})),
        *_same(found.get("bits", [])),
        *_fast(found.get("times", {})),
    ]
    return sorted(rows, key=lambda verdict: verdict.holds)


def page(found: Mapping[str, Any], *, drawn: bool) -> str:
    """Write the whole of ``compression.md``."""
    judged = verdicts(found)
    missed = sum(not verdict.holds for verdict in judged)
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    parts = [
        "# Compression, measured",
        f"<!-- Written by `{COMMAND}`; what stands here is overwritten. -->",
        "What pruning, quantization and distillation cost, on handwritten digits and on a pre-trained "
        "transformer. Accuracies are of test samples, a point is one of a hundred; sizes are those of "
        "the arrays as they are stored.",
        f"```console\n{COMMAND}            # everything: some ten minutes\n{COMMAND} --help\n```",
        f"{found['machine']}. {versions}.",
        "## What must hold",
        f"{len(judged) - missed} of {len(judged)} hold."
        + (" Those that don't come first." if missed else ""),
        _table(
            ("", "requirement", "measured"),
            [("✓" if v.holds else "✗ missed", v.what, v.found) for v in judged],
        ),
    ]
    if drawn:
        parts.append("![Accuracy and size](compression.svg)")
    for section in (_chains, _students, _bits, _times, _minilm):
        parts += section(found)
    return "\n\n".join(parts) + "\n"


# Requirements


def _sparse(chains: Mapping[str, Any], control: Mapping[str, Any]) -> Iterable[Verdict]:
    """Judge the pruned model against one that was trained as long, from the same weights."""
    chain = chains.get(COMPRESSED, {})
    change = {b: _mean(chain[b], _pruned(chain[b])) - _accuracy(control[b]) for b in chain if b in control}
    if change:
        worst = min(change, key=lambda b: change[b])
        what = "80 % unstructured sparsity within 1 point of a dense model that was trained as long"
        seeds = len(control[worst])
        yield Verdict(what, _worst(change[worst], worst, seeds), change[worst] >= -1.0)


def _drops(chains: Mapping[str, Any]) -> Iterable[Verdict]:
    wanted = (
        ("int8 weights within 0.5 point of the float ones", COMPRESSED, 2, 3, 0.5),
        ("int4 weights per group within 2 points of the float ones", "digits_int4", 0, 1, 2.0),
    )
    for what, recipe, before, after, allowed in wanted:
        if recipe not in chains:
            continue
        change = {b: _mean(runs, after) - _mean(runs, before) for b, runs in chains[recipe].items()}
        worst = min(change, key=lambda b: change[b])
        seeds = len(next(iter(chains[recipe].values())))
        yield Verdict(what, _worst(change[worst], worst, seeds), change[worst] >= -allowed)


def _taught(students: Mapping[str, Any]) -> Iterable[Verdict]:
    if students:
        gains = {b: [100 * (r["taught"] - r["alone"]) for r in rows] for b, rows in students.items()}
        worst = min(gains, key=lambda b: fmean(gains[b]))
        values = gains[worst]
        text = f"{_points(fmean(values))} ± {stdev(values):.2f} on {_name(worst)}, the least of the backends'"
        what = f"the distilled student beats the same student trained alone, mean of {len(values)} seeds"
        yield Verdict(what, text, fmean(values) > 0)


def _apart(chains: Mapping[str, Any]) -> Iterable[Verdict]:
    largest = (0.0, "", "")
    for recipe, by_backend in chains.items():
        for i, phase in enumerate(next(iter(by_backend.values()))[0]):
            means = [_mean(runs, i) for runs in by_backend.values()]
            largest = max(largest, (max(means) - min(means), recipe, phase["name"]))
    if chains:
        text = f"{largest[0]:.2f} points at most" + (f" ({largest[1]}, {largest[2]})" if largest[1] else "")
        yield Verdict("the backends' accuracies within 0.5 point of each other", text, largest[0] <= 0.5)


def _same(rows: Sequence[Mapping[str, Any]]) -> Iterable[Verdict]:
    if rows:
        same = sum(row["same"] for row in rows)
        what = "masks and quantized codes are the same bits on every backend, from the same weights"
        yield Verdict(what, f"{same} of {len(rows)} cases", same == len(rows))


def _fast(times: Mapping[str, Any]) -> Iterable[Verdict]:
    ratios = {b: row["ratio"] for b, row in times.items() if isinstance(row, Mapping)}
    if ratios:
        what = "pruning ten million weights to a global sparsity and quantizing them: at most 3 np.partition"
        text = ", ".join(f"{ratios[b]:.2f} on {_name(b)}" for b in sorted(ratios, key=lambda b: ratios[b]))
        yield Verdict(what, text, max(ratios.values()) <= PARTITIONS)


# Tables


def _chains(found: Mapping[str, Any]) -> Iterable[str]:
    for recipe, by_backend in found.get("chains", {}).items():
        runs = next(iter(by_backend.values()))
        yield f"## `recipes/{recipe}.toml`"
        yield (
            f"By `polyopt train recipes/{recipe}.toml --backend NAME`. Test accuracy in percent, the mean "
            f"of {len(runs)} seeds, with the lowest and the highest; seconds are the mean of a phase on "
            "the first backend, its compilation included."
        )
        head = (
            "phase",
            "",
            *map(_name, by_backend),
            "pruned",
            "bytes",
            f"seconds, {_name(next(iter(by_backend)))}",
        )
        rows = [_phase({b: [r[i] for r in rs] for b, rs in by_backend.items()}) for i in range(len(runs[0]))]
        control = found.get("control", {})
        if recipe == COMPRESSED and by_backend.keys() <= control.keys():
            rows.insert(_pruned(runs), _phase({b: control[b] for b in by_backend}, "not pruned"))
        yield _table(head, rows, numbers=3 + len(by_backend))
    if found.get("control"):
        yield (
            "*Not pruned* is the phase after it without pruning: a dense control from the same weights, with "
            "the same optimizer, epochs and order of samples. A pruned weight takes as much room as any in a "
            "dense file: sparsity alone saves no bytes here."
        )


def _phase(by_backend: Mapping[str, Sequence[Any]], name: str = "") -> list[str]:
    """Write a row: one phase on every backend, seed by seed."""
    runs = next(iter(by_backend.values()))
    phase = runs[0]
    cells = [_spread([100 * run["test_accuracy"] for run in others]) for others in by_backend.values()]
    seconds = fmean(run["seconds"] for run in runs)
    return [
        name or phase["name"],
        phase["kind"],
        *cells,
        f"{phase['sparsity']:.0%}".replace("%", " %"),
        f"{phase['bytes']:,}",
        f"{seconds:.2f}",
    ]


def _students(found: Mapping[str, Any]) -> Iterable[str]:
    students = found.get("students", {})
    if students:
        rows = []
        for backend, runs in students.items():
            columns = ([100 * r[key] for r in runs] for key in ("teacher", "taught", "alone"))
            gains = [100 * (r["taught"] - r["alone"]) for r in runs]
            cells = [f"{fmean(c):.2f} ± {stdev(c):.2f}" for c in (*columns, gains)]
            rows.append([_name(backend), *cells, " ".join(f"{g:+.2f}" for g in gains)])
        first = next(iter(students.values()))
        yield "## A student with and without its teacher"
        yield (
            "`recipes/digits_student.toml`: the student has the same first weights and the same batches "
            f"both times, {first[0]['bytes']:,} bytes to its teacher's {first[0]['teacher_bytes']:,}. "
            f"Test accuracy in percent, mean ± standard deviation over {len(first)} seeds."
        )
        head = ("backend", "teacher", "student, taught", "student, alone", "gain", "gain, seed by seed")
        yield _table(head, rows, numbers=4)


def _bits(found: Mapping[str, Any]) -> Iterable[str]:
    if found.get("bits"):
        yield "## The same bits"
        yield "Trained weights, and drawn ones with ties and zeros among them, copied to each backend."
        rows = [
            (row["weights"], row["what"], "the same" if row["same"] else "**differ**")
            for row in found["bits"]
        ]
        yield _table(("weights", "what", "bits"), rows)


def _times(found: Mapping[str, Any]) -> Iterable[str]:
    times = found.get("times", {})
    if times:
        rows = [
            [
                _name(b),
                *(f"{row[k]:.1f}" for k in ("partition", "masks", "pruned", "quantized")),
                f"{row['ratio']:.2f}",
            ]
            for b, row in times.items()
            if isinstance(row, Mapping)
        ]
        yield "## Time"
        yield (
            f"Milliseconds for {times['weights']:,} float32 weights in six leaves: 80 % global magnitude "
            "masks, the pruned weights, int8 codes per channel. In turns with `np.partition` of the same "
            f"weights, medians of {times['rounds']} rounds; the ratio is the median of the rounds' own."
        )
        yield _table(("backend", "np.partition", "masks", "pruned", "int8", "ratio"), rows, numbers=5)
    if "schemes" in found:
        yield "Quantizing alone, as many weights in eight leaves on NumPy: in partitions of the same round."
        rows = [[scheme, f"{ratio:.2f}"] for scheme, ratio in found["schemes"].items()]
        yield _table(("scheme", "× np.partition"), rows, numbers=1)


def _minilm(found: Mapping[str, Any]) -> Iterable[str]:
    part = found.get("minilm")
    if part is None:
        return
    yield "## A pre-trained transformer"
    if "missing" in part:
        yield f"Not measured: {part['missing']}"
        return
    yield (
        f"all-MiniLM-L6-v2 ([page](pretrained.md)) and {part['snippets']} snippets of film reviews, a "
        "quarter of them for testing. Its head by `polyopt train recipes/minilm_vader.toml --backend "
        "NAME`: test accuracy in percent, of one seed."
    )
    first = next(iter(part["heads"].values()))
    rows = [
        [
            phase["name"],
            phase["kind"],
            *(f"{100 * phases[i]['test_accuracy']:.1f}" for phases in part["heads"].values()),
            f"{phase['sparsity']:.0%}".replace("%", " %"),
            f"{phase['bytes']:,}",
            f"{phase['seconds']:.2f}",
        ]
        for i, phase in enumerate(first)
    ]
    head = ("phase", "", *map(_name, part["heads"]), "pruned", "bytes", "seconds")
    yield _table(head, rows, numbers=3 + len(part["heads"]))
    yield (
        "The encoder itself, pruned and quantized without any training, under that dense head. Seconds "
        "are for embedding the test snippets, by weights made floats again: it is size that is saved, "
        "not time."
    )
    forms = [
        [
            r["name"],
            f"{100 * r['accuracy']:.1f}",
            f"{r['bytes']:,}",
            f"{r['sparsity']:.0%}".replace("%", " %"),
            f"{r['seconds']:.1f}",
        ]
        for r in part["whole"]
    ]
    yield _table(("encoder", "accuracy", "bytes", "zeros in its matrices", "seconds"), forms, numbers=4)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: int = 0) -> str:
    ruled = ["---"] * (len(head) - numbers) + ["---:"] * numbers
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ruled, *rows))


def _mean(runs: Sequence[Any], phase: int) -> float:
    return _accuracy([run[phase] for run in runs])


def _accuracy(phases: Sequence[Any]) -> float:
    return fmean(100 * phase["test_accuracy"] for phase in phases)


def _pruned(runs: Sequence[Any]) -> int:
    """Return which of the phases prunes."""
    return next(i for i, phase in enumerate(runs[0]) if phase["kind"] == "prune")


def _worst(change: float, backend: str, seeds: int) -> str:
    return f"{_points(change)} on {_name(backend)}, the worst (mean of {seeds} seeds)"


def _spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.2f} ({min(values):.1f}–{max(values):.1f})"


def _points(change: float) -> str:
    return f"{change:+.2f} points"


def _name(backend: str) -> str:
    return BACKENDS.get(backend, backend)
