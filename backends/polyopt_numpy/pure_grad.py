"""Gradients of a loss that promises to depend on its arguments alone: recorded once, then replayed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import optree

from polyopt.backend.protocol import LossFunction
from polyopt_numpy.grad import value_and_grad
from polyopt_numpy.recording import Recorded, Recording
from polyopt_numpy.tape import Tape

SIGNATURES = 32
"""Sets of shapes, dtypes and Python values that are recorded for one loss; any more run call by call."""
COMPARED = 2
"""Replays of a tape that are compared with autograd's results before it is trusted."""

_log = logging.getLogger("polyopt")
_STATIC = (bool, int, float, str, type(None))


class PureGradient:
    """``f(params, *args) -> (loss, gradients)``, with the bits of ``value_and_grad(loss)``.

    Parameters
    ----------
    loss
        It must give the same for the same arguments: an array that it captures, or a random state, isn't
        looked at again.

    Notes
    -----
    The first call with arguments of certain shapes, dtypes, strides and Python values runs as ever and is
    recorded. The recording is then run as one straight list of NumPy calls. What can't be recorded, and a
    tape whose first results aren't the bits of autograd's, is left to ``value_and_grad``; the debug log of
    ``polyopt`` says so once.
    """

    def __init__(self, loss: LossFunction) -> None:
        self.loss = loss
        self._eager = value_and_grad(loss)
        self._tapes: dict[Any, _Trial | Tape | None] = {}
        self._told = False

    def __reduce__(self) -> Any:
        return type(self), (self.loss,)

    def __call__(self, params: Any, *args: Any) -> tuple[Any, Any]:
        """Return the loss and its gradients: replayed, or recorded where shapes are new."""
        given: Any = (params, args)
        leaves, structure = optree.tree_flatten(given, none_is_leaf=True)
        key = _signature(leaves, structure)
        tape = self._tapes.get(key) if key is not None else None
        if tape is None:
            return self._first(key, params, args)
        if isinstance(tape, _Trial):
            return self._compare(key, tape, leaves, params, args)
        with np.errstate(all="ignore"):
            try:
                value, *gradients = tape(leaves)
            except Exception:
                # The loss itself says best what is wrong.
                return self._eager(params, *args)
        return value, tape.unflatten(gradients)

    def _first(self, key: Any, params: Any, args: tuple[Any, ...]) -> tuple[Any, Any]:
        """Run as ever, and record what was run."""
        found = self._eager(params, *args)
        if key is None or key in self._tapes:
            return found
        if len(self._tapes) >= SIGNATURES:
            self._tell(f"more than {SIGNATURES} sets of shapes and Python values")
            return found
        self._tapes[key] = None
        made = self._record(params, args)
        if made is not None:
            self._judge(key, _Trial(made, COMPARED), _leaves((params, args)), found)
        return found

    def _record(self, params: Any, args: tuple[Any, ...]) -> Tape | None:
        recording = Recording()
        inputs = [x if isinstance(x, _STATIC) else recording.slot(x) for x in _leaves((params, args))]
        given: Any = (params, args)
        structure = optree.tree_structure(given, none_is_leaf=True)
        try:
            own: Any = optree.tree_unflatten(structure, inputs)
            value, gradients = self._eager(own[0], *own[1])
            if recording.refused is None:
                return self._tape(recording, inputs, params, value, gradients)
            self._tell(recording.refused)
        except Exception as e:
            self._tell(recording.refused or f"{type(e).__name__}: {e}")
        finally:
            recording.open = False
        return None

    def _tape(self, recording: Recording, inputs: list[Any], params: Any, value: Any, gradients: Any) -> Tape:
        outputs = [value, *_present(gradients)]
        tape = Tape(recording, [isinstance(x, Recorded) for x in inputs], outputs)
        tape.like(params)
        return tape

    def _compare(
        self, key: Any, trial: _Trial, leaves: Sequence[Any], params: Any, args: tuple[Any, ...]
    ) -> tuple[Any, Any]:
        found = self._eager(params, *args)
        self._judge(key, trial, leaves, found)
        return found

    def _judge(self, key: Any, trial: _Trial, leaves: Sequence[Any], found: tuple[Any, Any]) -> None:
        """Trust the tape after so many results like ``found``; never again after another one."""
        value, gradients = found
        with np.errstate(all="ignore"):
            try:
                replayed = trial.tape(leaves)
            except Exception as e:
                self._tapes[key] = None
                self._tell(f"the replay raised {type(e).__name__}: {e}")
                return
        wanted = [value, *_present(gradients)]
        if len(wanted) != len(replayed) or not all(map(_same, replayed, wanted)):
            self._tapes[key] = None
            self._tell("it gave other results for the same arguments: it isn't a function of these alone")
            return
        trial = _Trial(trial.tape, trial.left - 1)
        self._tapes[key] = trial if trial.left else trial.tape

    def _tell(self, why: str) -> None:
        if not self._told:
            self._told = True
            name = getattr(self.loss, "__qualname__", type(self.loss).__name__)
            _log.debug("numpy: the loss %s runs through autograd, not from a tape: %s", name, why)


class _Trial:
    """A tape that is still compared."""

    def __init__(self, tape: Tape, left: int) -> None:
        self.tape, self.left = tape, left


def _signature(leaves: Sequence[Any], structure: Any) -> Any:
    """Return the signature that a recording serves; ``None`` where something can't be recorded."""
    signs: list[Any] = [structure]
    for x in leaves:
        if type(x) is np.ndarray:
            if x.dtype.hasobject:
                return None
            signs.append((x.shape, x.dtype, x.strides))
        elif isinstance(x, np.generic):
            signs.append(type(x))
        elif type(x) in _STATIC:
            signs.append((type(x), repr(x)))
        else:
            return None
    return tuple(signs)


def _leaves(x: Any) -> list[Any]:
    found: list[Any] = optree.tree_leaves(x, none_is_leaf=True)
    return found


def _present(x: Any) -> list[Any]:
    return [leaf for leaf in _leaves(x) if leaf is not None]


def _same(a: Any, b: Any) -> bool:
    """Return True for the same type, dtype, shape and bits."""
    return type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
