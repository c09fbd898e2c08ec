"""Check what an update is given before anything is written."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from polyopt.backend.protocol import Backend
from polyopt.core.aliases import instead
from polyopt.core.errors import InputError, UnchangedWarning
from polyopt.core.ops import FLOATING, Array
from polyopt.core.rule import Chain, Partition, Rule
from polyopt.core.schedule import Schedule
from polyopt.core.tree import Flat


def check_options(rule: Any, accumulate: Any, reduce: Any, nonfinite: Any, compiled: Any) -> None:
    """Refuse what an ``Optimizer`` can't be made of.

    Raises
    ------
    InputError
        It names the argument.
    """
    if not isinstance(rule, Rule | Chain | Partition):
        raise InputError(f"Optimizer: expected a rule, a chain or a partition, found {instead(rule)}")
    if isinstance(accumulate, bool) or not isinstance(accumulate, int) or accumulate < 1:
        raise InputError(f"Optimizer: accumulate = {accumulate!r}; expected an integer >= 1")
    if nonfinite not in ("propagate", "skip", "raise"):
        raise InputError(f"Optimizer: nonfinite = {nonfinite!r}; expected 'propagate', 'skip' or 'raise'")
    if reduce not in ("mean", "sum"):
        raise InputError(f"Optimizer: reduce = {reduce!r}; expected 'mean' or 'sum'")
    if not isinstance(compiled, bool):
        raise InputError(f"Optimizer: compiled = {compiled!r}; expected True or False")


def check_swapped(backend: Backend, flat: Flat, gradients: Sequence[Array | None]) -> None:
    """Refuse a model's own variables as the gradients of what are none.

    Raises
    ------
    InputError
        It says in which order the arguments are.
    """
    is_variable = getattr(backend, "is_variable", None)
    if is_variable is None:
        return
    given = [x for x in gradients if x is not None]
    if any(map(is_variable, given)) and not any(is_variable(x) for x in flat.leaves if x is not None):
        raise InputError(
            "the gradients are a model's own parameters, and the parameters are not; the order is "
            "step(params, gradients, state)"
        )


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


def check_shared(paths: Sequence[str], leaves: Iterable[Array | None]) -> None:
    """Refuse one array at two paths where arrays are given up: one of its two updates would be lost."""
    present = [(path, x) for path, x in zip(paths, leaves, strict=True) if x is not None]
    if len({id(x) for _, x in present}) == len(present):
        return
    first: dict[int, str] = {}
    for path, x in present:
        if id(x) in first:
            raise InputError(
                f"leaves {first[id(x)]!r} and {path!r} are the same array, which donate=True would update "
                "twice in place; give it once, or leave donate=True out"
            )
        first[id(x)] = path


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
