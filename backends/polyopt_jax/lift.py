"""Compiling and lifting on JAX."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from itertools import chain
from math import ceil
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from polyopt.backend.evaluate import cast, evaluate_leaves
from polyopt.backend.protocol import Arrays, Lifted, Scalars
from polyopt.core.groups import by_kind, chunks
from polyopt.core.trace import Program
from polyopt_jax import ops
from polyopt_jax.fence import Fenced

if TYPE_CHECKING:
    from polyopt_jax.backend import JaxBackend

BATCH = 64
"""Most leaves of one kind in a call: a call costs about as much as eight small leaves, whose compilation
costs as much as thousands of calls."""

_UNSIGNED = {"float32": jnp.uint32, "float64": jnp.uint64}


def compile_function(function: Callable[..., Any], exact: bool) -> Callable[..., Any]:
    if not exact:
        return jax.jit(lambda *args: function(ops, *args))
    compiled = jax.jit(lambda zero, *args: function(Fenced(zero), *args))
    zero = np.uint32(0)
    return lambda *args: compiled(zero, *args)


def lift(backend: JaxBackend, program: Program, compiled: bool) -> Lifted:
    """``compiled``: one XLA computation for each batch of leaves, see ``batches``; else op by op.

    Host scalars, constants and the fence's zero cross to the device as one vector a call. Inside the
    user's own ``jit``, ``vmap`` or ``scan`` the operations join the user's computation.
    """

    @lru_cache(maxsize=4)
    def compiled_for(dtype: str, donate: bool) -> Callable[..., Any]:
        return jax.jit(_over_leaves(backend, program, dtype), donate_argnums=(0,) if donate else ())

    def run(arrays: Arrays, scalars: Scalars, dtype: str, donate: bool = False) -> dict[str, list[Any]]:
        if not compiled or _traced(chain(*arrays.values(), scalars.values())):
            kind = backend.dtype(dtype)
            values = {
                n: cast(backend, v, dtype) if isinstance(v, jax.Array) else jnp.asarray(v, dtype=kind)
                for n, v in (*scalars.items(), *program.constants)
            }
            return evaluate_leaves(backend, ops, program, arrays, values, dtype)
        measured = {n: v for n, v in scalars.items() if isinstance(v, jax.Array)}
        host = [scalars[n] for n in program.scalars if n not in measured]
        vector = jnp.asarray(np.array([*host, *(v for _, v in program.constants), 0.0], dtype=dtype))
        if donate:
            given = list(map(id, chain(*arrays.values())))
            donate = len(set(given)) == len(given)  # XLA refuses to be given one buffer twice
        replaced = {n for n, _ in program.outputs} if donate else set()
        call = compiled_for(dtype, donate)
        outputs: dict[str, list[Any]] = {n: [None] * len(arrays["p"]) for n, _ in program.outputs}
        for members in batches(tuple((x.shape, x.dtype) for x in arrays["p"])):
            batch = {n: [group[i] for i in members] for n, group in arrays.items()}
            given_up = {n: x for n, x in batch.items() if n in replaced}
            kept = {n: x for n, x in batch.items() if n not in replaced}
            for name, results in call(given_up, kept, measured, vector).items():
                for i, x in zip(members, results, strict=True):
                    outputs[name][i] = x
        return outputs

    return run


@lru_cache(maxsize=256)
def batches(kinds: tuple[Any, ...]) -> tuple[tuple[int, ...], ...]:
    """The indices of the leaves that go into each call, for leaves of these shapes and dtypes.

    XLA on a CPU compiles some milliseconds for each output, however alike they are: a thousand small leaves
    took half a minute. A kind with more leaves than a batch holds goes through one and the same compiled
    function in batches of one length; all that is left over is the last call.

    >>> [len(members) for members in batches(((32, 32),) * 1001 + ((7,),) * 3)][-3:]
    [62, 62, 12]
    """
    full: list[tuple[int, ...]] = []
    rest: list[int] = []
    for members in by_kind(kinds).values():
        calls = ceil(len(members) / BATCH)
        size = len(members) // calls
        if calls > 1:
            full += chunks(members[: calls * size], size)
            members = members[calls * size :]
        rest += members
    return (*full, tuple(sorted(rest))) if rest else tuple(full)


def _over_leaves(backend: JaxBackend, program: Program, dtype: str) -> Callable[..., Any]:
    """``program`` over a list of leaves, as what ``jax.jit`` compiles."""

    @jax.jit  # traced once for all leaves of a kind; XLA inlines it
    def leaf(arrays: Mapping[str, Any], values: Mapping[str, Any], zero: Any) -> dict[str, Any]:
        alone = {n: [x] for n, x in arrays.items()}
        outputs = evaluate_leaves(backend, Fenced(zero), program, alone, values, dtype)
        return {n: x for n, (x,) in outputs.items()}

    def run(replaced: Arrays, kept: Arrays, measured: Scalars, vector: Any) -> dict[str, list[Any]]:
        names = (*(n for n in program.scalars if n not in measured), *(n for n, _ in program.constants))
        values = {n: vector[i] for i, n in enumerate(names)}
        values |= {n: cast(backend, x, dtype) for n, x in measured.items()}
        zero = lax.bitcast_convert_type(vector[-1], _UNSIGNED[dtype])
        arrays = {**replaced, **kept}
        count = len(arrays["p"])
        leaves = [leaf({n: x[i] for n, x in arrays.items()}, values, zero) for i in range(count)]
        return {n: [x[n] for x in leaves] for n, _ in program.outputs}

    return run


def _traced(values: Iterable[Any]) -> bool:
    # By the types there are, of which there are few: asking a thousand leaves one by one takes as long as
    # to update them.
    return any(issubclass(kind, jax.core.Tracer) for kind in set(map(type, values)))
