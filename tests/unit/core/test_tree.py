"""Named leaves."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyopt.core import tree
from polyopt.core.errors import InputError


class Layer(NamedTuple):
    weight: object
    bias: object


trees = st.recursive(
    st.integers() | st.none(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "weight", "10"]), inner, max_size=3)
    ),
    max_leaves=12,
)


def test_paths_are_joined_by_dots_as_torch_does() -> None:
    params = {"layers": [Layer(1, 2), Layer(3, None)], "head": (4,)}
    assert tree.named(params) == {
        "head.0": 4,
        "layers.0.weight": 1,
        "layers.0.bias": 2,
        "layers.1.weight": 3,
    }
    assert "layers.1.bias" in tree.flatten(params).paths


def test_a_state_dict_has_the_paths_of_the_nested_tree() -> None:
    assert tree.flatten({"a.b": 1, "a.c": 2}).paths == tree.flatten({"a": {"b": 1, "c": 2}}).paths


def test_a_leaf_that_stands_alone_has_a_name() -> None:
    assert tree.flatten(1.0).paths == (tree.ROOT,)


@given(trees)
@settings(deadline=None, max_examples=60)
def test_flatten_and_unflatten_are_inverse(nested: object) -> None:
    flat = tree.flatten(nested)
    assert flat.unflatten(flat.leaves) == nested
    assert len(set(flat.paths)) == len(flat.paths) == len(flat.leaves)


@given(trees)
@settings(deadline=None, max_examples=60)
def test_rename_is_the_inverse_of_named(nested: object) -> None:
    assert tree.rename(nested, tree.named(nested)) == nested


def test_the_order_of_dict_keys_does_not_matter() -> None:
    assert tree.flatten({"b": 1, "a": 2}).leaves == tree.flatten({"a": 2, "b": 1}).leaves


def test_two_leaves_of_one_path_are_refused() -> None:
    with pytest.raises(InputError, match=r"'a\.b'"):
        tree.flatten({"a.b": 1, "a": {"b": 2}})


def test_a_missing_leaf_is_named_with_the_nearest() -> None:
    like = tree.flatten({"weight": 1, "bias": 2})
    with pytest.raises(InputError, match=r"gradients: leaf 'weight' is missing; did you mean 'wieght'"):
        tree.aligned({"wieght": 1, "bias": 2}, like, "gradients")


def test_an_extra_leaf_is_named() -> None:
    with pytest.raises(InputError, match=r"gradients: leaf 'scale' has no parameter"):
        tree.aligned({"w": 1, "scale": 2}, tree.flatten({"w": 1}), "gradients")


def test_map_leaves_keeps_none_and_structure() -> None:
    doubled = tree.map_leaves(lambda a, b: a + b, {"x": [1, None]}, {"x": [10, None]})
    assert doubled == {"x": [11, None]}


def test_rename_refuses_unknown_and_missing_leaves() -> None:
    with pytest.raises(InputError, match=r"unknown leaf 'b'"):
        tree.rename({"a": 1}, {"a": 1, "b": 2})
    with pytest.raises(InputError, match=r"leaf 'a' is missing"):
        tree.rename({"a": 1}, {})


def test_leaves_may_be_arrays() -> None:
    x = np.zeros(3)
    assert tree.flatten({"x": x}).leaves[0] is x
