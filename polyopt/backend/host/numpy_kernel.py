"""A program as blocked NumPy calls on one flat run of elements: what ``polyopt.backend.host.lift`` runs.

The intermediate values of a block stay in the cache, in registers (buffers of one block) that are allocated
by liveness; results are written where they belong. One instruction is one ufunc call, so the bits are those
of the program evaluated op by op.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, TypeAlias

import numpy as np

from polyopt.core.trace import Instruction, Program

BLOCK = 1 << 14
"""Elements of a block: a dozen float32 registers fit in a megabyte of L2 cache."""

Value: TypeAlias = Any
"""A host array or scalar."""

Call: TypeAlias = tuple[Callable[..., Any], tuple[Value, ...]]
"""A function and its operands, the destination last."""

_NAMES = {"abs": "absolute", "pow": "power", "round": "rint"}


def _where(condition: Value, x1: Value, x2: Value, out: Value) -> None:
    if condition.ndim:
        out[...] = np.where(condition, x1, x2)
    else:
        out[...] = x1 if condition else x2


def _copy(x: Value, out: Value) -> None:
    np.copyto(out, x, casting="unsafe")


def _function(op: str) -> Callable[..., Any]:
    """Return ``f(*operands, out)``."""
    function: Callable[..., Any] = _where if op == "where" else getattr(np, _NAMES.get(op, op))
    if op in ("maximum", "minimum"):  # NumPy 2.4 deprecates their positional ``out``
        return lambda x1, x2, out=None: function(x1, x2, out=out)
    return function


class ScalarValues:
    """Host scalars of the scalar inputs of ``program`` and of all that depends on them alone."""

    def __init__(self, program: Program) -> None:
        known = program.scalar_names
        self._given, self._constants = program.scalars, program.constants
        # Found once: a program has some thirty instructions, of which few are of scalars.
        self._steps = [
            (i.name, _select if i.op == "where" else _function(i.op), i.args)
            for i in program.body
            if i.name in known
        ]

    def __call__(self, scalars: Mapping[str, Any], dtype: str) -> dict[str, Value]:
        """Return them by name, computed in ``dtype``."""
        kind = np.dtype(dtype).type
        values = {n: kind(scalars[n]) for n in self._given}
        values |= {n: kind(v) for n, v in self._constants}
        for name, function, args in self._steps:
            values[name] = function(*[values[a] for a in args])
        return values


def _select(condition: Value, x1: Value, x2: Value) -> Value:
    return x1 if condition else x2


class ScalarCells:
    """Keep ``ScalarValues`` in 0-d arrays that stay the same, so that calls can be bound to them."""

    def __init__(self, program: Program, dtype: str) -> None:
        self._given, self._dtype = program.scalars, dtype
        self._find = ScalarValues(program)
        self._derived = len(program.scalar_names) > len(program.scalars) + len(program.constants)
        with np.errstate(all="ignore"):
            values = self._find(dict.fromkeys(self._given, 1.0), dtype)
        self.values: dict[str, Value] = {name: np.array(x) for name, x in values.items()}
        """By name."""

    def take(self, scalars: Mapping[str, Any]) -> None:
        """Write the values of one update."""
        values = self.values
        if self._derived:
            for name, x in self._find(scalars, self._dtype).items():
                values[name][...] = x
        else:
            for name in self._given:
                values[name][...] = scalars[name]


def _dtypes(program: Program, dtype: str) -> dict[str, np.dtype[Any]]:
    """Return the dtype of every value, by evaluating the program on one element."""
    one = np.ones(1, dtype)
    values = dict.fromkeys(program.arrays, one)
    values |= dict.fromkeys(program.scalars, one[0]) | {n: one[0] for n, _ in program.constants}
    with np.errstate(all="ignore"):
        for i in program.body:
            args = [values[a] for a in i.args]
            values[i.name] = np.where(*args) if i.op == "where" else _function(i.op)(*args)
    return {name: np.asarray(v).dtype for name, v in values.items()}


@dataclass(frozen=True)
class _Step:
    function: Callable[..., Any]
    args: tuple[int, ...]
    """Positions in the file of values: operands, then the destination."""


class Kernel:
    """``program`` for inputs and outputs of the given storage dtypes.

    With ``in_place``, an output that has an input's name *is* that input's memory. Safe to call from several
    threads at once: each call takes a file of values of its own.
    """

    def __init__(
        self, program: Program, dtype: str, storage: Mapping[str, np.dtype[Any]], *, in_place: bool
    ) -> None:
        self.inputs, self.outputs = program.read, program.written
        self._scalars = tuple(sorted(program.scalar_names))
        self._compute = np.dtype(dtype)
        self._register_dtypes: list[np.dtype[Any]] = []
        self._fixed = len(self.inputs) + len(self.outputs) + len(self._scalars)
        self._steps = tuple(
            (s.function, itemgetter(*s.args))
            for s in _Compiler(self, program, dtype, storage, in_place).steps()
        )
        self._files: deque[list[Any]] = deque(maxlen=64)

    def add_register(self, dtype: np.dtype[Any]) -> int:
        """Add a register of ``dtype``, and return its number."""
        self._register_dtypes.append(dtype)
        return self._fixed + len(self._register_dtypes) - 1

    def position(self, inputs: bool, name: str) -> int:
        """Return the number of the register of an input or an output."""
        return self.inputs.index(name) if inputs else len(self.inputs) + self.outputs.index(name)

    def scalar_position(self, name: str) -> int:
        """Return the number of the register of a scalar."""
        return len(self.inputs) + len(self.outputs) + self._scalars.index(name)

    def registers(self) -> list[Value]:
        """Make memory for what lies between inputs and outputs, for ``bound``."""
        return [np.empty(BLOCK, dtype) for dtype in self._register_dtypes]

    def bound(
        self, arrays: Sequence[Value], scalars: Mapping[str, Value], registers: Sequence[Value]
    ) -> list[Call]:
        """Make the calls for outputs of at most ``BLOCK`` elements, in memory that stays where it is.

        ``arrays`` as of ``run``; ``scalars`` are 0-d arrays.
        """
        n = len(arrays[0])
        file = [*arrays, *[scalars[name] for name in self._scalars], *[r[:n] for r in registers]]
        return [(function, operands(file)) for function, operands in self._steps]

    def run(self, arrays: Sequence[Value], scalars: Mapping[str, Value]) -> None:
        """Compute the outputs, where NumPy is told to ignore overflows and the like.

        ``arrays``: flat inputs, then flat outputs, all of one length.
        """
        try:
            file = self._files.pop()
        except IndexError:
            file = [None] * self._fixed + self.registers()
        n, registers = len(arrays[0]), file[self._fixed :]
        file[: self._fixed] = [*arrays, *[scalars[name] for name in self._scalars]]
        for start in range(0, n, BLOCK):
            stop = min(start + BLOCK, n)
            if stop - start < BLOCK:
                file[self._fixed :] = [r[: stop - start] for r in registers]
            if n > BLOCK:
                file[: len(arrays)] = [x[start:stop] for x in arrays]
            for function, operands in self._steps:
                function(*operands(file))
        file[: len(arrays)] = [None] * len(arrays)  # keep no caller's memory alive
        file[self._fixed :] = registers
        self._files.append(file)


class _Compiler:
    """Places every value: in an input, an output, or a register that is free while the value lives."""

    def __init__(
        self,
        kernel: Kernel,
        program: Program,
        dtype: str,
        storage: Mapping[str, np.dtype[Any]],
        in_place: bool,
    ) -> None:
        self.kernel, self.program, self.storage, self.in_place = kernel, program, storage, in_place
        self.compute = np.dtype(dtype)
        self.dtypes = _dtypes(program, dtype)
        self.scalars = program.scalar_names
        self.body = [i for i in program.body if i.name not in self.scalars]
        self.free: dict[np.dtype[Any], list[int]] = {}
        self.place = {name: kernel.scalar_position(name) for name in self.scalars}
        self.registers: set[str] = set()
        end = len(self.body)
        self.last = {a: k for k, i in enumerate(self.body) for a in i.args}
        self.last |= {value: end for _, value in program.outputs}

    def steps(self) -> list[_Step]:
        steps = self._loads()
        direct = self._direct()
        for k, instruction in enumerate(self.body):
            steps.append(self._compute_step(k, instruction, direct))
        return steps + self._stores(direct)

    def _loads(self) -> list[_Step]:
        """Load inputs that are cast, or whose memory is overwritten while an output is still their value."""
        shadowed = {v for name, v in self.program.outputs if self.in_place and v != name}
        steps = []
        for name in self.kernel.inputs:
            self.place[name] = self.kernel.position(True, name)
            if self.storage[name] != self.compute or name in shadowed:
                register = self._allocate(name, self.compute)
                steps.append(_Step(_copy, (self.place[name], register)))
                self.place[name] = register
        return steps

    def _direct(self) -> dict[str, str]:
        """Return ``{value: output}`` for values computed straight into an output's memory."""
        made = {instruction.name: k for k, instruction in enumerate(self.body)}
        direct: dict[str, str] = {}
        for name, value in self.program.outputs:
            if value not in made or value in direct or self.dtypes[value] != self._output_dtype(name):
                continue
            replaced = self.in_place and name in self.kernel.inputs and name not in self.registers
            if not replaced or self.last.get(name, -1) <= made[value]:
                direct[value] = name
        return direct

    def _compute_step(self, k: int, instruction: Instruction, direct: Mapping[str, str]) -> _Step:
        name = instruction.name
        operands = tuple(self.place[a] for a in instruction.args)
        dead = [a for a in set(instruction.args) if self.last[a] == k and a in self.registers]
        # A select writes before it has read all; anything else may overwrite its own operand.
        if instruction.op != "where":
            self._release(dead)
        if name in direct:
            self.place[name] = self.kernel.position(False, direct[name])
        else:
            self.place[name] = self._allocate(name, self.dtypes[name])
        if instruction.op == "where":
            self._release(dead)
        return _Step(_function(instruction.op), (*operands, self.place[name]))

    def _stores(self, direct: Mapping[str, str]) -> list[_Step]:
        return [
            _Step(_copy, (self.place[value], self.kernel.position(False, name)))
            for name, value in self.program.outputs
            if direct.get(value) != name and not self._in_its_place(name, value)
        ]

    def _in_its_place(self, name: str, value: str) -> bool:
        return self.in_place and value == name and name not in self.registers

    def _output_dtype(self, name: str) -> np.dtype[Any]:
        return self.storage.get(name, self.compute)

    def _allocate(self, name: str, dtype: np.dtype[Any]) -> int:
        self.registers.add(name)
        free = self.free.setdefault(dtype, [])
        return free.pop() if free else self.kernel.add_register(dtype)

    def _release(self, names: Sequence[str]) -> None:
        for name in names:
            self.free.setdefault(self.dtypes[name], []).append(self.place[name])
