"""Define what a backend gives: array operations, gradients, compilation, lifting and conversion.

A backend is one object, found through the entry points ``polyopt.backends`` by name and
``polyopt.array_types`` by the root module of an array's type. ``polyopt.testing`` puts one through
its paces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeAlias

from polyopt.core.ops import Array, Device, DType, Ops
from polyopt.core.trace import Program

API_VERSION: Final = 1
"""Raised when ``Backend`` changes in a way that breaks existing backends."""

LossFunction: TypeAlias = Callable[..., Array]
"""``loss(xp, params, *args) -> 0-d array``, written against ``xp``."""

Lifted: TypeAlias = Callable[..., dict[str, list[Array]]]
"""``lifted(arrays, scalars, dtype, donate=False) -> outputs``: a ``Program`` over leaves.

- ``arrays``: ``{input name: one array per leaf}`` for every name of ``program.arrays``, any shapes, of mixed
  storage dtypes; each is cast to the compute dtype ``dtype`` (``"float32"`` or ``"float64"``) when read.
- ``scalars``: ``{name: Python float or 0-d array}`` for every name of ``program.scalars``, cast to ``dtype``.
- outputs: ``{output name: one array per leaf}``; an output named like an input has that input's dtype (and,
  with ``donate=True``, may or does replace its memory), any other has ``dtype``.
"""

Update: TypeAlias = Callable[..., Any]
"""``update(xp, arrays, gradients, vectors) -> outputs``: the part of a whole step that follows the gradients.

- ``arrays``: nested dicts of arrays; ``arrays["params"]`` are what the loss is differentiated by.
- ``vectors``: ``{dtype: 1-d array}`` of scalars; the last element of each is 0, unknown to the compiler.
- outputs: nested dicts; ``outputs["arrays"]`` is like ``arrays``.
"""

WholeStep: TypeAlias = Callable[..., tuple[Array, Any]]
"""``step(arrays, vectors, args) -> (loss, outputs)``; gives up ``arrays``. ``vectors`` are host arrays."""


Arrays: TypeAlias = Mapping[str, Sequence[Array]]
Scalars: TypeAlias = Mapping[str, Any]


class Repeatable(Protocol):
    """Compute a program over leaves like those of the call before, without asking again what they are.

    A backend's ``Lifted`` may have some as ``repeatable``, the fastest first.
    """

    def look(self, arrays: Arrays, dtype: str, donate: bool) -> Any | None:
        """Return what is known of these leaves, with ``in_place``, the names of what is replaced.

        ``None`` where they can't be computed so.
        """

    def again(self, look: Any, arrays: Mapping[str, list[Array]]) -> bool:
        """Return True if these leaves are what ``look`` was made for, but for where they are."""

    def rerun(self, look: Any, arrays: Mapping[str, list[Array]], scalars: Scalars, dtype: str) -> None:
        """Compute, all in place, what ``again`` has let pass; ``scalars`` may hold more than it takes."""


class Backend(Protocol):
    """Stand for one framework. Every method takes and gives that framework's own arrays."""

    name: str
    api_version: int

    def __hash__(self) -> int:
        """By identity: there is one object a framework."""

    @property
    def ops(self) -> Ops:
        """The array operations: a module."""

    def versions(self) -> dict[str, str]:
        """Return ``{package: version}`` of the framework and what decides its numbers."""

    # Arrays
    def is_array(self, x: object) -> bool:
        """Return True if ``x`` is an array (or variable, or parameter) of this framework."""

    def is_traced(self, x: object) -> bool:
        """Return True if ``x`` is a placeholder inside the user's own compiled function: it has no value."""

    def dtype_name(self, x: Array) -> str:
        """Return the dtype's standard name, as ``"float32"``, ``"bfloat16"`` or ``"bool"``."""

    def dtype(self, name: str) -> DType:
        """Return the framework's dtype of that name; ``InputError`` where it has none."""

    def from_numpy(self, x: Any, *, dtype: str | None = None, device: str | None = None) -> Array:
        """Make an array with the values of the host array ``x``; never a silent change of dtype."""

    def to_numpy(self, x: Array) -> Any:
        """Return a host array with the values of ``x``; bfloat16 is that of ml_dtypes. May share memory."""

    def enable_float64(self) -> None:
        """Make float64 arrays possible in this process, where that is a switch (JAX)."""

    def join(self, arrays: Sequence[Array]) -> Array:
        """Put the elements of ``arrays``, of one dtype, one after the other in a 1-d one; differentiable."""

    def split(self, x: Array, shapes: Sequence[tuple[int, ...]]) -> list[Array]:
        """Return the arrays of these shapes that ``join`` made ``x`` of; the gradient is one ``join``."""

    # Devices
    def devices(self) -> tuple[str, ...]:
        """Return the names of the usable devices, ``"cpu"`` first, then ``"gpu:0"`` and so on."""

    def device(self, name: str | None) -> Device:
        """Return the framework's device for ``"cpu"``, ``"cuda"``, ``"gpu:0"``; an error lists the usable."""

    def device_name(self, x: Array) -> str:
        """Return where ``x`` lies, by a name that ``device`` takes."""

    def to_device(self, x: Array, device: str) -> Array:
        """Return ``x`` on that device."""

    def synchronize(self, tree: Any = None) -> None:
        """Wait until everything started on the device is done (for timing)."""

    # Functions
    def stop_gradient(self, x: Array) -> Array:
        """Return ``x`` as a constant for differentiation."""

    def value_and_grad(
        self, loss: LossFunction, *, compiled: bool = True
    ) -> Callable[..., tuple[Array, Any]]:
        """Return ``f(params, *args) -> (loss, gradients)``, gradients in a tree like ``params``.

        A backend may have ``pure_gradient(loss)`` besides, which gives the same for a loss that depends on
        its arguments alone: ``TrainStep`` then takes that.
        """

    def compile(self, function: Callable[..., Any], *, exact: bool = False) -> Callable[..., Any]:
        """Return ``f(*args)`` that runs ``function(xp, *args)`` compiled, where the framework compiles.

        Compiles once for each set of shapes and dtypes. With ``exact``, ``xp``'s products and roots are not
        contracted or approximated, so the bits are those of NumPy.
        """

    def lift(self, program: Program, *, compiled: bool = True) -> Lifted:
        """Make the framework's fastest step over all leaves for ``program``, bit for bit what it says."""

    def whole(self, loss: LossFunction, update: Update) -> WholeStep | None:
        """Loss, gradients and update compiled as one function; ``None`` where nothing would be gained.

        The loss is computed by ``ops``, the update exactly: ``xp`` as in ``compile(exact=True)``, and its
        gradients rounded by themselves, so that no product of the backward pass is contracted with the
        update's first addition.
        """

    def packed_gradient(self, loss: LossFunction, leaves: int) -> Callable[..., tuple[Array, Any]] | None:
        """Return ``value_and_grad`` of a loss of packed buffers, as compiled as pays.

        It makes a whole step together with the lift where ``whole`` gives ``None``; ``None`` where
        packing gains nothing.

        The buffers hold ``leaves`` in all.
        """

    def assign(self, target: Array, value: Array) -> Array:
        """Write ``value`` into ``target`` where the framework can, else give ``value``."""


def check_api(backend: Backend) -> None:
    """Refuse a backend written for another version of this protocol."""
    from polyopt.core.errors import BackendError

    if backend.api_version != API_VERSION:
        raise BackendError(
            f"backend {backend.name!r} has api_version {backend.api_version}; "
            f"this polyopt needs {API_VERSION}"
        )
