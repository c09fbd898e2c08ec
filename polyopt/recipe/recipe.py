"""The recipe itself."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from polyopt.core.errors import InputError, nearest
from polyopt.engine.batches import IndexSampler
from polyopt.engine.batches.plan import BatchPlan, FixedBatches
from polyopt.models.datasets import Dataset
from polyopt.models.losses import default_loss
from polyopt.models.networks import MLP
from polyopt.recipe import text
from polyopt.recipe.component import Component
from polyopt.recipe.datasets import TASKS
from polyopt.recipe.federated import Federated
from polyopt.recipe.mistakes import explained
from polyopt.recipe.models import MODELS, AnyModel, fitting
from polyopt.recipe.phases import Phase, check_names
from polyopt.recipe.problems import Problem, Problems
from polyopt.recipe.sections import (
    MAX_INTEGER,
    AverageTable,
    ClippingTable,
    Data,
    Loss,
    Model,
    OptimizerTable,
    Part,
    Section,
    Seed,
    _tuple,
)
from polyopt.recipe.train import BatchSizes, Train
from polyopt.recipe.tuning import Tune, assigned, check_space

if TYPE_CHECKING:
    from polyopt.core.rule import Stage
    from polyopt.engine.optimizer import Optimizer

TRAIN_KEYS = ("epochs", "steps", "batch_size")


class Recipe(Section):
    """Hold everything that decides the numbers of a run; immutable, the same as TOML, JSON, dict and object.

    Read one with ``load``, ``parse`` or ``from_dict``: they raise
    ``InputError`` with one line that names, for each mistake, the key, what was found and the remedy.

    Parameters
    ----------
    name
        What the run is called: its folder has that name.
    data
        The samples: see the section's own fields.
    model
        The network, and its initial weights.
    partition
        Patterns of paths, and an optimizer for each.
    clip
        Clipping of the gradients before the optimizer.
    ema
        An average of the weights after it.
    train
        How long, in which batches, and how often it is tested.
    tune
        What ``tune`` looks for.

    Examples
    --------
    >>> recipe = Recipe.from_dict({
    ...     "data": {"name": "digits"},
    ...     "model": {"name": "softmax"},
    ...     "optimizer": {"name": "sgd", "lr": {"schedule": "step", "initial": 0.1, "steps": 100}},
    ...     "train": {"epochs": 3},
    ... })
    >>> recipe.loss.name, recipe.total_steps(100), recipe.replace(steps=5).total_steps(100)
    ('cross_entropy', 12, 5)
    >>> Recipe.parse(recipe.to_toml(), "toml") == recipe
    True
    """

    name: str = "recipe"
    seed: Seed = 0
    """Decides the initial weights and the order of the samples."""
    dtype: Literal["float32", "float64"] = "float32"
    """Of the parameters and the data."""
    data: Data
    model: Model
    loss: Loss
    """By default the one that suits the data."""
    optimizer: OptimizerTable
    """Of all parameters that no partition takes."""
    partition: Annotated[tuple[Part, ...], BeforeValidator(_tuple)] = Field(())
    clip: ClippingTable | None = None
    ema: AverageTable | None = None
    train: Train
    tune: Tune | None = None
    phase: Annotated[tuple[Phase, ...], BeforeValidator(_tuple)] = Field(())
    """What follows the run, in this order."""

    @model_validator(mode="before")
    @classmethod
    def _infer_loss(cls, table: Any) -> Any:
        if not isinstance(table, Mapping):
            return table
        data, loss = table.get("data"), table.get("loss", {})
        name = data.get("name") if isinstance(data, Mapping) else None
        if isinstance(loss, Mapping):
            # Where the data are not known, something is said of them, and nothing of the loss.
            task = TASKS[name] if isinstance(name, str) and name in TASKS else "classification"
            return {**table, "loss": {"name": default_loss(task), **loss}}
        return table

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        # What doesn't fit here makes the checks that build other recipes of this one fail too.
        for checks in ((self._model_and_loss,), (self._sizes, self._phases), (self._search,)):
            if problems := [problem for check in checks for problem in check()]:
                raise Problems(problems)
        return self

    def _model_and_loss(self) -> Iterator[Problem]:
        task = self.task
        able = fitting(self.data.name, task)
        if self.model.name not in able:
            does = task in MODELS[self.model.name].tasks
            why = (
                f"can't read {self.data.name!r}"
                if does
                else f"does no {task}, which {self.data.name!r} is for"
            )
            yield Problem(
                ("model", "name"),
                f" = {self.model.name!r} {why}; expected one of {', '.join(map(repr, able))}",
            )
        if self.loss.name != default_loss(task):
            yield Problem(
                ("loss", "name"),
                f" = {self.loss.name!r} is not for {task}; expected {default_loss(task)!r}, or leave it out",
            )

    def _search(self) -> Iterator[Problem]:
        if self.tune is None:
            return
        if self.tune.metric == "accuracy" and self.task == "regression":
            yield Problem(("tune", "metric"), " = 'accuracy': a regression has none; expected 'loss'")
        yield from check_space(self.tune, self.tuned)

    def _sizes(self) -> Iterator[Problem]:
        if isinstance(self.train.batch_size, BatchSizes):
            try:
                self.build_optimizer()
            except InputError as e:
                yield Problem(("train", "batch_size", "scaling"), f": {e}")

    def _phases(self) -> Iterator[Problem]:
        yield from check_names(self.phase)
        for i, phase in enumerate(self.phase):
            try:
                found = self.of_phase(i + 1)
            except InputError as e:
                yield Problem(("phase", i), f": {e}")
                continue
            if phase.distil is not None and found.task != "classification":
                yield Problem(("phase", i, "distil"), f": {found.data.name!r} has no classes to distil")
            if phase.federated is not None:
                yield from self._federated(i, phase.federated, found)

    def _federated(self, i: int, federated: Federated, found: Recipe) -> Iterator[Problem]:
        """``found`` is the phase as a recipe of its own."""
        if self.ema is not None:
            yield Problem(
                ("phase", i, "federated"),
                ": [ema] averages the weights of one run, and there is one for each client and round; leave "
                "one of the two out",
            )
        if federated.split != "iid" and found.task != "classification":
            yield Problem(
                ("phase", i, "federated", "split"),
                f" = {federated.split!r}: {found.data.name!r} has no classes; expected 'iid'",
            )

    # Reading

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recipe:
        """Read the recipe in a ``.toml`` or ``.json`` file.

        Parameters
        ----------
        path
            The file.

        Returns
        -------
        Recipe
            Checked as a whole.

        Raises
        ------
        InputError
            It names the file, the key, what was found and the remedy.
        """
        table = text.read(path)
        try:
            return cls.from_dict(table)
        except InputError as e:
            raise InputError(f"{path}: {e}") from None

    @classmethod
    def parse(cls, source: str, format: str = "toml") -> Recipe:
        """Read the recipe in a text.

        Parameters
        ----------
        source
            The text.
        format
            ``"toml"`` or ``"json"``.

        Returns
        -------
        Recipe
            Checked as a whole.

        Raises
        ------
        InputError
            It names the key, what was found and the remedy.
        """
        return cls.from_dict(text.parse(source, format))

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Recipe:
        """Read the recipe in a nested dict of plain data.

        Parameters
        ----------
        table
            As TOML or JSON gives it.

        Returns
        -------
        Recipe
            Checked as a whole.

        Raises
        ------
        InputError
            It names the key, what was found and the remedy.
        """
        text.check_plain(table)
        try:
            return cls.model_validate(table)
        except ValidationError as e:
            raise explained(e, cls, table) from None

    # Writing

    def to_dict(self) -> dict[str, Any]:
        """Return a nested dict of plain data, defaults spelled out.

        Returns
        -------
        dict
            What ``from_dict`` takes.
        """
        found: dict[str, Any] = self.model_dump(mode="json", exclude_none=True)
        for key in ("partition", "phase"):
            if not found[key]:
                del found[key]
        for phase in found.get("phase", ()):
            _spare(phase)
        return found

    def to_toml(self) -> str:
        """Write TOML, defaults spelled out.

        Returns
        -------
        str
            What ``parse`` takes.
        """
        return text.to_toml(self.to_dict())

    def to_json(self) -> str:
        """Write JSON, defaults spelled out.

        Returns
        -------
        str
            What ``parse`` takes with ``"json"``.
        """
        import json

        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    def replace(self, **changes: Any) -> Recipe:
        """Return the recipe with some of its values replaced.

        ``None`` keeps what the recipe says. ``steps`` takes the place of ``epochs``, and the other way round.

        Parameters
        ----------
        **changes
            Another ``name``, ``seed``, ``dtype``, ``epochs``, ``steps`` or ``batch_size``.

        Returns
        -------
        Recipe
            A new one.
        """
        table = self.to_dict()
        for key, value in changes.items():
            if value is None:
                continue
            if key in TRAIN_KEYS:
                if key != "batch_size":
                    table["train"] = {k: v for k, v in table["train"].items() if k not in ("epochs", "steps")}
                table["train"][key] = value
            elif key in ("name", "seed", "dtype"):
                table[key] = value
            else:
                raise InputError(f"replace: {nearest(key, ('name', 'seed', 'dtype', *TRAIN_KEYS))}")
        return type(self).from_dict(table)

    def tuned(self, values: Mapping[str, Any]) -> Recipe:
        """Return the recipe without ``[tune]`` and with other values in the places of its own.

        Parameters
        ----------
        values
            ``{dotted key: value}``.

        Returns
        -------
        Recipe
            A new one.

        Examples
        --------
        >>> table = {"data": {"name": "digits"}, "model": {"name": "softmax"}, "train": {"epochs": 3}}
        >>> recipe = Recipe.from_dict(table | {"optimizer": {"name": "sgd", "lr": 0.1}})
        >>> recipe.tuned({"optimizer.lr": 0.5}).to_dict()["optimizer"]
        {'name': 'sgd', 'lr': 0.5}
        """
        table = {key: value for key, value in self.to_dict().items() if key != "tune"}
        for key, value in values.items():
            table = assigned(table, key, list(value) if isinstance(value, tuple) else value)
        return type(self).from_dict(table)

    # What it says

    @property
    def task(self) -> str:
        """``"classification"`` or ``"regression"``: what the data are for."""
        return TASKS[self.data.name]

    def of_phase(self, number: int) -> Recipe:
        """Return the base run (0) or a phase (1, 2, …) as a recipe of its own.

        Changes of the data and a student's model count for the phases after them too. How many neurons a
        phase leaves that shrinks the model is known when it is run.

        Parameters
        ----------
        number
            Which.

        Returns
        -------
        Recipe
            One without phases.

        Examples
        --------
        >>> table = {"data": {"name": "digits"}, "model": {"name": "softmax"}, "train": {"epochs": 3}}
        >>> table |= {"optimizer": {"name": "sgd", "lr": 0.1}}
        >>> turned = {"name": "turned", "data": {"shift": "rotated"}, "train": {"epochs": 1}}
        >>> recipe = Recipe.from_dict(table | {"phase": [turned]})
        >>> recipe.of_phase(1).data.shift, recipe.of_phase(1).train.epochs, recipe.of_phase(0).data.shift
        ('rotated', 1, None)
        """
        table = {key: value for key, value in self.to_dict().items() if key not in ("phase", "tune")}
        if not number:
            return type(self).from_dict(table)
        for phase in self.phase[:number]:
            changes = {} if phase.data is None else phase.data.model_dump(mode="json", exclude_none=True)
            table["data"] = table["data"] | changes
            if phase.distil is not None:
                table["model"] = phase.distil.model.model_dump(mode="json", exclude_none=True)
        phase = self.phase[number - 1]
        seed = (self.seed + number) % (MAX_INTEGER + 1) if phase.seed is None else phase.seed
        table |= {"name": f"{self.name}: {phase.name}", "seed": seed}
        if phase.optimizer is not None:
            table["optimizer"] = phase.optimizer.table()
        # Where nothing is trained the run's batches are no matter: there may be less samples than in one.
        table["train"] = {"epochs": 1, "batch_size": "full"}
        if phase.train is not None:
            table["train"] = phase.train.model_dump(mode="json", exclude_none=True)
        return type(self).from_dict(table)

    def course(self, n_train: int) -> BatchPlan:
        """Plan which of ``n_train`` samples each batch takes.

        Parameters
        ----------
        n_train
            Number of training samples.

        Returns
        -------
        BatchPlan
            It begins by ``start()``.
        """
        size = self.train.batch_size
        feed = IndexSampler(n_train, self.seed, self.train.shuffle)
        if isinstance(size, BatchSizes):
            return size.course(feed)
        if size == "full":
            return FixedBatches(feed, n_train)
        if size > n_train:
            raise InputError(
                f'train.batch_size = {size}; expected at most the {n_train} training samples, or "full"'
            )
        return FixedBatches(feed, size, self.train.drop_last)

    def steps_per_epoch(self, n_train: int) -> int | None:
        """Count the batches in a pass over the samples; in the first, where their size has a schedule.

        ``None`` where the size follows the noise: only the run will know.

        Parameters
        ----------
        n_train
            Number of training samples.

        Returns
        -------
        int or None
            The number of batches.
        """
        return self.course(n_train).steps(1)

    def total_steps(self, n_train: int) -> int | None:
        """Count the batches in the whole run.

        ``None`` where it ends by epochs, and the size follows the noise.

        Parameters
        ----------
        n_train
            Number of training samples.

        Returns
        -------
        int or None
            The number of batches.
        """
        if self.train.steps is not None:
            return self.train.steps
        assert self.train.epochs is not None
        return self.course(n_train).steps(self.train.epochs)

    def build_model(self, dataset: Dataset) -> AnyModel:
        """Make the model, with as many inputs and outputs as ``dataset`` has.

        Parameters
        ----------
        dataset
            The samples.

        Returns
        -------
        model
            One of ``polyopt.models.networks``, or an encoder.
        """
        section = self.model
        kind = MODELS[section.name]
        starts = {"weight": _start(section.init), "bias": _start(section.bias_init)}
        if issubclass(kind, MLP):
            starts |= {"hidden": section.hidden, "activation": section.activation}
        return kind(dataset.features, dataset.outputs, **starts)

    def build_optimizer(
        self, within: Callable[[Stage], Stage] | None = None, around: Callable[[Stage], Stage] | None = None
    ) -> Optimizer:
        """Put together clipping, the optimizer or a partition of them, and the average of the weights.

        Parameters
        ----------
        within
            Makes another one of each of the optimizers.
        around
            Makes another one of all but the average.

        Returns
        -------
        Optimizer
            With the recipe's ``accumulate`` and ``nonfinite``.
        """
        from polyopt.core.rule import Pattern, chain, partition
        from polyopt.engine.optimizer import Optimizer

        def built(component: Component) -> Stage:
            rule: Stage = component.build()
            sizes = self.train.batch_size
            return sizes.paced(rule) if isinstance(sizes, BatchSizes) else rule

        stage = built(self.optimizer)
        if self.partition:
            members: list[tuple[Pattern, Stage | None]] = [
                (part.pattern, None if part.optimizer is None else built(part.optimizer))
                for part in self.partition
            ]
            stage = partition([*members, (".*", stage)])
        stage = stage if within is None else within(stage)
        clipped = [self.clip.build(), stage] if self.clip else [stage]
        if around is not None:
            clipped = [around(chain(*clipped) if self.clip else stage)]
        stages = [*clipped, self.ema.build()] if self.ema else clipped
        return Optimizer(
            chain(*stages) if len(stages) > 1 else stages[0],
            accumulate=self.train.accumulate,
            reduce=self.train.reduce,
            nonfinite=self.train.nonfinite,
        )


def _start(component: Component) -> Any:
    """Make an initializer; models have weights of shape (inputs, outputs), also under torch's convention."""
    start = component.build()
    fans = any(f.name == "layout" for f in dataclasses.fields(start))
    chosen = "layout" in dict(component.options)
    return dataclasses.replace(start, layout="in_out") if fans and not chosen else start


def _spare(phase: dict[str, Any]) -> None:
    """Leave out the empty lists and tables of a phase."""
    for key in ("freeze", "reinit", "rates", "weight_decay"):
        if "finetune" in phase and not phase["finetune"][key]:
            del phase["finetune"][key]
    unfreeze = phase.get("finetune", {}).get("unfreeze", {})
    if not unfreeze.get("layers", True):
        del unfreeze["layers"]
