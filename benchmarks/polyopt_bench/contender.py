"""Who takes part in a measurement, and where it is written down how to make one."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, TypeAlias

Step: TypeAlias = Callable[[], Any]
"""One whole step, over when the arrays are there (not merely on their way)."""
Maker: TypeAlias = Callable[[], Step]
"""Makes the arrays and the optimizer, compiles nothing yet that the first step would compile."""

PEER_OF = {"numpy": "NumPy expressions", "torch": "torch.optim fused", "jax": "optax", "tensorflow": "Keras"}
"""The peer that a backend is held against in the first place."""


@dataclass(frozen=True)
class Contender:
    """One side: polyopt in one of its ways, or a peer.

    ``extra`` ones are left out unless everything is asked for.
    """

    name: str
    make: Maker
    ours: bool = False
    extra: bool = False


class Side(Protocol):
    """A module ``on_BACKEND``: it imports its framework when one of these is called."""

    def load(self, ours: bool, keras: bool) -> None:
        """Import the framework, with polyopt's backend or the peer, and Keras if asked to."""

    def update(self, case: Any) -> list[Contender]:
        """Return those that make the update alone, ``polyopt`` first and then ``PEER_OF``."""

    def train(self, case: Any) -> list[Contender]:
        """Return those that make the whole training step."""


def side(backend: str) -> Side:
    """Import the module of a backend."""
    found: Any = import_module(f"polyopt_bench.on_{backend}")
    return found  # type: ignore[no-any-return]


def chosen(contenders: Collection[Contender], *, everything: bool, first: bool = False) -> list[Contender]:
    """Those to measure: with ``first`` only polyopt's standard way and its first peer."""
    if first:
        ours = next(c for c in contenders if c.ours)
        peer = next((c for c in contenders if not c.ours and not c.extra), None)
        return [ours] if peer is None else [ours, peer]
    return [c for c in contenders if everything or not c.extra]
