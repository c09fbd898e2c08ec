"""Interrupts between two bytecodes, at each place in turn where Python looks for a signal."""

from __future__ import annotations

import opcode
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import FrameType
from typing import Any

CHECKED = {opcode.opmap[name] for name in ("RESUME", "CALL", "CALL_FUNCTION_EX", "JUMP_BACKWARD")}
"""After these, and nowhere else, a signal's handler may run."""


class InterruptError(Exception):
    """Stand for a Ctrl-C: the exception that the signal handler raises."""


def interrupted(action: Callable[[], Any]) -> Iterator[int]:
    """Run ``action`` again and again, interrupted at its first place, its second, …; yield after each.

    Ends with the run that had fewer places, and so came to its end.
    """
    number = 0
    while True:
        number += 1
        left = number
        last: dict[FrameType, int] = {}

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal left
            frame.f_trace_opcodes = True
            if event != "opcode":
                return trace
            before, now = last.get(frame), frame.f_code.co_code[frame.f_lasti]  # noqa: B023
            last[frame] = now  # noqa: B023
            if before in CHECKED:
                left -= 1
                if left == 0:
                    sys.settrace(None)
                    raise InterruptError
            return trace

        debugger = sys.gettrace()
        with suppress(InterruptError):
            sys.settrace(trace)
            try:
                action()
            finally:
                sys.settrace(debugger)
        last.clear()
        if left > 0:
            return
        yield number
