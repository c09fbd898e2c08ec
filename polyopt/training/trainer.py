"""One run in memory: the data on the device, the compiled functions, and a step at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from polyopt.backend.convert import convert
from polyopt.backend.protocol import Backend
from polyopt.core import tree
from polyopt.core.errors import NonFiniteError
from polyopt.core.ops import Array, Ops
from polyopt.core.tree import Tree
from polyopt.engine.batches import Accumulated
from polyopt.engine.batches.plan import BatchPlan, Cursor, FixedBatches, NoiseScaledBatches
from polyopt.engine.train_step import TrainStep
from polyopt.models.datasets import Dataset
from polyopt.optim.averaging import averaged
from polyopt.recipe import Recipe
from polyopt.training.events import Evaluation
from polyopt.training.objective import Objective, as_read, targets
from polyopt.training.phases.between_updates import Changes
from polyopt.training.phases.distil import TeacherOutputs
from polyopt.training.phases.federated import KEPT
from polyopt.training.phases.setup import ModelState, PhaseSetup, host
from polyopt.training.run_state import Progress

FETCH_EVERY = 32
"""Steps between two fetches of losses: fetching each one would wait for the device at every step."""


class Trainer:
    """Train by a recipe on a backend.

    ``work`` is what a phase does otherwise than a run from scratch.

    ``record`` is ``"step"`` to keep every loss, ``"evaluation"`` to keep none.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        backend: Backend,
        device: str | None,
        record: str,
        work: PhaseSetup | None = None,
    ) -> None:
        self.recipe, self.backend, self.device, self.record = recipe, backend, device, record
        model = recipe.build_model(dataset) if work is None else work.model
        if work is None:
            initial = model.init(recipe.seed, recipe.dtype)
            work = PhaseSetup(model, initial, initial)
        self.work, self.model = work, model
        self.samples = len(dataset.x_train)
        self.tests = len(dataset.x_test)
        self.classes = dataset.classes
        self.federation = work.federation
        self.course: BatchPlan = recipe.course(self.samples)
        self.steps = 0 if self.work.idle else recipe.total_steps(self.samples)
        """Batches of the whole run, ``None`` where only the run will know; so too ``epochs``."""
        if self.federation is not None:
            self.course, self.steps = self.federation.course, self.federation.steps
        self.epochs = self._epochs()
        self.objective = Objective(model, dataset.classes, recipe.loss.label_smoothing)
        self.optimizer = work.optimizer(recipe)
        self._changes = Changes(work, self.optimizer, backend, device, recipe.train.accumulate)
        self._train, self._test = (
            (self._array(x), self._array(targets(y, dataset.classes)))
            for x, y in ((dataset.x_train, dataset.y_train), (dataset.x_test, dataset.y_test))
        )
        taught = work.teaching
        told = () if taught is None else (taught.told(self._train[0], backend, device),)
        self._data = (*self._train, *told)
        loss = self._batch_loss if taught is None else self._distilled
        if self.course.micro:
            self._step = self._by_parts(loss)
        else:
            whole = work.parts.loss(loss)
            self._step = TrainStep(whole, self.optimizer, self._weighted(whole))
        self._share = 1.0
        self._measure = backend.compile(self._metrics)
        self._waiting: list[Array] = []
        self.last_loss: float | None = None

    @property
    def device_name(self) -> str:
        """Return where it runs."""
        return self.backend.device_name(self._train[0])

    def start(self, step: int = 0) -> Progress:
        """Begin: weights from the seed or of the phase before, the same bits on every backend.

        With a ``step`` what is trained after so many batches, of which only names and shapes count.
        """
        params = convert(self.work.start, self.backend, device=self.device)
        trained = self._changes.split(params, step)
        at = Progress(self._step, self._step.init(trained), self.course.start())
        self._changes.begin(at, step)
        return at

    def kept(self, at: Progress) -> dict[str, Any]:
        """Return the state that a checkpoint holds."""
        return at.state if at.server is None else at.state | {KEPT: at.server.plain()}

    def resume(self, params: Any, state: dict[str, Any], server: Any, place: Cursor, **rest: Any) -> Progress:
        """Go on as a checkpoint has it, the server's part on the host.

        To be called after ``start``, which brought what is held.
        """
        own = {key: value for key, value in state.items() if key != KEPT}
        at = Progress(self._step, self._step.load(params, own), place, **rest)
        if self.federation is not None:
            at.server = self.federation.resumed(self.work.start, server)
        return at

    def way(self, at: Progress) -> tuple[int, int]:
        """Return how far it is, and how far it goes.

        In steps, or in samples where only the run knows the steps.
        """
        if self.steps is not None:
            return at.step, self.steps
        assert self.epochs is not None
        return at.place.position, self.epochs * self.samples

    @property
    def total_samples(self) -> int | None:
        """Samples of the whole run, where its epochs say so."""
        return None if self.epochs is None or self.federation is not None else self.epochs * self.samples

    def ended(self, at: Progress) -> bool:
        """Return True if the recipe's steps or epochs are done."""
        done, whole = self.way(at)
        return done >= whole

    def advance(self, at: Progress) -> None:
        """Take one batch: its loss and gradients, and the update."""
        held = () if self._changes.held is None else (self._changes.held,)
        rows = self.course.rows(at.place)
        parts = [
            (*held, tuple(self.backend.from_numpy(x, device=self.device) for x in part), *self._data)
            for part in self.course.parts(rows)
        ]
        norms = None
        self._share = self._share_of(at, len(rows))
        try:
            if self.course.micro:
                at.observe(len(rows), "size")
                outcome = at.advance(parts, len(rows))
                loss, norms = outcome.loss, outcome.norms
            else:
                loss = at.advance(*parts[0])
        except NonFiniteError as e:
            where = f"{self.backend.name}, " + (f"phase {self.work.name!r}, " if self.work.name else "")
            where += self.federation.where(at.step) if self.federation else ""
            raise NonFiniteError(f"{where}step {at.step + 1}: {e}") from None
        at.place = self.course.after(at.place, len(rows), norms)
        self._changes.after(at)
        self._waiting.append(loss)
        if self.record == "step":
            at.history.size.append(len(rows))
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

    def due(self, at: Progress) -> bool:
        """Return True if the recipe asks for a test now, at the end of a pass, however long the run is."""
        epochs = self.course.ended(at.place)
        return epochs is not None and epochs % self.recipe.train.evaluate_every == 0

    def observe(self, at: Progress) -> None:
        """Tell schedules that wait for a metric the mean training loss since the last time."""
        self.fetch(at)
        if at.loss_count:
            mean = at.loss_sum / at.loss_count
            if self.federation is not None and at.server is not None:
                self.federation.observe(at.server, mean)
            else:
                at.observe(mean)
        at.loss_sum, at.loss_count = 0.0, 0

    def evaluate(self, at: Progress) -> Evaluation:
        """Loss and accuracy on the test samples, of the averaged weights where there are any."""
        found = Evaluation(at.step, self.epoch(at), *self._tested(self._whole(at), self._measure))
        at.history.evaluations.append(found)
        return found

    def test(self, left: ModelState) -> tuple[float, float | None]:
        """Loss and accuracy of a model on the host, as it is stored, on the test samples."""
        measure = self._measure
        if left.grids or self.work.view is not None:

            def stored(xp: Ops, params: Tree, x: Array, y: Array) -> list[Array]:
                return self.objective.metrics(xp, left.apply(xp, params, x), y)

            measure = self.backend.compile(stored)
        return self._tested(convert(left.weights, self.backend, device=self.device), measure)

    def left(self, at: Progress) -> ModelState:
        """Return the model as it is tested, on the host, and its masks."""
        masks = self._changes.masks(at)
        return ModelState(self.model, host(self._whole(at)), self.work.initial, masks, self.work.grids)

    def params(self, at: Progress) -> Tree:
        """Return what is trained, on the host; in a federated phase what the server has."""
        return host(at.params) if at.server is None else at.server.params

    def average(self, at: Progress) -> Any:
        """Return the averaged weights in a tree like the parameters, ``None`` without ``[ema]``."""
        if self.recipe.ema is None:
            return None
        return averaged(at.state, at.params)

    def epoch(self, at: Progress) -> int:
        """Count the passes over the data that were begun."""
        return self.course.epoch(at.place)

    def _whole(self, at: Progress) -> Tree:
        """Return the weights that are tested: averages if there are any, with what is held."""
        if at.server is not None:
            return convert(at.server.params, self.backend, device=self.device)
        return self.work.parts.whole(self.average(at) or at.params, self._changes.held)

    def _tested(self, params: Tree, measure: Callable[..., list[Array]]) -> tuple[float, float | None]:
        values = [float(self.backend.to_numpy(x)) for x in measure(params, *self._test)]
        # In whole samples: a float32 mean is not the fraction that it stands for.
        return values[0], round(values[1] * self.tests) / self.tests if self.classes else None

    def _epochs(self) -> int | None:
        if self.work.idle:
            return 0
        if self.federation is not None:
            return self.federation.rounds
        train = self.recipe.train
        return self.course.epochs(train.steps) if train.steps is not None else train.epochs

    def _share_of(self, at: Progress, count: int) -> float:
        """Return what the mean over a batch of ``count`` samples weighs among those of its update.

        A window of batches is averaged with equal weights; so that every sample weighs the same, also in a
        last window that is not full, each batch is scaled by its size over the mean size.
        """
        k = self.recipe.train.accumulate
        if k == 1 or not isinstance(self.course, FixedBatches) or self.steps is None:
            return 1.0
        first = at.step - at.step % k
        return self.course.share(count, first, max(min(first + k, self.steps), at.step + 1))

    # Functions of arrays

    def _weighted(self, loss: Callable[..., Array]) -> Callable[..., tuple[Array, Any]] | None:
        """Loss and gradients scaled by the batch's share; ``None`` where all batches have the same."""
        if self.recipe.train.accumulate == 1:
            return None
        plain = self.backend.value_and_grad(loss, compiled=self.optimizer.compiled)

        def gradient(params: Any, *args: Any) -> tuple[Array, Any]:
            value, found = plain(params, *args)
            share = self._share
            return value, found if share == 1.0 else tree.map_leaves(lambda g: g * share, found)

        return gradient

    def _by_parts(self, loss: Callable[..., Array]) -> TrainStep:
        """Make a step over micro-batches of ``loss``, which is a mean."""
        micro = self.course.micro
        assert micro is not None

        def part(xp: Ops, params: Any, rows: tuple[Array, Array], *data: Array) -> Array:
            value = loss(xp, params, rows, *data)
            return value * (xp.astype(xp.sum(rows[1]), value.dtype) / float(micro))

        whole = self.work.parts.loss(part)
        measure = isinstance(self.course, NoiseScaledBatches)
        gradient = Accumulated(whole, micro, measure=measure, compiled=self.optimizer.compiled)
        return TrainStep(whole, self.optimizer, gradient)

    def _batch_loss(self, xp: Ops, params: Any, rows: tuple[Array, ...], x: Array, y: Array) -> Array:
        # Rows are taken on the device: a batch costs the transfer of its indices alone.
        indices, *counted = rows
        output = self.work.output(xp, params, xp.take(x, indices, axis=0))
        return self.objective.of_output(xp, output, xp.take(y, indices, axis=0), *counted)

    def _distilled(
        self, xp: Ops, params: Any, rows: tuple[Array, ...], x: Array, y: Array, told: TeacherOutputs
    ) -> Array:
        assert self.work.teaching is not None
        indices, *counted = rows
        x, y, told = tree.map_leaves(lambda z: xp.take(z, indices, axis=0), (x, y, told))
        y = self.objective.smoothed(y)
        return self.work.teaching(xp, self.model, params, x, y, told, counted[0] if counted else None)

    def _metrics(self, xp: Ops, params: Any, x: Array, y: Array) -> list[Array]:
        return self.objective.metrics(xp, self.work.output(xp, params, x), y)

    # Arrays

    def _array(self, x: Any) -> Array:
        return self.backend.from_numpy(as_read(x, self.recipe.dtype), device=self.device)
