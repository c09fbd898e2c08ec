"""Interrupts at any moment of a step: no thread writes on, nothing hangs, and later steps have their bits."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

STEPS = """
import random, signal, sys, time
import numpy as np

kind, wanted, longest = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
if kind == "without numba":
    sys.modules["numba"] = None
from polyopt import AdamW, ClipByGlobalNorm, Optimizer, chain
from polyopt.backend.host import threads
threads.Pool.size = lambda self: 3
threads.Pool.least, threads.THREADED = 1 << 12, 1 << 12

draw = np.random.default_rng(0)
sizes = {"a": 900_001, "b": 300_000, "c": 7}
host = {k: draw.normal(size=n).astype("float32") for k, n in sizes.items()}
if kind == "tensorflow":
    import tensorflow as tf
    make, numpy = tf.constant, lambda x: x.numpy()
elif kind == "torch":
    import torch
    torch.set_num_threads(3)
    make, numpy = lambda x: torch.from_numpy(x.copy()), lambda x: x.numpy()
else:
    make, numpy = np.copy, lambda x: x
if kind == "tensorflow":
    # TensorFlow itself crashes where a handler raises inside of its conversions: while threads work alone.
    share = threads.Pool._share

    def interrupted_share(*args):
        delay, wanted_here[:] = (wanted_here or [0.0])[0], []
        signal.setitimer(signal.ITIMER_REAL, delay)
        share(*args)
        time.sleep(delay)

    threads.Pool._share = interrupted_share
wanted_here = []
gradients = {k: make(np.sin(7 * x)) for k, x in host.items()}


def run(interrupted):
    optimizer = Optimizer(chain(ClipByGlobalNorm(max_norm=1.0), AdamW(lr=0.01)))
    params = {k: make(x) for k, x in host.items()}
    state = optimizer.init(params)
    left = wanted if interrupted else 0

    def interrupt(*_):
        raise TimeoutError

    signal.signal(signal.SIGALRM, interrupt)
    for step in range(30):
        while True:
            # A step whose arrays are not given up can be done again.
            try:
                if left > 0:
                    delay = random.uniform(2e-5, longest)
                    if kind == "tensorflow":
                        wanted_here[:] = [delay]
                    else:
                        signal.setitimer(signal.ITIMER_REAL, delay)
                found = optimizer.step(params, gradients, state)
                time.sleep(0 if left <= 0 else longest)
                signal.setitimer(signal.ITIMER_REAL, 0)
                break
            except TimeoutError:
                left -= 1
                if left > wanted * (29 - step) // 30:
                    continue
                signal.setitimer(signal.ITIMER_REAL, 0)
        params, state = found if left <= 0 and not interrupted else optimizer.step(params, gradients, state)
    assert not interrupted or left <= 0, left
    return {k: numpy(x) for k, x in params.items()}


random.seed(1)
calm, disturbed = run(False), run(True)
for k, x in calm.items():
    assert x.tobytes() == disturbed[k].tobytes(), k
print("the same bits")
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timer here")
@pytest.mark.parametrize(
    ("kind", "interrupts", "longest"),
    [
        ("numpy", 1000, 0.003),
        ("without numba", 1000, 0.006),
        ("torch", 300, 0.003),
        ("tensorflow", 300, 0.001),
    ],
)
def test_interrupts_at_random_moments_change_nothing(kind: str, interrupts: int, longest: float) -> None:
    command = [sys.executable, "-W", "ignore", "-c", STEPS, kind, str(interrupts), str(longest)]
    # A deadlock ends here.
    run = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.strip() == "the same bits"
