"""A teacher of any framework, for a student of any other; its logits over a data set, computed once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyopt.backend import registry
from polyopt.backend.protocol import Backend
from polyopt.core import tree
from polyopt.core.errors import InputError
from polyopt.core.ops import Array
from polyopt.core.tree import Tree
from polyopt.distillation.exchange import transfer

Progress = Callable[[int, int], None]
"""``progress(samples done, samples in all)``."""


class Teacher:
    """Call a function of one framework for its logits as arrays of another's, as constants.

    Samples go to the teacher's framework as a copy, so that nothing it does changes them; logits come back
    through DLPack, sharing memory, where both frameworks can, else through the host: the same dtype and bits
    either way. Where student and teacher are of one framework nothing is converted.

    Parameters
    ----------
    function
        ``function(x) -> logits`` of the teacher's framework: a ``torch.nn.Module``, a Keras model, a jitted
        function of JAX, a NumPy function. With ``params`` it is ``function(xp, params, x)``, as a polyopt
        model's ``apply``.
    params
        A tree of arrays, whose framework is the teacher's.
    backend
        The name of the teacher's framework, where there are no ``params``.
    device
        Where the teacher takes its samples: by default the device of ``params``, or the framework's own.

    Notes
    -----
    A PyTorch module must be in ``eval()`` mode (a module that isn't is refused: its batch statistics
    and dropout would make noise of the targets). ``torch.no_grad()(module)`` spares it the graph, which is
    thrown away otherwise.

    Examples
    --------
    >>> teacher = Teacher(lambda x: x @ np.array([[1.0, -1.0]]), backend="numpy")
    >>> teacher(np.array([[2.0], [3.0]])).tolist()
    [[2.0, -2.0], [3.0, -3.0]]
    """

    def __init__(
        self,
        function: Callable[..., Any],
        params: Tree | None = None,
        *,
        backend: str | None = None,
        device: str | None = None,
    ) -> None:
        if not callable(function):
            raise InputError(f"Teacher: function = {function!r}; expected something that can be called")
        if (params is None) == (backend is None):
            found = "neither" if params is None else "both"
            raise InputError(
                f"Teacher: {found} of params and backend given; expected params, whose framework is the "
                "teacher's, or the framework's name"
            )
        if backend is None:
            leaves = [x for x in tree.flatten(params).leaves if x is not None]
            if not leaves:
                raise InputError("Teacher: params hold no arrays; expected at least one, or backend=…")
            self.backend: Backend = registry.of(*leaves)
            device = device or self.backend.device_name(leaves[0])
        else:
            self.backend = registry.by_name(backend)
        self.function, self.params, self.device = function, params, device

    def __call__(self, x: Array) -> Array:
        """Return the logits (n, classes) of the samples ``x``, on the framework and device of ``x``.

        Raises
        ------
        InputError
            Inside a compiled function of another framework, where ``x`` has no values: call the
            teacher outside and give its logits to the loss as an argument. Where the module is in training
            mode, or gives no array of its framework, or not (n, classes).
        """
        student = registry.of(x)
        if student is not self.backend and student.is_traced(x):
            raise InputError(
                f"Teacher: the samples are traced by {student.name}, which {self.backend.name} can't compute "
                "with; expected a call outside of the loss, which gets the logits as an argument"
            )
        return transfer(self._logits(student, x), self.backend, student, x)

    def cache(
        self, samples: Array, *, batch_size: int = 256, progress: Progress | None = None
    ) -> TeacherLogits:
        """Compute the logits of a whole data set once, batch by batch, and keep them on the host.

        Parameters
        ----------
        samples
            An array of any framework, of shape (samples, …).
        batch_size
            Samples in a call of the teacher; the last batch may be smaller.
        progress
            Called after each batch.

        Returns
        -------
        TeacherLogits
            One row for each sample.

        Raises
        ------
        InputError
            Where there are no samples, or a logit is not finite: it names the sample.

        Examples
        --------
        >>> teacher = Teacher(lambda x: np.stack([x, -x], axis=1), backend="numpy")
        >>> logits = teacher.cache(np.arange(5.0), batch_size=2, progress=lambda n, total: print(n, total))
        2 5
        4 5
        5 5
        >>> logits.batch([4, 0], like=np.zeros(1)).tolist()
        [[4.0, -4.0], [0.0, -0.0]]
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise InputError(f"Teacher.cache: batch_size = {batch_size!r}; expected an integer >= 1")
        student = registry.of(samples)
        total = int(samples.shape[0]) if samples.shape else 0
        if total == 0:
            raise InputError("Teacher.cache: there are no samples; expected at least one")
        parts: list[Any] = []
        for start in range(0, total, batch_size):
            stop = min(start + batch_size, total)
            part = np.array(self.backend.to_numpy(self._logits(student, samples[start:stop])))
            bad = np.flatnonzero(~np.isfinite(part.astype(np.float64)).all(axis=1))
            if bad.size:
                raise InputError(
                    f"Teacher.cache: the logits of sample {start + int(bad[0])} hold inf or NaN; expected "
                    "finite numbers"
                )
            parts.append(part)
            if progress is not None:
                progress(stop, total)
        return TeacherLogits(np.concatenate(parts))

    def _logits(self, student: Backend, x: Array) -> Array:
        """Return what the function gives for ``x``, on its own framework."""
        module = inspect.unwrap(
            self.function
        )  # of torch.no_grad(), say, which keeps a stale copy of the flag
        if getattr(module, "training", None) is True:
            raise InputError(
                f"Teacher: the {type(module).__name__} is in training mode; expected .eval() before"
            )
        x = student.stop_gradient(x)
        given = x if student is self.backend else self._moved(student, x)
        found = (
            self.function(given)
            if self.params is None
            else self.function(self.backend.ops, self.params, given)
        )
        if not self.backend.is_array(found):
            raise InputError(
                f"Teacher: its function gave a {type(found).__module__}.{type(found).__qualname__}; expected "
                f"logits as an array of {self.backend.name}"
            )
        shape = tuple(found.shape)
        if len(shape) != 2 or shape[0] != x.shape[0]:
            raise InputError(f"Teacher: its logits have shape {shape}; expected ({x.shape[0]}, classes)")
        return self.backend.stop_gradient(found)

    def _moved(self, student: Backend, x: Array) -> Array:
        """Copy ``x`` to the teacher's framework and device."""
        host, dtype = student.to_numpy(x), student.dtype_name(x)
        return self.backend.from_numpy(host, dtype=dtype, device=self.device)


@dataclass(frozen=True)
class TeacherLogits:
    """Keep a teacher's logits over a data set.

    Parameters
    ----------
    logits
        A host array of shape (samples, classes), to be saved as any.

    Examples
    --------
    >>> TeacherLogits(np.array([[1.0, 2.0], [3.0, 4.0]])).classes
    2
    """

    logits: Any

    @property
    def classes(self) -> int:
        """Return how many classes the teacher has."""
        return int(self.logits.shape[1])

    def __len__(self) -> int:
        return int(self.logits.shape[0])

    def batch(self, indices: Any, like: Array) -> Array:
        """Return the logits of some samples, on the framework and device of ``like``, in their own dtype.

        Parameters
        ----------
        indices
            Integers of shape (n,), the samples' numbers.
        like
            An array of the student's framework.

        Returns
        -------
        Array
            Of shape (n, classes).

        Raises
        ------
        InputError
            Where an index is none of a sample.
        """
        chosen = np.asarray(indices)
        if chosen.size and chosen.dtype.kind not in "iu":
            raise InputError(f"TeacherLogits: indices have dtype {chosen.dtype}; expected integers")
        if chosen.size and not (chosen.min() >= 0 and chosen.max() < len(self)):
            wrong = chosen[(chosen < 0) | (chosen >= len(self))]
            raise InputError(
                f"TeacherLogits: index {wrong[0]} is no sample; expected one in [0, {len(self)})"
            )
        student = registry.of(like)
        host = registry.by_name("numpy")
        return student.from_numpy(
            self.logits[chosen], dtype=host.dtype_name(self.logits), device=student.device_name(like)
        )
