"""The benchmark suite: what it counts and writes, how turns are taken, its errors. No time is asserted."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.cli_output import error, result

from polyopt import AdaptiveGradientClip, Optimizer
from polyopt.cli import bench as command
from polyopt.cli.app import run
from polyopt.core.errors import InputError
from polyopt.testing import assert_close
from polyopt_bench import cases, floor, machine, measure, memory, report, results, sets, suite, timing
from polyopt_bench.algorithms import ALGORITHMS
from polyopt_bench.contender import PEER_OF, Contender, chosen
from polyopt_bench.numpy_expressions import expressions
from polyopt_bench.traffic import Traffic, traffic

ROW = {"case", "optimizer", "backend", "peer", "seconds", "peer_seconds", "ratio", "floor_ratio"}
MACHINE = {"processor": "a", "cores": 2, "threads": 2}
ONCE = timing.Effort(rounds=3, least=2, seconds=0.0)


# What is measured


@pytest.mark.parametrize(
    ("name", "leaves", "parameters"),
    [
        ("mlp", 6, 669_706),
        ("small", 1000, 1_024_000),
        ("resnet50", 161, 25_557_032),
        ("gpt2", 148, 124_439_808),
        ("one64m", 1, 2**26),
        ("scale-1000000-1000", 1000, 10**6),
        ("scale-1000-7", 7, 1000),
    ],
)
def test_sizes_of_the_sets(name: str, leaves: int, parameters: int) -> None:
    found = sets.shapes(name)
    assert (len(found), sets.size(found)) == (leaves, parameters)


def test_arrays_are_the_same_for_the_same_seed() -> None:
    of = {"w": (3, 4), "b": (), "none": (0, 2)}
    first, again, other = sets.arrays(of, 1), sets.arrays(of, 1), sets.arrays(of, 2)
    assert {n: x.shape for n, x in first.items()} == of
    assert first["w"].dtype == np.float32
    assert_close(first["w"], again["w"], because="one seed", rtol=0, atol=0)
    assert not np.array_equal(first["w"], other["w"])
    assert float(first["w"].min()) < 0


@pytest.mark.parametrize(
    ("name", "bytes"),
    [
        ("sgd", 12),
        ("momentum", 20),
        ("nesterov", 20),
        ("adagrad", 20),
        ("rmsprop", 20),
        ("adam", 28),
        ("adamw", 28),
        ("adadelta", 28),
        ("adamax", 28),
        ("nadam", 28),
        ("radam", 28),
        ("clip-adamw", 32),
        ("clip-adam-cosine", 32),
        ("amsgrad", 36),
        ("rmsprop-centered", 36),
    ],
)
def test_bytes_of_every_optimizer(name: str, bytes: int) -> None:
    assert traffic(ALGORITHMS[name].rule()).bytes == bytes


def test_every_optimizer_has_its_bytes_tested() -> None:
    mark = next(m for m in test_bytes_of_every_optimizer.pytestmark if m.name == "parametrize")
    assert {name for name, _ in mark.args[1]} == set(ALGORITHMS)


def test_bytes_of_a_leafwise_rule_are_refused() -> None:
    with pytest.raises(InputError, match="AdaptiveGradientClip is not elementwise"):
        traffic(AdaptiveGradientClip())


CONVENTION = {"nadam": "optax", "radam": "torch"}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_expressions_are_the_same_algorithm(name: str) -> None:
    """A peer that does less would be no peer."""
    way, of = ALGORITHMS[name], {"w": (5, 3), "b": (4,)}
    mine, theirs, grads = sets.arrays(of, 0), sets.arrays(of, 0), sets.arrays(of, 1)
    optimizer = Optimizer(way.rule(CONVENTION.get(name, "numpy")))  # type: ignore[arg-type]
    state = optimizer.init(mine)
    step = expressions(way, list(theirs.values()), list(grads.values()))
    for _ in range(8):
        mine, state = optimizer.step(mine, grads, state)
        step()
    for key in of:
        because = "one algorithm in float32, the operations in another order"
        assert_close(mine[key], theirs[key], because=because, rtol=2e-5, atol=2e-6)


# The floor


@pytest.mark.parametrize("numba", [True, False])
@pytest.mark.parametrize(("writes", "measured"), [(1, 0), (3, 1), (4, 0)])
def test_the_floor_touches_everything_once(
    numba: bool, writes: int, measured: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not numba:
        monkeypatch.setitem(sys.modules, "numba", None)
    floor._kernels.cache_clear()
    n = 3 * floor.BLOCK + 17
    one = floor.Floor(n, Traffic(writes + 1, writes, measured))
    one._g[:] = 0.5
    one()
    floor._kernels.cache_clear()
    for array in one._arrays:
        assert_close(array, np.full(n, 1.5, np.float32), because="each was 1", rtol=0, atol=0)
    assert one.scale == 1.0


def test_a_large_floor_is_measured_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor, "LARGEST", 1000)
    assert floor.Floor(4000, Traffic(4, 3, 0)).scale == 4.0


# Turns


class Clock:
    """A clock that steps move on."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def step(self, name: str, seconds: float) -> Any:
        def step() -> None:
            self.order.append(name)
            self.now += seconds

        return step


def test_turns_are_interleaved_and_who_begins_changes() -> None:
    clock = Clock()
    steps = {"a": clock.step("a", 0.03), "b": clock.step("b", 0.06)}
    samples = timing.interleaved(steps, timing.Effort(rounds=4, least=2, seconds=9.0), clock)
    assert clock.order == [*"aabb", *"ab", *"ba", *"ab", *"ba"]
    assert {name: len(found) for name, found in samples.items()} == {"a": 4, "b": 4}
    assert timing.ratio(samples["a"], samples["b"]).median == pytest.approx(0.5)


def test_short_steps_are_repeated_after_one_that_is_not_timed() -> None:
    clock = Clock()
    samples = timing.interleaved(
        {"a": clock.step("a", 0.001)}, timing.Effort(rounds=2, least=1, seconds=9.0), clock
    )
    assert len(clock.order) == 2 + 2 * (1 + 5)
    assert samples["a"] == pytest.approx([0.001, 0.001])


def test_time_is_up_but_not_before_the_least_rounds() -> None:
    clock = Clock()
    effort = timing.Effort(rounds=50, least=3, seconds=0.01)
    assert len(timing.interleaved({"a": clock.step("a", 1.0)}, effort, clock)["a"]) == 3


def test_the_ratio_is_of_each_round() -> None:
    """The machine doubles its time in the second half: the ratio doesn't see it."""
    found = timing.ratio([1.0, 1.0, 2.0, 2.0], [2.0, 2.0, 4.0, 4.0])
    assert (found.low, found.median, found.high) == (0.5, 0.5, 0.5)


# Cases


def test_cases_have_names_of_their_own_and_cover_everything() -> None:
    everything = cases.cases()
    assert len({c.id for c in everything}) == len(everything)
    names = {(c.task, c.optimizer, c.backend) for c in everything if c.kind == "update"}
    for task in cases.TASKS:
        for name in ALGORITHMS:
            assert all((task, name, backend) in names for backend in PEER_OF)


def test_quick_is_the_table() -> None:
    quick = cases.select(list(PEER_OF), None, quick=True)
    assert sorted(c.id for c in quick) == sorted(
        f"update/{task}/adam/{backend}" for task in ("few", "resnet50") for backend in PEER_OF
    )
    # XLA compiles a step of Keras over 1000 leaves for half a minute: under a minute means few of them.
    assert all(len(sets.shapes(c.task)) < 200 for c in quick)
    assert "few" not in {c.task for c in cases.select(list(PEER_OF), None)}


def test_what_must_be_reached() -> None:
    assert cases.case("update/resnet50/adamw/jax").bound == 0.65
    assert cases.case("update/small/adam/tensorflow").bound == 0.05
    assert cases.case("update/small/radam/tensorflow").bound is None
    assert cases.case("update/resnet50/radam/tensorflow").floor_bound == 1.3
    assert cases.case("update/convnet/clip-adam-cosine/torch").bound == 1.0
    assert cases.case("update/convnet/clip-adam-cosine/numpy").bound is None
    assert cases.case("train/mlp-large/adam/torch").bound == 1.0
    assert cases.case("train/gpt2/adam/torch").bound == 0.9


def test_a_pattern_also_finds_what_a_full_run_leaves_out() -> None:
    assert [c.id for c in cases.select(["jax"], "update/tiny/radam")] == ["update/tiny/radam/jax"]
    assert {c.optimizer for c in cases.select(["jax"], "update/gpt2")} == {"adam"}
    assert {c.optimizer for c in cases.select(["jax"], "update/gpt2", everything=True)} == set(ALGORITHMS)


def test_quick_measures_the_standard_way_and_its_first_peer() -> None:
    made = [
        Contender("polyopt", lambda: lambda: None, ours=True),
        Contender("peer", lambda: lambda: None),
        Contender("other", lambda: lambda: None),
        Contender("polyopt, list", lambda: lambda: None, ours=True),
        Contender("slow", lambda: lambda: None, extra=True),
    ]
    assert [c.name for c in chosen(made, everything=False, first=True)] == ["polyopt", "peer"]
    assert len(chosen(made, everything=False)) == 4
    assert len(chosen(made, everything=True)) == 5
    assert list(measure.pairs(chosen(made, everything=False))) == [
        ("polyopt", "peer", True, True),
        ("polyopt", "other", True, False),
        ("polyopt, list", "peer", False, False),
    ]
    alone = [c for c in made if c.ours]
    assert [peer for _, peer, _, _ in measure.pairs(alone)] == [None, None]


@pytest.mark.parametrize("kind", ["update", "train"])
@pytest.mark.parametrize("backend", PEER_OF)
def test_rows_of_a_tiny_case(kind: str, backend: str) -> None:
    remarks: list[str] = []
    prepared = measure.prepare(cases.case(f"{kind}/tiny/adam/{backend}"), remarks.append)
    found = measure.measure(prepared, ONCE)
    assert not remarks
    first = found[0]
    assert set(first) >= ROW
    assert first["ours"].startswith("polyopt")
    assert first["peer"] == PEER_OF[backend] or kind == "train"
    assert (first["parameters"], first["leaves"]) == (72, 2)
    assert (first["floor_ratio"] is None) == (kind == "train")
    low, high = first["quartiles"]["ratio"]
    assert low <= first["ratio"] <= high
    assert len({(r["ours"], r["peer"]) for r in found}) == len(found)
    json.dumps(found, allow_nan=False)


def test_a_missing_peer_is_a_remark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optax", None)
    remarks: list[str] = []
    prepared = measure.prepare(cases.case("update/tiny/adam/jax"), remarks.append)
    rows = measure.measure(prepared, ONCE)
    assert len(remarks) == 1
    assert "no optax" in remarks[0]
    assert rows[0]["peer"] is None
    assert rows[0]["floor_ratio"] is not None


# Results and the report


def row(
    task: str = "small",
    backend: str = "numpy",
    *,
    kind: str = "update",
    ours: float = 1.0,
    optimizer: str = "adam",
) -> dict[str, Any]:
    of = next(c for c in cases.cases() if (c.kind, c.task, c.backend) == (kind, task, backend))
    of = cases.case(of.id.replace("/adam/", f"/{optimizer}/"))
    more = {"bound": of.bound, "floor_bound": of.floor_bound}
    if kind == "first":
        more |= {"seconds_bound": 2.0, "seconds_with_import": 4.0, "peer_seconds_with_import": 5.0}
    floor = None if kind == "train" else [0.5] * 3
    return measure.timed_row(of, "polyopt", [ours] * 3, PEER_OF[backend], [4.0] * 3, floor, **more)


def filled() -> results.Results:
    found = results.empty(MACHINE, {"numpy": "2"})
    for r in (
        row(ours=0.1),
        row("resnet50", "torch", ours=9.0),
        row("resnet50", "jax", optimizer="radam"),
        row("small", "jax", kind="first", ours=3.0),
        row("mlp-small", "tensorflow", kind="train"),
        row("scale-1000-1", "numpy", kind="scale"),
        row("scale-1000000-10", "numpy", kind="scale"),
    ):
        results.add(found, "rows", r)
    side = {"case": "resnet50", "optimizer": "adam", "backend": "jax", "side": "polyopt", "bound": 1.05}
    sizes = {"needed_bytes": 2**20, "peak_bytes": 2**21, "peak_with_start_bytes": 2**22, "overhead": 2.0}
    results.add(found, "memory", side | sizes)
    grown = {"backend": "torch", "steps": 1000, "seconds": 1e-5, "growth_bytes": 4096}
    results.add(found, "growth", grown)
    return found


def test_results_are_kept_and_merged(tmp_path: Path) -> None:
    assert results.load(tmp_path) is None
    results.save(filled(), tmp_path)
    assert sorted(p.stem for p in tmp_path.iterdir()) == ["jax", "numpy", "tensorflow", "torch"]
    newer = results.empty(MACHINE, {"numpy": "3"})
    results.add(newer, "rows", row(ours=0.2))
    results.save(newer, tmp_path)
    whole = results.load(tmp_path)
    assert whole is not None
    assert len(whole["rows"]) == len(filled()["rows"])
    mine = [r for r in whole["rows"] if (r["kind"], r["case"]) == ("update", "small")]
    assert [r["seconds"] for r in mine] == [0.2]
    assert whole["versions"] == {"numpy": "3"}


def test_results_of_another_machine_make_way(tmp_path: Path) -> None:
    results.save(filled(), tmp_path)
    other = results.empty(MACHINE | {"cores": 64}, {})
    results.add(other, "rows", row())
    results.save(other, tmp_path)
    assert [p.stem for p in tmp_path.iterdir()] == ["numpy"]


@pytest.mark.parametrize("text", ["{", "[]", '{"machine": {}, "versions": {}, "rows": [1]}'])
def test_a_file_that_holds_no_results_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "numpy.json").write_text(text, "utf-8")
    with pytest.raises(InputError, match=r"numpy\.json: not .*; remove it to measure anew"):
        results.load(tmp_path)


def test_the_report_names_what_was_missed(tmp_path: Path) -> None:
    written, remark = report.write(filled(), tmp_path, "Because of that.")
    assert remark is None
    text = written[0].read_text("utf-8")
    assert "0.025 (0.05 ✓)" in text  # NumPy, 1000 leaves
    assert "2.25 (1 ✗)" in text  # torch, ResNet-50
    assert "18 (1.3 ✗)" in text
    lines = text.split("## Not reached")[1].splitlines()
    assert "- update resnet50 adam, PyTorch, polyopt: 2.25 of torch.optim fused, 1 demanded" in lines
    assert "- first small adam, JAX, polyopt: 3.00 s, 2 demanded" in lines
    assert "- memory resnet50 adam, JAX: 2 of what is needed, 1.05 demanded" in lines
    assert "Because of that." in lines
    pictures = re.findall(r"\]\((benchmarks/\w+\.svg)\)", text)
    assert sorted(pictures) == sorted(p.relative_to(tmp_path).as_posix() for p in written[1:])
    assert len(pictures) == 5
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1


def spread(low: float, high: float, task: str, optimizer: str = "adam", kind: str = "update") -> Any:
    """A row whose ratios to the peer and to the floor are 1 with quartiles at ``low`` and ``high``."""
    of = row(task, "torch", kind=kind, optimizer=optimizer)
    keys = ("ratio",) if kind == "train" else ("ratio", "floor_ratio")
    of["quartiles"] |= {key: [low, high] for key in keys}
    return of | dict.fromkeys(keys, 1.0)


@pytest.mark.parametrize("task", ["small", "resnet50", "mlp-small"])
def test_a_ratio_that_spreads_too_widely_is_marked_wherever_it_is_shown(task: str, tmp_path: Path) -> None:
    kind = "train" if task == "mlp-small" else "update"
    found = {}
    for low, high in ((0.9, 1.1), (0.8, 1.1)):
        of = results.empty(MACHINE, {})
        results.add(of, "rows", spread(low, high, task, kind=kind))
        if task == "resnet50":
            results.add(of, "rows", spread(low, high, task, "radam"))
        results.save(of, tmp_path / "kept")
        out = tmp_path / f"{low}"
        assert run(["bench", "--render", "--results", str(tmp_path / "kept"), "--out", str(out)]) == 0
        found[low] = (out / report.PAGE).read_text("utf-8")
    assert "?" not in found[0.9]
    for table in re.findall(r"(?:^\|.*\n)+", found[0.8], re.MULTILINE):
        ratios = re.findall(r"(?<![\d.])1(?:\.00)?( \?)?(?= [(|]|\))", table)
        if "parameters |" not in table:
            assert ratios
            assert set(ratios) == {" ?"}
            assert f"{table}\n{results.EXPLANATION}\n" in found[0.8]


def test_the_command_marks_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for high, marks in ((1.1, 0), (1.2, 2)):
        of = results.empty(MACHINE, {})
        results.add(of, "rows", spread(0.9, high, "resnet50"))
        results.save(of, tmp_path)
        assert run(["bench", "--render", "--results", str(tmp_path), "--out", str(tmp_path)]) == 0
        shown = capsys.readouterr().out
        assert shown.count("1.000 ?") + shown.count("1.00 ?") == marks
        assert (results.EXPLANATION in shown) == bool(marks)


def test_pictures_are_the_same_for_the_same_rows(tmp_path: Path) -> None:
    first, again = (report.write(filled(), tmp_path / part)[0] for part in ("a", "b"))
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in again]
    assert all(p.stat().st_size < 60_000 for p in first)


def test_a_report_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    written, remark = report.write(filled(), tmp_path)
    assert [p.name for p in written] == ["benchmarks.md"]
    assert remark == 'no pictures: matplotlib is missing: pip install "matplotlib>=3.9"'


# The machine


def test_threads_follow_omp_num_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 8)
    for given, threads in (("3", 3), ("99", 8), ("", 8), ("many", 8), ("0", 8)):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        assert machine.threads() == threads


@pytest.mark.skipif(not memory.STATUS.exists(), reason="needs Linux's /proc")
def test_the_peak_is_seen_and_forgotten() -> None:
    size = 64 << 20
    forgot = memory.forget_peak()
    before = memory.resident()
    np.ones(size // 8)
    assert memory.peak() - before > 0.9 * size
    if forgot:
        memory.forget_peak()
        assert memory.peak() - before < 0.5 * size


# The command


def test_a_tiny_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept, out = tmp_path / "results", tmp_path / "docs"
    one = ["bench", "--only", "update/tiny/adam/", "--backend", "numpy", "--results", str(kept)]
    assert run([*one, "--json"]) == 0
    found = result(capsys)
    assert set(found) >= {"machine", "versions", "rows", "failed", "interrupted"}
    assert found["failed"] == []
    assert found["machine"]["threads"] >= 1
    assert found["versions"]["numpy"] == np.__version__
    assert [(r["case"], r["optimizer"], r["backend"], r["peer"]) for r in found["rows"]] == [
        ("tiny", "adam", "numpy", "NumPy expressions")
    ]
    assert all(
        r[key] > 0 for r in found["rows"] for key in ("seconds", "peer_seconds", "ratio", "floor_ratio")
    )
    again = ["bench", "--render", "--results", str(kept), "--out", str(out), "--json"]
    assert run(again) == 0
    rendered = result(capsys)
    assert rendered["rows"] == found["rows"]
    assert rendered["written"] == [str(out / "benchmarks.md")]


def test_growth(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "--growth", "--steps", "400", "--backend", "numpy", "--json"]) == 0
    (grown,) = result(capsys)["growth"]
    assert (grown["backend"], grown["steps"]) == ("numpy", 400)
    assert len(grown["resident_bytes"]) == 20
    assert isinstance(grown["growth_bytes"], int)


def test_first_step_and_memory_in_fresh_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(suite, "FRESH_SECONDS", 0.0)
    assert run(["bench", "--only", "(first|memory)/mlp/", "--backend", "numpy", "--json"]) == 0
    found = result(capsys)
    assert [r["ours"] for r in found["rows"]] == ["polyopt, cold cache", "polyopt, warm cache"]
    assert all(0 < r["seconds"] < r["seconds_with_import"] for r in found["rows"])
    assert [(m["side"], m["needed_bytes"]) for m in found["memory"]] == [
        ("polyopt", 16 * 669_706),
        ("NumPy expressions", 16 * 669_706),
    ]
    assert all(m["overhead"] > 0 for m in found["memory"])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--backend", "torhc"], "did you mean 'torch'?"),
        (["--only", "resnet5O"], "did you mean 'resnet50'?"),
        (["--only", "update/small/adma/numpy"], "did you mean 'update/small/adam"),
        (["--only", "("], "not a regular expression"),
        (["--quick", "--only", "gpt2"], "matches no case"),
        (["--growth", "--steps", "0"], "--steps 0"),
        (["--growth", "--quick"], "--growth"),
        (["--render"], "--results"),
        (["--only", "tiny", "--out", "{file}"], "is a file"),
        (["--only", "tiny", "--results", "{file}/x"], "--results"),
        (["--only", "tiny", "--out", "/proc/benchmarks"], "/proc/benchmarks"),
    ],
)
def test_bad_input(
    arguments: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("", "utf-8")
    assert run(["bench", *(a.format(file=file) for a in arguments)]) == 2
    assert named in error(capsys)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_without_the_suite_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name="polyopt_bench")

    monkeypatch.setattr(command, "import_module", absent)
    assert run(["bench"]) == 2
    assert "polyopt_bench, which comes with polyopt: reinstall it" in error(capsys)


def test_an_interrupted_run_shows_and_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(plan: suite.Plan) -> Iterator[suite.Event]:
        yield suite.Event("begin", "one")
        yield suite.Event("row", what="rows", row=row())
        raise KeyboardInterrupt

    monkeypatch.setattr(suite, "run", stopped)
    assert run(["bench", "--results", str(tmp_path), "--backend", "numpy", "--json"]) == 130
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["interrupted"]
    assert len(found["rows"]) == 1
    assert "interrupted" in printed.err
    assert [p.name for p in tmp_path.iterdir()] == ["numpy.json"]


def test_a_failed_case_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(plan: suite.Plan) -> Iterator[suite.Event]:
        yield suite.Event("failed", "update/small/adam/numpy: ValueError: no")
        yield suite.Event("row", what="rows", row=row(ours=0.1))

    monkeypatch.setattr(suite, "run", failing)
    assert run(["bench", "--backend", "numpy"]) == 1
    printed = capsys.readouterr()
    assert "failed: update/small/adam/numpy: ValueError: no" in printed.err
    assert "update/small/adam" in printed.out
    assert "0.025" in printed.out


def test_a_worker_that_dies_has_failed() -> None:
    with suite.Process({"PYTHONHASHSEED": "nonsense"}) as process:
        process.send(job="cases")
        (answer,) = process.answers()
    assert answer["event"] == "failed"
    assert "PYTHONHASHSEED" in answer["message"]
    assert "exit 1" in answer["message"]
