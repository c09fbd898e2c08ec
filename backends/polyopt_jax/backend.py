"""The JAX backend object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib.version
import ml_dtypes
import numpy as np

import polyopt.backend.protocol as protocol
from polyopt.backend.host.buffers import copied
from polyopt.backend.protocol import LossFunction
from polyopt.core.errors import InputError, nearest
from polyopt.core.ops import DTYPES
from polyopt.core.trace import Program
from polyopt_jax import ops
from polyopt_jax.compiled_update import whole
from polyopt_jax.dtypes import allowed
from polyopt_jax.flatten_concat import join, split
from polyopt_jax.grad import value_and_grad
from polyopt_jax.int8 import int8_matmul
from polyopt_jax.lift import compile_function, lift


class JaxBackend:
    """JAX on CPU, GPU and TPU.

    float64 is off until ``enable_float64``; until then a float64 array is refused, never narrowed.

    Bits: lifted programs and ``compile(exact=True)`` give NumPy's bits, with three exceptions. XLA's CPU
    runtime flushes subnormal numbers to zero, compiled or not, whatever is asked of it
    (PjRtCpuExecutable::ExecuteHelper), so values below 1.2e-38 in float32 (2.2e-308 in float64) become
    zeros. Transcendental functions are XLA's own. Inside a user's own ``jit`` XLA compiles the whole and may
    contract products: results are within ulps.
    """

    name = "jax"
    api_version = protocol.API_VERSION
    ops = ops

    def versions(self) -> dict[str, str]:
        return {"jax": jax.__version__, "jaxlib": jaxlib.version.__version__}

    def is_array(self, x: object) -> bool:
        return isinstance(x, jax.Array)

    def is_traced(self, x: object) -> bool:
        return isinstance(x, jax.core.Tracer)

    def dtype_name(self, x: Any) -> str:
        return str(x.dtype.name)

    def dtype(self, name: str) -> Any:
        if name not in DTYPES:
            raise InputError(f"unknown dtype {name!r}; {nearest(name, DTYPES)}")
        return allowed(np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name))

    def from_numpy(self, x: Any, *, dtype: str | None = None, device: str | None = None) -> Any:
        # A copy: JAX may share the memory of a host array, which its owner can change.
        host = copied(x, None if dtype is None else self.dtype(dtype))
        allowed(host.dtype)
        return jax.device_put(jnp.asarray(host, dtype=host.dtype), self.device(device))

    def adopt(self, x: Any) -> Any:
        """Make an array of the host array ``x``, which is given up, on the CPU: see ``adopted``."""
        # Only where it is told the dtype does JAX share the memory.
        made = jnp.asarray(x, dtype=allowed(x.dtype))
        return made if self.device_name(made) == "cpu" else self.to_device(made, "cpu")

    def to_numpy(self, x: Any) -> Any:
        return np.asarray(x)

    def enable_float64(self) -> None:
        jax.config.update("jax_enable_x64", True)  # type: ignore[no-untyped-call]

    def join(self, arrays: Sequence[Any]) -> Any:
        return join(arrays)

    def split(self, x: Any, shapes: Sequence[tuple[int, ...]]) -> list[Any]:
        return split(x, shapes)

    def devices(self) -> tuple[str, ...]:
        return tuple(_devices())

    def device(self, name: str | None) -> Any:
        if name is None:
            return None
        kind, _, index = name.partition(":")
        kind = {"cuda": "gpu", "rocm": "gpu"}.get(kind, kind)
        key = kind if kind == "cpu" and index in ("", "0") else f"{kind}:{index or 0}"
        if key not in _devices():
            raise InputError(f"device {name!r}: JAX has none such here; usable: {', '.join(_devices())}")
        return _devices()[key]

    def device_name(self, x: Any) -> str:
        device = next(iter(x.devices()))
        return next(name for name, d in _devices().items() if d == device)

    def to_device(self, x: Any, device: str) -> Any:
        return jax.device_put(x, self.device(device))

    def synchronize(self, tree: Any = None) -> None:
        if tree is not None:
            jax.block_until_ready(tree)  # type: ignore[no-untyped-call]
        else:
            jax.effects_barrier()  # type: ignore[no-untyped-call]

    def stop_gradient(self, x: Any) -> Any:
        return jax.lax.stop_gradient(x)

    def value_and_grad(self, loss: LossFunction, *, compiled: bool = True) -> Callable[..., Any]:
        return value_and_grad(loss, compiled)

    def compile(self, function: Callable[..., Any], *, exact: bool = False) -> Callable[..., Any]:
        return compile_function(function, exact)

    def lift(self, program: Program, *, compiled: bool = True) -> protocol.Lifted:
        return lift(self, program, compiled)

    def whole(self, loss: LossFunction, update: protocol.Update) -> protocol.WholeStep | None:
        return whole(loss, update)

    def int8_matmul(self, x: Any, w: Any) -> Any:
        """Return ``x @ w`` of int8 matrices in int32: see ``int8_matmul``."""
        return int8_matmul(x, w)

    def packed_gradient(self, loss: LossFunction, leaves: int) -> None:
        return None  # whole steps are compiled

    def assign(self, target: Any, value: Any) -> Any:
        """Return ``value``: JAX arrays are immutable."""
        return value


@lru_cache(maxsize=1)
def _devices() -> dict[str, Any]:
    """Return ``{name: device}`` of what this process can use, the CPU first."""
    found = {"cpu" if i == 0 else f"cpu:{i}": d for i, d in enumerate(jax.devices("cpu"))}
    for kind in ("gpu", "tpu"):
        try:
            found |= {f"{kind}:{i}": d for i, d in enumerate(jax.local_devices(backend=kind))}
        except RuntimeError:
            continue
    return found
