"""Trace an elementwise leaf function once into straight-line code that every backend can emit.

``leaf(xp, g, p, slots, c)`` is called with a *symbolic* ``xp`` and symbolic values. What comes out is a
``Program``: a tuple of three-address instructions in static single assignment form, on which a backend
builds whatever is fastest there (blocked NumPy calls, one XLA computation, a compiled kernel), and from which
``explain`` prints the formula that really runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

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


class Symbol:
    """A value inside a trace. Only array arithmetic works on it; its value is not known."""

    __slots__ = ("name", "tracer")

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
    __pow__ = _binary("pow")
    __lt__ = _binary("less")
    __le__ = _binary("less_equal")
    __gt__ = _binary("greater")
    __ge__ = _binary("greater_equal")

    def __neg__(self) -> Symbol:
        return self.tracer.emit("negative", self)

    def __abs__(self) -> Symbol:
        return self.tracer.emit("abs", self)

    def _unknown(self, *_: object) -> NoReturn:
        raise TypeError(
            "a rule's leaf must not look at an array's value (no `if`, no float()): its hyperparameters "
            "may be traced; use xp.where"
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
            return lambda *args: self.emit(op, *args)
        raise AttributeError(
            f"xp.{op} is not an elementwise operation: a rule that needs it is a Leafwise rule"
        )

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
