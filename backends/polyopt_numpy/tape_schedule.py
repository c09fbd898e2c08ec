"""Order the recorded calls of a tape, and tell where each lies and how long it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from polyopt_numpy.recording import Call, Recorded, Recording, map_recorded


class Schedule:
    """The calls that ``outputs`` need, in an order that keeps memory small.

    ``inputs`` says of each leaf of the arguments if it is an array, whose slots come first.
    """

    def __init__(self, recording: Recording, inputs: Sequence[bool], outputs: Sequence[Any]) -> None:
        self.examples, self.outputs = recording.examples, outputs
        self.inputs = sum(inputs)
        self.calls = _needed(recording.calls, outputs)
        self.roots = list(range(len(self.examples)))
        """For each slot the one whose memory it lies in: a view's base."""
        self._reads = {call.slot: slots_in((call.args, call.keywords)) for call in self.calls}
        for call in self.calls:
            mine = self.examples[call.slot]
            for x in self._reads[call.slot]:
                if np.may_share_memory(mine, self.examples[x]):
                    self.roots[call.slot] = self.roots[x]
        self.given = {self.roots[x.slot] for x in outputs if isinstance(x, Recorded)}
        self.calls = self._ordered()
        self.last: dict[int, int] = {}
        """For each root the last call that reads it."""
        for i, call in enumerate(self.calls):
            self.last.update((self.roots[x], i) for x in self._reads[call.slot])

    def _ordered(self) -> list[Call]:
        """Order the calls, each that lets go of more memory than it takes as early as it can be made.

        So the gradient of a small leaf is made while its forward pass still lies in the cache.
        """
        readers: dict[int, list[Call]] = {}
        waits, uses = {}, dict.fromkeys(range(len(self.examples)), 0)
        for call in self.calls:
            slots = set(self._reads[call.slot])
            waits[call.slot] = sum(x >= self.inputs for x in slots)
            for x in slots:
                readers.setdefault(x, []).append(call)
            for root in {self.roots[x] for x in slots}:
                uses[root] += 1
        done: set[int] = set()
        ordered = []
        for first in self.calls:
            todo = [first]
            while todo:
                call = todo.pop()
                if call.slot in done or waits[call.slot]:
                    continue
                if call is not first and self._growth(call, uses) > 0:
                    continue
                done.add(call.slot)
                ordered.append(call)
                slots = set(self._reads[call.slot])
                for root in {self.roots[x] for x in slots}:
                    uses[root] -= 1
                for reader in readers.get(call.slot, ()):
                    waits[reader.slot] -= 1
                near = [r for x in (call.slot, *slots) if x >= self.inputs for r in readers.get(x, ())]
                todo += [r for r in reversed(near) if r.slot not in done and not waits[r.slot]]
        return ordered

    def _growth(self, call: Call, uses: dict[int, int]) -> int:
        """Bytes that the call takes, less those that nothing reads after it."""
        mine = self.roots[call.slot]
        taken = 0 if mine != call.slot or mine in self.given else int(self.examples[mine].nbytes)
        roots = {self.roots[x] for x in self._reads[call.slot]} - self.given
        return taken - sum(int(self.examples[r].nbytes) for r in roots if r >= self.inputs and uses[r] == 1)

    def ending(self, call: Call, at: int) -> list[int]:
        """Return the roots that nothing reads after this call."""
        roots = {self.roots[x] for x in self._reads[call.slot]}
        return sorted(
            r for r in roots if self.last[r] == at and r not in self.given and r != self.roots[call.slot]
        )

    def _example(self, x: Any) -> Any:
        return self.examples[x.slot] if isinstance(x, Recorded) else x


def _needed(calls: list[Call], outputs: Sequence[Any]) -> list[Call]:
    wanted = set(slots_in(list(outputs)))
    kept = []
    for call in reversed(calls):
        if call.slot in wanted:
            kept.append(call)
            wanted.update(slots_in((call.args, call.keywords)))
    return kept[::-1]


def slots_in(x: Any) -> list[int]:
    """Return the slots of all that is recorded in ``x``."""
    slots: list[int] = []
    map_recorded(lambda r: slots.append(r.slot), x)
    return slots
