"""Files are written whole or not at all, through links, with the permissions that they had."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyopt import checkpoint
from polyopt.core.errors import InputError
from polyopt.core.files import _stem, replacing, write_atomic

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
def test_a_read_only_file_is_respected(tmp_path: Path) -> None:
    """By the superuser too, who may write anywhere."""
    path = tmp_path / "data"
    path.write_bytes(b"old")
    path.chmod(0o444)
    with pytest.raises(InputError, match="it is read-only"):
        write_atomic(path, [b"new"])
    assert path.read_bytes() == b"old"


@POSIX
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_respected(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(InputError, match="permission denied"):
        write_atomic(tmp_path / "data", [b"new"])


@POSIX
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_an_existing_file_keeps_its_owner_and_group(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"old")
    os.chown(path, 1234, 2345)
    path.chmod(0o640)
    write_atomic(path, [b"new"])
    found = path.stat()
    assert (found.st_uid, found.st_gid, mode(path), path.read_bytes()) == (1234, 2345, 0o640, b"new")


def refused(place: Path) -> dict[str, tuple[Any, str]]:
    """Return targets that can't be, and what is said of each."""
    (place / "file").write_bytes(b"old")
    (place / "folder").mkdir()
    os.mkfifo(place / "pipe")
    (place / "loop").symlink_to("other loop")
    (place / "other loop").symlink_to("loop")
    (place / "to pipe").symlink_to("pipe")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(place)  # a socket's path has at most a hundred characters
        server.bind("socket")
        os.chdir(here)
    return {
        "a device": ("/dev/null", "it is no regular file"),
        "a pipe": (place / "pipe", "it is no regular file"),
        "a link to a pipe": (place / "to pipe", "it is no regular file"),
        "a socket": (place / "socket", "it is no regular file"),
        "a folder": (place / "folder", "it is a directory"),
        "a circle of links": (place / "loop", "its links lead in a circle"),
        "a folder by a circle of links": (place / "loop" / "x", "too many levels of symbolic links"),
        "below a file": (place / "file" / "x", "not a directory"),
        "NUL": (f"{place}/a\0b", "null"),
        "a name too long": (place / ("x" * 300), "file name too long"),
        "a path too long": ("/".join([str(place), *["x" * 200] * 30]), "file name too long"),
        "nothing": ("", "the path is empty"),
        "no path": (7, "to int; expected a path"),
        "half a character": (f"{place}/\ud800", "surrogates not allowed"),
    }


@POSIX
def test_what_is_no_place_for_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    for what, (path, reason) in refused(tmp_path / "place").items():
        before = sorted(os.listdir(tmp_path / "place"))
        with pytest.raises(InputError, match=reason) as caught:
            write_atomic(path, [b"new"])
        assert len(str(caught.value)) < 400, what
        assert "\n" not in str(caught.value), what
        assert str(caught.value).isprintable(), what
        assert sorted(os.listdir(tmp_path / "place")) == before, what
        assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_the_longest_name(tmp_path: Path) -> None:
    path = tmp_path / ("ü" * 127)
    write_atomic(path, [b"new"])
    (tmp_path / f"{_stem(path)}{'0' * 16}.tmp").write_bytes(b"left over")
    write_atomic(path, [b"newer"])
    assert [(x.name, x.read_bytes()) for x in tmp_path.iterdir()] == [(path.name, b"newer")]


def test_the_file_of_a_living_writer_is_no_leftover(tmp_path: Path) -> None:
    """Also where another process got the number of one that was killed."""
    path = tmp_path / "data"
    with replacing(path) as first:
        Path(first).write_bytes(b"first")
        write_atomic(path, [b"second"])
        assert path.read_bytes() == b"second"
        assert Path(first).exists()
    assert path.read_bytes() == b"first"
    assert [x.name for x in tmp_path.iterdir()] == ["data"]


@POSIX
@settings(max_examples=150, deadline=None)
@given(
    old=st.none() | st.binary(max_size=9),
    bits=st.sampled_from([0o600, 0o640, 0o666, 0o444, 0o755, 0o000]),
    links=st.integers(0, 3),
    leftovers=st.sets(st.text("0123456789abcdef", min_size=16, max_size=16), max_size=3),
    new=st.lists(st.binary(max_size=9), max_size=3),
    fails=st.sampled_from([None, ValueError, OSError, KeyboardInterrupt]),
)
def test_the_old_or_the_new_and_nothing_beside(
    old: bytes | None, bits: int, links: int, leftovers: set[str], new: list[bytes], fails: Any
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        end = path = Path(folder) / "data"
        for i in range(links):
            (Path(folder) / f"link{i}").symlink_to(path)
            path = Path(folder) / f"link{i}"
        if old is not None:
            end.write_bytes(old)
            end.chmod(bits)
        for x in leftovers:
            (Path(folder) / f".data.{x}.tmp").write_bytes(b"left over")
        stays = fails is not None or (old is not None and not bits & 0o200)
        try:
            with replacing(path) as temporary:
                assert Path(temporary).parent == Path(folder)
                Path(temporary).write_bytes(b"".join(new))
                if fails is not None:
                    raise fails
        except (InputError, ValueError, KeyboardInterrupt):
            assert stays
        else:
            assert not stays
        beside = {f"link{i}" for i in range(links)}
        refused_first = old is not None and not bits & 0o200
        left = {f".data.{x}.tmp" for x in leftovers} if refused_first else set()
        there = set() if stays and old is None else {"data"}
        assert set(os.listdir(folder)) == beside | left | there
        assert all((Path(folder) / f"link{i}").is_symlink() for i in range(links))
        if there:
            assert end.read_bytes() == (old if stays else b"".join(new))
        if old is not None:
            assert mode(end) == bits


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
