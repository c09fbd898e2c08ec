"""Compute the teachers' outputs on every sample, and the student's loss against them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from polyopt.backend import registry
from polyopt.backend.convert import convert
from polyopt.backend.protocol import Backend
from polyopt.core.errors import InputError, nearest
from polyopt.core.ops import Array, Ops
from polyopt.core.tree import Tree
from polyopt.distillation import Ensemble
from polyopt.models.datasets import Dataset
from polyopt.models.networks import OUTPUT
from polyopt.recipe import Recipe
from polyopt.recipe.distillation import Distil
from polyopt.training.objective import as_read
from polyopt.training.phases.setup import ModelState
from polyopt.training.phases.trainable import Trainable, TrainableAll, TrainableBeside

TeacherOutputs: TypeAlias = list[dict[str, Array]]
"""Of each teacher what is asked for, by layers, the logits too: arrays whose first axis is the samples."""
Shapes: TypeAlias = dict[str, tuple[int, ...]]
"""What layers give of one sample."""

REGRESSOR = "regressor"
"""Beside the student's parameters: what brings its features to the width of a teacher's."""
RELATIONS = ("distance", "angle")
BATCH = 256
"""Samples that a teacher looks at at a time."""


@dataclass(frozen=True)
class LayerPair:
    """A loss between a layer of the student and one of a teacher."""

    key: str
    loss: Callable[..., Array]
    weight: float
    student: str
    number: int
    """Which teacher."""
    teacher: str
    regressor: int | None = None

    def __call__(
        self, xp: Ops, mine: Mapping[str, Array], told: TeacherOutputs, regressors: Any, weights: Array | None
    ) -> Array:
        """Return ``weight`` times the loss, from what the student gives and what the teachers have told."""
        student, teacher = mine[self.student], told[self.number][self.teacher]
        matrix = () if self.regressor is None else (regressors[self.regressor]["weight"],)
        return self.weight * self.loss(xp, student, teacher, *matrix, name=self.student, weights=weights)


@dataclass(frozen=True)
class Teaching:
    """Teachers, the loss of the logits, and what is added to it."""

    teachers: tuple[ModelState, ...]
    loss: Callable[..., Array]
    links: tuple[LayerPair, ...] = ()
    regressors: tuple[Any, ...] = ()
    """Matrices of the links that need one, on the host, as they are drawn."""

    @property
    def parts(self) -> Trainable:
        """Return what is trained: the student, and the regressors with it."""
        if not self.regressors:
            return TrainableAll()
        return TrainableBeside(REGRESSOR, [{"weight": matrix} for matrix in self.regressors])

    def told(self, samples: Array, backend: Backend, device: str | None) -> TeacherOutputs:
        """Return what the teachers say of all ``samples``, computed once, where the samples are."""
        found = []
        for number, teacher in enumerate(self.teachers):
            layers = {link.teacher for link in self.links if link.number == number}
            heard = _heard(teacher, sorted(layers | {OUTPUT}), samples, backend, device)
            found.append({name: backend.from_numpy(x, device=device) for name, x in heard.items()})
        return found

    def __call__(
        self,
        xp: Ops,
        model: Any,
        params: Tree,
        x: Array,
        y: Array,
        told: TeacherOutputs,
        weights: Array | None,
    ) -> Array:
        """Return the loss of a batch: a 0-d array, differentiable by ``params``, as ``parts`` has them.

        ``y`` are probabilities (n, classes), ``weights`` of shape (n,) those of the samples.
        """
        mine = model.features(xp, params, x) if self.links else {OUTPUT: model.apply(xp, params, x)}
        logits = [each[OUTPUT] for each in told]
        heard = logits if isinstance(self.loss, Ensemble) else logits[0]
        total = self.loss(xp, mine[OUTPUT], heard, y, weights=weights)
        for link in self.links:
            # A sample that is alone in its batch has no relations.
            if link.key not in RELATIONS or int(x.shape[0]) > 1:
                total = total + link(xp, mine, told, params.get(REGRESSOR), weights)
        return total


def teaching(
    section: Distil,
    teachers: Mapping[str, ModelState],
    model: Any,
    params: Tree,
    data: Dataset,
    recipe: Recipe,
) -> Teaching:
    """Return what a ``distil`` section says, for a student with its initial parameters on the host.

    Raises ``InputError``, naming the key, for a teacher of other data, and for layers
    that there aren't or that don't fit.
    """
    for name, teacher in teachers.items():
        _check_data(name, teacher, data)
    if not section.terms:
        return Teaching(tuple(teachers.values()), section.build())
    for key in RELATIONS:
        if key in section.terms:
            _check_batches(key, data, recipe)
    few = as_read(data.x_train[:2], recipe.dtype)
    mine = _shapes(model.features, params, few)
    its = {name: _shapes(left.features, left.weights, few) for name, left in teachers.items()}
    links: list[LayerPair] = []
    regressors: list[Any] = []
    for link, shape in _links(section, mine, its):
        if shape is not None:
            link = replace(link, regressor=len(regressors))
            name = f"{REGRESSOR}.{link.regressor}.weight"
            regressors.append(model.weight.sample(shape, recipe.seed, name, recipe.dtype))
        links.append(link)
    return Teaching(tuple(teachers.values()), section.build(), tuple(links), tuple(regressors))


def _links(
    section: Distil, mine: Shapes, its: Mapping[str, Shapes]
) -> Iterator[tuple[LayerPair, tuple[int, int] | None]]:
    """Yield each link, with the shape of the regressor that it needs, if any."""
    for key, term in section.terms.items():
        loss = term.build()
        for student, layer in zip(term.student, term.teacher, strict=True):
            for number, (name, shapes) in enumerate(its.items()):
                _check_layer(f"distil.{key}.student", student, "the student", mine)
                _check_layer(f"distil.{key}.teacher", layer, f"teacher {name!r}", shapes)
                a, b = mine[student], shapes[layer]
                _check_fit(key, (student, a), (layer, b))
                weight = term.weight * section.shares[number]
                shape = (a[-1], b[-1]) if key == "hint" and a[-1] != b[-1] else None
                yield LayerPair(key, loss, weight, student, number, layer), shape


# Checks


def _check_data(name: str, teacher: ModelState, data: Dataset) -> None:
    for what, has, needs in (
        ("classes", teacher.model.outputs, data.outputs),
        ("inputs", teacher.model.inputs, data.features),
    ):
        if has != needs:
            raise InputError(
                f"distil.teacher = {name!r} has {has} {what}; the student's data have {needs}: expected "
                "a phase on the same data"
            )


def _check_batches(key: str, data: Dataset, recipe: Recipe) -> None:
    """Refuse batches of which no sample sees another, or only some."""
    if recipe.train.batch_size == 1:
        raise InputError(f"distil.{key}: one sample has no relations; expected train.batch_size > 1")
    if recipe.course(len(data.x_train)).micro is not None:
        raise InputError(
            f"distil.{key}: samples of different micro-batches have no relations; leave out "
            "train.batch_size.micro"
        )


def _check_layer(key: str, layer: str, who: str, shapes: Shapes) -> None:
    if layer not in shapes:
        raise InputError(f"{key} = {layer!r}: {who} has no such layer; {nearest(layer, shapes)}")


def _check_fit(key: str, mine: tuple[str, tuple[int, ...]], its: tuple[str, tuple[int, ...]]) -> None:
    """Refuse layers that the term ``key`` can't compare."""
    for whose, (name, shape) in (("student", mine), ("teacher", its)):
        if key == "attention" and len(shape) < 2:
            raise InputError(
                f"distil.attention.{whose} = {name!r} gives {_shown(shape)}: a vector has no places to "
                "attend to; expected a layer that gives (n, places, channels), or hint, distance or angle"
            )
        if key in RELATIONS and len(shape) != 1:
            raise InputError(
                f"distil.{key}.{whose} = {name!r} gives {_shown(shape)}; expected a layer that gives one "
                "vector a sample, (n, width)"
            )
    # Channels, or the width of a vector, may differ.
    if mine[1][:-1] != its[1][:-1]:
        raise InputError(
            f"distil.{key}: the student's {mine[0]!r} gives {_shown(mine[1])}, the teacher's {its[0]!r} "
            f"{_shown(its[1])}; expected the same but for the last axis"
        )


def _shown(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, ('n', *shape)))})"


# What layers give


def _shapes(features: Callable[..., dict[str, Array]], params: Tree, samples: Any) -> Shapes:
    found = features(registry.by_name("numpy").ops, params, samples)
    return {name: tuple(x.shape[1:]) for name, x in found.items()}


def _heard(
    teacher: ModelState, layers: list[str], samples: Array, backend: Backend, device: str | None
) -> dict[str, Any]:
    """Return what ``layers`` of the teacher give of all samples: host arrays."""
    params = convert(teacher.weights, backend, device=device)
    count, found = int(samples.shape[0]), {}
    for start in range(0, count, BATCH):
        x = samples[start : start + BATCH]
        if layers == [OUTPUT]:
            given = {OUTPUT: teacher.apply(backend.ops, params, x)}
        else:
            given = teacher.features(backend.ops, params, x)
        for name in layers:
            part = backend.to_numpy(given[name])
            if name not in found:
                found[name] = np.empty((count, *part.shape[1:]), part.dtype)
            found[name][start : start + BATCH] = part
            _check_finite(name, part, start)
    return found


def _check_finite(name: str, part: Any, start: int) -> None:
    bad = np.flatnonzero(~np.isfinite(part.reshape(len(part), -1)).all(axis=1))
    if bad.size:
        sample = start + int(bad[0])
        raise InputError(f"distil.teacher: {name!r} of sample {sample} holds inf or NaN; expected numbers")
