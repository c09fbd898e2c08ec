"""Hold a rule's functions to what they may read, do and return: told in the user's words when first run."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any, NoReturn

from polyopt.core.errors import PolyoptError, RuleError, nearest
from polyopt.core.ops import Array, Ops
from polyopt.core.rule import Elementwise, Global, Rule, Slot
from polyopt.core.trace import PREDICATES, Instruction, Symbol, Tracer

_VALUES = "values are not known where a rule is compiled: no `if`, float() or item(); use xp.where"
_LOOKED = (
    "Tracer",
    "Concretization",
    "NotAllowedInGraph",
    "truth value",
    "Boolean value",
    "scalar",
    "Scalar",
)
"""Parts of the frameworks' errors for a Python branch on, or a float() of, a traced value."""


def shown(rule: Rule) -> str:
    """Return the name of the user's class: of the rule that ``rule`` wraps, where it does."""
    return type(getattr(rule, "inner", rule)).__name__


def checked(rule: Rule, name: str, function: Callable[[], Any]) -> Any:
    """Return ``function()``, a call of the rule's ``name``, with its errors in the user's words.

    Raises
    ------
    RuleError
        For what only a rule can do wrong; other errors are raised as they are.
    """
    try:
        return function()
    except RuleError as error:
        if str(error).startswith(shown(rule)):
            raise
        raise RuleError(f"{shown(rule)}.{name}: {error}") from error
    except PolyoptError:
        raise
    except Exception as error:
        explain_error(rule, name, error)


def explain_error(rule: Rule, name: str, error: Exception) -> NoReturn:
    """Raise ``error``, which the rule's function ``name`` ended in, in the user's words.

    Raises
    ------
    RuleError
        For what only a rule can do wrong; other errors are raised as they are.
    """
    where = f"{shown(rule)}.{name}"
    if isinstance(error, AttributeError) and isinstance(error.obj, SimpleNamespace | ModuleType):
        operations = [x for x in vars(Ops) if not x.startswith("_")]
        missing = str(error.name)
        if hasattr(error.obj, "matmul"):
            raise RuleError(f"{where}: there is no xp.{missing}; {nearest(missing, operations)}") from error
        if isinstance(error.obj, SimpleNamespace):
            refuse_name(rule, name, missing, vars(error.obj), error)
    foreign = _foreign(rule, name)
    kind = type(error).__name__
    ours = isinstance(error, TypeError | AttributeError | ValueError) or type(error) is RuntimeError
    if not foreign and not ours:
        raise error
    text = str(error).split("\n")[0] or kind
    if foreign:
        nothing = "use the operations of xp, and nothing else"
        raise RuleError(f"{where} uses {foreign}: {nothing} ({text})") from error
    looked = any(x in f"{kind} {text}" for x in _LOOKED)
    raise RuleError(f"{where}: {text}{f'; {_VALUES}' if looked else ''}") from error


def refuse_name(
    rule: Rule, name: str, missing: str, known: Mapping[str, Any], cause: Exception | None = None
) -> NoReturn:
    """Refuse a number that the rule's function ``name`` reads, and that isn't among ``known``.

    Raises
    ------
    RuleError
        It says how a field becomes a hyperparameter, if it is a plain field, or gives the nearest name.
    """
    of = {"coefficients": "h"}.get(name, "c")
    if missing in {field.name for field in dataclasses.fields(getattr(rule, "inner", rule))}:
        why = (
            f"{missing!r} is a plain field: declare it with hyper(...) to have it in {of}, or read "
            f"self.{missing}"
        )
    elif name == "leaf":
        why = f"{'measure() and ' * isinstance(rule, Global)}coefficients() give no {missing!r}"
    else:
        why = f"{missing!r} is no hyperparameter of the rule"
    hint = "" if "plain field" in why else f"; {nearest(missing, known)}"
    raise RuleError(f"{shown(rule)}.{name} reads {of}.{missing}, but {why}{hint}") from cause


def _foreign(rule: Rule, name: str) -> str:
    """Return the modules that the rule's function uses, but for polyopt's own and Python's."""
    function = inspect.unwrap(getattr(type(getattr(rule, "inner", rule)), name))
    if not isinstance(function, FunctionType):
        return ""
    free = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    cells = {n: cell.cell_contents for n, cell in free if isinstance(_contents(cell), ModuleType)}
    known = function.__globals__ | cells
    used = [known.get(x) for x in (*function.__code__.co_names, *function.__code__.co_freevars)]
    roots = {x.__name__.split(".")[0] for x in used if isinstance(x, ModuleType)}
    return ", ".join(sorted(roots - {"polyopt"}))


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not bound yet
        return None


class ReadSlots(dict[str, Any]):
    """A leaf's slots by name; reading another one is refused."""

    def __init__(self, rule: Rule, slots: Mapping[str, Any]) -> None:
        super().__init__(slots)
        self._rule = rule

    def __missing__(self, name: str) -> NoReturn:
        scalar = any(slot.name == name and slot.shape == "scalar" for slot in self._rule.slots())
        hint = f"it is a scalar slot, which is in c.{name}" if scalar else f"{nearest(str(name), self)}"
        raise RuleError(
            f"{shown(self._rule)}.leaf reads slot {name!r}, "
            + ("but " if scalar else "which slots() doesn't declare; ")
            + hint
        )


def returned(rule: Rule, result: Any) -> tuple[Any, Mapping[str, Any]]:
    """Return what a leaf function gave, if that is an update and the next values of its slots.

    Raises
    ------
    RuleError
        It says what is wrong, and names the slot.
    """
    where = f"{shown(rule)}.leaf"
    wanted = "expected (update to add, next slots), with {} for a rule without slots"
    if not isinstance(result, tuple) or len(result) != 2:
        found = f"{len(result)} values" if isinstance(result, tuple) else _kind(result)
        raise RuleError(f"{where} returns {found}; {wanted}")
    update, new = result
    if not isinstance(new, Mapping):
        raise RuleError(f"{where} returns {_kind(new)} as its next slots; {wanted}")
    like = [slot for slot in rule.slots() if slot.shape == "like"]
    expected = {slot.name for slot in like if not (slot.constant and isinstance(rule, Elementwise))}
    for name in sorted(expected - set(new)):
        near = f"; {nearest(name, map(str, new))}" if new else ""
        raise RuleError(f"{where} doesn't return the next value of slot {name!r}{near}")
    for name in new:
        if name not in expected:
            constant = any(slot.name == name for slot in like)
            why = "is constant: it is only read" if constant else "slots() doesn't declare"
            near = "" if constant else f"; {nearest(str(name), expected)}"
            raise RuleError(f"{where} returns slot {name!r}, which {why}{near}")
    for name, value in {"its update": update, **{f"slot {n!r}": x for n, x in new.items()}}.items():
        if value is None or isinstance(value, str | bytes | Mapping | list | tuple):
            raise RuleError(f"{where} returns {_kind(value)} as {name}; expected an array")
    return update, new


def check_arrays(rule: Rule, result: Any, like: Any) -> None:
    """Refuse what a leafwise rule's leaf function gave, unless it is arrays as ``like``, the parameter.

    Raises
    ------
    RuleError
        It says what was found.
    """
    update, new = returned(rule, result)
    shape = tuple(like.shape)
    for name, value in {"its update": update, **{f"slot {n!r}": x for n, x in new.items()}}.items():
        found = getattr(value, "shape", None)
        if found is None or tuple(found) != shape:
            what = _kind(value) if found is None else f"an array of shape {tuple(found)}"
            raise RuleError(
                f"{shown(rule)}.leaf returns {what} as {name}; expected an array of the leaf's shape {shape}"
            )
        if not hasattr(value, "dtype") or _root(value) != _root(like):
            raise RuleError(
                f"{shown(rule)}.leaf returns an array of {_root(value)} as {name}, for one of {_root(like)}: "
                "use the operations of xp, and nothing else"
            )


def _root(x: Any) -> str:
    return type(x).__module__.split(".")[0].removesuffix("lib")  # jaxlib's arrays are jax's


def measured(rule: Global, xp: Any, leaves: Sequence[Array], c: SimpleNamespace) -> dict[str, Array]:
    """Return what ``rule`` measures over ``leaves``: 0-d arrays by name.

    Raises
    ------
    RuleError
        For anything else.
    """
    found = checked(rule, "measure", lambda: rule.measure(xp, leaves, c))
    where = f"{shown(rule)}.measure"
    if not isinstance(found, Mapping):
        raise RuleError(f"{where} returns {_kind(found)}; expected 0-d arrays by name, a dict")
    for name, value in found.items():
        shape = getattr(value, "shape", None)
        if shape is None or len(shape) != 0:
            what = _kind(value) if shape is None else f"an array of shape {tuple(shape)}"
            raise RuleError(f"{where} returns {what} for {name!r}; expected a 0-d array")
    return dict(found)


def unknown_coefficient(parts: Sequence[tuple[str, Rule]], name: str, known: Mapping[str, Any]) -> NoReturn:
    """Refuse ``name``, which one of the leaf functions reads and no rule gives.

    Parameters
    ----------
    parts
        ``(key, rule)`` of the program; a coefficient's name is its rule's key and its own name.
    name, known
        What is missing, and all coefficients.

    Raises
    ------
    RuleError
        It names the rule and the nearest coefficient.
    """
    key, rule = max(((k, r) for k, r in parts if name.startswith(k)), key=lambda x: len(x[0]))
    own = {n.removeprefix(key): x for n, x in known.items() if n.startswith(key)}
    refuse_name(rule, "leaf", name.removeprefix(key), own)


def explain_coefficients(rule: Rule, values: Any, scalar_slots: Iterable[str], error: Exception) -> NoReturn:
    """Raise ``error``, which ``coefficients`` or what it returned ended in, in the user's words.

    Raises
    ------
    RuleError
        It names the coefficient; other errors are raised as they are.
    """
    where = f"{shown(rule)}.coefficients"
    if values is None and not (isinstance(error, AttributeError) and error.obj is None):
        explain_error(rule, "coefficients", error)
    if not isinstance(values, Mapping):
        raise RuleError(f"{where} returns {_kind(values)}; expected numbers by name, a dict")
    for name, x in values.items():
        number = isinstance(x, int | float) or (hasattr(x, "dtype") and tuple(getattr(x, "shape", ())) == ())
        if not number:
            raise RuleError(f"{where} returns {x!r:.80} for {name!r}; expected a number")
    for name in scalar_slots:
        if name not in values:
            raise RuleError(f"{where} doesn't return the next value of the scalar slot {name!r}")
    raise error


def check_slots_declared(rule: Rule, reserved: Mapping[str, str]) -> None:
    """Refuse slots that are no ``Slot``, share a name, or are called as a leaf function's other arrays are.

    Raises
    ------
    RuleError
        It names the slot.
    """
    slots = rule.slots()
    where = f"{shown(rule)}.slots"
    if not isinstance(slots, tuple | list):
        raise RuleError(f"{where} returns {_kind(slots)}; expected a tuple, such as (Slot('momentum'),)")
    seen: set[str] = set()
    for slot in slots:
        if not isinstance(slot, Slot):
            raise RuleError(f"{where} returns {slot!r:.80} among its slots; expected Slot(name)")
        if slot.name in reserved:
            raise RuleError(
                f"{shown(rule)}: a slot is called {slot.name!r}, which is the name of the "
                f"{reserved[slot.name]} in every rule; expected another name"
            )
        if slot.name in seen:
            raise RuleError(f"{where} returns two slots called {slot.name!r}; expected a name for each")
        seen.add(slot.name)


def _kind(x: Any) -> str:
    if x is None:
        return "None"
    array = isinstance(x, Symbol) or (hasattr(x, "dtype") and hasattr(x, "shape"))
    return "an array" if array else f"a {type(x).__name__}"


class LeafTracer(Tracer):
    """Record an elementwise leaf function, and refuse what would be rounded unlike elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[str, str] = {}
        """Source text of each value that the host can compute: coefficients, and operations on them alone."""

    def coefficient(self, rule: Rule, name: str, qualified: str) -> Symbol:
        """Return the input ``qualified``: ``name`` of the rule's coefficients, or of its measurements."""
        if not isinstance(rule, Global) or name in rule.hyperparameters():
            self._known[qualified] = f"c.{name}"
        return Symbol(self, qualified)

    def power(self, x: Any, y: Any) -> Symbol:
        """Refuse ``x ** y``."""
        raise RuleError("** is not rounded alike everywhere; write g * g for a square, else xp.pow(x, y)")

    def emit(self, op: str, *operands: Any) -> Symbol:
        """Record an operation; refuse a sum or a difference that the host would compute more exactly."""
        made = super().emit(op, *operands)
        written = [self._written(x) for x in operands]
        if all(written) and any(isinstance(x, Symbol) for x in operands):
            text = f"{written[0]} {'+' if op == 'add' else '-'} {written[-1]}"
            if op in ("add", "subtract"):
                raise RuleError(
                    f"{text} would be rounded in the compute dtype (1 - 0.999 is off by 1.3e-5 in float32); "
                    "return it from coefficients(), where it is computed in double precision"
                )
            self._known[made.name] = f"{op}({', '.join(written)})"
        return made

    def _written(self, x: Any) -> str:
        """Return ``x`` as it is written if the host could know it, else nothing."""
        return self._known.get(x.name, "") if isinstance(x, Symbol) else f"{x:g}"

    def check_result(self, rule: Rule, update: Any, new: Mapping[str, Any], *, last: bool) -> None:
        """Refuse an update that is a bool or, if it is added to the parameter, the new parameter itself.

        Raises
        ------
        RuleError
            It says what to return instead.
        """
        for name, value in {"its update": update, **{f"slot {n!r}": x for n, x in new.items()}}.items():
            checked(rule, "leaf", partial(self._operand, value))
            made = self._made(value)
            if made is not None and made.op in PREDICATES:
                where = f"{shown(rule)}.leaf"
                raise RuleError(f"{where} returns a bool as {name}; expected numbers: xp.where(is_so, a, b)")
        made = self._made(update)
        whole = isinstance(update, Symbol) and update.name == "p"
        if made is not None:
            terms = made.args if made.op == "add" else made.args[:1] if made.op == "subtract" else ()
            whole = "p" in terms
        if last and whole:
            raise RuleError(
                f"{shown(rule)}.leaf returns the new parameter; expected the update that is added to it: "
                "-(c.lr * g), not p - c.lr * g"
            )

    def _made(self, x: Any) -> Instruction | None:
        """Return the instruction that made ``x``; ``None`` for an input or a number."""
        return next((i for i in self._body if isinstance(x, Symbol) and i.name == x.name), None)
