"""A name or an array -> its backend: the only look-up. Nothing is imported before it is asked for."""

from __future__ import annotations

import os
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Sequence, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from polyopt.backend.protocol import Backend, check_api
from polyopt.core.errors import BackendError, InputError, nearest
from polyopt.core.install import pip_install
from polyopt.core.tree import ROOT

EXTRAS = {"numpy": "NumPy", "torch": "PyTorch", "tensorflow": "TensorFlow", "jax": "JAX"}

_scoped: ContextVar[str | None] = ContextVar("polyopt_backend", default=None)
_forced: ContextVar[Backend | None] = ContextVar("polyopt_forced_backend", default=None)
_process: list[str] = []
_by_name: dict[str, Backend] = {}
_by_type: dict[type, Backend] = {}


@lru_cache(maxsize=1)
def _entries() -> dict[str, EntryPoint]:
    return {e.name: e for e in entry_points(group="polyopt.backends")}


@lru_cache(maxsize=1)
def _roots() -> dict[str, EntryPoint]:
    return {e.name: e for e in entry_points(group="polyopt.array_types")}


def names() -> tuple[str, ...]:
    """Names of all registered backends, whether their framework is installed or not."""
    return tuple(sorted(_entries()))


def installed() -> tuple[str, ...]:
    """Names of the backends that load here (this imports their frameworks)."""
    found = []
    for name in names():
        try:
            by_name(name)
        except BackendError:
            continue
        found.append(name)
    return tuple(found)


def by_name(name: str) -> Backend:
    """Return the backend called ``name``.

    Raises ``BackendError`` where there is none of that name, or where its framework is
    not installed: it says what to install.

    Examples
    --------
    >>> by_name("numpy").name
    'numpy'
    """
    if name not in _by_name:
        entry = _entries().get(name)
        if entry is None:
            raise BackendError(f"unknown backend {name!r}; {nearest(name, _entries())}")
        _by_name[name] = _load(entry, name)
    return _by_name[name]


def of(*arrays: Any) -> Backend:
    """Return the backend of the arrays: everything follows them. Mixing frameworks is an error.

    Examples
    --------
    >>> import numpy as np
    >>> of(np.zeros(3)).name
    'numpy'
    """
    forced = _forced.get()
    if forced is not None and all(map(forced.is_array, arrays)):
        return forced
    found: Backend | None = None
    for x in {type(x): x for x in arrays}.values():
        backend = _by_type.get(type(x)) or _find(x)
        if found is not None and backend is not found:
            raise InputError(
                f"arrays of two frameworks in one call: {found.name} and {backend.name}; "
                "convert one with polyopt.convert(tree, backend)"
            )
        found = backend
    return default() if found is None else found


def of_leaves(
    paths: Sequence[str], leaves: Sequence[Any], others: Sequence[Any] = (), *, other: str = "gradient"
) -> Backend:
    """Return the backend of a tree's leaves, and of ``others`` beside them, but for those that are ``None``.

    Raises
    ------
    InputError
        It names the leaf that is no array of a known framework, and says what to give instead.
    """
    if paths == (ROOT,) and leaves[0] is None:
        raise InputError("the parameters are None; expected an array, or a dict of arrays by name")
    try:
        return of(*(x for x in (*leaves, *others) if x is not None))
    except InputError:
        for what, values in (("parameter", leaves), (other, others)):
            for path, x in zip(paths, values, strict=False):
                try:
                    of(*(() if x is None else (x,)))
                except InputError as e:
                    where = "" if path == ROOT else f" {path!r}"
                    raise InputError(f"{what}{where}: {e}") from None
        raise


def get_backend(which: Any = None) -> Backend:
    """Return the backend of a name or of an array; without one, the default.

    Parameters
    ----------
    which
        A name, an array, or ``None``.

    Returns
    -------
    Backend
        Its framework is imported.

    Raises
    ------
    BackendError
        Where there is none of that name, or its framework is not installed.

    Examples
    --------
    >>> get_backend("numpy").devices()
    ('cpu',)
    """
    if which is None:
        return default()
    return by_name(which) if isinstance(which, str) else of(which)


def default() -> Backend:
    """Return the backend for code that creates arrays.

    The innermost ``backend_context``, else ``set_backend``, else ``POLYOPT_BACKEND``, else NumPy.
    """
    chosen = _scoped.get() or (_process[0] if _process else None)
    return by_name(chosen or os.environ.get("POLYOPT_BACKEND") or "numpy")


def set_backend(name: str | None) -> None:
    """Set the process-wide default backend; ``None`` goes back to ``POLYOPT_BACKEND`` or NumPy.

    Parameters
    ----------
    name
        A name, or ``None``.

    Raises
    ------
    BackendError
        Where there is none of that name, or its framework is not installed.

    Examples
    --------
    >>> set_backend("numpy")
    >>> get_backend().name
    'numpy'
    >>> set_backend(None)
    """
    if name is not None:
        by_name(name)
    _process[:] = [name] if name else []


@contextmanager
def backend_context(name: str) -> Iterator[Backend]:
    """Set a default backend for the body, in this thread and task alone.

    Parameters
    ----------
    name
        Of a backend.

    Yields
    ------
    Backend
        That one.

    Raises
    ------
    BackendError
        Where there is none of that name, or its framework is not installed.

    Examples
    --------
    >>> with backend_context("numpy") as backend:
    ...     backend.name
    'numpy'
    """
    backend = by_name(name)
    before = _scoped.get()
    try:  # begun before it is set: an interrupt may come in between
        _scoped.set(name)
        yield backend
    finally:
        _scoped.set(before)


@contextmanager
def forced(backend: Backend) -> Iterator[Backend]:
    """Take arrays that ``backend`` calls its own for its, in the body, in this thread and task alone.

    For a backend object that is not registered, or stands in for a registered one (the conformance kit's
    use).
    """
    before = _forced.get()
    try:  # as above
        _forced.set(backend)
        yield backend
    finally:
        _forced.set(before)


def _find(x: Any) -> Backend:
    for root in _module_roots(type(x)):
        entry = _roots().get(root)
        if entry is not None:
            loaded = _load(entry, entry.value.split(":")[0].removeprefix("polyopt_"))
            backend = _by_name.setdefault(loaded.name, loaded)
            if backend.is_array(x):
                _by_type[type(x)] = backend
                return backend
    raise InputError(
        f"{type(x).__module__}.{type(x).__qualname__} is not an array of a known framework; {_remedy(x)}"
    )


def _remedy(x: Any) -> str:
    """Return what to give in the place of a whole model."""
    homes = [base.__module__ for base in type(x).__mro__]
    if hasattr(x, "to_pure_dict"):
        return "give state.to_pure_dict()"
    if any(home.startswith("flax.nnx") for home in homes):
        return "give nnx.state(model, nnx.Param).to_pure_dict()"
    if any(home.startswith("flax.linen") for home in homes):
        return 'give model.init(key, inputs)["params"]'
    if hasattr(x, "named_parameters"):
        return "give dict(model.named_parameters())"
    if hasattr(x, "get_weights") or (hasattr(x, "path") and hasattr(x, "trainable")):
        return "give {v.path: v.value for v in model.trainable_variables}, Keras' variables"
    if hasattr(x, "trainable_variables"):
        return "give {v.name: v for v in module.trainable_variables}"
    if type(x).__name__ == "TrainState":
        return "give what TrainStep.unload(carry) returns"
    if hasattr(x, "__next__") or isinstance(x, KeysView | ValuesView | ItemsView):
        return "give a dict of arrays by name, such as dict(model.named_parameters())"
    if isinstance(x, int | float | complex):
        return "give an array that holds it"
    return f"expected arrays of one of {', '.join(names())}, in a dict by name"


def _module_roots(kind: type) -> Iterable[str]:
    return dict.fromkeys(base.__module__.split(".")[0] for base in kind.__mro__)


def how_to_install(name: str) -> str:
    """Return the command that installs what the backend ``name`` needs, by the package that brings it.

    >>> how_to_install("torch")
    'pip install "numba>=0.61" "torch>=2.6"'
    """
    entry = _entries().get(name)
    package = "polyopt" if entry is None or entry.dist is None else entry.dist.name
    return pip_install(name, package=package, otherwise=(entry and _missing(entry)) or name)


def _missing(entry: EntryPoint) -> str:
    """Return the name of the module that keeps ``entry`` from being loaded, if that is why."""
    try:
        entry.load()
    except ImportError as e:
        return (e.name or "").split(".")[0]
    return ""


def _load(entry: EntryPoint, name: str) -> Backend:
    try:
        backend: Backend = entry.load()
    except ImportError as e:
        label = EXTRAS.get(name, name)
        raise BackendError(
            f"backend {name!r} needs {label}, which can't be imported ({e}): {how_to_install(name)}"
        ) from e
    check_api(backend)
    return backend
