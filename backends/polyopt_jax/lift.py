"""Compiling and lifting on JAX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from polyopt.backend import Lifted
from polyopt.lifting import cast, evaluate_leaves
from polyopt.trace import Program
from polyopt_jax import ops
from polyopt_jax.fence import Fenced

if TYPE_CHECKING:
    from polyopt_jax.backend import JaxBackend

_UNSIGNED = {"float32": jnp.uint32, "float64": jnp.uint64}


def compile_function(function: Callable[..., Any], exact: bool) -> Callable[..., Any]:
    if not exact:
        return jax.jit(lambda *args: function(ops, *args))
    compiled = jax.jit(lambda zero, *args: function(Fenced(zero), *args))
    zero = np.uint32(0)
    return lambda *args: compiled(zero, *args)


def lift(backend: JaxBackend, program: Program, compiled: bool) -> Lifted:
    """``compiled``: one XLA computation over all leaves for each set of shapes; else op by op.

    Host scalars, constants and the fence's zero cross to the device as one vector a call. Inside the
    user's own ``jit``, ``vmap`` or ``scan`` the operations join the user's computation.
    """

    @lru_cache(maxsize=4)
    def compiled_for(dtype: str, donate: bool) -> Callable[..., Any]:
        def run(replaced: Any, kept: Any, measured: Any, vector: Any) -> Any:
            names = (*(n for n in program.scalars if n not in measured), *(n for n, _ in program.constants))
            values = {n: vector[i] for i, n in enumerate(names)}
            values |= {n: cast(backend, x, dtype) for n, x in measured.items()}
            zero = lax.bitcast_convert_type(vector[-1], _UNSIGNED[dtype])
            return evaluate_leaves(backend, Fenced(zero), program, replaced | kept, values, dtype)

        return jax.jit(run, donate_argnums=(0,) if donate else ())

    def run(arrays: Any, scalars: Any, dtype: str, donate: bool = False) -> Any:
        if not compiled or _traced(arrays, scalars):
            kind = backend.dtype(dtype)
            values = {
                n: cast(backend, v, dtype) if isinstance(v, jax.Array) else jnp.asarray(v, dtype=kind)
                for n, v in (*scalars.items(), *program.constants)
            }
            return evaluate_leaves(backend, ops, program, arrays, values, dtype)
        measured = {n: v for n, v in scalars.items() if isinstance(v, jax.Array)}
        host = [scalars[n] for n in program.scalars if n not in measured]
        vector = np.array([*host, *(v for _, v in program.constants), 0.0], dtype=dtype)
        if donate:
            given = [id(x) for group in arrays.values() for x in group]
            donate = len(set(given)) == len(given)  # XLA refuses to be given one buffer twice
        out = {name for name, _ in program.outputs} if donate else ()
        replaced = {n: list(x) for n, x in arrays.items() if n in out}
        kept = {n: list(x) for n, x in arrays.items() if n not in out}
        return compiled_for(dtype, donate)(replaced, kept, measured, vector)

    return run


def _traced(arrays: Mapping[str, Any], scalars: Mapping[str, Any]) -> bool:
    leaves = [x for group in arrays.values() for x in group]
    return any(isinstance(x, jax.core.Tracer) for x in (*leaves, *scalars.values()))
