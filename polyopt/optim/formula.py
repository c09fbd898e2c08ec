"""A traced program as formulas to read: what gets a name, in which order, with no needless parenthesis.

The operations and their order are those of the program, so the text rounds where the program rounds. With
``ASCII`` it is Python.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from polyopt.core.trace import Instruction, Program

CONDITION, COMPARISON, SUM, PRODUCT, POWER, ATOM = range(6)
"""How strongly an expression holds together."""

INFIX: Final = {
    "add": (" + ", SUM),
    "subtract": (" - ", SUM),
    "multiply": ("times", PRODUCT),
    "divide": ("/", PRODUCT),
    "less": (" < ", COMPARISON),
    "less_equal": (" <= ", COMPARISON),
    "greater": (" > ", COMPARISON),
    "greater_equal": (" >= ", COMPARISON),
    "equal": (" == ", COMPARISON),
    "not_equal": (" != ", COMPARISON),
}
CALLS: Final = {"maximum": "max", "minimum": "min"}


@dataclass(frozen=True)
class Notation:
    """Symbols in which formulas are printed."""

    assign: str
    """What a variable that is overwritten is followed by."""
    times: str
    power: str
    unicode: bool


UNICODE: Final = Notation(" ← ", "·", "^", True)
ASCII: Final = Notation(" = ", "*", "**", False)


@dataclass
class Statement:
    """``target = expression``; a slot is overwritten, so whatever reads the old value comes before it."""

    target: str
    node: str
    overwrites: str | None = None


class Formula:
    """The statements of a program, in an order in which they can be carried out.

    Parameters
    ----------
    program
        The outputs that are inputs as well are overwritten; ``"update"`` comes last.
    named
        ``{node: name}`` of values that the author gave a name.
    display
        ``{input: text}`` where an input is not shown by its own name.
    """

    def __init__(
        self, program: Program, named: Mapping[str, str], display: Mapping[str, str], notation: Notation
    ) -> None:
        self._nodes = {i.name: i for i in program.body}
        self._order = {i.name: k for k, i in enumerate(program.body)}
        self._constants = dict(program.constants)
        self._inputs = {*program.arrays, *program.scalars}
        self._outputs = program.outputs
        self._display, self._notation = display, notation
        self._names: dict[str, str] = {}
        self.used: set[str] = set()
        """The inputs that some statement reads."""
        self.stable = False
        """True if some statement has a ``1 - b^t`` that is computed without cancellation."""
        self._statements = self._name(named)

    def lines(self) -> list[str]:
        """Write one line a statement."""
        waiting, later, text = list(self._statements), [], []
        while waiting:
            ready = [s for s in waiting if not self._needs(s, waiting)]
            free = [s for s in ready if not self._still_read(s, waiting)]
            chosen = (free or ready)[0]
            if not free:  # its old value is still needed: keep the new one aside
                fresh = f"{chosen.target}_new"
                later.append(f"{chosen.target}{self._notation.assign}{fresh}")
                self._names[chosen.node] = chosen.target = fresh
                chosen.overwrites = None
            waiting.remove(chosen)
            equals = self._notation.assign if chosen.overwrites else " = "
            text.append(f"{chosen.target}{equals}{self._right(chosen)}")
        return text + later

    # Which values get a name

    def _name(self, named: Mapping[str, str]) -> list[Statement]:
        """Slots, the author's names where they say more than one operation, and what is used twice."""
        found = []
        for output, node in self._outputs:
            if output in self._inputs and node in self._nodes and node not in self._names:
                self._names[node] = output
                found.append(Statement(output, node, output))
            elif output in self._inputs and node != output:
                found.append(Statement(output, node, output))
        for node, name in named.items():
            if node in self._nodes and node not in self._names and self._size(node) > 1:
                self._names[node] = name
                found.append(Statement(name, node))
        for node in self._nodes:
            if node not in self._names and self._uses(node) > 1 and self._size(node) > 1:
                self._names[node] = ""
                found.append(Statement("", node))
        found.sort(key=lambda s: self._order.get(s.node, len(self._order)))
        count = 0
        for s in found:
            if not s.target:
                if self._takes_over_gradient(s, found):
                    s.target = s.overwrites = "g"
                else:
                    count += 1
                    s.target = f"x{count}"
                self._names[s.node] = s.target
        update = [Statement(name, node) for name, node in self._outputs if name not in self._inputs]
        for s in [*found, *update]:
            self.used |= self._reads(s)
        return [*found, *update]

    def _takes_over_gradient(self, statement: Statement, others: list[Statement]) -> bool:
        """Return True if it is ``g`` plus something and nothing else reads ``g``.

        So that it can go by that name.
        """
        whole = self._nodes[statement.node]
        if whole.op not in ("add", "subtract") or whole.args[0] != "g":
            return False
        final = [Statement(n, node) for n, node in self._outputs if n not in self._inputs]
        return not any("g" in self._reads(s) for s in [*others, *final] if s is not statement)

    def _size(self, node: str) -> int:
        """Count the operations in ``node``, names not looked into."""
        if node not in self._nodes:
            return 0
        return 1 + sum(0 if a in self._names else self._size(a) for a in self._nodes[node].args)

    def _uses(self, node: str) -> int:
        inside = sum(i.args.count(node) for i in self._nodes.values() if set(i.args) != {node})
        squares = sum(set(i.args) == {node} for i in self._nodes.values())
        return inside + squares + sum(value == node for _, value in self._outputs)

    # In which order

    def _below(self, statement: Statement) -> Iterator[str]:
        """Return what a statement's expression is made of, down to names and inputs."""
        stack = [statement.node]
        if statement.node in self._nodes and self._names.get(statement.node) == statement.target:
            stack = list(self._nodes[statement.node].args)
        while stack:
            node = stack.pop()
            yield node
            if node in self._nodes and node not in self._names:
                stack += self._nodes[node].args

    def _reads(self, statement: Statement) -> set[str]:
        """Collect the inputs that a statement reads."""
        return {n for n in self._below(statement) if n in self._inputs}

    def _needs(self, statement: Statement, waiting: list[Statement]) -> bool:
        missing = {s.node for s in waiting if s is not statement and self._names.get(s.node) == s.target}
        return any(node in missing for node in self._below(statement))

    def _still_read(self, statement: Statement, waiting: list[Statement]) -> bool:
        name = statement.overwrites
        return name is not None and any(name in self._reads(s) for s in waiting if s is not statement)

    # How an expression is written

    def _right(self, statement: Statement) -> str:
        node = statement.node
        if self._names.get(node) == statement.target:
            return self._operation(self._nodes[node])[0]
        return self._text(node)[0]

    def _text(self, node: str) -> tuple[str, int]:
        if node in self._names:
            return self._names[node], ATOM
        if node in self._nodes:
            return self._operation(self._nodes[node])
        if node in self._constants:
            value = self._constants[node]
            text = str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
            return text, SUM if text.startswith("-") else ATOM
        return self._display.get(node, node), ATOM

    def _at(self, node: str, level: int) -> str:
        """Return ``node`` in parentheses unless it holds together at least as strongly as ``level``."""
        text, own = self._text(node)
        return text if own >= level else f"({text})"

    def _operation(self, i: Instruction) -> tuple[str, int]:
        if i.op == "square" or (i.op == "multiply" and i.args[0] == i.args[1]):
            return self._at(i.args[0], ATOM) + ("²" if self._notation.unicode else "**2"), POWER
        if i.op in INFIX:
            return self._infix(i)
        if i.op == "negative":
            complement = self._complement(i)
            return (complement, SUM) if complement else ("-" + self._at(i.args[0], PRODUCT), PRODUCT)
        if i.op == "pow":
            base, exponent = (self._at(a, ATOM) for a in i.args)
            return f"{base}{self._notation.power}{exponent}", POWER
        if i.op == "where":
            condition, yes, no = i.args
            test, first = self._at(condition, COMPARISON), self._at(yes, COMPARISON)
            return f"{first} if {test} else {self._at(no, CONDITION)}", CONDITION
        if self._notation.unicode and i.op == "sqrt":
            return f"√{self._at(i.args[0], ATOM)}", ATOM
        arguments = ", ".join(self._text(a)[0] for a in i.args)
        if self._notation.unicode and i.op == "abs":
            return f"|{arguments}|", ATOM
        return f"{CALLS.get(i.op, i.op)}({arguments})", ATOM

    def _infix(self, i: Instruction) -> tuple[str, int]:
        sign, level = INFIX[i.op]
        left, right = self._at(i.args[0], level), self._at(i.args[1], level + 1)
        if level == SUM and right.startswith("-"):  # a + (-b) is a - b, to the bit
            sign, right = (" - " if i.op == "add" else " + "), right[1:]
        return f"{left}{self._notation.times if sign == 'times' else sign}{right}", level

    def _complement(self, i: Instruction) -> str | None:
        """Return ``1 - b^t`` where ``i`` is -expm1(t·log(b)), ``one_minus_power``."""
        inner = self._nodes.get(i.args[0])
        product = self._nodes.get(inner.args[0]) if inner and inner.op == "expm1" else None
        log = self._nodes.get(product.args[1]) if product and product.op == "multiply" else None
        if product is None or log is None or log.op != "log":
            return None
        self.stable = True
        return f"1 - {self._at(log.args[0], ATOM)}{self._notation.power}{self._at(product.args[0], ATOM)}"
