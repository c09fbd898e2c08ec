"""``federated``: a phase trains on simulated clients, whose parameters a server puts together."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, model_validator

from polyopt.federated import Server, fedavg, median, split_dirichlet, split_iid, split_labels, trimming
from polyopt.federated.population import taking_part
from polyopt.federated.robust import trimmed_away
from polyopt.federated.rounds import Local, Rounds
from polyopt.recipe.choices import check_own, filled
from polyopt.recipe.component import Component
from polyopt.recipe.problems import Problem
from polyopt.recipe.sections import Count, Section, _reads, _writes
from polyopt.recipe.train import Train

ServerTable: TypeAlias = Annotated[Component, _reads("server"), _writes]
OWN: dict[str, dict[str, dict[str, Any]]] = {
    "split": {"labels": {"shards": 2}, "dirichlet": {"alpha": 0.5}},
    "aggregate": {"trimmed_mean": {"trim": 0.1}},
}
"""The keys that belong to some splits and aggregations alone, and what they are by default."""


class Federated(Section):
    """``federated``: who has which samples, who takes part, and what the server makes of it.

    The phase's ``train`` and ``optimizer`` say how a client trains in a round.
    """

    clients: Count
    rounds: Count
    fraction: float = Field(1.0, gt=0.0, le=1.0)
    """Of the clients that take part in a round, drawn by the phase's seed."""
    split: Literal["iid", "labels", "dirichlet"] = "iid"
    """How the training samples are divided among the clients."""
    shards: Count | None = None
    """``labels``: pieces of the sorted samples that each client has."""
    alpha: float | None = Field(None, gt=0.0)
    """``dirichlet``: how alike the clients' shares of labels are."""
    imbalance: float = Field(0.0, ge=0.0)
    """Of the clients' sizes: the standard deviation of their logarithms."""
    aggregate: Literal["fedavg", "median", "trimmed_mean"] = "fedavg"
    trim: float | None = Field(None, gt=0.0, lt=0.5)
    """``trimmed_mean``: the share that is left out at either end."""
    server: ServerTable | None = None
    """The optimizer that takes what clients moved by as a gradient; without, their aggregate is taken."""
    proximal: float | None = Field(None, ge=0.0)
    """FedProx: μ of the term that draws a client to the server's parameters."""

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, table: Any) -> Any:
        for key, kinds in OWN.items():
            table = filled(table, key, kinds)
        return table

    @model_validator(mode="after")
    def _sound(self) -> Federated:
        for key, kinds in OWN.items():
            check_own(self, key, kinds)
        if self.split == "labels" and self.imbalance:
            raise Problem(("imbalance",), f" = {self.imbalance!r}: shards are of one size; leave it out")
        taking = taking_part(self.clients, self.fraction)
        if self.trim is not None and not trimmed_away(self.trim, taking):
            raise Problem(
                ("trim",), f" = {self.trim!r} of the {taking} clients of a round leaves none out; give more"
            )
        return self

    def rows(self, labels: Any, seed: int) -> tuple[Any, ...]:
        """Return each client's training samples, of which ``labels`` are those; targets without classes."""
        if self.split == "labels":
            return split_labels(labels, self.clients, shards=self.shards or 2, seed=seed)
        if self.split == "dirichlet":
            return split_dirichlet(
                labels, self.clients, alpha=self.alpha or 0.5, seed=seed, imbalance=self.imbalance
            )
        return split_iid(len(labels), self.clients, seed=seed, imbalance=self.imbalance)

    def course(self, labels: Any, train: Train, seed: int) -> Rounds:
        """Plan the batches of all rounds."""
        size = train.batch_size if isinstance(train.batch_size, int) else None
        local = Local(train.epochs, train.steps, size, train.shuffle, train.drop_last)
        return Rounds(self.rows(labels, seed), local, self.fraction, seed)

    def build_server(self) -> Server:
        """See ``Server``."""
        from polyopt.engine.optimizer import Optimizer

        aggregates = {"fedavg": fedavg, "median": median}
        aggregate = aggregates.get(self.aggregate) or trimming(self.trim or 0.1)
        return Server(None if self.server is None else Optimizer(self.server.build()), aggregate)


def check_training(train: Train) -> None:
    """Refuse what a client can't do: its batches are of one size, and each is an update."""
    if not isinstance(train.batch_size, int | str):
        raise Problem(
            ("batch_size",), ': clients have batches of one size; expected an integer or "full", no schedule'
        )
    if train.accumulate > 1:
        raise Problem(
            ("accumulate",), f" = {train.accumulate}: a client begins anew in each round; leave it out"
        )
