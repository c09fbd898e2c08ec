"""Check the state that an update is given before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from numbers import Integral, Real
from operator import attrgetter
from typing import Any

from polyopt.backend.protocol import Backend
from polyopt.core.errors import InputError, nearest
from polyopt.core.ops import Array
from polyopt.core.rule import Slot
from polyopt.core.schedule import Measured
from polyopt.core.tree import Flat
from polyopt.engine.plan import Plan, compute_dtype

WANTED = "expected the state that this optimizer's init made for these parameters"


def check_state(state: Any) -> None:
    """Refuse what is no state of an optimizer.

    Raises
    ------
    InputError
        For anything that isn't a dict with ``step``, ``missed`` and ``slots``, and for a step that is not an
        integer >= 0: it says what was found.
    """
    check_step(state, "step", "missed", "slots")
    for key, holds in (("missed", "counts by leaf"), ("slots", "{slot: {leaf: array}}")):
        if type(state[key]) is not dict and not isinstance(state[key], Mapping):
            raise InputError(f"state[{key!r}] = {state[key]!r:.80}; expected {holds}, a dict")
    step = state["step"]
    for path, count in state["missed"].items():
        check_count(count, f"['missed'][{path!r}]")
        if type(count) is type(step) is int and count > step:
            raise InputError(f"state['missed'][{path!r}] = {count}; expected at most state['step'] = {step}")


def check_step(state: Any, *keys: str) -> None:
    """Refuse what isn't a dict with a ``step`` that is an integer >= 0, and with ``keys``.

    Raises
    ------
    InputError
        It says what was found.
    """
    if not isinstance(state, Mapping):
        found = "None" if state is None else f"a {type(state).__name__}"
        raise InputError(f"the state is {found}; expected the dict that init(params) made")
    for key in keys or ("step",):
        if key not in state:
            raise InputError(
                f"the state has no {key!r}; {nearest(key, map(str, state))}; expected the dict that "
                "init(params) made (the order is step(params, gradients, state))"
            )
    step = state["step"]
    if type(step) is int and 0 <= step < 2**63:
        return
    dtype = str(getattr(step, "dtype", ""))
    array = tuple(getattr(step, "shape", (0,))) == () and bool(dtype) and "bool" not in dtype
    if not array and (isinstance(step, bool) or not isinstance(step, Integral)):
        raise InputError(f"state['step'] = {step!r}; expected an integer >= 0")
    if not array and not 0 <= int(step) < 2**63:
        raise InputError(f"state['step'] = {step!r}; expected an integer >= 0")


def check_nothing_held(state: Mapping[str, Any]) -> None:
    """Refuse a state that holds gradients back, where the optimizer doesn't accumulate.

    Raises
    ------
    InputError
        It says how many were held.
    """
    held = state.get("micro_step", 0)
    if isinstance(held, Integral) and held:
        raise InputError(
            f"the state holds the gradients of {held} steps back (state['micro_step']), which this optimizer "
            "would lose, for it has accumulate = 1; expected a state after flush, or accumulate as before"
        )


def whole_step(step: Any) -> int:
    """Return the step of a state that is an array, as an integer.

    Raises
    ------
    InputError
        For a fraction, or a number below 0.
    """
    found = int(step)
    if found < 0 or found != float(step):
        raise InputError(f"state['step'] = {step!r}; expected an integer >= 0")
    return found


def check_count(found: Any, name: str) -> None:
    """Refuse a count of a state that is neither an integer >= 0 nor a 0-d array, which may be traced.

    Raises
    ------
    InputError
        It names the count.
    """
    array = hasattr(found, "dtype") and tuple(getattr(found, "shape", (0,))) == ()
    whole = isinstance(found, Integral) and not isinstance(found, bool)
    if not array and not (whole and int(found) >= 0):
        raise InputError(f"state{name} = {found!r:.80}; expected an integer >= 0")


def check_accumulated(state: Mapping[str, Any], accumulate: int) -> None:
    """Refuse a state that can't hold gradients back.

    Raises
    ------
    InputError
        It names the key.
    """
    for key in ("micro_step", "accumulated"):
        if key not in state:
            raise InputError(
                f"the state has no {key!r}: its optimizer did not accumulate; expected one from the init "
                f"of an optimizer with accumulate = {accumulate}"
            )
    check_count(state["micro_step"], "['micro_step']")
    if not isinstance(state["accumulated"], Mapping):
        raise InputError(
            f"state['accumulated'] = {state['accumulated']!r:.80}; expected counts by leaf, a dict"
        )


def check_observed(
    state: Mapping[str, Any], measured: Sequence[tuple[str, Measured]], value: Any = 0.0, what: str = "metric"
) -> None:
    """Refuse a state without what its schedules were told, and a report that is no number.

    Raises
    ------
    InputError
        It names the schedule's hyperparameter, or what was reported.
    """
    shape = getattr(value, "shape", ())
    if isinstance(value, str | bool) or not hasattr(value, "__float__") or tuple(shape) != ():
        raise InputError(f"observe: {what} = {value!r:.80}; expected a number")
    known = {"metric", "size", *(schedule.awaits for _, schedule in measured)}
    if what not in known:
        raise InputError(f"observe: nothing awaits {what!r:.80}; {nearest(str(what), known)}")
    for name, schedule in measured:
        found = state.get("observed")
        found = found.get(name) if isinstance(found, Mapping) else None
        if not isinstance(found, Mapping) or not set(schedule.initial_state()) <= set(found):
            raise InputError(
                f"the state doesn't know what the schedule of {name!r} was told (state['observed']); {WANTED}"
            )


def check_slots(
    backend: Backend,
    plan: Plan,
    flat: Flat,
    given: Sequence[Array | None],
    slots: Mapping[str, Any],
    held: bool = False,
) -> None:
    """Refuse slots that are missing, or that this optimizer's ``init`` would not have made for their leaf.

    Parameters
    ----------
    backend, plan, flat
        The parameters', which slots each leaf has, and the parameters.
    given
        The gradients; a leaf without one is not looked at.
    slots
        ``{slot: {path: array}}``.
    held
        Look at the gradients that are held back, too.

    Raises
    ------
    InputError
        For another framework, shape, dtype or device than the leaf's: it names the slot and the leaf.
    """
    if not isinstance(slots, Mapping):
        raise InputError(f"state['slots'] is a {type(slots).__name__}; {WANTED}")
    check = _SlotCheck(backend, flat, slots)
    for pipeline, indices in plan.classes:
        moved = [i for i in indices if given[i] is not None]
        for name, slot in (x for segment in pipeline for part in segment.parts for x in part.names):
            if moved:
                check(name, slot, moved)
        if moved and held:
            check("grad_accumulator", HELD, moved)


HELD = Slot("grad_accumulator")
_FACTS = attrgetter("shape", "dtype")


class _SlotCheck:
    """Compare slots with their leaves; what all have in common is looked up once."""

    def __init__(self, backend: Backend, flat: Flat, slots: Mapping[str, Any]) -> None:
        self._backend, self._paths, self._leaves, self._slots = backend, flat.paths, flat.leaves, slots
        self._arrays: set[type] = set()
        self._computed: dict[Any, Any] = {}
        self._names: dict[Any, str] = {}
        self._devices = _has_devices(backend)

    def __call__(self, name: str, slot: Slot, indices: Sequence[int]) -> None:
        if name not in self._slots:
            raise InputError(f"the state has no slot {name!r}; {nearest(name, self._slots)}; {WANTED}")
        values = self._slots[name]
        if not isinstance(values, Mapping):
            what = "None" if values is None else f"a {type(values).__name__}"
            raise InputError(f"the state's slot {name!r} is {what}; {WANTED}")
        found = [values.get(self._paths[i]) for i in indices]
        like = slot.shape == "like"
        # The first of each type.
        for kind, i in dict(zip(map(type, found[::-1]), indices[::-1], strict=True)).items():
            if kind not in self._arrays:
                self._check_type(name, i, values.get(self._paths[i]), like)
        if not like:
            return
        # Compared at once: one by one takes as long as to update a small leaf.
        wanted = [(x.shape, self._dtype(x, slot)) for x in (self._leaves[i] for i in indices)]
        if self._devices or list(map(_FACTS, found)) != wanted:
            for i, x, (_, dtype) in zip(indices, found, wanted, strict=True):
                self._check(name, i, x, dtype)

    def _check(self, name: str, i: int, x: Array, dtype: Any) -> None:
        leaf = self._leaves[i]
        if x.shape != leaf.shape:
            self._refuse(name, i, f"has shape {tuple(x.shape)}", f"the parameter's {tuple(leaf.shape)}")
        if x.dtype != dtype and self._backend.dtype_name(x) != self._names[dtype]:
            self._refuse(name, i, f"has dtype {self._backend.dtype_name(x)}", self._names[dtype])
        if self._devices:
            here, there = map(self._backend.device_name, (x, leaf))
            if here != there:
                self._refuse(name, i, f"is on {here!r}", f"{there!r}, as the parameter")

    def _dtype(self, leaf: Array, slot: Slot) -> Any:
        key = (leaf.dtype, slot.dtype)
        if key not in self._computed:
            name = slot.dtype or compute_dtype(self._backend.dtype_name(leaf))
            self._computed[key] = kind = self._backend.dtype(name)
            self._names[kind] = name
        return self._computed[key]

    def _check_type(self, name: str, i: int, x: Any, like: bool) -> None:
        path = self._paths[i]
        if x is None and path in self._slots[name]:
            raise InputError(f"the state's slot {name!r} of leaf {path!r} is None; {WANTED}")
        if x is None:
            near = nearest(path, self._slots[name])
            raise InputError(f"the state's slot {name!r} has no leaf {path!r}; {near}; {WANTED}")
        if self._backend.is_array(x):
            self._arrays.add(type(x))
        elif like or isinstance(x, bool) or not isinstance(x, Real):
            wanted = (
                f"an array of {self._backend.name}{'' if like else ' or a number'} (polyopt.convert moves it)"
            )
            kind = f"{type(x).__module__.split('.')[0]}.{type(x).__name__}".removeprefix("builtins.")
            self._refuse(name, i, f"is a {kind}", wanted)

    def _refuse(self, name: str, i: int, found: str, wanted: str) -> None:
        raise InputError(
            f"the state's slot {name!r} of leaf {self._paths[i]!r} {found}; expected {wanted}; "
            "nothing was changed"
        )


@lru_cache(maxsize=16)
def _has_devices(backend: Backend) -> bool:
    """Return True if arrays may be on different devices, each on one: XLA's tell by themselves."""
    return hasattr(backend, "extents") and len(backend.devices()) > 1
