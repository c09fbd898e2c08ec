"""Trace an elementwise leaf function once into straight-line code that every backend can emit.

``leaf(xp, g, p, slots, c)`` is called with a *symbolic* ``xp`` and symbolic values. What comes out is a
``Program``: a tuple of three-address instructions in static single assignment form, on which a backend
builds whatever is fastest there (blocked NumPy calls, one XLA computation, a compiled kernel), and from which
``explain`` prints the formula that really runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any, Final, NoReturn

from polyopt.core.errors import RuleError, nearest
from polyopt.core.ops import Ops

# fmt: off
UNARY: Final = frozenset((
    "abs", "ceil", "cos", "exp", "expm1", "floor", "isfinite", "isinf", "isnan", "log", "log1p",
    "logical_not", "negative", "round", "sign", "sqrt", "square", "tanh",
))
BINARY: Final = frozenset((
    "add", "divide", "equal", "greater", "greater_equal", "less", "less_equal", "logical_and",
    "logical_or", "maximum", "minimum", "multiply", "not_equal", "pow", "subtract",
))
PREDICATES: Final = frozenset((
    "equal", "greater", "greater_equal", "isfinite", "isinf", "isnan", "less", "less_equal",
    "logical_and", "logical_not", "logical_or", "not_equal",
))
# fmt: on
"""Operations whose result is a bool, not of the compute dtype."""

INEXACT: Final = frozenset(("cos", "exp", "expm1", "log", "log1p", "pow", "tanh"))
"""Operations that every library rounds otherwise: no generated kernel has NumPy's bits of them."""


@dataclass(frozen=True)
class Instruction:
    """``name = op(*args)``; an argument is an input's name or an earlier instruction's."""

    name: str
    op: str
    args: tuple[str, ...]


@dataclass(frozen=True)
class Program:
    """A pure elementwise function of arrays (one shape) and scalars (0-d), all of one compute dtype.

    ``arrays`` and ``scalars`` name the inputs. ``constants`` are literals of the source, kept as scalar
    inputs so that no compiler folds them. ``outputs`` maps an output's name to the value that it is; an
    output that has an input's name replaces that input (same dtype, and its memory when donated).
    """

    arrays: tuple[str, ...]
    scalars: tuple[str, ...]
    constants: tuple[tuple[str, float], ...]
    body: tuple[Instruction, ...]
    outputs: tuple[tuple[str, str], ...]

    @property
    def used(self) -> frozenset[str]:
        """Names that the body or an output reads; an input that is not among them need not be loaded."""
        read = {a for i in self.body for a in i.args}
        return frozenset(read | {v for _, v in self.outputs})

    @property
    def read(self) -> tuple[str, ...]:
        """Arrays that the body or an output reads."""
        used = self.used
        return tuple(name for name in self.arrays if name in used)

    @property
    def written(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return tuple(name for name, _ in self.outputs)

    @property
    def replaced(self) -> tuple[str, ...]:
        """Outputs that replace an input."""
        return tuple(name for name in self.written if name in self.arrays)

    @property
    def touched(self) -> tuple[str, ...]:
        """Arrays that are read or replaced."""
        return tuple(dict.fromkeys((*self.read, *self.replaced)))

    @property
    def scalar_names(self) -> frozenset[str]:
        """The values that depend on scalars alone: computed once a call, not once an element."""
        known = {*self.scalars, *(name for name, _ in self.constants)}
        for instruction in self.body:
            if known.issuperset(instruction.args):
                known.add(instruction.name)
        return frozenset(known)

    @property
    def inexact(self) -> tuple[str, ...]:
        """Operations on arrays for which no kernel is generated, sorted; scalars are left to the host."""
        known = self.scalar_names
        return tuple(sorted({i.op for i in self.body if i.name not in known} & INEXACT))


_ELEMENTS = "an elementwise rule sees one element at a time; one that needs more is a Leafwise rule"
_LOGICAL = "use xp.logical_and, xp.logical_or and xp.logical_not"


class Symbol:
    """A value inside a trace. Only array arithmetic works on it; its value is not known."""

    __slots__ = ("name", "tracer")
    __hash__ = object.__hash__
    __array_ufunc__ = None
    """NumPy's functions refuse it, and a NumPy scalar leaves the operation to it."""

    def __init__(self, tracer: Tracer, name: str) -> None:
        self.tracer = tracer
        self.name = name

    def _binary(op: str) -> Callable[[Symbol, Any], Symbol]:  # type: ignore[misc]
        return lambda self, other: self.tracer.emit(op, self, other)

    def _reflected(op: str) -> Callable[[Symbol, Any], Symbol]:  # type: ignore[misc]
        return lambda self, other: self.tracer.emit(op, other, self)

    __add__ = _binary("add")
    __radd__ = _reflected("add")
    __sub__ = _binary("subtract")
    __rsub__ = _reflected("subtract")
    __mul__ = _binary("multiply")
    __rmul__ = _reflected("multiply")
    __truediv__ = _binary("divide")
    __rtruediv__ = _reflected("divide")
    __lt__ = _binary("less")
    __le__ = _binary("less_equal")
    __gt__ = _binary("greater")
    __ge__ = _binary("greater_equal")
    __eq__ = _binary("equal")  # type: ignore[assignment]
    __ne__ = _binary("not_equal")  # type: ignore[assignment]

    def __pow__(self, other: Any) -> Symbol:
        return self.tracer.power(self, other)

    def __rpow__(self, other: Any) -> Symbol:
        return self.tracer.power(other, self)

    def __neg__(self) -> Symbol:
        return self.tracer.emit("negative", self)

    def __abs__(self) -> Symbol:
        return self.tracer.emit("abs", self)

    def _refused(sign: str, why: str) -> Callable[..., NoReturn]:  # type: ignore[misc]
        def refuse(self: Symbol, *_: object) -> NoReturn:
            raise RuleError(f"{sign} in a leaf function: {why}")

        return refuse

    __getitem__ = __setitem__ = __iter__ = __len__ = _refused("x[i]", _ELEMENTS)
    __matmul__ = __rmatmul__ = _refused("@", _ELEMENTS)
    __and__ = __rand__ = __or__ = __ror__ = __xor__ = __invert__ = _refused("&, | and ~", _LOGICAL)
    __mod__ = __rmod__ = __floordiv__ = __rfloordiv__ = _refused("% and //", "use xp.floor(x / y)")

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # asked by libraries
            raise AttributeError(name)
        raise AttributeError(
            f"an array has no .{name} in a leaf function, only operators and xp: {_ELEMENTS}"
        )

    def _unknown(self, *_: object) -> NoReturn:
        raise RuleError(
            "a rule's leaf must not look at an array's value (no `if`, no float()): its "
            "value is not known when the rule is compiled; use xp.where"
        )

    __bool__ = __float__ = __int__ = __index__ = _unknown


class Tracer:
    """Records instructions; it is the symbolic ``xp`` itself."""

    def __init__(self) -> None:
        self._body: list[Instruction] = []
        self._seen: dict[tuple[str, ...], Symbol] = {}
        self._constants: dict[str, tuple[str, float]] = {}

    def __getattr__(self, op: str) -> Callable[..., Symbol]:
        if op in UNARY or op in BINARY or op == "where":
            return partial(self._operation, op)
        known = [name for name in vars(Ops) if not name.startswith("_")]
        if op not in known:
            raise AttributeError(f"there is no xp.{op}; {nearest(op, known)}")
        raise AttributeError(
            f"xp.{op} is not an elementwise operation: a rule that needs it is a Leafwise rule"
        )

    def _operation(self, op: str, *args: Any, **keywords: Any) -> Symbol:
        wanted = 1 if op in UNARY else 2 if op in BINARY else 3
        if keywords or len(args) != wanted:
            found = f"{len(args)}" + (f", and {', '.join(keywords)} by name" if keywords else "")
            many = "1 argument" if wanted == 1 else f"{wanted} arguments"
            raise RuleError(f"xp.{op} takes {many} by position; found {found}")
        return self.emit(op, *args)

    def power(self, x: Any, y: Any) -> Symbol:
        """Record ``x ** y``."""
        return self.emit("pow", x, y)

    def clip(self, x: Any, /, min: Any = None, max: Any = None) -> Any:
        """Record the standard's clip as the maximum and minimum that it is."""
        if min is not None:
            x = self.emit("maximum", x, min)
        return x if max is None else self.emit("minimum", x, max)

    def zeros_like(self, x: Any, /) -> Symbol:
        """Record the constant 0."""
        return self._operand(0.0)

    def ones_like(self, x: Any, /) -> Symbol:
        """Record the constant 1."""
        return self._operand(1.0)

    def full_like(self, x: Any, fill_value: float, /) -> Symbol:
        """Record the constant ``fill_value``."""
        return self._operand(fill_value)

    def emit(self, op: str, *operands: Any) -> Symbol:
        """Record ``op``; equal expressions are computed once, which changes no bit."""
        key = (op, *(self._operand(x).name for x in operands))
        if key not in self._seen:
            name = f"_{len(self._body)}"
            self._body.append(Instruction(name, op, key[1:]))
            self._seen[key] = Symbol(self, name)
        return self._seen[key]

    def _operand(self, x: Any) -> Symbol:
        if isinstance(x, Symbol):
            return x
        if not isinstance(x, Real) and getattr(x, "shape", None) != ():
            raise RuleError(f"{x!r:.80} in a leaf function; expected an array that it is given, or a number")
        value = float(x)
        fresh = (f"_c{len(self._constants)}", value)
        # By its text: -0.0 equals 0.0 and NaN doesn't equal itself.
        return Symbol(self, self._constants.setdefault(repr(value), fresh)[0])

    def program(
        self, arrays: tuple[str, ...], scalars: tuple[str, ...], outputs: Mapping[str, Any]
    ) -> Program:
        """Close the trace, dropping instructions on which no output depends."""
        results = tuple((name, self._operand(value).name) for name, value in outputs.items())
        live = {value for _, value in results}
        body: list[Instruction] = []
        for instruction in reversed(self._body):
            if instruction.name in live:
                live.update(instruction.args)
                body.append(instruction)
        constants = tuple(c for c in self._constants.values() if c[0] in live)
        return Program(arrays, scalars, constants, tuple(reversed(body)), results)


def evaluate(
    program: Program,
    xp: Any,
    inputs: Mapping[str, Any],
    *,
    call: Callable[[str, tuple[Any, ...]], Any] | None = None,
) -> dict[str, Any]:
    """Run ``program`` op by op on ``xp``; every input is in the compute dtype already.

    ``call(op, args)`` replaces ``getattr(xp, op)(*args)`` where a backend needs to put something around it.
    """
    values = dict(inputs)
    for instruction in program.body:
        args = tuple(values[a] for a in instruction.args)
        op = instruction.op
        values[instruction.name] = call(op, args) if call else getattr(xp, op)(*args)
    return {name: values[value] for name, value in program.outputs}
