"""Recipes: read, merge, check, explain."""

from ftkit.recipe.loading import load_recipe
from ftkit.recipe.schema import Recipe

__all__ = ["Recipe", "load_recipe"]
