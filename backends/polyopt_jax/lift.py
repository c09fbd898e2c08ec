"""Compiling and lifting on JAX."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from math import ceil, prod
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
from polyopt_jax.packing import SHAPES, SMALL, joinable, over_flat

if TYPE_CHECKING:
    from polyopt_jax.backend import JaxBackend

BATCH = 64
"""Most leaves of one kind in a call: a call costs about as much as eight small leaves, whose compilation
costs as much as thousands of calls."""

_UNSIGNED = {"float32": jnp.uint32, "float64": jnp.uint64}


def compile_function(function: Callable[..., Any], exact: bool) -> Callable[..., Any]:
    """Compile ``function`` by XLA; with ``exact`` every operation is rounded by itself."""
    if not exact:
        return jax.jit(lambda *args: function(ops, *args))
    compiled = jax.jit(lambda zero, *args: function(Fenced(zero), *args))
    zero = np.uint32(0)
    return lambda *args: compiled(zero, *args)


def lift(backend: JaxBackend, program: Program, compiled: bool) -> Lifted:
    """Return ``compiled``: one XLA computation for each batch of leaves, see ``batches``; else op by op."""
    return JaxLift(backend, program) if compiled else partial(_op_by_op, backend, program)


@dataclass(frozen=True)
class CallPlan:
    """Hold what is known of a call's arrays: their abstract values, and the leaves of each batch."""

    names: tuple[str, ...]
    in_place: frozenset[str]
    """All of them: their buffers are given up."""
    types: frozenset[type]
    avals: tuple[Any, ...]
    calls: tuple[Batch, ...]


class JaxLift:
    """One XLA computation for each batch of leaves, see ``batches``.

    Host scalars, constants and the fence's zero cross to the device as one vector a call. Inside the
    user's own ``jit``, ``vmap`` or ``scan`` the operations join the user's computation.
    """

    def __init__(self, backend: JaxBackend, program: Program) -> None:
        self._backend, self._program = backend, program
        self._outputs = tuple(name for name, _ in program.outputs)
        self._constants = tuple(x for _, x in program.constants)
        self._compiled_for = lru_cache(maxsize=4)(self._compile)

    def __call__(
        self, arrays: Arrays, scalars: Scalars, dtype: str, donate: bool = False
    ) -> dict[str, list[Any]]:
        """Compute the program over all leaves, in one call for each batch."""
        if _traced(chain(*arrays.values(), scalars.values())):
            return _op_by_op(self._backend, self._program, arrays, scalars, dtype, donate)
        if donate:
            given = list(map(id, chain(*arrays.values())))
            donate = len(set(given)) == len(given)  # XLA refuses to be given one buffer twice
        calls = batches(tuple([(x.shape, x.dtype) for x in arrays["p"]]))
        return self._run(calls, arrays, scalars, dtype, donate)

    @property
    def repeatable(self) -> tuple[JaxLift]:
        """Return itself: it runs the same computation over arrays like those before."""
        return (self,)

    def look(self, arrays: Arrays, dtype: str, donate: bool) -> CallPlan | None:
        """Return what is known of these leaves; ``None`` where they are traced, or kept."""
        given = list(chain(*arrays.values()))
        if not donate or _traced(given):
            return None
        calls = batches(tuple([(x.shape, x.dtype) for x in arrays["p"]]))
        avals = tuple([x.aval for x in given])
        return CallPlan(tuple(arrays), frozenset(arrays), frozenset(map(type, given)), avals, calls)

    def again(self, look: CallPlan, arrays: Mapping[str, list[Any]]) -> bool:
        """Return True if these leaves are like those of ``look``, and each another one."""
        given = [x for name in look.names for x in arrays[name]]
        return (
            set(map(type, given)) == look.types
            and len(given) == len(look.avals) == len(set(map(id, given)))
            and all(_alike(x.aval, known) for x, known in zip(given, look.avals, strict=True))
        )

    def rerun(
        self, look: CallPlan, arrays: Mapping[str, list[Any]], scalars: Scalars, dtype: str
    ) -> dict[str, list[Any]]:
        """Return the new arrays by their names; ``arrays`` are given up."""
        return self._run(look.calls, arrays, scalars, dtype, donate=True)

    def _run(
        self,
        calls: tuple[Batch, ...],
        arrays: Arrays,
        scalars: Scalars,
        dtype: str,
        donate: bool,
    ) -> dict[str, list[Any]]:
        measured = {n: v for n, v in scalars.items() if isinstance(v, jax.Array)}
        host = [scalars[n] for n in self._program.scalars if n not in measured]
        # A host array, for to make one of JAX' own takes longer than to call the function.
        vector = np.array([*host, *self._constants, 0.0], dtype=dtype)
        call = self._compiled_for(dtype, donate)
        if len(calls) == 1 and not calls[0].flat:
            return call(*self._parted(arrays, donate), measured, vector)
        outputs: dict[str, list[Any]] = {n: [None] * len(arrays["p"]) for n in self._outputs}
        for batch in calls:
            own = {n: [group[i] for i in batch.members] for n, group in arrays.items()}
            if batch.flat and joinable(own):
                flat = self._compiled_for(dtype, False)
                made = over_flat(lambda x, flat=flat: flat({}, x, measured, vector), own)  # type: ignore[misc]
            else:
                made = call(*self._parted(own, donate), measured, vector)
            for name, results in made.items():
                for i, x in zip(batch.members, results, strict=True):
                    outputs[name][i] = x
        return outputs

    def _parted(self, arrays: Arrays, donate: bool) -> tuple[Arrays, Arrays]:
        """Part the arrays in those that are given up, and the rest."""
        replaced = self._outputs if donate else ()
        return {n: x for n, x in arrays.items() if n in replaced}, {
            n: x for n, x in arrays.items() if n not in replaced
        }

    def _compile(self, dtype: str, donate: bool) -> Callable[..., dict[str, list[Any]]]:
        over = _over_leaves(self._backend, self._program, dtype)
        compiled: Callable[..., dict[str, list[Any]]] = jax.jit(over, donate_argnums=(0,) if donate else ())
        return compiled


def _op_by_op(
    backend: JaxBackend,
    program: Program,
    arrays: Arrays,
    scalars: Scalars,
    dtype: str,
    donate: bool = False,
) -> dict[str, list[Any]]:
    kind = backend.dtype(dtype)
    values = {
        n: cast(backend, v, dtype) if isinstance(v, jax.Array) else jnp.asarray(v, dtype=kind)
        for n, v in (*scalars.items(), *program.constants)
    }
    return evaluate_leaves(backend, ops, program, arrays, values, dtype)


@dataclass(frozen=True)
class Batch:
    """The indices of the leaves that go into one call; ``flat``: joined, where they can be."""

    members: tuple[int, ...]
    flat: bool = False


@lru_cache(maxsize=256)
def batches(kinds: tuple[Any, ...]) -> tuple[Batch, ...]:
    """Return the calls for leaves of these shapes and dtypes.

    XLA on a CPU compiles some milliseconds for each output, however alike they are: a thousand small leaves
    took half a minute. A kind with more leaves than a batch holds goes through one and the same compiled
    function in batches of one length; all that is left over is the last call. Of it small leaves of too many
    shapes are joined (see ``packing``).

    Examples
    --------
    >>> kinds = (((32, 32), "float32"),) * 1001 + (((7,), "float32"),) * 3
    >>> [len(batch.members) for batch in batches(kinds)][-3:]
    [62, 62, 12]
    """
    full: list[Batch] = []
    rest: list[int] = []
    small: dict[Any, list[int]] = {}
    for members in by_kind(kinds).values():
        calls = ceil(len(members) / BATCH)
        size = len(members) // calls
        if calls > 1:
            full += map(Batch, chunks(members[: calls * size], size))
            members = members[calls * size :]
        rest += members
    for i in rest:
        shape, dtype = kinds[i]
        if prod(shape) < SMALL:
            small.setdefault(dtype, []).append(i)
    for joined in small.values():
        if len({kinds[i] for i in joined}) > SHAPES:
            full.append(Batch(tuple(joined), flat=True))
            rest = sorted(set(rest).difference(joined))
    return (*full, Batch(tuple(sorted(rest)))) if rest else tuple(full)


def _over_leaves(backend: JaxBackend, program: Program, dtype: str) -> Callable[..., Any]:
    """Return ``program`` over a list of leaves, as what ``jax.jit`` compiles."""

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


def _alike(one: Any, other: Any) -> bool:
    return one is other or (one.shape == other.shape and one.dtype == other.dtype)
