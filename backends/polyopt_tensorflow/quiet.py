"""Import TensorFlow without its greetings.

TensorFlow 2.21 logs informational lines on import before its own log level applies
(https://github.com/tensorflow/tensorflow/issues/100442), so ``TF_CPP_MIN_LOG_LEVEL`` alone is not enough:
what is written to standard error meanwhile is held back, and all but those lines is passed on.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _filtered_stderr() -> Iterator[None]:
    try:
        saved = os.dup(2)
    except OSError:  # no standard error at all
        yield
        return
    with tempfile.TemporaryFile() as held:
        try:
            os.dup2(held.fileno(), 2)
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            held.seek(0)
            for line in held:
                if not line.startswith((b"I0", b"I1", b"WARNING: All log messages before absl")):
                    sys.stderr.write(line.decode(errors="replace"))


if "tensorflow" not in sys.modules:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _filtered_stderr():
        import tensorflow as tensorflow
