"""The PyTorch backend object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import torch

import polyopt.backend.protocol as protocol
from polyopt.backend.host.overlap import Extent
from polyopt.backend.protocol import LossFunction
from polyopt.core.errors import InputError, nearest
from polyopt.core.ops import Ops
from polyopt.core.trace import Program
from polyopt_torch import devices
from polyopt_torch import ops as _ops
from polyopt_torch.cpu.memory import TorchMemory
from polyopt_torch.cpu.sum_squares import exact_ops
from polyopt_torch.extents import stand_in
from polyopt_torch.flatten_concat import join, split
from polyopt_torch.host_views import DTYPES, NAMES, host_view, tensor_from_host
from polyopt_torch.int8 import int8_matmul
from polyopt_torch.lift import lift
from polyopt_torch.overwrite import overwritten


class TorchBackend:
    """PyTorch, eager. Parameters and tensors that require gradients are welcome everywhere."""

    name = "torch"
    api_version: int = protocol.API_VERSION
    ops: Ops = _ops

    def versions(self) -> dict[str, str]:
        return {"torch": torch.__version__, "numpy": np.__version__}

    def is_array(self, x: object) -> bool:
        return isinstance(x, torch.Tensor)

    def is_variable(self, x: object) -> bool:
        """Return True for what a model holds and a user expects to change: a parameter."""
        return isinstance(x, torch.nn.Parameter)

    def is_traced(self, x: object) -> bool:
        """Inside ``torch.compile``, ``torch.vmap`` or a fake-tensor mode; also a tensor on ``meta``."""
        if not isinstance(x, torch.Tensor):
            return False
        if torch.compiler.is_compiling() or x.is_meta or isinstance(x, torch._subclasses.FakeTensor):
            return True
        functorch = torch._C._functorch
        while functorch.is_functorch_wrapped_tensor(x):
            if functorch.is_batchedtensor(x):
                return True
            x = functorch.get_unwrapped(x)
        return False

    def dtype_name(self, x: Any) -> str:
        name = NAMES.get(x.dtype)
        return str(x.dtype).removeprefix("torch.") if name is None else name

    def dtype(self, name: str) -> torch.dtype:
        if name not in DTYPES:
            raise InputError(f"unknown dtype {name!r}; {nearest(name, DTYPES)}")
        return DTYPES[name]

    def from_numpy(self, x: Any, *, dtype: str | None = None, device: str | None = None) -> torch.Tensor:
        x = np.asarray(x)
        if dtype is not None:
            self.dtype(dtype)
            # Converted by NumPy: PyTorch rounds float64 to 16 bits twice, by way of float32.
            x = x.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
        if x.dtype.name not in DTYPES:
            raise InputError(f"a host array of dtype {x.dtype}; {nearest(x.dtype.name, DTYPES)}")
        return tensor_from_host(x, copy=True).to(self.device(device))

    def adopt(self, x: Any) -> Any:
        """Make a tensor of the host array ``x``, which is given up, on the CPU: see ``adopted``."""
        return tensor_from_host(x, copy=False)

    def to_numpy(self, x: Any) -> Any:
        x = x.detach()
        return host_view(x.cpu().resolve_conj().resolve_neg())

    def enable_float64(self) -> None:
        pass

    def join(self, arrays: Sequence[Any]) -> Any:
        return join(arrays)

    def split(self, x: Any, shapes: Sequence[tuple[int, ...]]) -> list[Any]:
        return split(x, shapes)

    def devices(self) -> tuple[str, ...]:
        return devices.usable()

    def device(self, name: str | None) -> torch.device:
        return devices.parse(name)

    def device_name(self, x: Any) -> str:
        return devices.name_of(x)

    def to_device(self, x: Any, device: str) -> Any:
        return x.to(self.device(device))

    def synchronize(self, tree: Any = None) -> None:
        devices.synchronize()

    def stop_gradient(self, x: Any) -> Any:
        return x.detach()

    def value_and_grad(self, loss: LossFunction, *, compiled: bool = True) -> Callable[..., Any]:
        from polyopt_torch.grad import value_and_grad

        return value_and_grad(loss)

    def compile(self, function: Callable[..., Any], *, exact: bool = False) -> Callable[..., Any]:
        """Return a plain call: eager PyTorch, whose operations are exact already.

        ``torch.compile`` needs a C++ compiler where the program runs, contracts products, and over a list of
        161 leaves it compiled for 50 s and ran 60 times slower than a fused kernel.
        """
        xp = exact_ops() if exact else self.ops
        return lambda *args: function(xp, *args)

    def lift(self, program: Program, *, compiled: bool = True) -> protocol.Lifted:
        return lift(self, program, compiled)

    def whole(self, loss: LossFunction, update: protocol.Update) -> protocol.WholeStep | None:
        """Return ``None``: eager PyTorch has no such function, and an in-place update is as fast."""
        return None

    def int8_matmul(self, x: Any, w: Any) -> Any:
        """Return ``x @ w`` of int8 matrices in int32: see ``int8_matmul``."""
        return int8_matmul(x, w)

    def packed_gradient(self, loss: LossFunction, leaves: int) -> None:
        return None  # the kernel takes many leaves as fast as few

    def extents(self, arrays: Sequence[Any], written: int) -> list[Extent] | None:
        """Give the memory of each: see ``polyopt.engine.given_up``."""
        return TorchMemory().extents(arrays, written)

    def placed(self, x: Any) -> Any:
        """Give a host array with its elements where ``x`` has them."""
        return stand_in(x)

    def assign(self, target: Any, value: Any) -> Any:
        with torch.no_grad():
            return overwritten(target, value)
