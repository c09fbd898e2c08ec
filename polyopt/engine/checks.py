"""Check what an update is given before anything is written."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from numbers import Integral, Real
from operator import attrgetter
from typing import Any

from polyopt.backend.protocol import Backend
from polyopt.core.errors import InputError, UnchangedWarning, nearest
from polyopt.core.ops import FLOATING, Array
from polyopt.core.rule import Rule, Slot
from polyopt.core.schedule import Schedule
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
    if not isinstance(state, Mapping):
        raise InputError(f"the state is a {type(state).__name__}; expected the dict that init(params) made")
    for key in ("step", "missed", "slots"):
        if key not in state:
            raise InputError(
                f"the state has no {key!r}; {nearest(key, map(str, state))}; expected the dict that "
                "init(params) made (the order is step(params, gradients, state))"
            )
    step = state["step"]
    if type(step) is int and step >= 0:
        return
    dtype = str(getattr(step, "dtype", ""))
    array = tuple(getattr(step, "shape", (0,))) == () and bool(dtype) and "bool" not in dtype
    if not array and (isinstance(step, bool) or not isinstance(step, Integral)):
        raise InputError(f"state['step'] = {step!r}; expected an integer >= 0")
    if not array and int(step) < 0:
        raise InputError(f"state['step'] = {step!r}; expected an integer >= 0")


def check_leaves(
    backend: Backend, paths: Sequence[str], params: Sequence[Array | None], given: Sequence[Array | None]
) -> None:
    """Refuse gradients or updates of another shape than their parameter, or of no floating dtype."""
    for path, p, x in zip(paths, params, given, strict=True):
        if p is None or x is None or (x.dtype is p.dtype and x.shape == p.shape):
            continue
        if tuple(p.shape) != tuple(x.shape):
            raise InputError(
                f"leaf {path!r}: its gradient or update has shape {tuple(x.shape)}; "
                f"expected the parameter's {tuple(p.shape)}"
            )
        dtype = "" if x.dtype == p.dtype else backend.dtype_name(x)
        if dtype and dtype not in FLOATING:
            raise InputError(
                f"leaf {path!r}: its gradient or update has dtype {dtype}; "
                f"expected one of {', '.join(FLOATING)}"
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
        values = self._slots.get(name)
        if values is None:
            raise InputError(f"the state has no slot {name!r}; {nearest(name, self._slots)}; {WANTED}")
        if not isinstance(values, Mapping):
            raise InputError(f"the state's slot {name!r} is a {type(values).__name__}; {WANTED}")
        found = [values.get(self._paths[i]) for i in indices]
        like = slot.shape == "like"
        for kind, i in dict(zip(map(type, found), indices, strict=True)).items():
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
        if x is None:
            near = nearest(path, self._slots[name])
            raise InputError(f"the state's slot {name!r} has no leaf {path!r}; {near}; {WANTED}")
        if self._backend.is_array(x):
            self._arrays.add(type(x))
        elif like or isinstance(x, bool) or not isinstance(x, Real):
            wanted = f"an array of {self._backend.name}" + ("" if like else " or a number")
            self._refuse(name, i, f"is a {type(x).__module__}.{type(x).__qualname__}", wanted)

    def _refuse(self, name: str, i: int, found: str, wanted: str) -> None:
        raise InputError(
            f"the state's slot {name!r} of leaf {self._paths[i]!r} {found}; expected {wanted}; "
            "nothing was changed"
        )


@lru_cache(maxsize=16)
def _has_devices(backend: Backend) -> bool:
    """Return True if arrays may be on different devices, each on one: XLA's tell by themselves."""
    return hasattr(backend, "extents") and len(backend.devices()) > 1


LARGEST = {"float32": (2.0 - 2.0**-23) * 2.0**127, "float64": sys.float_info.max}
SMALLEST = {"float32": 2.0**-126, "float64": sys.float_info.min}
"""Below it XLA takes a number for 0."""


def check_hyperparameters(rule: Rule, dtype: str, *, traced: bool) -> None:
    """Refuse numbers that ``dtype`` can't hold, unless they are limits.

    Where the step is traced an ε that would be 0 is refused here; else by ``check_coefficients``, which looks
    at schedules too.

    Raises
    ------
    InputError
        It names the hyperparameter.
    """
    largest, smallest = LARGEST[dtype], SMALLEST[dtype]
    for name, x in rule.hyperparameters().items():
        if type(x) not in (int, float):
            continue
        if not -largest <= x <= largest and name not in rule.limits():
            raise InputError(
                f"{type(rule).__name__}: {name} = {x!r} is beyond {dtype}, in which leaves are updated; "
                f"expected a number up to {largest:.3g}. Nothing was changed"
            )
        if traced and rule.GUARDS and name in ("eps", "eps_root") and 0 < x < smallest:
            raise InputError(
                f"{type(rule).__name__}: {name} = {x!r} is 0 in {dtype}, in which leaves are updated; "
                f"expected 0, for which 0/0 counts as 0, or more than {smallest:.2g}"
            )


def make_infinite(rule: Rule, values: dict[str, Any], dtype: str) -> None:
    """Make each limit among ``values`` that ``dtype`` can't hold infinite."""
    largest = LARGEST[dtype]
    for name in rule.limits():
        x = values.get(name)
        if isinstance(x, int | float) and not -largest <= x <= largest:
            values[name] = math.copysign(math.inf, x)


def check_coefficients(
    rule: Rule, h: Mapping[str, Any], values: dict[str, Any], dtype: str, step: Any, path: str
) -> None:
    """Hold the scalars of one step to what ``dtype`` can hold.

    Parameters
    ----------
    rule, h
        Whose they are, and its hyperparameters at this step.
    values
        The coefficients by name. A scheduled guard that is too small becomes 0.
    dtype, step, path
        The compute dtype, the number of updates made, and a leaf that is updated in it.

    Raises
    ------
    InputError
        For one that would be infinite, and for an ε above 0 that would be 0: it names the hyperparameter.
    """
    largest, smallest = LARGEST[dtype], SMALLEST[dtype]
    if not sum(map(abs, values.values())) <= largest:  # at each step: one by one takes three times as long
        for name, x in values.items():
            if not -largest <= x <= largest and name not in rule.limits():
                _refuse(rule, h, f"{name} = {x!r}", f"beyond {dtype}", f"up to {largest:.3g}", step, path)
    for name in rule.GUARDS:
        if 0 < values.get(name, 0.0) < smallest:
            field = "eps" if isinstance(h.get("eps"), float) and h["eps"] else "eps_root"
            if isinstance(getattr(rule, field), Schedule):
                values[name] = 0.0
                continue
            wanted = f"0, for which 0/0 counts as 0, or more than {smallest:.2g}"
            _refuse(rule, h, f"{name} = {values[name]!r}", f"0 in {dtype}", wanted, step, path)


def _refuse(
    rule: Rule, h: Mapping[str, Any], found: str, what: str, wanted: str, step: Any, path: str
) -> None:
    given = ", ".join(f"{name} = {x!r}" for name, x in h.items() if name in rule.hyperparameters())
    raise InputError(
        f"{type(rule).__name__}: {given} at step {step}: {found} is {what}, in which leaf {path!r} is "
        f"updated; expected {wanted}. Nothing was changed"
    )


class UnchangedVariables:
    """Notice a loop whose steps never reach the module's parameters.

    ``step`` without ``donate`` returns new tensors; a loop that goes on from the module's own parameters
    with the state of the step before trains nothing. It is noticed at the second step: the same variable has
    still the value from before the first one, which did change it. A loop that goes on from the returned
    tensors can't be told from a functional one: the first step warns of both.
    """

    def __init__(self) -> None:
        self._seen: tuple[str, Any, Any, Any, int] | None = None
        self._over = False

    def check(self, backend: Backend, flat: Flat, state: Mapping[str, Any]) -> None:
        """Refuse the second step of such a loop.

        Raises
        ------
        InputError
            It names a leaf and the remedies.
        """
        if self._over or self._seen is None or type(state["step"]) is not int:
            return
        path, variable, before, after, step = self._seen
        self._over = True
        self._seen = None
        now = dict(zip(flat.paths, flat.leaves, strict=True)).get(path)
        if now is not variable or state["step"] <= step or not _differs(before, after):
            return
        if not _differs(before, backend.to_numpy(variable)):
            raise InputError(
                f"parameter {path!r} is as it was before the last step, though the state has gone on: step() "
                "returned new arrays and left the variables of your model alone. Use step(..., donate=True), "
                "which changes them in place, or go on from the parameters that it returns"
            )

    def remember(self, backend: Backend, flat: Flat, leaves: Sequence[Array | None], step: Any) -> None:
        """Keep the smallest variable that the first step left alone, and what it returned for it."""
        is_variable = getattr(backend, "is_variable", None)
        if self._over or is_variable is None or type(step) is not int:
            self._over = True
            return
        found = [
            (x.numel() if hasattr(x, "numel") else int(x.shape.num_elements() or 0), i)
            for i, x in enumerate(flat.leaves)
            if x is not None and leaves[i] is not None and is_variable(x)
        ]
        if not found or any(backend.is_traced(flat.leaves[i]) for _, i in found[:1]):
            self._over = True
            return
        i = min(found)[1]
        warnings.warn(
            f"step() leaves the model's own parameters ({flat.paths[i]!r}, …) as they are and returns new "
            "arrays. To change them in place, give them up: step(..., donate=True). If your model is a "
            "function of the returned ones, give plain tensors",
            UnchangedWarning,
            stacklevel=4,
        )
        before, after = (backend.to_numpy(x).copy() for x in (flat.leaves[i], leaves[i]))
        self._seen = (flat.paths[i], flat.leaves[i], before, after, step)


def _differs(x: Any, y: Any) -> bool:
    return bool(x.tobytes() != y.tobytes())
