"""Replay the NumPy calls of a recorded function as one straight piece of Python, in memory of its own."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np
import optree

from polyopt_numpy.recording import Call, Recorded, Recording
from polyopt_numpy.tape_schedule import Schedule

FREED = 4096
"""Bytes from which a result that has no buffer is let go of after its last use."""

MASKED = 2048
"""Elements from which zeros are put in by the bits."""

_FLOATS = (np.float32, np.float64)
_OPERATORS: dict[Any, str] = {
    np.add: "+",
    np.subtract: "-",
    np.multiply: "*",
    np.true_divide: "/",
    np.negative: "-",
}
_REDUCTIONS: dict[Any, Any] = {np.sum: np.add, np.max: np.maximum, np.min: np.minimum}


class Tape:
    """The calls that lead to ``outputs``, which are recorded values or constants.

    Results in between lie in buffers that are kept from call to call, and shared by those that are not needed
    at the same time; outputs are new arrays each time. Calls from several threads at once have buffers each.
    """

    def __init__(self, recording: Recording, inputs: Sequence[bool], outputs: Sequence[Any]) -> None:
        program = _Source(recording, inputs, outputs)
        names: dict[str, Any] = program.constants
        exec(compile(program.source(), "<tape of a loss>", "exec"), names)
        self._run = names["run"]
        self._layout = [(x.shape, x.dtype, _order(x)) for x in program.buffers]
        # list.append and list.pop are atomic: no lock.
        self._idle: list[list[Any]] = []

    def __call__(self, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """Return the outputs for other inputs of the same shapes, dtypes and strides."""
        try:
            buffers = self._idle.pop()
        except IndexError:
            buffers = [np.empty(shape, dtype, order) for shape, dtype, order in self._layout]
        found: tuple[Any, ...] = self._run(inputs, buffers)
        self._idle.append(buffers)
        return found

    def like(self, params: Any) -> None:
        """Give gradients in a tree like ``params``."""
        leaves, self._structure = optree.tree_flatten(params, none_is_leaf=True)
        self._present = None if all(x is not None for x in leaves) else [x is not None for x in leaves]

    def unflatten(self, gradients: list[Any]) -> Any:
        """Return the outputs but the first, as a tree."""
        if self._present is not None:
            rest = iter(gradients)
            gradients = [next(rest) if here else None for here in self._present]
        return optree.tree_unflatten(self._structure, gradients)


class _Source(Schedule):
    """Choose the memory of each call and write the source."""

    def __init__(self, recording: Recording, inputs: Sequence[bool], outputs: Sequence[Any]) -> None:
        super().__init__(recording, inputs, outputs)
        slots = count()
        self.unpacked = "".join(f"v{next(slots)}, " if mine else "_, " for mine in inputs)
        self.constants: dict[str, Any] = {}
        self.buffers: list[Any] = []
        self._names: dict[int, str] = {}
        self._shared: set[int] = set()
        self._mask: dict[int, str] = {}
        """For a call of ``_masked`` its buffer of integers."""

    def source(self) -> str:
        """Return ``run(inputs, buffers) -> outputs``."""
        place: dict[int, int] = {}  # root: buffer
        idle: list[int] = []
        lines = []
        for i, call in enumerate(self.calls):
            root, example = call.slot, self.examples[call.slot]
            ending = [r for r in self.ending(call, i) if r >= self.inputs]
            out = ""
            if self._bufferable(call):
                elementwise = isinstance(call.function, np.ufunc) and call.function.signature is None
                if elementwise:  # in place
                    idle += [place[r] for r in ending if r in place]
                fit = next((b for b in reversed(idle) if _alike(self.buffers[b], example)), None)
                if fit is None:
                    fit = len(self.buffers)
                    self.buffers.append(example)
                else:
                    idle.remove(fit)
                place[root], out = fit, f"b{fit}"
                if self._masks(call):
                    self._mask[root] = self._integers(example)
                if not elementwise:
                    idle += [place[r] for r in ending if r in place]
            else:
                idle += [place[r] for r in ending if r in place]
            lines.append(f"v{call.slot} = {self._call(call, out)}")
            lines += [f"v{r} = None" for r in ending if self._large(r, place)]
        head = ["def run(inputs, buffers):"]
        head += [f"({self.unpacked}) = inputs"] if self.unpacked else []
        head += (
            [f"({''.join(f'b{i}, ' for i in range(len(self.buffers)))}) = buffers"] if self.buffers else []
        )
        return "\n    ".join([*head, *lines, f"return ({self._results()})"]) + "\n"

    def _integers(self, like: Any) -> str:
        """Return a buffer for the bits of a mask, for all of this shape."""
        wanted = np.empty_like(like, dtype=f"i{like.itemsize}")
        mine = next((i for i, b in enumerate(self.buffers) if _alike(b, wanted) and i in self._shared), None)
        if mine is None:
            mine = len(self.buffers)
            self.buffers.append(wanted)
            self._shared.add(mine)
        return f"b{mine}"

    def _large(self, root: int, place: dict[int, int]) -> bool:
        return root not in place and self.examples[root].nbytes >= FREED

    def _bufferable(self, call: Call) -> bool:
        x = self.examples[call.slot]
        mine = self.roots[call.slot] == call.slot and call.slot not in self.given
        if not mine or type(x) is not np.ndarray or x.ndim == 0 or _order(x) is None:
            return False
        if isinstance(call.function, np.ufunc) and not call.keywords:
            return True
        return self._reduction(call) is not None or self._masks(call)

    def _reduction(self, call: Call) -> Any:
        """Return the ufunc of a sum, maximum or minimum over axes."""
        ufunc = _REDUCTIONS.get(call.function)
        plain = len(call.args) == 1 and set(call.keywords) <= {"axis", "dtype", "keepdims"}
        return ufunc if ufunc is not None and plain else None

    def _call(self, call: Call, out: str) -> str:
        function, args, keywords = call.function, call.args, call.keywords
        ufunc = self._reduction(call)
        if ufunc is not None:
            given = [self._text(args[0]), *(self._text(keywords.get(k)) for k in ("axis", "dtype"))]
            keep = bool(keywords.get("keepdims", False))
            return f"{self._constant(ufunc.reduce)}({', '.join(given)}, {out or None}, {keep})"
        quick = self._scalar(call) or self._mean(call) or self._where(call, out)
        if quick:
            return quick
        x = self._text(args[0])
        if function is operator.getitem:
            rows = args[1]
            single = isinstance(rows, tuple) and len(rows) == 1 and isinstance(rows[0], Recorded)
            whole = isinstance(args[0], Recorded) and self.examples[args[0].slot].flags.c_contiguous
            if single and whole:
                return f"{x}.take({self._text(rows[0])}, 0)"
            return f"{x}[{self._text(rows)}]"
        if function is np.matrix_transpose:
            return f"{x}.mT"
        shape = self.examples[call.slot].shape
        if function is np.expand_dims or (function is np.reshape and not keywords):
            return f"{x}.reshape({self._text(shape)})"
        if function is np.astype and len(args) == 2:
            return f"{x}.astype({self._text(args[1])}, copy={bool(keywords.get('copy', True))})"
        if isinstance(function, np.ufunc):
            args = tuple(self._number(y, args) for y in args)
        given = [self._text(y) for y in args] + [f"{k}={self._text(y)}" for k, y in keywords.items()]
        # NumPy wants these two to be told by name where the result goes.
        named = "out=" if function in (np.maximum, np.minimum) else ""
        return f"{self._constant(function)}({', '.join(given + [named + out] * bool(out))})"

    def _scalar(self, call: Call) -> str | None:
        """Write an operator between scalars: a tenth of the ufunc's time."""
        sign = _OPERATORS.get(call.function)
        values = [self._example(x) for x in call.args]
        result = self.examples[call.slot]
        if (
            sign is None
            or call.keywords
            or not all(type(x) is float or type(x) in _FLOATS for x in (*values, result))
        ):
            return None
        texts = [self._text(x) for x in call.args]
        return f"{sign}{texts[0]}" if len(texts) == 1 else f"{texts[0]} {sign} {texts[1]}"

    def _mean(self, call: Call) -> str | None:
        """Write a sum and a division, as NumPy's mean has it where the dtype holds the count exactly."""
        x = self._example(call.args[0])
        result = self.examples[call.slot]
        if (
            call.function is not np.mean
            or len(call.args) > 1
            or type(result) not in _FLOATS
            or x.dtype != result.dtype
        ):
            return None
        if call.keywords.get("axis") is not None or call.keywords.get("keepdims") or x.size > 2**24:
            return None
        return f"{self._constant(np.add.reduce)}({self._text(call.args[0])}, None) / {x.size}"

    def _where(self, call: Call, out: str) -> str | None:
        """Zeros where a condition fails, by the bits: half of the time of ``numpy.where`` on large arrays."""
        if not out or call.function is not np.where:
            return None
        condition, x = (self._text(y) for y in call.args[:2])
        return f"{self._constant(_masked)}({condition}, {x}, {self._mask[call.slot]}, {out})"

    def _masks(self, call: Call) -> bool:
        """Return True for ``where(condition, x, 0.0)`` of large arrays of one shape."""
        if call.function is not np.where or call.keywords:
            return False
        condition, x, zero = (self._example(y) for y in call.args)
        mine = self.examples[call.slot]
        plain = all(type(y) is np.ndarray and y.shape == mine.shape for y in (condition, x))
        return bool(
            plain
            and condition.dtype == np.bool
            and x.dtype == mine.dtype
            and mine.dtype in (np.float32, np.float64)
            and mine.size >= MASKED
            and not isinstance(call.args[2], Recorded)
            and zero.dtype == mine.dtype
            and not zero.tobytes().strip(b"\0")
        )

    def _number(self, x: Any, args: tuple[Any, ...]) -> Any:
        """Make a constant a 0-d array of the dtype that it takes beside ``args``, so that NumPy need not."""
        if isinstance(x, np.generic) and x.dtype.kind in "fiub":
            return np.asarray(x)
        other = [self._example(y) for y in args if isinstance(y, Recorded)]
        if type(x) is float and len(other) == 1 and other[0].dtype.kind == "f":
            return np.asarray(x, other[0].dtype)
        return x

    def _results(self) -> str:
        """Write the outputs: each memory of its own, none of which is a constant's."""
        texts, seen = [], set()
        for x in self.outputs:
            root = self.roots[x.slot] if isinstance(x, Recorded) else None
            twice = root is None or root in seen
            seen.add(root)
            texts.append(f"{self._text(x)}.copy(), " if twice else f"{self._text(x)}, ")
        return "".join(texts)

    def _text(self, x: Any) -> str:
        if isinstance(x, Recorded):
            return f"v{x.slot}"
        if type(x) in (tuple, list):
            inside = "".join(f"{self._text(y)}, " for y in x)
            return f"({inside})" if type(x) is tuple else f"[{inside}]"
        return self._constant(x)

    def _constant(self, x: Any) -> str:
        if x is None or type(x) in (bool, int):
            return repr(x)
        if id(x) not in self._names:
            self._names[id(x)] = f"c{len(self.constants)}"
            self.constants[self._names[id(x)]] = x
        return self._names[id(x)]


def _masked(condition: Any, x: Any, bits: Any, out: Any) -> Any:
    """Return ``where(condition, x, 0)``: all bits of ``x`` or none."""
    np.negative(condition.view(np.int8), bits, dtype=bits.dtype)
    np.bitwise_and(x.view(bits.dtype), bits, out.view(bits.dtype))
    return out


def _order(x: Any) -> Any:
    """Return ``"C"`` or ``"F"``, ``None`` for any other layout."""
    return "C" if x.flags.c_contiguous else "F" if x.flags.f_contiguous else None


def _alike(a: Any, b: Any) -> bool:
    return bool(a.shape == b.shape and a.dtype == b.dtype and a.strides == b.strides)
