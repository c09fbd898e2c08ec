"""Check the state that an update is given before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

from polyopt.backend.protocol import Backend
from polyopt.core.errors import InputError, nearest
from polyopt.core.ops import FLOATING, Array
from polyopt.core.schedule import Measured
from polyopt.core.tree import Flat
from polyopt.engine.plan import Plan

WANTED = "expected the state that this optimizer's init made for these parameters"


def check_state(state: Any) -> None:
    """Refuse what is no state of an optimizer.

    Raises
    ------
    InputError
        For anything that isn't a dict with ``step``, ``missed`` and ``slots``, and for a step that is not an
        integer >= 0: it says what was found.
    """
    if not isinstance(state, Mapping):
        found = "None" if state is None else f"a {type(state).__name__}"
        raise InputError(f"the state is {found}; expected the dict that init(params) made")
    for key in ("step", "missed", "slots"):
        if key not in state:
            raise InputError(
                f"the state has no {key!r}; {nearest(key, map(str, state))}; expected the dict that "
                "init(params) made (the order is step(params, gradients, state))"
            )
    for key, holds in (("missed", "counts by leaf"), ("slots", "{slot: {leaf: array}}")):
        if type(state[key]) is not dict and not isinstance(state[key], Mapping):
            raise InputError(f"state[{key!r}] = {state[key]!r:.80}; expected {holds}, a dict")
    for path, count in state["missed"].items():
        check_count(count, f"['missed'][{path!r}]")
    step = state["step"]
    if type(step) is int and 0 <= step < 2**63:
        return
    dtype = str(getattr(step, "dtype", ""))
    array = tuple(getattr(step, "shape", (0,))) == () and bool(dtype) and "bool" not in dtype
    if not array and (isinstance(step, bool) or not isinstance(step, Integral)):
        raise InputError(f"state['step'] = {step!r}; expected an integer >= 0")
    if not array and not 0 <= int(step) < 2**63:
        raise InputError(f"state['step'] = {step!r}; expected an integer >= 0")


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


def _check_slot(backend: Backend, name: str, path: str, x: Any) -> None:
    """Refuse a slot that is no floating array of the parameters' framework."""
    if not backend.is_array(x):
        kind = f"{type(x).__module__.split('.')[0]}.{type(x).__name__}"
        raise InputError(
            f"the state's slot {name!r} of leaf {path!r} is a {kind.removeprefix('builtins.')}; expected an "
            f"array of {backend.name} (polyopt.convert moves a state)"
        )
    dtype = backend.dtype_name(x)
    if dtype not in FLOATING:
        raise InputError(
            f"the state's slot {name!r} of leaf {path!r} has dtype {dtype}; expected one of "
            f"{', '.join(FLOATING)}"
        )


def check_slots(
    backend: Backend, plan: Plan, flat: Flat, given: Sequence[Array | None], slots: Mapping[str, Any]
) -> None:
    """Refuse slots that are missing, of another framework, or of another shape than their leaf.

    Parameters
    ----------
    backend
        That of the parameters.
    plan
        Which slots each leaf has.
    flat
        The parameters.
    given
        The gradients; a leaf without one is not looked at.
    slots
        ``{slot: {path: array}}``.

    Raises
    ------
    InputError
        It names the slot and the leaf.
    """
    paths, leaves = flat.paths, flat.leaves
    kinds: set[type] = set()
    for pipeline, indices in plan.classes:
        moved = [i for i in indices if given[i] is not None]
        names = [names for segment in pipeline for part in segment.parts for names in part.names]
        for name, slot in names if moved else ():
            if name not in slots:
                raise InputError(f"the state has no slot {name!r}; {nearest(name, slots)}; {WANTED}")
            values, like = slots[name], slot.shape == "like"
            if not isinstance(values, Mapping):
                found = "None" if values is None else f"a {type(values).__name__}"
                raise InputError(f"the state's slot {name!r} is {found}; expected arrays by leaf, a dict")
            kinds.clear()
            for i in moved:
                x = values.get(paths[i])
                if x is None and paths[i] in values:
                    raise InputError(f"the state's slot {name!r} of leaf {paths[i]!r} is None; {WANTED}")
                if x is None:
                    raise InputError(
                        f"the state's slot {name!r} has no leaf {paths[i]!r}; {nearest(paths[i], values)}; "
                        f"{WANTED}"
                    )
                if like and type(x) not in kinds:
                    kinds.add(type(x))
                    _check_slot(backend, name, paths[i], x)
                if like and x.shape != leaves[i].shape:
                    raise InputError(
                        f"the state's slot {name!r} of leaf {paths[i]!r} has shape {tuple(x.shape)}; "
                        f"expected the parameter's {tuple(leaves[i].shape)}; nothing was changed"
                    )
