"""Quantized trees as named arrays and plain data, and as a file of their true size."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from polyopt import checkpoint
from polyopt.backend import registry
from polyopt.backend.convert import convert
from polyopt.backend.protocol import Backend
from polyopt.core import tree
from polyopt.core.errors import CheckpointError, InputError
from polyopt.core.ops import FLOATING
from polyopt.core.tree import Tree
from polyopt.quantization.calibration import Grid
from polyopt.quantization.record import Quantized
from polyopt.quantization.scheme import Cast, Integer, blocks, from_plain, to_plain

PARTS = ("codes", "scale", "zero_point")
LARGEST = float(np.finfo(np.float32).max)
META, GRIDS = "quantization", "activations"


def to_arrays(params: Tree) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a tree into all arrays by name, and what the quantized leaves are as plain data.

    A leaf ``w`` gives ``w``; where it is quantized ``w/codes``, ``w/scale`` and ``w/zero_point``, as far as
    it has them.

    Parameters
    ----------
    params
        A tree of arrays and quantized leaves.

    Returns
    -------
    tuple
        ``(arrays, meta)``.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt.quantization import quantize
    >>> arrays, meta = to_arrays(quantize({"w": np.ones((2, 2)), "b": np.ones(2)}, Integer()))
    >>> sorted(arrays), meta["w"]["shape"], meta["w"]["dtype"]
    (['b', 'w/codes', 'w/scale'], [2, 2], 'float64')
    """
    arrays: dict[str, Any] = {}
    meta: dict[str, Any] = {}
    for path, x in tree.named(params).items():
        parts = {path: x}
        if isinstance(x, Quantized):
            parts = {f"{path}/{part}": getattr(x, part) for part in PARTS if getattr(x, part) is not None}
            meta[path] = {"shape": list(x.shape), "dtype": x.dtype, "scheme": to_plain(x.scheme)}
        for name, array in parts.items():
            if name in arrays:
                raise InputError(f"two arrays have the name {name!r}: rename a leaf")
            arrays[name] = array
    return arrays, meta


def from_arrays(arrays: Mapping[str, Any], meta: Mapping[str, Any], like: Tree = None) -> Tree:
    """Return what ``to_arrays`` was given.

    Parameters
    ----------
    arrays, meta
        What it returned.
    like
        A tree whose structure and paths the result has.

    Returns
    -------
    tree
        ``{path: leaf}``, or the structure of ``like``.

    Raises
    ------
    InputError
        Where the two don't belong together; it names the leaf.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt.quantization import Integer, quantize
    >>> arrays, meta = to_arrays(quantize({"w": np.ones((2, 2))}, Integer()))
    >>> from_arrays(arrays, meta)["w"].codes.tolist()
    [[127, 127], [127, 127]]
    """
    leaves: dict[str, Any] = {}
    used = set()
    for path, entry in meta.items():
        parts = {part: arrays.get(f"{path}/{part}") for part in PARTS}
        used |= {f"{path}/{part}" for part, x in parts.items() if x is not None}
        leaves[path] = _record(path, entry, parts)
    for name, x in arrays.items():
        if name not in used:
            if name in leaves:
                raise InputError(f"leaf {name!r} is there twice, quantized and not")
            leaves[name] = x
    return leaves if like is None else tree.rename(like, leaves, "arrays")


def save(
    path: str | os.PathLike[str],
    params: Tree,
    meta: dict[str, Any] | None = None,
    *,
    grids: Mapping[str, Grid] | None = None,
) -> None:
    """Write a tree with quantized leaves to a safetensors file.

    Four bits take half a byte. The file is replaced as a whole.

    Parameters
    ----------
    path
        The file.
    params
        A tree of arrays and quantized leaves.
    meta
        Plain data of the caller.
    grids
        Those of activations, by the path of the layer's weight, which ``load_grids`` reads.

    Examples
    --------
    >>> import numpy as np, os, tempfile
    >>> from polyopt.quantization import quantize
    >>> file = tempfile.mkdtemp() + "/model.safetensors"
    >>> w = np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32)
    >>> save(file, quantize({"w": w}, Integer(bits=4)))
    >>> round(w.nbytes / os.path.getsize(file), 1)
    7.8
    >>> load(file)["w"].shape
    (512, 512)
    """
    arrays, ours = to_arrays(params)
    kept = {name: asdict(grid) for name, grid in (grids or {}).items()}
    for name, plain in kept.items():
        _grid(name, plain)
    body = {META: ours, "user": meta or {}} | ({GRIDS: kept} if kept else {})
    checkpoint.save(path, arrays, meta=body)


def load(
    path: str | os.PathLike[str],
    like: Tree = None,
    backend: str | Backend | None = None,
    device: str | None = None,
) -> Tree:
    """Return the parameters that ``save`` was given.

    Parameters
    ----------
    path
        The file.
    like
        A tree whose structure the result has. Its leaves may be anything: only their paths count.
    backend, device
        Where the arrays go, the host by default.

    Returns
    -------
    tree
        ``{path: leaf}``, or the structure of ``like``.

    Raises
    ------
    CheckpointError
        For a file that is missing, corrupt, or not one of these.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> from polyopt.quantization import Integer, quantize
    >>> file = tempfile.mkdtemp() + "/model.safetensors"
    >>> save(file, quantize({"w": np.ones((2, 2))}, Integer()))
    >>> load(file)["w"].codes.tolist()
    [[127, 127], [127, 127]]
    """
    found = checkpoint.load(path)
    ours = found.meta.get(META)
    if not isinstance(ours, dict):
        raise CheckpointError(f"{os.fspath(path)}: a checkpoint, but not of quantized weights")
    try:
        arrays = found.params if backend is None else convert(found.params, backend, device=device)
        return from_arrays(arrays, ours, like)
    except InputError as e:
        raise CheckpointError(f"{os.fspath(path)}: {e}") from None


def load_grids(path: str | os.PathLike[str]) -> dict[str, Grid]:
    """Return the grids of activations in a file of ``save``.

    With them ``quantize_inputs(apply, grids)`` is the model that was kept.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    dict
        By the path of the layer's weight; ``{}`` where there are none.

    Raises
    ------
    CheckpointError
        As ``load`` does, and for grids that are none.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> file = tempfile.mkdtemp() + "/model.safetensors"
    >>> save(file, {"w": np.ones((2, 2))}, grids={"w": Grid(0.5, 0, -127, 127)})
    >>> load_grids(file)
    {'w': Grid(scale=0.5, zero_point=0, low=-127, high=127)}
    """
    found = checkpoint.load(path)
    kept = found.meta.get(GRIDS, {})
    if not isinstance(found.meta.get(META), dict) or not isinstance(kept, dict):
        raise CheckpointError(f"{os.fspath(path)}: a checkpoint, but not of quantized weights")
    try:
        return {name: _grid(name, entry) for name, entry in kept.items()}
    except InputError as e:
        raise CheckpointError(f"{os.fspath(path)}: {e}") from None


def moved(params: Tree, backend: str | Backend, *, device: str | None = None) -> Tree:
    """Copy a tree with quantized leaves to another framework or device, in the same bits.

    What ``convert`` does for plain arrays.

    Parameters
    ----------
    params
        A tree of arrays and quantized leaves.
    backend
        Where to: a name or a backend.
    device
        Where to; by default the backend's own.

    Returns
    -------
    tree
        The structure of ``params``.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt.quantization import quantize
    >>> moved({"w": quantize(np.ones((2, 2)), Integer())}, "numpy")["w"].codes.tolist()
    [[127, 127], [127, 127]]
    """
    arrays, meta = to_arrays(params)
    return from_arrays(convert(arrays, backend, device=device), meta, params)


def _grid(name: str, entry: Any) -> Grid:
    if not isinstance(entry, Mapping) or set(entry) != {"scale", "zero_point", "low", "high"}:
        raise InputError(f"grid {name!r}: expected scale, zero_point, low and high, found {entry!r:.80}")
    scale, codes = entry["scale"], [entry[key] for key in ("low", "zero_point", "high")]
    if type(scale) is not float or not 0 < scale <= LARGEST or float(np.float32(scale)) != scale:
        raise InputError(f"grid {name!r}: scale = {scale!r:.80}; expected a finite float32 above 0")
    if any(type(k) is not int for k in codes) or not (
        -128 <= codes[0] <= codes[1] <= codes[2] <= 127 and codes[0] < codes[2]
    ):
        raise InputError(
            f"grid {name!r}: low, zero_point, high = {codes!r:.80}; expected rising integers in [-128, 127]"
        )
    return Grid(**entry)


def _record(path: str, entry: Any, parts: Mapping[str, Any]) -> Quantized:
    if not isinstance(entry, Mapping) or set(entry) != {"shape", "dtype", "scheme"}:
        raise InputError(f"leaf {path!r}: expected its shape, dtype and scheme, found {entry!r:.80}")
    shape, dtype, scheme = entry["shape"], entry["dtype"], from_plain(entry["scheme"], path)
    if not isinstance(shape, list | tuple) or any(type(n) is not int or n < 0 for n in shape):
        raise InputError(f"leaf {path!r}: {shape!r:.80} is no shape")
    if dtype not in FLOATING:
        raise InputError(f"leaf {path!r}: dtype {dtype!r:.80}; expected one of {', '.join(FLOATING)}")
    size = tuple(shape)
    for part, (wanted, kind) in _expected(scheme, size, dtype, path).items():
        x = parts[part]
        found = "nothing" if x is None else f"{registry.of(x).dtype_name(x)} of shape {tuple(x.shape)}"
        expected = "nothing" if kind is None else f"{kind} of shape {wanted}"
        if found != expected:
            raise InputError(f"leaf {path!r}: {part} is {found}; expected {expected}")
    return Quantized(parts["codes"], parts["scale"], parts["zero_point"], size, dtype, scheme)


def _expected(
    scheme: Integer | Cast, shape: tuple[int, ...], dtype: str, path: str
) -> dict[str, tuple[tuple[int, ...], str | None]]:
    """Shape and dtype of every part; a dtype of ``None`` where there is none."""
    if isinstance(scheme, Cast):
        return {"codes": (shape, scheme.dtype), "scale": ((), None), "zero_point": ((), None)}
    stored = blocks(scheme, shape, path).stored
    four = ((math.prod(shape) + 1) // 2,)
    return {
        "codes": (four, "uint8") if scheme.bits == 4 else (shape, "int8"),
        "scale": (stored, "float64" if dtype == "float64" else "float32"),
        "zero_point": (stored, None if scheme.symmetric else "int8"),
    }
