"""The bytes that an optimizer's step can't avoid to move, counted from the program that it is traced to."""

from __future__ import annotations

from dataclasses import dataclass

from polyopt.core.errors import InputError
from polyopt.core.rule import Stage
from polyopt.engine.plan import plan, program


@dataclass(frozen=True)
class Traffic:
    """Count the arrays of the parameters' size that an update reads, writes, and reads beforehand."""

    reads: int
    writes: int
    measured: int

    @property
    def bytes(self) -> int:
        """Bytes a float32 parameter."""
        return 4 * (self.reads + self.writes + self.measured)


def traffic(rule: Stage) -> Traffic:
    """Count the traffic of an elementwise rule or chain.

    Examples
    --------
    >>> from polyopt import SGD, Adam
    >>> traffic(Adam()).bytes, traffic(SGD()).bytes
    (28, 12)
    """
    (pipeline,) = plan(rule, ["weight"]).pipelines
    reads = writes = measured = 0
    for i, segment in enumerate(pipeline or ()):
        if segment.leafwise:
            name = type(segment.parts[0].rule).__name__
            raise InputError(f"{name} is not elementwise: its bytes can't be counted from a program")
        code = program(segment.parts, "p" if i == len(pipeline or ()) - 1 else "update")
        reads += sum(name in code.used for name in code.arrays)
        writes += len(code.outputs)
        measured += segment.awaits is not None
    return Traffic(reads, writes, measured)
