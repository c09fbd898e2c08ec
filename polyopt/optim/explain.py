"""``explain(rule)``: the exact formula that will run, from the rule's own trace."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

from polyopt.core.aliases import instead
from polyopt.core.errors import InputError
from polyopt.core.rule import Chain, Partition, Rule, Stage
from polyopt.core.trace import Program, Symbol, Tracer
from polyopt.optim.formula import ASCII, UNICODE, Formula, Notation
from polyopt.schedules import Schedule


def explain(rule: Stage, ascii: bool = False) -> str:
    """Write the formula of ``rule``, line by line, with its hyperparameters.

    It is written from the trace of the very functions that run, in their order of operations. ``t`` counts
    the updates of a leaf from 1, ``←`` overwrites.

    Parameters
    ----------
    rule
        A rule, a chain (stage by stage) or a partition (pattern by pattern).
    ascii
        Write Python: given ``g``, ``p``, ``t``, the slots and the functions of ``polyopt.core.scalars``, the
        text of a rule can be executed.

    Returns
    -------
    str
        Lines for ``print``.

    Raises
    ------
    InputError
        If ``rule`` is none of these.

    Examples
    --------
    >>> from polyopt import SGD
    >>> print(explain(SGD(lr=0.1, momentum=0.9, form="averaged")))
    SGD: Gradient descent with momentum (Robbins & Monro, 1951; Polyak, 1964; Sutskever et al., 2013).
    convention = 'paper'
    lr = 0.1
    momentum = 0.9
    dampening = 0.0
    nesterov = False
    form = 'averaged'
    first = 'damped'
    weight_decay = 0.0
    decay = 'l2'
    <BLANKLINE>
    momentum_buffer ← momentum·momentum_buffer + (1 - momentum)·g
    update = -lr·momentum_buffer
    p ← p + update
    """
    if not isinstance(rule, Rule | Chain | Partition):
        raise InputError(f"explain: expected a rule, a chain or a partition, found {instead(rule)}")
    notation = ASCII if ascii else UNICODE
    return "\n".join(_stage(rule, notation, f"p{notation.assign}p + update"))


def _stage(stage: Stage, notation: Notation, end: str) -> list[str]:
    if isinstance(stage, Rule):
        return [*_rule(stage, notation), end]
    comment = "" if notation.unicode else "# "
    lines: list[str] = []
    if isinstance(stage, Chain):
        for i, part in enumerate(stage.stages):
            last = i == len(stage.stages) - 1
            lines += ["", f"{comment}Stage {i}"] if i else [f"{comment}Stage 0"]
            lines += _stage(part, notation, end if last else f"g{notation.assign}update")
        return lines
    for i, (pattern, member) in enumerate(stage.members):
        which = repr(pattern) if isinstance(pattern, str) else getattr(pattern, "__name__", repr(pattern))
        rest = "" if i == 0 else " and nothing above"
        lines += [""] if i else []
        lines.append(f"{comment}Parameters that match {which}{rest}:")
        inner = [f"{comment}frozen"] if member is None else _stage(member, notation, end)
        lines += [f"  {line}".rstrip() for line in inner]
    return lines


def _rule(rule: Rule, notation: Notation) -> list[str]:
    comment = "" if notation.unicode else "# "
    summary = " ".join((type(rule).__doc__ or type(rule).__name__).strip().partition("\n\n")[0].split())
    lines = [f"{comment}{type(rule).__name__}: {summary}", *_settings(rule, comment), ""]
    try:
        program, named, display = _trace(rule)
    except (AttributeError, TypeError) as e:
        return [*lines, f"{comment}update: not elementwise, so that no formula can be traced ({e})"]
    formula = Formula(program, named, display, notation)
    text = formula.lines()
    known = {"t", *rule.hyperparameters(), *_scalar(rule)}
    measured = [name for name in program.scalars if name in formula.used and name not in known]
    if measured:
        lines.append(f"{comment}Measured over all leaves: {', '.join(measured)}")
    if program.inexact:
        lines.append(
            f"{comment}Slower on NumPy and PyTorch, one pass for each operation: "
            f"no kernel can be generated for {', '.join(program.inexact)}"
        )
    if formula.stable:
        power, times = notation.power, notation.times
        lines.append(f"{comment}1 - b{power}t is computed as -expm1(t{times}log(b)), without cancellation")
    if "t" in formula.used or display:
        lines.append(f"t{notation.assign}t + 1")
    return lines + text


def _settings(rule: Rule, comment: str) -> list[str]:
    lines = []
    fields = sorted(dataclasses.fields(rule), key=lambda f: f.kw_only is True)
    fields.sort(key=lambda f: f.name != "convention")
    for field in fields:
        value = getattr(rule, field.name)
        if isinstance(value, Schedule):
            lines.append(f"{comment}{field.name}(t) = {value!r}, after the t - 1 updates made before")
        elif isinstance(value, str | bool | int | float) and field.name != "mask":
            lines.append(f"{field.name} = {value!r}")
        elif value is not None:
            which = repr(value) if isinstance(value, str) else getattr(value, "__name__", repr(value))
            lines.append(f"{comment}{field.name} = {which}")
        if field.name == "mask" and value is not None:
            lines.append(f"{comment}weight_decay is 0 where the mask does not match")
    return lines


def _scalar(rule: Rule) -> set[str]:
    return {slot.name for slot in rule.slots() if slot.shape == "scalar"}


class _Values:
    """The coefficients by name; one that the rule does not compute is measured."""

    def __init__(self, tracer: Tracer, values: dict[str, Any]) -> None:
        self._tracer, self._values, self.measured = tracer, values, set[str]()

    def __getattr__(self, name: str) -> Any:
        if name not in self._values:
            self.measured.add(name)
            return Symbol(self._tracer, name)
        return self._values[name]


def _trace(rule: Rule) -> tuple[Program, dict[str, str], dict[str, str]]:
    """Trace the rule's scalars and its leaf function as one program.

    Also the names of values, and what inputs are shown as.
    """
    tracer = Tracer()
    slots = rule.slots()
    hyper = {name: Symbol(tracer, name) for name in rule.hyperparameters()}
    scalar = {name: Symbol(tracer, name) for name in _scalar(rule)}
    values = rule.coefficients(tracer, Symbol(tracer, "t"), SimpleNamespace(**hyper, **scalar))
    c = _Values(tracer, values)
    like = {s.name: Symbol(tracer, s.name) for s in slots if s.shape == "like"}
    update, new = rule.leaf(tracer, Symbol(tracer, "g"), Symbol(tracer, "p"), like, c)
    moving = [s.name for s in slots if not s.constant]
    outputs = {n: values[n] if n in scalar else new[n] for n in moving} | {"update": update}
    scalars = ("t", *hyper, *scalar, *sorted(c.measured))
    program = tracer.program(("g", "p", *like), scalars, outputs)
    taken = {"t", "g", "p", "update", *hyper, *(s.name for s in slots)}
    named: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Symbol) and name not in scalar:
            named.setdefault(value.name, f"{name}_t" if name in taken else name)
    display = {n: f"{n}(t)" for n, x in rule.hyperparameters().items() if isinstance(x, Schedule)}
    return program, named, display
