"""Change a model between two updates: prune, thaw layers, hand over to the next client."""

from __future__ import annotations

from typing import Any

from polyopt.backend.convert import convert
from polyopt.backend.protocol import Backend
from polyopt.core import tree
from polyopt.core.errors import InputError, NonFiniteError
from polyopt.core.ops import Array
from polyopt.core.tree import Tree
from polyopt.engine.optimizer import Optimizer
from polyopt.finetuning import transfer
from polyopt.pruning import Masks, masks_of, with_masks
from polyopt.training.phases.prune import movement
from polyopt.training.phases.setup import PhaseSetup, host
from polyopt.training.run_state import Progress


class Changes:
    """As ``work`` says, on a backend; ``accumulate`` batches make an update."""

    def __init__(
        self, work: PhaseSetup, optimizer: Optimizer, backend: Backend, device: str | None, accumulate: int
    ) -> None:
        self.work, self.optimizer, self.accumulate = work, optimizer, accumulate
        self.backend, self.device = backend, device
        self.held: Tree = None
        """What is not trained at the moment."""

    def split(self, params: Tree, step: int) -> Tree:
        """Return what is trained of ``params`` after so many batches."""
        trained, self.held = self.work.parts.split(params, step // self.accumulate)
        return trained

    def begin(self, at: Progress, step: int) -> None:
        """Put the masks on, and prune where that is due before the first batch."""
        self._keep_masks(at)
        if self.work.federation is not None:
            at.server = self.work.federation.begin(self.work.start)
        if not step:
            self._prune(at)

    def after(self, at: Progress) -> None:
        """Do what is due after a batch."""
        if at.step % self.accumulate == 0:
            self._prune(at)
            self._thaw(at)
        self._hand_over(at)

    def masks(self, at: Progress) -> Masks:
        """Those that prune anything, on the host."""
        found = {} if self.work.masks is None else dict(self.work.masks)
        if self.work.masked:
            found |= self._of_frozen(at) | self._hosts(masks_of(at.state))
        return {path: mask for path, mask in found.items() if not mask.all()}

    def _prune(self, at: Progress) -> None:
        """Prune where the schedule says so, by the number of updates made."""
        updates, sparsifier = at.step // self.accumulate, self.work.sparsifier
        if sparsifier is None or not sparsifier.schedule.due(updates):
            return
        before = self._hosts(masks_of(at.state))
        moved = movement(at.state)
        scores = None if moved is None else self._hosts(moved)
        sparsity = sparsifier.schedule(updates)
        new = sparsifier.masks(host(at.params), sparsity, updates, before, scores)
        if self.work.rewind is not None:
            self._anew(at, self.work.rewind)
        self._mask(at, before | new)

    def _thaw(self, at: Progress) -> None:
        """Train what the coming update trains; what was trained before keeps its slots."""
        parts = self.work.parts
        if not parts.changes(at.step // self.accumulate):
            return
        trained = self.split(parts.whole(at.params, self.held), at.step)
        at.put(trained, transfer(at.state, trained, self.optimizer, self.optimizer))
        self._keep_masks(at)

    def _hand_over(self, at: Progress) -> None:
        """Hand over to the next client, from the server's parameters, where one is done with its round."""
        federation = self.work.federation
        if federation is None or at.server is None:
            return
        try:
            done = federation.receive(at.server, at.step, lambda: host(at.params))
        except InputError as e:
            where = (
                f"{self.backend.name}, phase {self.work.name!r}, round {federation.course.epoch(at.place)}"
            )
            raise NonFiniteError(f"{where}: {e}") from None
        if done:
            self._anew(at, at.server.params)
            self._keep_masks(at)

    def _anew(self, at: Progress, params: Tree) -> None:
        """Go on from ``params``, which are on the host, with a fresh state."""
        start = convert(params, self.backend, device=self.device)
        at.put(start, self.optimizer.init(start))

    def _of_frozen(self, at: Progress) -> dict[str, Any]:
        """Return the masks of what is pruned and frozen, which has no slot."""
        sparsifier, own = self.work.sparsifier, masks_of(at.state)
        if sparsifier is None or len(own) == len(tree.named(at.params)):
            return {}
        begun = self.work.start if self.work.rewind is None else self.work.rewind
        return sparsifier.seen(begun, host(at.params), self._hosts(own))

    def _keep_masks(self, at: Progress) -> None:
        """Keep weights at zero that were zero when the phase began."""
        if self.work.masks and self.work.masked:
            self._mask(at, self.work.masks)

    def _mask(self, at: Progress, masks: Masks) -> None:
        trained = tree.named(at.params)
        own = {path: self._beside(x) for path, x in masks.items() if path in trained}
        at.put(*with_masks(self.optimizer, at.params, at.state, own))

    def _beside(self, mask: Any) -> Array:
        return self.backend.from_numpy(mask, device=self.device)

    def _hosts(self, arrays: dict[str, Array]) -> dict[str, Any]:
        return {path: self.backend.to_numpy(x).copy() for path, x in arrays.items()}
