"""Call polyopt from programs that a framework compiles: it compiles by itself, and is left out of them."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from polyopt import Optimizer, TrainStep, apply, value_and_grad
from polyopt.core.opaque import opaque

PROGRAM = """
import warnings
warnings.simplefilter("error")
import torch
from polyopt import Adam, Optimizer, TrainStep, apply, value_and_grad

graphs = []
def counted(module, inputs):
    graphs.append(sum(node.op == "call_function" for node in module.graph.nodes))
    return module.forward

def loss(xp, params, x):
    return xp.sum((params["w"] * x - params["b"]) ** 2)

def fresh():
    return {"w": torch.ones(4, 3), "b": torch.zeros(3)}

x, optimizer = torch.arange(3.0), Optimizer(Adam(lr=0.1))
train, gradient = TrainStep(loss, optimizer), value_and_grad(loss)

def by_step(donate, x):
    params, state = fresh(), optimizer.init(fresh())
    for _ in range(3):
        _, gradients = gradient(params, x * 2)
        params, state = optimizer.step(params, gradients, state, donate=donate)
    return {k: v + 1 for k, v in params.items()}

def by_update(x):
    params, state = fresh(), optimizer.init(fresh())
    _, gradients = gradient(params, x * 2)
    updates, state = optimizer.update(gradients, state, params)
    return {k: v + 1 for k, v in apply(params, updates).items()}

def by_train_step(x):
    carry = train.init(fresh())
    for _ in range(3):
        carry, _ = train(carry, x * 2)
    return {k: v + 1 for k, v in train.unload(carry)[0].items()}

def run(function, *args):
    return {k: v.tolist() for k, v in function(*args).items()}

cases = [(by_step, True), (by_step, False), (by_update,), (by_train_step,)]
if WARM:
    expected = [run(function, *args, x) for function, *args in cases]
found = []
for function, *args in cases:
    graphs.clear()
    found.append(run(torch.compile(function, backend=counted), *args, x))
    assert sum(graphs) <= 12, graphs  # its own additions and products, and what makes its parameters
if not WARM:
    expected = [run(function, *args, x) for function, *args in cases]
assert found == expected
torch._dynamo.reset()
try:
    torch.compile(by_update, fullgraph=True, backend=counted)(x)
except torch._dynamo.exc.Unsupported as error:
    assert "polyopt compiles by itself" in str(error)
else:
    raise AssertionError("a graph that holds an optimizer")
"""


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_torch_compile_leaves_it_out(warm: bool) -> None:
    """Also where no step was made before, and without a warning."""
    pytest.importorskip("torch")
    code = PROGRAM.replace("WARM", str(warm))
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_it_is_the_function_to_who_looks_at_it() -> None:
    assert opaque(max)(2, 3) == 3
    for function in (
        Optimizer.step,
        Optimizer.update,
        TrainStep.load,
        apply,
        value_and_grad(lambda xp, p: p),
    ):
        assert function.__doc__ or function.__name__ == "run"
        assert "kwargs" not in inspect.signature(function).parameters
