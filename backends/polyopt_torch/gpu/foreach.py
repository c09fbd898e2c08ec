"""A program over a list of tensors, an operation at a time over all of them: ``torch._foreach_*``.

For accelerators on which no kernel can be generated. Each IEEE operation is one of PyTorch's, so the bits are
those of the program op by op; the variants that contract (``addcmul``, ``addcdiv``, ``lerp``) are not used.
What foreach can't do in those bits goes tensor by tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from polyopt.core.trace import Instruction, Program
from polyopt_torch import ops
from polyopt_torch.gpu.pointers import uploaded
from polyopt_torch.overwrite import overwrite

_UNARY = {"negative": "neg"} | {
    op: op for op in ("abs", "ceil", "cos", "exp", "expm1", "floor", "log", "log1p", "round", "sqrt", "tanh")
}
_PAIRS = {"add": "add", "subtract": "sub", "multiply": "mul", "divide": "div"}

Tensors = list[torch.Tensor]


class Foreach:
    """``program``, evaluated with as few launches as foreach allows."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._last = {a: k for k, i in enumerate(program.body) for a in i.args}
        self._last |= {value: len(program.body) for _, value in program.outputs}

    def __call__(
        self,
        arrays: Mapping[str, Sequence[torch.Tensor]],
        values: Mapping[str, Any],
        on_device: Mapping[str, torch.Tensor],
        dtype: torch.dtype,
        donate: bool,
    ) -> dict[str, Tensors]:
        """Return the outputs; with ``donate``, in the memory of the inputs that they replace.

        ``values``: what depends on scalars at hand alone, from the host. ``on_device``: other scalars, 0-d
        tensors of ``dtype``.
        """
        device = arrays["p"][0].device
        names = [n for n in values if n in self.program.used]
        known = uploaded(
            np.array([float(values[n]) for n in names], str(dtype).removeprefix("torch.")), device
        )
        scalars = dict(zip(names, known.unbind(), strict=True)) | dict(on_device)
        # The host's comparisons are numbers by now.
        scalars |= {n: scalars[n] != 0 for n in names if np.asarray(values[n]).dtype == bool}
        found = self._evaluate(arrays, scalars, dtype)
        return {name: _placed(arrays.get(name), found[name], donate) for name, _ in self.program.outputs}

    def _evaluate(
        self, arrays: Mapping[str, Sequence[torch.Tensor]], scalars: Mapping[str, Any], dtype: torch.dtype
    ) -> dict[str, Tensors]:
        """Make tensors in the compute dtype, none of which is an input's or another's memory."""
        values: dict[str, Any] = dict(scalars)
        ours: set[str] = set()
        for name in self.program.arrays:
            if name in self.program.used:
                values[name] = [x.detach().to(dtype) for x in arrays[name]]
                if all(x.dtype != dtype for x in arrays[name]):
                    ours.add(name)
        for k, i in enumerate(self.program.body):
            if i.name in values or not all(a in values for a in i.args):
                continue  # known from the host, or needed for that alone
            dead = {a for a in i.args if self._last[a] == k and a in ours}
            values[i.name] = _apply(i, [values[a] for a in i.args], [a in dead for a in i.args])
            if isinstance(values[i.name], list):
                ours.add(i.name)
            for a in dead:
                ours.discard(a)
                del values[a]  # so that its memory can serve again
        return self._outputs(values, ours, arrays["p"], dtype)

    def _outputs(
        self, values: Mapping[str, Any], ours: set[str], leaves: Sequence[torch.Tensor], dtype: torch.dtype
    ) -> dict[str, Tensors]:
        out: dict[str, Tensors] = {}
        for name, value in self.program.outputs:
            x = values[value]
            if not isinstance(x, list):
                out[name] = [torch.empty_like(p, dtype=dtype).copy_(x) for p in leaves]
            elif value in ours:
                out[name] = [y.to(dtype) for y in x]  # a comparison's are bool
                ours.discard(value)
            else:
                out[name] = [y.to(dtype, copy=True) for y in x]
        return out


def _placed(old: Sequence[torch.Tensor] | None, new: Tensors, donate: bool) -> Tensors:
    """Put ``new`` in the memory of ``old``, or give it its dtypes and ``requires_grad``."""
    if old is None:
        return new
    if donate:
        overwrite(old, new)
        return list(old)
    return [y.to(x.dtype).requires_grad_(x.requires_grad) for x, y in zip(old, new, strict=True)]


def _apply(instruction: Instruction, args: list[Any], dead: list[bool]) -> Any:
    """Apply one operation. ``dead`` says which operands may be overwritten."""
    op = instruction.op
    lists = [x for x in args if isinstance(x, list)]
    if not lists:
        return getattr(ops, op)(*args)
    if all(x[0].is_floating_point() for x in lists):
        found = _together(op, args, dead)
        if found is not None:
            return found
    function = getattr(ops, op)
    return [function(*[x[j] if isinstance(x, list) else x for x in args]) for j in range(len(lists[0]))]


def _together(op: str, args: list[Any], dead: list[bool]) -> Tensors | None:
    """Apply it by foreach; ``None`` where that has not the operation, or not its bits."""
    x, *rest = args
    free = dead[0] and not (rest and rest[0] is x)
    if op == "square":
        return _call("mul", free, x, x)
    if op in _UNARY:
        # On x86, PyTorch's root on the CPU is an ulp off (polyopt_torch.exact).
        return None if op == "sqrt" and x[0].is_cpu else _call(_UNARY[op], free, x)
    if op not in _PAIRS:
        return None
    # Scalars are tensors here: a division by a number may be a product with its reciprocal.
    if isinstance(x, list):
        if op == "subtract" and not isinstance(rest[0], list):
            return _call("add", free, x, -rest[0])
        return _call(_PAIRS[op], free, x, rest[0])
    if op == "divide":
        return None
    if op == "subtract":
        return _call("add", True, _call("neg", dead[1], rest[0]), x)
    return _call(_PAIRS[op], dead[1], rest[0], x)


def _call(name: str, in_place: bool, first: Tensors, *rest: Any) -> Tensors:
    if not in_place:
        return list(getattr(torch, f"_foreach_{name}")(first, *rest))
    getattr(torch, f"_foreach_{name}_")(first, *rest)
    return first
