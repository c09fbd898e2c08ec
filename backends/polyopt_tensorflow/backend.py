"""The TensorFlow backend object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import tensorflow as tf

import polyopt.backend.protocol as protocol
from polyopt.backend.host.buffers import ALIGNMENT, LARGE, copied
from polyopt.backend.protocol import LossFunction
from polyopt.core.errors import InputError, nearest
from polyopt.core.ops import DTYPES
from polyopt.core.trace import Program
from polyopt_tensorflow import ops
from polyopt_tensorflow.compiled_update import whole
from polyopt_tensorflow.compiling import compile_function, xla
from polyopt_tensorflow.flatten_concat import join, split
from polyopt_tensorflow.grad import value_and_grad
from polyopt_tensorflow.int8 import int8_matmul
from polyopt_tensorflow.lift import lift
from polyopt_tensorflow.memory import host_kernels

XLA_LEAVES = 32
"""Leaves up to which XLA compiles a loss of packed buffers: it takes a tenth of a second for each."""


class TensorFlowBackend:
    """TensorFlow 2 on CPU and GPU.

    A ``tf.Variable`` counts as an array everywhere: its value is read. With ``donate=True`` an optimizer
    assigns into the variables it was given and returns those very variables.

    TensorFlow takes nearly all of a GPU's memory when it first uses one; where other frameworks
    share it, call ``tf.config.experimental.set_memory_growth(gpu, True)`` before, or set
    ``TF_FORCE_GPU_ALLOW_GROWTH=true``. This backend leaves that choice to the program.

    Bits: lifted programs and ``compile(exact=True)`` give NumPy's bits, with three exceptions. TensorFlow's
    CPU kernels, XLA's included, flush subnormal numbers to zero, so values below 1.2e-38 in float32
    (2.2e-308 in float64) become zeros. Transcendental functions are TensorFlow's own. Inside a user's own
    ``tf.function`` the graph optimizer rewrites divisions (``x / sqrt(y)``, ``x / constant``) and groups
    constant factors, and XLA contracts products: results are within ulps.
    """

    name = "tensorflow"
    api_version = protocol.API_VERSION
    ops = ops

    def versions(self) -> dict[str, str]:
        return {"tensorflow": str(tf.__version__)}

    def is_array(self, x: object) -> bool:
        return isinstance(x, _ARRAYS)  # tf.is_tensor is slow on what is none

    def is_variable(self, x: object) -> bool:
        """Return True for what a model holds and a user expects to change: a variable."""
        return isinstance(x, tf.Variable)

    def is_traced(self, x: object) -> bool:
        if isinstance(x, tf.Variable):
            return not tf.executing_eagerly()
        return isinstance(x, tf.Tensor) and bool(tf.is_symbolic_tensor(x))

    def dtype_name(self, x: Any) -> str:
        return _NAMES[x.dtype]

    def dtype(self, name: str) -> Any:
        if name not in DTYPES:
            raise InputError(f"unknown dtype {name!r}; {nearest(name, DTYPES)}")
        return tf.as_dtype(name)

    def from_numpy(self, x: Any, *, dtype: str | None = None, device: str | None = None) -> Any:
        wanted = None if dtype is None else self.dtype(dtype).as_numpy_dtype
        # A copy: TensorFlow may share the memory of a host array, which its owner can change.
        host = copied(x, wanted)
        place = self.device(device)
        here = place == _devices()["cpu"] if place else len(_devices()) == 1
        if here and host.nbytes >= LARGE and tf.executing_eagerly():
            return self.adopt(host)
        with tf.device(place):
            return tf.identity(tf.constant(host)) if device else tf.constant(host)

    def adopt(self, x: Any) -> Any:
        """Make a tensor of the host array ``x``, which is given up, on the CPU: see ``adopted``."""
        half = x.dtype.name == "bfloat16"  # DLPack, as NumPy speaks it, has none
        with tf.device("cpu:0"):
            # Eigen ends the process where a kernel is given memory that isn't aligned.
            if x.ctypes.data % ALIGNMENT or x.dtype.name not in DTYPES or not x.dtype.isnative:
                return tf.constant(x)
            made = tf.experimental.dlpack.from_dlpack((x.view(np.uint16) if half else x).__dlpack__())
            return tf.bitcast(made, tf.bfloat16) if half else made

    def to_numpy(self, x: Any) -> Any:
        if isinstance(x, tf.Variable) or (isinstance(x, tf.Tensor) and not x.shape.rank):
            return x.numpy()
        return np.asarray(x)  # an eager tensor's own memory, read-only: its method ``numpy`` copies it

    def enable_float64(self) -> None:
        pass

    def join(self, arrays: Sequence[Any]) -> Any:
        return join(arrays)

    def split(self, x: Any, shapes: Sequence[tuple[int, ...]]) -> list[Any]:
        return split(x, shapes)

    def devices(self) -> tuple[str, ...]:
        return tuple(_devices())

    def device(self, name: str | None) -> Any:
        if name is None:
            return None
        kind, _, index = name.lower().partition(":")
        kind = "gpu" if kind == "cuda" else kind
        key = "cpu" if kind == "cpu" and index in ("", "0") else f"{kind}:{index or 0}"
        if key not in _devices():
            raise InputError(
                f"device {name!r}: TensorFlow has none such here; usable: {', '.join(_devices())}"
            )
        return _devices()[key]

    def device_name(self, x: Any) -> str:
        kind, index = x.device.rpartition("device:")[2].lower().split(":") if x.device else ("cpu", "0")
        return "cpu" if (kind, index) == ("cpu", "0") else f"{kind}:{index}"

    def to_device(self, x: Any, device: str) -> Any:
        with tf.device(self.device(device)):
            return tf.identity(x)

    def synchronize(self, tree: Any = None) -> None:
        tf.test.experimental.sync_devices()

    def stop_gradient(self, x: Any) -> Any:
        return tf.stop_gradient(x)

    def value_and_grad(self, loss: LossFunction, *, compiled: bool = True) -> Callable[..., Any]:
        return value_and_grad(loss, compiled)

    def compile(self, function: Callable[..., Any], *, exact: bool = False) -> Callable[..., Any]:
        return compile_function(function, exact)

    def lift(self, program: Program, *, compiled: bool = True) -> protocol.Lifted:
        return lift(self, program, compiled)

    def whole(self, loss: LossFunction, update: protocol.Update) -> protocol.WholeStep | None:
        return None if host_kernels() else whole(loss, update)

    def packed_gradient(self, loss: LossFunction, leaves: int) -> Callable[..., Any] | None:
        if not host_kernels():
            return None
        return value_and_grad(loss, True, by_xla=leaves <= XLA_LEAVES and xla())

    def int8_matmul(self, x: Any, w: Any) -> Any:
        """Return ``x @ w`` of int8 matrices in int32: see ``int8_matmul``."""
        return int8_matmul(x, w)

    def assign(self, target: Any, value: Any) -> Any:
        """Write into a variable and give it back; a tensor is immutable, so ``value`` is given."""
        if isinstance(target, tf.Variable):
            target.assign(value)
            return target
        return value


class _Names(dict[Any, str]):
    """``dtype -> name``, filled as needed: ``DType.name`` itself looks up a string in C++."""

    def __missing__(self, dtype: Any) -> str:
        self[dtype] = str(dtype.name)
        return self[dtype]


_NAMES = _Names()
_ARRAYS = (tf.Tensor, tf.Variable)


@lru_cache(maxsize=1)
def _devices() -> dict[str, str]:
    """Return ``{name: TensorFlow's name}`` of what this process can use, the CPU first."""
    found = {}
    for device in tf.config.list_logical_devices():
        kind, index = device.name.rpartition("device:")[2].split(":")
        key = "cpu" if (kind, index) == ("CPU", "0") else f"{kind.lower()}:{index}"
        found[key] = device.name
    return dict(sorted(found.items(), key=lambda item: item[0] != "cpu"))
