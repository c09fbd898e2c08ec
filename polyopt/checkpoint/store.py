"""Saving and loading: atomic, checksummed, checked by name, on any backend."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyopt.backend import registry
from polyopt.backend.convert import donate_arrays
from polyopt.backend.protocol import Backend
from polyopt.checkpoint.container import LABELS, Source, as_bytes, read, write
from polyopt.checkpoint.encoding import decode, encode, parse_json
from polyopt.core import tree
from polyopt.core.errors import CheckpointError, InputError, nearest
from polyopt.core.files import shown_path
from polyopt.core.tree import Tree

VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """Hold the parameters, optimizer state and metadata read from a file.

    Parameters
    ----------
    params
        ``{path: array}``, or a tree like the one given to ``load``.
    state
        The optimizer's state; ``None`` where none was saved.
    meta
        Whatever plain data was saved along.
    """

    params: Tree
    state: dict[str, Any] | None
    meta: dict[str, Any]


def save(
    path: str | os.PathLike[str],
    params: Tree,
    state: dict[str, Any] | None = None,
    meta: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint: ``path`` holds the whole of it afterwards, or what it held before.

    Parameters
    ----------
    path
        The file; its directory is made where it is missing.
    params
        Parameters of any framework and dtype. Stored as ``"params/layers.0.weight"``.
    state
        An ``Optimizer``'s state: arrays are stored as
        ``"slots/exp_avg/layers.0.weight"``, numbers in the header: integers of any size, floats exactly.
    meta
        Plain data: dicts with string keys, lists, tuples, numbers, strings, ``None``.

    Raises
    ------
    InputError
        For what can't be stored, naming it; nothing is written.
    CheckpointError
        Where the file can't be written; what was there before is intact.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> from polyopt import Adam, Optimizer
    >>> params = {"layer": {"weight": np.ones((2, 3))}}
    >>> file = tempfile.mkdtemp() + "/run.safetensors"
    >>> save(file, params, Optimizer(Adam()).init(params), {"epoch": 7})
    >>> checkpoint = load(file)
    >>> list(checkpoint.params), checkpoint.state["step"], checkpoint.meta["epoch"]
    (['layer.weight'], 0, 7)
    """
    tensors: dict[str, Source] = {}

    def store(key: str, x: Any) -> None:
        if key in tensors:
            raise InputError(f"checkpoint: two arrays have the key {key!r}")
        tensors[key] = _source(key, x)

    for name, leaf in tree.named(params).items():
        store(f"params/{name}", leaf)

    def no_array(key: str, x: Any) -> None:
        raise InputError(f"checkpoint: {key} is {type(x).__name__}; expected plain data")

    body: dict[str, Any] = {
        "version": VERSION,
        "state": None if state is None else encode(_state_first(state), (), store),
        "meta": encode(meta or {}, ("meta",), no_array),
    }

    def text(digests: Mapping[str, str]) -> str:
        body["tensors"] = {key: _describe(x, digests[key]) for key, x in sorted(tensors.items())}
        own = json.dumps(body, separators=(",", ":"))
        return f"{hashlib.sha256(own.encode()).hexdigest()} {own}"

    write(path, tensors, text)


def load(
    path: str | os.PathLike[str],
    like: Tree = None,
    backend: str | Backend | None = None,
    device: str | None = None,
    *,
    state_like: dict[str, Any] | None = None,
) -> Checkpoint:
    """Read a checkpoint, whole and unharmed, or not at all.

    Parameters
    ----------
    path
        The file.
    like
        Parameters whose names, shapes and dtypes it must have; ``params`` comes back in a tree of their
        structure, on their framework.
    backend, device
        Where the arrays go: by default the framework of ``like``, else the host (NumPy).
    state_like
        A state, ``optimizer.init(params)`` say, whose entries it must have.

    Returns
    -------
    Checkpoint
        The parameters, the state and the metadata.

    Raises
    ------
    CheckpointError
        For a file that is missing, truncated, corrupt or hostile, and, by name, for leaves that are missing,
        extra, mis-shaped or of another dtype.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/w.ckpt", {"w": np.ones(2)}, meta={"epoch": 3})
    ...     found = load(f"{folder}/w.ckpt")
    >>> found.params["w"].tolist(), found.meta
    ([1.0, 1.0], {'epoch': 3})
    """
    target = _target(like, backend)
    tensors, text = read(path)
    try:
        body = _body(text, tensors)
        params, state = _sorted(body, tensors)
        if like is not None:
            _check(params, tree.named(like), "parameter")
        if state_like is not None:
            if state is None:
                raise CheckpointError("it holds no optimizer state")
            _check(_entries(state), _entries(state_like), "state")
        meta = decode(body["meta"], _no_tensor)
        if not isinstance(meta, dict):
            raise CheckpointError("its meta is no table")
    except CheckpointError as e:
        raise CheckpointError(f"{shown_path(path)}: {e}") from None
    if target is not None:
        del params, state  # so that each host array goes as soon as its place is taken
        donate_arrays(tensors, target, device=device)
        params, state = _sorted(body, tensors)
    return Checkpoint(params if like is None else tree.rename(like, params), state, meta)


def _sorted(body: dict[str, Any], tensors: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the parameters by path, and the state with its arrays; every tensor belongs to one of them."""
    params = {k.removeprefix("params/"): x for k, x in tensors.items() if k.startswith("params/")}
    used = {f"params/{name}" for name in params}

    def fetch(key: str) -> Any:
        if key in used or key not in tensors:
            raise CheckpointError(f"its state refers to tensor {key!r}, which it can't")
        used.add(key)
        return tensors[key]

    state = None if body["state"] is None else decode(body["state"], fetch)
    if len(used) != len(tensors):
        raise CheckpointError(f"tensor {next(k for k in tensors if k not in used)!r} belongs to nothing")
    return params, state


def _target(like: Tree, backend: str | Backend | None) -> Backend | None:
    if backend is not None:
        return registry.by_name(backend) if isinstance(backend, str) else backend
    leaves = [] if like is None else list(tree.named(like).values())
    return registry.of(*leaves) if leaves else None


def _source(key: str, x: Any) -> Source:
    """Return what is to be written of an array; nothing is copied to the host yet."""
    try:
        backend = registry.of(x)
        name, shape = backend.dtype_name(x), tuple(x.shape)
    except InputError:
        raise InputError(
            f"checkpoint: {key!r} is {type(x).__name__}; expected an array or plain data"
        ) from None
    known = {str(dtype): dtype for dtype in LABELS}
    if name not in known:
        raise InputError(f"checkpoint: {key!r} has dtype {name}; expected one of {', '.join(known)}")

    def host() -> Any:
        array = np.ascontiguousarray(backend.to_numpy(x)).reshape(shape)
        return array.astype(array.dtype.newbyteorder("<"), copy=False)

    return Source(known[name], shape, host)


def _state_first(state: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(state, dict) or "params" in state:
        raise InputError("checkpoint: the state is no optimizer's state: see Optimizer.init")
    return state


def _describe(x: Any, digest: str) -> dict[str, Any]:
    return {"dtype": LABELS[x.dtype], "shape": list(x.shape), "sha256": digest}


def _body(checked: str, tensors: dict[str, Any]) -> dict[str, Any]:
    """Return the header's own part, after every checksum has been found right."""
    digest, _, text = checked.partition(" ")
    if not text:
        raise CheckpointError("a safetensors file, but not one that polyopt.checkpoint.save wrote")
    if hashlib.sha256(text.encode()).hexdigest() != digest:
        raise CheckpointError("its header is corrupt: the checksum differs")
    body = parse_json(text, "its header")
    if not isinstance(body, dict) or body.get("version") != VERSION:
        version = body.get("version") if isinstance(body, dict) else None
        raise CheckpointError(f"format version {str(version)[:40]}; this polyopt reads version {VERSION}")
    if set(body) != {"version", "tensors", "state", "meta"} or not isinstance(body["tensors"], dict):
        raise CheckpointError("its header lacks tensors, state or meta")
    _same_names(set(tensors), set(body["tensors"]), "tensor")
    for key, x in tensors.items():
        if _describe(x, hashlib.sha256(as_bytes(x)).hexdigest()) != body["tensors"][key]:
            raise CheckpointError(f"tensor {key!r} is corrupt: its checksum, shape or dtype differs")
    return body


def _no_tensor(key: str) -> Any:
    raise CheckpointError("its meta refers to a tensor")


def _same_names(found: set[str], expected: set[str], what: str) -> None:
    for name in sorted(expected - found):
        raise CheckpointError(f"{what} {name!r} is missing; {nearest(name, found - expected or found)}")
    for name in sorted(found - expected):
        raise CheckpointError(
            f"{what} {name!r} is not expected; {nearest(name, expected - found or expected)}"
        )


def _check(found: dict[str, Any], expected: dict[str, Any], what: str) -> None:
    """Refuse other names than expected, and another shape or dtype of any."""
    _same_names(set(found), set(expected), what)
    for name, want in expected.items():
        have = found[name]
        if not hasattr(want, "shape") or not hasattr(have, "shape"):
            one_array = hasattr(want, "shape") or hasattr(have, "shape")
            if one_array or isinstance(want, int | float) != isinstance(have, int | float):
                raise CheckpointError(f"{what} {name!r} is {_kind(have)}; expected {_kind(want)}")
            continue
        if tuple(have.shape) != tuple(want.shape):
            raise CheckpointError(
                f"{what} {name!r} has shape {tuple(have.shape)}; expected {tuple(want.shape)}"
            )
        dtype = registry.of(want).dtype_name(want)
        if have.dtype.name != dtype:
            raise CheckpointError(f"{what} {name!r} has dtype {have.dtype.name}; expected {dtype}")


def _kind(x: Any) -> str:
    return f"an array of shape {tuple(x.shape)}" if hasattr(x, "shape") else f"{type(x).__name__} {x!r:.40}"


def _entries(state: dict[str, Any]) -> dict[str, Any]:
    """Return what must agree between two states of one optimizer: every slot of every leaf."""
    slots = state.get("slots")
    if not isinstance(slots, dict) or not all(isinstance(v, dict) for v in slots.values()):
        raise CheckpointError("it holds no optimizer state: there are no slots")
    return {f"slots/{slot}/{path}": x for slot, values in slots.items() for path, x in values.items()}
