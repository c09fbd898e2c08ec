"""Checkpoints: exact, checked by name, atomic; nothing that is wrong is ever loaded."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from polyopt import Adam, Optimizer, checkpoint
from polyopt.backend.protocol import Backend
from polyopt.core import tree
from polyopt.core.errors import BackendError, CheckpointError, InputError
from polyopt.testing import assert_same_bits

DTYPES = ("float16", "bfloat16", "float32", "float64")


def example() -> tuple[dict[str, Any], dict[str, Any]]:
    x = np.array([[1.5, -0.0, np.nan], [np.inf, 3e-5, 7.0]])
    params = {
        "layers": [{"weight": x.astype("float32"), "bias": np.zeros(0, "float32")}],
        "half": x.astype("float16"),
        "brain": x.astype(ml_dtypes.bfloat16),
        "double": x * np.pi,
        "scalar": np.array(2.5),
    }
    state = Optimizer(Adam()).init(params)
    state |= {
        "step": 2**70 + 1,
        "missed": {"half": 3},
        "observed": {"lr": {"value": 0.1, "best": float("inf")}},
    }
    return params, state


def saved(path: Path, meta: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    params, state = example()
    checkpoint.save(path, params, state, meta)
    return params, state


def same(a: Any, b: Any) -> None:
    """The same plain data, arrays to the bit."""
    x, y = tree.named(a), tree.named(b)
    assert list(x) == list(y)
    for name, value in x.items():
        if hasattr(value, "shape"):
            assert_same_bits(y[name], value, what=name)
        else:
            assert type(y[name]) is type(value)
            assert repr(y[name]) == repr(value)


def test_everything_comes_back_to_the_bit(tmp_path: Path) -> None:
    meta = {"epoch": 3, "rate": 0.1, "nan": float("nan"), "tuple": (1, [None, True]), "text": "ü\n\U0001f600"}
    params, state = saved(tmp_path / "x.safetensors", meta)
    found = checkpoint.load(tmp_path / "x.safetensors", like=params, state_like=state)
    same(params, found.params)
    same(state, found.state)
    assert repr(found.meta) == repr(meta)
    assert list(tmp_path.iterdir()) == [tmp_path / "x.safetensors"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_loads_on_any_backend(tmp_path: Path, backend: Backend, dtype: str) -> None:
    host = np.array([[1.5, -0.0], [3e-5, 7.0]]).astype(
        np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    )
    params = {"w": backend.from_numpy(host, dtype=dtype)}
    state = Optimizer(Adam()).init(params)
    checkpoint.save(tmp_path / "x", params, state)
    found = checkpoint.load(tmp_path / "x", backend=backend.name)
    assert backend.is_array(found.params["w"])
    assert_same_bits(found.params["w"], host)
    assert found.state is not None
    assert backend.is_array(found.state["slots"]["exp_avg"]["w"])
    like = checkpoint.load(tmp_path / "x", like=params, state_like=state)
    assert backend.is_array(like.params["w"])


def test_the_safetensors_library_reads_it(tmp_path: Path) -> None:
    params = {"a": {"b": np.arange(6, dtype="float32").reshape(2, 3)}, "c": np.array(1.0)}
    checkpoint.save(tmp_path / "x.safetensors", params, Optimizer(Adam()).init(params))
    found = load_file(tmp_path / "x.safetensors")
    assert_same_bits(found["params/a.b"], params["a"]["b"])
    assert "slots/exp_avg/a.b" in found


def test_leaves_that_differ_are_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "x"
    params = {"weight": np.zeros((2, 3)), "bias": np.zeros(3)}
    state = Optimizer(Adam()).init(params)
    checkpoint.save(file, params, state)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"weight": np.zeros((2, 3)), "biass": np.zeros(3)}, r"'biass' is missing; did you mean 'bias'\?"),
        ({"weight": np.zeros((2, 3))}, r"'bias' is not expected"),
        (
            {"weight": np.zeros((3, 2)), "bias": np.zeros(3)},
            r"'weight' has shape \(2, 3\); expected \(3, 2\)",
        ),
        (
            {"weight": np.zeros((2, 3)), "bias": np.zeros(3, "float32")},
            "'bias' has dtype float64; expected float32",
        ),
    ]
    for like, message in cases:
        with pytest.raises(CheckpointError, match=message):
            checkpoint.load(file, like=like)
    other = state | {"slots": state["slots"] | {"momentum_buffer": {"weight": np.zeros((2, 3))}}}
    with pytest.raises(CheckpointError, match="'slots/momentum_buffer/weight' is missing"):
        checkpoint.load(file, like=params, state_like=other)
    checkpoint.save(file, params)
    with pytest.raises(CheckpointError, match="no optimizer state"):
        checkpoint.load(file, like=params, state_like=state)


def test_what_cannot_be_stored_is_refused_and_the_file_stays(tmp_path: Path) -> None:
    file = tmp_path / "x"
    params, _ = saved(file)
    before = file.read_bytes()
    for state, meta in [
        ({"step": object()}, {}),
        ({"slots": {1: 2}}, {}),
        ({"x": np.zeros(2, "complex128")}, {}),
        (None, {"array": np.zeros(2)}),
        (None, {"x": object()}),
    ]:
        with pytest.raises(InputError, match="checkpoint: "):
            checkpoint.save(file, params, state, meta)
    assert file.read_bytes() == before


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    file = tmp_path / "x"
    saved(file)
    before = file.read_bytes()

    def fail(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CheckpointError, match=r"can't write .*; what was there before is intact"):
        checkpoint.save(file, {"w": np.zeros(3)})
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_a_full_disk(tmp_path: Path) -> None:
    file = tmp_path / "x"
    saved(file)
    before = file.read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))
    try:
        with pytest.raises(CheckpointError, match=r"can't write .*too large"):
            checkpoint.save(file, {"w": np.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_places_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(CheckpointError, match=r"can't write"):
        checkpoint.save(tmp_path / "file" / "x", {"w": np.zeros(1)})
    for path in (tmp_path, tmp_path / "fifo", tmp_path / "none", tmp_path / "a\0b"):
        with pytest.raises(CheckpointError):
            checkpoint.load(path)


def raw(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(shape: Any, begin: Any, end: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def bodied(body: str) -> bytes:
    """A file whose own header is ``body``, with the right checksum: anybody can make one."""
    digest = hashlib.sha256(body.encode()).hexdigest()
    return raw({"__metadata__": {"polyopt": f"{digest} {body}"}})


HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "short": b"\x01\x02",
    "huge header": (2**63).to_bytes(8, "little") + b"{}",
    "longer than the file": (100).to_bytes(8, "little") + b"{}",
    "pickle": pickle.dumps({"w": [1.0] * 10}),
    "not JSON": raw(b"{nonsense"),
    "not UTF-8": raw(b'{"\xff\xfe": 1}'),
    "a list": raw([1, 2]),
    "deep nesting": raw(b"[" * 200_000 + b"]" * 200_000),
    "deep nesting in an entry": raw(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "duplicate keys": raw(b'{"a": {"dtype":"F32","shape":[],"data_offsets":[0,4]}, "a": 1}', b"\0" * 4),
    "overlap": raw({"a": entry([1], 0, 4), "b": entry([1], 2, 6)}, b"\0" * 6),
    "gap": raw({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, b"\0" * 12),
    "out of range": raw({"a": entry([4], 0, 16)}, b"\0" * 4),
    "left over": raw({"a": entry([1], 0, 4)}, b"\0" * 9),
    "negative offset": raw({"a": entry([1], -4, 0)}, b"\0" * 4),
    "negative size": raw({"a": entry([-1], 0, 4)}, b"\0" * 4),
    "absurd shape": raw({"a": entry([2**61, 2**61], 0, 4)}, b"\0" * 4),
    "absurd empty shape": raw({"a": entry([2**61, 0], 0, 0)}),
    "many dimensions": raw({"a": entry([1] * 100, 0, 4)}, b"\0" * 4),
    "float shape": raw({"a": entry([1.0], 0, 4)}, b"\0" * 4),
    "bool shape": raw({"a": entry([True], 0, 4)}, b"\0" * 4),
    "huge integer": raw(
        b'{"a": {"dtype":"F32","shape":[' + b"9" * 10_000 + b'],"data_offsets":[0,4]}}', b"\0" * 4
    ),
    "NaN": raw(b'{"a": NaN}'),
    "unknown dtype": raw({"a": entry([1], 0, 4, "Q9")}, b"\0" * 4),
    "dtype of no string": raw({"a": entry([1], 0, 4, ["F32"])}, b"\0" * 4),
    "dtype that NumPy lacks": raw({"a": entry([1], 0, 1, "F8_E8M0")}, b"\0"),
    "dtype of no parameter": raw({"a": entry([1], 0, 8, "C64")}, b"\0" * 8),
    "name of many lines": raw({"\n\x1b[2J" * 1000: entry([1], 0, 9)}, b"\0" * 9),
    "twice metadata": raw(b'{"__metadata__": {"polyopt": ""}, "__metadata__": {}}'),
    "extra field": raw({"a": entry([1], 0, 4) | {"x": 1}}, b"\0" * 4),
    "long name": raw({"a" * 100_000: entry([1], 0, 4)}, b"\0" * 4),
    "metadata of numbers": raw({"__metadata__": {"format": 3}}),
    "metadata of no table": raw({"__metadata__": "x"}),
    "foreign": raw({"a": entry([1], 0, 4), "__metadata__": {"format": "pt"}}, b"\0" * 4),
    "body: not JSON": bodied("{"),
    "body: list": bodied("[]"),
    "body: version": bodied('{"version": 99}'),
    "body: bare": bodied('{"version": 1}'),
    "body: deep": bodied(
        '{"version":1,"tensors":{},"meta":{"dict":{}},"state":' + '{"list":[' * 400 + "1" + "]}" * 400 + "}"
    ),
    "body: unknown kind": bodied(
        '{"version":1,"tensors":{},"meta":{"dict":{}},"state":{"code":"os.system"}}'
    ),
    "body: tensor that is not there": bodied(
        '{"version":1,"tensors":{},"meta":{"dict":{}},"state":{"dict":{"x":{"tensor":"x"}}}}'
    ),
    "body: tensor in meta": bodied('{"version":1,"tensors":{},"meta":{"tensor":"x"},"state":null}'),
    "body: missing tensor": bodied('{"version":1,"tensors":{"a":{}},"meta":{"dict":{}},"state":null}'),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(tmp_path: Path, name: str) -> None:
    file = tmp_path / "x"
    file.write_bytes(HOSTILE[name])
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(file)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("key", "other"),
    [
        ("params/w", entry([2], 0, 8, "I32")),
        ("params/w", entry([2, 1], 0, 8)),
        ("params/w", entry([1], 8, 12)),
        ("params/v", entry([2], 0, 8)),
        ("polyopt", "0 {}"),
    ],
)
def test_a_key_that_stands_twice_loads_nothing_else(tmp_path: Path, key: str, other: Any, last: bool) -> None:
    """The library takes the last; only what was saved passes the checks."""
    file = tmp_path / "x"
    checkpoint.save(file, {"w": np.ones(2, "float32"), "v": np.ones(1, "float32")})
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header, data = whole[8 : 8 + length].decode(), whole[8 + length :]
    start = header.index(f'"{key}":')
    value, end = json.JSONDecoder().raw_decode(header, start + len(key) + 3)
    pair = [f'"{key}":{json.dumps(x)}' for x in ((value, other) if last else (other, value))]
    file.write_bytes(raw((header[:start] + ",".join(pair) + header[end:]).encode(), data))
    if last:
        with pytest.raises(CheckpointError):
            checkpoint.load(file)
    else:
        same({"w": np.ones(2, "float32"), "v": np.ones(1, "float32")}, checkpoint.load(file).params)


def test_a_file_larger_than_memory(tmp_path: Path) -> None:
    """A sparse one takes no room on the disk."""
    size = 1 << 43
    head = raw({"a": entry([size], 0, size, "U8")})
    (tmp_path / "x").write_bytes(head)
    os.truncate(tmp_path / "x", len(head) + size)
    limit = resource.getrlimit(resource.RLIMIT_AS)
    # Some systems promise more memory than they have.
    resource.setrlimit(resource.RLIMIT_AS, (1 << 42, limit[1]))
    try:
        with pytest.raises(CheckpointError, match="not enough memory"):
            checkpoint.load(tmp_path / "x")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)


def test_names_that_the_format_lacks(tmp_path: Path) -> None:
    x = np.ones(2)
    for params, state in [
        ({"\ud800": x}, None),
        ({"a" * 5000: x}, None),
        ({"w": x}, {"__metadata__": x}),
    ]:
        with pytest.raises(InputError, match="checkpoint: "):
            checkpoint.save(tmp_path / "x", params, state)
        assert not list(tmp_path.iterdir())


def test_equal_checkpoints_are_equal_files_of_ordinary_mode(tmp_path: Path) -> None:
    for i in range(8):
        saved(tmp_path / f"{i}", {"epoch": 3})
    (tmp_path / "plain").touch()
    assert len({(tmp_path / f"{i}").read_bytes() for i in range(8)}) == 1
    assert (tmp_path / "0").stat().st_mode == (tmp_path / "plain").stat().st_mode


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_noticed_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    """Flipped, cut, inserted bytes: either CheckpointError, or (JSON blanks) the very same contents."""
    file, hurt = tmp_path / "x", tmp_path / "hurt"
    if not file.exists():
        saved(file, {"epoch": 3})
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    at = data.draw(
        st.one_of(st.integers(0, len(whole) - 1), st.integers(0, 7), st.integers(header - 9, header + 9))
    )
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "remove"]))
    byte = data.draw(st.integers(1, 255))
    damaged = {
        "flip": whole[:at] + bytes([whole[at] ^ byte]) + whole[at + 1 :],
        "cut": whole[:at],
        "insert": whole[:at] + bytes([byte]) + whole[at:],
        "remove": whole[:at] + whole[at + 1 :],
    }[kind]
    hurt.write_bytes(damaged)
    try:
        found = checkpoint.load(hurt)
    except CheckpointError:
        return
    sound = checkpoint.load(file)
    same(sound.params, found.params)
    same(sound.state, found.state)
    assert found.meta == sound.meta


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    meta=st.dictionaries(
        st.text(max_size=5),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.tuples(inner)
                | st.dictionaries(st.text(max_size=3), inner, max_size=3)
            ),
            max_leaves=8,
        ),
        max_size=4,
    )
)
def test_any_plain_data_comes_back(tmp_path: Path, meta: dict[str, Any]) -> None:
    checkpoint.save(tmp_path / "x", {}, None, meta)
    assert repr(checkpoint.load(tmp_path / "x").meta) == repr(meta)


PEAK = """
import sys
from polyopt import checkpoint
from polyopt.backend import registry

path, name, what = sys.argv[1:]
backend, xp = registry.by_name(name), registry.by_name(name).ops
small, size = path + ".small", 6 * 4_000_000 * 4


def value(key):
    return int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1]) * 1024


if what == "load":
    checkpoint.load(small, backend=name)  # what is imported or made ready at the first use
    before = value("VmRSS:")
    found = checkpoint.load(path, backend=name)
else:
    turned = {k: xp.permute_dims(x, (1, 0)) for k, x in checkpoint.load(path, backend=name).params.items()}
    checkpoint.save(small, {"w": next(iter(turned.values()))})
    before = value("VmRSS:")
    open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
    checkpoint.save(path + ".again", turned)
print((value("VmHWM:") - before) / size)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from /proc")
@pytest.mark.parametrize(("what", "most"), [("load", 1.1), ("save", 0.3)])
def test_memory_at_the_peak(tmp_path: Path, backend: Backend, what: str, most: float) -> None:
    """Loading takes the arrays alone, each in memory once; saving at most a copy of one of them, of six."""
    params = {f"{i}": np.full((4_000, 1_000), i, "float32") for i in range(6)}
    checkpoint.save(tmp_path / "x", params)
    checkpoint.save(tmp_path / "x.small", {"w": np.zeros((2, 2), "float32")})
    command = [sys.executable, "-c", PEAK, str(tmp_path / "x"), backend.name, what]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout.split()[-1]) < most


def test_an_array_of_foreign_byte_order_comes_back(tmp_path: Path) -> None:
    x = np.arange(6, dtype=">f4").reshape(2, 3)
    checkpoint.save(tmp_path / "x", {"w": x, "turned": x.T})
    found = checkpoint.load(tmp_path / "x").params
    assert_same_bits(found["w"], x.astype("<f4"))
    assert_same_bits(found["turned"], np.ascontiguousarray(x.T.astype("<f4")))


def test_an_unknown_backend_is_refused_before_the_file_is_read(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="torch"):
        checkpoint.load(tmp_path / "none", backend="troch")
