"""From compositions to pipelines, segments and programs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from polyopt import SGD, Adam, ClipByGlobalNorm, chain, partition
from polyopt.core.errors import InputError
from polyopt.core.ops import Array
from polyopt.core.rule import Elementwise, Leafwise, Rule, Slot, Slots, hyper, rules_of
from polyopt.engine.plan import plan, program


@dataclass(frozen=True)
class Halve(Elementwise):
    """An elementwise rule with a slot."""

    factor: Any = hyper(0.5, low=0.0, high=1.0)

    def slots(self) -> tuple[Slot, ...]:
        return (Slot("memory"),)

    def leaf(self, xp: Any, g: Array, p: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
        return g * c.factor, {"memory": slots["memory"] + g}


@dataclass(frozen=True)
class Centre(Leafwise):
    """A leafwise rule."""

    def leaf(self, xp: Any, g: Array, p: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
        return g - xp.mean(g), {}


def kinds(stage: Any, path: str = "w") -> list[list[str]]:
    (pipeline,) = plan(stage, [path]).pipelines
    assert pipeline is not None
    return [[type(part.rule).__name__ for part in segment.parts] for segment in pipeline]


def test_consecutive_elementwise_rules_are_one_segment() -> None:
    assert kinds(chain(Halve(), chain(Halve(), Adam()))) == [["Halve", "Halve", "Adam"]]


def test_a_global_starts_a_segment_and_a_leafwise_stands_alone() -> None:
    stage = chain(Halve(), ClipByGlobalNorm(1.0), Adam(), Centre(), SGD(lr=1.0))
    assert kinds(stage) == [["Halve"], ["ClipByGlobalNorm", "Adam"], ["Centre"], ["SGD"]]


def test_slots_that_two_rules_share_are_qualified_by_position() -> None:
    (pipeline,) = plan(chain(Halve(), Halve(), Adam()), ["w"]).pipelines
    assert pipeline is not None
    names = [name for segment in pipeline for part in segment.parts for name, _ in part.names]
    assert names == ["0.memory", "1.memory", "exp_avg", "exp_avg_sq"]


def test_leaves_of_one_pipeline_stand_together_and_frozen_ones_nowhere() -> None:
    made = plan(partition({"bias": SGD(lr=0.1), "embed": None, ".": Adam()}), ["a", "bias", "embed", "b"])
    assert [indices for _, indices in made.classes] == [(0, 3), (1,)]
    assert made.pipelines[2] is None


def test_the_first_pattern_that_matches_wins_and_predicates_work() -> None:
    stage = partition([(lambda path: path == "w", SGD(lr=0.1)), ("w", None), (".", Adam())])
    assert [p is None for p in plan(stage, ["w", "w2", "x"]).pipelines] == [False, True, False]


def test_a_leaf_that_no_pattern_matches_is_named() -> None:
    with pytest.raises(InputError, match=r"no pattern matches parameter 'w'"):
        plan(partition({"bias": SGD(lr=0.1)}), ["bias", "w"])


def test_a_pattern_that_matches_nothing_names_the_nearest_path() -> None:
    with pytest.raises(InputError, match=r"'encodr' matches no parameter; did you mean 'encoder'"):
        plan(partition({"encodr": None, ".": SGD(lr=0.1)}), ["encoder", "head"])


def test_a_pattern_that_is_no_expression_is_refused() -> None:
    with pytest.raises(InputError, match=r"not a regular expression"):
        partition({"(": None})


def test_a_program_depends_on_switches_and_not_on_numbers() -> None:
    def code(rule: Rule) -> Any:
        (pipeline,) = plan(rule, ["w"]).pipelines
        assert pipeline is not None
        return program(pipeline[0].parts, "p")

    assert code(Adam(lr=0.1)) == code(replace(Adam(), lr=0.2, b1=0.5))
    assert code(Adam()) != code(SGD(lr=0.1))


def test_a_stage_that_is_no_rule_is_refused() -> None:
    with pytest.raises(InputError, match="stage 1 is 'adam'"):
        chain(SGD(lr=1.0), "adam")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least one"):
        chain()
    with pytest.raises(InputError, match="expected a rule"):
        partition({".": 3})  # type: ignore[dict-item]


def test_rules_of_lists_every_rule_with_its_position() -> None:
    stage = chain(Halve(), partition({"a": SGD(lr=1.0), "b": None, ".": chain(Adam())}))
    assert [key for key, _ in rules_of(stage)] == ["0.", "1.0.", "1.2.0."]


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), float("inf"), "0.1", True])
def test_a_hyperparameter_out_of_range_is_named(value: Any) -> None:
    with pytest.raises(InputError, match=r"Halve: factor = "):
        Halve(factor=value)


@pytest.mark.parametrize("name", ["g", "p", "update"])
def test_a_slot_must_not_take_the_name_of_another_array(name: str) -> None:
    @dataclass(frozen=True)
    class Hiding(Elementwise):
        def slots(self) -> tuple[Slot, ...]:
            return (Slot(name),)

        def leaf(self, xp: Any, g: Array, p: Array, slots: Slots, c: Any) -> tuple[Array, dict[str, Array]]:
            return g, dict(slots)

    with pytest.raises(InputError, match=f"Hiding: a slot is called '{name}'"):
        plan(chain(SGD(lr=0.1), Hiding()), ("w",))
