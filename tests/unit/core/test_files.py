"""Files are written whole or not at all, through links, with the permissions that they had."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyopt import checkpoint
from polyopt.core.errors import InputError
from polyopt.core.files import replacing, write_atomic

POSIX = pytest.mark.skipif(os.name != "posix", reason="permissions and links of POSIX")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@POSIX
@pytest.mark.parametrize("how", ["absolute", "relative", "chained", "dangling"])
def test_a_link_is_written_through(tmp_path: Path, how: str) -> None:
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "data", tmp_path / "link"
    if how != "dangling":
        target.write_bytes(b"old")
    if how == "relative":
        link.symlink_to(Path("far") / "data")
    elif how == "chained":
        (tmp_path / "middle").symlink_to(target)
        link.symlink_to(tmp_path / "middle")
    else:
        link.symlink_to(target)
    write_atomic(link, [b"new"])
    assert link.is_symlink()
    assert target.read_bytes() == link.read_bytes() == b"new"


@POSIX
@pytest.mark.parametrize("bits", [0o600, 0o640, 0o664])
def test_an_existing_file_keeps_its_permissions(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"old")
    path.chmod(bits)
    write_atomic(path, [b"new"])
    assert (mode(path), path.read_bytes()) == (bits, b"new")


@POSIX
def test_a_new_file_has_the_permissions_of_the_umask(tmp_path: Path) -> None:
    code = (
        "import os, sys; os.umask(0o027)\n"
        "from polyopt.core.files import write_atomic\n"
        "write_atomic(sys.argv[1], [b'x'])\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "data")], check=True)
    assert mode(tmp_path / "data") == 0o640


@POSIX
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_file_is_respected(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"old")
    path.chmod(0o444)
    with pytest.raises(InputError, match="it is read-only"):
        write_atomic(path, [b"new"])
    assert path.read_bytes() == b"old"


@POSIX
def test_the_process_umask_is_never_changed(tmp_path: Path) -> None:
    """Files that other threads make meanwhile have the modes that they should."""
    before = os.umask(0o077)
    seen, stop = [], threading.Event()

    def others() -> None:
        i = 0
        while not stop.is_set():
            path = tmp_path / f"other{i}"
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o666))
            seen.append(mode(path))
            path.unlink()
            i += 1

    thread = threading.Thread(target=others)
    thread.start()
    try:
        for _ in range(200):
            write_atomic(tmp_path / "data", [b"x"])
    finally:
        stop.set()
        thread.join()
        os.umask(before)
    assert set(seen) == {0o600}


KILLED = """
import sys
import numpy as np
from polyopt import checkpoint
big = {"w": np.full(500_000, float(sys.argv[2]))}
print("ready", flush=True)
while True:
    checkpoint.save(sys.argv[1], big)
"""


@POSIX
def test_a_kill_leaves_the_file_whole_and_at_most_one_temporary(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    checkpoint.save(path, {"w": np.full(500_000, -1.0)})
    draw = np.random.default_rng(0)
    for i in range(6):
        command = [sys.executable, "-c", KILLED, str(path), str(i)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(draw.uniform(0.01, 0.15))
            process.send_signal(signal.SIGKILL)
        found: Any = checkpoint.load(path).params["w"]
        assert len(set(found.tolist())) == 1, "the old or the new one, whole"
        assert len(list(tmp_path.iterdir())) <= 2
    checkpoint.save(path, {"w": np.zeros(3)})
    assert [x.name for x in tmp_path.iterdir()] == ["state.safetensors"]


def test_an_error_in_the_block_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), replacing(path):
        raise ZeroDivisionError
    assert [x.name for x in tmp_path.iterdir()] == ["data"]
    assert path.read_bytes() == b"old"
