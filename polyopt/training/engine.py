"""One run in memory: the data on the device, the compiled functions, and a step at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from polyopt import losses, random, tree
from polyopt.averaging import averaged
from polyopt.backend import Backend
from polyopt.conversion import convert
from polyopt.data import Dataset
from polyopt.errors import InputError, NonFiniteError, nearest
from polyopt.ops import Array, Ops
from polyopt.recipe import Recipe
from polyopt.rule import Stage, matches, rules_of
from polyopt.train_step import Carry, TrainStep
from polyopt.training.events import Evaluation, History

FETCH_EVERY = 32
"""Steps between two fetches of losses: fetching each one would wait for the device at every step."""


def check_masks(rule: Stage, paths: Iterable[str]) -> None:
    """Refuse a mask that no parameter's path matches: nothing would decay, and nothing would say so."""
    known = list(paths)
    for _, part in rules_of(rule):
        mask = getattr(part, "mask", None)
        if isinstance(mask, str) and not any(matches(mask, path) for path in known):
            raise InputError(f"mask: pattern {mask!r} matches no parameter; {nearest('', known)}")


@dataclass
class Progress:
    """What decides how a run goes on, besides its recipe: all of it is in a checkpoint."""

    train: TrainStep
    carry: Carry
    step: int = 0
    loss_sum: float = 0.0
    """Of the losses since the last evaluation, and their number: what a plateau schedule is told."""
    loss_count: int = 0
    history: History = field(default_factory=History)
    _unloaded: tuple[Any, dict[str, Any]] | None = None

    @property
    def params(self) -> Any:
        """By path, as of now: the next step gives them up."""
        return self._by_path()[0]

    @property
    def state(self) -> dict[str, Any]:
        """The optimizer's, by path, as of now: the next step gives its arrays up."""
        return self._by_path()[1]

    def advance(self, *args: Any) -> Array:
        """One step on ``args``; gives the loss before it."""
        self._unloaded = None
        self.carry, loss = self.train(self.carry, *args)
        self.step += 1
        return loss

    def observe(self, metric: float) -> None:
        """Tell the schedules that wait for one."""
        self._unloaded = None
        self.carry = self.train.observe(self.carry, metric)

    def _by_path(self) -> tuple[Any, dict[str, Any]]:
        if self._unloaded is None:
            self._unloaded = self.train.unload(self.carry, copy=False)
        return self._unloaded


class Engine:
    """A recipe on a backend. ``record`` is ``"step"`` to keep every loss, ``"evaluation"`` to keep none."""

    def __init__(
        self, recipe: Recipe, dataset: Dataset, backend: Backend, device: str | None, record: str
    ) -> None:
        self.recipe, self.backend, self.device, self.record = recipe, backend, device, record
        self.samples = len(dataset.x_train)
        self.tests = len(dataset.x_test)
        self.classes = dataset.classes
        self.batch = recipe.batch(self.samples)
        self.per_epoch = recipe.steps_per_epoch(self.samples)
        self.steps = recipe.total_steps(self.samples)
        self.epochs = math.ceil(self.steps / self.per_epoch)
        self.model = recipe.build_model(dataset)
        self.optimizer = recipe.build_optimizer()
        self._train = tuple(self._array(x) for x in (dataset.x_train, self._target(dataset.y_train)))
        self._test = tuple(self._array(x) for x in (dataset.x_test, self._target(dataset.y_test)))
        self._step = TrainStep(self._batch_loss, self.optimizer)
        self._measure = backend.compile(self._metrics)
        self._order: tuple[int, Any] = (-1, None)
        self._waiting: list[Array] = []
        self.last_loss: float | None = None

    @property
    def device_name(self) -> str:
        """Where it runs."""
        return self.backend.device_name(self._train[0])

    def start(self) -> Progress:
        """The beginning: initial weights from the seed, the same bits on every backend."""
        host = self.model.init(self.recipe.seed, self.recipe.dtype)
        check_masks(self.optimizer.rule, tree.named(host))
        params = convert(host, self.backend, device=self.device)
        return Progress(self._step, self._step.init(params))

    def resume(self, params: Any, state: dict[str, Any], **rest: Any) -> Progress:
        """As a checkpoint has it."""
        return Progress(self._step, self._step.load(params, state), **rest)

    def advance(self, at: Progress) -> None:
        """One batch: its loss and gradients, and the update."""
        try:
            loss = at.advance(*self._train, self._indices(at.step))
        except NonFiniteError as e:
            raise NonFiniteError(f"{self.backend.name}, step {at.step + 1}: {e}") from None
        self._waiting.append(loss)
        if len(self._waiting) >= FETCH_EVERY:
            self.fetch(at)

    def fetch(self, at: Progress) -> None:
        """Bring the losses that wait on the device to the host."""
        for loss in self._waiting:
            value = float(self.backend.to_numpy(loss))
            at.loss_sum, at.loss_count = at.loss_sum + value, at.loss_count + 1
            self.last_loss = value
            if self.record == "step":
                at.history.loss.append(value)
        self._waiting.clear()

    def due(self, step: int) -> bool:
        """Whether the recipe asks for a test after ``step`` batches, however long the run is."""
        return step % (self.per_epoch * self.recipe.train.evaluate_every) == 0

    def observe(self, at: Progress) -> None:
        """Tell schedules that wait for a metric the mean training loss since the last time."""
        self.fetch(at)
        if at.loss_count:
            at.observe(at.loss_sum / at.loss_count)
        at.loss_sum, at.loss_count = 0.0, 0

    def evaluate(self, at: Progress) -> Evaluation:
        """Loss and accuracy on the test samples, of the averaged weights where there are any."""
        params = self.average(at) or at.params
        values = [float(self.backend.to_numpy(x)) for x in self._measure(params, *self._test)]
        # In whole samples: a float32 mean is not the fraction that it stands for.
        right = round(values[1] * self.tests) / self.tests if self.classes else None
        found = Evaluation(at.step, self.epoch(at.step), values[0], right)
        at.history.evaluations.append(found)
        return found

    def average(self, at: Progress) -> Any:
        """The averaged weights in a tree like the parameters, ``None`` without ``[ema]``."""
        if self.recipe.ema is None:
            return None
        return averaged(at.state, at.params)

    def epoch(self, step: int) -> int:
        """Passes over the data that ``step`` batches have begun."""
        return math.ceil(step / self.per_epoch)

    # Functions of arrays

    def _batch_loss(self, xp: Ops, params: Any, x: Array, y: Array, indices: Array) -> Array:
        # Rows are taken on the device: a batch costs the transfer of its indices alone.
        output = self.model.apply(xp, params, xp.take(x, indices, axis=0))
        return self._loss(xp, output, xp.take(y, indices, axis=0), self.recipe.loss.label_smoothing)

    def _metrics(self, xp: Ops, params: Any, x: Array, y: Array) -> list[Array]:
        output = self.model.apply(xp, params, x)
        loss = self._loss(xp, output, y, 0.0)
        return [loss, losses.accuracy(xp, output, y)] if self.classes else [loss]

    def _loss(self, xp: Ops, output: Array, target: Array, label_smoothing: float) -> Array:
        if self.classes:
            return losses.cross_entropy(xp, output, target, label_smoothing=label_smoothing)
        return losses.mean_squared_error(xp, output, target)

    # Arrays

    def _indices(self, step: int) -> Array:
        epoch, i = divmod(step, self.per_epoch)
        if self._order[0] != epoch:
            n, seed = self.samples, self.recipe.seed
            shuffle = self.recipe.train.shuffle
            order = random.permutation(n, seed, "shuffle", epoch) if shuffle else np.arange(n)
            # int32: a backend may have no int64 (JAX by default).
            self._order = (epoch, order.astype(np.int32))
        rows = self._order[1][i * self.batch : (i + 1) * self.batch]
        return self.backend.from_numpy(rows, device=self.device)

    def _target(self, y: Any) -> Any:
        """Labels as rows with a one, once and for all."""
        return np.eye(self.classes)[y] if self.classes else y

    def _array(self, x: Any) -> Array:
        return self.backend.from_numpy(x.astype(self.recipe.dtype), device=self.device)
