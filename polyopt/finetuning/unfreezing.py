"""Gradual unfreezing on a schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from polyopt.core.errors import InputError
from polyopt.core.rule import Pattern, Stage
from polyopt.core.schedule import increasing
from polyopt.core.tree import Tree
from polyopt.engine.optimizer import Optimizer, State
from polyopt.finetuning.freezing import freeze, split
from polyopt.finetuning.selection import select
from polyopt.finetuning.transfer import transfer


@dataclass(frozen=True)
class GradualUnfreezing:
    """Train the top layer first, and thaw the next lower one from time to time.

    Howard & Ruder, "Universal language model fine-tuning", 2018, section 3.3 (one layer an epoch). A pure
    function of the number of updates made, so a run resumes anywhere.

    Parameters
    ----------
    rule
        What updates the layers that are not frozen: a rule, a chain or a partition.
    layers
        The layers, the lowest first: one pattern each, or
        ``numbered_layers``. Parameters that no pattern matches are always trained.
    steps
        The numbers of updates before which a layer thaws, in order; an integer k means k, 2k, 3k, …. With
        fewer numbers than layers below the top, the lowest layers stay frozen.
    options
        Further arguments of ``Optimizer``.

    Examples
    --------
    >>> import numpy as np
    >>> from polyopt import Adam
    >>> plan = GradualUnfreezing(Adam(lr=0.1), ["^embed", "^body", "^head"], steps=10)
    >>> [plan.thawed(step) for step in (0, 9, 10, 20, 1000)]
    [1, 1, 2, 3, 3]
    >>> plan.frozen(10)
    ('^embed',)
    >>> params = {name: np.ones(2) for name in ("embed", "body", "head")}
    >>> optimizer = plan.optimizer(0)
    >>> state = optimizer.init(params)
    >>> for step in range(12):
    ...     if plan.changes(step):
    ...         state = plan.advance(state, params)
    ...         optimizer = plan.optimizer(step)
    ...     params, state = optimizer.step(params, params, state)
    >>> sorted(state["slots"]["exp_avg"]), state["missed"]
    (['body', 'head'], {'body': 10})
    """

    rule: Stage
    layers: Sequence[Pattern]
    steps: int | Sequence[int]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        if not self.layers:
            raise InputError("GradualUnfreezing: layers is empty; expected at least one pattern")
        below, given = len(self.layers) - 1, self.steps
        single = [given] if isinstance(given, int) else list(given)
        if any(isinstance(x, bool) or not isinstance(x, int) or x < 1 for x in single):
            raise InputError(f"GradualUnfreezing: steps = {given!r}; expected integers >= 1")
        whole = [k * given for k in range(1, below + 1)] if isinstance(given, int) else single
        if len(whole) > below:
            raise InputError(
                f"GradualUnfreezing: {len(whole)} steps and {below} layers below the top; "
                "expected no more steps than that"
            )
        increasing("GradualUnfreezing", "steps", whole)
        object.__setattr__(self, "steps", tuple(whole))

    def thawed(self, step: int) -> int:
        """Return how many layers, from the top, the coming update trains after ``step`` were made.

        Parameters
        ----------
        step
            The number of updates made.

        Returns
        -------
        int
            At least 1.
        """
        assert not isinstance(self.steps, int)
        return 1 + sum(step >= boundary for boundary in self.steps)

    def frozen(self, step: int) -> tuple[Pattern, ...]:
        """Return the patterns of the layers that are still frozen.

        Parameters
        ----------
        step
            The number of updates made.

        Returns
        -------
        tuple
            Patterns, the lowest layer's first.
        """
        return tuple(self.layers)[: len(self.layers) - self.thawed(step)]

    def stage(self, step: int) -> Stage:
        """Return the rule of the coming update, with what is still frozen.

        Parameters
        ----------
        step
            The number of updates made.

        Returns
        -------
        Stage
            What ``Optimizer`` takes.
        """
        frozen = self.frozen(step)
        return freeze(self.rule, *frozen) if frozen else self.rule

    def changes(self, step: int) -> bool:
        """Return True if a layer thaws before the coming update.

        Parameters
        ----------
        step
            The number of updates made.

        Returns
        -------
        bool
            True at the steps at which the optimizer changes.
        """
        return step > 0 and self.thawed(step) != self.thawed(step - 1)

    def optimizer(self, step: int) -> Optimizer:
        """Return the optimizer of the coming update: a new object, to be kept until the next change.

        Parameters
        ----------
        step
            The number of updates made.

        Returns
        -------
        Optimizer
            Of ``stage(step)``.
        """
        return Optimizer(self.stage(step), **self.options)

    def split(self, params: Tree, step: int) -> tuple[Tree, Tree]:
        """Split the parameters into what the coming update trains and what is frozen: see ``split``.

        Every layer's pattern must match a path, also of those that are trained already.

        Parameters
        ----------
        params
            The whole tree.
        step
            The number of updates made.

        Returns
        -------
        tuple
            ``(trained, frozen)``.
        """
        select(params, *self.layers)
        return split(params, *self.frozen(step))

    def advance(self, state: State, params: Tree) -> State:
        """Make the state for the optimizer of the coming update of that of the one before a change.

        The slots of the layers that were trained are the same arrays, the layer that thaws has fresh ones:
        see ``transfer``. Every layer's pattern must match a path, also of those that are trained already.

        Parameters
        ----------
        state
            Of the optimizer before.
        params
            The whole tree, or its trained part.

        Returns
        -------
        dict
            A state of ``optimizer(state["step"])``.
        """
        select(params, *self.layers)
        step = int(state["step"])
        return transfer(state, params, self.optimizer(max(step - 1, 0)), self.optimizer(step))
