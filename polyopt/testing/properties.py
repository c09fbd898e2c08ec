"""Check what holds for every algorithm, whatever its formula."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

import polyopt
from polyopt import Optimizer
from polyopt.backend.protocol import Backend
from polyopt.core.ops import FLOATING
from polyopt.testing.case import Case, Context, Skip, for_all, hypothesis
from polyopt.testing.ops_inputs import dtypes_of, host_dtype
from polyopt.testing.rules_cases import RATE, Setting, pairs, settings

SHAPES: Final[dict[str, tuple[int, ...]]] = {"a": (), "b": (5,), "c": (0, 3), "d": (3, 4)}
STEPS: Final = 3
Host = dict[str, Any]


def cases() -> Iterator[Case]:
    """Yield a case for each property."""
    for function in (
        callers_arrays,
        shapes_and_dtypes,
        zero_gradient,
        order_of_leaves,
        absent_gradients,
        donation,
        update_then_apply,
        checkpoint,
    ):
        yield Case("properties", function.__name__, partial(_each, function))


def chosen() -> list[Setting]:
    """Choose one setting of every algorithm, the conventions and switches taking turns."""
    found: dict[str, list[Setting]] = {}
    for algorithm, convention in pairs():
        found.setdefault(algorithm, []).extend(settings(algorithm, convention))
    return [members[(3 * i) % len(members)] for i, members in enumerate(found.values()) if members]


def _each(check: Callable[[Backend, Setting, int], None], context: Context) -> None:
    st = hypothesis().strategies

    def one(setting: Setting, seed: int) -> None:
        check(context.backend, setting, seed)

    for_all(
        one,
        examples=4 if context.quick else 16,
        setting=st.sampled_from(chosen()),
        seed=st.integers(0, 2**16),
    )


def _values(seed: int, backend: Backend) -> Host:
    """Draw a host array for every leaf; the dtypes take turns."""
    rng, kinds = np.random.default_rng(seed), dtypes_of(backend, FLOATING)
    return {
        n: rng.normal(size=s).astype(host_dtype(kinds[i % len(kinds)]))
        for i, (n, s) in enumerate(SHAPES.items())
    }


def _to(backend: Backend, leaves: Host) -> Any:
    return {n: None if x is None else backend.from_numpy(x) for n, x in leaves.items()}


def _from(backend: Backend, tree: Any) -> Any:
    """Copy every array in plain data to a host array of its own."""
    if isinstance(tree, dict):
        return {k: _from(backend, v) for k, v in tree.items()}
    return np.array(backend.to_numpy(tree)) if backend.is_array(tree) else tree


def _equal(what: str, got: Any, want: Any) -> None:
    """Assert the same bits everywhere in plain data of host arrays."""
    if isinstance(want, dict):
        assert got.keys() == want.keys(), f"{what}: keys {list(got)}; expected {list(want)}"
        for key, value in want.items():
            _equal(f"{what}.{key}", got[key], value)
    elif isinstance(want, np.ndarray):
        kinds = f"{got.dtype}{list(got.shape)}", f"{want.dtype}{list(want.shape)}"
        assert kinds[0] == kinds[1], f"{what}: {kinds[0]}; expected {kinds[1]}"
        assert got.tobytes() == want.tobytes(), (
            f"{what}: {got.reshape(-1)[:3]}; expected {want.reshape(-1)[:3]}"
        )
    else:
        assert got == want, f"{what}: {got!r}; expected {want!r}"


def _steps(
    backend: Backend, setting: Setting, values: Host, grads: list[Host], donate: bool = False
) -> tuple[Any, Any]:
    """Host parameters and state after a step for each of ``grads``."""
    optimizer = Optimizer(setting.rule(RATE))
    params = _to(backend, values)
    state = optimizer.init(params)
    for g in grads:
        params, state = optimizer.step(params, _to(backend, g), state, donate=donate)
    return _from(backend, params), _from(backend, state)


def _grads(seed: int, backend: Backend, steps: int = STEPS) -> list[Host]:
    return [_values(seed + 100 + t, backend) for t in range(steps)]


def callers_arrays(backend: Backend, setting: Setting, seed: int) -> None:
    """Parameters, gradients and the state of before are as they were after a step and after an update."""
    optimizer = Optimizer(setting.rule(RATE))
    params, grads = _to(backend, _values(seed, backend)), _to(backend, _values(seed + 1, backend))
    state = optimizer.init(params)
    _, state = optimizer.step(params, grads, state)
    before = _from(backend, {"params": params, "grads": grads, "state": state})
    optimizer.step(params, grads, state)
    optimizer.update(grads, state, params)
    after = _from(backend, {"params": params, "grads": grads, "state": state})
    _equal(f"{setting}: the caller's", after, before)


def shapes_and_dtypes(backend: Backend, setting: Setting, seed: int) -> None:
    """Check that a leaf keeps its shape and dtype, a slot its own, and that all stay the backend's arrays."""
    optimizer = Optimizer(setting.rule(RATE))
    values = _values(seed, backend)
    params = _to(backend, values)
    first = state = optimizer.init(params)
    for g in _grads(seed, backend):
        params, state = optimizer.step(params, _to(backend, g), state)
    for n, x in values.items():
        assert backend.is_array(params[n]), f"{setting}: leaf {n!r} became {type(params[n]).__name__}"
        got = backend.dtype_name(params[n]), tuple(params[n].shape)
        assert got == (x.dtype.name, x.shape), (
            f"{setting}: leaf {n!r} became {got}; it was {x.dtype}{x.shape}"
        )
    for slot, leaves in state["slots"].items():
        for path, x in leaves.items():
            if backend.is_array(x):
                was = first["slots"][slot][path]
                got, want = ((backend.dtype_name(v), tuple(v.shape)) for v in (x, was))
                assert got == want, f"{setting}: slot {slot} of {path!r} became {got}; it was {want}"


def zero_gradient(backend: Backend, setting: Setting, seed: int) -> None:
    """Check that from the initial state, without decay, a zero gradient moves nothing."""
    plain = Setting(setting.algorithm, setting.convention, _without_decay(setting))
    values = _values(seed, backend)
    zeros = {n: np.zeros_like(x) for n, x in values.items()}
    params, _ = _steps(backend, plain, values, [zeros] * 2)
    for n, x in values.items():
        same = params[n].astype(np.float64) == x.astype(np.float64)
        assert same.all(), (
            f"{plain}: a zero gradient moved leaf {n!r} from {x.reshape(-1)[:3]} "
            f"to {params[n].reshape(-1)[:3]}"
        )


def _without_decay(setting: Setting) -> tuple[tuple[str, Any], ...]:
    kept = {k: v for k, v in setting.fields if k not in ("weight_decay", "decay")}
    return tuple((kept | {"weight_decay": 0.0}).items())


def order_of_leaves(backend: Backend, setting: Setting, seed: int) -> None:
    """Check that a leaf's new value does not depend on which leaves come before it."""
    values, grads = _values(seed, backend), _grads(seed, backend)
    names = list(SHAPES)
    other = {n: f"x{i}" for i, n in enumerate(np.random.default_rng(seed).permutation(names))}
    params, _ = _steps(backend, setting, values, grads)
    shuffled = [dict(sorted((other[n], x) for n, x in tree.items())) for tree in (values, *grads)]
    moved, _ = _steps(backend, setting, shuffled[0], shuffled[1:])
    _equal(f"{setting}: in another order", {n: moved[other[n]] for n in names}, params)


def absent_gradients(backend: Backend, setting: Setting, seed: int) -> None:
    """Check that a leaf whose gradient is None keeps its value and slots.

    The others move as if it were not there.
    """
    name = list(SHAPES)[1 if seed % 2 else 3]
    values, grads = _values(seed, backend), _grads(seed, backend)
    first_params, first_state = _steps(backend, setting, values, grads[:1])
    params, state = _steps(backend, setting, values, [grads[0], grads[1] | {name: None}])
    full, full_state = _steps(backend, setting, values, grads[:2])
    for slot, leaves in state["slots"].items():
        for path, x in leaves.items():
            want = (first_state if path == name else full_state)["slots"][slot][path]
            _equal(f"{setting}: slot {slot} of {path!r} with no gradient for {name!r}", x, want)
    want = {n: (first_params if n == name else full)[n] for n in SHAPES}
    _equal(f"{setting}: parameters with no gradient for {name!r}", params, want)


def donation(backend: Backend, setting: Setting, seed: int) -> None:
    """Check that with donate=True, where memory may be reused, the bits are the same."""
    values, grads = _values(seed, backend), _grads(seed, backend)
    kept, given = (_steps(backend, setting, values, grads, donate=d) for d in (False, True))
    _equal(
        f"{setting}: donated", {"params": given[0], "state": given[1]}, {"params": kept[0], "state": kept[1]}
    )


def update_then_apply(backend: Backend, setting: Setting, seed: int) -> None:
    """Return ``apply(params, update(...))`` is ``step(...)``, bit for bit."""
    values, grads = _values(seed, backend), _grads(seed, backend)
    stepped, stepped_state = _steps(backend, setting, values, grads)
    optimizer = Optimizer(setting.rule(RATE))
    params = _to(backend, values)
    state = optimizer.init(params)
    for g in grads:
        updates, state = optimizer.update(_to(backend, g), state, params)
        params = polyopt.apply(params, updates)
    got = {"params": _from(backend, params), "state": _from(backend, state)}
    _equal(f"{setting}: update then apply", got, {"params": stepped, "state": stepped_state})


def checkpoint(backend: Backend, setting: Setting, seed: int) -> None:
    """Check that a run that is saved and loaded goes on in the same bits."""
    try:
        from polyopt import checkpoint as file
    except ImportError as e:
        raise Skip(f"polyopt.checkpoint can't be imported: {e}") from e
    values, grads = _values(seed, backend), _grads(seed, backend)
    want, _ = _steps(backend, setting, values, grads)
    optimizer = Optimizer(setting.rule(RATE))
    params = _to(backend, values)
    state = optimizer.init(params)
    params, state = optimizer.step(params, _to(backend, grads[0]), state)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.safetensors"
        file.save(path, params, state)
        loaded = file.load(path, params, backend)
    assert loaded.state is not None, f"{setting}: the checkpoint has no state"
    params, state = loaded.params, loaded.state
    for g in grads[1:]:
        params, state = optimizer.step(params, _to(backend, g), state)
    _equal(f"{setting}: resumed", _from(backend, params), want)
