"""A step after a fork: the threads of the process before are not the child's."""

from __future__ import annotations

import subprocess
import sys


def child_of(setup: str) -> str:
    """What a forked child ended with: 7 where its step gave zeros.

    ``setup`` makes an optimizer ``o`` and parameters ``p``, which are their own gradients, so large that
    threads share them. The result is looked at by NumPy: PyTorch's threads are the parent's too.
    """
    code = (
        f"import os, numpy as np\n{setup}\n"
        "s = o.init(p)\n"
        "o.step(p, p, s)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(1 if np.asarray(o.step(p, p, s)[0]).any() else 7)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return out.stdout.strip()
