"""A phase of simulated federated training: who is at work, what was sent, and the server's part.

A client's training is the engine's own step on the client's samples. The server stands on the host: what it
makes of the same clients is the same bits for every backend.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from polyopt.core import tree
from polyopt.core.errors import InputError
from polyopt.core.rule import Stage, chain, rules_of
from polyopt.core.tree import Tree
from polyopt.engine.batches.plan import Cursor
from polyopt.engine.optimizer import State
from polyopt.federated import Client, Proximal, Server
from polyopt.federated.rounds import Rounds
from polyopt.models.datasets import Dataset
from polyopt.pruning import Masks, pruned
from polyopt.recipe import Recipe
from polyopt.recipe.federated import Federated
from polyopt.schedules import Measured

KEPT = "federated"
"""The entry of a checkpoint's state that has the server's part."""


@dataclass
class ServerState:
    """The server between two batches: all of it on the host, and in a checkpoint."""

    params: Tree
    state: State
    sent: dict[int, Tree] = field(default_factory=dict)
    """What the clients sent that are done in this round."""

    def plain(self) -> dict[str, Any]:
        """Return it as a checkpoint holds it."""
        sent = {str(client): tree.named(params) for client, params in self.sent.items()}
        return {"params": tree.named(self.params), "state": self.state, "sent": sent}


@dataclass(frozen=True)
class Federation:
    """A ``federated`` section with the samples of its clients."""

    course: Rounds
    rounds: int
    server: Server
    proximal: float | None
    masks: Masks = field(default_factory=dict)
    """What is pruned, and stays so on the server."""

    @classmethod
    def of(cls, section: Federated, recipe: Recipe, dataset: Dataset, masks: Masks | None) -> Federation:
        """Draw the clients, or raise ``InputError`` where that can't be."""
        _no_measured(recipe.build_optimizer().rule)
        try:
            course = section.course(dataset.y_train, recipe.train, recipe.seed)
        except InputError as e:
            raise InputError(f"federated: {e}") from None
        return cls(course, section.rounds, section.build_server(), section.proximal, masks or {})

    @property
    def steps(self) -> int:
        """Batches of all clients in all rounds."""
        return self.course.steps(self.rounds)

    def around(self, stage: Stage) -> Stage:
        """Put the term that holds a client near the server before its clipping and optimizer."""
        return stage if self.proximal is None else chain(Proximal(mu=self.proximal), stage)

    def begin(self, params: Tree) -> ServerState:
        """Before the first round; ``params`` are host arrays."""
        return ServerState(params, self.server.init(params))

    def resumed(self, params: Tree, kept: Mapping[str, Any]) -> ServerState:
        """Return what ``ServerState.plain`` gave, in a tree like ``params``."""
        sent = {int(client): tree.rename(params, named) for client, named in kept["sent"].items()}
        return ServerState(tree.rename(params, kept["params"]), kept["state"], sent)

    def receive(self, at: ServerState, step: int, params: Callable[[], Tree]) -> bool:
        """After ``step`` batches: whether the next one is another client's, who begins from ``at.params``.

        ``params`` gives, as host arrays, what the client at work has come to.
        """
        turn = self.course.turn(step - 1)
        if not turn.last:
            return False
        at.sent[turn.client] = params()
        if self.course.ended(Cursor(step)) is not None:
            clients = [Client(k, sent, len(self.course.samples[k])) for k, sent in at.sent.items()]
            aggregated, at.state = self.server.step(at.params, clients, at.state)
            at.params, at.sent = pruned(aggregated, self.masks), {}
        return True

    def observe(self, at: ServerState, metric: float) -> None:
        """Tell the server's schedules that wait for one."""
        if self.server.optimizer is not None:
            at.state = self.server.optimizer.observe(at.state, metric)

    def where(self, step: int) -> str:
        """Whose batch is the one after ``step``, for an error."""
        turn = self.course.turn(step)
        return f"round {turn.round + 1}, client {turn.client}, "


def _no_measured(rule: Stage) -> None:
    """Refuse a plateau: a client begins anew in each round and would forget what it was told."""
    for _, part in rules_of(rule):
        for name, value in part.hyperparameters().items():
            if isinstance(value, Measured):
                raise InputError(
                    f"optimizer.{name}: a client's plateau would begin anew in each round; expected another "
                    "schedule, or one of federated.server"
                )
