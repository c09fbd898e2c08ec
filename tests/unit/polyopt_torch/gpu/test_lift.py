"""The lift for accelerators. What needs a GPU is skipped without one; the rest is checked all the same:
foreach runs on the CPU, Triton's interpreter runs the kernels there, and its compiler needs no GPU.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import gpu_runs

from polyopt import Adam, Optimizer
from polyopt.backend.generate import Column
from polyopt.core.trace import BINARY, INEXACT, UNARY, Program, Symbol, Tracer
from polyopt.engine import plan
from polyopt.engine.lift import lifted
from polyopt.testing import assert_same_bits
from polyopt_torch.gpu import lift as gpu_lift
from polyopt_torch.gpu import triton_kernel
from polyopt_torch.gpu.lift import DeviceLift
from polyopt_torch.gpu.triton_kernel import EXACT, Kernel

needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="needs triton, which comes with CUDA builds"
)
needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.version.hip is not None, reason="needs an NVIDIA GPU"
)


# By foreach, on the CPU


@pytest.mark.parametrize(
    "run",
    [
        gpu_runs.every_operation,
        gpu_runs.rounding,
        gpu_runs.layouts,
        lambda device: gpu_runs.optimizers(device, 10),
    ],
    ids=["operations", "rounding", "layouts", "optimizers"],
)
def test_foreach_has_the_bits_of_numpy(run: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_kernel, "usable", lambda device: False)
    with gpu_runs.by_device_lift():
        run("cpu")


def test_the_kernel_knows_every_operation_that_is_exact() -> None:
    assert UNARY | BINARY | {"where"} == EXACT | INEXACT
    assert not EXACT & INEXACT


def test_operations_that_only_foreach_has(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    t = Tracer()
    x, s = Symbol(t, "p"), Symbol(t, "s")
    y = t.tanh(t.exp(t.negative(t.square(x)))) + t.round(t.floor(x) + t.ceil(x)) + t.expm1(t.log1p(t.abs(x)))
    program = t.program(("p",), ("s",), {"p": (s / y - x) + t.cos(t.log(t.abs(x))) * t.exp(s)})
    monkeypatch.setattr(triton_kernel, "interpreted", lambda: True)
    monkeypatch.setattr(triton_kernel, "_triton", object)
    leaves = [torch.linspace(-3, 3, 50), torch.ones(2, 3)]
    expected = gpu_runs._reference(program)({"p": leaves}, {"s": 0.5}, "float32")
    with gpu_runs.by_device_lift(), caplog.at_level("DEBUG", logger="polyopt"):
        got = gpu_runs.TORCH.lift(program)({"p": leaves}, {"s": 0.5}, "float32")
    assert "no kernel can be generated for cos, exp, expm1, log, log1p, tanh" in caplog.text
    for a, b in zip(got["p"], expected["p"], strict=True):
        assert_same_bits(a, b)


def _sum() -> Program:
    t = Tracer()
    return t.program(("g", "p"), (), {"p": Symbol(t, "p") + Symbol(t, "g")})


def test_leaves_in_host_memory_are_the_hosts() -> None:
    host = mock.Mock(return_value={"p": ["found"]})
    arrays = {"g": [torch.ones(3)], "p": [torch.ones(3)]}
    assert DeviceLift(_sum(), host)(arrays, {}, "float32", donate=True) == {"p": ["found"]}
    host.assert_called_once_with(arrays, {}, "float32", donate=True)


@pytest.mark.parametrize(
    "strange",
    [
        lambda: torch.ones(3).to_sparse(),
        lambda: torch.ones(3, device="meta"),
        lambda: torch.ones(1),
        lambda: torch.nn.Buffer(torch.ones(3)).as_subclass(type("Own", (torch.Tensor,), {})),
    ],
    ids=["sparse", "meta", "shape", "subclass"],
)
def test_other_tensors_go_op_by_op(strange: Callable[[], Any]) -> None:
    arrays = {"g": [torch.ones(3), strange()], "p": [torch.ones(3), torch.ones(3)]}
    host = mock.Mock()
    assert DeviceLift(_sum(), host)(arrays, {}, "float32") is None
    assert not host.called


def test_a_kernel_that_cannot_be_built_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_kernel, "usable", lambda device: not triton_kernel._broken)
    monkeypatch.setattr(triton_kernel, "_broken", False)
    monkeypatch.setattr(triton_kernel, "_compiled", mock.Mock(side_effect=OSError("no C compiler")))
    monkeypatch.setattr(gpu_lift, "_on_host", lambda device: False)
    lift = DeviceLift(_sum(), mock.Mock())
    p = torch.ones(3)
    with pytest.warns(RuntimeWarning, match="no C compiler"):
        lift({"g": [torch.ones(3)], "p": [p]}, {}, "float32", donate=True)
    lift({"g": [torch.ones(3)], "p": [p]}, {}, "float32", donate=True)
    assert p.tolist() == [3.0, 3.0, 3.0]


# By Triton, without a GPU


@needs_triton
def test_interpreted_kernels_have_the_bits_of_numpy() -> None:
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    command, tests = [sys.executable, "-m", "helpers.gpu_runs"], Path(gpu_runs.__file__).parents[1]
    out = subprocess.run(
        command, check=False, env=env, cwd=tests, capture_output=True, text=True, timeout=300
    )
    assert out.stdout.strip() == "same bits", out.stderr


def _ptx(program: Program, dtype: str, kinds: dict[str, torch.dtype], aligned: bool) -> str:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    compute = getattr(torch, dtype)
    columns = [Column(n, k, True, n in dict(program.outputs)) for n, k in kinds.items()]
    columns += [Column(n, compute, False, True) for n, _ in program.outputs if n not in kinds]
    kernel = Kernel(program, dtype, tuple(columns))
    number = "*fp64" if dtype == "float64" else "*fp32"
    source = ASTSource(
        kernel.function,
        {"table": "*i64", "chunks": "*i64", "scalars": number, "ALIGNED": "constexpr"},
        {"ALIGNED": aligned},
    )
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": False})
    text: str = built.asm["ptx"]
    return text


@needs_triton
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_compiled_kernels_round_every_operation(dtype: str) -> None:
    everything = gpu_runs.everything()
    adam = plan.program(plan.plan(Adam(amsgrad=True), ["p"]).pipelines[0][0].parts, "p")  # type: ignore[index]
    size = dtype.removeprefix("float")
    for program in (everything, adam):
        compute = getattr(torch, dtype)
        narrow = dict.fromkeys(program.arrays, torch.float32) | {"g": torch.float16}
        if dtype == "float32":
            narrow |= {"p": torch.bfloat16}
        for kinds in (dict.fromkeys(program.arrays, compute), narrow):
            ptx = _ptx(program, dtype, kinds, aligned=True)
            operations = set(re.findall(r"^\s+(?:@!?%p\d+\s+)?([a-z][\w.]*)\s", ptx, re.MULTILINE))
            arithmetic = {o for o in operations if re.search(r"\.(f16|bf16|f32|f64)", o)}
            exact = {f"{o}.rn.f{size}" for o in ("add", "sub", "mul", "div", "sqrt")}
            assert {f"div.rn.f{size}", f"sqrt.rn.f{size}", f"mul.rn.f{size}"} <= arithmetic
            moves = re.compile(r"(ld|st|mov|selp|setp|abs|neg|cvt)\.")
            assert {o for o in arithmetic if not moves.match(o)} <= exact
            assert not [o for o in operations if re.search(r"fma|ftz|approx|full|\.sat|cvt\.r[zmp]", o)]
            if kinds["p"] is torch.bfloat16:
                assert any(o.startswith("cvt.rn.bf16") for o in operations)
            elif kinds["g"] is compute:
                assert any(re.match(r"ld\.global\.v[24]\.", o) for o in operations)


# On a GPU


@needs_gpu
@needs_triton
@pytest.mark.parametrize(
    "run",
    [
        gpu_runs.every_operation,
        gpu_runs.rounding,
        gpu_runs.layouts,
        gpu_runs.launches,
        lambda device: gpu_runs.optimizers(device, 100),
    ],
    ids=["operations", "rounding", "layouts", "launches", "optimizers"],
)
def test_a_gpu_has_the_bits_of_numpy(run: Callable[[str], None]) -> None:
    lifted.cache_clear()
    run("cuda")
    assert not triton_kernel._broken


@needs_gpu
@pytest.mark.parametrize("run", [gpu_runs.layouts, lambda device: gpu_runs.optimizers(device, 100)])
def test_foreach_on_a_gpu_has_the_bits_of_numpy(
    run: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_kernel, "usable", lambda device: False)
    lifted.cache_clear()
    run("cuda")


@needs_gpu
@needs_triton
def test_the_current_stream_is_used_and_nothing_waits() -> None:
    opt = Optimizer(Adam(lr=0.1))
    params = {"w": torch.zeros(1 << 20, device="cuda")}
    state = opt.init(params)
    side = torch.cuda.Stream()
    grads = {"w": torch.zeros(1 << 20, device="cuda")}
    opt.step(params, grads, state, donate=False)
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)
        grads["w"].fill_(1.0)
        torch.cuda.set_sync_debug_mode("error")
        try:
            params, state = opt.step(params, grads, state, donate=True)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    side.synchronize()
    on_host = {"w": np.zeros(1 << 20, np.float32)}
    expected, _ = opt.step(on_host, {"w": np.ones(1 << 20, np.float32)}, opt.init(on_host))
    assert_same_bits(params["w"], expected["w"])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_leaves_on_several_gpus() -> None:
    opt = Optimizer(Adam(lr=0.1))
    params = {d: torch.ones(5, device=d) for d in ("cpu", "cuda:0", "cuda:1")}
    state = opt.init(params)
    params, state = opt.step(params, {n: p.clone() for n, p in params.items()}, state, donate=True)
    for name, p in params.items():
        assert str(p.device) == name
        assert_same_bits(p, params["cpu"], what=name)
