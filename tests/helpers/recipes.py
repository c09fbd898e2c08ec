"""Check that a recipe survives being written and read."""

from __future__ import annotations

import json

from polyopt.recipe import Recipe


def check_round_trips(found: Recipe) -> None:
    table = found.to_dict()
    assert Recipe.from_dict(table) == found
    assert Recipe.parse(found.to_toml(), "toml") == found
    assert Recipe.parse(found.to_json(), "json") == found
    assert Recipe.parse(found.to_toml()).to_dict() == table == json.loads(found.to_json())
    assert hash(found) == hash(Recipe.from_dict(table))
