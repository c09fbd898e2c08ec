"""The NumPy backend object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from ml_dtypes import bfloat16

import polyopt.backend.protocol as protocol
from polyopt.backend.host.overlap import Extent
from polyopt.backend.host.sum_squares import with_sum_squares
from polyopt.backend.protocol import LossFunction
from polyopt.core.errors import InputError, nearest
from polyopt.core.ops import DTYPES, Ops
from polyopt.core.trace import Program
from polyopt_numpy import ops as _ops
from polyopt_numpy.flatten_concat import join, split
from polyopt_numpy.lift import NumpyMemory, lift

NAMES = {np.dtype(bfloat16 if name == "bfloat16" else name): name for name in DTYPES}


class NumpyBackend:
    """NumPy on the CPU."""

    name = "numpy"
    api_version: int = protocol.API_VERSION
    ops: Ops = _ops

    def versions(self) -> dict[str, str]:
        return {"numpy": np.__version__, "ml_dtypes": version("ml_dtypes")}

    def is_array(self, x: object) -> bool:
        """Return True also for a value inside a loss that is being differentiated, which autograd boxes."""
        return isinstance(x, np.ndarray | np.generic) or _boxed(x) or _recorded(x)

    def is_traced(self, x: object) -> bool:
        """Return True inside a loss that is being recorded: see ``pure_gradient``."""
        return _recorded(self.stop_gradient(x))

    def dtype_name(self, x: Any) -> str:
        name = NAMES.get(x.dtype)
        return str(x.dtype.name) if name is None else name

    def dtype(self, name: str) -> Any:
        if name not in DTYPES:
            raise InputError(f"unknown dtype {name!r}; {nearest(name, DTYPES)}")
        return np.dtype(bfloat16 if name == "bfloat16" else name)

    def from_numpy(self, x: Any, *, dtype: str | None = None, device: str | None = None) -> Any:
        self.device(device)
        return np.array(x, dtype=None if dtype is None else self.dtype(dtype))

    def adopt(self, x: Any) -> Any:
        """Return the host array ``x``, which is given up: see ``adopted``."""
        return x

    def to_numpy(self, x: Any) -> Any:
        return np.asarray(self.stop_gradient(x))

    def enable_float64(self) -> None:
        pass

    def join(self, arrays: Sequence[Any]) -> Any:
        return join(arrays)

    def split(self, x: Any, shapes: Sequence[tuple[int, ...]]) -> list[Any]:
        return split(x, shapes)

    def devices(self) -> tuple[str, ...]:
        return ("cpu",)

    def device(self, name: str | None) -> Any:
        if name not in (None, "cpu"):
            raise InputError(f"device {name!r}: NumPy runs on 'cpu' alone")
        return "cpu"

    def device_name(self, x: Any) -> str:
        return "cpu"

    def to_device(self, x: Any, device: str) -> Any:
        self.device(device)
        return x

    def synchronize(self, tree: Any = None) -> None:
        pass

    def stop_gradient(self, x: Any) -> Any:
        while _boxed(x):
            x = x._value
        return x

    def value_and_grad(self, loss: LossFunction, *, compiled: bool = True) -> Callable[..., Any]:
        from polyopt_numpy.grad import value_and_grad

        return value_and_grad(loss)

    def pure_gradient(self, loss: LossFunction) -> Callable[..., Any]:
        """Return ``value_and_grad`` of a loss of its arguments alone: recorded once, then replayed."""
        from polyopt_numpy.pure_grad import PureGradient

        return PureGradient(loss)

    def compile(self, function: Callable[..., Any], *, exact: bool = False) -> Callable[..., Any]:
        xp = with_sum_squares(_ops, NumpyMemory(), np.asarray) if exact else self.ops

        def run(*args: Any) -> Any:
            # Infinities and NaNs go on silently, as on the other backends.
            with np.errstate(all="ignore"):
                return function(xp, *args)

        return run

    def lift(self, program: Program, *, compiled: bool = True) -> protocol.Lifted:
        return lift(self, program, compiled)

    def whole(self, loss: LossFunction, update: protocol.Update) -> protocol.WholeStep | None:
        """Return ``None``: an in-place update of each leaf is as fast."""
        return None

    def packed_gradient(self, loss: LossFunction, leaves: int) -> None:
        return None  # the kernel takes many leaves as fast as few

    def extents(self, arrays: Sequence[Any], written: int) -> list[Extent] | None:
        """Give the memory of each: see ``polyopt.engine.given_up``."""
        return NumpyMemory().extents(arrays, written)

    def placed(self, x: Any) -> Any:
        """Give ``x``: it is a host array."""
        return x

    def assign(self, target: Any, value: Any) -> Any:
        target[...] = value
        return target


def _boxed(x: object) -> bool:
    """Return True if ``x`` is autograd's, without importing it."""
    return type(x).__module__.startswith("autograd.") and hasattr(x, "_value")


def _recorded(x: object) -> bool:
    """Return True for an array of a recording, without importing what records."""
    return type(x).__module__ == "polyopt_numpy.recording"
