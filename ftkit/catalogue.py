"""What there is to name in a recipe."""

from __future__ import annotations

from ftkit.component import discover
from ftkit.data.base import Format
from ftkit.families.base import Family
from ftkit.methods.base import Method
from ftkit.metrics.base import Metric
from ftkit.prompts import library
from ftkit.recipe import shipped
from ftkit.tasks.base import Task

KINDS = {
    "tasks": Task,
    "families": Family,
    "methods": Method,
    "metrics": Metric,
    "formats": Format,
}


def catalogue(kind: str) -> dict[str, str]:
    """Names and one-line descriptions of one kind, `recipes` and `prompts` among them."""
    if kind == "prompts":
        return {
            f"{task}/{name}": library.find(task, name).summary
            for task in library.tasks()
            for name in library.names(task)
        }
    if kind == "recipes":
        return {name: shipped.summary(name) for name in shipped.names()}
    components = discover(KINDS[kind])
    return {name: component.summary() for name, component in components.items()}
