"""Interrupts at any moment of a step: no thread writes on, nothing hangs, and later steps have their bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.interrupts import interrupted

from polyopt.backend import registry

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


def passes(program: str, *arguments: str) -> str:
    """What ``program`` printed in a process of its own, where a deadlock ends in a failure."""
    command = [sys.executable, "-W", "ignore", "-c", program, *arguments]
    tests = str(Path(__file__).parents[3])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([tests, *filter(None, sys.path)])}
    run = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment)
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout.strip()


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
    assert passes(STEPS, kind, str(interrupts), str(longest)) == "the same bits"


PLACES = """
import sys, time
from helpers.interrupts import interrupted
from polyopt.backend.host import threads
from polyopt.backend.host.threads import POOL, Pool

if sys.argv[1] == "locks":
    threads._posix = []
threads.THREADED, Pool.size = 1, lambda self: 2
begun, ended, places = [], [], 0


def work(k):
    begun.append(k)
    time.sleep(1e-3)
    ended.append(k)
    return k * k


for places in interrupted(lambda: POOL.each(work, range(4), 4)):
    assert sorted(begun) == sorted(ended), places
    assert POOL.each(work, range(4), 4) == [0, 1, 4, 9]
assert places > 20, places
"""


@pytest.mark.parametrize("kind", ["barriers", "locks"])
def test_pieces_have_ended_at_whatever_bytecode_an_interrupt_comes(kind: str) -> None:
    passes(PLACES, kind)


ROUNDS = """
import random, signal, sys, time
from polyopt.backend.host import threads
from polyopt.backend.host.threads import POOL, Pool

if sys.argv[1] == "locks":
    threads._posix = []
threads.THREADED, Pool.size = 1, lambda self: 3
begun, ended, hits = [], [], 0


def work(k):
    begun.append(k)
    time.sleep(2e-4)
    ended.append(k)
    return k * k


def interrupt(_, frame):
    while frame is not None:
        if frame.f_code is Pool.each.__code__:
            raise TimeoutError
        frame = frame.f_back


random.seed(1)
signal.signal(signal.SIGALRM, interrupt)
signal.setitimer(signal.ITIMER_REAL, 7e-4, 7e-4)
while hits < 1000:
    time.sleep(random.uniform(0, 3e-4))
    try:
        assert POOL.each(work, range(6), 6) == [0, 1, 4, 9, 16, 25]
    except TimeoutError:
        hits += 1
    assert len(begun) == len(ended), hits
signal.setitimer(signal.ITIMER_REAL, 0)
print(POOL._workers)
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timer here")
@pytest.mark.parametrize("kind", ["barriers", "locks"])
def test_signals_at_random_moments_wait_for_pieces(kind: str) -> None:
    assert passes(ROUNDS, kind) == "3"


@pytest.mark.parametrize("context", ["backend_context", "forced"])
def test_interrupts_leave_no_backend_chosen(context: str) -> None:
    which: Any = "numpy" if context == "backend_context" else registry.by_name("numpy")

    def use() -> None:
        with getattr(registry, context)(which):
            pass

    places = 0
    for places in interrupted(use):  # noqa: B007
        assert registry._scoped.get() is None
        assert registry._forced.get() is None
    assert places > 5


AROUND = """
import atexit, os, sys, threading, time
from functools import partial
import optree  # which forgets all containers at the end: after `late`, so
kind = sys.argv[1]


def late():
    if kind == "late":  # the workers have been ended by then
        assert bits(stepped(3)) == alone
        print("stepped")


atexit.register(late)
import numpy as np
from polyopt import AdamW, ClipByGlobalNorm, Optimizer, chain
from polyopt.backend.host import threads
from polyopt.backend.host.threads import POOL, Pool

Pool.size = lambda self: 1
optimizer = Optimizer(chain(ClipByGlobalNorm(max_norm=1.0), AdamW(lr=0.01)))
start = {k: np.sin(np.arange(n, dtype="float32")) for k, n in {"a": 400_001, "b": 90_000, "c": 7}.items()}


def stepped(steps, own=optimizer):
    params = {k: x.copy() for k, x in start.items()}
    state = own.init(params)
    for _ in range(steps):
        params, state = own.step(params, start, state, donate=True)
    return params


def bits(params):
    return {k: x.tobytes() for k, x in params.items()}


alone, made, call = bits(stepped(3)), [], Pool.call
Pool.size = lambda self: 3
Pool.least, threads.THREADED = 1 << 12, 1
Pool.call = lambda *args: made.append(call(*args)) or made[-1]
assert bits(stepped(3)) == alone
found = []
many = [threading.Thread(target=lambda: found.append(bits(stepped(3)))) for _ in range(4)]
if kind == "threads":
    [thread.start() for thread in many], [thread.join() for thread in many]
    assert found == [alone] * 4
elif kind == "nested":
    assert POOL.each(lambda _: bits(stepped(3)), range(6), 6) == [alone] * 6
elif kind == "fork":
    busy = threading.Thread(target=stepped, args=(400,))
    busy.start()
    for _ in range(5):
        time.sleep(0.01)
        child = os.fork()
        if child == 0:
            right = bits(stepped(3)) == alone and POOL.each(abs, range(9), 9) == list(range(9))
            os._exit(7 if right else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert bits(stepped(3)) == alone
elif kind == "exit":
    # Of C alone: a thread that the interpreter ends inside of C++ aborts the process before Python 3.14.
    params = {k: x.copy() for k, x in start.items()}
    own = Optimizer(AdamW(lr=0.01))
    state = own.init(params)
    for _ in range(2):  # the second's kernel is kept, as it is, for the third
        params, state = own.step(params, start, state, donate=True)
    bounds = [slice(i, i + 9999) for i in range(0, 400_000, 9999)]
    other = np.ones(400_000, np.float32)
    pieces = partial(POOL.each, lambda here: np.sin(other[here], out=other[here]), bounds, 9999)
    works = [made[-1], pieces] if "numba" in sys.modules and sys.modules["numba"] else [pieces]


    def repeated(*kept):  # as a step's own frames do
        while True:
            for work in kept[0]:
                work()

    threading.Thread(target=repeated, args=(works, own, params, state, start), daemon=True).start()
    time.sleep(0.2)
elif kind == "exit in a piece":

    def once():
        POOL.each(lambda _: stepped(3), range(60), 60)
        while True:
            time.sleep(1)

    threading.Thread(target=once, daemon=True).start()
    time.sleep(0.05)
print("the same bits")
"""


@pytest.mark.parametrize("numba", [True, False], ids=["numba", "no-numba"])
@pytest.mark.parametrize("kind", ["threads", "nested", "exit", "exit in a piece", "late"])
def test_steps_around_others_have_their_bits(kind: str, numba: bool) -> None:
    program = AROUND if numba else "import sys; sys.modules['numba'] = None\n" + AROUND
    assert passes(program, kind).splitlines() == ["the same bits"] + ["stepped"] * (kind == "late")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_forked_while_a_kernel_runs_has_its_bits() -> None:
    assert passes(AROUND, "fork") == "the same bits"
