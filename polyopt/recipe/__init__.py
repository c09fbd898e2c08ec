"""A training recipe: the typed, serialisable composition of data, model, loss, optimizer and training."""

from __future__ import annotations

from polyopt.recipe.component import Component as Component
from polyopt.recipe.recipe import Recipe as Recipe
